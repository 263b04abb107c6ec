// Matrix products of some hundred rows on Hopper that have too few tiles for the card: a cluster shares the K of each.
//
// Contract: x (M, K) and w (N, K) as gemm.h says, no activation, no residual, 16 bits out. A tile has 64 rows for each
// of kGroups warpgroups, which multiply, and 96 columns; one warp copies. Its K is split over kSplit CTAs; each
// finishes a share of the tile's columns and is sent the others' sums of these, from registers into its shared memory:
// thread t of a CTA holds the same places of the tile as thread t of the others. (Activations would make the kernel's
// code longer, which products without one paid for with 2 to 3%.)
#include "cuda/epilogue.cuh"
#include "cuda/hopper.cuh"
#include "cuda/tensor_map.h"

namespace ftbert {
namespace cuda {
namespace {

constexpr int kColumns = kSharedColumns;
constexpr int kStages = 7;  // with four or five, two CTAs fit into a multiprocessor, and it is slower

template <int kGroups, int kSplit>
struct SharedSizes {
  static constexpr int kRows = SharedRows(kGroups - 1), kSenders = 128 * kGroups, kThreads = kSenders + 32;
  static constexpr int kStageBytes = (kRows + kColumns) * 128;
  static constexpr int kPieces = kColumns / 8 / kSplit;  // of 8 columns, that each CTA finishes
  static constexpr int kInbox = (kSplit - 1) * kPieces * kSenders * 16;
  static constexpr int kShared = kStages * kStageBytes + kInbox + 8 * (2 * kStages + 4 * kGroups) + 1024;
  static_assert(kColumns % (8 * kSplit) == 0, "each CTA finishes whole pieces");
};

template <typename In, typename Out, int kGroups, int kSplit>
__global__ void __launch_bounds__(SharedSizes<kGroups, kSplit>::kThreads, 1)
    GemmSharedK(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
                const EpilogueArgs e, const void* prefetch, int64_t prefetch_bytes) {
#if FTBERT_HOPPER
  using Sizes = SharedSizes<kGroups, kSplit>;
  constexpr int kRows = Sizes::kRows, kSenders = Sizes::kSenders, kStageBytes = Sizes::kStageBytes;
  constexpr int kPieces = Sizes::kPieces, kSlice = 128 / sizeof(In);
  constexpr bool kScaled = sizeof(In) == 1;
  const uint32_t base = (SharedAddress(DynamicShared()) + 1023u) & ~1023u;
  const uint32_t inbox = base + kStages * kStageBytes, full = inbox + Sizes::kInbox;
  const uint32_t empty = full + 8 * kStages, sums = empty + 8 * kStages;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rank = static_cast<int>(ClusterRank());
  if (threadIdx.x == 0) {
    PrefetchMap(&x_map);
    PrefetchMap(&w_map);
#pragma unroll 1
    for (int s = 0; s < kStages; ++s) {
      BarrierInit(full + 8 * s, 1);
      BarrierInit(empty + 8 * s, kGroups);
    }
    for (int i = 0; i < 4 * kGroups; ++i) BarrierInit(sums + 8 * i, 1);
    BarrierInitFence();
  }
  __syncthreads();
  ClusterArrive();  // whose others' memory is written to later: they must have begun
  LetNextKernelStart();

  const int columns = CeilDiv(e.n, kColumns), tile = blockIdx.x / kSplit;
  const int column0 = tile % columns * kColumns, row0 = tile / columns * kRows;
  const int all = CeilDiv(e.k, kSlice), begin = all * rank / kSplit, slices = all * (rank + 1) / kSplit - begin;
  if (warp == 4 * kGroups) {
    if (lane == 0) {
      const auto load_w = [&](int stage, int slice) {
        BarrierExpect(full + 8 * stage, kStageBytes);
        LoadTile(base + stage * kStageBytes + kRows * 128, &w_map, full + 8 * stage, (begin + slice) * kSlice, column0);
      };
      const int early = slices < kStages ? slices : kStages;
#pragma unroll 1
      for (int slice = 0; slice < early; ++slice) load_w(slice, slice);
      WaitForPreviousKernel();
#pragma unroll 1
      for (int slice = 0; slice < slices; ++slice) {
        const int stage = slice % kStages;
        if (slice >= early) {
          BarrierWait(empty + 8 * stage, (slice / kStages & 1) ^ 1);
          load_w(stage, slice);
        }
        LoadTile(base + stage * kStageBytes, &x_map, full + 8 * stage, (begin + slice) * kSlice, row0);
        if (slice + 1 == early && prefetch_bytes > 0) PrefetchShare(prefetch, prefetch_bytes);
      }
    }
    __syncwarp();
    ClusterWait();
    return;
  }

  const int row = row0 + warp * 16 + lane / 4, mine = column0 + rank * kPieces * 8 + lane % 4 * 2;
  if (lane == 0) BarrierExpect(sums + 8 * warp, (kSplit - 1) * kPieces * 32 * 16);
  float2 bias[kPieces], w_scale[kScaled ? kPieces : 1];
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const bool inside = mine + i * 8 < e.n;
    bias[i] = inside ? __ldg(reinterpret_cast<const float2*>(e.bias + mine + i * 8)) : make_float2(0.f, 0.f);
    if (kScaled) {
      w_scale[i] = inside ? __ldg(reinterpret_cast<const float2*>(e.w_scale + mine + i * 8)) : make_float2(0.f, 0.f);
    }
  }
  WaitForPreviousKernel();  // what is written may still be read there
  float x_scale[2] = {1.f, 1.f};
#pragma unroll
  for (int h = 0; h < 2 && kScaled; ++h) x_scale[h] = RowScaleOf(e.x_scale, row + 8 * h, e.m);

