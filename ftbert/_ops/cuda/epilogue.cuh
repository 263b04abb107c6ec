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
  const void* residual;
  void* out;
  int64_t ldo;
  int m, n, k;
  Act act;
};

inline EpilogueArgs MakeEpilogueArgs(const Gemm& g) {
  return EpilogueArgs{g.bias, g.w_scale, g.x_scale, g.out_scale, g.residual, g.out,
                      g.ldo,  g.m,       g.n,       g.k,         static_cast<Act>(g.act)};
}

__device__ __forceinline__ float RowScaleOf(const RowScale& scale, int row, int rows) {
  return scale.values != nullptr && row < rows ? fmaf(scale.gain, scale.values[row], scale.offset) : 1.f;
}

// What a fragment's end needs of its tile: bias (and weights' scales behind it, `columns` floats on) in shared memory,
// and the scales of the thread's two rows. Read before the products, so that nothing waits for memory after them.
struct FragmentScales {
  uint32_t bias;
  float x[2];
  float inverse_out[2];  // 1 / out_scale
};

// Applies scales, bias and activation to the fragment of one 64-row block, in place. acc is laid out as Wgmma says.
template <Act kAct, bool kScaled, int kColumns>
__device__ __forceinline__ void FinishFragment(float (&acc)[kColumns / 2], const FragmentScales& scales, int lane) {
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
    const uint32_t at = scales.bias + (j * 8 + lane % 4 * 2) * 4;
    const float2 bias = LoadShared2(at);
    float2 w_scale = make_float2(1.f, 1.f);
    if (kScaled) w_scale = LoadShared2(at + kColumns * 4);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float* pair = &acc[4 * j + 2 * h];
      if (kScaled) {
        pair[0] = fmaf(pair[0], scales.x[h] * w_scale.x, bias.x);
        pair[1] = fmaf(pair[1], scales.x[h] * w_scale.y, bias.y);
      } else {
        pair[0] += bias.x;
        pair[1] += bias.y;
      }
      pair[0] = Activate<kAct, false>(pair[0]);
      pair[1] = Activate<kAct, false>(pair[1]);
    }
  }
}

template <bool kScaled, int kColumns>
__device__ __forceinline__ void FinishFragmentBy(Act act, float (&acc)[kColumns / 2], const FragmentScales& scales,
                                                 int lane) {
  switch (act) {
    case Act::kNone:
      return FinishFragment<Act::kNone, kScaled, kColumns>(acc, scales, lane);
    case Act::kGeluErf:
      return FinishFragment<Act::kGeluErf, kScaled, kColumns>(acc, scales, lane);
    case Act::kGeluTanh:
      return FinishFragment<Act::kGeluTanh, kScaled, kColumns>(acc, scales, lane);
    case Act::kRelu:
      return FinishFragment<Act::kRelu, kScaled, kColumns>(acc, scales, lane);
    case Act::kTanh:
      return FinishFragment<Act::kTanh, kScaled, kColumns>(acc, scales, lane);
  }
}

// a + b, eight values of 16 bits each.
template <typename T>
__device__ __forceinline__ uint4 AddPieces(const uint4& a, const uint4& b) {
  const uint32_t x[4] = {a.x, a.y, a.z, a.w}, y[4] = {b.x, b.y, b.z, b.w};
  uint32_t sums[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 p = UnpackPair<T>(x[i]), q = UnpackPair<T>(y[i]);
    sums[i] = PackPair<T>(p.x + q.x, p.y + q.y);
  }
  return make_uint4(sums[0], sums[1], sums[2], sums[3]);
}

// Writes a warp's 16 finished rows of a 64-row fragment: through its own piece of shared memory, then 16 bytes a
// thread, with the residual added on the way. The residual's pieces of half the fragment are asked for together.
template <typename Out, int kColumns, int kPitch>
__device__ __forceinline__ void StoreBlock(const float (&acc)[kColumns / 2], const EpilogueArgs& e,
                                           const FragmentScales& scales, uint32_t staging, int row, int column,
                                           int lane) {
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
      StoreMatrix4(address + j * 16, top0, low0, top1, low1);
    }
  } else {
    const uint32_t address = staging + lane / 4 * kPitch + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < kColumns / 8; ++j) {
      const uint16_t top =
          PackFloat8Pair(acc[4 * j] * scales.inverse_out[0], acc[4 * j + 1] * scales.inverse_out[0]);
      const uint16_t low =
          PackFloat8Pair(acc[4 * j + 2] * scales.inverse_out[1], acc[4 * j + 3] * scales.inverse_out[1]);
      StoreShared(address + j * 8, top);
      StoreShared(address + j * 8 + 8 * kPitch, low);
    }
  }
  __syncwarp();
  constexpr int kPer = 16 / sizeof(Out);           // values in 16 bytes
  constexpr int kPieces = kColumns / kPer;         // of a row
  constexpr int kEach = CeilDiv(16 * kPieces, 32);  // of a lane; its last may be none
  const auto load = [&](int i) {
    const int piece = i * 32 + lane, r = piece / kPieces, n = piece % kPieces * kPer;
    return LoadSharedPiece(staging + r * kPitch + n * static_cast<int>(sizeof(Out)));
  };
  const auto place = [&](int i) {
    const int piece = i * 32 + lane, r = piece / kPieces, n = piece % kPieces * kPer;
    return r < 16 && row + r < e.m && column + n < e.n ? (row + r) * e.ldo + column + n : int64_t{-1};
  };
  if constexpr (sizeof(Out) == 2) {
    if (e.residual != nullptr) {
      constexpr int kTogether = kEach % 4 == 0 ? 4 : (kEach % 3 == 0 ? 3 : 2);
      static_assert(kEach % kTogether == 0, "pieces are left");
#pragma unroll
      for (int i0 = 0; i0 < kEach; i0 += kTogether) {
        uint4 old[kTogether];
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const int64_t at = place(i0 + i);
          old[i] = make_uint4(0, 0, 0, 0);
          if (at >= 0) old[i] = *reinterpret_cast<const uint4*>(static_cast<const Out*>(e.residual) + at);
        }
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const int64_t at = place(i0 + i);
          const uint4 sum = AddPieces<Out>(load(i0 + i), old[i]);
          if (at >= 0) *reinterpret_cast<uint4*>(static_cast<Out*>(e.out) + at) = sum;
        }
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int64_t at = place(i);
    if (at >= 0) *reinterpret_cast<uint4*>(static_cast<Out*>(e.out) + at) = load(i);
  }
#endif
}

}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_CUDA_EPILOGUE_CUH_
