// bf16 weights by fp32 inputs with AVX-512 F: see tile_bf16_widened.h.
#include "cpu/vec_avx512.h"

#include "cpu/vec.h"

namespace ftbert {
namespace cpu {
namespace {

constexpr int kWidenedRows = 12;
constexpr int kTileRows = 12;   // 24 sums, 2 weights, 1 input of 32 registers
constexpr int kTileAhead = 128;

// 16 pairs (low half first) to the 16 first and the 16 second values.
inline void Widen(const uint8_t* pairs, Vec* even, Vec* odd) {
  const __m512i both = _mm512_load_si512(pairs);
  *even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
  *odd = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#include "cpu/tile_bf16_widened.h"

namespace ftbert {
namespace cpu {

const LinearOps kBf16Avx512 = {Isa::kAvx512, kWidenedRows, kColumns, true, 120, nullptr, ComputeWidened};

}  // namespace cpu
}  // namespace ftbert
