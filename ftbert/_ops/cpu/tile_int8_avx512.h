// What the int8 forms with AVX-512 VNNI and AMX share; included after vec_avx512.h and vec.h.
#ifndef FTBERT_CPU_TILE_INT8_AVX512_H_
#define FTBERT_CPU_TILE_INT8_AVX512_H_

#include <cstddef>
#include <cstdint>

namespace ftbert {
namespace cpu {
namespace {

inline Vec ToFloat(const int32_t* sums) { return _mm512_cvtepi32_ps(_mm512_load_si512(sums)); }

inline void StoreBytes(uint8_t* to, Vec x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(x)));
}

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#include "cpu/tile_int8.h"

#endif  // FTBERT_CPU_TILE_INT8_AVX512_H_
