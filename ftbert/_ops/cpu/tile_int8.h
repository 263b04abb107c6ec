// The int8 half of tile_int8_bf16.h: dequantization and the conversion of rows. Written on the vec_*.h included before,
// plus what that file names here:  Vec ToFloat(const int32_t*)  and  void StoreBytes(uint8_t*, Vec), which rounds
// kLanes values in [0, 255] to nearest even.
#ifndef FTBERT_CPU_TILE_INT8_H_
#define FTBERT_CPU_TILE_INT8_H_

#include "cpu/tile_int8_bf16.h"

namespace ftbert {
namespace cpu {
namespace {

struct Int8Columns {
  Int8Columns(const LinearJob& job, int32_t column)
      : scale(Load(job.column_scale + column)), sum(Load(job.column_sum + column)), bias(Load(job.bias + column)) {}

  // sum over k of (low + scale u8) s q  +  bias
  Vec Value(const LinearJob& job, const uint8_t* row, const int32_t* sums) const {
    RowScale of_row;
    std::memcpy(&of_row, row + job.scale_offset, sizeof(of_row));
    return Fma(Mul(Set1(of_row.scale), scale), ToFloat(sums), Fma(Set1(of_row.low), sum, bias));
  }

  Vec scale, sum, bias;
};

// Two passes over each row: its range, then its bytes. Only multiplications, subtractions and rounding: every
// instruction set gives the same bytes.
template <int kGroupRows>
void PrepareInt8(const float* in, ptrdiff_t in_stride, int32_t rows, int32_t inputs, uint8_t* prepared, size_t stride) {
  const int32_t lines = Lines(inputs, 1);
  const int32_t whole = inputs / kLanes * kLanes;
  const auto place = [](int32_t input) {  // in a row
    const auto k = static_cast<uint32_t>(input);
    return static_cast<size_t>(k / kLineBytes) * (kGroupRows * kLineBytes) + k % kLineBytes;
  };
  for (int32_t r = 0; r < rows; ++r, in += in_stride) {
    uint8_t* to = PreparedRow<kGroupRows>(prepared, stride, r);
    Vec low = Set1(in[0]), high = low, other_low = low, other_high = low;
    int32_t k = 0;
    for (; k + 2 * kLanes <= whole; k += 2 * kLanes) {
      const Vec x = Load(in + k), y = Load(in + k + kLanes);
      low = Min(low, x), high = Max(high, x);
      other_low = Min(other_low, y), other_high = Max(other_high, y);
    }
    if (k < whole) low = Min(low, Load(in + k)), high = Max(high, Load(in + k));
    float largest = Largest(Max(high, other_high));
    float smallest = -Largest(Sub(Zero(), Min(low, other_low)));
    for (k = whole; k < inputs; ++k) {
      if (!(in[k] <= largest)) largest = in[k];
      if (!(in[k] >= smallest)) smallest = in[k];
    }
    // A constant row is its low value alone. Written so that NaN takes the other branch and shows in the result.
    const float range = largest - smallest;
    const bool constant = range <= 1e-30f;
    const RowScale scale = {constant ? 0.0f : range / 255.0f, smallest};
    const Vec inverse = Set1(constant ? 0.0f : 255.0f / range), offset = Set1(smallest);
    for (k = 0; k < whole; k += kLanes) StoreBytes(to + place(k), Mul(Sub(Load(in + k), offset), inverse));
    if (whole < inputs) {
      StoreBytes(to + place(whole), Mul(Sub(LoadPartial(in + whole, inputs - whole), offset), inverse));
    }
    if (inputs % kLineBytes != 0) std::memset(to + place(inputs), 0, kLineBytes - inputs % kLineBytes);
    std::memcpy(to + place(lines * kLineBytes), &scale, sizeof(scale));
  }
}

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_TILE_INT8_H_
