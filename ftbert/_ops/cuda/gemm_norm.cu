// A product of many rows, its residual and the layer norm of the sum, in one kernel on Hopper.
//
// Contract: states (M, N) = norm(x (M, K) w (N, K)^T + bias + states), in place; N = 512, 768 or 1,024. Types of 16
// bits, or x and w fp8 (w with a scale for each output, x without any); of fp16 states an fp8 copy may be wanted. A
// cluster of N / 256 CTAs holds 128 whole rows, 256 columns each; in a CTA two multiplying warpgroups take 64 rows each
// and keep their sums in registers. Each CTA sends what it knows of a row (mean and squares of its columns; where an
// fp8 copy is wanted also its largest value and its length) into the shared memory of all CTAs, where it completes an
// mbarrier. Sums are not rounded to 16 bits before they are normalized.
#include "cuda/kernels.h"
#include "cuda/tensor_map.h"
#include "cuda/wgmma_feed.cuh"

namespace ftbert {
namespace cuda {
namespace {

constexpr int kRows = 128, kColumns = 256, kMostCtas = 4;

template <typename In, typename T>
struct NormSizes {
  using End = WgmmaEnd<T, T, kRows, kColumns>;
  static constexpr bool kScaled = sizeof(In) == 1;
  static constexpr int kStages = 3, kStageBytes = (kRows + kColumns) * 128;
  static constexpr int kBuffers = End::kParts, kEach = 8 * End::kBufferBytes;
  static constexpr int kColumnArrays = kScaled ? 4 : 3, kColumnBytes = kColumnArrays * kColumns * 4;  // as in NormArgs
  // Of each row of a warpgroup, two numbers of each CTA; twice.
  static constexpr int kSideBytes = kMostCtas * 64 * 8, kSentBytes = 2 * 2 * kSideBytes;
  static constexpr int kBarriers = 8 * (2 * kStages + 1 + 8 * kBuffers + 4);
  static constexpr int kShared = kStages * kStageBytes + kBuffers * kEach + kColumnBytes + kSentBytes +
                                 kBarriers + 1024;
  static_assert(kShared <= 227 * 1024, "too little shared memory");
};

struct NormArgs {
  const float *bias, *gamma, *beta, *w_scale;
  float epsilon;
  float *quantized_scale, *quantized_norm;
  int m, k, ctas;
  bool reversed;
};

#if FTBERT_HOPPER
// The tiles of a CTA: blocks of rows, its columns of each.
struct WholeRows {
  int tiles, first, stride, rank;
  bool reversed;

  __device__ __forceinline__ int Column(int) const { return rank * kColumns; }
  __device__ __forceinline__ int Row(int tile) const { return (reversed ? tiles - 1 - tile : tile) * kRows; }
};

// What the CTAs of a cluster know of rows, for all of them: two numbers each. The four lanes that hold a row send to a
// CTA each.
struct Exchange {
  uint32_t place, barrier;  // of this warpgroup: (CTAs, 64 rows) pairs, in every CTA
  int ctas, rank, row, lane;

