// The end of a tile of GemmWgmma: scales, bias, activation, residual, and the store.
//
// A warp finishes its 16 rows of a 64-row fragment some columns at a time: 128 bytes of a row or less. They pass
// through a buffer of its own in shared memory, from where the copy engine takes them (and clips them at the matrix's
// edges), or, in a warp's last tile, the warp itself, which is there sooner. A residual comes through the copy engine
// as well: into the buffer, ahead of the products, where its place is free. Tiles for few rows do without it.
#ifndef FTBERT_CUDA_WGMMA_END_CUH_
#define FTBERT_CUDA_WGMMA_END_CUH_

#include "cuda/epilogue.cuh"
#include "cuda/hopper.cuh"

namespace ftbert {
namespace cuda {

// A row's bytes in as few equal parts of 128 or less as there are, each a multiple of 16: one part's.
constexpr int PartBytes(int bytes) {
  int parts = (bytes + 127) / 128;
  while (bytes % parts != 0 || bytes / parts % 16 != 0) ++parts;
  return bytes / parts;
}

// Where 16 bytes of a buffer lie: the copy engine's swizzle for rows of kRowBytes (none but for 32, 64 and 128).
template <int kRowBytes>
__device__ __forceinline__ uint32_t Swizzled(int row, int piece) {
  constexpr int kMask = (kRowBytes & (kRowBytes - 1)) == 0 ? kRowBytes / 16 - 1 : 0;
  return row * kRowBytes + ((piece ^ (row * kRowBytes / 128 & kMask)) * 16);
}

// What the end of a tile needs in shared memory. kParts of kColumns columns each make up a fragment's rows.
// kFew: tiles for few rows, a CTA's only one mostly: its warps fetch the residual and store by themselves.
template <typename In, typename OutType, int kRowsOfTile, int kColumnsOfTile, bool kFewRows = false>
struct WgmmaEnd {
  using Out = OutType;
  static constexpr bool kFew = kFewRows;
  static constexpr int kTileRows = kRowsOfTile, kTileColumns = kColumnsOfTile;
  static constexpr bool kScaled = sizeof(In) == 1, kFloat8Out = sizeof(Out) == 1;
  // Whole rows where no copy engine wants them in swizzled parts; padded by 16 bytes then, against bank conflicts.
  static constexpr int kTileBytes = kTileColumns * static_cast<int>(sizeof(Out));
  static constexpr int kRowBytes = kFew ? kTileBytes : PartBytes(kTileBytes);
  static constexpr int kPitch = kFew ? kRowBytes + 16 : kRowBytes;
  static constexpr int kColumns = kRowBytes / static_cast<int>(sizeof(Out));
  static constexpr int kParts = kTileColumns / kColumns;
  static constexpr int kBufferBytes = 16 * kPitch;
  // Columns that are finished at a time: few where accumulators take most of a thread's registers.
  static constexpr bool kManySums = kTileRows == 192 || (kTileColumns == 192 && !(kFew && kFloat8Out));
  static constexpr int kStep = kManySums ? 32 : kColumns % 64 == 0 ? 64 : 48;
  static_assert(kColumns % kStep == 0, "whole steps");
  // One tile's parameters: bias, with w_scale between in pairs where there is one; x_scale and 1 / out_scale of rows.
  static constexpr int kRows = (kScaled ? 2 : 1) * kTileColumns * 4, kInverse = kRows + (kScaled ? kTileRows * 4 : 0);
  static constexpr int kParameterBytes = kInverse + (kFloat8Out ? kTileRows * 4 : 0);

