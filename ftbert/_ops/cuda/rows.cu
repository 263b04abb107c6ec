// Small kernels over rows: gather first tokens, classify, widen to fp32.
#include "cuda/common.cuh"
#include "cuda/kernels.h"

namespace ftbert {
namespace cuda {
namespace {

template <typename T>
__global__ void __launch_bounds__(128) GatherFirstTokens(const int2* ranges, int64_t pitch,
                                                         const T* states, T* __restrict__ first,
                                                         const Quantized quantized) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int64_t b = blockIdx.x, t = ranges[b].x;
  float most = 0.f, squares = 0.f;
  for (int i = threadIdx.x; i < pitch; i += blockDim.x) {
    const T value = states[t * pitch + i];
    first[b * pitch + i] = value;
    most = fmaxf(most, fabsf(ToFloat(value)));
    squares = fmaf(ToFloat(value), ToFloat(value), squares);
  }
  if (quantized.values == nullptr) return;
  __shared__ float shared[2][4];
  most = WarpMax(most);
  squares = WarpSum(squares);
  if (threadIdx.x % 32 == 0) shared[0][threadIdx.x / 32] = most, shared[1][threadIdx.x / 32] = squares;
  __syncthreads();
  most = fmaxf(fmaxf(shared[0][0], shared[0][1]), fmaxf(shared[0][2], shared[0][3]));
  const float inverse = most > 0.f ? kFloat8Max / most : 0.f;
  for (int i = threadIdx.x; i < pitch; i += blockDim.x) {
    quantized.values[b * pitch + i] =
        static_cast<uint8_t>(PackFloat8Pair(ToFloat(states[t * pitch + i]) * inverse, 0.f));
  }
  if (threadIdx.x == 0) {
    quantized.scale[b] = most / kFloat8Max;
    quantized.norm[b] = sqrtf(shared[1][0] + shared[1][1] + shared[1][2] + shared[1][3]);
  }
}

constexpr int kLabels = 4;  // of a warp
constexpr int kAhead = 3;   // steps of 256 columns

// A warp takes one row and kLabels labels. Padding columns of x and w are zeros, so whole pitches are read.
template <typename T>
__global__ void __launch_bounds__(128)
    ClassifyWarps(const T* x, int64_t pitch, int rows, const int2* ranges, const T* w,
                  const float* __restrict__ bias, int labels, float* __restrict__ out) {
  const int lane = threadIdx.x % 32, row = blockIdx.x * 4 + threadIdx.x / 32, label0 = blockIdx.y * kLabels;
  LetNextKernelStart();
  float sums[kLabels] = {};
  // The first kAhead steps' weights are read while the kernel before still runs. Not through __restrict__: such loads
  // may be moved past the wait, and were.
  uint4 ahead[kAhead][kLabels];
  constexpr bool kReadsAhead = sizeof(T) == 2;
  if (kReadsAhead) {
#pragma unroll
    for (int s = 0; s < kAhead; ++s) {
      const int i = s * 256 + lane * 8;
#pragma unroll
      for (int l = 0; l < kLabels; ++l) {
        ahead[s][l] = i < pitch && label0 + l < labels ? *reinterpret_cast<const uint4*>(w + (label0 + l) * pitch + i)
                                                       : make_uint4(0, 0, 0, 0);
      }
    }
  }
  WaitForPreviousKernel();
  if (row >= rows) return;
  if (ranges != nullptr && ranges[row].y <= ranges[row].x) return;  // only fills the bucket
  if (kReadsAhead) {
#pragma unroll
    for (int s = 0; s < kAhead; ++s) {
      const int i = s * 256 + lane * 8;
      if (i >= pitch) continue;
      float a[8];
      Load8(x + row * pitch + i, a);
#pragma unroll
      for (int l = 0; l < kLabels; ++l) {
        float b[8];
        Load8(reinterpret_cast<const T*>(&ahead[s][l]), b);
#pragma unroll
        for (int c = 0; c < 8; ++c) sums[l] = fmaf(a[c], b[c], sums[l]);
      }
    }
  }
  for (int i = (kReadsAhead ? kAhead * 256 : 0) + lane * 8; i < pitch; i += 256) {
    float a[8];
    Load8(x + row * pitch + i, a);
#pragma unroll
    for (int l = 0; l < kLabels; ++l) {
      if (label0 + l >= labels) break;
      float b[8];
      Load8(w + (label0 + l) * pitch + i, b);
#pragma unroll
      for (int c = 0; c < 8; ++c) sums[l] = fmaf(a[c], b[c], sums[l]);
    }
  }
#pragma unroll
  for (int l = 0; l < kLabels; ++l) {
    const float sum = WarpSum(sums[l]);
    if (lane == 0 && label0 + l < labels) out[static_cast<int64_t>(row) * labels + label0 + l] = sum + bias[label0 + l];
  }
}

template <typename T>
__global__ void WidenRows(const T* from, int64_t pitch, int width, float* __restrict__ to) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int64_t row = blockIdx.x;
  for (int i = threadIdx.x; i < width; i += blockDim.x) to[row * width + i] = ToFloat(from[row * pitch + i]);
}

LaunchShape Shape(const Machine& machine, dim3 grid, cudaStream_t stream) {
  LaunchShape shape;
  shape.grid = grid;
  shape.block = dim3(128);
  shape.stream = stream;
  shape.dependent = machine.dependent_launch;
  return shape;
}

}  // namespace

cudaError_t RunGather(const Machine& machine, Element element, const int2* ranges, int rows, int64_t pitch,
                      const void* states, void* first, const Quantized& quantized, cudaStream_t stream) {
  const LaunchShape shape = Shape(machine, dim3(rows), stream);
  const auto launch = [&](auto kernel, auto type) {
    using T = decltype(type);
    return Launch(shape, kernel, ranges, pitch, static_cast<const T*>(states), static_cast<T*>(first), quantized);
  };
  if (element == Element::kFloat) return launch(GatherFirstTokens<float>, float());
  return element == Element::kHalf ? launch(GatherFirstTokens<Half>, Half())
                                   : launch(GatherFirstTokens<BFloat>, BFloat());
}

cudaError_t RunClassify(const Machine& machine, Element element, const void* x, int64_t pitch, int rows, const void* w,
                        const float* bias, int labels, float* out, cudaStream_t stream, const int2* ranges) {
  const LaunchShape shape = Shape(machine, dim3(CeilDiv(rows, 4), CeilDiv(labels, kLabels)), stream);
  const auto launch = [&](auto kernel, auto type) {
    using T = decltype(type);
    return Launch(shape, kernel, static_cast<const T*>(x), pitch, rows, ranges, static_cast<const T*>(w), bias, labels,
                  out);
  };
  if (element == Element::kFloat) return launch(ClassifyWarps<float>, float());
  return element == Element::kHalf ? launch(ClassifyWarps<Half>, Half()) : launch(ClassifyWarps<BFloat>, BFloat());
}

cudaError_t RunToFloat(const Machine& machine, Element element, const void* from, int64_t pitch, int rows, int width,
                       float* to, cudaStream_t stream) {
  const LaunchShape shape = Shape(machine, dim3(rows), stream);
  const auto launch = [&](auto kernel, auto type) {
    return Launch(shape, kernel, static_cast<const decltype(type)*>(from), pitch, width, to);
  };
  if (element == Element::kFloat) return launch(WidenRows<float>, float());
  return element == Element::kHalf ? launch(WidenRows<Half>, Half()) : launch(WidenRows<BFloat>, BFloat());
}

}  // namespace cuda
}  // namespace ftbert