  __device__ __forceinline__ void Send(const float2 (&own)[2]) const {
    const int to = lane % 4;
    if (to >= ctas) return;
#pragma unroll
    for (int h = 0; h < 2; ++h) SendRemote2(place + (rank * 64 + row + 8 * h) * 8, to, own[h], barrier);
  }
  __device__ __forceinline__ float2 Of(int cta, int h) const {
    return LoadShared2(place + (cta * 64 + row + 8 * h) * 8);
  }
};

__device__ __forceinline__ float QuadSum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
__device__ __forceinline__ float QuadMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

#endif

template <typename In, typename T, bool kQuantizes>
__global__ void __launch_bounds__(384, 1)
    GemmNorm(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
             const __grid_constant__ CUtensorMap states_map, const __grid_constant__ CUtensorMap quantized_map,
             const NormArgs a) {
#if FTBERT_HOPPER
  using Sizes = NormSizes<In, T>;
  using End = typename Sizes::End;
  constexpr bool kScaled = Sizes::kScaled;
  constexpr int kStages = Sizes::kStages, kSlice = 128 / sizeof(In), kParts = End::kParts;
  const uint32_t base = (SharedAddress(DynamicShared()) + 1023u) & ~1023u;
  const uint32_t buffers = base + kStages * Sizes::kStageBytes, columns = buffers + Sizes::kBuffers * Sizes::kEach;
  const uint32_t sent = columns + Sizes::kColumnBytes, full = sent + Sizes::kSentBytes, empty = full + 8 * kStages;
  const uint32_t columns_full = empty + 8 * kStages, residuals = columns_full + 8;
  const uint32_t exchanged = residuals + 8 * 8 * Sizes::kBuffers;
  const int warpgroup = Warpgroup(), lane = threadIdx.x % 32;
  const int rank = static_cast<int>(ClusterRank()), column = rank * kColumns;
  if (threadIdx.x == 0) {
    PrefetchMap(&x_map);
    PrefetchMap(&w_map);
    PrefetchMap(&states_map);
    for (int s = 0; s < kStages; ++s) {
      BarrierInit(full + 8 * s, 1);
      BarrierInit(empty + 8 * s, 2);
    }
    BarrierInit(columns_full, 32);
    for (int i = 0; i < 8 * Sizes::kBuffers; ++i) BarrierInit(residuals + 8 * i, 1);
    for (int i = 0; i < 4; ++i) BarrierInit(exchanged + 8 * i, 1);
    BarrierInitFence();
  }
  ClusterArrive();
  ClusterWait();
  LetNextKernelStart();

  const WholeRows order{CeilDiv(a.m, kRows), static_cast<int>(blockIdx.x) / a.ctas,
                        static_cast<int>(gridDim.x) / a.ctas, rank, a.reversed};
  const int slices = CeilDiv(a.k, kSlice);

  if (warpgroup == 0) {
    GiveRegisters<40>();
    if (threadIdx.x == 0) {
      TileFeed<In, kRows, kColumns, kStages, 1>{&x_map, &w_map, base, full, empty}.Run(order, slices);
    } else if (threadIdx.x / 32 == 1) {
      const float* const from[4] = {a.bias, a.gamma, a.beta, a.w_scale};
#pragma unroll
      for (int i = 0; i < Sizes::kColumnArrays; ++i) {
        float values[kColumns / 32];
#pragma unroll
        for (int j = 0; j < kColumns / 32; ++j) values[j] = __ldg(from[i] + column + j * 32 + lane);
#pragma unroll
        for (int j = 0; j < kColumns / 32; ++j) StoreShared(columns + (i * kColumns + j * 32 + lane) * 4, values[j]);
      }
      BarrierArrive(columns_full);
    }
  } else {
    TakeRegisters<232>();
    WaitForPreviousKernel();  // what is written may still be read there
    const int mine = warpgroup - 1, warp = threadIdx.x % 128 / 32;
    const WarpBuffers<End::kRowBytes> w{buffers + (mine * 4 + warp) * Sizes::kBuffers * End::kBufferBytes,
                                        residuals + (mine * 4 + warp) * Sizes::kBuffers * 8,
                                        &states_map,
                                        &states_map,
                                        lane};
    int slice_count = 0, count = 0;
    for (int tile = order.first; tile < order.tiles; tile += order.stride, ++count) {
      const int row = order.Row(tile) + mine * 64 + warp * 16;
      if (lane == 0) {
        WaitStoresRead<0>();
#pragma unroll
        for (int part = 0; part < kParts; ++part) w.BringResidual(part, row, column + part * End::kColumns);
      }
      __syncwarp();
      float acc[kColumns / 2];
      int previous = -1;
      const auto leave = [&](int stage) {
        if (threadIdx.x % 128 == 0) BarrierArrive(empty + 8 * stage);
      };
      for (int slice = 0; slice < slices; ++slice, ++slice_count) {
        const int stage = slice_count % kStages;
        BarrierWait(full + 8 * stage, slice_count / kStages & 1);
        const uint32_t at = base + stage * Sizes::kStageBytes;
        MultiplySlice<In, kColumns>(acc, at + mine * 64 * 128, at + kRows * 128, slice == 0);
        WgmmaWait<1>();
        if (previous >= 0) leave(previous);
        previous = stage;
      }
      WgmmaWait<0>();
      leave(previous);

      // The two exchanges use a place each; where there is one only, its place changes from tile to tile.
      const int side = kQuantizes ? 0 : count & 1;
      const uint32_t parity = kQuantizes ? count & 1 : count >> 1 & 1;
      const int in_group = warp * 16 + lane / 4;
      const Exchange moments{sent + (side * 2 + mine) * Sizes::kSideBytes, exchanged + 8 * (side * 2 + mine), a.ctas,
                             rank, in_group, lane};
      if (threadIdx.x % 128 == 0) BarrierExpect(moments.barrier, a.ctas * 64 * 8);
      float sum[2] = {0.f, 0.f};
      BarrierWait(columns_full, 0);  // once and for all tiles
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        BarrierWait(w.arrived + 8 * part, count & 1);
#pragma unroll
        for (int i = 0; i < End::kColumns / 16; ++i) {
          uint32_t old[4];
          LoadMatrix4(old, w.Buffer(part) + Swizzled<End::kRowBytes>(lane % 16, 2 * i + lane / 16));
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int n = part * End::kColumns + i * 16 + j * 8;
            const uint32_t at = columns + (n + lane % 4 * 2) * 4;
            const float2 bias = LoadShared2(at);
            const float2 w_scale = kScaled ? LoadShared2(at + 3 * kColumns * 4) : make_float2(1.f, 1.f);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              const float2 add = UnpackPair<T>(old[2 * j + h]);
              float* pair = &acc[n / 2 + 2 * h];
              pair[0] = fmaf(pair[0], w_scale.x, bias.x + add.x);
              pair[1] = fmaf(pair[1], w_scale.y, bias.y + add.y);
              sum[h] += pair[0] + pair[1];
            }
          }
        }
      }
      float2 own[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float mean = QuadSum(sum[h]) / kColumns;
        float squares = 0.f;
#pragma unroll
        for (int i = 0; i < kColumns / 2; ++i) {
          if (i / 2 % 2 == h) squares = fmaf(acc[i] - mean, acc[i] - mean, squares);
        }
        own[h] = make_float2(mean, QuadSum(squares));
      }
      moments.Send(own);
      BarrierWaitCluster(moments.barrier, parity);
      float mean[2], scale[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float all = 0.f, squares = 0.f;
        for (int cta = 0; cta < a.ctas; ++cta) all += moments.Of(cta, h).x;
        mean[h] = all / a.ctas;
        for (int cta = 0; cta < a.ctas; ++cta) {
          const float2 one = moments.Of(cta, h);
          squares += fmaf((one.x - mean[h]) * kColumns, one.x - mean[h], one.y);
        }
        scale[h] = rsqrtf(squares / (a.ctas * kColumns) + a.epsilon);
      }
      float most[2] = {0.f, 0.f}, length[2] = {0.f, 0.f};
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
#pragma unroll
        for (int i = 0; i < End::kColumns / 16; ++i) {
          uint32_t bits[4];
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int n = part * End::kColumns + i * 16 + j * 8;
            const uint32_t at = columns + (kColumns + n + lane % 4 * 2) * 4;
            const float2 gamma = LoadShared2(at), beta = LoadShared2(at + kColumns * 4);
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              float* pair = &acc[n / 2 + 2 * h];
              pair[0] = fmaf((pair[0] - mean[h]) * scale[h], gamma.x, beta.x);
              pair[1] = fmaf((pair[1] - mean[h]) * scale[h], gamma.y, beta.y);
              if (kQuantizes) {
                most[h] = fmaxf(most[h], fmaxf(fabsf(pair[0]), fabsf(pair[1])));
                length[h] = fmaf(pair[0], pair[0], fmaf(pair[1], pair[1], length[h]));
              }
              bits[2 * j + h] = PackPair<T>(pair[0], pair[1]);
            }
          }
          StoreMatrix4(w.Buffer(part) + Swizzled<End::kRowBytes>(lane % 16, 2 * i + lane / 16), bits[0], bits[1],
                       bits[2], bits[3]);
        }
        w.Store(part, row, column + part * End::kColumns);
      }
      if constexpr (kQuantizes) {
        const Exchange bounds{sent + (2 + mine) * Sizes::kSideBytes, exchanged + 8 * (2 + mine), a.ctas, rank,
                              in_group, lane};
        if (threadIdx.x % 128 == 0) BarrierExpect(bounds.barrier, a.ctas * 64 * 8);
#pragma unroll
        for (int h = 0; h < 2; ++h) own[h] = make_float2(QuadMax(most[h]), QuadSum(length[h]));
        bounds.Send(own);
        BarrierWaitCluster(bounds.barrier, count & 1);
        float inverse[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float largest = 0.f, squares = 0.f;
          for (int cta = 0; cta < a.ctas; ++cta) {
            const float2 one = bounds.Of(cta, h);
            largest = fmaxf(largest, one.x);
            squares += one.y;
          }
          inverse[h] = largest > 0.f ? kFloat8Max / largest : 0.f;
          const int at = row + lane / 4 + 8 * h;
          if (rank == 0 && lane % 4 == 0 && at < a.m) {
            a.quantized_scale[at] = largest / kFloat8Max;
            a.quantized_norm[at] = sqrtf(squares);
          }
        }
        if (lane == 0) WaitStoresRead<kParts - 2>();  // the first two buffers are free
        __syncwarp();
#pragma unroll
        for (int part = 0; part < 2; ++part) {
#pragma unroll
          for (int j = 0; j < 16; ++j) {
            const int n = part * 128 + j * 8;
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              const float* pair = &acc[n / 2 + 2 * h];
              const uint32_t at = Swizzled<128>(lane / 4 + 8 * h, j / 2) + j % 2 * 8 + lane % 4 * 2;
              StoreShared(w.Buffer(part) + at, PackFloat8Pair(pair[0] * inverse[h], pair[1] * inverse[h]));
            }
          }
          WrittenForCopyEngine();
          __syncwarp();
          if (lane == 0) {
            StoreTile(w.Buffer(part), &quantized_map, column + part * 128, row);
            CommitStores();
          }
        }
      }
    }
    if (lane == 0) WaitStoresRead<0>();
  }
  __syncwarp();
  ClusterArrive();  // a CTA that ended could not take what the others send
  ClusterWait();
