// Vectors of 8 floats in the compiler's own vector type: SSE2 pairs on plain x86-64, NEON pairs on aarch64. Included
// once; see vec.h for the contract.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/half.h"

namespace ftbert {
namespace cpu {
namespace {

typedef float Vec __attribute__((vector_size(32)));
typedef int32_t VecInt __attribute__((vector_size(32)));
constexpr int kLanes = 8;
#if defined(__aarch64__)
constexpr int kVecRegisters = 16;  // 32 of half the width
#else
constexpr int kVecRegisters = 8;  // 16 of half the width
#endif

// Everything is forced inline: a vector wider than the registers has no settled way to be passed.
#define FTBERT_INLINE inline __attribute__((always_inline))

FTBERT_INLINE Vec Set1(float x) { return Vec{x, x, x, x, x, x, x, x}; }
FTBERT_INLINE Vec Zero() { return Set1(0.f); }
FTBERT_INLINE Vec Load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
FTBERT_INLINE void Store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
FTBERT_INLINE Vec LoadPartial(const float* p, int count) {
  Vec v = Zero();
  for (int i = 0; i < count; ++i) v[i] = p[i];
  return v;
}
FTBERT_INLINE void StorePartial(float* p, Vec v, int count) {
  for (int i = 0; i < count; ++i) p[i] = v[i];
}
FTBERT_INLINE Vec LoadFloat16(const uint16_t* p) {
  Vec v;
  for (int i = 0; i < kLanes; ++i) v[i] = Float16ToFloat(p[i]);
  return v;
}
FTBERT_INLINE Vec LoadBFloat16(const uint16_t* p) {
  Vec v;
  for (int i = 0; i < kLanes; ++i) v[i] = BFloat16ToFloat(p[i]);
  return v;
}

FTBERT_INLINE Vec Add(Vec a, Vec b) { return a + b; }
FTBERT_INLINE Vec Sub(Vec a, Vec b) { return a - b; }
FTBERT_INLINE Vec Mul(Vec a, Vec b) { return a * b; }
#if defined(__FP_FAST_FMAF)
FTBERT_INLINE Vec Fma(Vec a, Vec b, Vec c) {
  for (int i = 0; i < kLanes; ++i) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
}
FTBERT_INLINE Vec Fnma(Vec a, Vec b, Vec c) { return Fma(-a, b, c); }
#else
FTBERT_INLINE Vec Fma(Vec a, Vec b, Vec c) { return a * b + c; }
FTBERT_INLINE Vec Fnma(Vec a, Vec b, Vec c) { return c - a * b; }
#endif
FTBERT_INLINE Vec Max(Vec a, Vec b) { return a > b ? a : b; }
FTBERT_INLINE Vec Min(Vec a, Vec b) { return a < b ? a : b; }
FTBERT_INLINE Vec Round(Vec x) {  // for |x| < 2^22
  const Vec magic = Set1(12582912.f);
  return (x + magic) - magic;
}
FTBERT_INLINE Vec ScaleByPowerOf2(Vec x, Vec n) {
  // The sum's low mantissa bits hold n; a NaN becomes some number, and x, a NaN too, keeps the product one.
  const Vec shifted = n + Set1(12582912.f + 127.f);
  VecInt bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = bits << 23;
  Vec power;
  std::memcpy(&power, &bits, sizeof power);
  return x * power;
}
FTBERT_INLINE Vec Abs(Vec x) { return x < Zero() ? -x : x; }
FTBERT_INLINE Vec SelectNonNegative(Vec x, Vec yes, Vec no) { return x < Zero() ? no : yes; }
FTBERT_INLINE Vec SelectFirst(int count, Vec yes, Vec no) {
  for (int i = 0; i < count; ++i) no[i] = yes[i];
  return no;
}
FTBERT_INLINE Vec Reciprocal(Vec x) { return Set1(1.f) / x; }

FTBERT_INLINE float FirstLane(Vec v) { return v[0]; }
FTBERT_INLINE float Sum(Vec v) {
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}
FTBERT_INLINE float Largest(Vec v) {
  float largest = v[0];
  for (int i = 1; i < kLanes; ++i) largest = largest > v[i] ? largest : v[i];
  return largest;
}

inline void Transpose(const float* in, ptrdiff_t in_stride, float* out, ptrdiff_t out_stride) {
  for (int j = 0; j < kLanes; ++j)
    for (int i = 0; i < kLanes; ++i) out[j * out_stride + i] = in[i * in_stride + j];
}

FTBERT_INLINE void Prefetch(const void* p) { __builtin_prefetch(p); }
FTBERT_INLINE void PrefetchSecondLevel(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace
}  // namespace cpu
}  // namespace ftbert
