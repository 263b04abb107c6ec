// Hopper's own instructions, one function each: mbarriers, the tensor copy engine (TMA), warpgroup matrix products
// (wgmma), clusters. Only code for sm_90a is compiled to anything; callers guard with FTBERT_HOPPER.
#ifndef FTBERT_CUDA_HOPPER_INSTRUCTIONS_CUH_
#define FTBERT_CUDA_HOPPER_INSTRUCTIONS_CUH_

#include <cuda.h>

#include "cuda/common.cuh"

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
// The same, and what other CTAs of the cluster sent with it is there.
__device__ __forceinline__ void BarrierWaitCluster(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nwait:\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\nbra wait;\nfinished:\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
__device__ __forceinline__ void NamedBarrierSync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void NamedBarrierArrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- Warps --------------------------------------------------------------------------------------------------------
// True to one lane of the warp, all of which ask. The compiler knows it for one: what that lane asks of the copy engine
// stands there once, not in a loop over lanes.
__device__ __forceinline__ bool ElectLane() {
  uint32_t elected;
  asm volatile("{.reg .pred chosen; elect.sync _|chosen, 0xffffffff; selp.u32 %0, 1, 0, chosen;}" : "=r"(elected));
  return elected != 0;
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
// To shared memory of CTA `rank` of the cluster, which has begun and does not end before it has waited for this.
__device__ __forceinline__ void StoreRemote4(uint32_t address, uint32_t rank, const float4& v) {
  asm volatile(
      "{.reg .b32 remote; mapa.shared::cluster.u32 remote, %0, %1;\n"
      "st.shared::cluster.v4.f32 [remote], {%2,%3,%4,%5};}" ::"r"(address),
      "r"(rank), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
      : "memory");
}

// The same of eight bytes that CTA `rank`'s `barrier` expects. Only in a launch with clusters.
__device__ __forceinline__ void SendRemote2(uint32_t address, uint32_t rank, const float2& v, uint32_t barrier) {
  asm volatile(
      "{.reg .b32 remote, there; mapa.shared::cluster.u32 remote, %0, %2; mapa.shared::cluster.u32 there, %1, %2;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [remote], {%3,%4}, [there];}" ::"r"(address),
      "r"(barrier), "r"(rank), "f"(v.x), "f"(v.y)
      : "memory");
}

__device__ __forceinline__ void SendRemote4(uint32_t address, uint32_t rank, const float4& v, uint32_t barrier) {
  asm volatile(
      "{.reg .b32 remote, there; mapa.shared::cluster.u32 remote, %0, %2; mapa.shared::cluster.u32 there, %1, %2;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [remote], {%3,%4,%5,%6}, [there];}" ::"r"(address),
      "r"(barrier), "r"(rank), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
      : "memory");
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
// From shared memory that threads have written, each before WrittenForCopyEngine, to a box of `map`; what lies outside
// the matrix is not written. The stores that a thread has asked for between two CommitStores are a group of its own.
__device__ __forceinline__ void WrittenForCopyEngine() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void StoreTile(uint32_t from, const CUtensorMap* map, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map), "r"(from),
               "r"(x), "r"(y)
               : "memory");
}
__device__ __forceinline__ void CommitStores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until all but the latest kPending groups have read their shared memory. What they write is there when the kernel has
// ended.
template <int kPending>
__device__ __forceinline__ void WaitStoresRead() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
__device__ __forceinline__ void PrefetchMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// Brings memory into L2; address and bytes are multiples of 16.
__device__ __forceinline__ void PrefetchL2(const void* address, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(address), "r"(bytes) : "memory");
}

// ---- Warpgroup matrix products ------------------------------------------------------------------------------------
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
#include "cuda/wgmma_shapes_float8.inc"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// d (64, 64) += a (64, 16) in registers times b (16, 64) in shared memory: 16 rows of 128 bytes, 128-byte swizzle.
template <typename T>
__device__ __forceinline__ void MultiplyRegisters(float (&d)[32], const uint32_t (&a)[4], uint64_t b);
// The same times b (64, 16)^T: 32 bytes of each of 64 rows, as Wgmma's.
template <typename T>
__device__ __forceinline__ void MultiplyRegistersKeys(float (&d)[32], const uint32_t (&a)[4], uint64_t b);

#define FTBERT_MULTIPLY_REGISTERS(FUNCTION, TYPE, NAME, TURNED)                                                       \
  template <>                                                                                                         \
  __device__ __forceinline__ void FUNCTION<TYPE>(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {                \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." NAME "." NAME                                         \
                 " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                           \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                  \
                 "{%32, %33, %34, %35}, %36, 1, 1, 1, " TURNED ";"                                                    \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),    \
                   "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),           \
                   "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),         \
                   "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),         \
                   "+f"(d[29]), "+f"(d[30]), "+f"(d[31])                                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                               \
  }
FTBERT_MULTIPLY_REGISTERS(MultiplyRegisters, Half, "f16", "1")
FTBERT_MULTIPLY_REGISTERS(MultiplyRegisters, BFloat, "bf16", "1")
FTBERT_MULTIPLY_REGISTERS(MultiplyRegistersKeys, Half, "f16", "0")
FTBERT_MULTIPLY_REGISTERS(MultiplyRegistersKeys, BFloat, "bf16", "0")
#undef FTBERT_MULTIPLY_REGISTERS

// Between a product's end and the first use of what it computed: the compiler must not move that use up.
__device__ __forceinline__ void HoldRegisters(float (&values)[32]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) asm volatile("" : "+f"(values[i])::"memory");
}
#endif

}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_CUDA_HOPPER_INSTRUCTIONS_CUH_
