// int8 and bf16 matrix products with AMX.
//
// 2 x 2 tiles of sums are 32 rows x 32 columns, one panel; a step takes 64 bytes of inputs: 4 tile loads, 4 products of
// 16 cycles each. Sums go through the first-level cache to the AVX-512 epilogue, and the epilogue of one 32 x 32 block
// runs a few rows per step between the products of the next: the tile unit and the vector units work at the same time,
// which matters because GELU of a block costs nearly half as many cycles as the products of 768 inputs.
//
// The four loads of a step come before its four products. On a Xeon of 16 shared processors, tiles in the first-level
// cache: 1200 G bf16 multiply-adds a second without loads, 282 with one load before each product, 52 + 16 cycles for
// each, as if a load waited for the product before it.
//
// While a panel is computed the next one is fetched into the second-level cache. Rows that do not fill the last block
// are computed together with rows of the block before, which get the same bits twice: so a panel is read once, and the
// shapes of the tiles stay as they are.
//
// Tiles are configured on entry and released on return: a thread that keeps live tiles pays for 8 KiB at every context
// switch.
#include "cpu/vec_avx512.h"

#include "cpu/vec.h"

#include "cpu/amx_tiles.h"
#include "cpu/tile_bf16.h"
#include "cpu/tile_int8_avx512.h"

namespace ftbert {
namespace cpu {
namespace {

constexpr int kBlockRows = 2 * kTileRows;
static_assert(kColumns == 2 * kTileRows, "a panel is two tiles wide");

struct Int8Amx {
  using Element = int32_t;
  using Columns = Int8Columns;
  static constexpr bool kWritesPrepared = false;
  static constexpr bool kInt8 = true;
  static void StorePrepared(uint8_t*, ptrdiff_t, Vec) {}
};

struct Bf16Amx {
  using Element = float;
  using Columns = Bf16Columns;
  static constexpr bool kWritesPrepared = true;
  static constexpr bool kInt8 = false;
  static void StorePrepared(uint8_t* row, ptrdiff_t column, Vec x) { StoreBf16(row, column, x); }
};

// A block whose sums are done and whose epilogue is not.
template <Epilogue kEpilogue, typename Dot>
struct PendingBlock {
  const LinearJob* job = nullptr;
  const typename Dot::Element* sums = nullptr;
  int32_t panel = 0;
  int32_t row = 0;
  int32_t next = 0;  // rows of the block before it are finished
  int32_t rows = 0;

  // Finishes up to `count` more rows.
  void Advance(int count) {
    const int end = next + count < rows ? next + count : rows;
    if (next < end) {
      FinishRows<kEpilogue, Dot>(*job, panel, row + next, end - next, sums + next * kColumns);
      next = end;
    }
  }
};

#define FTBERT_AMX_STEP_OF(dot)                                             \
  AMX_LOAD(4, in, stride);                                                  \
  AMX_LOAD(6, weights, 4 * kColumns);                                       \
  AMX_LOAD(7, weights + 64, 4 * kColumns);                                  \
  if (kTiles == 2) AMX_LOAD(5, in + kTileRows * stride, stride);            \
  dot(0, 4, 6);                                                             \
  dot(1, 4, 7);                                                             \
  if (kTiles == 2) {                                                        \
    dot(2, 5, 6);                                                           \
    dot(3, 5, 7);                                                           \
  }

// Cache lines of a panel that one step reads, and the bytes of them.
constexpr int kStepLines = 4 * kColumns / 64 * kTileRows;
constexpr size_t kStepBytes = size_t{4} * kColumns * kTileRows;

// What is fetched ahead, so many lines with every step.
struct FetchAhead {
  const uint8_t* at = nullptr;
  int lines = 0;

