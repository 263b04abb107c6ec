// Attention over packed rows of many tokens on Hopper: heads of 64, fp16 or bf16.
//
// AttendWgmma: a CTA, one warpgroup, takes 64 consecutive tokens of one head, whatever rows they belong to. Blocks of
// 64 keys and values, from the start of the first token's row to the end of the last one's, come through the copy
// engine, kStages of them in flight; what lies outside a token's own row is masked. Softmax is online, in fp32; scores
// stay in registers, where they are the left operand of the product with the values. Products, softmax and copies of
// one CTA wait for one another: five CTAs to a multiprocessor, of at most 96 registers a thread, hide it.
#include "cuda/common.cuh"
#include "cuda/hopper.cuh"
#include "cuda/kernels.h"
#include "cuda/softmax.cuh"
#include "cuda/tensor_map.h"

namespace ftbert {
namespace cuda {
namespace {

constexpr int kHead = 64, kBlock = 64, kTile = kBlock * kHead * 2;  // bytes of 64 queries, keys or values

constexpr int kStages = 2, kStageBytes = 2 * kTile, kBarriers = kTile + kStages * kStageBytes;
constexpr int kShared = kBarriers + 8 * (1 + 2 * kStages) + 1024;  // to align by
constexpr int kThreads = 128, kCtas = 5;                           // the latter of a multiprocessor

template <typename T, bool kFloat8>
__global__ void __launch_bounds__(kThreads, kCtas)
    AttendWgmma(const __grid_constant__ CUtensorMap map, int part, const int2* ranges, int tokens,
                bool reversed, float scale, void* __restrict__ context, int64_t ld_context) {
#if FTBERT_HOPPER
  const uint32_t queries = (SharedAddress(DynamicShared()) + 1023u) & ~1023u, stages = queries + kTile;
  const uint32_t q_full = queries + kBarriers, full = q_full + 8, empty = full + 8 * kStages;
  const int warp = SameInWarp(threadIdx.x / 32), lane = threadIdx.x % 32;
  const bool elected = ElectLane(), leads = warp == 0 && elected;  // one thread of the CTA
  const int block_row = reversed ? gridDim.y - 1 - blockIdx.y : blockIdx.y;
  const int token0 = block_row * kBlock, head = blockIdx.x * kHead;
  if (leads) {
    PrefetchMap(&map);
    BarrierInit(q_full, 1);
    for (int s = 0; s < kStages; ++s) {
      BarrierInit(full + 8 * s, 1);
      BarrierInit(empty + 8 * s, kThreads / 32);
    }
    BarrierInitFence();
  }
  __syncthreads();
  LetNextKernelStart();
  WaitForPreviousKernel();

  if (leads) {
    BarrierExpect(q_full, kTile);
    LoadTile(queries, &map, q_full, head, token0);
  }
  // The same in every lane, which the compiler cannot know: what follows from it is computed once for the warp.
  const int begin = SameInWarp(ranges[token0].x), end = ranges[min(token0 + kBlock, tokens) - 1].y;
  const int blocks = SameInWarp(CeilDiv(end - begin, kBlock));
  const auto load = [&](int block) {
    const int stage = block % kStages;
    const uint32_t at = stages + stage * kStageBytes;
    BarrierExpect(full + 8 * stage, kStageBytes);
    LoadTile(at, &map, full + 8 * stage, part + head, begin + block * kBlock);
    LoadTile(at + kTile, &map, full + 8 * stage, 2 * part + head, begin + block * kBlock);
  };
  if (leads) {
    for (int block = 0; block < min(blocks, kStages); ++block) load(block);
  }

  int2 range[2];  // of this thread's two queries
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int t = token0 + warp * 16 + lane / 4 + 8 * h;
    range[h] = t < tokens ? ranges[t] : make_int2(0, 0);
  }

