// What every CUDA kernel file shares: 16-byte vectors of the activation types, warp reductions, asynchronous copies,
// matrix fragments, and programmatic dependent launch. Everything here runs on compute capability 8.0 and later.
#ifndef FTBERT_CUDA_COMMON_CUH_
#define FTBERT_CUDA_COMMON_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/gemm.h"

namespace ftbert {
namespace cuda {

using Half = __half;
using BFloat = __nv_bfloat16;
using Float8 = __nv_fp8_e4m3;

constexpr float kHalfMax = 65504.f;

// ---- Programmatic dependent launch: a kernel may start while the one before it still runs; Wait returns once that one
// has ended and its writes are visible. Every kernel waits, so that waiting for the previous one covers all before it.
__device__ __forceinline__ void WaitForPreviousKernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void LetNextKernelStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

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
#if __CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 4)
  uint32_t bits;  // saturates too, in one instruction
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
#else
  __half2 pair = __floats2half2_rn(low, high);
  const __half2 top = __half2half2(__ushort_as_half(0x7bff)), bottom = __half2half2(__ushort_as_half(0xfbff));
  pair = __hmax2_nan(__hmin2_nan(pair, top), bottom);
  return *reinterpret_cast<uint32_t*>(&pair);
#endif
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

// 2^x within 2 units of the last place; results that are denormal become 0, as weights of a softmax may.
__device__ __forceinline__ float FastExp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- Activations --------------------------------------------------------------------------------------------------
__device__ __forceinline__ float FastTanh(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));  // relative error 2^-11: half an fp16 step
  return y;
}

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

template <bool kExact>
__device__ __forceinline__ float ActivateBy(Act act, float x) {
  switch (act) {
    case Act::kGeluErf:
      return Activate<Act::kGeluErf, kExact>(x);
    case Act::kGeluTanh:
      return Activate<Act::kGeluTanh, kExact>(x);
    case Act::kRelu:
      return Activate<Act::kRelu, kExact>(x);
    case Act::kTanh:
      return Activate<Act::kTanh, kExact>(x);
    case Act::kNone:
      break;
  }
  return x;
}

// ---- Shared memory, asynchronous copies, matrix fragments ---------------------------------------------------------
__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
// 16 bytes; zeros where !valid (nothing is read then).
__device__ __forceinline__ void CopyAsync16(uint32_t to, const void* from, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
__device__ __forceinline__ void LoadMatrix4(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void LoadMatrix4Transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
// d (16x8) += a (16x16) b (16x8)
template <typename T>
__device__ __forceinline__ void MultiplyAdd(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
__device__ __forceinline__ void MultiplyAdd<Half>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void MultiplyAdd<BFloat>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_CUDA_COMMON_CUH_
