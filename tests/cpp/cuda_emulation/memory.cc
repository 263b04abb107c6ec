// Shared and device memory, what is known of each byte, and the runtime's functions.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include <sys/mman.h>

#include "cells.h"
#include "machine.h"

extern char __bss_start, _end;  // variables in shared memory are the kernels' static ones

namespace emulation {
namespace {

constexpr size_t kDeviceBytes = 160 << 20;
constexpr uint8_t kAllocated = 1, kConstant = 2, kWritten = 4;

char* stacks = nullptr;
uint8_t *shared = nullptr, *device = nullptr;
Cell *shared_cells = nullptr, *static_cells = nullptr, *device_cells = nullptr;
uint8_t* shared_differ = nullptr;  // of each line
uint8_t* status = nullptr;         // of each byte of device memory
size_t used = 0;                   // bytes of device memory
long allocations = 0, faults_seen = 0;
std::unordered_map<const void*, size_t>& sizes = *new std::unordered_map<const void*, size_t>;

template <typename T>
T* Map(size_t count) {
  void* const place = mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (place == MAP_FAILED) std::perror("the emulation's memory"), std::exit(1);
  return static_cast<T*>(place);
}

}  // namespace

void MapMemory() {
  if (stacks != nullptr) return;
  stacks = Map<char>(kMostFibers * kStackBytes);
  shared = Map<uint8_t>(8 * kSharedSpan), shared_cells = Map<Cell>(4 * kSharedSpan);
  shared_differ = Map<uint8_t>(8 * kSharedSpan / kLine);
  static_cells = Map<Cell>(&_end - &__bss_start);
  device = Map<uint8_t>(kDeviceBytes), device_cells = Map<Cell>(kDeviceBytes), status = Map<uint8_t>(kDeviceBytes);
}

char* StackOf(size_t fiber) { return stacks + fiber * kStackBytes; }
bool OnStack(const void* memory) {
  const char* const at = static_cast<const char*>(memory);
  return at >= stacks && at < stacks + kMostFibers * kStackBytes;
}

uint8_t* SharedMemory(const Cta* cta, uint32_t address) { return shared + cta->rank * kSharedSpan + address; }

bool AccessShared(Cta* cta, uint32_t address, int bytes, bool write, uint32_t who, Clock clock, const Known& known) {
  for (size_t i = 0; running != nullptr && i < running->copies.size(); ++i) {
    const PendingCopy& copy = running->copies[i];
    if (who == running->who && cta == running->cta && address < copy.to + 16 && copy.to < address + bytes) {
      Fault("shared memory, access at %u: an asynchronous copy to it is under way", address);
      break;
    }
  }
  const uint32_t statics = kStaticStart + 1024 - 128;
  const bool dynamic = address >= kDynamicStart && address + bytes <= kDynamicStart + launched.shared;
  if (!dynamic && !(address >= kStaticStart && address + bytes <= statics && !cta->statics.empty())) {
    Fault("shared memory at %u, %d bytes: %s out of bounds (%d bytes from %u)", address, bytes,
          write ? "written" : "read", launched.shared, kDynamicStart);
    return false;
  }
  if (bytes % 2 != 0 || address % (bytes < 16 ? bytes : 16) != 0) {
    Fault("shared memory at %u, %d bytes: not aligned", address, bytes);
  }
  AccessLines(shared_cells, shared_differ, cta->rank * kSharedSpan + address, bytes, write, who, clock, known, address);
  return true;
}

bool WrittenForEngine(const Cta* cta, uint32_t address, int bytes) {
  const uint32_t at = cta->rank * kSharedSpan + address, threads = launched.threads * launched.cluster;
  for (uint32_t i = at; i < at + bytes; i += 2) {
    const Cell& cell = shared_cells[(shared_differ[i / kLine] ? i : i / kLine * kLine) / 2];
    if (cell.writer < threads && cell.write >= FencedAt(cell.writer)) return false;
  }
  return true;
}

bool AccessDevice(const void* memory, int64_t bytes, bool write) {
  const int64_t at = static_cast<const uint8_t*>(memory) - device;
  const auto outside = [&] {
    Fault("device memory, %lld bytes: %s out of bounds", static_cast<long long>(bytes), write ? "written" : "read");
    return false;
  };
  if (at < 0 || at + bytes > static_cast<int64_t>(kDeviceBytes)) return outside();
  bool constant = true, written = true;
  for (int64_t i = 0; i < bytes; ++i) {
    if ((status[at + i] & kAllocated) == 0) return outside();
    constant = constant && (status[at + i] & kConstant) != 0;
    written = written && (status[at + i] & kWritten) != 0;
    if (write) status[at + i] |= kWritten;
  }
  if (write && constant) Fault("device memory that was declared constant is written");
  if (!write && !written) Fault("device memory, %lld bytes: read before it was written", static_cast<long long>(bytes));
  const bool waited = running->known && (*running->known)[launched.previous] >= launched.begin;
  if (launched.dependent && !waited && (write || !constant)) {
    Fault("device memory is %s before the kernel before has ended", write ? "written" : "read");
  }
  if (write || !constant) {  // what nobody may write can be read in any order
    AccessCells(device_cells + at, bytes, write, false, running->who, running->clock, running->known, "device", at);
  }
  return true;
}

void Prefetch(const void* memory, uint32_t bytes) {
  const int64_t at = static_cast<const uint8_t*>(memory) - device;
  if (at % 16 != 0 || bytes % 16 != 0 || at < 0 || (status[at] & status[at + bytes - 1] & kAllocated) == 0) {
    Fault("a prefetch of %u bytes that is not aligned or out of bounds", bytes);
  }
}

// ---- Shared memory's instructions ---------------------------------------------------------------------------------
uint8_t* DynamicShared() { return SharedMemory(running->cta, kDynamicStart); }

uint32_t SharedAddress(const void* pointer) {
  Cta* const cta = running->cta;
  const int64_t offset = static_cast<const uint8_t*>(pointer) - SharedMemory(cta, 0);
  if (offset >= 0 && offset < static_cast<int64_t>(kSharedSpan)) return static_cast<uint32_t>(offset);
  const auto found = cta->statics.find(pointer);
  if (found != cta->statics.end()) return found->second;
  return cta->statics[pointer] = kStaticStart + 256 * static_cast<uint32_t>(cta->statics.size());
}

void StoreShared(uint32_t address, const void* value, int bytes) {
  if (!AccessShared(running->cta, address, bytes, true, running->who, running->clock, running->known)) return;
  std::memcpy(SharedMemory(running->cta, address), value, bytes);
}
void LoadShared(uint32_t address, void* value, int bytes) {
  std::memset(value, 0xff, bytes);
  if (!AccessShared(running->cta, address, bytes, false, running->who, running->clock, running->known)) return;
  std::memcpy(value, SharedMemory(running->cta, address), bytes);
}
// Whether the running thread knows that a thread of this CTA has begun.
static bool HasBegun(const Cta& cta) {
  for (int i = 0; running->known && i < launched.threads; ++i) {
    if ((*running->known)[cta.rank * launched.threads + i] >= launched.cluster_begin) return true;
  }
  return false;
}

void StoreRemote(uint32_t address, uint32_t rank, const void* value, int bytes) {
  if (rank >= ctas.size()) return Fault("a write to CTA %u of a cluster of %zu", rank, ctas.size());
  Cta* const cta = ctas[rank].get();
  if (cta != running->cta && !HasBegun(*cta)) Fault("a write to CTA %u, which may not have begun", rank);
  cta->visits[running->who] = running->clock;
  if (!AccessShared(cta, address, bytes, true, running->who, running->clock, running->known)) return;
  std::memcpy(SharedMemory(cta, address), value, bytes);
}

// The bytes arrive when the thread waits for them, so that who reads earlier reads what was there before.
void CopyAsync16(uint32_t to, const void* from, bool valid) {
  if (valid) AccessDevice(from, 16, false);
  if (valid && reinterpret_cast<uintptr_t>(from) % 16 != 0) Fault("cp.async from an address that is not aligned");
  if (!AccessShared(running->cta, to, 16, true, running->who, running->clock, running->known)) return;
  running->copies.push_back(PendingCopy{to, valid ? from : nullptr, running->copy_group});
}
void CommitCopies() { ++running->copy_group; }
void WaitCopies(int pending) {
  std::vector<PendingCopy>& copies = running->copies;
  std::vector<PendingCopy> done;
  while (!copies.empty() && copies.front().group + pending < running->copy_group) {
    done.push_back(copies.front());
    copies.erase(copies.begin());
  }
  for (const PendingCopy& copy : done) {
    AccessShared(running->cta, copy.to, 16, true, running->who, running->clock, running->known);
    if (copy.from != nullptr) {
      std::memcpy(SharedMemory(running->cta, copy.to), copy.from, 16);
    } else {
      std::memset(SharedMemory(running->cta, copy.to), 0, 16);
    }
  }
}

void Constant(const void* memory) {
  const int64_t at = static_cast<const uint8_t*>(memory) - device;
  for (size_t i = 0; i < sizes[memory]; ++i) status[at + i] |= kConstant;
}

// ---- What the compiler calls before each access in kernels ----------------------------------------------------------
namespace {

void Watch(const void* memory, int bytes, bool write) {
  if (running == nullptr) return;
  const char* const at = static_cast<const char*>(memory);
  if (OnStack(memory)) {
    const auto within = [&](const void* begin, const void* end) { return at + bytes > begin && memory < end; };
    for (const Accumulator& a : running->accumulators) {
      if (within(a.place, a.place + a.count)) {
        return Fault("a product's sums are %s before WgmmaWait", write ? "written" : "read");
      }
    }
    for (const Operand& o : running->operands) {
      if (write && within(o.place, o.place + 4)) {
        return Fault("a product's operand in registers is written before WgmmaWait");
      }
    }
  } else if (memory >= device && memory < device + kDeviceBytes) {
    if (reinterpret_cast<uintptr_t>(memory) % bytes != 0) Fault("device memory, %d bytes: not aligned", bytes);
    AccessDevice(memory, bytes, write);
  } else if (memory >= shared && memory < shared + 8 * kSharedSpan) {
    AccessShared(running->cta, SharedAddress(memory), bytes, write, running->who, running->clock, running->known);
  } else if (at >= &__bss_start && at < &_end) {
    AccessCells(static_cells + (at - &__bss_start), bytes, write, true, running->who, running->clock, running->known,
                "static shared", at - &__bss_start);
  }
}

}  // namespace
}  // namespace emulation

