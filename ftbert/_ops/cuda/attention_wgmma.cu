// Attention over packed rows of many tokens on Hopper: heads of 64, fp16 or bf16.
//
// AttendWgmma: a CTA takes kGroups * 64 consecutive tokens of one head, a warpgroup 64 of them, whatever rows they
// belong to. Blocks of 64 keys and values, from the start of the first token's row to the end of the last one's, come
// through the copy engine, kStages of them in flight; each warpgroup skips blocks that none of its tokens needs and
// masks what lies outside a token's own row. Softmax is online, in fp32; scores stay in registers, where they are the
// left operand of the product with the values.
#include "cuda/common.cuh"
#include "cuda/hopper.cuh"
#include "cuda/kernels.h"
#include "cuda/tensor_map.h"

namespace ftbert {
namespace cuda {
namespace {

constexpr float kLog2E = 1.4426950408889634f;
constexpr int kHead = 64, kBlock = 64, kTile = kBlock * kHead * 2;  // bytes of 64 queries, keys or values

#if FTBERT_HOPPER
template <typename T>
__device__ __forceinline__ uint32_t PackWeights(float low, float high);  // in [0, 1]: nothing to saturate
template <>
__device__ __forceinline__ uint32_t PackWeights<Half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ __forceinline__ uint32_t PackWeights<BFloat>(float low, float high) {
  return PackPair<BFloat>(low, high);
}

#endif

template <int kGroups, int kStages>
struct Layout {
  static constexpr int kQueries = kGroups * 64, kThreads = kGroups * 128;
  static constexpr int kStageBytes = 2 * kTile;
  static constexpr int kBarriers = kGroups * kTile + kStages * kStageBytes;
  static constexpr int kShared = kBarriers + 8 * (1 + 2 * kStages) + 1024;  // to align by
};

template <typename T, int kGroups, int kStages, int kCtas>
__global__ void __launch_bounds__(kGroups * 128, kCtas)
    AttendWgmma(const __grid_constant__ CUtensorMap map, int part, const int2* ranges, int tokens,
                bool reversed, float scale, T* __restrict__ context, int64_t ld_context) {
#if FTBERT_HOPPER
  using L = Layout<kGroups, kStages>;
  const uint32_t base = (SharedAddress(DynamicShared()) + 1023u) & ~1023u, stages = base + kGroups * kTile;
  const uint32_t q_full = base + L::kBarriers, full = q_full + 8, empty = full + 8 * kStages;
  const int group = threadIdx.x / 128, warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
  const int block_row = reversed ? gridDim.y - 1 - blockIdx.y : blockIdx.y;
  const int token0 = block_row * L::kQueries, head = blockIdx.x * kHead;
  if (threadIdx.x == 0) {
    PrefetchMap(&map);
    BarrierInit(q_full, 1);
    for (int s = 0; s < kStages; ++s) {
      BarrierInit(full + 8 * s, 1);
      BarrierInit(empty + 8 * s, kGroups * 4);
    }
    BarrierInitFence();
  }
  __syncthreads();
  LetNextKernelStart();
  WaitForPreviousKernel();

  if (threadIdx.x == 0) {
    BarrierExpect(q_full, kGroups * kTile);
    for (int g = 0; g < kGroups; ++g) LoadTile(base + g * kTile, &map, q_full, head, token0 + g * 64);
  }
  const int begin = ranges[token0].x, end = ranges[min(token0 + L::kQueries, tokens) - 1].y;
  const int blocks = CeilDiv(end - begin, kBlock);
  const auto load = [&](int block) {
    const int stage = block % kStages;
    const uint32_t at = stages + stage * L::kStageBytes;
    BarrierExpect(full + 8 * stage, L::kStageBytes);
    LoadTile(at, &map, full + 8 * stage, part + head, begin + block * kBlock);
    LoadTile(at + kTile, &map, full + 8 * stage, 2 * part + head, begin + block * kBlock);
  };
  if (threadIdx.x == 0) {
    for (int block = 0; block < min(blocks, kStages); ++block) load(block);
  }

  // This thread's two queries, and what the warpgroup's sixty-four need together.
  const int first = token0 + group * 64;
  int2 range[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int t = first + warp * 16 + lane / 4 + 8 * h;
    range[h] = t < tokens ? ranges[t] : make_int2(0, 0);
  }
  int group_begin = 0, group_end = 0;
  if (first < tokens) group_begin = ranges[first].x, group_end = ranges[min(first + 63, tokens - 1)].y;

  const uint64_t q_tile = TileDescriptor(base + group * kTile);
  float out[32] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};
  BarrierWait(q_full, 0);
  for (int block = 0; block < blocks; ++block) {
    const int stage = block % kStages, key0 = begin + block * kBlock;
    // The place that the block before left takes the one after those in flight.
    const auto refill = [&] {
      if (threadIdx.x != 0 || block == 0 || block - 1 + kStages >= blocks) return;
      BarrierWait(empty + 8 * ((block - 1) % kStages), (block - 1) / kStages & 1);
      load(block - 1 + kStages);
    };
    BarrierWait(full + 8 * stage, block / kStages & 1);
    if (key0 < group_end && key0 + kBlock > group_begin) {
      const uint64_t k_tile = TileDescriptor(stages + stage * L::kStageBytes);
      const uint64_t v_tile = TileDescriptor(stages + stage * L::kStageBytes + kTile);
      float s[32];
      WgmmaFence();
#pragma unroll
      for (int step = 0; step < 4; ++step) Wgmma<T, 64>::Run(s, q_tile + 2 * step, k_tile + 2 * step, step > 0);
      WgmmaCommit();
      refill();
      __syncwarp();
      WgmmaWait<0>();
      HoldRegisters(s);

      const bool inside = key0 >= range[0].x && key0 >= range[1].x && key0 + kBlock <= min(range[0].y, range[1].y);
      if (!__all_sync(0xffffffffu, inside)) {
#pragma unroll
        for (int i = 0; i < 32; ++i) {
          const int key = key0 + i / 4 * 8 + lane % 4 * 2 + i % 2, h = i / 2 % 2;
          if (key < range[h].x || key >= range[h].y) s[i] = -INFINITY;
        }
      }
      float most[2] = {top[0], top[1]}, below[2], shrink[2];
#pragma unroll
      for (int i = 0; i < 32; ++i) most[i / 2 % 2] = fmaxf(most[i / 2 % 2], s[i]);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        most[h] = fmaxf(most[h], __shfl_xor_sync(0xffffffffu, most[h], 1));
        most[h] = fmaxf(most[h], __shfl_xor_sync(0xffffffffu, most[h], 2));
        below[h] = most[h] == -INFINITY ? 0.f : most[h] * scale;  // nothing of this row yet
        shrink[h] = FastExp2(fmaf(top[h], scale, -below[h]));
        top[h] = most[h];
        sum[h] *= shrink[h];
      }
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        s[i] = FastExp2(fmaf(s[i], scale, -below[i / 2 % 2]));
        sum[i / 2 % 2] += s[i];
        out[i] *= shrink[i / 2 % 2];
      }
      uint32_t p[4][4];
#pragma unroll
      for (int i = 0; i < 16; ++i) p[i / 4][i % 4] = PackWeights<T>(s[2 * i], s[2 * i + 1]);
      HoldRegisters(out);
      WgmmaFence();
#pragma unroll
      for (int step = 0; step < 4; ++step) MultiplyRegisters<T>(out, p[step], v_tile + step * (16 * 128 / 16));
      WgmmaCommit();
      WgmmaWait<0>();
      HoldRegisters(out);
    } else {
      refill();
      __syncwarp();
    }
    if (lane == 0) BarrierArrive(empty + 8 * stage);
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
    sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
  }
  NamedBarrierSync(1 + group, 128);  // all four warps have read their queries: results turn around in their place
  const uint32_t mine = base + group * kTile;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float inverse = sum[h] > 0.f ? 1.f / sum[h] : 0.f;
    const int r = warp * 16 + lane / 4 + 8 * h;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      StoreShared(mine + r * 128 + (j ^ (r & 7)) * 16 + lane % 4 * 4,
                  PackPair<T>(out[4 * j + 2 * h] * inverse, out[4 * j + 2 * h + 1] * inverse));
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = lane; i < 16 * 8; i += 32) {
    const int r = warp * 16 + i / 8, piece = i % 8;
    if (first + r >= tokens) continue;
    const uint4 v = LoadSharedPiece(mine + r * 128 + (piece ^ (r & 7)) * 16);
    *reinterpret_cast<uint4*>(context + (first + r) * ld_context + head + piece * 8) = v;
  }