#endif
}

template <typename In, typename T, bool kQuantizes>
cudaError_t LaunchNorm(const Machine& machine, const Gemm& g, const Norm& norm, const Quantized& quantized,
                       cudaStream_t stream) {
  using Sizes = NormSizes<In, T>;
  const auto kernel = GemmNorm<In, T, kQuantizes>;
  static std::atomic<uint64_t> allowed{0};
  cudaError_t error = AllowShared(machine, reinterpret_cast<const void*>(kernel), Sizes::kShared, &allowed);
  CUtensorMap x_map, w_map, states_map, quantized_map;
  if (error == cudaSuccess) error = MakeTensorMap(&x_map, g.in, g.x, g.m, g.k, g.ldx, kRows);
  if (error == cudaSuccess) error = MakeTensorMap(&w_map, g.in, g.w, g.n, g.k, g.k, kColumns);
  if (error == cudaSuccess) error = MakeTensorMap(&states_map, g.out_type, g.out, g.m, g.n, g.ldo, 16);
  quantized_map = states_map;
  if (kQuantizes && error == cudaSuccess) {
    error = MakeTensorMap(&quantized_map, Element::kFloat8, quantized.values, g.m, g.n, norm.pitch, 16);
  }
  if (error != cudaSuccess) return error;
  const int ctas = g.n / kColumns, tiles = CeilDiv(g.m, kRows), most = machine.norm_clusters[ctas];
  LaunchShape shape;
  shape.grid = dim3((tiles < most ? tiles : most) * ctas);
  shape.block = dim3(384);
  shape.shared = Sizes::kShared;
  shape.stream = stream;
  shape.cluster = ctas;
  shape.dependent = machine.dependent_launch;
  const NormArgs a{g.bias,          norm.gamma,     norm.beta, g.w_scale, norm.epsilon,
                   quantized.scale, quantized.norm, g.m,       g.k,       ctas,
                   g.reversed};
  return Launch(shape, kernel, x_map, w_map, states_map, quantized_map, a);
}

}  // namespace

