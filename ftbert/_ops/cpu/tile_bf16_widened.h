// bf16 weights by fp32 inputs, for instruction sets without bf16 products; included after a vec_*.h and vec.h by a file
// that names  void Widen(const uint8_t* pairs, Vec* even, Vec* odd)  and  kWidenedRows, kTileRows, kTileAhead.
//
// Tile of few rows: kWidenedRows x two vectors of columns. A group of two inputs costs 2 loads and 4 shifts of weights
// and 4 multiply-adds per row. One accumulator per element, inputs in ascending order. Rows: fp32, any alignment.
#ifndef FTBERT_CPU_TILE_BF16_WIDENED_H_
#define FTBERT_CPU_TILE_BF16_WIDENED_H_

#include "cpu/micro_tile.h"
#include "cpu/tile_int8_bf16.h"

namespace ftbert {
namespace cpu {
namespace {

struct Bf16Columns {
  Bf16Columns(const LinearJob& job, int32_t column) : bias(Load(job.bias + column)) {}
  Vec Value(const LinearJob&, const uint8_t*, const float* sums) const { return ::ftbert::cpu::Add(Load(sums), bias); }
  Vec bias;
};

struct Bf16Widened {
  using Element = float;
  using Columns = Bf16Columns;
  static constexpr int kRowTile = kWidenedRows;
  static constexpr bool kWritesPrepared = false;
  static void StorePrepared(uint8_t*, ptrdiff_t, Vec) {}
};

template <int kRows>
__attribute__((noinline)) void WidenedTile(const uint8_t* in, size_t stride, const uint8_t* weights, int32_t inputs,
                                           FetchAhead* ahead, float* sums) {
  Vec sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = Zero();
  int32_t k = 0;
  for (; k + 2 <= inputs; k += 2, in += 8, weights += 4 * kColumns) {
    ahead->Advance();
    Vec even[kVectors], odd[kVectors];
    Widen(weights, &even[0], &odd[0]);
    Widen(weights + 4 * kLanes, &even[1], &odd[1]);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      float x[2];
      std::memcpy(x, in + r * stride, sizeof(x));
      const Vec first = Set1(x[0]);
      sum[r][0] = Fma(first, even[0], sum[r][0]);
      sum[r][1] = Fma(first, even[1], sum[r][1]);
      const Vec second = Set1(x[1]);
      sum[r][0] = Fma(second, odd[0], sum[r][0]);
      sum[r][1] = Fma(second, odd[1], sum[r][1]);
    }
  }
  if (k < inputs) {
    Vec even[kVectors], odd[kVectors];
    Widen(weights, &even[0], &odd[0]);
    Widen(weights + 4 * kLanes, &even[1], &odd[1]);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      float x;
      std::memcpy(&x, in + r * stride, sizeof(x));
      sum[r][0] = Fma(Set1(x), even[0], sum[r][0]);
      sum[r][1] = Fma(Set1(x), even[1], sum[r][1]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    Store(sums + r * kColumns, sum[r][0]);
    Store(sums + r * kColumns + kLanes, sum[r][1]);
  }
}

template <int kRows>
inline void WidenedTileOf(int rows, const uint8_t* in, size_t stride, const uint8_t* weights, int32_t inputs,
                          FetchAhead* ahead, float* sums) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return WidenedTileOf<kRows - 1>(rows, in, stride, weights, inputs, ahead, sums);
  }
  WidenedTile<kRows>(in, stride, weights, inputs, ahead, sums);
}

// Few rows: the weights are widened on their way into the products.
inline void ComputeFewRows(const LinearJob& job) {
  alignas(64) float sums[kWidenedRows * kColumns];
  for (int32_t p = 0; p < job.panel_count; ++p) {
    FetchAhead ahead(job, p, (job.inputs + 1) / 2);
    WidenedTileOf<kWidenedRows>(job.rows, job.in, job.in_stride, job.weights + p * job.panel_bytes, job.inputs, &ahead,
                                sums);
    Finish<Bf16Widened>(job, p, 0, job.rows, sums);
  }
}

// More rows: a block of a panel is widened once, into the cache, and goes through the tile of fp32 products, where the
// sums take the same order. Meanwhile what comes next is fetched into the second-level cache.
constexpr int kWidenedInputs = 128;  // of a block: 16 KB with AVX-512, which stay in the first-level cache
constexpr int kRowsAtATime = 144;    // whose sums wait for the panel's other blocks

// Inputs [begin, end) of a panel's weights, to[input][column].
inline void WidenBlock(const uint8_t* panel, int32_t begin, int32_t end, float* to) {
  const uint8_t* pairs = panel + begin / 2 * 4 * kColumns;
  for (int32_t k = begin; k < end; k += 2, pairs += 4 * kColumns, to += 2 * kColumns) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      Vec even, odd;
      Widen(pairs + v * 4 * kLanes, &even, &odd);
      Store(to + v * kLanes, even);
      Store(to + kColumns + v * kLanes, odd);
    }
  }
}

