// The register tile and the epilogue of int8 and bf16, written once; a file of one instruction set includes a vec_*.h,
// this, and supplies a Dot. Everything is internal to that file.
//
// Tile: up to Dot::kRowTile rows x two vectors of columns, one accumulator each; for each group of 4 bytes of inputs, 2
// loads of weights and one broadcast per row. A panel of 32 columns and 768 inputs is 24 KiB of int8, so that it stays
// in the first-level cache while the rows go by. Weights: aligned to the vector. Rows: any alignment.
//
// A Dot supplies:
//   Sum, Word, Element   accumulator, vector of kLanes groups, and the scalar the sums are stored as (int32_t or float)
//   kRowTile             rows; 2 kRowTile + 3 vectors must fit into the registers
//   Zero() LoadWeights(p) Broadcast(p, row_bytes) Add(sum, inputs, weights) Store(p, sum)
//   Columns              constructed from (job, column): what kLanes columns need; Value(job, row of in, sums) is the
//                        result with the bias
//   StorePrepared        writes kLanes results as inputs of the next product, where kWritesPrepared
#ifndef FTBERT_CPU_TILE_INT8_BF16_H_
#define FTBERT_CPU_TILE_INT8_BF16_H_

#include <cmath>
#include <cstring>

#include "cpu/linear_int8_bf16.h"

namespace ftbert {
namespace cpu {
namespace {

constexpr int kVectors = 2;
constexpr int kColumns = kVectors * kLanes;

// First byte of row `row` of prepared rows: its next line lies kGroupRows lines on.
template <int kGroupRows>
inline uint8_t* PreparedRow(uint8_t* prepared, size_t stride, int32_t row) {
  return prepared + (row - row % kGroupRows) * stride + row % kGroupRows * kLineBytes;
}
template <int kGroupRows>
inline const uint8_t* PreparedRow(const uint8_t* prepared, size_t stride, int32_t row) {
  return prepared + (row - row % kGroupRows) * stride + row % kGroupRows * kLineBytes;
}

// The panel after this one, which is fetched into the second-level cache while this one is computed: some lines with
// each step of a tile. What comes from memory is one stream, but a processor does not foresee much of it.
struct FetchAhead {
  const uint8_t* at = nullptr;
  const uint8_t* end = nullptr;
  int32_t lines = 0;                     // of a step, rounded up
  int32_t sixteenths = 0, fetchable = 0;  // of a line: what a step adds to what may be fetched, and that

  // For `steps` steps in all.
  FetchAhead(const LinearJob& job, int32_t panel, int32_t steps) {
    at = panel + 1 < job.panel_count ? job.weights + (panel + 1) * job.panel_bytes : job.then;
    if (at == nullptr) return;
    end = at + job.read_bytes;
    const auto all = static_cast<int32_t>(job.read_bytes / kLineBytes);
    lines = (all + steps - 1) / steps;
    sixteenths = (16 * all + steps - 1) / steps;
  }