  // Where 16 bytes of a part lie in its buffer.
  static __device__ __forceinline__ uint32_t Place(int row, int piece) {
    return kFew ? row * kPitch + piece * 16 : Swizzled<kRowBytes>(row, piece);
  }
};

// Fill a slot of parameters: the lanes of one warp, all of whose loads are under way together. Columns' parameters are
// constants, rows' the kernel before may have written.
template <typename End>
__device__ __forceinline__ void BringColumns(uint32_t slot, const EpilogueArgs& e, int column, int lane) {
  constexpr int kEach = CeilDiv(End::kTileColumns, 32);
  float bias[kEach], w_scale[End::kScaled ? kEach : 1];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int n = column + i * 32 + lane;
    bias[i] = n < e.n ? __ldg(e.bias + n) : 0.f;
    if (End::kScaled) w_scale[i] = n < e.n ? __ldg(e.w_scale + n) : 0.f;
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int n = i * 32 + lane;
    if (n >= End::kTileColumns) continue;
    StoreShared(slot + (End::kScaled ? n / 2 * 4 + n % 2 : n) * 4, bias[i]);
    if (End::kScaled) StoreShared(slot + (n / 2 * 4 + n % 2 + 2) * 4, w_scale[i]);
  }
}
template <typename End>
__device__ __forceinline__ void BringRows(uint32_t slot, const EpilogueArgs& e, int row, int lane) {
  constexpr int kEach = End::kTileRows / 32;
  if constexpr (End::kScaled) {
    float x_scale[kEach], out_scale[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      x_scale[i] = RowScaleOf(e.x_scale, row + i * 32 + lane, e.m);
      if (End::kFloat8Out) out_scale[i] = RowScaleOf(e.out_scale, row + i * 32 + lane, e.m);
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      StoreShared(slot + End::kRows + (i * 32 + lane) * 4, x_scale[i]);
      if (End::kFloat8Out) StoreShared(slot + End::kInverse + (i * 32 + lane) * 4, 1.f / out_scale[i]);
    }
  }
}

// What the copy engine must know of the output, and of the residual.
template <bool kFew>
struct EndMaps {
  CUtensorMap out, residual;
};
template <>
struct EndMaps<true> {};

// One warp's buffers, and how far it is with them.
template <int kRowBytes>
struct WarpBuffers {
  uint32_t buffers;   // one after another
  uint32_t arrived;   // an mbarrier of each buffer: its residual is there
  const CUtensorMap *out_map, *residual_map;
  int lane;

