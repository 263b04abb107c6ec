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
// d (64, 64) += a (64, 16) in registers times b (16, 64) in shared memory: 16 rows of 128 bytes, 128-byte swizzle.
template <typename T>
__device__ __forceinline__ void MultiplyRegisters(float (&d)[32], const uint32_t (&a)[4], uint64_t b);

#define FTBERT_MULTIPLY_REGISTERS(TYPE, NAME)                                                                         \
  template <>                                                                                                         \
  __device__ __forceinline__ void MultiplyRegisters<TYPE>(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {       \
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." NAME "." NAME                                         \
                 " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                           \
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                  \
                 "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;"                                                             \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),    \
                   "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),           \
                   "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),         \
                   "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),         \
                   "+f"(d[29]), "+f"(d[30]), "+f"(d[31])                                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                               \
  }
FTBERT_MULTIPLY_REGISTERS(Half, "f16")
FTBERT_MULTIPLY_REGISTERS(BFloat, "bf16")
#undef FTBERT_MULTIPLY_REGISTERS

// Between a product's end and the first use of what it computed: the compiler must not move that use up.
__device__ __forceinline__ void HoldRegisters(float (&values)[32]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

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
    AttendWgmma(const __grid_constant__ CUtensorMap map, int part, const int2* __restrict__ ranges, int tokens,
                float scale, T* __restrict__ context, int64_t ld_context) {
#if FTBERT_HOPPER
  using L = Layout<kGroups, kStages>;
  extern __shared__ uint8_t raw[];
  const uint32_t base = (SharedAddress(raw) + 1023u) & ~1023u, stages = base + kGroups * kTile;
  const uint32_t q_full = base + L::kBarriers, full = q_full + 8, empty = full + 8 * kStages;
  const int group = threadIdx.x / 128, warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
  const int token0 = blockIdx.y * L::kQueries, head = blockIdx.x * kHead;
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
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(mine + r * 128 + (j ^ (r & 7)) * 16 + lane % 4 * 4),
                   "r"(PackPair<T>(out[4 * j + 2 * h] * inverse, out[4 * j + 2 * h + 1] * inverse))
                   : "memory");
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = lane; i < 16 * 8; i += 32) {
    const int r = warp * 16 + i / 8, piece = i % 8;
    if (first + r >= tokens) continue;
    uint4 v;
    asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(mine + r * 128 + (piece ^ (r & 7)) * 16)
                 : "memory");
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
  return Launch(shape, kernel, map, a.part, a.ranges, a.count, kLog2E / sqrtf(static_cast<float>(a.head_size)),
                static_cast<T*>(a.context), a.ld_context);
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
