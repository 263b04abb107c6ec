// What the int8 forms with and without AVX-VNNI share; included after vec_avx2.h and vec.h.
#ifndef FTBERT_CPU_TILE_INT8_AVX2_H_
#define FTBERT_CPU_TILE_INT8_AVX2_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace ftbert {
namespace cpu {
namespace {

inline Vec ToFloat(const int32_t* sums) {
  return _mm256_cvtepi32_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(sums)));
}

inline void StoreBytes(uint8_t* to, Vec x) {
  const __m256i words = _mm256_cvtps_epi32(x);
  const __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(halves, halves));
}

inline __m256i BroadcastGroup(const uint8_t* p) {
  int32_t group;
  std::memcpy(&group, p, sizeof(group));
  return _mm256_set1_epi32(group);
}

// A Dot of tile_int8_bf16.h but for Columns, kRowTile, Broadcast and Add.
struct Int8OfAvx2 {
  using Sum = __m256i;
  using Word = __m256i;
  using Element = int32_t;
  static constexpr bool kWritesPrepared = false;
  static Sum Zero() { return _mm256_setzero_si256(); }
  static Word LoadWeights(const uint8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
  static void Store(int32_t* to, Sum sum) { _mm256_store_si256(reinterpret_cast<__m256i*>(to), sum); }
  static void StorePrepared(uint8_t*, ptrdiff_t, Vec) {}
};

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#include "cpu/tile_int8.h"

#endif  // FTBERT_CPU_TILE_INT8_AVX2_H_