inline void ComputeManyRows(const LinearJob& job, int32_t row, int32_t rows) {
  alignas(64) float widened[(kWidenedInputs + 1) * kColumns];
  alignas(64) float sums[kRowsAtATime * kColumns];
  const RowTiles tiles(rows, kTileRows);
  const MicroFunction micro[2] = {FindMicro<kTileRows, kVectors, kColumns, kTileAhead>(tiles.small),
                                  FindMicro<kTileRows, kVectors, kColumns, kTileAhead>(tiles.rows(0))};
  MicroTask t;
  t.in_stride = static_cast<ptrdiff_t>(job.in_stride / sizeof(float));
  t.weights = widened;
  t.weights_stride = kColumns;
  t.bias = nullptr;
  t.out_stride = kColumns;
  // A pair of bf16 has the room of a float: half of the floats of a step for each input, a share of them each tile.
  const ptrdiff_t share = (kColumns / 2 + tiles.count - 1) / tiles.count;
  for (int32_t p = 0; p < job.panel_count; ++p) {
    const uint8_t* const panel = job.weights + p * job.panel_bytes;
    const uint8_t* const then = p + 1 < job.panel_count ? panel + job.panel_bytes : job.then;
    const auto* next = reinterpret_cast<const float*>(then != nullptr ? then : panel);
    t.next_step = then != nullptr ? share : 0;
    for (int32_t k = 0; k < job.inputs; k += kWidenedInputs) {
      const int32_t end = k + kWidenedInputs < job.inputs ? k + kWidenedInputs : job.inputs;
      WidenBlock(panel, k, end, widened);
      t.inputs = end - k;
      t.fresh = k == 0;
      t.in = reinterpret_cast<const float*>(job.in + row * job.in_stride) + k;
      t.out = sums;
      t.next = next + static_cast<ptrdiff_t>(k) * kColumns / 2;
      for (int tile = 0; tile < tiles.count; ++tile) {
        micro[tile < tiles.larger](t);
        t.in += tiles.rows(tile) * t.in_stride;
        t.out += tiles.rows(tile) * kColumns;
        t.next += t.next_step * t.inputs;
      }
    }
    for (int tile = 0, done = 0; tile < tiles.count; done += tiles.rows(tile++)) {
      Finish<Bf16Widened>(job, p, row + done, tiles.rows(tile), sums + done * kColumns);
    }
  }
}

inline void ComputeWidened(const LinearJob& job) {
  if (job.rows <= kWidenedRows) return ComputeFewRows(job);
  const RowTiles parts(job.rows, kRowsAtATime);
  for (int32_t part = 0, row = 0; part < parts.count; row += parts.rows(part++)) {
    ComputeManyRows(job, row, parts.rows(part));
  }
}

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_TILE_BF16_WIDENED_H_
