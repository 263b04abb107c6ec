// What kernels for Hopper share besides its instructions.
//
// Operand tiles in shared memory are K-major with rows of 128 bytes (64 fp16 or 128 fp8 values), 128-byte swizzle,
// 1024-byte aligned: what the copy engine writes is what wgmma reads.
#ifndef FTBERT_CUDA_HOPPER_CUH_
#define FTBERT_CUDA_HOPPER_CUH_

#include "cuda/common.cuh"
#include "cuda/hopper_instructions.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FTBERT_HOPPER 1
#else
#define FTBERT_HOPPER 0
#endif

namespace ftbert {
namespace cuda {

// This thread's warpgroup, in a way that tells the compiler that a warp's threads agree: what follows from it,
// addresses and descriptors, is then computed once a warp. Else each product's operands are computed by every thread
// and moved, five or six moves a product, which the matrix units wait for.
__device__ __forceinline__ int Warpgroup() { return SameInWarp(static_cast<int>(threadIdx.x) / 128); }

// What wgmma wants to know of such a tile. 32 bytes of K on is 2 more.
__device__ __forceinline__ uint64_t TileDescriptor(uint32_t address) {
  return (static_cast<uint64_t>(1) << 62) | (static_cast<uint64_t>(1024 >> 4) << 32) |
         (static_cast<uint64_t>(1) << 16) | ((address & 0x3ffff) >> 4);
}

// Sets the products of a slice of K, 128 bytes, under way: sums (64, N) += a (64, 128 bytes) b (N, 128 bytes)^T, of
// tiles at these addresses; `fresh` sums begin with it.
template <typename In, int N>
__device__ __forceinline__ void MultiplySlice(float (&sums)[N / 2], uint32_t a, uint32_t b, bool fresh = false) {
  const uint64_t a_tile = TileDescriptor(a), b_tile = TileDescriptor(b);
  WgmmaFence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {  // 32 bytes of K each
    Wgmma<In, N>::Run(sums, a_tile + 2 * step, b_tile + 2 * step, !fresh || step > 0);
  }
  WgmmaCommit();
}

// This CTA's share, in a grid of one dimension, of weights that are needed soon, into L2: by one thread.
__device__ __forceinline__ void PrefetchShare(const void* weights, int64_t bytes) {
  const int64_t share = (bytes / 16 + gridDim.x - 1) / gridDim.x * 16, from = blockIdx.x * share, left = bytes - from;
  if (left > 0) {
    PrefetchL2(static_cast<const uint8_t*>(weights) + from, static_cast<uint32_t>(share < left ? share : left));
  }
}

}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_CUDA_HOPPER_CUH_
