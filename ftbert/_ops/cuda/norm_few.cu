// Layer norm of few rows, with what feeds it: a thread holds eight columns, as many warps as that takes share a row.
//
// Between two norms of a model run kernels of much more code, so the instructions of each norm have to be fetched anew,
// and few rows go through them once: what they wait for is that, and the latency of a row. A row in one warp's lanes
// is code for all of a lane's pieces; here it is code for one, and the warps meet at one barrier, at two with fp8.
//
// Contract: widths that are multiples of 8, at most 2048 (FewNormFits). Mean and variance of a row come from those of
// its warps' columns (Chan's formula), in fp32, and are the same bits wherever the row lies. Rows are written in place.
#include <type_traits>

#include "cuda/common.cuh"
#include "cuda/kernels.h"

namespace ftbert {
namespace cuda {
namespace {

constexpr int kMostWarps = 8;      // of a row
constexpr int kCtaWarps = 12;      // of a CTA that takes several rows, about
constexpr int kWarpColumns = 256;  // of a warp
constexpr int kFixedShared = 1024;  // bytes of shared memory that a CTA's own arrays take at most

// What the host can work out: rows of a CTA, and reciprocals that sums are multiplied by.
struct Shares {
  int rows;
  float column;           // 1 / width
  float warp, last_warp;  // the part of the row that a warp holds, and its last warp
  float in_last_warp;     // 1 / columns of the last warp
};

// Where this thread stands. A CTA takes as many rows as its threads are enough for.
template <int kRowWarps>
struct Place {
  static constexpr int kMostRows = kCtaWarps < 2 * kRowWarps ? 1 : kCtaWarps / kRowWarps;
  int lane, warp;   // the latter among the row's
  int slot, row;    // the row, in the CTA and in all
  int column;       // the first of this thread's eight
  bool mine;        // such a row and such columns are there

  __device__ __forceinline__ Place(int block, int rows_each, int rows, int width) {
    const int thread = threadIdx.x % (kRowWarps * 32);
    lane = threadIdx.x % 32, warp = thread / 32, slot = threadIdx.x / (kRowWarps * 32), column = thread * 8;
    row = block * rows_each + slot;
    mine = row < rows && column < width;
  }
};

// gamma and beta of a thread's columns, which are read while the kernel before still runs: they come from device
// memory, and nothing hides that wait later.
struct Parameters {
  float gamma[8], beta[8];

  __device__ __forceinline__ Parameters(const Norm& n, int column) {
    const int there = min(column, n.width - 8);
    Load8(n.gamma + there, gamma);
    Load8(n.beta + there, beta);
  }
};

// Eight columns as they lie in memory: zeros where nothing is to be read.
template <typename T>
struct Piece {
  uint4 words[sizeof(T) / 2] = {};

