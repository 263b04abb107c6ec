// Hopper's own instructions, one function each: mbarriers, the tensor copy engine (TMA), warpgroup matrix products
// (wgmma), clusters. Only code for sm_90a is compiled to anything; callers guard with FTBERT_HOPPER.
//
// Operand tiles in shared memory are K-major with rows of 128 bytes (64 fp16 or 128 fp8 values), 128-byte swizzle,
// 1024-byte aligned: what the copy engine writes is what wgmma reads.
#ifndef FTBERT_CUDA_HOPPER_CUH_
#define FTBERT_CUDA_HOPPER_CUH_

#include <cuda.h>

#include "cuda/common.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FTBERT_HOPPER 1
#else
#define FTBERT_HOPPER 0
#endif

namespace ftbert {
namespace cuda {

// ---- mbarrier -----------------------------------------------------------------------------------------------------
__device__ __forceinline__ void BarrierInit(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void BarrierInitFence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void BarrierExpect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void BarrierArrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives at the same barrier of CTA `rank` of the cluster.
__device__ __forceinline__ void BarrierArriveRemote(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{.reg .b32 remote; mapa.shared::cluster.u32 remote, %0, %1; mbarrier.arrive.shared::cluster.b64 _, [remote];}" ::
          "r"(barrier),
      "r"(rank)
      : "memory");
}
__device__ __forceinline__ void BarrierWait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nwait:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@done bra finished;\n"
      "bra wait;\nfinished:\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
__device__ __forceinline__ void NamedBarrierSync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void NamedBarrierArrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- Clusters -----------------------------------------------------------------------------------------------------
__device__ __forceinline__ uint32_t ClusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ void ClusterArrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void ClusterWait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ __forceinline__ float4 LoadRemote4(uint32_t address, uint32_t rank) {
  float4 v;
  asm volatile(
      "{.reg .b32 remote; mapa.shared::cluster.u32 remote, %4, %5; ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [remote];}"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(address), "r"(rank)
      : "memory");
  return v;
}

// ---- Copy engine --------------------------------------------------------------------------------------------------
// A box of `map` at column x, row y; what lies outside the matrix arrives as zeros and counts as bytes all the same.
__device__ __forceinline__ void LoadTile(uint32_t to, const CUtensorMap* map, uint32_t barrier, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          to),
      "l"(map), "r"(barrier), "r"(x), "r"(y)
      : "memory");
}
__device__ __forceinline__ void LoadTileMulticast(uint32_t to, const CUtensorMap* map, uint32_t barrier, int x, int y,
                                                  uint16_t ranks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
      " [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
      "l"(map), "r"(barrier), "r"(x), "r"(y), "h"(ranks)
      : "memory");
}
__device__ __forceinline__ void PrefetchMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// Brings memory into L2; address and bytes are multiples of 16.
__device__ __forceinline__ void PrefetchL2(const void* address, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(address), "r"(bytes) : "memory");
}

// ---- Warpgroup matrix products ------------------------------------------------------------------------------------
__device__ __forceinline__ uint64_t TileDescriptor(uint32_t address) {
  return (static_cast<uint64_t>(1) << 62) | (static_cast<uint64_t>(1024 >> 4) << 32) |
         (static_cast<uint64_t>(1) << 16) | ((address & 0x3ffff) >> 4);
}
__device__ __forceinline__ void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void WgmmaCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
template <int kRegisters>
__device__ __forceinline__ void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Wgmma<T, N>::Run(acc, a, b, accumulate): acc (64, N) (+)= a (64, 32 bytes of K) b (N, 32 bytes of K)^T. Thread t of
// the warpgroup holds, at acc[4 j + 2 h + c], row 16 (t / 32) + 8 h + (t % 32) / 4 and column 8 j + 2 (t % 4) + c.
template <typename T, int N>
struct Wgmma;

#include "cuda/wgmma_shapes.inc"

}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_CUDA_HOPPER_CUH_
