// int8 and bf16 matrix products with AMX.
//
// Sums go through the first-level cache to the AVX-512 epilogue, and the epilogue of one block runs a few rows per step
// between the products of the next: the tile unit and the vector units work at the same time, which matters because
// GELU of a block costs nearly half as many cycles as the products of 768 inputs. Rows and panels are in tile form
// (linear_int8_bf16.h).
//
// A tile that holds data takes a register of a file that two hardware threads share. Alone a thread has some to spare,
// and an instruction that writes a tile need not wait for the one before. With the core's other thread at work on
// anything at all (cores of a rented machine are like that most of the time) it seems to have nine: with eight in use
// each load and each product takes as long as if it waited for the one before to retire. Measured on such a core, ns
// for a product and for a load from the first-level cache, by tiles that hold data (an idle neighbour: 7.0 and 3.7,
// always):
//   4: 7.6, 6.2   5: 8.3, 6.7   6: 9.7, 7.5   7: 12.1, 9.4   8: 16.6, 13.7
// A zeroed tile takes none. So a step uses as few tiles as it can, and each is zeroed, which costs nothing, as soon as
// it is done with: a block is 16 rows by one panel, two tiles of sums, one of rows, one of weights at a time. Whole
// products of 128 rows, epilogue and all, reach 1.7 times what 2 x 2 tiles of sums and two of each operand reach
// there, and 0.98 on a core of one's own. Where rows are too few for a second block, weights are to be read once: then
// a block is 32 rows, 2 x 2 tiles of sums, with operands zeroed likewise.
//
// From the second-level cache a line comes in 1.3 cycles at best, 1.1 past the first level, so that a step's 48 lines
// take up to twice as long as its two products: weights have to come from the first. So where there is more than one
// block of rows, K is taken in parts whose weights stay there for all blocks, while rows are loaded so as not to push
// them out, and a block's sums wait in memory from part to part.
//
// A thread takes 512 rows at a time: a panel comes from the second level once for all of them. In bf16 the feed-forward
// goes with it, its intermediate in chunks of 768 columns, sums for which wait where the output is to be: together they
// are more than the second level holds, but with fewer rows weights come from beyond it more often, and with smaller
// chunks sums go to and fro more often, which costs tile stores. (480 tokens on one thread take 7% less than with 256
// rows and 384 columns, 320 tokens 11%, 256 texts on 16 threads 2% more, 32 x 128 2% less; the texts took 6% less with
// 256 rows and 384 columns than with 128 and all.) In int8 a row has to be whole to be rounded, and the feed-forward
// takes 128 rows.
//
// While a panel is computed the next one is fetched into the second-level cache, and a panel is read once. Rows that
// the last group lacks are computed from whatever lies there, and dropped; where there are two tiles of rows or fewer,
// tiles have just those.
//
// Tiles are configured on entry and released on return: a thread that keeps live tiles pays for 8 KiB at every context
// switch.
#include "cpu/vec_avx512.h"

#include "cpu/vec.h"

#include "cpu/amx_tiles.h"
#include "cpu/tile_bf16.h"
#include "cpu/tile_int8_avx512.h"

#include "cpu/amx_rows.h"

namespace ftbert {
namespace cpu {
namespace {

constexpr int32_t kPartLines = 12;     // of K in a part, about: 24 KB of a panel
constexpr int32_t kFetchedAtOnce = 4;  // lines
constexpr int32_t kMostBlocks = 32;    // whose sums may wait: 64 KB
constexpr int32_t kBlockRows = kMostBlocks * kTileRows;  // with more, K would not be taken in parts

struct Int8Amx {
  using Element = int32_t;
  using Columns = Int8Columns;
  static constexpr bool kInt8 = true;
  static constexpr int kPreparedTiles = 1;

