// bf16 matrix products with AVX512-BF16: vdpbf16ps adds the products of two pairs of bf16 to an fp32 sum.
#include "cpu/vec_avx512.h"

#include "cpu/vec.h"

#include "cpu/tile_bf16.h"

namespace ftbert {
namespace cpu {
namespace {

struct Bf16Avx512 {
  using Sum = __m512;
  using Word = __m512bh;
  using Element = float;
  using Columns = Bf16Columns;
  static constexpr int kRowTile = 12;
  static constexpr bool kWritesPrepared = true;

  static Sum Zero() { return _mm512_setzero_ps(); }
  static Word LoadWeights(const uint8_t* p) { return (__m512bh)_mm512_load_si512(p); }
  static Word Broadcast(const uint8_t* p, size_t) {
    int32_t group;
    std::memcpy(&group, p, sizeof(group));
    return (__m512bh)_mm512_set1_epi32(group);
  }
  static Sum Add(Sum sum, Word x, Word w) { return _mm512_dpbf16_ps(sum, x, w); }
  static void Store(float* to, Sum sum) { _mm512_store_ps(to, sum); }
  static void StorePrepared(uint8_t* row, ptrdiff_t column, Vec x) { StoreBf16(row, column, x); }
};

}  // namespace

const LinearOps kBf16Avx512Bf16 = {
    Isa::kAvx512Bf16, Bf16Avx512::kRowTile, kColumns, false, 72, PrepareBf16<1>, ComputeTiles<Bf16Avx512>};

}  // namespace cpu
}  // namespace ftbert