using namespace emulation;

#define FTBERT_WATCH(BYTES)                                                          \
  void __tsan_read##BYTES(void* memory) { Watch(memory, BYTES, false); }             \
  void __tsan_write##BYTES(void* memory) { Watch(memory, BYTES, true); }             \
  void __tsan_unaligned_read##BYTES(void* memory) { Watch(memory, BYTES, false); }   \
  void __tsan_unaligned_write##BYTES(void* memory) { Watch(memory, BYTES, true); }
extern "C" {
FTBERT_WATCH(1)
FTBERT_WATCH(2)
FTBERT_WATCH(4)
FTBERT_WATCH(8)
FTBERT_WATCH(16)
void __tsan_read_range(void* memory, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) Watch(static_cast<char*>(memory) + i, 1, false);
}
void __tsan_write_range(void* memory, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) Watch(static_cast<char*>(memory) + i, 1, true);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
uint8_t __tsan_atomic8_load(const volatile uint8_t* place, int) { return *place; }
uint64_t __tsan_atomic64_load(const volatile uint64_t* place, int) { return *place; }
uint64_t __tsan_atomic64_fetch_or(volatile uint64_t* place, uint64_t value, int) {
  return __atomic_fetch_or(place, value, __ATOMIC_SEQ_CST);
}
}
#undef FTBERT_WATCH

