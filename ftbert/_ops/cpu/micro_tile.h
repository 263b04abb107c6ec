// The register tile of fp32 products, kRows rows by kVecs vectors of columns; included after vec_*.h and vec.h.
#ifndef FTBERT_CPU_MICRO_TILE_H_
#define FTBERT_CPU_MICRO_TILE_H_

#include <cstddef>

namespace ftbert {
namespace cpu {
namespace {

struct MicroTask {
  const float* in;
  ptrdiff_t in_stride;
  const float* weights;        // weights[k * weights_stride + column]
  ptrdiff_t weights_stride;    // read only where the template's kStride is 0
  const float* minus;          // kMade: the weights are these less `minus`, and are left in `made` as well
  float* made;                 // may be either of the two
  const float* bias;           // null: none
  float* out;
  ptrdiff_t out_stride;
  const float* next;           // fetched into the second level, a step of it with each input
  ptrdiff_t next_step;         // floats
  int inputs;
  bool fresh;                  // sums begin at zero; otherwise they are read from `out`
};

// kRows rows by kVecs vectors of columns. kAhead > 0 prefetches the weights so many floats ahead, and with each input
// the lines of what is next that a step goes over, kFetched at most.
template <int kRows, int kVecs, int kStride, int kAhead, int kFetched = 1, bool kMade = false>
void MicroTile(const MicroTask& task) {
  const ptrdiff_t in_stride = task.in_stride;
  const ptrdiff_t out_stride = task.out_stride;
  Vec sum[kRows][kVecs];
  if (task.fresh) {
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < kVecs; ++n) sum[m][n] = Zero();
  } else {
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < kVecs; ++n) sum[m][n] = Load(task.out + m * out_stride + n * kLanes);
  }
  // Three rows hang on one pointer (a stride times 0, 1 or 2 is an address that an instruction can form).
  const float* rows[(kRows + 2) / 3];
#pragma GCC unroll 8
  for (int i = 0; i < (kRows + 2) / 3; ++i) rows[i] = task.in + 3 * i * in_stride;
  const float* weights = task.weights;
  const float* next = task.next;
  const ptrdiff_t next_step = task.next_step;
  const float* minus = kMade ? task.minus : nullptr;
  float* made = kMade ? task.made : nullptr;
  for (int k = task.inputs; k > 0; --k) {
    Vec w[kVecs];
#pragma GCC unroll 4
    for (int n = 0; n < kVecs; ++n) {
      w[n] = Load(weights + n * kLanes);
      if (kMade) {
        w[n] = Sub(w[n], Load(minus + n * kLanes));
        Store(made + n * kLanes, w[n]);
      }
    }
    if (kMade) {
      minus += kStride;
      made += kStride;
    }
    if (kAhead > 0) {
#pragma GCC unroll 4
      for (int n = 0; n < kVecs * kLanes; n += 16) Prefetch(weights + kAhead + n);
      PrefetchSecondLevel(next);
#pragma GCC unroll 4
      for (int n = 16; n < 16 * kFetched; n += 16) {
        if (n < next_step) PrefetchSecondLevel(next + n);
      }
      next += next_step;
    }
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const Vec x = Set1(rows[m / 3][(m % 3) * in_stride]);
#pragma GCC unroll 4
      for (int n = 0; n < kVecs; ++n) sum[m][n] = Fma(x, w[n], sum[m][n]);
    }
    weights += kStride > 0 ? kStride : task.weights_stride;
#pragma GCC unroll 8
    for (int i = 0; i < (kRows + 2) / 3; ++i) ++rows[i];
  }
  if (task.bias != nullptr) {
#pragma GCC unroll 4
    for (int n = 0; n < kVecs; ++n) {
      const Vec b = Load(task.bias + n * kLanes);
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) sum[m][n] = Add(sum[m][n], b);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < kVecs; ++n) Store(task.out + m * out_stride + n * kLanes, sum[m][n]);
}

using MicroFunction = void (*)(const MicroTask&);

// MicroTile of `rows` rows, 1 .. kRows.
template <int kRows, int kVecs, int kStride, int kAhead, int kFetched = 1, bool kMade = false>
MicroFunction FindMicro(int rows) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return FindMicro<kRows - 1, kVecs, kStride, kAhead, kFetched, kMade>(rows);
  }
  return MicroTile<kRows, kVecs, kStride, kAhead, kFetched, kMade>;
}

// Rows cut into tiles as even as can be: with tiles of at most 14, 16 rows are 8 + 8 and not 14 + 2.
struct RowTiles {
  RowTiles(int rows, int largest) : count((rows + largest - 1) / largest), small(rows / count), larger(rows % count) {}
  int rows(int tile) const { return small + (tile < larger); }
  int count;
  int small;   // rows of a tile ...
  int larger;  // ... but this many tiles, the first ones, have one more
};

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_MICRO_TILE_H_
