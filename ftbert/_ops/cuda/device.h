// The card: is it there and good enough, what it is called, and errors in words.
#ifndef FTBERT_CUDA_DEVICE_H_
#define FTBERT_CUDA_DEVICE_H_

#include <cuda_runtime.h>

#include <string>
#include <utility>

#include "cuda/gemm.h"
#include "ftbert/engine.h"

namespace ftbert {
namespace cuda {

// Reads "cuda" or "cuda:<index>" and looks at that card. kUnavailable names what is missing and the remedy.
Status OpenDevice(const std::string& device, Precision precision, Machine* machine);

// JSON of core/cuda_loader.h's ftbert_cuda_describe_fn.
std::string DescribeDevices();

std::string DriverVersion();   // "13.0": the newest CUDA that the driver runs
std::string DriverRelease();   // "580.159.04" where the system tells it, else DriverVersion()
std::string RuntimeVersion();  // of the runtime that is linked in

// kOutOfMemory or kInternal with what was being done.
Status FromCuda(cudaError_t error, const std::string& doing);

std::string Quote(const std::string& text);  // as a JSON string

// Makes a card current for a scope, and puts back the thread's own.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    if (cudaGetDevice(&previous_) != cudaSuccess) previous_ = -1;
    if (previous_ != device) cudaSetDevice(device);
    changed_ = previous_ != device && previous_ >= 0;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = -1;
  bool changed_ = false;
};

// Owned device memory.
class DeviceArray {
 public:
  DeviceArray() = default;
  ~DeviceArray() { Free(); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  // Zeroed, so that padding is zeros: by the default stream, which no other waits for. On failure the array is empty.
  cudaError_t Allocate(size_t bytes, bool zeroed = true) {
    Free();
    cudaError_t error = cudaMalloc(&data_, bytes > 0 ? bytes : 16);
    if (error != cudaSuccess) {
      data_ = nullptr;
      cudaGetLastError();  // the failure is reported by us: it must not surface in the next call
      return error;
    }
    bytes_ = bytes;
    return zeroed ? cudaMemset(data_, 0, bytes > 0 ? bytes : 16) : cudaSuccess;
  }
  void Free() {
    if (data_ != nullptr) cudaFree(data_);
    data_ = nullptr;
    bytes_ = 0;
  }
  void Swap(DeviceArray* other) {
    std::swap(data_, other->data_);
    std::swap(bytes_, other->bytes_);
  }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  uint8_t* data() const { return static_cast<uint8_t*>(data_); }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_CUDA_DEVICE_H_
