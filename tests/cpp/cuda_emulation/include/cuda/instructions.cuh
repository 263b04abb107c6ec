// Emulated: ftbert/_ops/cuda/instructions.cuh says what each does.
#ifndef FTBERT_TESTS_CUDA_EMULATION_INSTRUCTIONS_CUH_
#define FTBERT_TESTS_CUDA_EMULATION_INSTRUCTIONS_CUH_

#include <cuda_runtime.h>

#include "emulation.h"

namespace ftbert {
namespace cuda {

inline void WaitForPreviousKernel() { emulation::WaitForPrevious(); }
inline void LetNextKernelStart() {}
inline uint32_t PackHalfPair(float low, float high) {
  const auto saturate = [](float x) { return x > 65504.f ? 65504.f : (x < -65504.f ? -65504.f : x); };
  return __float2half(saturate(low)).bits | static_cast<uint32_t>(__float2half(saturate(high)).bits) << 16;
}
inline float FastExp2(float x) { return x < -126.f ? 0.f : std::exp2(x); }
inline float FastDivide(float x, float by) { return x / by; }
inline float FastRsqrt(float x) { return 1.f / std::sqrt(x); }
inline float FastSqrt(float x) { return std::sqrt(x); }
inline float FastTanh(float x) { return std::tanh(x); }
inline __half2 FastTanh2(__half2 x) {
  return __floats2half2_rn(std::tanh(__half2float(x.x)), std::tanh(__half2float(x.y)));
}
inline uint32_t BitsFrom(int bit) { return bit >= 32 ? 0u : 0xffffffffu << max(bit, 0); }
inline float WarpMaxMagnitude(float x) {
  for (int step = 16; step > 0; step >>= 1) x = std::fmax(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}
inline int SameInWarp(int x) { return static_cast<int>(ShuffleBits(0xffffffffu, static_cast<uint32_t>(x), 0)); }

inline uint32_t SharedAddress(const void* pointer) { return emulation::SharedAddress(pointer); }
inline uint8_t* DynamicShared() { return emulation::DynamicShared(); }
inline void StoreShared(uint32_t address, float value) { emulation::StoreShared(address, &value, 4); }
inline void StoreShared(uint32_t address, uint32_t value) { emulation::StoreShared(address, &value, 4); }
inline void StoreShared(uint32_t address, uint16_t value) { emulation::StoreShared(address, &value, 2); }
inline void StoreShared2(uint32_t address, const float2& value) { emulation::StoreShared(address, &value, 8); }
inline void StoreShared4(uint32_t address, const float4& value) { emulation::StoreShared(address, &value, 16); }
template <typename V>
V LoadSharedAs(uint32_t address) {
  V value;
  emulation::LoadShared(address, &value, sizeof value);
  return value;
}
inline float LoadShared1(uint32_t address) { return LoadSharedAs<float>(address); }
inline float2 LoadShared2(uint32_t address) { return LoadSharedAs<float2>(address); }
inline float4 LoadShared4(uint32_t address) { return LoadSharedAs<float4>(address); }
inline uint4 LoadSharedPiece(uint32_t address) { return LoadSharedAs<uint4>(address); }

inline void CopyAsync16(uint32_t to, const void* from, bool valid) { emulation::CopyAsync16(to, from, valid); }
inline void CommitCopies() { emulation::CommitCopies(); }
template <int kPending>
void WaitCopies() {
  emulation::WaitCopies(kPending);
}
inline void LoadMatrix4(uint32_t (&r)[4], uint32_t address) { emulation::LoadMatrix4(r, address, false); }
inline void LoadMatrix4Transposed(uint32_t (&r)[4], uint32_t address) { emulation::LoadMatrix4(r, address, true); }
inline void StoreMatrix4(uint32_t address, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
  const uint32_t r[4] = {r0, r1, r2, r3};
  emulation::StoreMatrix4(address, r);
}
template <typename T>
void MultiplyAdd(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulation::MultiplyAdd(d, a, b0, b1, emulation::KindOf<T>());
}

}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_TESTS_CUDA_EMULATION_INSTRUCTIONS_CUH_
