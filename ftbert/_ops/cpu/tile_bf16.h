// The bf16 half of tile_int8_bf16.h for AVX512-BF16, shared with AMX: conversion of rows and the bf16 epilogue.
#ifndef FTBERT_CPU_TILE_BF16_H_
#define FTBERT_CPU_TILE_BF16_H_

#include "cpu/tile_int8_bf16.h"

namespace ftbert {
namespace cpu {
namespace {

struct Bf16Columns {
  Bf16Columns(const LinearJob& job, int32_t column) : bias(Load(job.bias + column)) {}
  Vec Value(const LinearJob&, const uint8_t*, const float* sums) const { return ::ftbert::cpu::Add(Load(sums), bias); }
  Vec bias;
};

// 16 values rounded to nearest even, at column `column` of a prepared row.
inline void StoreBf16(uint8_t* row, ptrdiff_t column, Vec x) {
  const __m256bh rounded = _mm512_cvtneps_pbh(x);
  std::memcpy(row + 2 * column, &rounded, sizeof(rounded));
}

// 32 of them: one line.
inline void StoreBf16Line(uint8_t* line, Vec first, Vec second) {
  const __m512bh rounded = _mm512_cvtne2ps_pbh(second, first);
  std::memcpy(line, &rounded, sizeof(rounded));
}

template <int kGroupRows>
inline void PrepareBf16(const float* in, ptrdiff_t in_stride, int32_t rows, int32_t inputs, uint8_t* prepared,
                        size_t stride) {
  const int32_t lines = Lines(inputs, 2), whole = inputs / (2 * kLanes);
  for (int32_t r = 0; r < rows; ++r, in += in_stride) {
    uint8_t* to = PreparedRow<kGroupRows>(prepared, stride, r);
    for (int32_t line = 0; line < whole; ++line, to += kLineBytes * kGroupRows) {
      StoreBf16Line(to, Load(in + 2 * kLanes * line), Load(in + 2 * kLanes * line + kLanes));
    }
    if (whole < lines) {
      const float* rest = in + 2 * kLanes * whole;
      const int32_t first = inputs - 2 * kLanes * whole, second = first - kLanes;
      StoreBf16Line(to, first < kLanes ? LoadPartial(rest, first) : Load(rest),
                    second > 0 ? LoadPartial(rest + kLanes, second) : Zero());
    }
  }
}

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_TILE_BF16_H_