  template <Epilogue kEpilogue>
  static Vec Activated(Vec x) { return Activate<kEpilogue>(x); }
  static void StoreLine(uint8_t* to, Vec x, Vec y) { StoreBf16Line(to, x, y); }
};

struct Bf16Amx : Int8Amx {
  using Element = float;
  using Columns = Bf16Columns;
  static constexpr bool kInt8 = false;
};

constexpr size_t kStepBytes = 2 * kTileBytes;  // of a panel

#define FTBERT_AMX_DOT(c, a, b) \
  do {                          \
    if (Dot::kInt8) {           \
      AMX_DOT_INT8(c, a, b);    \
    } else {                    \
      AMX_DOT_BF16(c, a, b);    \
    }                           \
  } while (false)
#define FTBERT_AMX_BEGIN(tile)                            \
  if (waiting.at != nullptr) {                            \
    AMX_LOAD(tile, waiting.OfTile(tile), waiting.stride); \
  } else {                                                \
    AMX_ZERO(tile);                                       \
  }

// The sums of kTiles row tiles at `in` by `lines` of one panel, added to those `waiting` from the part of K before (at
// null: none), to `sums`. The block before is finished on the way, and the next panel fetched. kManyBlocks: weights are
// read again for the next block, rows are not.
template <Epilogue kEpilogue, typename Dot, int kTiles, bool kManyBlocks>
inline void BlockSums(const uint8_t* in, size_t group_bytes, const uint8_t* weights, int32_t lines, SumRows waiting,
                      SumRows sums, FetchAhead* ahead, PendingRows<kEpilogue, Dot>* before) {
  FTBERT_AMX_BEGIN(0)
  FTBERT_AMX_BEGIN(1)
  if (kTiles == 2) {
    FTBERT_AMX_BEGIN(2)
    FTBERT_AMX_BEGIN(3)
  }
  int32_t rows_per_step = kEpilogue == Epilogue::kBias ? kTileRows / 2 : 1;
  while (rows_per_step < kTileRows && rows_per_step * (lines - 1) < kTiles * kTileRows) rows_per_step *= 2;
  for (int32_t line = 0; line < lines; ++line, in += kTileBytes, weights += kStepBytes) {
    if (kManyBlocks) {
      AMX_LOAD_ONCE(4, in, kLineBytes);
    } else {
      AMX_LOAD(4, in, kLineBytes);
    }
    AMX_LOAD(6, weights, kLineBytes);
    FTBERT_AMX_DOT(0, 4, 6);
    if (kTiles == 1) AMX_ZERO(6);
    AMX_LOAD(7, weights + kTileBytes, kLineBytes);
    FTBERT_AMX_DOT(1, 4, 7);
    AMX_ZERO(4);
    if (kTiles == 2) {
      AMX_LOAD(5, in + group_bytes, kLineBytes);
      FTBERT_AMX_DOT(2, 5, 6);
      AMX_ZERO(6);
      FTBERT_AMX_DOT(3, 5, 7);
      AMX_ZERO(5);
    }
    AMX_ZERO(7);
    ahead->template Advance<kFetchedAtOnce>();
    if (line > 0) before->Advance(rows_per_step);
  }
  before->FinishAll();
  AMX_STORE(0, sums.OfTile(0), sums.stride);
  AMX_STORE(1, sums.OfTile(1), sums.stride);
  if (kTiles == 2) {
    AMX_STORE(2, sums.OfTile(2), sums.stride);
    AMX_STORE(3, sums.OfTile(3), sums.stride);
  }
}
#undef FTBERT_AMX_BEGIN
#undef FTBERT_AMX_DOT

template <Epilogue kEpilogue, typename Dot>
void ComputeAs(const LinearJob& job) {
  constexpr int32_t kWaitingSums = kTileRows * kColumns;
  constexpr size_t kSumStride = kColumns * sizeof(typename Dot::Element);
  alignas(64) typename Dot::Element sums[2 * kWaitingSums], waiting[kMostBlocks * kWaitingSums];
  PendingRows<kEpilogue, Dot> before;
  before.job = &job;
  before.sums = sums;
  TileShapes shapes;
  const int32_t tiles = (job.rows + kTileRows - 1) / kTileRows;
  if (tiles <= 2) {  // rows beyond the last are never read
    const auto first = static_cast<uint8_t>(job.rows < kTileRows ? job.rows : kTileRows);
    const auto second = static_cast<uint8_t>(tiles == 2 ? job.rows - first : 1);
    shapes.rows[0] = shapes.rows[1] = shapes.rows[4] = first;
    shapes.rows[2] = shapes.rows[3] = shapes.rows[5] = second;
  }
  AMX_CONFIGURE(&shapes);
  const int32_t blocks = tiles <= 2 ? 1 : tiles;
  const int32_t parts = blocks > 1 && blocks <= kMostBlocks ? (job.lines + kPartLines - 1) / kPartLines : 1;
  const size_t group_bytes = kTileRows * job.in_stride;
  for (int32_t p = 0; p < job.panel_count; ++p) {
    FetchAhead ahead(job, p, blocks * job.lines);
    for (int32_t part = 0; part < parts; ++part) {
      const int32_t begin = job.lines * part / parts, lines = job.lines * (part + 1) / parts - begin;
      const uint8_t* const weights = job.weights + p * job.panel_bytes + begin * kStepBytes;
      const bool last_part = part + 1 == parts;
      for (int32_t block = 0; block < blocks; ++block) {
        const uint8_t* const in = job.in + block * group_bytes + begin * kTileBytes;
        const SumRows mine{waiting + block * kWaitingSums, kSumStride};
        const SumRows of_out = AtOutput(job, p, block);
        const SumRows so_far = part > 0 ? mine : job.continues ? of_out : SumRows();
        const SumRows to = !last_part ? mine : job.unfinished ? of_out : SumRows{sums, kSumStride};
        if (blocks > 1) {
          BlockSums<kEpilogue, Dot, 1, true>(in, group_bytes, weights, lines, so_far, to, &ahead, &before);
        } else if (tiles == 2) {
          BlockSums<kEpilogue, Dot, 2, false>(in, group_bytes, weights, lines, so_far, to, &ahead, &before);
        } else {
          BlockSums<kEpilogue, Dot, 1, false>(in, group_bytes, weights, lines, so_far, to, &ahead, &before);
        }
        if (!last_part || job.unfinished) continue;
        before.panel = p;
        before.row = block * kTileRows;
        before.next = 0;
        before.rows = block + 1 < blocks ? kTileRows : job.rows - before.row;
      }
    }
  }
  AMX_RELEASE();
  before.FinishAll();
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

const LinearOps kInt8Amx = {Isa::kAmx, 2 * kTileRows, kColumns, false, kBlockRows, PrepareInt8<kTileRows>,
                            Compute<Int8Amx>, false, nullptr, ArrangeTiles, nullptr, kTileRows, 0, 128};
const LinearOps kBf16Amx = {Isa::kAmx, 2 * kTileRows, kColumns, false, kBlockRows, PrepareBf16<kTileRows>,
                            Compute<Bf16Amx>, false, nullptr, ArrangeTiles, nullptr, kTileRows, 768};

}  // namespace cpu
}  // namespace ftbert
