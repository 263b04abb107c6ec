// Layer norm, with what feeds it: the embedding sum, or residual + product.
//
// Contract: a warp takes a row and keeps it in registers (width a multiple of 8, at most 2048), so that each value is
// read once and mean and variance are both exact sums in fp32; other widths are read again for each sum. Rows are
// written in place. With a Quantized companion the row is also written as fp8 under its own scale.
#include <type_traits>

#include "cuda/common.cuh"
#include "cuda/kernels.h"

namespace ftbert {
namespace cuda {
namespace {

constexpr int kWarps = 4;       // of a CTA
constexpr int kFewRows = 2048;  // up to here latency counts, not throughput: norm_few.cu

// Normalizes the row held as x[i][c] = column (i * 32 + lane) * 8 + c and writes it. kPieces * 256 >= width.
template <typename T, int kPieces>
__device__ __forceinline__ void FinishRow(float (&x)[kPieces][8], const Norm& n, int64_t row, int lane, T* states,
                                          const Quantized& quantized) {
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
#pragma unroll
    for (int c = 0; c < 8; ++c) sum += x[i][c];  // pieces past the width hold zeros
  }
  const float mean = WarpSum(sum) / n.width;
  float squares = 0.f;
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    if ((i * 32 + lane) * 8 < n.width) {
#pragma unroll
      for (int c = 0; c < 8; ++c) squares = fmaf(x[i][c] - mean, x[i][c] - mean, squares);
    }
  }
  const float scale = rsqrtf(WarpSum(squares) / n.width + n.epsilon);
  float most = 0.f, length = 0.f;
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int column = (i * 32 + lane) * 8;
    if (column >= n.width) continue;
    float gamma[8], beta[8];
    Load8(n.gamma + column, gamma);
    Load8(n.beta + column, beta);
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      x[i][c] = fmaf((x[i][c] - mean) * scale, gamma[c], beta[c]);
      most = fmaxf(most, fabsf(x[i][c]));
      length = fmaf(x[i][c], x[i][c], length);
    }
    Store8(states + row * n.pitch + column, x[i]);
  }
  if (quantized.values == nullptr) return;
  most = WarpMax(most);
  length = sqrtf(WarpSum(length));
  const float inverse = most > 0.f ? kFloat8Max / most : 0.f;
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int column = (i * 32 + lane) * 8;
    if (column >= n.width) continue;
    uint32_t words[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      words[h] = PackFloat8Pair(x[i][4 * h] * inverse, x[i][4 * h + 1] * inverse) |
                 static_cast<uint32_t>(PackFloat8Pair(x[i][4 * h + 2] * inverse, x[i][4 * h + 3] * inverse)) << 16;
    }
    *reinterpret_cast<uint2*>(quantized.values + row * n.pitch + column) = make_uint2(words[0], words[1]);
  }
  if (lane == 0) {
    quantized.scale[row] = most / kFloat8Max;
    quantized.norm[row] = length;
  }
}

// Any width: `value(column)` gives the row, as often as asked.
template <typename T, typename Value>
__device__ void FinishAnyRow(const Value& value, const Norm& n, int64_t row, int lane, T* states,
                             const Quantized& quantized) {
  float sum = 0.f, squares = 0.f, most = 0.f, length = 0.f;
  for (int i = lane; i < n.width; i += 32) sum += value(i);
  const float mean = WarpSum(sum) / n.width;
  for (int i = lane; i < n.width; i += 32) {
    const float off = value(i) - mean;
    squares = fmaf(off, off, squares);
  }
  const float scale = rsqrtf(WarpSum(squares) / n.width + n.epsilon);
  for (int i = lane; i < n.width; i += 32) {
    const float y = fmaf((value(i) - mean) * scale, n.gamma[i], n.beta[i]);
    most = fmaxf(most, fabsf(y));
    length = fmaf(y, y, length);
    states[row * n.pitch + i] = FromFloat<T>(y);
  }
  if (quantized.values == nullptr) return;
  most = WarpMax(most);
  length = sqrtf(WarpSum(length));
  const float inverse = most > 0.f ? kFloat8Max / most : 0.f;
  for (int i = lane; i < n.width; i += 32) {
    quantized.values[row * n.pitch + i] =
        static_cast<uint8_t>(PackFloat8Pair(ToFloat(states[row * n.pitch + i]) * inverse, 0.f));
  }
  if (lane == 0) {
    quantized.scale[row] = most / kFloat8Max;
    quantized.norm[row] = length;
  }
}

// kPieces 0: any width.
template <typename T, int kPieces>
__global__ void __launch_bounds__(kWarps * 32)
    EmbedNorm(const Embedding e, const Norm n, T* __restrict__ states, const Quantized quantized) {
  const int lane = threadIdx.x % 32, t = blockIdx.x * kWarps + threadIdx.x / 32;
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int4 bits = t < e.count ? *reinterpret_cast<const int4*>(e.tokens + t) : make_int4(0, 0, 0, 0);
  for (int b = blockIdx.x * kWarps * 32 + threadIdx.x; b < e.row_count; b += gridDim.x * kWarps * 32) {
    e.row_ranges[b] = e.rows[b];
  }
  if (t >= e.count) return;
  if (lane == 0) e.ranges[t] = make_int2(bits.z, bits.w);
  const int position = max(t - bits.z, 0);
  const bool real = bits.w > t;  // else it only fills the bucket, and sits at the end
  const T* word = static_cast<const T*>(e.words) + bits.x * n.pitch;
  const T* place = static_cast<const T*>(e.positions) + (real ? position : 0) * n.pitch;
  const T* segment = static_cast<const T*>(e.segments) + bits.y * n.pitch;
  if constexpr (kPieces > 0) {
    float x[kPieces][8];
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int column = (i * 32 + lane) * 8;
#pragma unroll
      for (int c = 0; c < 8; ++c) x[i][c] = 0.f;
      if (column >= n.width) continue;
      float a[8], b[8], d[8];
      Load8(word + column, a);
      Load8(place + column, b);
      Load8(segment + column, d);
#pragma unroll
      for (int c = 0; c < 8; ++c) x[i][c] = a[c] + b[c] + d[c];
    }
    FinishRow<T, kPieces>(x, n, t, lane, states, quantized);
  } else {
    const auto value = [&](int i) { return ToFloat(word[i]) + ToFloat(place[i]) + ToFloat(segment[i]); };
    FinishAnyRow<T>(value, n, t, lane, states, quantized);
  }
}

