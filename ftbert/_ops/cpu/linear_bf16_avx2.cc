// bf16 weights by fp32 inputs with AVX2 and FMA: see tile_bf16_widened.h.
#include "cpu/vec_avx2.h"

#include "cpu/vec.h"

namespace ftbert {
namespace cpu {
namespace {

constexpr int kWidenedRows = 5;  // 10 sums, 4 weights, 1 input of 16 registers
constexpr int kTileRows = 6;     // 12 sums, 2 weights, 1 input
constexpr int kTileAhead = 128;

// 8 pairs (low half first) to the 8 first and the 8 second values.
inline void Widen(const uint8_t* pairs, Vec* even, Vec* odd) {
  const __m256i both = _mm256_load_si256(reinterpret_cast<const __m256i*>(pairs));
  *even = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
  *odd = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#include "cpu/tile_bf16_widened.h"

namespace ftbert {
namespace cpu {

const LinearOps kBf16Avx2 = {Isa::kAvx2, kWidenedRows, kColumns, true, 120, nullptr, ComputeWidened};

}  // namespace cpu
}  // namespace ftbert
