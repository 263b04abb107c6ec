// int8 matrix products with AVX2 alone, exact. vpmaddubsw saturates its pairs at s16, and 2 x 255 x 127 is beyond. So
// the inputs are taken as u8 - 128, which is in [-128, 127], their sign is moved over to the weights (vpsignb), and
// pairs of |input| x (+-weight) are at most 2 x 128 x 127 = 32,512 < 32,767. The 128 comes back as column_shift.
#include "cpu/vec_avx2.h"

#include "cpu/vec.h"

#include "cpu/tile_int8_avx2.h"

namespace ftbert {
namespace cpu {
namespace {

struct ShiftedColumns : Int8Columns {
  ShiftedColumns(const LinearJob& job, int32_t column)
      : Int8Columns(job, column),
        shift(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(job.column_shift + column))) {}
  Vec Value(const LinearJob& job, const uint8_t* row, const int32_t* sums) const {
    alignas(32) int32_t shifted[kLanes];
    const __m256i raw = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums));
    _mm256_store_si256(reinterpret_cast<__m256i*>(shifted), _mm256_add_epi32(raw, shift));
    return Int8Columns::Value(job, row, shifted);
  }
  __m256i shift;
};

struct Int8Avx2 : Int8OfAvx2 {
  using Columns = ShiftedColumns;
  static constexpr int kRowTile = 4;
};

inline __m256i PairSums(__m256i weights, __m256i value, __m256i magnitude) {
  return _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(weights, value));
}

// Raw sums of kRows rows by one panel. Two groups at a time: where they are marked, their 16-bit sums are added before
// they are widened.
template <int kRows>
__attribute__((noinline)) void SignedTile(const uint8_t* in, size_t stride, const uint8_t* weights, int32_t lines,
                                          int32_t* sums) {
  __m256i sum[kRows][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
  const __m256i ones = _mm256_set1_epi16(1);
  const size_t row_bytes = static_cast<size_t>(lines) * kLineBytes;
  const uint8_t* marks = weights + row_bytes * kColumns;
  const uint8_t* end = marks + row_bytes / 8;
  for (; marks < end; ++marks, in += 8, weights += 8 * kColumns) {
    const auto* w = reinterpret_cast<const __m256i*>(weights);
    if (*marks != 0) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const uint8_t* x = in + r * stride;
        const __m256i value = BroadcastGroup(x), magnitude = BroadcastGroup(x + row_bytes);
        const __m256i next = BroadcastGroup(x + 4), next_magnitude = BroadcastGroup(x + row_bytes + 4);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          const __m256i pairs = _mm256_add_epi16(PairSums(_mm256_load_si256(w + v), value, magnitude),
                                                 PairSums(_mm256_load_si256(w + kVectors + v), next, next_magnitude));
          sum[r][v] = _mm256_add_epi32(sum[r][v], _mm256_madd_epi16(pairs, ones));
        }
      }
    } else {
#pragma GCC unroll 2
      for (int group = 0; group < 2; ++group) {
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const uint8_t* x = in + r * stride + 4 * group;
          const __m256i value = BroadcastGroup(x), magnitude = BroadcastGroup(x + row_bytes);
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) {
            const __m256i pairs = PairSums(_mm256_load_si256(w + group * kVectors + v), value, magnitude);
            sum[r][v] = _mm256_add_epi32(sum[r][v], _mm256_madd_epi16(pairs, ones));
          }
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    Int8Avx2::Store(sums + r * kColumns, sum[r][0]);
    Int8Avx2::Store(sums + r * kColumns + kLanes, sum[r][1]);
  }
}

// What ComputeTiles calls for this Dot.
template <>
inline void RegisterTileOf<Int8Avx2, Int8Avx2::kRowTile>(int rows, const uint8_t* in, size_t stride,
                                                         const uint8_t* weights, int32_t lines, int32_t* sums) {
  switch (rows) {
    case 1: return SignedTile<1>(in, stride, weights, lines, sums);
    case 2: return SignedTile<2>(in, stride, weights, lines, sums);
    case 3: return SignedTile<3>(in, stride, weights, lines, sums);
    default: return SignedTile<4>(in, stride, weights, lines, sums);
  }
}

// Each row's inputs minus 128 and, in its second copy, their magnitudes: once per row and not once per panel.
void PrepareSigned(const float* in, ptrdiff_t in_stride, int32_t rows, int32_t inputs, uint8_t* prepared,
                   size_t stride) {
  PrepareInt8<2>(in, in_stride, rows, inputs, prepared, stride);
  const size_t row_bytes = static_cast<size_t>(Lines(inputs, 1)) * kLineBytes;
  for (int32_t r = 0; r < rows; ++r, prepared += stride) {
    for (size_t k = 0; k < row_bytes; k += 32) {
      auto* at = reinterpret_cast<__m256i*>(prepared + k);
      const __m256i shifted = _mm256_xor_si256(_mm256_loadu_si256(at), _mm256_set1_epi8(-128));
      _mm256_storeu_si256(at, shifted);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(prepared + row_bytes + k), _mm256_abs_epi8(shifted));
    }
  }
}

}  // namespace

const LinearOps kInt8Avx2 = {
    Isa::kAvx2, Int8Avx2::kRowTile, kColumns, false, 2, true, 64, PrepareSigned, ComputeTiles<Int8Avx2>};

}  // namespace cpu
}  // namespace ftbert
