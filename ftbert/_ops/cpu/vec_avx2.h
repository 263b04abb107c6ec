// Vectors of 8 floats. Included once, by a file compiled with AVX2, FMA, F16C; see vec.h for the contract.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace ftbert {
namespace cpu {
namespace {

using Vec = __m256;
constexpr int kLanes = 8;
constexpr int kVecRegisters = 16;

inline Vec Zero() { return _mm256_setzero_ps(); }
inline Vec Set1(float x) { return _mm256_set1_ps(x); }
inline Vec Load(const float* p) { return _mm256_loadu_ps(p); }
inline void Store(float* p, Vec v) { _mm256_storeu_ps(p, v); }

inline __m256i FirstLanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec LoadPartial(const float* p, int count) { return _mm256_maskload_ps(p, FirstLanes(count)); }
inline void StorePartial(float* p, Vec v, int count) { _mm256_maskstore_ps(p, FirstLanes(count), v); }

inline Vec LoadFloat16(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Vec LoadBFloat16(const uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

inline Vec Add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec Sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec Mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec Fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec Fnma(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(a, b, c); }
inline Vec Max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec Min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec Round(Vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec ScaleByPowerOf2(Vec x, Vec n) {
  return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(
                              _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23)));
}
inline Vec Abs(Vec x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.f), x); }
inline Vec SelectNonNegative(Vec x, Vec yes, Vec no) {
  return _mm256_blendv_ps(yes, no, _mm256_cmp_ps(x, Zero(), _CMP_LT_OQ));
}
inline Vec SelectFirst(int count, Vec yes, Vec no) {
  return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(FirstLanes(count)));
}

inline Vec Reciprocal(Vec x) { return _mm256_div_ps(Set1(1.f), x); }

inline float FirstLane(Vec v) { return _mm256_cvtss_f32(v); }

inline float Sum(Vec v) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

inline float Largest(Vec v) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

// 8 x 8: unpack pairs, then quads, then swap halves.
inline void Transpose(const float* in, ptrdiff_t in_stride, float* out, ptrdiff_t out_stride) {
  Vec r[8], t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = Load(in + i * in_stride);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    Store(out + c * out_stride, _mm256_permute2f128_ps(r[c], r[4 + c], 0x20));
    Store(out + (4 + c) * out_stride, _mm256_permute2f128_ps(r[c], r[4 + c], 0x31));
  }
}

inline __attribute__((always_inline)) void Prefetch(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
}
inline __attribute__((always_inline)) void PrefetchSecondLevel(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}

}  // namespace
}  // namespace cpu
}  // namespace ftbert
