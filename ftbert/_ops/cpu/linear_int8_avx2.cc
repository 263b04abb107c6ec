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

// The inputs minus 128 and, in the row's second copy, their magnitudes: once per row and not once per panel.
struct SignedInputs {
  __m256i value, magnitude;
};

struct Int8Avx2 : Int8OfAvx2 {
  using Columns = ShiftedColumns;
  static constexpr int kRowTile = 4;  // 8 sums, 2 weights, 2 of an input, a constant, one or two on the way
  static SignedInputs Broadcast(const uint8_t* p, size_t row_bytes) {
    return {BroadcastGroup(p), BroadcastGroup(p + row_bytes)};
  }
  static Sum Add(Sum sum, const SignedInputs& x, Word w) {
    const __m256i pairs = _mm256_maddubs_epi16(x.magnitude, _mm256_sign_epi8(w, x.value));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};

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
    Isa::kAvx2, Int8Avx2::kRowTile, kColumns, false, 2, 64, PrepareSigned, ComputeTiles<Int8Avx2>};

}  // namespace cpu
}  // namespace ftbert
