// Aligned memory without initialisation, on huge pages where it is large.
#ifndef FTBERT_CPU_MEMORY_H_
#define FTBERT_CPU_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <utility>

namespace ftbert {
namespace cpu {

// Owns `size` bytes aligned to 64 (2 MiB and advised to be huge pages from 1 MiB up; mapped, and given back at once
// when freed).
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() { Free(); }

  // Drops what it held. False: out of memory, and the buffer is empty.
  bool Allocate(size_t bytes);
  void Free();

  // Keeps what it has if that is enough; otherwise as Allocate (contents are lost).
  bool Reserve(size_t bytes) { return bytes <= size_ || Allocate(bytes); }

  size_t size() const { return size_; }
  void* data() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_MEMORY_H_
