// The end of a matrix product: scales, bias, activation, and the store.
#ifndef FTBERT_CUDA_EPILOGUE_CUH_
#define FTBERT_CUDA_EPILOGUE_CUH_

#include "cuda/common.cuh"
#include "cuda/gemm.h"

namespace ftbert {
namespace cuda {

// What a kernel needs of a Gemm, by value.
struct EpilogueArgs {
  const float* bias;
  const float* w_scale;
  RowScale x_scale, out_scale;
  void* out;
  int64_t ldo;
  int m, n, k;
  Act act;
};

inline EpilogueArgs MakeEpilogueArgs(const Gemm& g) {
  return EpilogueArgs{g.bias, g.w_scale, g.x_scale, g.out_scale, g.out, g.ldo, g.m, g.n, g.k, static_cast<Act>(g.act)};
}

__device__ __forceinline__ float RowScaleOf(const RowScale& scale, int row, int rows) {
  return scale.values != nullptr && row < rows ? fmaf(scale.gain, scale.values[row], scale.offset) : 1.f;
}

// Applies scales, bias and activation to the fragment of one 64-row block, in place. acc is laid out as Wgmma says.
template <Act kAct, bool kScaled, int kColumns>
__device__ __forceinline__ void FinishFragment(float (&acc)[kColumns / 2], const EpilogueArgs& e, int column, int row) {
  float x_scale[2] = {1.f, 1.f};
  if (kScaled) {
    x_scale[0] = RowScaleOf(e.x_scale, row, e.m);
    x_scale[1] = RowScaleOf(e.x_scale, row + 8, e.m);
  }
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
    const int n = column + j * 8;
    float2 bias = make_float2(0.f, 0.f), w_scale = make_float2(1.f, 1.f);
    if (n < e.n) {
      bias = __ldg(reinterpret_cast<const float2*>(e.bias + n));
      if (kScaled) w_scale = __ldg(reinterpret_cast<const float2*>(e.w_scale + n));
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float* pair = &acc[4 * j + 2 * h];
      if (kScaled) {
        pair[0] *= x_scale[h] * w_scale.x;
        pair[1] *= x_scale[h] * w_scale.y;
      }
      pair[0] = Activate<kAct, false>(pair[0] + bias.x);
      pair[1] = Activate<kAct, false>(pair[1] + bias.y);
    }
  }
}

template <bool kScaled, int kColumns>
__device__ __forceinline__ void FinishFragmentBy(float (&acc)[kColumns / 2], const EpilogueArgs& e, int column,
                                                 int row) {
  switch (e.act) {
    case Act::kNone:
      return FinishFragment<Act::kNone, kScaled, kColumns>(acc, e, column, row);
    case Act::kGeluErf:
      return FinishFragment<Act::kGeluErf, kScaled, kColumns>(acc, e, column, row);
    case Act::kGeluTanh:
      return FinishFragment<Act::kGeluTanh, kScaled, kColumns>(acc, e, column, row);
    case Act::kRelu:
      return FinishFragment<Act::kRelu, kScaled, kColumns>(acc, e, column, row);
    case Act::kTanh:
      return FinishFragment<Act::kTanh, kScaled, kColumns>(acc, e, column, row);
  }
}

// Writes a warp's 16 finished rows of a 64-row fragment: through its own piece of shared memory, then 16 bytes a
// thread.
template <typename Out, int kColumns, int kPitch>
__device__ __forceinline__ void StoreBlock(const float (&acc)[kColumns / 2], const EpilogueArgs& e, uint32_t staging,
                                           int row, int column, int lane) {
#if __CUDA_ARCH__ >= 900
  __syncwarp();
  if constexpr (sizeof(Out) == 2) {
    const uint32_t address = staging + (lane % 16) * kPitch + lane / 16 * 16;
#pragma unroll
    for (int j = 0; j < kColumns / 8; j += 2) {
      const uint32_t top0 = PackPair<Out>(acc[4 * j], acc[4 * j + 1]),
                     low0 = PackPair<Out>(acc[4 * j + 2], acc[4 * j + 3]);
      const uint32_t top1 = PackPair<Out>(acc[4 * j + 4], acc[4 * j + 5]);
      const uint32_t low1 = PackPair<Out>(acc[4 * j + 6], acc[4 * j + 7]);
      asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(address + j * 16), "r"(top0),
                   "r"(low0), "r"(top1), "r"(low1)
                   : "memory");
    }
  } else {
    const int r = row + lane / 4;
    const float inverse0 = 1.f / RowScaleOf(e.out_scale, r, e.m), inverse1 = 1.f / RowScaleOf(e.out_scale, r + 8, e.m);
    const uint32_t address = staging + lane / 4 * kPitch + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      const uint16_t top = PackFloat8Pair(acc[4 * j] * inverse0, acc[4 * j + 1] * inverse0);
      const uint16_t low = PackFloat8Pair(acc[4 * j + 2] * inverse1, acc[4 * j + 3] * inverse1);
      asm volatile("st.shared.b16 [%0], %1;" ::"r"(address + j * 8), "h"(top) : "memory");
      asm volatile("st.shared.b16 [%0], %1;" ::"r"(address + j * 8 + 8 * kPitch), "h"(low) : "memory");
    }
  }
  __syncwarp();
  constexpr int kPer = 16 / sizeof(Out);           // values in 16 bytes
  constexpr int kPieces = kColumns / kPer;         // of a row
#pragma unroll
  for (int i = 0; i < 16 * kPieces / 32; ++i) {
    const int piece = i * 32 + lane, r = piece / kPieces, n = piece % kPieces * kPer;
    uint32_t v[4];
    asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(staging + r * kPitch + n * static_cast<int>(sizeof(Out)))
                 : "memory");
    if (row + r < e.m && column + n < e.n) {
      *reinterpret_cast<uint4*>(static_cast<Out*>(e.out) + (row + r) * e.ldo + column + n) =
          make_uint4(v[0], v[1], v[2], v[3]);
    }
  }
#endif
}

}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_CUDA_EPILOGUE_CUH_
