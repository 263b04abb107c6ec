// int8 matrix products with AVX-VNNI, of processors without AVX-512: vpdpbusd in its VEX form, exact.
#include "cpu/vec_avx2.h"

#include "cpu/vec.h"

#include "cpu/tile_int8_avx2.h"

namespace ftbert {
namespace cpu {
namespace {

struct Int8Avx2Vnni : Int8OfAvx2 {
  using Columns = Int8Columns;
  static constexpr int kRowTile = 6;
  static Word Broadcast(const uint8_t* p, size_t) { return BroadcastGroup(p); }
  static Sum Add(Sum sum, Word x, Word w) { return _mm256_dpbusd_avx_epi32(sum, x, w); }
};

}  // namespace

const LinearOps kInt8Avx2Vnni = {Isa::kAvx2, Int8Avx2Vnni::kRowTile,    kColumns, false, 72, PrepareInt8<1>,
                                 ComputeTiles<Int8Avx2Vnni>};

}  // namespace cpu
}  // namespace ftbert