  __device__ __forceinline__ uint32_t Buffer(int index) const { return buffers + index * 16 * kRowBytes; }
  // The residual of 16 rows comes into a buffer that nothing is in.
  __device__ __forceinline__ void BringResidual(int index, int row, int column) const {
    BarrierExpect(arrived + 8 * index, 16 * kRowBytes);
    LoadTile(Buffer(index), residual_map, arrived + 8 * index, column, row);
  }
  __device__ __forceinline__ void Store(int index, int row, int column) const {
    WrittenForCopyEngine();
    __syncwarp();
    if (lane == 0) {
      StoreTile(Buffer(index), out_map, column, row);
      CommitStores();
    }
  }
};

// a + b, eight values of 16 bits each.
template <typename T>
__device__ __forceinline__ uint4 AddPieces(const uint4& a, const uint4& b) {
  const uint32_t x[4] = {a.x, a.y, a.z, a.w}, y[4] = {b.x, b.y, b.z, b.w};
  uint32_t sums[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 p = UnpackPair<T>(x[i]), q = UnpackPair<T>(y[i]);
    sums[i] = PackPair<T>(p.x + q.x, p.y + q.y);
  }
  return make_uint4(sums[0], sums[1], sums[2], sums[3]);
}

// Stores a part by the warp itself; kAdds: with the residual, all of whose pieces are asked for together.
template <typename End, bool kAdds>
__device__ __forceinline__ void StoreDirectly(const EpilogueArgs& e, uint32_t buffer, int row, int column, int lane) {
  using Out = typename End::Out;
  constexpr int kPer = 16 / sizeof(Out), kPieces = End::kRowBytes / 16;  // values in 16 bytes, such pieces of a row
  constexpr int kEach = CeilDiv(16 * kPieces, 32);
  const auto place = [&](int i) {
    const int piece = i * 32 + lane, r = piece / kPieces, n = piece % kPieces;
    const bool valid = r < 16 && row + r < e.m && column + n * kPer < e.n;
    return valid ? (row + r) * e.ldo + column + n * kPer : int64_t{-1};
  };
  const auto load = [&](int i) {
    const int piece = i * 32 + lane, r = piece / kPieces, n = piece % kPieces;
    return LoadSharedPiece(buffer + End::Place(r < 16 ? r : 0, n));
  };
  uint4 old[kAdds ? kEach : 1];
#pragma unroll
  for (int i = 0; i < kEach && kAdds; ++i) {
    const int64_t at = place(i);
    old[i] = make_uint4(0, 0, 0, 0);
    if (at >= 0) old[i] = *reinterpret_cast<const uint4*>(static_cast<const Out*>(e.residual) + at);
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int64_t at = place(i);
    uint4 piece = load(i);
    if constexpr (kAdds) piece = AddPieces<Out>(piece, old[i]);
    if (at >= 0) *reinterpret_cast<uint4*>(static_cast<Out*>(e.out) + at) = piece;
  }
}

// Two finished values of a row as fp8, under its scale. Half precision is finer than what is stored by far; |x| times
// `inverse` is at most kFloat8Max, and `inverse` fits into fp16 (Gemm::out_scale).
__device__ __forceinline__ uint16_t FinishFloat8Pair(float low, float high, __half2 inverse) {
  const uint32_t bits = PackHalfPair(low, high);
  const __half2 x = *reinterpret_cast<const __half2*>(&bits);
  const __half2 a = __float2half2_rn(0.7978845608028654f * 0.044715f), b = __float2half2_rn(0.7978845608028654f);
  const __half2 inner = __hmul2(x, __hfma2(a, __hmul2(x, x), b)), half = __hmul2(x, __float2half2_rn(0.5f));
  return PackFloat8Pair(__hmul2(__hfma2(half, FastTanh2(inner), half), inverse));
}

// The sums of step `index`, kCount of them, of a thread's. Where the step is not known to the compiler, by branches:
// what is done with them then stands in the code once, not once a step. Few rows go through that code once in a kernel,
// and half of its time was the fetching of instructions.
template <int kCount, int kAll>
__device__ __forceinline__ void PickSums(const float (&all)[kAll], int index, float (&some)[kCount]) {
#pragma unroll
  for (int step = 0; step < kAll / kCount; ++step) {
    if (step != index) continue;
#pragma unroll
    for (int i = 0; i < kCount; ++i) some[i] = all[step * kCount + i];
  }
}

// Finishes End::kStep columns of a warp's 16 rows, from column `first` of the tile and byte `at` of the buffer's rows
// on. sums is laid out as Wgmma says.
template <typename End, Act kAct, bool kAdds>
__device__ __forceinline__ void FinishStep(float (&sums)[End::kStep / 2], uint32_t slot, int row_in_tile, int first,
                                           uint32_t buffer, int at, int lane) {
#if __CUDA_ARCH__ >= 900
  using Out = typename End::Out;
  constexpr int kPieces = End::kStep / 8;  // of 8 columns
  const int piece0 = at / 16;
  float x_scale[2] = {1.f, 1.f}, inverse[2] = {1.f, 1.f};
  if (End::kScaled) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = row_in_tile + lane / 4 + 8 * h;
      x_scale[h] = LoadShared1(slot + End::kRows + row * 4);
      if (End::kFloat8Out) inverse[h] = LoadShared1(slot + End::kInverse + row * 4);
    }
  }
  uint32_t old[kAdds ? kPieces / 2 : 1][4];
  if constexpr (kAdds) {
#pragma unroll
    for (int i = 0; i < kPieces / 2; ++i) {
      LoadMatrix4(old[i], buffer + End::Place(lane % 16, piece0 + 2 * i + lane / 16));
    }
    __syncwarp();  // all have read what is overwritten now
  }
  const uint32_t columns = slot + (first / 2 + lane % 4) * (End::kScaled ? 16 : 8);
