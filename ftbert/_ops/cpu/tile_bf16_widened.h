// bf16 weights by fp32 inputs, for instruction sets without bf16 products; included after a vec_*.h and vec.h by a file
// that names  void Widen(const uint8_t* pairs, Vec* even, Vec* odd)  and  kWidenedRows  (4 kWidenedRows + ...
// registers).
//
// Tile: kWidenedRows rows x two vectors of columns. A group of two inputs costs 2 loads and 4 shifts of weights and 4
// multiply-adds per row. One accumulator per element, inputs in ascending order. Rows: fp32, any alignment.
#ifndef FTBERT_CPU_TILE_BF16_WIDENED_H_
#define FTBERT_CPU_TILE_BF16_WIDENED_H_

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
                                           float* sums) {
  Vec sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = Zero();
  int32_t k = 0;
  for (; k + 2 <= inputs; k += 2, in += 8, weights += 4 * kColumns) {
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
                          float* sums) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return WidenedTileOf<kRows - 1>(rows, in, stride, weights, inputs, sums);
  }
  WidenedTile<kRows>(in, stride, weights, inputs, sums);
}

inline void ComputeWidened(const LinearJob& job) {
  alignas(64) float sums[kWidenedRows * kColumns];
  const int32_t tiles = (job.rows + kWidenedRows - 1) / kWidenedRows;
  const int32_t rows_of_tile = job.rows / tiles, larger = job.rows % tiles;
  for (int32_t p = 0; p < job.panel_count; ++p) {
    const uint8_t* weights = job.weights + p * job.panel_bytes;
    int32_t row = 0;
    for (int32_t tile = 0; tile < tiles; ++tile) {
      const int rows = rows_of_tile + (tile < larger);
      WidenedTileOf<kWidenedRows>(rows, job.in + row * job.in_stride, job.in_stride, weights, job.inputs, sums);
      Finish<Bf16Widened>(job, p, row, rows, sums);
      row += rows;
    }
  }
}

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_TILE_BF16_WIDENED_H_
