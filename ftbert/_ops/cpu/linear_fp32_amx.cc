// fp32 matrix products with AMX, which multiplies bf16: an input is cut into three bf16 that add up to it, a weight
// into three that give it to 22 bits (fp32_parts.h), and six of the nine products of such parts are added up (the
// method is known as bf16x3):
//   x w = x1 w1 + x1 w2 + x2 w1 + x2 w2 + x1 w3 + x3 w1   (parts by size; left out: x2 w3, x3 w2, x3 w3)
// A product is off by less than 2^-20 of itself. Sums are fp32, of 32 inputs at a time, so that they are closer to the
// exact ones than those of a chain of multiply-adds. A part below 2^-126 counts as zero.
//
// Second and third parts of weights are brought near as weights are read: a few lines of a panel at a time, into the
// first-level cache, where they stay for all rows of the job; the next lines follow between the products of these. Sums
// wait in memory meanwhile, and the epilogue of a panel runs between the products of the next one.
//
// Tiles in use at a time: two of sums, one of rows, one of weights; why so few, linear_amx.cc says. The six products of
// a tile of columns go from one to the next by a load of one operand.
#include "cpu/vec_avx512.h"

#include "cpu/vec.h"

#include "cpu/amx_tiles.h"
#include "cpu/tile_bf16.h"

#include "cpu/fp32_parts.h"

namespace ftbert {
namespace cpu {
namespace {

constexpr int32_t kNearLines = 3;    // of K that are brought near at a time, at most: with the next ones 24 KB
constexpr int32_t kMostBlocks = 16;  // of rows, whose sums wait: 32 KB, and those of the panel before

struct Fp32Parts {
  using Element = float;
  using Columns = Bf16Columns;
  static constexpr int kPreparedTiles = kParts;

  template <Epilogue kEpilogue>
  static Vec Activated(Vec x) {
    switch (kEpilogue) {
      case Epilogue::kBias: return x;
      case Epilogue::kBiasGeluErf: return GeluErf(x);
      case Epilogue::kBiasGeluTanh: return GeluTanh(x);
      case Epilogue::kBiasRelu: return Relu(x);
      case Epilogue::kBiasTanh: return Tanh(x);
    }
    return x;
  }
  static void StoreLine(uint8_t* to, Vec x, Vec y) { StoreParts(to, x, y); }
};

// Operands of the six products of tile `c`; between two of them one is loaded.
#define FTBERT_ROWS(a, part) AMX_ZERO(a); AMX_LOAD(a, in + (part - 1) * kTileBytes, kLineBytes)
#define FTBERT_FIRST(tile) AMX_ZERO(6); AMX_LOAD(6, weights + tile * kPairs * kPairBytes, kPairBytes)
#define FTBERT_WEIGHTS(tile, part) AMX_ZERO(6); AMX_LOAD(6, near + (2 * tile + part - 2) * kTileBytes, kLineBytes)
#define FTBERT_BLOCK(c0, c1, a)                                      \
  if (waiting.at != nullptr) {                                       \
    AMX_LOAD(c0, waiting.OfTile(0), waiting.stride);                 \
    AMX_LOAD(c1, waiting.OfTile(1), waiting.stride);                 \
  } else {                                                           \
    AMX_ZERO(c0);                                                    \
    AMX_ZERO(c1);                                                    \
  }                                                                  \
  for (int32_t line = 0; line < lines; ++line) {                     \
    FTBERT_ROWS(a, 3);                                               \
    FTBERT_FIRST(0);                                                 \
    AMX_DOT_BF16(c0, a, 6);                                          \
    FTBERT_ROWS(a, 2);                                               \
    AMX_DOT_BF16(c0, a, 6);                                          \
    FTBERT_ROWS(a, 1);                                               \
    AMX_DOT_BF16(c0, a, 6);                                          \
    FTBERT_WEIGHTS(0, 3);                                            \
    AMX_DOT_BF16(c0, a, 6);                                          \
    FTBERT_WEIGHTS(0, 2);                                            \
    AMX_DOT_BF16(c0, a, 6);                                          \
    FTBERT_ROWS(a, 2);                                               \
    AMX_DOT_BF16(c0, a, 6);                                          \
    FTBERT_WEIGHTS(1, 2);                                            \
    AMX_DOT_BF16(c1, a, 6);                                          \
    FTBERT_ROWS(a, 1);                                               \
    AMX_DOT_BF16(c1, a, 6);                                          \
    FTBERT_WEIGHTS(1, 3);                                            \
    AMX_DOT_BF16(c1, a, 6);                                          \
    FTBERT_FIRST(1);                                                 \
    AMX_DOT_BF16(c1, a, 6);                                          \
    FTBERT_ROWS(a, 2);                                               \
    AMX_DOT_BF16(c1, a, 6);                                          \
    FTBERT_ROWS(a, 3);                                               \
    AMX_DOT_BF16(c1, a, 6);                                          \
    AMX_ZERO(a);                                                     \
    AMX_ZERO(6);                                                     \
    in += kLineOfRows;                                               \
    weights += kLineOfWeights;                                       \
    near = beside->Advance(near);                                    \
  }                                                                  \
  AMX_STORE(c0, sums.OfTile(0), sums.stride);                        \
  AMX_STORE(c1, sums.OfTile(1), sums.stride);                        \
  AMX_ZERO(c0);                                                      \
  AMX_ZERO(c1)

// What is done between the products of one line of one block and those of the next.
template <Epilogue kEpilogue>
struct Beside {
  Nearing* next;
  PendingRows<kEpilogue, Fp32Parts> before;
  int32_t pairs = 0, rows = 1;  // with every line
  // A block alone goes through all lines of a panel at once: every other one in either place.
  bool alone = false;
  uint8_t* places[2] = {};

