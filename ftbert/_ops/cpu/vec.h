// What vec_portable.h, vec_avx2.h and vec_avx512.h define, each in an anonymous namespace, and the functions built on
// it.
//
//   Vec, kLanes, kVecRegisters (how many Vec the register file holds)
//   Zero Set1 Load Store (any alignment) LoadPartial StorePartial (the first `count` lanes; the rest read as 0,
//   untouched) LoadFloat16 LoadBFloat16 (kLanes 16-bit values to fp32)
//   Add Sub Mul   Fma(a, b, c) = ab + c   Fnma(a, b, c) = c - ab   Reciprocal
//   Max Min: where either is NaN the second argument is returned, so Max(limit, x) keeps a NaN in x
//   Round (to nearest even)   ScaleByPowerOf2(x, n) = x 2^n, n whole and in [-126, 127]   Abs
//   SelectNonNegative(x, yes, no): no where x < 0, else (also NaN) yes
//   SelectFirst(count, yes, no): the first `count` lanes of yes, the others of no
//   Transpose: kLanes x kLanes floats, out[j * out_stride + i] = in[i * in_stride + j]
//   Sum Largest (over lanes, in a fixed order)   FirstLane   Prefetch
//   PrefetchSecondLevel
//
// A kernel written on these is compiled once per instruction set, in a file that includes one vec_*.h, this file and
// the kernels. Everything stays in anonymous namespaces and no std:: template is used, so that the linker can never
// take a function compiled for AVX-512 for the portable path.
//
// Error bounds (relative to the exact value; checked in tests/cpp/cpu_math_test.cc):
//   Exp2      (2e-7 + 6e-8 |x|) relative, for x in [-126, 126]; 2^-126 below, 2^126 above
//   GELU      4e-7 max(|x|, 1) absolute, both forms
//   tanh      4e-7 absolute
#ifndef FTBERT_CPU_VEC_H_
#define FTBERT_CPU_VEC_H_

namespace ftbert {
namespace cpu {
namespace {

// 2^x. Least-maximum polynomial of degree 5 on [-1/2, 1/2] with constant term 1: 9.2e-8.
inline __attribute__((always_inline)) Vec Exp2(Vec x) {
  x = Max(Set1(-126.f), Min(Set1(126.f), x));
  const Vec n = Round(x);
  const Vec f = Sub(x, n);
  Vec p = Fma(Set1(0.0013264727065363142f), f, Set1(0.009671512648909756f));
  p = Fma(p, f, Set1(0.05550733743690975f));
  p = Fma(p, f, Set1(0.24022242085173195f));
  p = Fma(p, f, Set1(0.693146977598858f));
  p = Fma(p, f, Set1(1.f));
  return ScaleByPowerOf2(p, n);
}

// x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2, as x / (1 + exp(-2u)): nothing cancels where u is very negative.
inline __attribute__((always_inline)) Vec GeluTanh(Vec x) {
  // -2 sqrt(2/pi) log2(e) and the same times 0.044715
  const Vec inner = Fma(Mul(x, x), Set1(-0.10294324f), Set1(-2.3022082f));
  return Mul(x, Reciprocal(Add(Set1(1.f), Exp2(Mul(x, inner)))));
}

// x (1 + erf(x / sqrt(2))) / 2 = max(x, 0) - |x| q / 2 with q = erfc(|x| / sqrt(2)) = t P(t) exp(-x^2 / 2), t = 1 / (1
// + p z), the form of Abramowitz and Stegun 7.1.26 with p = 0.4 and a least-maximum P of degree 5: 2.8e-8.
inline __attribute__((always_inline)) Vec GeluErf(Vec x) {
  const Vec magnitude = Abs(x);
  const Vec t = Reciprocal(Fma(magnitude, Set1(0.28284271f), Set1(1.f)));  // 0.4 / sqrt(2)
  Vec p = Fma(Set1(-0.20025880782574162f), t, Set1(0.7091455858544465f));
  p = Fma(p, t, Set1(-0.37090517411957924f));
  p = Fma(p, t, Set1(0.46827199143138f));
  p = Fma(p, t, Set1(0.16182441490100874f));
  p = Fma(p, t, Set1(0.23192196214208016f));
  const Vec gauss = Exp2(Mul(Mul(x, x), Set1(-0.72134752f)));  // log2(e) / 2
  const Vec tail = Mul(Mul(Mul(magnitude, Set1(0.5f)), Mul(p, t)), gauss);
  return Sub(Max(Zero(), x), tail);
}

inline __attribute__((always_inline)) Vec Tanh(Vec x) {
  const Vec e = Exp2(Mul(x, Set1(2.8853901f)));  // 2 log2(e)
  return Fnma(Set1(2.f), Reciprocal(Add(Set1(1.f), e)), Set1(1.f));
}

inline __attribute__((always_inline)) Vec Relu(Vec x) { return Max(Zero(), x); }

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_VEC_H_
