// Device matrices with a host copy, for the programs that check and time CUDA kernels.
#ifndef FTBERT_TESTS_CPP_CUDA_MATRIX_CUH_
#define FTBERT_TESTS_CPP_CUDA_MATRIX_CUH_

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "cuda/common.cuh"
#include "cuda/gemm.h"

namespace ftbert_test {

using namespace ftbert::cuda;

inline std::mt19937 generator;

#define CHECK_CUDA(call)                                                                               \
  do {                                                                                                 \
    const cudaError_t result = (call);                                                                 \
    if (result != cudaSuccess) {                                                                       \
      std::printf("FAIL %s:%d %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(result));       \
      std::exit(1);                                                                                    \
    }                                                                                                  \
  } while (0)

// Device memory with its host copy as floats.
struct Matrix {
  Element element;
  int64_t rows, columns;
  std::vector<float> host;  // what the device holds, after rounding
  void* device = nullptr;

  Matrix(Element e, int64_t r, int64_t c) : element(e), rows(r), columns(c), host(r * c) {
    CHECK_CUDA(cudaMalloc(&device, std::max<int64_t>(r * c * ElementBytes(e), 16)));
  }
  ~Matrix() { cudaFree(device); }
  Matrix(const Matrix&) = delete;

  void Upload() {
    std::vector<uint8_t> bytes(host.size() * ElementBytes(element));
    for (size_t i = 0; i < host.size(); ++i) {
      if (element == Element::kFloat) {
        std::memcpy(&bytes[4 * i], &host[i], 4);
      } else if (element == Element::kHalf) {
        const Half h = __float2half(host[i]);
        std::memcpy(&bytes[2 * i], &h, 2);
        host[i] = __half2float(h);
      } else if (element == Element::kBFloat) {
        const BFloat h = __float2bfloat16(host[i]);
        std::memcpy(&bytes[2 * i], &h, 2);
        host[i] = __bfloat162float(h);
      } else {
        const Float8 h(host[i]);
        std::memcpy(&bytes[i], &h, 1);
        host[i] = static_cast<float>(h);
      }
    }
    CHECK_CUDA(cudaMemcpy(device, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
  }
  void Random(float scale) {
    std::normal_distribution<float> normal(0.f, scale);
    for (float& v : host) v = normal(generator);
    Upload();
  }
  void Poison() { CHECK_CUDA(cudaMemset(device, 0xff, rows * columns * ElementBytes(element))); }  // NaN in each type
  std::vector<float> Download() const {
    std::vector<uint8_t> bytes(host.size() * ElementBytes(element));
    CHECK_CUDA(cudaMemcpy(bytes.data(), device, bytes.size(), cudaMemcpyDeviceToHost));
    std::vector<float> out(host.size());
    for (size_t i = 0; i < out.size(); ++i) {
      if (element == Element::kFloat) {
        std::memcpy(&out[i], &bytes[4 * i], 4);
      } else if (element == Element::kFloat8) {
        Float8 h;
        std::memcpy(&h, &bytes[i], 1);
        out[i] = static_cast<float>(h);
      } else {
        uint16_t h;
        std::memcpy(&h, &bytes[2 * i], 2);
        out[i] = element == Element::kHalf ? __half2float(__ushort_as_half(h))
                                           : __bfloat162float(__ushort_as_bfloat16(h));
      }
    }
    return out;
  }
};

// What no kernel writes may be read before the kernel before has ended: the emulation checks that nothing else is.
#ifdef FTBERT_EMULATE
inline void Constant(const Matrix& matrix) { emulation::Constant(matrix.device); }
#else
inline void Constant(const Matrix&) {}
#endif

// The card that the programs run on; 77 ends one that has none, unless FTBERT_REQUIRE_GPU is set.
inline Machine FirstCard() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    std::exit(std::getenv("FTBERT_REQUIRE_GPU") != nullptr ? 1 : 77);
  }
  Machine machine;
  cudaDeviceProp properties;
  CHECK_CUDA(cudaGetDeviceProperties(&properties, 0));
  machine.name = properties.name;
  machine.sms = properties.multiProcessorCount;
#ifndef FTBERT_EMULATE
  machine.sm_shared = static_cast<int>(properties.sharedMemPerMultiprocessor);
  machine.shared_reserved = static_cast<int>(properties.reservedSharedMemPerBlock);
  machine.cta_shared = static_cast<int>(properties.sharedMemPerBlockOptin);
#endif
  machine.capability = properties.major * 10 + properties.minor;
  CHECK_CUDA(FindCode(&machine.hopper, &machine.dependent_launch));
  if (machine.hopper) CHECK_CUDA(FindNormClusters(machine.norm_clusters));
  return machine;
}

}  // namespace ftbert_test

#endif  // FTBERT_TESTS_CPP_CUDA_MATRIX_CUH_
