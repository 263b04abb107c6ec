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

// What wgmma wants to know of such a tile. 32 bytes of K on is 2 more.
__device__ __forceinline__ uint64_t TileDescriptor(uint32_t address) {
  return (static_cast<uint64_t>(1) << 62) | (static_cast<uint64_t>(1024 >> 4) << 32) |
         (static_cast<uint64_t>(1) << 16) | ((address & 0x3ffff) >> 4);
}

}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_CUDA_HOPPER_CUH_
