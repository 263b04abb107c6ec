// Load time: a weight array as it came -> output by output, in the element type that runs, fp8 with a scale for each
// output.
#include "cuda/common.cuh"
#include "cuda/kernels.h"

namespace ftbert {
namespace cuda {
namespace {

__device__ __forceinline__ float ReadSource(const void* data, DataType type, int64_t index) {
  switch (type) {
    case DataType::kFloat16:
      return __half2float(static_cast<const Half*>(data)[index]);
    case DataType::kBFloat16:
      return __bfloat162float(static_cast<const BFloat*>(data)[index]);
    case DataType::kFloat32:
      break;
  }
  return static_cast<const float*>(data)[index];
}

// One CTA an output: its largest weight, then its weights.
__global__ void __launch_bounds__(256)
    PackOutput(const void* __restrict__ source, DataType type, int rows, int cols, bool transposed, Element element,
               void* __restrict__ to, int64_t pitch, float* __restrict__ column_scale,
               const float* __restrict__ row_scale) {
  const int64_t n = blockIdx.x;
  const auto read = [&](int k) {
    const float value = ReadSource(source, type, transposed ? n * rows + k : static_cast<int64_t>(k) * cols + n);
    return row_scale != nullptr ? value * row_scale[k] : value;
  };
  float inverse = 1.f;
  if (element == Element::kFloat8) {
    __shared__ float warps[8];
    float most = 0.f;
    for (int k = threadIdx.x; k < rows; k += 256) most = fmaxf(most, fabsf(read(k)));
    most = WarpMax(most);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = most;
    __syncthreads();
    most = warps[0];
    for (int i = 1; i < 8; ++i) most = fmaxf(most, warps[i]);
    inverse = most > 0.f ? kFloat8Max / most : 0.f;
    if (threadIdx.x == 0) column_scale[n] = most / kFloat8Max;
  }
  for (int k = threadIdx.x; k < pitch; k += 256) {
    const float value = k < rows ? read(k) : 0.f;
    const int64_t at = n * pitch + k;
    switch (element) {
      case Element::kFloat:
        static_cast<float*>(to)[at] = value;
        break;
      case Element::kHalf:
        static_cast<Half*>(to)[at] = FromFloat<Half>(value);
        break;
      case Element::kBFloat:
        static_cast<BFloat*>(to)[at] = FromFloat<BFloat>(value);
        break;
      case Element::kFloat8:
        static_cast<uint8_t*>(to)[at] = static_cast<uint8_t>(PackFloat8Pair(value * inverse, 0.f));
        break;
    }
  }
}

__global__ void __launch_bounds__(256) LongestOutput(const void* __restrict__ source, DataType type, int rows, int cols,
                                                     bool transposed, float* __restrict__ length) {
  __shared__ float warps[8];
  const int64_t n = blockIdx.x;
  float squares = 0.f;
  for (int k = threadIdx.x; k < rows; k += 256) {
    const float v = ReadSource(source, type, transposed ? n * rows + k : static_cast<int64_t>(k) * cols + n);
    squares = fmaf(v, v, squares);
  }
  squares = WarpSum(squares);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = squares;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < 8; ++i) squares += warps[i];
  // Bits of floats that are not negative order as the floats do.
  atomicMax(reinterpret_cast<int*>(length), __float_as_int(sqrtf(squares)));
}

// One CTA an output w . x + bias, x = gamma z + beta: as the squares of z sum up to at most `rows`, it is within
// sqrt(rows) |gamma w| of w . beta + bias.
__global__ void __launch_bounds__(256)
    BoundOutput(const Float8* __restrict__ w, int rows, int64_t pitch, const float* __restrict__ gamma,
                const float* __restrict__ beta, float* __restrict__ scale, float* __restrict__ bias,
                float* __restrict__ divisor) {
  __shared__ float warps[2][8];
  const int64_t n = blockIdx.x;
  float squares = 0.f, middle = 0.f;
  for (int k = threadIdx.x; k < rows; k += 256) {
    const float value = static_cast<float>(w[n * pitch + k]) * scale[n], stretched = value * gamma[k];
    squares = fmaf(stretched, stretched, squares);
    middle = fmaf(value, beta[k], middle);
  }
  squares = WarpSum(squares), middle = WarpSum(middle);
  if (threadIdx.x % 32 == 0) warps[0][threadIdx.x / 32] = squares, warps[1][threadIdx.x / 32] = middle;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < 8; ++i) squares += warps[0][i], middle += warps[1][i];
  const float most = sqrtf(rows * squares) + fabsf(middle + bias[n]);
  const float by = most > 0.f ? most / kFloat8Max : 1.f;
  scale[n] /= by, bias[n] /= by, divisor[n] = by;
}

__global__ void __launch_bounds__(256) Noise(Element element, void* to, int64_t count) {
  for (int64_t i = blockIdx.x * 256 + threadIdx.x; i < count; i += gridDim.x * 256) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761u;
    h = (h ^ h >> 15) * 2246822519u;
    const float value = static_cast<float>(h >> 8) * (2.f / 16777216.f) - 1.f;
    if (element == Element::kFloat) static_cast<float*>(to)[i] = value;
    if (element == Element::kHalf) static_cast<Half*>(to)[i] = FromFloat<Half>(value);
    if (element == Element::kBFloat) static_cast<BFloat*>(to)[i] = FromFloat<BFloat>(value);
    if (element == Element::kFloat8) static_cast<uint8_t*>(to)[i] = PackFloat8Pair(value * kFloat8Max, 0.f) & 0xff;
  }
}

LaunchShape Shape(int ctas, cudaStream_t stream) {
  LaunchShape shape;
  shape.grid = dim3(ctas);
  shape.block = dim3(256);
  shape.stream = stream;
  return shape;
}

}  // namespace

cudaError_t FillNoise(Element element, void* to, int64_t count, cudaStream_t stream) {
  return Launch(Shape(1024, stream), Noise, element, to, count);
}

cudaError_t PackMatrix(const void* source, DataType type, int rows, int cols, bool transposed, Element element,
                       void* to, int64_t pitch, float* column_scale, cudaStream_t stream, const float* row_scale) {
  return Launch(Shape(cols, stream), PackOutput, source, type, rows, cols, transposed, element, to, pitch,
                column_scale, row_scale);
}

cudaError_t BoundOutputs(const void* w, int rows, int cols, int64_t pitch, const float* gamma, const float* beta,
                         float* scale, float* bias, float* divisor, cudaStream_t stream) {
  return Launch(Shape(cols, stream), BoundOutput, static_cast<const Float8*>(w), rows, pitch, gamma, beta, scale, bias,
                divisor);
}

cudaError_t LongestColumn(const void* source, DataType type, int rows, int cols, bool transposed, float* length,
                          cudaStream_t stream) {
  return Launch(Shape(cols, stream), LongestOutput, source, type, rows, cols, transposed, length);
}

}  // namespace cuda
}  // namespace ftbert