  __device__ __forceinline__ void Bring(const void* from, int64_t index) {
#pragma unroll
    for (size_t i = 0; i < sizeof(T) / 2; ++i) {
      words[i] = reinterpret_cast<const uint4*>(static_cast<const T*>(from) + index)[i];
    }
  }
  __device__ __forceinline__ void Put(T* to, int64_t index) const {
#pragma unroll
    for (size_t i = 0; i < sizeof(T) / 2; ++i) reinterpret_cast<uint4*>(to + index)[i] = words[i];
  }
  __device__ __forceinline__ void Unpack(float (&x)[8]) const { Load8(reinterpret_cast<const T*>(words), x); }
  __device__ __forceinline__ void Pack(const float (&x)[8]) { Store8(reinterpret_cast<T*>(words), x); }
};

// x: a thread's columns, which become their distance from a pivot of the warp. Returns what takes them from there to
// mean 0 and variance 1: a factor, and what is added to the product. parts: shared memory for 8 bytes of each warp.
//
// The pivot is the mean of the warp's first eight columns. Sums off it give variance without a second pass: their
// square, which is subtracted from that of squares, is at most 32 times what is left (Cauchy and Schwarz, of 8 columns
// in 256), and an eighth of it for columns that are alike.
template <int kRowWarps>
__device__ __forceinline__ float2 Standardize(float (&x)[8], const Place<kRowWarps>& at, const Shares& shares,
                                              float epsilon, uint32_t parts) {
  const float first = ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
  const float pivot = __shfl_sync(0xffffffffu, first * 0.125f, 0);
#pragma unroll
  for (int c = 0; c < 8; ++c) x[c] -= pivot;
  float sum = ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
  float squares = x[0] * x[0], odd = x[1] * x[1];
#pragma unroll
  for (int c = 2; c < 8; c += 2) squares = fmaf(x[c], x[c], squares), odd = fmaf(x[c + 1], x[c + 1], odd);
  squares += odd;
  if (!at.mine) sum = squares = 0.f;
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) {
    const float other_sum = __shfl_xor_sync(0xffffffffu, sum, step);
    const float other_squares = __shfl_xor_sync(0xffffffffu, squares, step);
    sum += other_sum, squares += other_squares;
  }
  if constexpr (kRowWarps == 1) {
    const float off = sum * shares.column, scale = FastRsqrt(fmaf(-off, off, squares * shares.column) + epsilon);
    return make_float2(scale, -off * scale);
  } else {
    const float off = sum * (at.warp == kRowWarps - 1 ? shares.in_last_warp : 1.f / kWarpColumns);
    const float2 own = make_float2(pivot + off, fmaf(-off, sum, squares));
    if (at.lane == 0) StoreShared2(parts + at.warp * 8, own);
    __syncthreads();
    float2 part[kRowWarps];
#pragma unroll
    for (int w = 0; w < kRowWarps; ++w) part[w] = LoadShared2(parts + w * 8);
    const auto share = [&](int w) { return w == kRowWarps - 1 ? shares.last_warp : shares.warp; };
    float mean = part[0].x * share(0), variance = part[0].y;
#pragma unroll
    for (int w = 1; w < kRowWarps; ++w) mean = fmaf(part[w].x, share(w), mean), variance += part[w].y;
    variance = fmaf(variance, shares.column, epsilon);
#pragma unroll
    for (int w = 0; w < kRowWarps; ++w) {
      const float apart = part[w].x - mean;
      variance = fmaf(apart * share(w), apart, variance);
    }
    const float scale = FastRsqrt(variance);
    return make_float2(scale, (pivot - mean) * scale);
  }
}

// The row's largest magnitude, and the square of its length.
template <int kRowWarps>
__device__ __forceinline__ float2 Measure(const float (&x)[8], const Place<kRowWarps>& at, uint32_t parts) {
  float most = fabsf(x[0]), squares = x[0] * x[0];
#pragma unroll
  for (int c = 1; c < 8; ++c) most = fmaxf(most, fabsf(x[c])), squares = fmaf(x[c], x[c], squares);
  if (!at.mine) most = squares = 0.f;
  squares = WarpSum(squares);
  most = WarpMaxMagnitude(most);
  if constexpr (kRowWarps > 1) {
    if (at.lane == 0) StoreShared2(parts + at.warp * 8, make_float2(most, squares));
    __syncthreads();
    float2 part[kRowWarps];
#pragma unroll
    for (int w = 0; w < kRowWarps; ++w) part[w] = LoadShared2(parts + w * 8);
    most = part[0].x, squares = part[0].y;
#pragma unroll
    for (int w = 1; w < kRowWarps; ++w) most = fmaxf(most, part[w].x), squares += part[w].y;
  }
  return make_float2(most, squares);
}

// Normalizes the row of which a thread holds the columns x, where they are `mine`, and writes it. Every thread of the
// CTA comes here.
template <typename T, int kRowWarps>
__device__ __forceinline__ void FinishRow(float (&x)[8], const Norm& n, const Parameters& parameters,
                                          const Place<kRowWarps>& at, int place, const Shares& shares, T* states,
                                          const Quantized& quantized) {
  constexpr int kRows = Place<kRowWarps>::kMostRows;
  __shared__ __align__(16) float parts[2 * kRows * kRowWarps * 2];
  static_assert(sizeof(parts) <= kFixedShared, "more shared memory than is told");
  const uint32_t sums = SharedAddress(parts) + at.slot * (kRowWarps * 8), ends = sums + kRows * kRowWarps * 8;
  const float2 line = Standardize<kRowWarps>(x, at, shares, n.epsilon, sums);
#pragma unroll
  for (int c = 0; c < 8; ++c) x[c] = fmaf(fmaf(x[c], line.x, line.y), parameters.gamma[c], parameters.beta[c]);
  Piece<T> piece;
  piece.Pack(x);
  if (at.mine) piece.Put(states, place);
  if (quantized.values == nullptr) return;
  const float2 measure = Measure<kRowWarps>(x, at, ends);
  const float inverse = measure.x > 0.f ? FastDivide(kFloat8Max, measure.x) : 0.f;
  if (!at.mine) return;
  uint32_t words[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    words[h] = PackFloat8Pair(x[4 * h] * inverse, x[4 * h + 1] * inverse) |
               static_cast<uint32_t>(PackFloat8Pair(x[4 * h + 2] * inverse, x[4 * h + 3] * inverse)) << 16;
  }
  *reinterpret_cast<uint2*>(quantized.values + place) = make_uint2(words[0], words[1]);
  if (at.column == 0) {
    quantized.scale[at.row] = measure.x * (1.f / kFloat8Max);
    quantized.norm[at.row] = FastSqrt(measure.y);
  }
}

// The tokens may lie in host memory: one thread of a row reads each, and tells the others.
template <typename T, int kRowWarps>
__global__ void __launch_bounds__(Place<kRowWarps>::kMostRows* kRowWarps * 32)
    EmbedNormShared(const Embedding e, const Norm n, const Shares shares, T* __restrict__ states,
                    const Quantized quantized) {
  __shared__ int4 tokens[Place<kRowWarps>::kMostRows];
  const Place<kRowWarps> at(blockIdx.x, shares.rows, e.count, n.width);
  const int pitch = static_cast<int>(n.pitch);
  LetNextKernelStart();
  const Parameters parameters(n, at.column);
  WaitForPreviousKernel();
  const bool reads = at.column == 0 && at.mine;
  const int4 token = reads ? *reinterpret_cast<const int4*>(e.tokens + at.row) : make_int4(0, 0, 0, 0);
  for (int b = blockIdx.x * blockDim.x + threadIdx.x; b < e.row_count; b += gridDim.x * blockDim.x) {
    e.row_ranges[b] = e.rows[b];
  }
  if (reads) tokens[at.slot] = token;
  __syncthreads();
  Piece<T> word, place, segment;
  if (at.mine) {
    const int4 bits = tokens[at.slot];
    if (reads) e.ranges[at.row] = make_int2(bits.z, bits.w);
    const bool real = bits.w > at.row;  // else it only fills the bucket, and sits at the end
    const int position = real ? max(at.row - bits.z, 0) : 0;
    word.Bring(e.words, bits.x * n.pitch + at.column);
    place.Bring(e.positions, position * n.pitch + at.column);
    segment.Bring(e.segments, bits.y * n.pitch + at.column);
  }
  float x[8], add[8];
  word.Unpack(x);
  place.Unpack(add);
#pragma unroll
  for (int c = 0; c < 8; ++c) x[c] += add[c];
  segment.Unpack(add);
#pragma unroll
  for (int c = 0; c < 8; ++c) x[c] += add[c];
  FinishRow<T, kRowWarps>(x, n, parameters, at, at.row * pitch + at.column, shares, states, quantized);
}

template <typename T, int kRowWarps>
__global__ void __launch_bounds__(Place<kRowWarps>::kMostRows* kRowWarps * 32)
    AddNormShared(const Norm n, const Shares shares, int rows, T* states, const T* delta, const Quantized quantized) {
  const Place<kRowWarps> at(n.reversed ? gridDim.x - 1 - blockIdx.x : blockIdx.x, shares.rows, rows, n.width);
  const int place = at.row * static_cast<int>(n.pitch) + at.column;
  LetNextKernelStart();
  const Parameters parameters(n, at.column);
  WaitForPreviousKernel();
  Piece<T> added, old;
  if (at.mine) added.Bring(delta, place);
  if (at.mine && !n.summed) old.Bring(states, place);
  float x[8], add[8];
  old.Unpack(x);
  added.Unpack(add);
#pragma unroll
  for (int c = 0; c < 8; ++c) x[c] += add[c];
  FinishRow<T, kRowWarps>(x, n, parameters, at, place, shares, states, quantized);
}

// Calls body(std::integral_constant<int, kRowWarps>()).
template <typename Body>
cudaError_t WithWarps(int width, const Body& body) {
  switch (CeilDiv(width, kWarpColumns)) {
    case 1:
      return body(std::integral_constant<int, 1>());
    case 2:
      return body(std::integral_constant<int, 2>());
    case 3:
      return body(std::integral_constant<int, 3>());
    case 4:
      return body(std::integral_constant<int, 4>());
    case 5:
      return body(std::integral_constant<int, 5>());
    case 6:
      return body(std::integral_constant<int, 6>());
    case 7:
      return body(std::integral_constant<int, 7>());
  }
  return body(std::integral_constant<int, 8>());
}

// Very few rows: a CTA each, so that as many multiprocessors as can take part.
template <int kRowWarps>
Shares SharesOf(const Machine& machine, int rows, int width) {
  const int last = width - (kRowWarps - 1) * kWarpColumns;
  return Shares{rows <= machine.sms ? 1 : Place<kRowWarps>::kMostRows, 1.f / width,
                static_cast<float>(kWarpColumns) / width, static_cast<float>(last) / width, 1.f / last};
}

LaunchShape Shape(const Machine& machine, int rows, int rows_each, int row_warps, cudaStream_t stream) {
  LaunchShape shape;
  shape.grid = dim3(CeilDiv(rows, rows_each));
  shape.block = dim3(rows_each * row_warps * 32);
  shape.stream = stream;
  shape.dependent = machine.dependent_launch;
  return shape;
}

// Calls launch(a value of the element's type).
template <typename Body>
cudaError_t WithElement(Element element, const Body& body) {
  if (element == Element::kFloat) return body(float());
  return element == Element::kHalf ? body(Half()) : body(BFloat());
}

}  // namespace

bool FewNormFits(const Norm& n) { return n.width % 8 == 0 && n.width <= kMostWarps * kWarpColumns; }

cudaError_t RunFewEmbed(const Machine& machine, Element element, const Embedding& e, const Norm& n, void* states,
                        const Quantized& quantized, cudaStream_t stream) {
  return WithElement(element, [&](auto type) {
    using T = decltype(type);
    return WithWarps(n.width, [&](auto tag) {
      constexpr int kRowWarps = decltype(tag)::value;
      const Shares shares = SharesOf<kRowWarps>(machine, e.count, n.width);
      return Launch(Shape(machine, e.count, shares.rows, kRowWarps, stream), EmbedNormShared<T, kRowWarps>, e, n,
                    shares, static_cast<T*>(states), quantized);
    });
  });
}

cudaError_t RunFewAddNorm(const Machine& machine, Element element, const Norm& n, int rows, void* states,
                          const void* delta, const Quantized& quantized, cudaStream_t stream) {
  return WithElement(element, [&](auto type) {
    using T = decltype(type);
    return WithWarps(n.width, [&](auto tag) {
      constexpr int kRowWarps = decltype(tag)::value;
      const Shares shares = SharesOf<kRowWarps>(machine, rows, n.width);
      LaunchShape shape = Shape(machine, rows, shares.rows, kRowWarps, stream);
      const auto kernel = AddNormShared<T, kRowWarps>;
      static std::atomic<uint64_t> allowed{0};
      const void* const entry = reinterpret_cast<const void*>(kernel);
      const cudaError_t refused = AllowSpreading(machine, entry, 0, &allowed, kFixedShared);
      if (refused != cudaSuccess) return refused;
      // Fewer CTAs had better start beside those of the product before, which leave no room for a spread one.
      const bool spreads = static_cast<int>(shape.grid.x) > machine.sms;
      if (spreads) shape.shared = SpreadShared(machine, shape.grid, 0, kFixedShared);
      return Launch(shape, kernel, n, shares, rows, static_cast<T*>(states), static_cast<const T*>(delta), quantized);
    });
  });
}

}  // namespace cuda
}  // namespace ftbert