int atomicMax(int* place, int value) {
  const int64_t at = reinterpret_cast<uint8_t*>(place) - device;
  if (at < 0 || at + 4 > static_cast<int64_t>(kDeviceBytes) || (status[at] & status[at + 3] & kAllocated) == 0) {
    Fault("atomicMax out of bounds");
    return 0;
  }
  if ((status[at] & status[at + 3] & kWritten) == 0) Fault("atomicMax of what was never written");
  const int old = *place;
  *place = std::max(old, value);
  return old;
}

// ---- Runtime ------------------------------------------------------------------------------------------------------
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? "faults, printed above" : (error == cudaSuccess ? "no error" : "refused");
}

cudaError_t AllocateDevice(void** to, size_t bytes) {
  MapMemory();
  if (allocations == 0) used = 0;
  const size_t begin = (used + 256) / 256 * 256, room = (bytes + 511) / 256 * 256;  // never without a gap behind
  if (begin + room > kDeviceBytes) return cudaErrorMemoryAllocation;
  used = begin + room;
  *to = device + begin;
  sizes[*to] = bytes;
  std::memset(status + begin, kAllocated, bytes);
  ++allocations;
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  if (memory == nullptr) return cudaSuccess;
  std::memset(status + (static_cast<uint8_t*>(memory) - device), 0, sizes[memory]);
  sizes.erase(memory);
  --allocations;
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (kind == cudaMemcpyHostToDevice) {
    uint8_t* const at = status + (static_cast<uint8_t*>(to) - device);
    for (size_t i = 0; i < bytes; ++i) at[i] |= kWritten;
  }
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  uint8_t* const at = status + (static_cast<uint8_t*>(to) - device);
  for (size_t i = 0; i < bytes; ++i) at[i] = value == 0xff ? at[i] & ~kWritten : at[i] | kWritten;
  std::memset(to, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  const bool sound = faults_seen == Faults();
  faults_seen = Faults();
  return sound ? cudaSuccess : cudaErrorLaunchFailure;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::snprintf(properties->name, sizeof properties->name, "an emulated card");
  properties->multiProcessorCount = 2, properties->major = 9, properties->minor = 0;
  return cudaSuccess;
}

namespace {
CUresult EncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* data, const cuuint64_t* sizes,
                     const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t*, CUtensorMapInterleave,
                     CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  const int bytes = type == CU_TENSOR_MAP_DATA_TYPE_UINT8 ? 1 : 2;
  const bool swizzled = swizzle != CU_TENSOR_MAP_SWIZZLE_NONE;
  const uint32_t box_bytes = box[0] * bytes;
  if (rank != 2 || reinterpret_cast<uintptr_t>(data) % 16 != 0 || strides[0] % 16 != 0 ||
      strides[0] < sizes[0] * bytes || box_bytes % 16 != 0 || (swizzled && box_bytes != 16u << swizzle) || box[1] < 1 ||
      box[1] > 256 || sizes[0] == 0 || sizes[1] == 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  *map = CUtensorMap{static_cast<uint8_t*>(data), static_cast<int64_t>(sizes[1]),
                     static_cast<int64_t>(sizes[0]) * bytes, static_cast<int64_t>(strides[0]), static_cast<int>(box[1]),
                     static_cast<int>(box_bytes), bytes, (1 << swizzle) - 1};
  return CUDA_SUCCESS;
}
}  // namespace

cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** entry, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  *entry = reinterpret_cast<void*>(&EncodeTiled);
  *found = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
