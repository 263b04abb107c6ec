// What attend_rows.cu does with a tile's sums: its parameters in shared memory, queries, keys and values of the sums,
// attention, and the store.
#ifndef FTBERT_CUDA_ATTEND_ROWS_CUH_
#define FTBERT_CUDA_ATTEND_ROWS_CUH_

#include "cuda/epilogue.cuh"
#include "cuda/hopper.cuh"
#include "cuda/kernels.h"
#include "cuda/softmax.cuh"

namespace ftbert {
namespace cuda {
namespace attend_rows {

constexpr int kHead = 64, kColumns = 3 * kHead, kRows = kRowsTile;
constexpr int kRowBytes = 128;  // of an operand tile's row
constexpr int kStageBytes = (kRows + kColumns) * kRowBytes;
constexpr int kTokensBytes = kRows * kRowBytes;  // keys or values of a tile
constexpr int kStages = 4;
constexpr int kSlots = 2;  // tiles whose parameters are there at a time

template <typename In>
struct Sizes {
  static constexpr bool kScaled = sizeof(In) == 1;
  // A slot: bias, with w_scale between in pairs where there is one; rows' x_scale; rows' keys, begin + 2^16 end from
  // the tile's first token on; the tile's first token and how many are its own.
  static constexpr int kScales = (kScaled ? 2 : 1) * kColumns * 4, kRanges = kScales + (kScaled ? kRows * 4 : 0);
  static constexpr int kTile = kRanges + kRows * 4, kSlotBytes = kTile + 16;
  static constexpr int kBarriers = 8 * (2 * kStages + 2 * kSlots);
  static constexpr int kShared = kStages * kStageBytes + 2 * kTokensBytes + kSlots * kSlotBytes + kBarriers + 1024;
  static_assert(kShared <= 227 * 1024, "what a CTA may have");
};

// What the kernel needs of a RowsAttention, by value.
struct Arguments {
  const float* bias;
  const float* w_scale;
  RowScale x_scale;
  const int2 *ranges, *tiles;
  int slots, sure, heads, part, count, k;
  bool reversed;
  float scale;
  void* context;
  int64_t ld_context;
};

// Fills a slot of parameters: the lanes of one warp. Columns' parameters are constants.
template <typename Sizes>
__device__ __forceinline__ void BringColumns(uint32_t slot, const Arguments& a, int head, int lane) {
  constexpr int kEach = kColumns / 32;
  float bias[kEach], w_scale[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int column = i / 2 * a.part + head * kHead + i % 2 * 32 + lane;
    bias[i] = __ldg(a.bias + column);
    if (Sizes::kScaled) w_scale[i] = __ldg(a.w_scale + column);
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int n = i * 32 + lane;
    StoreShared(slot + (Sizes::kScaled ? n / 2 * 4 + n % 2 : n) * 4, bias[i]);
    if (Sizes::kScaled) StoreShared(slot + (n / 2 * 4 + n % 2 + 2) * 4, w_scale[i]);
  }
}
template <typename Sizes>
__device__ __forceinline__ void BringRows(uint32_t slot, const Arguments& a, const int2& tile, int lane) {
  constexpr int kEach = kRows / 32;
  const int rows = tile.y - tile.x;
  uint32_t range[kEach];
  float x_scale[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int row = i * 32 + lane;
    const int2 keys = row < rows ? a.ranges[tile.x + row] : make_int2(tile.x, tile.x);
    range[i] = static_cast<uint32_t>(keys.x - tile.x) | static_cast<uint32_t>(keys.y - tile.x) << 16;
    if (Sizes::kScaled) x_scale[i] = RowScaleOf(a.x_scale, tile.x + row, a.count);
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int row = i * 32 + lane;
    StoreShared(slot + Sizes::kRanges + row * 4, range[i]);
    if (Sizes::kScaled) StoreShared(slot + Sizes::kScales + row * 4, x_scale[i]);
  }
  if (lane == 0) {
    StoreShared(slot + Sizes::kTile, static_cast<uint32_t>(tile.x));
    StoreShared(slot + Sizes::kTile + 4, static_cast<uint32_t>(rows));
  }
}

#if FTBERT_HOPPER
__device__ __forceinline__ uint32_t LoadWord(uint32_t address) {
  const float bits = LoadShared1(address);
  return *reinterpret_cast<const uint32_t*>(&bits);
}

// Where this lane puts its part of a matrix store, 8 columns twice, in a warp's 16 `rows` of shared memory; columns
// from 8 j on are 16 j bytes away by exclusive or.
__device__ __forceinline__ uint32_t PutPlace(uint32_t rows, int lane) {
  return rows + lane % 16 * kRowBytes + (lane / 16 ^ (lane & 7)) * 16;
}

// A warp's sums of 16 rows: queries to registers, keys and values to shared memory.
template <typename Sizes, typename T>
__device__ __forceinline__ void FinishSums(const float (&acc)[kColumns / 2], uint32_t slot, int row, int rows,
                                           uint32_t keys, int lane, uint32_t (&queries)[4][4]) {
  constexpr int kPairs = kHead / 16;  // of pieces of 8 columns: of the queries, then of keys, then of values
  float x_scale[2] = {1.f, 1.f};
  if (Sizes::kScaled) {
#pragma unroll
    for (int h = 0; h < 2; ++h) x_scale[h] = LoadShared1(slot + Sizes::kScales + (row + lane / 4 + 8 * h) * 4);
  }
  // What lies behind the tile's tokens may be no numbers; weights of 0 would not silence those.
  const bool real[2] = {row + lane / 4 < rows, row + lane / 4 + 8 < rows};
  const uint32_t columns = slot + lane % 4 * (Sizes::kScaled ? 16 : 8), put = PutPlace(keys, lane);
#pragma unroll
  for (int pair = 0; pair < 3 * kPairs; ++pair) {
    uint32_t bits[4];  // top and low rows of one piece, then of the other
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int j = 2 * pair + i / 2, h = i % 2;
      float bias[2], w_scale[2];
      if (Sizes::kScaled) {
        const float4 both = LoadShared4(columns + j * 64);
        bias[0] = both.x, bias[1] = both.y, w_scale[0] = both.z, w_scale[1] = both.w;
      } else {
        const float2 only = LoadShared2(columns + j * 32);
        bias[0] = only.x, bias[1] = only.y;
      }
      float value[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float sum = acc[4 * j + 2 * h + c];
        value[c] = Sizes::kScaled ? fmaf(sum, x_scale[h] * w_scale[c], bias[c]) : sum + bias[c];
        if (pair >= 2 * kPairs && !real[h]) value[c] = 0.f;
      }
      bits[i] = PackPair<T>(value[0], value[1]);
    }
    if (pair < kPairs) {
#pragma unroll
      for (int i = 0; i < 4; ++i) queries[pair][i] = bits[i];
    } else {
      const uint32_t to = pair < 2 * kPairs ? put : put + kTokensBytes;
      StoreMatrix4(to ^ (pair % kPairs * 32), bits[0], bits[1], bits[2], bits[3]);
    }
  }
}

// Attention of a warpgroup's 64 queries to kBlocks times 64 of the tile's keys, from key0 on and all that any of them
// has; `keys` is where these begin, their values lie as far behind as all keys are long. The warp's 16 rows of context
// come out in 16 bits, as stmatrix wants them.
template <typename T, int kBlocks>
__device__ __forceinline__ void AttendBlock(const uint32_t (&queries)[4][4], const int2 (&range)[2], int key0,
                                            uint32_t keys, int lane, float scale, uint32_t (&context)[4][4]) {
  constexpr int kScores = kBlocks * 32;
  const uint64_t k_tile = TileDescriptor(keys), v_tile = TileDescriptor(keys + kTokensBytes);
  float s[kBlocks][32] = {}, out[32] = {};
  WgmmaFence();
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      MultiplyRegistersKeys<T>(s[block], queries[step], k_tile + block * (64 * kRowBytes / 16) + 2 * step);
    }
  }
  WgmmaCommit();
  WgmmaWait<0>();
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) HoldRegisters(s[block]);
  auto& all = reinterpret_cast<float(&)[kScores]>(s);
  const int first = max(range[0].x, range[1].x), end = min(range[0].y, range[1].y);
  if (!__all_sync(0xffffffffu, first <= key0 && key0 + kBlocks * 64 <= end)) MaskKeys(all, range, key0, lane);
  float base[2], sum[2] = {0.f, 0.f};
  uint32_t p[kBlocks][4][4];  // each block's own: the first is still being multiplied when the second is made
