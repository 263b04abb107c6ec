// int8 and bf16 matrix products with AMX.
//
// 2 x 2 tiles of sums are 32 rows x 32 columns, one panel; a step takes 64 bytes of inputs: 4 tile loads, 4 products of
// 16 cycles each. Sums go through the first-level cache to the AVX-512 epilogue, and the epilogue of one block of 32 x
// 32 runs a few rows per step between the products of the next: the tile unit and the vector units work at the same
// time, which matters because GELU of a block costs nearly half as many cycles as the products of 768 inputs.
//
// Rows and panels are in tile form (linear_int8_bf16.h), and a tile is loaded for the next step as soon as this step
// has used it for the last time, across blocks and panels too. Time of a bf16 product on a Xeon, operands random and in
// the first-level cache, as a multiple of products without any loads (16 cycles):
//   rows of 1,600 bytes, the four loads before the four products   1.60
//   the same in tile form                                          1.30
//   rows of 1,600 bytes, each load behind the last use             1.38
//   both                                                           1.17
// The sums of a block are stored tile by tile, each right before the next block's first product needs the tile.
//
// From the second-level cache a processor gets a line in about two cycles, so a step's 64 lines take twice as long as
// its products: one of its operands has to come from the first. So where there is more than one block of rows, K is
// taken in parts whose weights stay there for all blocks, while rows are loaded so as not to push them out, and a
// block's sums wait in memory from part to part. (A core of one's own, 128 rows, K 768: 0.51 to 0.62 of the products
// without any loads; with 256 rows, which read weights from the third level half as often, 0.75.)
//
// While a panel is computed the next one is fetched into the second-level cache, and a panel is read once. A last block
// of 16 rows or fewer is one row tile. Rows that the last group lacks are computed from whatever lies there, and
// dropped; where there are fewer rows than a block has, tiles have just those.
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
constexpr int32_t kPartLines = 12;   // of K in a part, about: 24 KB of a panel
constexpr int32_t kFetchedAtOnce = 4;  // lines
constexpr int32_t kMostBlocks = 16;  // whose sums may wait: 64 KB
constexpr size_t kTileBytes = size_t{kTileRows} * kLineBytes;
static_assert(kColumns == 2 * kTileRows, "a panel is two tiles wide");

struct Int8Amx {
  using Element = int32_t;
  using Columns = Int8Columns;
  static constexpr bool kWritesPrepared = false;
  static constexpr bool kInt8 = true;
  static void StoreLine(uint8_t*, Vec, Vec) {}
};

struct Bf16Amx {
  using Element = float;
  using Columns = Bf16Columns;
  static constexpr bool kWritesPrepared = true;
  static constexpr bool kInt8 = false;
  static void StoreLine(uint8_t* line, Vec first, Vec second) { StoreBf16Line(line, first, second); }
};

// A block whose sums are in tiles; of the last part of K, they are done but for the epilogue.
template <Epilogue kEpilogue, typename Dot>
struct PendingBlock {
  const LinearJob* job = nullptr;
  typename Dot::Element* sums = nullptr;  // where they are stored
  int32_t panel = 0;
  int32_t row = 0;
  int32_t next = 0;  // rows of the block before it are finished
  int32_t rows = 0;   // to finish; 0: it is not the last part
  int32_t tiles = 0;  // of rows

  // Finishes up to `count` more rows, a part of 16.
  void Advance(int32_t count) {
    if (next < rows) Finish(count < rows - next ? count : rows - next);
  }
  void FinishAll() {
    while (next < rows) Advance(kTileRows - next % kTileRows);
  }