  float acc[kColumns / 2];
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) acc[i] = 0.f;
  const int mine_in_stage = kGroups > 1 ? Warpgroup() * 64 * 128 : 0;
  int previous = -1;
#pragma unroll 1
  for (int slice = 0; slice < slices; ++slice) {
    const int stage = slice % kStages;
    BarrierWait(full + 8 * stage, slice / kStages & 1);
    const uint32_t at = base + stage * kStageBytes;
    MultiplySlice<In, kColumns>(acc, at + mine_in_stage, at + kRows * 128);
    WgmmaWait<1>();
    if (previous >= 0 && threadIdx.x % 128 == 0) BarrierArrive(empty + 8 * previous);
    previous = stage;
  }
  WgmmaWait<0>();

  ClusterWait();
  float own[kPieces][4];
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
    const int to = j / kPieces, piece = j % kPieces;
    const float4 sum = make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]);
    if (to == rank) {
      own[piece][0] = sum.x, own[piece][1] = sum.y, own[piece][2] = sum.z, own[piece][3] = sum.w;
    } else {
      const int from = rank < to ? rank : rank - 1;  // among those who send to `to`
      SendRemote4(inbox + ((from * kPieces + piece) * kSenders + threadIdx.x) * 16, to, sum, sums + 8 * warp);
    }
  }
  BarrierWaitCluster(sums + 8 * warp, 0);
#pragma unroll
  for (int piece = 0; piece < kPieces; ++piece) {
    float4 sum = make_float4(own[piece][0], own[piece][1], own[piece][2], own[piece][3]);
#pragma unroll
    for (int from = 0; from < kSplit - 1; ++from) {
      const float4 sent = LoadShared4(inbox + ((from * kPieces + piece) * kSenders + threadIdx.x) * 16);
      sum.x += sent.x, sum.y += sent.y, sum.z += sent.z, sum.w += sent.w;
    }
    if (kScaled) {
      sum.x *= x_scale[0] * w_scale[piece].x, sum.y *= x_scale[0] * w_scale[piece].y;
      sum.z *= x_scale[1] * w_scale[piece].x, sum.w *= x_scale[1] * w_scale[piece].y;
    }
    const int column = mine + piece * 8;
    if (column >= e.n) continue;
    Out* const to = static_cast<Out*>(e.out) + row * e.ldo + column;
    if (row < e.m) *reinterpret_cast<uint32_t*>(to) = PackPair<Out>(sum.x + bias[piece].x, sum.y + bias[piece].y);
    if (row + 8 < e.m) {
      *reinterpret_cast<uint32_t*>(to + 8 * e.ldo) = PackPair<Out>(sum.z + bias[piece].x, sum.w + bias[piece].y);
    }
  }
#endif
}

template <typename In, typename Out, int kGroups, int kSplit>
cudaError_t LaunchShared(const Machine& machine, const Gemm& g, cudaStream_t stream) {
  using Sizes = SharedSizes<kGroups, kSplit>;
  const auto kernel = GemmSharedK<In, Out, kGroups, kSplit>;
  static std::atomic<uint64_t> allowed{0};
  cudaError_t error = AllowShared(machine, reinterpret_cast<const void*>(kernel), Sizes::kShared, &allowed);
  CUtensorMap x_map, w_map;
  if (error == cudaSuccess) error = MakeTensorMap(&x_map, g.in, g.x, g.m, g.k, g.ldx, Sizes::kRows);
  if (error == cudaSuccess) error = MakeTensorMap(&w_map, g.in, g.w, g.n, g.k, g.k, kColumns);
  if (error != cudaSuccess) return error;
  LaunchShape shape;
  shape.grid = dim3(CeilDiv(g.m, Sizes::kRows) * CeilDiv(g.n, kColumns) * kSplit);
  shape.block = dim3(Sizes::kThreads);
  shape.shared = Sizes::kShared;
  shape.stream = stream;
  shape.cluster = kSplit;
  shape.dependent = machine.dependent_launch;
  return Launch(shape, kernel, x_map, w_map, MakeEpilogueArgs(g), g.prefetch, g.prefetch_bytes);
}

template <typename In, typename Out>
cudaError_t Choose(const Machine& machine, int variant, int split, const Gemm& g, cudaStream_t stream) {
  if (variant == 1) {
    return split == 2 ? LaunchShared<In, Out, 2, 2>(machine, g, stream) : cudaErrorInvalidValue;
  }
  switch (split) {
    case 2:
      return LaunchShared<In, Out, 1, 2>(machine, g, stream);
    case 3:
      return LaunchShared<In, Out, 1, 3>(machine, g, stream);
    case 6:
      return LaunchShared<In, Out, 1, 6>(machine, g, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t RunSharedK(const Machine& machine, int variant, int split, const Gemm& g, cudaStream_t stream) {
  switch (g.in) {
    case Element::kHalf:
      return Choose<Half, Half>(machine, variant, split, g, stream);
    case Element::kBFloat:
      return Choose<BFloat, BFloat>(machine, variant, split, g, stream);
    case Element::kFloat8:
      return Choose<Float8, Half>(machine, variant, split, g, stream);
    case Element::kFloat:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace cuda
}  // namespace ftbert
