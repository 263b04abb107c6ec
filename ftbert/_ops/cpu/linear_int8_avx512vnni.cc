// int8 matrix products with AVX-512 VNNI: vpdpbusd adds four u8 x s8 products to an int32 without saturation (4 x 255 x
// 127 is far from 2^31, and so are 16,384 of them).
#include "cpu/vec_avx512.h"

#include "cpu/vec.h"

#include "cpu/tile_int8_avx512.h"

namespace ftbert {
namespace cpu {
namespace {

struct Int8Avx512Vnni {
  using Sum = __m512i;
  using Word = __m512i;
  using Element = int32_t;
  using Columns = Int8Columns;
  static constexpr int kRowTile = 12;
  static constexpr bool kWritesPrepared = false;

  static Sum Zero() { return _mm512_setzero_si512(); }
  static Word LoadWeights(const uint8_t* p) { return _mm512_load_si512(p); }
  static Word Broadcast(const uint8_t* p, size_t) {
    int32_t group;
    std::memcpy(&group, p, sizeof(group));
    return _mm512_set1_epi32(group);
  }
  static Sum Add(Sum sum, Word x, Word w) { return _mm512_dpbusd_epi32(sum, x, w); }
  static void Store(int32_t* to, Sum sum) { _mm512_store_si512(to, sum); }
  static void StorePrepared(uint8_t*, ptrdiff_t, Vec) {}
};

}  // namespace

const LinearOps kInt8Avx512Vnni = {Isa::kAvx512Vnni, Int8Avx512Vnni::kRowTile, kColumns, false, 72,
                                   PrepareInt8<1>, ComputeTiles<Int8Avx512Vnni>};

}  // namespace cpu
}  // namespace ftbert