  // A step's share, kMultiple lines at a time. Evenly: a core has some 16 buffers for lines on their way to it, and a
  // burst of lines from memory would keep them from what comes out of the second level.
  template <int kMultiple = 1>
  inline __attribute__((always_inline)) void Advance() {
    constexpr int32_t kNeeded = 16 * kMultiple;
    for (fetchable += sixteenths; fetchable >= kNeeded && at < end; fetchable -= kNeeded) {
#pragma GCC unroll 4
      for (int i = 0; i < kMultiple; ++i, at += kLineBytes) PrefetchSecondLevel(at);
    }
  }
};

// Raw sums of kRows rows by one panel into sums[kRows][kColumns]. kAlone: there are no other rows, so that this tile
// fetches all of the next panel.
template <typename Dot, int kRows, bool kAlone>
__attribute__((noinline)) void RegisterTile(const uint8_t* in, size_t stride, const uint8_t* weights, int32_t lines,
                                            FetchAhead* ahead, typename Dot::Element* sums) {
  typename Dot::Sum sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = Dot::Zero();
  const size_t row_bytes = static_cast<size_t>(lines) * kLineBytes;
  constexpr int kGroups = kLineBytes / 4;
  const uint8_t* fetched = ahead->at;  // a line or two with a group: a loop of them would cost more than it wins
  const int32_t fetches = ahead->lines;
  for (int32_t line = 0; line < lines; ++line) {
#pragma GCC unroll 4
    for (int group = 0; group < kGroups; ++group) {
      const typename Dot::Word w0 = Dot::LoadWeights(weights);
      const typename Dot::Word w1 = Dot::LoadWeights(weights + 4 * kLanes);
      weights += 4 * kColumns;
      if (group < fetches) PrefetchSecondLevel(fetched + group * kLineBytes);
      if (kAlone && group + kGroups < fetches) PrefetchSecondLevel(fetched + (group + kGroups) * kLineBytes);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const auto x = Dot::Broadcast(in + r * stride + 4 * group, row_bytes);
        sum[r][0] = Dot::Add(sum[r][0], x, w0);
        sum[r][1] = Dot::Add(sum[r][1], x, w1);
      }
    }
    in += kLineBytes;
    fetched += fetches * kLineBytes;
  }
  ahead->at = fetched;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    Dot::Store(sums + r * kColumns, sum[r][0]);
    Dot::Store(sums + r * kColumns + kLanes, sum[r][1]);
  }
}

// RegisterTile<Dot, rows>, for rows in [1, kRows].
template <typename Dot, int kRows, bool kAlone>
inline void RegisterTileOf(int rows, const uint8_t* in, size_t stride, const uint8_t* weights, int32_t lines,
                           FetchAhead* ahead, typename Dot::Element* sums) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return RegisterTileOf<Dot, kRows - 1, kAlone>(rows, in, stride, weights, lines, ahead, sums);
  }
  RegisterTile<Dot, kRows, kAlone>(in, stride, weights, lines, ahead, sums);
}

// x times the normal distribution function as x (1/2 + c P(c^2)), c = x clamped to 4.5, P a least-maximum polynomial
// fitted to erf and to google's tanh form each. Absolute error at most 8e-5 for |x| <= 8 and 8e-6 |x| beyond: less than
// rounding to bf16 or to 8 bits costs, at half the price of an exponential.
constexpr float kGeluErfTerms[9] = {3.987085819e-01f,  -6.597726792e-02f, 9.580651298e-03f,
                                    -1.036252710e-03f, 8.120961866e-05f,  -4.431677098e-06f,
                                    1.580253439e-07f,  -3.283902483e-09f, 2.999996085e-11f};
constexpr float kGeluTanhTerms[9] = {3.986478448e-01f,  -6.618364155e-02f, 9.730088525e-03f,
                                     -1.074441127e-03f, 8.625298506e-05f,  -4.815212378e-06f,
                                     1.750237288e-07f,  -3.692753214e-09f, 3.412996274e-11f};

inline __attribute__((always_inline)) Vec ShortGelu(Vec x, const float* terms) {
  const Vec c = Max(Set1(-4.5f), Min(Set1(4.5f), x));
  const Vec y = Mul(c, c);
  Vec p = Set1(terms[8]);
#pragma GCC unroll 8
  for (int i = 7; i >= 0; --i) p = Fma(p, y, Set1(terms[i]));
  return Mul(x, Fma(c, p, Set1(0.5f)));
}

template <Epilogue kEpilogue>
inline Vec Activate(Vec x) {
  switch (kEpilogue) {
    case Epilogue::kBias: return x;
    case Epilogue::kBiasGeluErf: return ShortGelu(x, kGeluErfTerms);
    case Epilogue::kBiasGeluTanh: return ShortGelu(x, kGeluTanhTerms);
    case Epilogue::kBiasRelu: return Relu(x);
    case Epilogue::kBiasTanh: return Tanh(x);
  }
  return x;
}