#pragma unroll
  for (int h = 0; h < 2; ++h) base[h] = fmaxf(LargestOfQuery(all, h) * scale, kNoScore);  // no keys: no weights
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      s[block][i] = FastExp2(fmaf(s[block][i], scale, -base[i / 2 % 2]));
      sum[i / 2 % 2] += s[block][i];
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      p[block][i / 4][i % 4] = PackWeights<T>(s[block][2 * i], s[block][2 * i + 1]);
    }
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      MultiplyRegisters<T>(out, p[block][step], v_tile + block * (64 * kRowBytes / 16) + step * (16 * kRowBytes / 16));
    }
    WgmmaCommit();
  }
  AddQuads(sum);
  const float inverse[2] = {InverseOfSum(sum[0]), InverseOfSum(sum[1])};
  WgmmaWait<0>();
  HoldRegisters(out);
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    context[i / 4][i % 4] = PackPair<T>(out[2 * i] * inverse[i % 2], out[2 * i + 1] * inverse[i % 2]);
  }
}

// The same for the tile's rows from `row` on, whose keys may lie in one block of 64 or in both.
template <typename T>
__device__ __forceinline__ void AttendQueries(const uint32_t (&queries)[4][4], uint32_t ranges, int row, int rows,
                                              uint32_t keys, int warp, int lane, float scale,
                                              uint32_t (&context)[4][4]) {
  const int last = min(row + 64, rows) - 1;
  const int begin = SameInWarp(static_cast<int>(LoadWord(ranges + row * 4) & 0xffff));
  const int end = SameInWarp(static_cast<int>(LoadWord(ranges + last * 4) >> 16));
  int2 range[2];  // of this thread's two queries
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const uint32_t packed = LoadWord(ranges + (row + warp * 16 + lane / 4 + 8 * h) * 4);
    range[h] = make_int2(packed & 0xffff, packed >> 16);
  }
  if (begin < 64 && end > 64) {
    AttendBlock<T, 2>(queries, range, 0, keys, lane, scale, context);
  } else {
    const int key0 = begin / 64 * 64;
    AttendBlock<T, 1>(queries, range, key0, keys + key0 * kRowBytes, lane, scale, context);
  }
}

// A warp's 16 rows of context, through its rows of shared memory, which nothing else reads any more.
template <typename T, bool kFloat8>
__device__ __forceinline__ void StoreContext(const uint32_t (&context)[4][4], uint32_t place, const Arguments& a,
                                             int token, int left, int head, int lane) {
  const uint32_t put = PutPlace(place, lane);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    StoreMatrix4(put ^ (i * 32), context[i][0], context[i][1], context[i][2], context[i][3]);
  }
  __syncwarp();
  const int r = lane / 8;  // and every fourth row on
  const uint32_t from = place + r * kRowBytes + (lane % 8 ^ r) * 16;
  uint4 pieces[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) pieces[k] = LoadSharedPiece((from ^ (k % 2 * 64)) + k * (4 * kRowBytes));
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int row = r + 4 * k;
    if (row >= left) continue;
    StoreEight<T, kFloat8>(a.context, (token + row) * a.ld_context + head * kHead + lane % 8 * 8, pieces[k]);
  }
}

#endif  // FTBERT_HOPPER

}  // namespace attend_rows
}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_CUDA_ATTEND_ROWS_CUH_