  // `count` rows, of one group. Not inlined: the loop over steps needs the registers.
  __attribute__((noinline)) void Finish(int32_t count) {
    const typename Dot::Columns first(*job, panel * kColumns), second(*job, panel * kColumns + kLanes);
    const int32_t column = job->panels[panel].column, width = job->panels[panel].width;
    const uint8_t* in = PreparedRow<kTileRows>(job->in, job->in_stride, row + next);
    const typename Dot::Element* sum = sums + next * kColumns;
    const typename Dot::Element* const end = sum + count * kColumns;
    if (Dot::kWritesPrepared && job->prepared_out != nullptr) {
      // A panel is a line of the prepared row, and panels are whole: the padding of the row is made of columns without
      // weights, which are zero.
      uint8_t* to = PreparedRow<kTileRows>(job->prepared_out, job->prepared_stride, row + next) +
                    column / kColumns * kTileBytes;
      for (; sum != end; sum += kColumns, in += kLineBytes, to += kLineBytes) {
        const Vec x = first.Value(*job, in, sum), y = second.Value(*job, in, sum + kLanes);
        Dot::StoreLine(to, Activate<kEpilogue>(x), Activate<kEpilogue>(y));
      }
    } else {
      const int left = width < kLanes ? width : kLanes, right = width - left;
      float* to = job->out + (row + next) * job->out_stride + column;
      for (; sum != end; sum += kColumns, in += kLineBytes, to += job->out_stride) {
        const Vec x = first.Value(*job, in, sum), y = second.Value(*job, in, sum + kLanes);
        StorePartial(to, Activate<kEpilogue>(x), left);
        if (right > 0) StorePartial(to + kLanes, Activate<kEpilogue>(y), right);
      }
    }
    next += count;
  }
};

// What a step reads: tiles of one or two groups of rows, and two of weights.
constexpr size_t kStepBytes = 2 * kTileBytes;
struct Operands {
  const uint8_t* in;
  const uint8_t* weights;
  int32_t tiles;  // of rows

  Operands Step(int32_t count) const {
    return Operands{in + count * kTileBytes, weights + count * kStepBytes, tiles};
  }
};

#define FTBERT_AMX_DOT(c, a, b) \
  do {                          \
    if (Dot::kInt8) {           \
      AMX_DOT_INT8(c, a, b);    \
    } else {                    \
      AMX_DOT_BF16(c, a, b);    \
    }                           \
  } while (false)
#define FTBERT_AMX_GO_ON(tile)
#define FTBERT_AMX_OF_TILE(sums, tile) ((sums) + tile / 2 * kTileRows * kColumns + tile % 2 * kTileRows)
#define FTBERT_AMX_TURN_OVER(tile)                                          \
  AMX_STORE(tile, FTBERT_AMX_OF_TILE(before->sums, tile), kSumStride);      \
  if (waiting != nullptr) {                                                 \
    AMX_LOAD(tile, FTBERT_AMX_OF_TILE(waiting, tile), kSumStride);          \
  } else {                                                                  \
    AMX_ZERO(tile);                                                         \
  }
#define FTBERT_AMX_LOAD_ROWS(tile, at)   \
  if (kManyBlocks) {                     \
    AMX_LOAD_ONCE(tile, at, kLineBytes); \
  } else {                               \
    AMX_LOAD(tile, at, kLineBytes);      \
  }

// The products of what is loaded, and the loads of what comes `after`; kBegin comes before each product.
#define FTBERT_AMX_STEP(kBegin, after)                                                    \
  kBegin(0) FTBERT_AMX_DOT(0, 4, 6);                                                      \
  kBegin(1) FTBERT_AMX_DOT(1, 4, 7);                                                      \
  FTBERT_AMX_LOAD_ROWS(4, (after).in)                                                     \
  if (kTiles == 2) {                                                                      \
    kBegin(2) FTBERT_AMX_DOT(2, 5, 6);                                                    \
  }                                                                                       \
  AMX_LOAD(6, (after).weights, kLineBytes);                                               \
  if (kTiles == 2) {                                                                      \
    kBegin(3) FTBERT_AMX_DOT(3, 5, 7);                                                    \
  }                                                                                       \
  if ((after).tiles == 2) {                                                               \
    FTBERT_AMX_LOAD_ROWS(5, (after).in + group_bytes)                                     \
  }                                                                                       \
  AMX_LOAD(7, (after).weights + kTileBytes, kLineBytes);