  // `near`: where the line is that is done with. Returns where the next is.
  inline __attribute__((always_inline)) const uint8_t* Advance(const uint8_t* near) {
    next->Advance(pairs);
    before.Advance(rows);
    if (!alone) return near + kLineOfNear;
    const int turn = near == places[1];
    next->Begin(places[turn], 1);
    return places[1 - turn];
  }
};

// The sums of a row tile at `in` by `lines` of one panel, added to those `waiting` from the lines before (at null:
// none), to `sums`. kLast: the last rows, which may be fewer than 16.
template <Epilogue kEpilogue, bool kLast>
inline void BlockSums(const uint8_t* in, const uint8_t* weights, const uint8_t* near, int32_t lines, SumRows waiting,
                      SumRows sums, Beside<kEpilogue>* beside) {
  if (kLast) {
    FTBERT_BLOCK(2, 3, 5);
  } else {
    FTBERT_BLOCK(0, 1, 4);
  }
}
#undef FTBERT_BLOCK
#undef FTBERT_WEIGHTS
#undef FTBERT_FIRST
#undef FTBERT_ROWS

constexpr int32_t DivideUp(int32_t a, int32_t b) { return (a + b - 1) / b; }

template <Epilogue kEpilogue>
void ComputeRows(const LinearJob& job) {
  constexpr size_t kSumStride = kColumns * sizeof(float);
  constexpr int32_t kBlockSums = kTileRows * kColumns;
  alignas(kTileBytes) uint8_t near[2][kNearLines * kLineOfNear];
  alignas(64) float waiting[2][kMostBlocks * kBlockSums];  // this panel's and the last one's
  const int32_t blocks = DivideUp(job.rows, kTileRows);
  const bool alone = blocks == 1;
  const int32_t parts = alone ? 1 : DivideUp(job.lines, blocks <= 2 ? 1 : kNearLines);
  const auto begin_of = [&](int32_t part) { return job.lines * part / parts; };
  TileShapes shapes;
  shapes.rows[2] = shapes.rows[3] = shapes.rows[5] = static_cast<uint8_t>(job.rows - (blocks - 1) * kTileRows);
  AMX_CONFIGURE(&shapes);
  Nearing next(job);
  Beside<kEpilogue> beside;
  beside.next = &next;
  beside.before.job = &job;
  beside.alone = alone;
  beside.places[0] = near[0], beside.places[1] = near[1];
  int turn = 0;
  next.Begin(near[turn], alone ? 1 : begin_of(1));
  next.Advance(next.pairs());
  if (alone) next.Begin(near[1], 1), beside.pairs = 2 * kPairs;
  for (int32_t p = 0; p < job.panel_count; ++p) {
    for (beside.rows = 1; beside.rows < kTileRows && beside.rows * blocks * job.lines < beside.before.rows;) {
      beside.rows *= 2;
    }
    float* const of_panel = waiting[p % 2];
    for (int32_t part = 0; part < parts; ++part) {
      const int32_t begin = begin_of(part), lines = begin_of(part + 1) - begin;
      if (!alone) {
        next.Begin(near[1 - turn], part + 1 < parts ? begin_of(part + 2) - begin_of(part + 1) : begin_of(1));
        beside.pairs = DivideUp(next.pairs() / Nearing::kAtOnce, blocks * lines) * Nearing::kAtOnce;
      }
      const uint8_t* const weights = job.weights + p * job.panel_bytes + begin * kLineOfWeights;
      for (int32_t block = 0; block < blocks; ++block) {
        const uint8_t* const in = job.in + block * kTileRows * job.in_stride + begin * kLineOfRows;
        const SumRows mine{of_panel + block * kBlockSums, kSumStride};
        const SumRows of_out = AtOutput(job, p, block);
        const SumRows so_far = part > 0 ? mine : job.continues ? of_out : SumRows();
        const SumRows to = part + 1 == parts && job.unfinished ? of_out : mine;
        if (block + 1 == blocks) {
          BlockSums<kEpilogue, true>(in, weights, near[turn], lines, so_far, to, &beside);
        } else {
          BlockSums<kEpilogue, false>(in, weights, near[turn], lines, so_far, to, &beside);
        }
      }
      if (alone) {
        turn ^= job.lines % 2;
      } else {
        next.Advance(next.pairs());
        turn = 1 - turn;
      }
    }
    beside.before.FinishAll();
    if (job.unfinished) continue;
    beside.before.sums = of_panel;
    beside.before.panel = p;
    beside.before.next = 0;
    beside.before.rows = job.rows;
  }
  AMX_RELEASE();
  beside.before.FinishAll();
}

void ComputeFp32(const LinearJob& whole) {
  constexpr int32_t kMostRows = kMostBlocks * kTileRows;
  for (int32_t row = 0; row < whole.rows; row += kMostRows) {
    LinearJob job = whole;
    job.rows = whole.rows - row < kMostRows ? whole.rows - row : kMostRows;
    job.in += row * whole.in_stride;
    if (job.prepared_out != nullptr) job.prepared_out += row * whole.prepared_stride;
    if (job.out != nullptr) job.out += row * whole.out_stride;
    switch (job.epilogue) {
      case Epilogue::kBias: ComputeRows<Epilogue::kBias>(job); break;
      case Epilogue::kBiasGeluErf: ComputeRows<Epilogue::kBiasGeluErf>(job); break;
      case Epilogue::kBiasGeluTanh: ComputeRows<Epilogue::kBiasGeluTanh>(job); break;
      case Epilogue::kBiasRelu: ComputeRows<Epilogue::kBiasRelu>(job); break;
      case Epilogue::kBiasTanh: ComputeRows<Epilogue::kBiasTanh>(job); break;
    }
  }
}

}  // namespace

const LinearOps kFp32Amx = {Isa::kAmx, kTileRows, kColumns, false, 256, PrepareParts, ComputeFp32, false, nullptr,
                            EncodePanel, nullptr, kTileRows, 384};

}  // namespace cpu
}  // namespace ftbert