// kSummed: as Norm::summed. Asked at run time it would part the loads, which then wait for one another.
template <typename T, int kPieces, bool kSummed>
__global__ void __launch_bounds__(kWarps * 32)
    AddNormWarpPerRow(const Norm n, int rows, T* states, const T* delta, const Quantized quantized) {
  const int lane = threadIdx.x % 32;
  const int64_t block = n.reversed ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
  const int64_t row = block * kWarps + threadIdx.x / 32;
  LetNextKernelStart();
  WaitForPreviousKernel();
  if (row >= rows) return;
  if constexpr (kPieces > 0) {
    float x[kPieces][8], d[kPieces][8];
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const int column = (i * 32 + lane) * 8;
#pragma unroll
      for (int c = 0; c < 8; ++c) x[i][c] = d[i][c] = 0.f;
      if (column >= n.width) continue;
      Load8(delta + row * n.pitch + column, d[i]);
      if (!kSummed) Load8(states + row * n.pitch + column, x[i]);
    }
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
#pragma unroll
      for (int c = 0; c < 8; ++c) x[i][c] += d[i][c];
    }
    FinishRow<T, kPieces>(x, n, row, lane, states, quantized);
  } else {
    // A lane reads and writes the same columns, and reads each for the last time just before it writes it.
    const auto value = [&](int i) {
      return (kSummed ? 0.f : ToFloat(states[row * n.pitch + i])) + ToFloat(delta[row * n.pitch + i]);
    };
    FinishAnyRow<T>(value, n, row, lane, states, quantized);
  }
}

template <int kPieces>
using Pieces = std::integral_constant<int, kPieces>;

// Calls body(Pieces<n>()) with the smallest n compiled that holds the row; 0: any width.
template <typename Body>
cudaError_t WithPieces(int width, const Body& body) {
  switch (width % 8 == 0 && width <= 2048 ? CeilDiv(width, 256) : 0) {
    case 0:
      return body(Pieces<0>());
    case 1:
      return body(Pieces<1>());
    case 2:
      return body(Pieces<2>());
    case 3:
      return body(Pieces<3>());
    case 4:
      return body(Pieces<4>());
  }
  return body(Pieces<8>());
}

LaunchShape RowShape(const Machine& machine, int rows, cudaStream_t stream) {
  LaunchShape shape;
  shape.grid = dim3(CeilDiv(rows, kWarps));
  shape.block = dim3(kWarps * 32);
  shape.stream = stream;
  shape.dependent = machine.dependent_launch;
  return shape;
}

template <typename T>
cudaError_t EmbedTyped(const Machine& machine, const Embedding& e, const Norm& n, void* states,
                       const Quantized& quantized, cudaStream_t stream) {
  return WithPieces(n.width, [&](auto tag) {
    constexpr int kPieces = decltype(tag)::value;
    return Launch(RowShape(machine, e.count, stream), EmbedNorm<T, kPieces>, e, n, static_cast<T*>(states), quantized);
  });
}

template <typename T>
cudaError_t AddNormTyped(const Machine& machine, const Norm& n, int rows, void* states, const void* delta,
                         const Quantized& quantized, cudaStream_t stream) {
  return WithPieces(n.width, [&](auto tag) {
    constexpr int kPieces = decltype(tag)::value;
    return Launch(RowShape(machine, rows, stream),
                  n.summed ? AddNormWarpPerRow<T, kPieces, true> : AddNormWarpPerRow<T, kPieces, false>, n, rows,
                  static_cast<T*>(states), static_cast<const T*>(delta), quantized);
  });
}

}  // namespace

cudaError_t RunEmbed(const Machine& machine, Element element, const Embedding& e, const Norm& n, void* states,
                     const Quantized& quantized, cudaStream_t stream) {
  if (e.count <= kFewRows && FewNormFits(n)) return RunFewEmbed(machine, element, e, n, states, quantized, stream);
  if (element == Element::kFloat) return EmbedTyped<float>(machine, e, n, states, quantized, stream);
  return element == Element::kHalf ? EmbedTyped<Half>(machine, e, n, states, quantized, stream)
                                   : EmbedTyped<BFloat>(machine, e, n, states, quantized, stream);
}

cudaError_t RunAddNorm(const Machine& machine, Element element, const Norm& n, int rows, void* states,
                       const void* delta, const Quantized& quantized, cudaStream_t stream) {
  if (rows <= kFewRows && FewNormFits(n)) {
    return RunFewAddNorm(machine, element, n, rows, states, delta, quantized, stream);
  }
  if (element == Element::kFloat) return AddNormTyped<float>(machine, n, rows, states, delta, quantized, stream);
  return element == Element::kHalf ? AddNormTyped<Half>(machine, n, rows, states, delta, quantized, stream)
                                   : AddNormTyped<BFloat>(machine, n, rows, states, delta, quantized, stream);
}

}  // namespace cuda
}  // namespace ftbert