// Sums of `rows` rows from row `row` on, kColumns apart, to where the job wants columns of its panel `p`.
template <Epilogue kEpilogue, typename Dot>
inline void FinishRows(const LinearJob& job, int32_t p, int32_t row, int rows, const typename Dot::Element* sums) {
  const Panel& panel = job.panels[p];
  for (int v = 0; v < kVectors; ++v) {
    const int width = panel.width - v * kLanes;
    const typename Dot::Columns columns(job, p * kColumns + v * kLanes);
    const ptrdiff_t column = panel.column + v * kLanes;
    const auto value = [&](int r) {
      const uint8_t* in = job.in + (row + r) * job.in_stride;
      return Activate<kEpilogue>(columns.Value(job, in, sums + r * kColumns + v * kLanes));
    };
    if (Dot::kWritesPrepared && job.prepared_out != nullptr) {
      // Whole panels: the padding of the prepared row is made of columns without weights, which are zero.
      uint8_t* to = job.prepared_out + row * job.prepared_stride;
      for (int r = 0; r < rows; ++r) Dot::StorePrepared(to + r * job.prepared_stride, column, value(r));
    } else if (width >= kLanes) {
      for (int r = 0; r < rows; ++r) Store(job.out + (row + r) * job.out_stride + column, value(r));
    } else if (width > 0) {
      for (int r = 0; r < rows; ++r) StorePartial(job.out + (row + r) * job.out_stride + column, value(r), width);
    }
  }
}

template <typename Dot>
inline void Finish(const LinearJob& job, int32_t p, int32_t row, int rows, const typename Dot::Element* sums) {
  switch (job.epilogue) {
    case Epilogue::kBias: return FinishRows<Epilogue::kBias, Dot>(job, p, row, rows, sums);
    case Epilogue::kBiasGeluErf: return FinishRows<Epilogue::kBiasGeluErf, Dot>(job, p, row, rows, sums);
    case Epilogue::kBiasGeluTanh: return FinishRows<Epilogue::kBiasGeluTanh, Dot>(job, p, row, rows, sums);
    case Epilogue::kBiasRelu: return FinishRows<Epilogue::kBiasRelu, Dot>(job, p, row, rows, sums);
    case Epilogue::kBiasTanh: return FinishRows<Epilogue::kBiasTanh, Dot>(job, p, row, rows, sums);
  }
}

// Every panel of the job by every row tile: the panel stays in cache while the rows go by. Tiles are as even as can be:
// with 12 at most, 16 rows are 8 + 8 and not 12 + 4, which would be slower.
template <typename Dot>
void ComputeTiles(const LinearJob& job) {
  alignas(64) typename Dot::Element sums[Dot::kRowTile * kColumns];
  const int32_t tiles = (job.rows + Dot::kRowTile - 1) / Dot::kRowTile;
  const int32_t rows_of_tile = job.rows / tiles, larger = job.rows % tiles;
  for (int32_t p = 0; p < job.panel_count; ++p) {
    const uint8_t* weights = job.weights + p * job.panel_bytes;
    FetchAhead ahead(job, p, tiles * job.lines);
    int32_t row = 0;
    for (int32_t tile = 0; tile < tiles; ++tile) {
      const int rows = rows_of_tile + (tile < larger);
      const uint8_t* in = job.in + row * job.in_stride;
      if (tiles == 1) {
        RegisterTileOf<Dot, Dot::kRowTile, true>(rows, in, job.in_stride, weights, job.lines, &ahead, sums);
      } else {
        RegisterTileOf<Dot, Dot::kRowTile, false>(rows, in, job.in_stride, weights, job.lines, &ahead, sums);
      }
      Finish<Dot>(job, p, row, rows, sums);
      row += rows;
    }
  }
}

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_TILE_INT8_BF16_H_