// Sums of kTiles row tiles by `lines` of one panel, in tiles 0 .. 3, added to those `waiting` from the part of K before
// (null: none); the operands of its first step are loaded, those of `next` will be. The sums of the block before are
// stored with the first step, that block is finished on the way, and the next panel fetched. kManyBlocks: weights are
// read again for the next block, rows are not.
template <Epilogue kEpilogue, typename Dot, int kTiles, bool kManyBlocks>
inline void BlockSums(const Operands& first, const Operands& next, size_t group_bytes, int32_t lines,
                      const typename Dot::Element* waiting, FetchAhead* ahead, PendingBlock<kEpilogue, Dot>* before) {
  constexpr size_t kSumStride = kColumns * sizeof(typename Dot::Element);
  if (kTiles == 1 && before->tiles == 2) {
    AMX_STORE(2, FTBERT_AMX_OF_TILE(before->sums, 2), kSumStride);
    AMX_STORE(3, FTBERT_AMX_OF_TILE(before->sums, 3), kSumStride);
  }
  Operands after = lines > 1 ? first.Step(1) : next;
  FTBERT_AMX_STEP(FTBERT_AMX_TURN_OVER, after)
  ahead->Advance<kFetchedAtOnce>();
  int32_t rows_per_step = 1;
  while (rows_per_step < kTileRows && rows_per_step * (lines - 1) < kBlockRows) rows_per_step *= 2;
  for (int32_t line = 1; line < lines; ++line) {
    after = line + 1 < lines ? after.Step(1) : next;
    FTBERT_AMX_STEP(FTBERT_AMX_GO_ON, after)
    ahead->Advance<kFetchedAtOnce>();
    before->Advance(rows_per_step);
  }
  before->FinishAll();
}
#undef FTBERT_AMX_STEP
#undef FTBERT_AMX_LOAD_ROWS
#undef FTBERT_AMX_TURN_OVER
#undef FTBERT_AMX_GO_ON
#undef FTBERT_AMX_DOT

