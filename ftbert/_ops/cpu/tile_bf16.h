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

inline void PrepareBf16(const float* in, ptrdiff_t in_stride, int32_t rows, int32_t inputs, uint8_t* prepared,
                        size_t stride) {
  const int32_t padded = Lines(inputs, 2) * (kLineBytes / 2);
  for (int32_t r = 0; r < rows; ++r, in += in_stride, prepared += stride) {
    int32_t k = 0;
    for (; k + kLanes <= inputs; k += kLanes) StoreBf16(prepared, k, Load(in + k));
    for (; k < padded; k += kLanes) StoreBf16(prepared, k, k < inputs ? LoadPartial(in + k, inputs - k) : Zero());
  }
}

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_TILE_BF16_H_
