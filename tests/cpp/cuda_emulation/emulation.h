// Runs the project's CUDA kernels on the CPU, without a card, and watches them.
//
// Each CUDA thread is a fiber; the CTAs of a cluster run together, one cluster after the other, in an order of fibers
// that FTBERT_EMULATION_ORDER decides (0: by number, 1: backwards, else shuffled). Every access to shared and device
// memory is checked, the compiler's own (-fsanitize=thread makes it call __tsan_* before each: ours, not that
// runtime's) and the instructions' below:
//   - within what was allocated, and written before it is read;
//   - ordered against other threads' accesses to the same byte by barriers, mbarriers, __syncwarp or cluster barriers
//     (vector clocks: what is unordered is found whatever the order of this run). Shuffles and votes order no memory.
//     The copy engine and each warpgroup's wgmma are agents of their own, ordered by mbarriers, by WgmmaWait and, where
//     the engine reads shared memory, by the wait for its stores. What it reads must be written before the writer's
//     WrittenForCopyEngine;
//   - device memory that a kernel before may have written, only after WaitForPreviousKernel (constants: Constant).
// Besides: mbarrier counts, named barriers' thread counts, collective instructions that a part of a warp or warpgroup
// does not take, accumulators touched before WgmmaWait, a CTA that ends before its peers are through with its memory,
// alignment, and kernels that hang.
//
// Not modelled: time, the order of proxies elsewhere, registers and their number, caches, two kernels at once.
#ifndef FTBERT_TESTS_CUDA_EMULATION_EMULATION_H_
#define FTBERT_TESTS_CUDA_EMULATION_EMULATION_H_

#include <cuda_runtime.h>

namespace emulation {

// ---- For test programs --------------------------------------------------------------------------------------------
void Constant(const void* memory);   // an allocation that no kernel writes: may be read before the kernel before ended
long Faults();                       // so far; each is printed

// ---- For the instructions: what the functions of the same name in ftbert/_ops/cuda do -------------------------------
enum class Kind { kHalf, kBFloat, kFloat8 };
template <typename T>
constexpr Kind KindOf();
template <>
constexpr Kind KindOf<__half>() { return Kind::kHalf; }
template <>
constexpr Kind KindOf<__nv_bfloat16>() { return Kind::kBFloat; }
template <>
constexpr Kind KindOf<__nv_fp8_e4m3>() { return Kind::kFloat8; }

void WaitForPrevious();
uint32_t SharedAddress(const void* pointer);
uint8_t* DynamicShared();
void StoreShared(uint32_t address, const void* value, int bytes);
void LoadShared(uint32_t address, void* value, int bytes);
void StoreRemote(uint32_t address, uint32_t rank, const void* value, int bytes);
void CopyAsync16(uint32_t to, const void* from, bool valid);
void CommitCopies();
void WaitCopies(int pending);
void LoadMatrix4(uint32_t (&r)[4], uint32_t address, bool transposed);
void StoreMatrix4(uint32_t address, const uint32_t (&r)[4]);
void MultiplyAdd(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Kind kind);

void BarrierInit(uint32_t barrier, int arrivals);
void BarrierArrive(uint32_t barrier, uint32_t rank, uint32_t expected_bytes);
void Sent(uint32_t barrier, uint32_t rank, int bytes);  // bytes that the running thread wrote, expected there
void BarrierWait(uint32_t barrier, uint32_t parity);
void NamedBarrier(int id, int threads, bool waits);
uint32_t ClusterRank();
void ClusterArrive();
void ClusterWait();
void LoadTile(uint32_t to, const CUtensorMap& map, uint32_t barrier, int x, int y, uint32_t ranks);
void WrittenForCopyEngine();
void StoreTile(uint32_t from, const CUtensorMap& map, int x, int y);
void CommitStores();
void WaitStores(int pending);
void Prefetch(const void* memory, uint32_t bytes);
void WgmmaFence();
void WgmmaCommit();
void WgmmaWait(int pending);
// a_registers: 4 words of the left operand; null: it lies at descriptor a.
// b_keys: with the left operand in registers, the right one is K-major all the same.
void Wgmma(float* d, int columns, const uint32_t* a_registers, uint64_t a, uint64_t b, bool accumulate, Kind kind,
           bool b_keys = false);

}  // namespace emulation

#endif  // FTBERT_TESTS_CUDA_EMULATION_EMULATION_H_
