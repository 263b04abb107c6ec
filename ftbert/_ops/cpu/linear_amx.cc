// int8 and bf16 matrix products with AMX.
//
// 2 x 2 tiles of sums are 32 rows x 32 columns, one panel; a step takes 64 bytes of inputs: 4 tile loads, 4 products of
// 16 cycles each. Sums go through the first-level cache to the AVX-512 epilogue, and the epilogue of one 32 x 32 block
// runs a few rows per step between the products of the next: the tile unit and the vector units work at the same time,
// which matters because GELU of a block costs nearly half as many cycles as the products of 768 inputs.
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

#define FTBERT_AMX_STEP_OF(dot)                          \
  AMX_LOAD(4, in, stride);                               \
  AMX_LOAD(6, weights, 4 * kColumns);                    \
  dot(0, 4, 6);                                          \
  AMX_LOAD(7, weights + 64, 4 * kColumns);               \
  dot(1, 4, 7);                                          \
  if (kTiles == 2) {                                     \
    AMX_LOAD(5, in + kTileRows * stride, stride);        \
    dot(2, 5, 6);                                        \
    dot(3, 5, 7);                                        \
  }

// Sums of kTiles row tiles by one panel; the block before is finished on the way.
template <Epilogue kEpilogue, typename Dot, int kTiles>
inline void BlockSums(const uint8_t* in, size_t stride, const uint8_t* weights, int32_t lines,
                      PendingBlock<kEpilogue, Dot>* before, typename Dot::Element* sums) {
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
    weights += kLineBytes / 4 * 4 * kColumns;
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
  // Whole blocks first, then the rows that are left, with smaller tiles: rows beyond the last are never read.
  const int32_t whole = job.rows / kBlockRows * kBlockRows;
  const int32_t left = job.rows - whole;
  TileShapes shapes;
  for (int pass = 0; pass < 2; ++pass) {
    const int32_t begin = pass == 0 ? 0 : whole, end = pass == 0 ? whole : job.rows;
    if (begin == end) continue;
    if (pass == 1) {
      const int32_t first = left < kTileRows ? left : kTileRows;
      const int32_t second = left - first;
      shapes.rows[0] = shapes.rows[1] = shapes.rows[4] = static_cast<uint8_t>(first);
      shapes.rows[2] = shapes.rows[3] = shapes.rows[5] = static_cast<uint8_t>(second > 0 ? second : 1);
    }
    AMX_CONFIGURE(&shapes);
    for (int32_t p = 0; p < job.panel_count; ++p) {
      const uint8_t* weights = job.weights + p * job.panel_bytes;
      for (int32_t row = begin; row < end; row += kBlockRows) {
        const int32_t rows = end - row < kBlockRows ? end - row : kBlockRows;
        const uint8_t* in = job.in + row * job.in_stride;
        if (rows > kTileRows) {
          BlockSums<kEpilogue, Dot, 2>(in, job.in_stride, weights, job.lines, &before, sums[current]);
        } else {
          BlockSums<kEpilogue, Dot, 1>(in, job.in_stride, weights, job.lines, &before, sums[current]);
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
