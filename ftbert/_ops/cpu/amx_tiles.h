// The AMX instructions that the kernels use, as macros on tile numbers 0 .. 7. With FTBERT_EMULATE_AMX defined they are
// plain loops on a thread's own tiles, so that the kernels' indexing is tested on any machine with AVX-512 (tests/cpp).
//
// A tile is 16 rows of 64 bytes at most. Products, for tiles C (rows x 16 words), A (rows x 64 bytes), B (16 x 64
// bytes):
//   AMX_DOT_INT8  C[m][n] += sum over i < 16, j < 4 of u8 A[m][4i + j] * s8 B[i][4n + j]
//   AMX_DOT_BF16  C[m][n] += sum over i < 16, j < 2 of A[m][2i + j] * B[i][2n + j], fp32; below 2^-126 is zero
#ifndef FTBERT_CPU_AMX_TILES_H_
#define FTBERT_CPU_AMX_TILES_H_

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace ftbert {
namespace cpu {
namespace {

constexpr int kTileRows = 16;
constexpr size_t kTileBytes = size_t{kTileRows} * 64;

// The operand of ldtilecfg: palette 1, rows of each tile, 64 bytes in every row.
struct alignas(64) TileShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileShapes) == 64, "the layout of ldtilecfg");

#ifndef FTBERT_EMULATE_AMX

// The compiler believes that ldtilecfg reads eight bytes only, and would leave out the stores of all others.
#define AMX_CONFIGURE(shapes)               \
  do {                                      \
    asm volatile("" ::"m"(*(shapes)));      \
    _tile_loadconfig(shapes);               \
  } while (false)
#define AMX_RELEASE() _tile_release()
#define AMX_ZERO(tile) _tile_zero(tile)
#define AMX_LOAD(tile, base, stride) _tile_loadd(tile, base, stride)
// What is not read again soon: it leaves what else is in the first-level cache there.
#define AMX_LOAD_ONCE(tile, base, stride) _tile_stream_loadd(tile, base, stride)
#define AMX_STORE(tile, base, stride) _tile_stored(tile, base, stride)
#define AMX_DOT_INT8(c, a, b) _tile_dpbusd(c, a, b)
#define AMX_DOT_BF16(c, a, b) _tile_dpbf16ps(c, a, b)

#else

struct EmulatedTiles {
  TileShapes shapes;
  uint8_t tile[8][16][64];
};
inline EmulatedTiles& Emulated() {
  static thread_local EmulatedTiles tiles;
  return tiles;
}
inline void EmulateLoad(int tile, const void* base, size_t stride) {
  EmulatedTiles& e = Emulated();
  std::memset(e.tile[tile], 0, sizeof(e.tile[tile]));
  for (int r = 0; r < e.shapes.rows[tile]; ++r) {
    std::memcpy(e.tile[tile][r], static_cast<const uint8_t*>(base) + r * stride, 64);
  }
}
inline void EmulateStore(int tile, void* base, size_t stride) {
  EmulatedTiles& e = Emulated();
  auto* to = static_cast<uint8_t*>(base);
  for (int r = 0; r < e.shapes.rows[tile]; ++r) std::memcpy(to + r * stride, e.tile[tile][r], 64);
}
inline void EmulateDotInt8(int c, int a, int b) {
  EmulatedTiles& e = Emulated();
  for (int m = 0; m < e.shapes.rows[c]; ++m) {
    for (int n = 0; n < 16; ++n) {
      int32_t sum;
      std::memcpy(&sum, &e.tile[c][m][4 * n], 4);
      for (int i = 0; i < 64; ++i) sum += e.tile[a][m][i] * static_cast<int8_t>(e.tile[b][i / 4][4 * n + i % 4]);
      std::memcpy(&e.tile[c][m][4 * n], &sum, 4);
    }
  }
}
inline float EmulatedBf16(const uint8_t* bytes) {
  uint16_t half;
  std::memcpy(&half, bytes, 2);
  const uint32_t bits = (half & 0x7f80) != 0 ? static_cast<uint32_t>(half) << 16 : 0;  // below 2^-126: zero
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
// In the order of the instruction: a chain of fused multiply-adds for either input of a pair, then both are added.
inline void EmulateDotBf16(int c, int a, int b) {
  EmulatedTiles& e = Emulated();
  for (int m = 0; m < e.shapes.rows[c]; ++m) {
    for (int n = 0; n < 16; ++n) {
      float sum, of[2] = {};
      std::memcpy(&sum, &e.tile[c][m][4 * n], 4);
      for (int i = 0; i < 32; ++i) {
        of[i % 2] = __builtin_fmaf(EmulatedBf16(&e.tile[a][m][2 * i]),
                                   EmulatedBf16(&e.tile[b][i / 2][4 * n + 2 * (i % 2)]), of[i % 2]);
      }
      sum += of[0] + of[1];
      std::memcpy(&e.tile[c][m][4 * n], &sum, 4);
    }
  }
}

#define AMX_CONFIGURE(shape) (Emulated().shapes = *(shape))
#define AMX_RELEASE() (Emulated() = EmulatedTiles())
#define AMX_ZERO(t) std::memset(Emulated().tile[t], 0, sizeof(Emulated().tile[t]))
#define AMX_LOAD(tile, base, stride) EmulateLoad(tile, base, stride)
#define AMX_LOAD_ONCE(tile, base, stride) EmulateLoad(tile, base, stride)
#define AMX_STORE(tile, base, stride) EmulateStore(tile, base, stride)
#define AMX_DOT_INT8(c, a, b) EmulateDotInt8(c, a, b)
#define AMX_DOT_BF16(c, a, b) EmulateDotBf16(c, a, b)

#endif  // FTBERT_EMULATE_AMX

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_AMX_TILES_H_
