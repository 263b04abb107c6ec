// Vectors of 16 floats. Included once, by a file compiled with AVX-512 F, BW, DQ, VL; see vec.h for the contract.
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace ftbert {
namespace cpu {
namespace {

using Vec = __m512;
constexpr int kLanes = 16;
constexpr int kVecRegisters = 32;

inline Vec Zero() { return _mm512_setzero_ps(); }
inline Vec Set1(float x) { return _mm512_set1_ps(x); }
inline Vec Load(const float* p) { return _mm512_loadu_ps(p); }
inline void Store(float* p, Vec v) { _mm512_storeu_ps(p, v); }

inline __mmask16 FirstLanes(int count) { return static_cast<__mmask16>((1u << count) - 1u); }
inline Vec LoadPartial(const float* p, int count) { return _mm512_maskz_loadu_ps(FirstLanes(count), p); }
inline void StorePartial(float* p, Vec v, int count) { _mm512_mask_storeu_ps(p, FirstLanes(count), v); }

inline Vec LoadFloat16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Vec LoadBFloat16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

inline Vec Add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec Sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec Mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec Fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec Fnma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }
inline Vec Max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec Min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec Round(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec ScaleByPowerOf2(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }
inline Vec Abs(Vec x) { return _mm512_abs_ps(x); }
inline Vec SelectNonNegative(Vec x, Vec yes, Vec no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, Zero(), _CMP_LT_OQ), yes, no);
}
inline Vec SelectFirst(int count, Vec yes, Vec no) { return _mm512_mask_blend_ps(FirstLanes(count), no, yes); }

// One Newton step from 14 bits: 1 ulp or two. The divider would be the slowest part of GELU.
inline Vec Reciprocal(Vec x) {
  const Vec estimate = _mm512_rcp14_ps(x);
  return Mul(estimate, Fnma(x, estimate, Set1(2.f)));
}

inline float FirstLane(Vec v) { return _mm512_cvtss_f32(v); }

inline float Sum(Vec v) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
}

inline float Largest(Vec v) {
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  quarter = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_max_ss(quarter, _mm_movehdup_ps(quarter)));
}

// 16 x 16: unpack pairs, then quads, then move 128-bit lanes.
inline void Transpose(const float* in, ptrdiff_t in_stride, float* out, ptrdiff_t out_stride) {
  Vec r[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = Load(in + i * in_stride);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // r[i + c]: column c of each quad of columns, rows i .. i + 3
    r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
    r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
    r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
    r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const Vec even_low = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88);        // quads 0, 2 of rows 0-3, of rows 4-7
    const Vec odd_low = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd);         // quads 1, 3
    const Vec even_high = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);  // the same of rows 8-15
    const Vec odd_high = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
    Store(out + c * out_stride, _mm512_shuffle_f32x4(even_low, even_high, 0x88));
    Store(out + (4 + c) * out_stride, _mm512_shuffle_f32x4(odd_low, odd_high, 0x88));
    Store(out + (8 + c) * out_stride, _mm512_shuffle_f32x4(even_low, even_high, 0xdd));
    Store(out + (12 + c) * out_stride, _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd));
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
