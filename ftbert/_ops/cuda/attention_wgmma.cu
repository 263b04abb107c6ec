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
#include "cuda/softmax.cuh"
#include "cuda/tensor_map.h"

namespace ftbert {
namespace cuda {
namespace {

constexpr int kHead = 64, kBlock = 64, kTile = kBlock * kHead * 2;  // bytes of 64 queries, keys or values

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
  const uint32_t queries = (SharedAddress(DynamicShared()) + 1023u) & ~1023u, stages = queries + kGroups * kTile;
  const uint32_t q_full = queries + L::kBarriers, full = q_full + 8, empty = full + 8 * kStages;
  const int group = SameInWarp(threadIdx.x / 128), warp = SameInWarp(threadIdx.x % 128 / 32), lane = threadIdx.x % 32;
  const bool elected = ElectLane(), leads = group == 0 && warp == 0 && elected;  // one thread of the CTA
  const int block_row = reversed ? gridDim.y - 1 - blockIdx.y : blockIdx.y;
  const int token0 = block_row * L::kQueries, head = blockIdx.x * kHead;
  if (leads) {
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

  if (leads) {
    BarrierExpect(q_full, kGroups * kTile);
    for (int g = 0; g < kGroups; ++g) LoadTile(queries + g * kTile, &map, q_full, head, token0 + g * 64);
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
  if (leads) {
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

  const uint64_t q_tile = TileDescriptor(queries + group * kTile);
  float out[32] = {};
  OnlineSoftmax softmax;
  BarrierWait(q_full, 0);
  for (int block = 0; block < blocks; ++block) {
    const int stage = block % kStages, key0 = begin + block * kBlock;
    // The place that the block before left takes the one after those in flight.
    const auto refill = [&] {
      if (!leads || block == 0 || block - 1 + kStages >= blocks) return;
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
      if (!__all_sync(0xffffffffu, inside)) softmax.Mask(s, range, key0, lane);
      softmax.Weigh(s, out, scale);
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
  softmax.AddLanes();
  NamedBarrierSync(1 + group, 128);  // all four warps have read their queries: results turn around in their place
  const uint32_t mine = queries + group * kTile + warp * (16 * 128);  // this warp's sixteen rows
  const float inverse[2] = {InverseOfSum(softmax.sum[0]), InverseOfSum(softmax.sum[1])};
  const uint32_t put = mine + lane % 16 * 128 + (lane / 16 ^ (lane & 7)) * 16;
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    uint32_t bits[4];  // top and low rows of 8 columns, then of the next 8
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      bits[i] = PackPair<T>(out[4 * j + 2 * i] * inverse[i % 2], out[4 * j + 2 * i + 1] * inverse[i % 2]);
    }
    StoreMatrix4(put ^ (j * 16), bits[0], bits[1], bits[2], bits[3]);
  }
  __syncwarp();
  const int r = lane / 8, row = first + warp * 16 + r;  // and every fourth row on
  const uint32_t from = mine + r * 128 + (lane % 8 ^ r) * 16;
  uint4 pieces[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) pieces[k] = LoadSharedPiece((from ^ (k % 2 * 64)) + k * (4 * 128));
  // Counted in pieces of 16 bytes, places fit into 32 bits.
  uint4* const to = reinterpret_cast<uint4*>(context);
  const uint32_t pitch = static_cast<uint32_t>(ld_context / 8), place = row * pitch + head / 8 + lane % 8;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (row + 4 * k < tokens) to[place + 4 * k * pitch] = pieces[k];
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
