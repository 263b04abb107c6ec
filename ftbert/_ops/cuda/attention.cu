// Attention over packed rows: context = softmax(q k^T / sqrt(D)) v within each row, for every head.
//
// AttendTiles: fp16 or bf16 on the matrix units, D of at most 128 (multiples of 8; computed at the next of 32, 64,
// 128). A CTA takes kQueryWarps * 16 consecutive tokens of one head, whatever rows they belong to: short rows share a
// tile. Keys come in blocks from the start of the first token's row to the end of the last one's; each token masks what
// lies outside its own row, and a warp skips keys that none of its tokens needs. Softmax is online, in fp32; no score
// leaves the registers. kKeyWarps > 1, for few tokens: that many warps share the keys of each block and put their sums
// together at the end.
//
// AttendWarps: one warp a query, any type, any D up to 128: fp32 and odd head sizes.
#include "cuda/common.cuh"
#include "cuda/kernels.h"
#include "cuda/softmax.cuh"

namespace ftbert {
namespace cuda {
namespace {

constexpr int kWgmmaTokens = 1024;  // from here on, where it fits

// Byte offset of a 16-byte piece of a row of kBytes, permuted so that eight consecutive rows meet no bank twice.
template <int kBytes>
__device__ __forceinline__ uint32_t PieceOffset(int row, int piece) {
  if (kBytes == 64) return row * 64 + ((piece ^ (row >> 1 & 3)) * 16);
  return row * kBytes + ((piece ^ (row & 7)) * 16);
}

// Four of a thread's sums or scores, which one instruction makes.
__device__ __forceinline__ float (&Four(float* values))[4] { return *reinterpret_cast<float(*)[4]>(values); }

template <typename T, int D, int kQueryWarps, int kKeyWarps, bool kFloat8>
__global__ void __launch_bounds__(kQueryWarps* kKeyWarps * 32, D <= 64 ? 4 : 1)
    AttendTiles(const T* qkv, int64_t ld, int part, int head_size, const int2* ranges,
                int tokens, float scale, void* __restrict__ context, int64_t ld_context) {
  constexpr int kQueries = kQueryWarps * 16, kThreads = kQueryWarps * kKeyWarps * 32;
  constexpr int kMine = kKeyWarps == 1 ? 64 : 32, kKeys = kMine * kKeyWarps;  // keys of a block: a warp's, all
  constexpr int kBytes = D * 2, kPieces = kBytes / 16;
  constexpr int kStep = kThreads / kPieces;  // rows that the CTA copies at a time
  static_assert(kKeys % kStep == 0, "whole steps");
  const uint32_t q_tile = SharedAddress(DynamicShared()), k_tiles = q_tile + kQueries * kBytes;
  const uint32_t v_tiles = k_tiles + 2 * kKeys * kBytes;
  const int lane = threadIdx.x % 32, in_cta = SameInWarp(threadIdx.x / 32);
  const int warp = in_cta % kQueryWarps, key_warp = in_cta / kQueryWarps;
  const int token0 = blockIdx.x * kQueries, head = blockIdx.y * head_size;
  // The rows of which a thread copies eight columns, and stores them in the end, are copy_row and every kStep-th on.
  const int copy_row = threadIdx.x / kPieces, copy_piece = threadIdx.x % kPieces, column = head + copy_piece * 8;
  const bool copies = copy_piece * 8 < head_size;
  const auto store = [&](int r, const uint4& bits) {  // eight columns of the context
    StoreEight<T, kFloat8>(context, (token0 + r) * ld_context + column, bits);
  };
  LetNextKernelStart();
  WaitForPreviousKernel();

  const int begin = ranges[token0].x, end = ranges[min(token0 + kQueries, tokens) - 1].y;
  // This thread's two queries, and what the warp's sixteen need together.
  int2 range[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int t = token0 + warp * 16 + lane / 4 + 8 * h;
    range[h] = t < tokens ? ranges[t] : make_int2(0, 0);
  }
  const int warp_begin = ranges[min(token0 + warp * 16, tokens - 1)].x;
  const int warp_end = ranges[min(token0 + warp * 16 + 15, tokens - 1)].y;

  const T* from = qkv + (token0 + copy_row) * ld + column;
#pragma unroll 1
  for (int r = copy_row; r < kQueries; r += kStep) {
    CopyAsync16(q_tile + PieceOffset<kBytes>(r, copy_piece), from, copies && token0 + r < tokens);
    from += kStep * ld;
  }
  // Keys and values, block after block.
  from = qkv + (begin + copy_row) * ld + part + column;
  const auto load = [&](int block) {
    const int key0 = begin + block * kKeys;
    const uint32_t to = k_tiles + (block & 1) * kKeys * kBytes;
#pragma unroll 1
    for (int r = copy_row; r < kKeys; r += kStep) {
      const uint32_t at = to + PieceOffset<kBytes>(r, copy_piece);
      const bool valid = copies && key0 + r < end;
      CopyAsync16(at, from, valid);
      CopyAsync16(at + 2 * kKeys * kBytes, from + part, valid);
      from += kStep * ld;
    }
  };

  // Where a lane reads of 16 rows of a tile for LoadMatrix4; `step`: how often 16 columns on. Keys come in an order in
  // which one product takes registers side by side.
  const auto place = [&](int step) { return PieceOffset<kBytes>(lane % 16, lane / 16) ^ (step * 32); };
  const auto key_place = [&](int step) {
    return PieceOffset<kBytes>(lane % 8 + lane / 16 * 8, lane / 8 % 2) ^ (step * 32);
  };
  const int blocks = CeilDiv(end - begin, kKeys);
  uint32_t q[D / 16][4];
  float out[D / 2] = {};
  OnlineSoftmax softmax;
#pragma unroll 1
  for (int block = -1; block < blocks; ++block) {  // -1: just loads the first
    if (block + 1 < blocks) load(block + 1);
    CommitCopies();
    if (block < 0) continue;
    WaitCopies<1>();
    __syncthreads();
    if (block == 0) {
#pragma unroll
      for (int i = 0; i < D / 16; ++i) LoadMatrix4(q[i], q_tile + warp * 16 * kBytes + place(i));
    }
    const int key0 = begin + block * kKeys + key_warp * kMine;
    if (key0 < warp_end && key0 + kMine > warp_begin) {
      const uint32_t tile = ((block & 1) * kKeys + key_warp * kMine) * kBytes;
      const uint32_t k_tile = k_tiles + tile, v_tile = v_tiles + tile;
      float s[kMine / 2] = {};
#pragma unroll
      for (int i = 0; i < D / 16; ++i) {
#pragma unroll
        for (int j = 0; j < kMine / 16; ++j) {
          uint32_t k[4];
          LoadMatrix4(k, k_tile + j * 16 * kBytes + key_place(i));
          MultiplyAdd<T>(Four(s + 8 * j), q[i], k[0], k[1]);
          MultiplyAdd<T>(Four(s + 8 * j + 4), q[i], k[2], k[3]);
        }
      }
      const bool inside = key0 >= range[0].x && key0 >= range[1].x && key0 + kMine <= min(range[0].y, range[1].y);
      if (!__all_sync(0xffffffffu, inside)) MaskKeys(s, range, key0, lane);
      softmax.Weigh(s, out, scale);
#pragma unroll
      for (int j = 0; j < kMine / 16; ++j) {
        uint32_t p[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) p[i] = PackWeights<T>(s[8 * j + 2 * i], s[8 * j + 2 * i + 1]);
#pragma unroll
        for (int i = 0; i < D / 16; ++i) {
          uint32_t v[4];
          LoadMatrix4Transposed(v, v_tile + j * 16 * kBytes + place(i));
          MultiplyAdd<T>(Four(out + 8 * i), p, v[0], v[1]);
          MultiplyAdd<T>(Four(out + 8 * i + 4), p, v[2], v[3]);
        }
      }
    }
    __syncthreads();  // the next block's copies overwrite this one's place
  }
  AddQuads(softmax.sum);
  WaitCopies<0>();
  __syncthreads();

  if constexpr (kKeyWarps > 1) {
    // Each warp leaves its sums in place of the keys; every thread then puts together pieces of 8 columns.
    constexpr int kRow = D + 4;  // floats: D sums, their weights' base, the sum of weights
    float* const parts = reinterpret_cast<float*>(DynamicShared()) + kQueries * kBytes / 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float* const row = parts + (key_warp * kQueries + warp * 16 + lane / 4 + 8 * h) * kRow;
#pragma unroll
      for (int j = 0; j < D / 8; ++j) {
        const float* const two = out + 4 * j + 2 * h;
        *reinterpret_cast<float2*>(row + j * 8 + lane % 4 * 2) = make_float2(two[0], two[1]);
      }
      if (lane % 4 == 0) *reinterpret_cast<float2*>(row + D) = make_float2(softmax.base[h], softmax.sum[h]);
    }
    __syncthreads();
#pragma unroll 1
    for (int r = copy_row; r < kQueries && token0 + r < tokens && copies; r += kStep) {
      const float* const row = parts + r * kRow;
      float2 total[kKeyWarps];
      float base = kNoScore, sum = 0.f, all[8] = {};
#pragma unroll
      for (int w = 0; w < kKeyWarps; ++w) {
        total[w] = *reinterpret_cast<const float2*>(row + w * kQueries * kRow + D);
        base = fmaxf(base, total[w].x);
      }
#pragma unroll
      for (int w = 0; w < kKeyWarps; ++w) {
        const float weight = FastExp2(total[w].x - base);
        sum = fmaf(weight, total[w].y, sum);
        float values[8];
        Load8(row + w * kQueries * kRow + copy_piece * 8, values);
#pragma unroll
        for (int c = 0; c < 8; ++c) all[c] = fmaf(weight, values[c], all[c]);
      }
      const float inverse = InverseOfSum(sum);
#pragma unroll
      for (int c = 0; c < 8; ++c) all[c] *= inverse;
      store(r, make_uint4(PackPair<T>(all[0], all[1]), PackPair<T>(all[2], all[3]), PackPair<T>(all[4], all[5]),
                          PackPair<T>(all[6], all[7])));
    }
  } else {
    // The queries have been read: results turn around in their place.
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float inverse = InverseOfSum(softmax.sum[h]);
#pragma unroll
      for (int j = 0; j < D / 8; ++j) {
        const uint32_t address = q_tile + PieceOffset<kBytes>(warp * 16 + lane / 4 + 8 * h, j) + lane % 4 * 4;
        StoreShared(address, PackPair<T>(out[4 * j + 2 * h] * inverse, out[4 * j + 2 * h + 1] * inverse));
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int r = copy_row; r < kQueries && token0 + r < tokens && copies; r += kStep) {
      store(r, LoadSharedPiece(q_tile + PieceOffset<kBytes>(r, copy_piece)));
    }
  }
}

// queries: (count, ld_queries), the part of queries alone, or at_range: one at ranges[i].x. Query i sees keys
// [ranges[i].x, ranges[i].y).
template <typename T>
__global__ void __launch_bounds__(128)
    AttendWarps(const T* queries, int64_t ld_queries, bool at_range, const T* keys,
                int64_t ld, int part, int head_size, const int2* ranges, int count, float scale,
                T* __restrict__ context, int64_t ld_context) {
  constexpr int kMost = 128;
  __shared__ __align__(16) float q[4][kMost];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int query = blockIdx.x * 4 + warp, head = blockIdx.y * head_size;
  LetNextKernelStart();
  WaitForPreviousKernel();
  if (query >= count) return;
  const int2 range = ranges[query];
  if (range.y > range.x) {
    const T* own = queries + (at_range ? range.x : query) * ld_queries + head;
    for (int d = lane; d < head_size; d += 32) q[warp][d] = ToFloat(own[d]);
  }
  __syncwarp();
  const bool whole = head_size % 8 == 0;
  float out[kMost / 32] = {}, top = -INFINITY, sum = 0.f;
  for (int key0 = range.x; key0 < range.y; key0 += 32) {
    float s = -INFINITY;
    if (key0 + lane < range.y) {
      const T* k = keys + (key0 + lane) * ld + head;
      s = 0.f;
      if (whole) {
        for (int d = 0; d < head_size; d += 8) {
          float values[8];
          Load8(k + d, values);
#pragma unroll
          for (int i = 0; i < 8; ++i) s = fmaf(values[i], q[warp][d + i], s);
        }
      } else {
        for (int d = 0; d < head_size; ++d) s = fmaf(ToFloat(k[d]), q[warp][d], s);
      }
    }
    const float most = fmaxf(top, WarpMax(s));
    const float shrink = FastExp2((top - most) * scale), p = FastExp2((s - most) * scale);
    top = most;
    sum = sum * shrink + WarpSum(p);
#pragma unroll
    for (int i = 0; i < kMost / 32; ++i) out[i] *= shrink;
    const int here = min(32, range.y - key0);
    const T* v = keys + key0 * ld + part + head;
#pragma unroll 4
    for (int j = 0; j < here; ++j) {
      const float weight = __shfl_sync(0xffffffffu, p, j);
#pragma unroll
      for (int i = 0; i < kMost / 32; ++i) {
        const int d = i * 32 + lane;
        if (d < head_size) out[i] = fmaf(weight, ToFloat(v[j * ld + d]), out[i]);
      }
    }
  }
  const float inverse = sum > 0.f ? 1.f / sum : 0.f;
#pragma unroll
  for (int i = 0; i < kMost / 32; ++i) {
    const int d = i * 32 + lane;
    if (d < head_size) context[query * ld_context + head + d] = FromFloat<T>(out[i] * inverse);
  }
}

template <typename T, int D, int kQueryWarps, int kKeyWarps, bool kFloat8>
cudaError_t LaunchTiles(const Machine& machine, const Attention& a, cudaStream_t stream) {
  constexpr int kQueries = kQueryWarps * 16, kKeys = kKeyWarps == 1 ? 64 : 32 * kKeyWarps;
  constexpr int kShared = (kQueries + 4 * kKeys) * D * 2;
  static_assert(kKeyWarps == 1 || kKeyWarps * kQueries * (D + 4) * 4 <= 4 * kKeys * D * 2, "partial sums do not fit");
  const auto kernel = AttendTiles<T, D, kQueryWarps, kKeyWarps, kFloat8>;
  static std::atomic<uint64_t> allowed{0};
  const cudaError_t refused = AllowSpreading(machine, reinterpret_cast<const void*>(kernel), kShared, &allowed);
  if (refused != cudaSuccess) return refused;
  LaunchShape shape;
  shape.grid = dim3(CeilDiv(a.count, kQueries), a.heads);
  shape.block = dim3(kQueryWarps * kKeyWarps * 32);
  shape.shared = SpreadShared(machine, shape.grid, kShared);
  shape.stream = stream;
  shape.dependent = machine.dependent_launch;
  const float scale = kLog2E / sqrtf(static_cast<float>(a.head_size));
  return Launch(shape, kernel, static_cast<const T*>(a.qkv), a.ld, a.part, a.head_size, a.ranges, a.count, scale,
                a.context, a.ld_context);
}

template <typename T, int D, bool kFloat8>
cudaError_t LaunchTilesBySize(const Machine& machine, const Attention& a, cudaStream_t stream) {
  constexpr int kKeyWarps = D == 128 ? 2 : 4;  // what fits into an Ada or Ampere multiprocessor's shared memory
  // Few tokens: small tiles whose keys are shared, so that every multiprocessor takes part and none waits long.
  const int warps = CeilDiv(a.count, 16) * a.heads;
  if (warps <= machine.sms * 2) return LaunchTiles<T, D, 1, kKeyWarps, kFloat8>(machine, a, stream);
  return warps <= machine.sms * 12 ? LaunchTiles<T, D, 2, 2, kFloat8>(machine, a, stream)
                                   : LaunchTiles<T, D, 4, 1, kFloat8>(machine, a, stream);
}

template <typename T>
cudaError_t LaunchWarps(const Machine& machine, const Attention& a, cudaStream_t stream) {
  LaunchShape shape;
  shape.grid = dim3(CeilDiv(a.count, 4), a.heads);
  shape.block = dim3(128);
  shape.stream = stream;
  shape.dependent = machine.dependent_launch;
  const T* qkv = static_cast<const T*>(a.qkv);
  const bool own = a.first_queries != nullptr;
  return Launch(shape, AttendWarps<T>, own ? static_cast<const T*>(a.first_queries) : qkv,
                !own ? a.ld : (a.ld_first > 0 ? a.ld_first : a.ld_context), own && a.first_at_range, qkv + a.part, a.ld,
                a.part, a.head_size, a.ranges, a.count,
                kLog2E / sqrtf(static_cast<float>(a.head_size)), static_cast<T*>(a.context), a.ld_context);
}

template <typename T, bool kFloat8 = false>
cudaError_t RunHalfAttention(const Machine& machine, const Attention& a, cudaStream_t stream) {
  if (a.first_queries != nullptr || a.head_size % 8 != 0) return LaunchWarps<T>(machine, a, stream);
  if (a.head_size <= 32) return LaunchTilesBySize<T, 32, kFloat8>(machine, a, stream);
  if (a.head_size <= 64) return LaunchTilesBySize<T, 64, kFloat8>(machine, a, stream);
  return LaunchTilesBySize<T, 128, kFloat8>(machine, a, stream);
}

}  // namespace

cudaError_t RunAttention(const Machine& machine, Element element, const Attention& a, cudaStream_t stream) {
  if (a.float8_context &&
      (element != Element::kHalf || a.first_queries != nullptr || !Float8ContextFits(a.head_size))) {
    return cudaErrorNotSupported;
  }
  if (FirstAttentionFits(a)) return RunFirstAttention(machine, element, a, stream);
  if (WgmmaAttentionFits(machine, element, a)) {
    const bool many = a.kernel == AttentionKernel::kChosen && a.count >= kWgmmaTokens;
    if (many || a.kernel == AttentionKernel::kWgmma) return RunWgmmaAttention(machine, element, a, stream);
  }
  if (element == Element::kFloat) return LaunchWarps<float>(machine, a, stream);
  if (a.float8_context) return RunHalfAttention<Half, true>(machine, a, stream);
  return element == Element::kHalf ? RunHalfAttention<Half>(machine, a, stream)
                                   : RunHalfAttention<BFloat>(machine, a, stream);
}

}  // namespace cuda
}  // namespace ftbert