  void Advance() {
    for (int i = 0; i < lines; ++i, at += 64) _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T1);
  }
};

// Sums of kTiles row tiles by one panel; the block before is finished on the way, and the next panel fetched.
template <Epilogue kEpilogue, typename Dot, int kTiles>
inline void BlockSums(const uint8_t* in, size_t stride, const uint8_t* weights, int32_t lines,
                      FetchAhead* ahead, PendingBlock<kEpilogue, Dot>* before, typename Dot::Element* sums) {
  AMX_ZERO(0);
  AMX_ZERO(1);
  if (kTiles == 2) {
    AMX_ZERO(2);
    AMX_ZERO(3);
  }
  const int rows_per_step = (kBlockRows + lines - 1) / lines;
  for (int32_t line = 0; line < lines; ++line) {
    if (Dot::kInt8) {
      FTBERT_AMX_STEP_OF(AMX_DOT_INT8)
    } else {
      FTBERT_AMX_STEP_OF(AMX_DOT_BF16)
    }
    in += kLineBytes;
    weights += kStepBytes;
    ahead->Advance();
    before->Advance(rows_per_step);
  }
  before->Advance(kBlockRows);
  constexpr size_t kSumStride = kColumns * sizeof(typename Dot::Element);
  AMX_STORE(0, sums, kSumStride);
  AMX_STORE(1, sums + 16, kSumStride);
  if (kTiles == 2) {
    AMX_STORE(2, sums + kTileRows * kColumns, kSumStride);
    AMX_STORE(3, sums + kTileRows * kColumns + 16, kSumStride);
  }
}
#undef FTBERT_AMX_STEP_OF

template <Epilogue kEpilogue, typename Dot>
void ComputeAs(const LinearJob& job) {
  alignas(64) typename Dot::Element sums[2][kBlockRows * kColumns];
  int current = 0;
  PendingBlock<kEpilogue, Dot> before;
  TileShapes shapes;
  if (job.rows < kBlockRows) {  // rows beyond the last are never read
    const int32_t first = job.rows < kTileRows ? job.rows : kTileRows;
    const int32_t second = job.rows - first;
    shapes.rows[0] = shapes.rows[1] = shapes.rows[4] = static_cast<uint8_t>(first);
    shapes.rows[2] = shapes.rows[3] = shapes.rows[5] = static_cast<uint8_t>(second > 0 ? second : 1);
  }
  AMX_CONFIGURE(&shapes);
  const int32_t blocks = (job.rows + kBlockRows - 1) / kBlockRows;
  const int32_t rows = job.rows < kBlockRows ? job.rows : kBlockRows;
  for (int32_t p = 0; p < job.panel_count; ++p) {
    const uint8_t* weights = job.weights + p * job.panel_bytes;
    FetchAhead ahead;
    ahead.at = weights + job.panel_bytes;
    ahead.lines = p + 1 < job.panel_count ? (kStepLines + blocks - 1) / blocks : 0;
    for (int32_t block = 0; block < blocks; ++block) {
      const int32_t row = block + 1 < blocks ? block * kBlockRows : job.rows - rows;
      const uint8_t* in = job.in + row * job.in_stride;
      if (rows > kTileRows) {
        BlockSums<kEpilogue, Dot, 2>(in, job.in_stride, weights, job.lines, &ahead, &before, sums[current]);
      } else {
        BlockSums<kEpilogue, Dot, 1>(in, job.in_stride, weights, job.lines, &ahead, &before, sums[current]);
      }
      before.job = &job;
      before.sums = sums[current];
      before.panel = p;
      before.row = row;
      before.next = 0;
      before.rows = rows;
      current ^= 1;
    }
  }
  before.Advance(kBlockRows);
  AMX_RELEASE();
}

template <typename Dot>
void Compute(const LinearJob& job) {
  switch (job.epilogue) {
    case Epilogue::kBias: return ComputeAs<Epilogue::kBias, Dot>(job);
    case Epilogue::kBiasGeluErf: return ComputeAs<Epilogue::kBiasGeluErf, Dot>(job);
    case Epilogue::kBiasGeluTanh: return ComputeAs<Epilogue::kBiasGeluTanh, Dot>(job);
    case Epilogue::kBiasRelu: return ComputeAs<Epilogue::kBiasRelu, Dot>(job);
    case Epilogue::kBiasTanh: return ComputeAs<Epilogue::kBiasTanh, Dot>(job);
  }
}

}  // namespace

const LinearOps kInt8Amx = {Isa::kAmx, kBlockRows, kColumns, false, 128, PrepareInt8, Compute<Int8Amx>};
const LinearOps kBf16Amx = {Isa::kAmx, kBlockRows, kColumns, false, 128, PrepareBf16, Compute<Bf16Amx>};

}  // namespace cpu
}  // namespace ftbert
