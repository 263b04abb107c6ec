// Matrix products of few rows (up to about 256) on Hopper, where latency and reading the weights are all the time there
// is.
//
// Contract: x (M, K) and w (N, K) as gemm.h says. A CTA owns 64 outputs of kTokens rows and takes its whole share of K
// into shared memory at once (no ring); four warpgroups multiply a quarter of it each, with the weights as the 64-row
// operand, and add up in shared memory. Where K is long a cluster of `split` CTAs shares it: each finishes some of the
// rows, and is sent the others' sums of these through distributed shared memory (sent, not fetched: a fetch is a way
// there and back for each CTA, and nobody could end before all were done). The weights are asked for before the kernel
// before has ended (they do not depend on it), and those of a later product are brought into L2.
#include "cuda/epilogue.cuh"
#include "cuda/hopper.cuh"
#include "cuda/tensor_map.h"

namespace ftbert {
namespace cuda {
namespace {

constexpr int kOutputs = 64;  // of a tile
constexpr int kGroups = 4;    // warpgroups
constexpr int kThreads = kGroups * 128;
constexpr int kMostSlices = 16;
constexpr int kPitch = kOutputs + 4;  // floats between tokens of a partial sum: no two lanes share a bank
constexpr int kRowStep = kThreads / 16;  // a thread finishes four outputs of rows so far apart
constexpr int kMostShared = 225 * 1024, kFixedShared = 128;  // the latter: barriers

struct SplitArgs {
  const void* residual;
  const int2* residual_rows;
  const void* prefetch;
  int64_t prefetch_bytes;
  uint32_t inbox;  // of shared memory's bytes: what others of the cluster send arrives behind a CTA's own
};

// [[maybe_unused]]: architectures other than Hopper compile no caller.
[[maybe_unused]] __device__ __forceinline__ void Add4(float4* sum, const float4& v) {
  sum->x += v.x, sum->y += v.y, sum->z += v.z, sum->w += v.w;
}

#if FTBERT_HOPPER
// A CTA's share of a product: slices of 128 bytes of K from `begin` on.
template <typename In, int kTokens>
struct SplitTile {
  static constexpr int kSlice = 128 / sizeof(In);
  static constexpr int kSliceBytes = (kOutputs + kTokens) * 128;
  uint32_t base, barriers;  // shared memory; one mbarrier a slice
  int output0, token0, begin, slices;

  // Asks for the weights, which do not depend on the kernel before.
  __device__ __forceinline__ void AskForWeights(const CUtensorMap* x_map, const CUtensorMap* w_map) const {
    if (threadIdx.x != 0) return;
    PrefetchMap(x_map);
#pragma unroll 1
    for (int s = 0; s < slices; ++s) BarrierInit(barriers + 8 * s, 1);
    BarrierInitFence();
#pragma unroll 1
    for (int s = 0; s < slices; ++s) {
      BarrierExpect(barriers + 8 * s, kSliceBytes);
      LoadTile(base + s * kSliceBytes, w_map, barriers + 8 * s, (begin + s) * kSlice, output0);
    }
  }

  // Each warpgroup asks for its own slices of the rows.
  __device__ __forceinline__ void AskForRows(const CUtensorMap* x_map) const {
    if (threadIdx.x % 128 != 0) return;
#pragma unroll 1
    for (int s = threadIdx.x / 128; s < slices; s += kGroups) {
      LoadTile(base + s * kSliceBytes + kOutputs * 128, x_map, barriers + 8 * s, (begin + s) * kSlice, token0);
    }
  }

  // kGroups sums of (kTokens, kPitch) floats at `base`, for all threads to read.
  __device__ __forceinline__ void Multiply() const {
    const int group = Warpgroup();
    float acc[kTokens / 2];
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) acc[i] = 0.f;
#pragma unroll 1
    for (int s = group; s < slices; s += kGroups) {
      BarrierWait(barriers + 8 * s, 0);
      MultiplySlice<In, kTokens>(acc, base + s * kSliceBytes, base + s * kSliceBytes + kOutputs * 128);
    }
    WgmmaWait<0>();
    __syncthreads();  // every group has read its operands: their place takes the partial sums

