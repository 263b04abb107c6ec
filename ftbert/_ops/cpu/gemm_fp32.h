// fp32 product of a block of rows with packed panels; included by kernels_*.cc after vec_*.h.
//
// Layout: a panel holds kPanel = kPanelVecs * kLanes columns as weights[k][column], 64-byte aligned. The register tile
// is kRowTile rows by one panel: kRowTile * kPanelVecs accumulators, kPanelVecs weights, one broadcast input.
//
// Loop order: inputs in blocks of kInputBlock, then panels, then row tiles: a block of a panel stays near while every
// row tile uses it, and is prefetched into the first-level cache a few inputs ahead of its use; the rows' part of a
// block stays in the second level, however many inputs there are. Between input blocks the sums wait in `out`; fp32
// stores are exact, so every element is one chain of fused multiply-adds with k ascending, whatever the tile or block.
#ifndef FTBERT_CPU_GEMM_FP32_H_
#define FTBERT_CPU_GEMM_FP32_H_

#include "cpu/kernels.h"
#include "cpu/micro_tile.h"
#include "cpu/vec.h"

namespace ftbert {
namespace cpu {
namespace {

constexpr int kPanel = kPanelVecs * kLanes;

inline __attribute__((always_inline)) Vec Activate(int activation, Vec x) {
  switch (activation) {
    case 1: return GeluErf(x);
    case 2: return GeluTanh(x);
    case 3: return Relu(x);
    case 4: return Tanh(x);
    default: return x;
  }
}

template <int kActivation>
void ActivateAs(const float* in, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {  // two at a time: their chains overlap
    const Vec a = Activate(kActivation, Load(in + i));
    const Vec b = Activate(kActivation, Load(in + i + kLanes));
    Store(out + i, a);
    Store(out + i + kLanes, b);
  }
  for (; i < count; i += kLanes) {
    const int lanes = count - i < kLanes ? static_cast<int>(count - i) : kLanes;
    StorePartial(out + i, Activate(kActivation, LoadPartial(in + i, lanes)), lanes);
  }
}

void ActivateSpan(int32_t activation, const float* in, int64_t count, float* out) {
  switch (activation) {
    case 1: return ActivateAs<1>(in, count, out);
    case 2: return ActivateAs<2>(in, count, out);
    case 3: return ActivateAs<3>(in, count, out);
    case 4: return ActivateAs<4>(in, count, out);
    default: return ActivateAs<0>(in, count, out);
  }
}

void Gemm(const GemmTask& task) {
  const RowTiles tiles(task.rows, kRowTile);
  constexpr int kLines = (kPanel + 15) / 16;  // of an input's weights: a tile that is alone fetches as many
  const auto find = tiles.count < kLines ? FindMicro<kRowTile, kPanelVecs, kPanel, kPrefetchAhead, kLines>
                                         : FindMicro<kRowTile, kPanelVecs, kPanel, kPrefetchAhead>;
  const MicroFunction micro[2] = {find(tiles.small), find(tiles.rows(0))};
  alignas(64) float edge[kRowTile * kPanel];
  MicroTask t;
  t.in_stride = task.in_stride;
  t.weights_stride = kPanel;
  for (int k = task.k_begin; k < task.k_end; k += kInputBlock) {
    const int k_next = k + kInputBlock < task.k_end ? k + kInputBlock : task.k_end;
    const bool last = k_next == task.inputs;
    for (int p = 0; p < task.num_panels; ++p) {
      const Panel panel = task.panels[p];
      const bool whole = panel.width == kPanel;
      t.weights = task.weights + p * task.panel_floats + static_cast<ptrdiff_t>(k) * kPanel;
      t.bias = last ? task.bias + p * kPanel : nullptr;
      t.inputs = k_next - k;
      t.fresh = k == 0;
      t.in = task.in + (k - task.k_begin);
      float* out = task.out + (panel.column - task.first_column);
      // The tiles fetch the next panel's part while they compute on this one's, a share each: all of it at once would
      // be more than comes from memory in the time of a tile.
      const float* const next = p + 1 < task.num_panels  ? t.weights + task.panel_floats
                                : k_next < task.k_end    ? task.weights + static_cast<ptrdiff_t>(k_next) * kPanel
                                                         : task.then;
      t.next = t.weights;
      t.next_step = 0;
      const int share = (kPanel + tiles.count - 1) / tiles.count;  // floats of each input's
      for (int tile = 0; tile < tiles.count; ++tile) {
        const int rows = tiles.rows(tile);
        t.out = whole ? out : edge;
        t.out_stride = whole ? task.out_stride : kPanel;
        if (!whole && !t.fresh) {  // the last panel of a part goes through a tile of its own
          for (int i = 0; i < rows * kPanel; ++i) {
            const int n = i % kPanel;
            edge[i] = n < panel.width ? out[i / kPanel * task.out_stride + n] : 0.f;
          }
        }
        if (next != nullptr) {
          t.next = next + static_cast<ptrdiff_t>(tile) * t.inputs * share;
          t.next_step = share;
        }
        micro[tile < tiles.larger](t);
        if (last && task.activation != 0) {
          for (int m = 0; m < rows; ++m) {
            ActivateSpan(task.activation, t.out + m * t.out_stride, kPanel, t.out + m * t.out_stride);
          }
        }
        if (!whole) {
          for (int m = 0; m < rows; ++m)
            for (int n = 0; n < panel.width; ++n) out[m * task.out_stride + n] = edge[m * kPanel + n];
        }
        t.in += rows * task.in_stride;
        out += rows * task.out_stride;
      }
    }
  }
}

// A round is one multiply-add on each of kPeakChains independent registers: nothing but the arithmetic units.
constexpr int kPeakChains = kVecRegisters >= 32 ? 16 : (kVecRegisters >= 16 ? 12 : 4);

float Peak(int64_t rounds) {
  Vec chain[kPeakChains];
#pragma GCC unroll 16
  for (int i = 0; i < kPeakChains; ++i) chain[i] = Set1(static_cast<float>(i + 1));
  const Vec factor = Set1(0.999f);
  const Vec term = Set1(0.001f);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 16
    for (int i = 0; i < kPeakChains; ++i) chain[i] = Fma(chain[i], factor, term);
  }
  Vec sum = Zero();
#pragma GCC unroll 16
  for (int i = 0; i < kPeakChains; ++i) sum = Add(sum, chain[i]);
  return Sum(sum);
}

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_GEMM_FP32_H_