#pragma unroll
  for (int j = 0; j < kPieces; ++j) {
    float bias[2], w_scale[2] = {1.f, 1.f};
    if (End::kScaled) {
      const float4 both = LoadShared4(columns + j * 64);
      bias[0] = both.x, bias[1] = both.y, w_scale[0] = both.z, w_scale[1] = both.w;
    } else {
      const float2 only = LoadShared2(columns + j * 32);
      bias[0] = only.x, bias[1] = only.y;
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& value = sums[4 * j + 2 * h + c];
        value = End::kScaled ? fmaf(value, x_scale[h] * w_scale[c], bias[c]) : value + bias[c];
        if (!(End::kFloat8Out && kAct == Act::kGeluTanh)) value = Activate<kAct, false>(value);
      }
    }
  }
  if constexpr (End::kFloat8Out) {
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float low = sums[4 * j + 2 * h], high = sums[4 * j + 2 * h + 1];
        const uint16_t pair = kAct == Act::kGeluTanh ? FinishFloat8Pair(low, high, __float2half2_rn(inverse[h]))
                                                     : PackFloat8Pair(low * inverse[h], high * inverse[h]);
        StoreShared(buffer + End::Place(lane / 4 + 8 * h, piece0 + j / 2) + j % 2 * 8 + lane % 4 * 2, pair);
      }
    }
  } else {
#pragma unroll
    for (int j = 0; j < kPieces; j += 2) {
      uint32_t bits[4];  // top and low rows of 8 columns, then of the next 8
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float low = sums[4 * j + 2 * i], high = sums[4 * j + 2 * i + 1];
        if constexpr (kAdds) {
          const float2 add = UnpackPair<Out>(old[j / 2][i]);
          low += add.x, high += add.y;
        }
        bits[i] = PackPair<Out>(low, high);
      }
      StoreMatrix4(buffer + End::Place(lane % 16, piece0 + j + lane / 16), bits[0], bits[1], bits[2], bits[3]);
    }
  }
#endif
}

// Finishes the kBlocks fragments of one warp in a tile. uses: how often each buffer was filled before this tile; last:
// this warp has no tile after it. kCompact: each step by the same code.
template <typename End, Act kAct, bool kAdds, int kBlocks, int kBuffers, bool kCompact>
__device__ __forceinline__ void FinishTile(const float (&acc)[kBlocks * End::kTileColumns / 2], uint32_t slot,
                                           int row_in_tile, int row, int column, int uses, bool last,
                                           const EpilogueArgs& e, const WarpBuffers<End::kRowBytes>& w) {
  constexpr int kAll = kBlocks * End::kParts, kLag = kBuffers > 1 ? 1 : 0, kSteps = End::kColumns / End::kStep;
  constexpr bool kFetched = kAdds && !End::kFew;  // the residual is in the buffer
  const auto finish = [&](int index) {
    const int part = index / kSteps, step = index % kSteps, buffer = part % kBuffers;
    const int block = part / End::kParts, part_column = part % End::kParts * End::kColumns;
    if (step == 0) {
      if (kFetched) {
        BarrierWait(w.arrived + 8 * buffer, (uses + part / kBuffers) & 1);
      } else {
        if (!End::kFew && w.lane == 0 && !last) WaitStoresRead<kBuffers - 1>();
        if (!End::kFew && w.lane == 0 && last && part == 0) WaitStoresRead<0>();
        __syncwarp();
      }
    }
    float sums[End::kStep / 2];
    PickSums(acc, index, sums);
    FinishStep<End, kAct, kFetched>(sums, slot, row_in_tile + block * 64, part_column + step * End::kStep,
                                    w.Buffer(buffer), step * End::kStep * static_cast<int>(sizeof(typename End::Out)),
                                    w.lane);
    if (End::kFew || step != kSteps - 1) return;
    if (last) {
      StoreDirectly<End, false>(e, w.Buffer(buffer), row + block * 64, column + part_column, w.lane);
      if (kLag == 0) __syncwarp();
    } else {
      w.Store(buffer, row + block * 64, column + part_column);
    }
    const int bring = part - kLag + kBuffers;  // the part whose residual finds room now
    if (kFetched && bring >= kBuffers && bring < kAll && w.lane == 0) {
      if (!last) WaitStoresRead<kLag>();
      w.BringResidual(bring % kBuffers, row + bring / End::kParts * 64, column + bring % End::kParts * End::kColumns);
    }
  };
  if constexpr (kCompact) {
#pragma unroll 1
    for (int index = 0; index < kAll * kSteps; ++index) finish(index);
  } else {
#pragma unroll
    for (int index = 0; index < kAll * kSteps; ++index) finish(index);
  }
  if constexpr (End::kFew) {
    static_assert(kAll == 1, "whole rows of one fragment");
    StoreDirectly<End, kAdds>(e, w.Buffer(0), row, column, w.lane);
  }
}

}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_CUDA_WGMMA_END_CUH_