    const int lane = threadIdx.x % 32, output = threadIdx.x % 128 / 32 * 16 + lane / 4;
    const uint32_t mine = base + group * kTokens * kPitch * 4;
#pragma unroll
    for (int j = 0; j < kTokens / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = 8 * j + lane % 4 * 2 + i % 2;
        StoreShared(mine + (token * kPitch + output + i / 2 * 8) * 4, acc[4 * j + i]);
      }
    }
    __syncthreads();
  }

  // This CTA's sum of four outputs of a row.
  __device__ __forceinline__ float4 Sum(int token, int output) const {
    const uint32_t at = base + (token * kPitch + output) * 4;
    float4 sum = LoadShared4(at);
#pragma unroll
    for (int g = 1; g < kGroups; ++g) Add4(&sum, LoadShared4(at + g * kTokens * kPitch * 4));
    return sum;
  }
};

// Behind a product's own loads: this CTA's share of the weights that are needed soon, into L2.
__device__ __forceinline__ void AskAhead(const SplitArgs& args) {
  if (threadIdx.x != 32 || args.prefetch_bytes <= 0) return;
  const int64_t ctas = static_cast<int64_t>(gridDim.x) * gridDim.y * gridDim.z;
  const int64_t index = (static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int64_t share = (args.prefetch_bytes / 16 + ctas - 1) / ctas * 16, from = index * share;
  if (from >= args.prefetch_bytes) return;
  const int64_t left = args.prefetch_bytes - from;
  PrefetchL2(static_cast<const uint8_t*>(args.prefetch) + from, static_cast<uint32_t>(share < left ? share : left));
}
#endif

// A thread's share of a tile: four outputs of rows FirstRow() + kRowStep i, below EndRow().
template <int kTokens>
__device__ __forceinline__ int FirstRow(int rank, int split) {
  return rank * CeilDiv(kTokens, split) + threadIdx.x / 16;
}
template <int kTokens>
__device__ __forceinline__ int EndRow(int rank, int split) {
  return min(kTokens, (rank + 1) * CeilDiv(kTokens, split));
}

// What a thread's rows need at the end, asked for as soon as the kernel before has ended.
template <int kTokens>
struct RowInputs {
  uint2 residual[kTokens / kRowStep];
  float x_scale[kTokens / kRowStep], out_scale[kTokens / kRowStep];
};

constexpr int kMostParts = 8;  // warpgroups, or CTAs of a cluster

struct Partial {
  uint32_t at;       // shared memory: sums of (rows, kPitch) floats, one after another
  int count, bytes;  // of these sums
  int rank, split;
};

template <typename In, typename Out, Act kAct, int kTokens>
__device__ __forceinline__ void AddPartials(const Partial& p, const EpilogueArgs& e, int token0, int output0,
                                            const float4& bias, const float4& w_scale,
                                            const RowInputs<kTokens>& inputs) {
  constexpr bool kScaled = sizeof(In) == 1;
  constexpr int kRows = kTokens / kRowStep;
  static_assert(kRows <= 2, "a thread's rows");
  const int n = threadIdx.x % 16 * 4, end = EndRow<kTokens>(p.rank, p.split);
// A second row by the first one's instructions, which then need not be fetched; fp8 took 3% longer so (1 x 128).
#pragma unroll sizeof(In) == 1 ? kRows : 1
  for (int i = 0; i < kRows; ++i) {
    const int t = FirstRow<kTokens>(p.rank, p.split) + i * kRowStep, m = token0 + t;
    if (t >= end || m >= e.m || output0 + n >= e.n) continue;
    const auto mine = [&](const auto& each) { return i == 0 ? each[0] : each[kRows - 1]; };  // stays in registers
    const uint32_t at = p.at + ((threadIdx.x / 16 + i * kRowStep) * kPitch + n) * 4;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f), parts[kMostParts];
#pragma unroll
    for (int part = 0; part < kMostParts; ++part) {  // all loads, then all sums
      parts[part] = part < p.count ? LoadShared4(at + part * p.bytes) : make_float4(0.f, 0.f, 0.f, 0.f);
    }
#pragma unroll
    for (int part = 0; part < kMostParts; ++part) Add4(&sum, parts[part]);
    if (kScaled) {
      const float x_scale = mine(inputs.x_scale);
      sum.x *= x_scale * w_scale.x, sum.y *= x_scale * w_scale.y;
      sum.z *= x_scale * w_scale.z, sum.w *= x_scale * w_scale.w;
    }
    sum.x = Activate<kAct, false>(sum.x + bias.x), sum.y = Activate<kAct, false>(sum.y + bias.y);
    sum.z = Activate<kAct, false>(sum.z + bias.z), sum.w = Activate<kAct, false>(sum.w + bias.w);
    Out* to = static_cast<Out*>(e.out) + m * e.ldo + output0 + n;
    if constexpr (sizeof(Out) == 2) {
      const uint2 residual = mine(inputs.residual);
      const float2 low = UnpackPair<Out>(residual.x), high = UnpackPair<Out>(residual.y);
      sum.x += low.x, sum.y += low.y, sum.z += high.x, sum.w += high.y;
      *reinterpret_cast<uint2*>(to) = make_uint2(PackPair<Out>(sum.x, sum.y), PackPair<Out>(sum.z, sum.w));
    } else {
      const float inverse = 1.f / mine(inputs.out_scale);
      *reinterpret_cast<uint32_t*>(to) =
          PackFloat8Pair(sum.x * inverse, sum.y * inverse) |
          static_cast<uint32_t>(PackFloat8Pair(sum.z * inverse, sum.w * inverse)) << 16;
    }
  }
}

// Grid (split, outputs / 64, tokens / kTokens), clusters of split CTAs.
template <typename In, typename Out, int kTokens>
__global__ void __launch_bounds__(kThreads, 1)
    GemmSplitK(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap w_map,
               const EpilogueArgs e, const SplitArgs args) {
#if FTBERT_HOPPER
  using Tile = SplitTile<In, kTokens>;
  __shared__ __align__(8) uint64_t landed[kMostSlices];
  const int split = gridDim.x, rank = blockIdx.x;
  const int output0 = blockIdx.y * kOutputs, token0 = blockIdx.z * kTokens;
  const int all = CeilDiv(e.k, Tile::kSlice), begin = all * rank / split;
  const Tile tile{(SharedAddress(DynamicShared()) + 1023u) & ~1023u, SharedAddress(landed),       output0, token0,
                  begin,                                             all * (rank + 1) / split - begin};
  tile.AskForWeights(&x_map, &w_map);
  const int my_output = output0 + threadIdx.x % 16 * 4;
  float4 bias = make_float4(0.f, 0.f, 0.f, 0.f), w_scale = bias;
  if (my_output < e.n) {
    bias = __ldg(reinterpret_cast<const float4*>(e.bias + my_output));
    if (sizeof(In) == 1) w_scale = __ldg(reinterpret_cast<const float4*>(e.w_scale + my_output));
  }
  __syncthreads();
  if (split > 1) ClusterArrive();  // whose others' memory is written to later: they must have begun
  LetNextKernelStart();
  WaitForPreviousKernel();
  tile.AskForRows(&x_map);
  AskAhead(args);
  RowInputs<kTokens> inputs = {};
#pragma unroll
  for (int i = 0; i < kTokens / kRowStep; ++i) {
    const int t = FirstRow<kTokens>(rank, split) + i * kRowStep, m = token0 + t;
    if (t >= EndRow<kTokens>(rank, split) || m >= e.m || my_output >= e.n) continue;
    if (sizeof(In) == 1) inputs.x_scale[i] = RowScaleOf(e.x_scale, m, e.m);
    if (sizeof(Out) == 1) inputs.out_scale[i] = RowScaleOf(e.out_scale, m, e.m);
    if (sizeof(Out) == 2 && args.residual != nullptr) {
      const int64_t row = args.residual_rows != nullptr ? args.residual_rows[m].x : m;
      inputs.residual[i] =
          *reinterpret_cast<const uint2*>(static_cast<const Out*>(args.residual) + row * e.ldo + my_output);
    }
  }

  tile.Multiply();
  Partial partial{tile.base, kGroups, kTokens * kPitch * 4, rank, split};
  if (split > 1) {
    const int n = threadIdx.x % 16 * 4, each = CeilDiv(kTokens, split);
    partial = Partial{tile.base + args.inbox, split, each * kPitch * 4, rank, split};
    ClusterWait();
#pragma unroll 1
    for (int t = threadIdx.x / 16; t < kTokens; t += kRowStep) {
      StoreRemote4(partial.at + ((rank * each + t % each) * kPitch + n) * 4, t / each, tile.Sum(t, n));
    }
    __syncwarp();  // .aligned wants the warp whole
    ClusterArrive();
    ClusterWait();
  }
  WithAct(e.act, [&](auto act) {
    AddPartials<In, Out, decltype(act)::value, kTokens>(partial, e, token0, output0, bias, w_scale, inputs);
  });
#endif
}

template <typename In, typename Out, int kTokens>
cudaError_t LaunchSplit(const Machine& machine, Element in, int split, const Gemm& g, cudaStream_t stream) {
  constexpr int kSlice = 128 / sizeof(In);
  const int slices = CeilDiv(CeilDiv(g.k, kSlice), split);
  // A CTA's operands, whose place its four partial sums take; then what others send.
  const int partial = kGroups * kTokens * kPitch * 4, operands = slices * (kOutputs + kTokens) * 128;
  const int own = operands > partial ? operands : partial;
  const int inbox = split > 1 ? split * CeilDiv(kTokens, split) * kPitch * 4 : 0;
  const auto kernel = GemmSplitK<In, Out, kTokens>;
  static std::atomic<uint64_t> allowed{0};
  const void* const entry = reinterpret_cast<const void*>(kernel);
  const cudaError_t refused = AllowSpreading(machine, entry, kMostShared, &allowed, kFixedShared);
  if (refused != cudaSuccess) return refused;
  CUtensorMap x_map, w_map;
  cudaError_t error = MakeTensorMap(&w_map, in, g.w, g.n, g.k, g.k, kOutputs);
  if (error == cudaSuccess) error = MakeTensorMap(&x_map, in, g.x, g.m, g.k, g.ldx, kTokens);
  if (error != cudaSuccess) return error;
  LaunchShape shape;
  shape.grid = dim3(split, CeilDiv(g.n, kOutputs), CeilDiv(g.m, kTokens));
  shape.block = dim3(kThreads);
  shape.shared = static_cast<size_t>(own) + inbox + 1024;
  shape.stream = stream;
  shape.cluster = split;
  shape.dependent = machine.dependent_launch;
  const bool fits = slices >= 1 && slices <= kMostSlices && split <= kMostParts && shape.shared <= kMostShared;
  if (!fits) return cudaErrorInvalidValue;
  if (split == 1) shape.shared = SpreadShared(machine, shape.grid, static_cast<int>(shape.shared), kFixedShared);
  const SplitArgs args{g.residual, g.residual_rows, g.prefetch, g.prefetch_bytes, static_cast<uint32_t>(own)};
  return Launch(shape, kernel, x_map, w_map, MakeEpilogueArgs(g), args);
}

template <typename In, typename Out>
cudaError_t RunTokens(const Machine& machine, Element in, int variant, int split, const Gemm& g, cudaStream_t stream) {
  return variant == 0 ? LaunchSplit<In, Out, kSplitTokens[0]>(machine, in, split, g, stream)
                      : LaunchSplit<In, Out, kSplitTokens[1]>(machine, in, split, g, stream);
}

__global__ void ReportCode(int* built) {
  *built = FTBERT_HOPPER;
#if __CUDA_ARCH__ >= 900
  *built |= 2;
#endif
}

}  // namespace