template <Epilogue kEpilogue, typename Dot>
void ComputeAs(const LinearJob& job) {
  constexpr size_t kSumStride = kColumns * sizeof(typename Dot::Element);
  alignas(64) typename Dot::Element sums[kBlockRows * kColumns], waiting[kMostBlocks * kBlockRows * kColumns];
  PendingBlock<kEpilogue, Dot> before;
  before.sums = sums;
  TileShapes shapes;
  if (job.rows < kBlockRows) {  // rows beyond the last are never read
    const int32_t first = job.rows < kTileRows ? job.rows : kTileRows;
    const int32_t second = job.rows - first;
    shapes.rows[0] = shapes.rows[1] = shapes.rows[4] = static_cast<uint8_t>(first);
    shapes.rows[2] = shapes.rows[3] = shapes.rows[5] = static_cast<uint8_t>(second > 0 ? second : 1);
  }
  AMX_CONFIGURE(&shapes);
  const int32_t blocks = (job.rows + kBlockRows - 1) / kBlockRows;
  const int32_t parts = blocks > 1 && blocks <= kMostBlocks ? (job.lines + kPartLines - 1) / kPartLines : 1;
  const size_t group_bytes = kTileRows * job.in_stride;
  const auto part_begin = [&](int32_t part) { return job.lines * part / parts; };
  const auto operands = [&](int32_t panel, int32_t part, int32_t block) {
    const int32_t row = block * kBlockRows;
    const Operands whole{job.in + row * job.in_stride, job.weights + panel * job.panel_bytes,
                         job.rows - row > kTileRows ? 2 : 1};
    return whole.Step(part_begin(part));
  };
  Operands now = operands(0, 0, 0);
  AMX_LOAD(4, now.in, kLineBytes);
  AMX_LOAD(6, now.weights, kLineBytes);
  if (now.tiles == 2) AMX_LOAD(5, now.in + group_bytes, kLineBytes);
  AMX_LOAD(7, now.weights + kTileBytes, kLineBytes);
  for (int32_t p = 0; p < job.panel_count; ++p) {
    FetchAhead ahead(job, p, blocks * job.lines, kFetchedAtOnce);
    for (int32_t part = 0; part < parts; ++part) {
      const int32_t lines = part_begin(part + 1) - part_begin(part);
      const bool last_part = part + 1 == parts;
      for (int32_t block = 0; block < blocks; ++block) {
        // Behind the last block of all something is loaded that is not used.
        const bool last = block + 1 == blocks;
        const Operands next = !last       ? operands(p, part, block + 1)
                              : !last_part ? operands(p, part + 1, 0)
                                           : operands(p + 1 < job.panel_count ? p + 1 : p, 0, 0);
        auto* const mine = waiting + block * (kBlockRows * kColumns);
        const typename Dot::Element* const so_far = part > 0 ? mine : nullptr;
        if (blocks > 1 && now.tiles == 2) {
          BlockSums<kEpilogue, Dot, 2, true>(now, next, group_bytes, lines, so_far, &ahead, &before);
        } else if (blocks > 1) {
          BlockSums<kEpilogue, Dot, 1, true>(now, next, group_bytes, lines, so_far, &ahead, &before);
        } else if (now.tiles == 2) {
          BlockSums<kEpilogue, Dot, 2, false>(now, next, group_bytes, lines, so_far, &ahead, &before);
        } else {
          BlockSums<kEpilogue, Dot, 1, false>(now, next, group_bytes, lines, so_far, &ahead, &before);
        }
        before.job = &job;
        before.sums = last_part ? sums : mine;
        before.panel = p;
        before.row = block * kBlockRows;
        before.next = 0;
        before.rows = !last_part ? 0 : last ? job.rows - before.row : kBlockRows;
        before.tiles = now.tiles;
        now = next;
      }
    }
  }
  AMX_STORE(0, FTBERT_AMX_OF_TILE(sums, 0), kSumStride);
  AMX_STORE(1, FTBERT_AMX_OF_TILE(sums, 1), kSumStride);
  if (before.tiles == 2) {
    AMX_STORE(2, FTBERT_AMX_OF_TILE(sums, 2), kSumStride);
    AMX_STORE(3, FTBERT_AMX_OF_TILE(sums, 3), kSumStride);
  }
  AMX_RELEASE();
  before.FinishAll();
}
#undef FTBERT_AMX_OF_TILE

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

// A panel as it is packed for all forms, into tiles.
void ArrangeTiles(uint8_t* panel, int32_t lines) {
  alignas(64) uint8_t step[kStepBytes];
  for (int32_t line = 0; line < lines; ++line, panel += kStepBytes) {
    std::memcpy(step, panel, kStepBytes);
    for (int group = 0; group < kTileRows; ++group) {
      std::memcpy(panel + group * kLineBytes, step + 2 * group * kLineBytes, kLineBytes);
      std::memcpy(panel + kTileBytes + group * kLineBytes, step + (2 * group + 1) * kLineBytes, kLineBytes);
    }
  }
}

}  // namespace

const LinearOps kInt8Amx = {Isa::kAmx, kBlockRows, kColumns, false, 128, PrepareInt8<kTileRows>, Compute<Int8Amx>,
                            false,     nullptr,    ArrangeTiles, nullptr, kTileRows};
const LinearOps kBf16Amx = {Isa::kAmx, kBlockRows, kColumns, false, 128, PrepareBf16<kTileRows>, Compute<Bf16Amx>,
                            false,     nullptr,    ArrangeTiles, nullptr, kTileRows};

}  // namespace cpu
}  // namespace ftbert