#endif
}

template <typename T, int kGroups, int kStages, int kCtas>
cudaError_t LaunchWgmma(const Machine& machine, Element element, const Attention& a, cudaStream_t stream) {
  using L = Layout<kGroups, kStages>;
  const auto kernel = AttendWgmma<T, kGroups, kStages, kCtas>;
  static std::atomic<uint64_t> allowed{0};
  const cudaError_t refused = AllowShared(machine, reinterpret_cast<const void*>(kernel), L::kShared, &allowed);
  if (refused != cudaSuccess) return refused;
  CUtensorMap map;
  const cudaError_t error = MakeTensorMap(&map, element, a.qkv, a.count, 2 * a.part + a.heads * kHead, a.ld, kBlock);
  if (error != cudaSuccess) return error;
  LaunchShape shape;
  shape.grid = dim3(a.heads, CeilDiv(a.count, L::kQueries));
  shape.block = dim3(L::kThreads);
  shape.shared = L::kShared;
  shape.stream = stream;
  shape.dependent = machine.dependent_launch;
  const float scale = kLog2E / sqrtf(static_cast<float>(a.head_size));
  return Launch(shape, kernel, map, a.part, a.ranges, a.count, a.reversed, scale, static_cast<T*>(a.context),
                a.ld_context);
}

template <typename T>
cudaError_t RunTyped(const Machine& machine, Element element, const Attention& a, AttentionKernel kernel,
                     cudaStream_t stream) {
  return kernel == AttentionKernel::kWgmma64 ? LaunchWgmma<T, 1, 2, 4>(machine, element, a, stream)
                                             : LaunchWgmma<T, 2, 4, 2>(machine, element, a, stream);
}

}  // namespace

bool WgmmaAttentionFits(const Machine& machine, Element element, const Attention& a) {
  return machine.hopper && a.first_queries == nullptr && a.head_size == kHead && a.count <= 65535 * 64 &&
         (element == Element::kHalf || element == Element::kBFloat);
}

cudaError_t RunWgmmaAttention(const Machine& machine, Element element, const Attention& a, AttentionKernel kernel,
                              cudaStream_t stream) {
  return element == Element::kHalf ? RunTyped<Half>(machine, element, a, kernel, stream)
                                   : RunTyped<BFloat>(machine, element, a, kernel, stream);
}

}  // namespace cuda
}  // namespace ftbert
