#include "cpu/memory.h"

#include <sys/mman.h>

#include <cstdlib>

namespace ftbert {
namespace cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
// From here up a buffer is a mapping of its own: huge pages can back it, and freeing gives it back to the system.
constexpr size_t kMapFrom = size_t{1} << 20;

size_t RoundUp(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

bool Buffer::Allocate(size_t bytes) {
  Free();
  if (bytes == 0) return true;
  if (bytes < kMapFrom) {
    data_ = std::aligned_alloc(64, RoundUp(bytes, 64));
  } else {
    // Map one huge page more than needed and cut the ends off, so that the buffer begins on a huge page.
    const size_t length = RoundUp(bytes, 4096);
    void* mapped = mmap(nullptr, length + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return false;
    const uintptr_t begin = reinterpret_cast<uintptr_t>(mapped);
    const uintptr_t aligned = RoundUp(begin, kHugePage);
    if (aligned > begin) munmap(mapped, aligned - begin);
    const uintptr_t end = begin + length + kHugePage;
    if (end > aligned + length) munmap(reinterpret_cast<void*>(aligned + length), end - aligned - length);
    data_ = reinterpret_cast<void*>(aligned);
#ifdef MADV_HUGEPAGE
    madvise(data_, length, MADV_HUGEPAGE);
#endif
  }
  if (data_ == nullptr) return false;
  size_ = bytes;
  return true;
}

void Buffer::Free() {
  if (data_ == nullptr) return;
  if (size_ < kMapFrom) {
    std::free(data_);
  } else {
    munmap(data_, RoundUp(size_, 4096));
  }
  data_ = nullptr;
  size_ = 0;
}

}  // namespace cpu
}  // namespace ftbert