  const uint64_t q_tile = TileDescriptor(queries);
  float out[32] = {};
  OnlineSoftmax softmax;
  BarrierWait(q_full, 0);
  for (int block = 0; block < blocks; ++block) {
    const int stage = block % kStages, key0 = begin + block * kBlock;
    BarrierWait(full + 8 * stage, block / kStages & 1);
    const uint64_t k_tile = TileDescriptor(stages + stage * kStageBytes);
    const uint64_t v_tile = TileDescriptor(stages + stage * kStageBytes + kTile);
    float s[32];
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < 4; ++step) Wgmma<T, 64>::Run(s, q_tile + 2 * step, k_tile + 2 * step, step > 0);
    WgmmaCommit();
    if (leads && block > 0 && block - 1 + kStages < blocks) {  // into the place that the block before has left
      BarrierWait(empty + 8 * ((block - 1) % kStages), (block - 1) / kStages & 1);
      load(block - 1 + kStages);
    }
    __syncwarp();
    WgmmaWait<0>();
    HoldRegisters(s);

    const bool inside = key0 >= range[0].x && key0 >= range[1].x && key0 + kBlock <= min(range[0].y, range[1].y);
    if (!__all_sync(0xffffffffu, inside)) MaskKeys(s, range, key0, lane);
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
    if (lane == 0) BarrierArrive(empty + 8 * stage);
  }
  AddQuads(softmax.sum);
  __syncthreads();  // all four warps have read their queries: results turn around in their place
  const uint32_t mine = queries + warp * (16 * 128);  // this warp's sixteen rows
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
  const int r = lane / 8, row = token0 + warp * 16 + r;  // and every fourth row on
  const uint32_t from = mine + r * 128 + (lane % 8 ^ r) * 16;
  uint4 pieces[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) pieces[k] = LoadSharedPiece((from ^ (k % 2 * 64)) + k * (4 * 128));
  // Counted in pieces of eight columns, places fit into 32 bits.
  const uint32_t pitch = static_cast<uint32_t>(ld_context / 8), place = row * pitch + head / 8 + lane % 8;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (row + 4 * k < tokens) StoreEight<T, kFloat8>(context, int64_t{place + 4 * k * pitch} * 8, pieces[k]);
  }
#endif
}

template <typename T, bool kFloat8>
cudaError_t LaunchWgmma(const Machine& machine, Element element, const Attention& a, cudaStream_t stream) {
  const auto kernel = AttendWgmma<T, kFloat8>;
  static std::atomic<uint64_t> allowed{0};
  const cudaError_t refused = AllowSpreading(machine, reinterpret_cast<const void*>(kernel), kShared, &allowed);
  if (refused != cudaSuccess) return refused;
  CUtensorMap map;
  const cudaError_t error = MakeTensorMap(&map, element, a.qkv, a.count, 2 * a.part + a.heads * kHead, a.ld, kBlock);
  if (error != cudaSuccess) return error;
  LaunchShape shape;
  shape.grid = dim3(a.heads, CeilDiv(a.count, kBlock));
  shape.block = dim3(kThreads);
  shape.shared = SpreadShared(machine, shape.grid, kShared);
  shape.stream = stream;
  shape.dependent = machine.dependent_launch;
  const float scale = kLog2E / sqrtf(static_cast<float>(a.head_size));
  return Launch(shape, kernel, map, a.part, a.ranges, a.count, a.reversed, scale, a.context, a.ld_context);
}

}  // namespace

bool WgmmaAttentionFits(const Machine& machine, Element element, const Attention& a) {
  return machine.hopper && a.first_queries == nullptr && a.head_size == kHead && a.count <= 65535 * 64 &&
         a.count * (a.ld_context / 8) < (int64_t{1} << 32) &&
         (element == Element::kHalf || element == Element::kBFloat);
}

cudaError_t RunWgmmaAttention(const Machine& machine, Element element, const Attention& a, cudaStream_t stream) {
  if (a.float8_context) return LaunchWgmma<Half, true>(machine, element, a, stream);
  return element == Element::kHalf ? LaunchWgmma<Half, false>(machine, element, a, stream)
                                   : LaunchWgmma<BFloat, false>(machine, element, a, stream);
}

}  // namespace cuda
}  // namespace ftbert
