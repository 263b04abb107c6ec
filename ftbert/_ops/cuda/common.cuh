// What every CUDA kernel file shares: 16-byte vectors of the activation types, warp reductions, activations. Everything
// here runs on compute capability 8.0 and later.
#ifndef FTBERT_CUDA_COMMON_CUH_
#define FTBERT_CUDA_COMMON_CUH_

#include <cstdint>
#include <type_traits>

#include "cuda/gemm.h"
#include "cuda/instructions.cuh"

namespace ftbert {
namespace cuda {

using Half = __half;
using BFloat = __nv_bfloat16;
using Float8 = __nv_fp8_e4m3;

constexpr float kHalfMax = 65504.f;

// ---- Numbers ------------------------------------------------------------------------------------------------------
__device__ __forceinline__ float ToFloat(Half x) { return __half2float(x); }
__device__ __forceinline__ float ToFloat(BFloat x) { return __bfloat162float(x); }
__device__ __forceinline__ float ToFloat(float x) { return x; }

// Saturates: a value that fp16 cannot hold becomes its largest, so that no infinity enters the residual stream.
template <typename T>
__device__ __forceinline__ T FromFloat(float x);
template <>
__device__ __forceinline__ Half FromFloat<Half>(float x) {
  return __float2half_rn(x > kHalfMax ? kHalfMax : (x < -kHalfMax ? -kHalfMax : x));
}
template <>
__device__ __forceinline__ BFloat FromFloat<BFloat>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ float FromFloat<float>(float x) {
  return x;
}

template <typename T>
__device__ __forceinline__ uint32_t PackPair(float low, float high);
template <>
__device__ __forceinline__ uint32_t PackPair<Half>(float low, float high) {
  return PackHalfPair(low, high);
}
template <>
__device__ __forceinline__ uint32_t PackPair<BFloat>(float low, float high) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<uint32_t*>(&pair);
}

template <typename T>
__device__ __forceinline__ float2 UnpackPair(uint32_t bits);
template <>
__device__ __forceinline__ float2 UnpackPair<Half>(uint32_t bits) {
  return __half22float2(*reinterpret_cast<__half2*>(&bits));
}
template <>
__device__ __forceinline__ float2 UnpackPair<BFloat>(uint32_t bits) {
  return __bfloat1622float2(*reinterpret_cast<__nv_bfloat162*>(&bits));
}

// Eight consecutive values, 16-byte aligned (32-byte steps for fp32).
template <typename T>
__device__ __forceinline__ void Load8(const T* from, float (&to)[8]) {
  const uint4 bits = *reinterpret_cast<const uint4*>(from);
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = UnpackPair<T>(words[i]);
    to[2 * i] = pair.x;
    to[2 * i + 1] = pair.y;
  }
}
template <>
__device__ __forceinline__ void Load8<float>(const float* from, float (&to)[8]) {
  const float4 a = reinterpret_cast<const float4*>(from)[0], b = reinterpret_cast<const float4*>(from)[1];
  to[0] = a.x, to[1] = a.y, to[2] = a.z, to[3] = a.w, to[4] = b.x, to[5] = b.y, to[6] = b.z, to[7] = b.w;
}
template <typename T>
__device__ __forceinline__ void Store8(T* to, const float (&from)[8]) {
  *reinterpret_cast<uint4*>(to) = make_uint4(PackPair<T>(from[0], from[1]), PackPair<T>(from[2], from[3]),
                                             PackPair<T>(from[4], from[5]), PackPair<T>(from[6], from[7]));
}
template <>
__device__ __forceinline__ void Store8<float>(float* to, const float (&from)[8]) {
  reinterpret_cast<float4*>(to)[0] = make_float4(from[0], from[1], from[2], from[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(from[4], from[5], from[6], from[7]);
}

__device__ __forceinline__ uint16_t PackFloat8Pair(float low, float high) {
  return __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E4M3);
}

__device__ __forceinline__ uint16_t PackFloat8Pair(__half2 pair) {
  return __nv_cvt_halfraw2_to_fp8x2(static_cast<__half2_raw>(pair), __NV_SATFINITE, __NV_E4M3);
}

// Eight values that `bits` holds in 16 bits, to to[at] and on: as they are, or fp16 as fp8.
template <typename T, bool kFloat8>
__device__ __forceinline__ void StoreEight(void* to, int64_t at, const uint4& bits) {
  if constexpr (kFloat8) {
    static_assert(std::is_same<T, Half>::value, "only fp16 is kept as fp8");
    const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
    uint32_t pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = PackFloat8Pair(*reinterpret_cast<const __half2*>(&words[i]));
    *reinterpret_cast<uint2*>(static_cast<uint8_t*>(to) + at) =
        make_uint2(pairs[0] | pairs[1] << 16, pairs[2] | pairs[3] << 16);
  } else {
    *reinterpret_cast<uint4*>(static_cast<T*>(to) + at) = bits;
  }
}

__device__ __forceinline__ float WarpSum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}
__device__ __forceinline__ float WarpMax(float x) {
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}

// ---- Activations --------------------------------------------------------------------------------------------------
// kExact: fp32 results. Otherwise the error stays under fp16's own rounding.
template <Act kAct, bool kExact>
__device__ __forceinline__ float Activate(float x) {
  if (kAct == Act::kGeluErf) return 0.5f * x * (1.f + erff(x * 0.70710678118654752f));
  if (kAct == Act::kGeluTanh) {
    const float inner = x * fmaf(0.7978845608028654f * 0.044715f, x * x, 0.7978845608028654f);
    const float half = 0.5f * x;
    return fmaf(half, kExact ? tanhf(inner) : FastTanh(inner), half);
  }
  if (kAct == Act::kRelu) return fmaxf(x, 0.f);
  if (kAct == Act::kTanh) return tanhf(x);
  return x;
}

// Calls body(std::integral_constant<Act, act>()).
template <typename Body>
__device__ __forceinline__ void WithAct(Act act, const Body& body) {
  switch (act) {
    case Act::kNone:
      return body(std::integral_constant<Act, Act::kNone>());
    case Act::kGeluErf:
      return body(std::integral_constant<Act, Act::kGeluErf>());
    case Act::kGeluTanh:
      return body(std::integral_constant<Act, Act::kGeluTanh>());
    case Act::kRelu:
      return body(std::integral_constant<Act, Act::kRelu>());
    case Act::kTanh:
      return body(std::integral_constant<Act, Act::kTanh>());
  }
}

template <bool kExact>
__device__ __forceinline__ float ActivateBy(Act act, float x) {
  WithAct(act, [&](auto tag) { x = Activate<decltype(tag)::value, kExact>(x); });
  return x;
}

}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_CUDA_COMMON_CUH_