bool GemmNormFits(const Machine& machine, const Gemm& g, const Norm& norm, const Quantized& quantized) {
  const int ctas = g.n / kColumns;
  const bool quantizes = quantized.values != nullptr;
  const bool float8 = g.in == Element::kFloat8 && g.out_type == Element::kHalf && g.x_scale.values == nullptr;
  const bool half = g.in == Element::kHalf && g.out_type == Element::kHalf;
  const bool bfloat = g.in == Element::kBFloat && g.out_type == Element::kBFloat;
  return machine.hopper && machine.clusters && (half || (quantizes ? float8 : bfloat)) &&
         g.n % kColumns == 0 && norm.width == g.n && g.act == 0 && g.residual == g.out &&
         g.residual_rows == nullptr && ctas > 1 && ctas <= kMostCtas && machine.norm_clusters[ctas] > 0;
}

cudaError_t RunGemmNorm(const Machine& machine, const Gemm& g, const Norm& norm, const Quantized& quantized,
                        cudaStream_t stream) {
  if (g.in == Element::kFloat8) return LaunchNorm<Float8, Half, true>(machine, g, norm, quantized, stream);
  if (g.in == Element::kBFloat) return LaunchNorm<BFloat, BFloat, false>(machine, g, norm, quantized, stream);
  return quantized.values != nullptr ? LaunchNorm<Half, Half, true>(machine, g, norm, quantized, stream)
                                     : LaunchNorm<Half, Half, false>(machine, g, norm, quantized, stream);
}

cudaError_t FindNormClusters(int (&clusters)[5]) {
  cudaError_t error = cudaSuccess;
  for (int ctas = 2; ctas <= kMostCtas && error == cudaSuccess; ++ctas) {
    error = FindClusters(GemmNorm<Float8, Half, true>, ctas, 384, NormSizes<Float8, Half>::kShared, &clusters[ctas]);
  }
  return error;
}

}  // namespace cuda
}  // namespace ftbert