cudaError_t FindCode(bool* hopper, bool* waits) {
  int* place = nullptr;
  int value = 0;
  cudaError_t error = cudaMalloc(reinterpret_cast<void**>(&place), sizeof value);
  if (error != cudaSuccess) return error;
  LaunchShape shape;
  shape.grid = shape.block = dim3(1);
  error = Launch(shape, ReportCode, place);
  if (error == cudaSuccess) error = cudaMemcpy(&value, place, sizeof value, cudaMemcpyDeviceToHost);
  cudaFree(place);
  *hopper = (value & 1) != 0;
  *waits = (value & 2) != 0;
  return error;
}

cudaError_t RunSplit(const Machine& machine, int variant, int split, const Gemm& g, cudaStream_t stream) {
  switch (g.in) {
    case Element::kHalf:
      return RunTokens<Half, Half>(machine, g.in, variant, split, g, stream);
    case Element::kBFloat:
      return RunTokens<BFloat, BFloat>(machine, g.in, variant, split, g, stream);
    case Element::kFloat8:
      return g.out_type == Element::kFloat8 ? RunTokens<Float8, Float8>(machine, g.in, variant, split, g, stream)
                                            : RunTokens<Float8, Half>(machine, g.in, variant, split, g, stream);
    case Element::kFloat:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace cuda
}  // namespace ftbert
