// fp32 product of pairs of rows with packed panels by one level of Strassen's method in Winograd's form: seven products
// of half the rows, half the inputs and half the columns, instead of eight. Included by kernels_*.cc after gemm_fp32.h.
//
// With A1 the first rows of the pairs and A2 the second, each cut into halves of the inputs, and B the weights cut into
// halves of the inputs and two neighbouring panels (Higham, Accuracy and Stability of Numerical Algorithms, chapter
// 23):
//
//   S1 = A21 + A22   S2 = S1 - A11    S3 = A11 - A21   S4 = A12 - S2
//   T1 = B12 - B11   T2 = B22 - T1    T3 = B22 - B12   T4 = T2 - B21
//   P1 = A11 B11     P2 = A12 B21     P3 = S4 B22      P4 = A22 T4      P5 = S1 T1      P6 = S2 T2      P7 = S3 T3
//   U = P1 + P6      V = U + P7
//   C11 = P1 + P2    C12 = U + P5 + P3    C21 = V - P4    C22 = V + P5
//
// A is added up once, by PreparePairs. B is added up by the first tile of a product on its way to the multiply-adds,
// and waits in cache for the other tiles: weights are kept once, as Gemm reads them. The products of a pair of panels
// wait there, too, until the seventh is done.
//
// Inputs go in blocks of kPairInputs, and the halves are those of a block. Every product is one chain of fused
// multiply-adds with k ascending, and the sums have one order, so that a pair's results depend on the pair and the
// weights alone.
#ifndef FTBERT_CPU_GEMM_STRASSEN_H_
#define FTBERT_CPU_GEMM_STRASSEN_H_

#include "cpu/gemm_fp32.h"

namespace ftbert {
namespace cpu {
namespace {

constexpr int kPairBlock = 72;  // pairs whose products wait at a time: a cell of the grid has up to 66 (product.cc)

// In the order of their use, which is that of the products below.
enum Operand { kA11, kA12, kS1, kS2, kA22, kS3, kS4, kOperands };
enum PairProduct { kP1, kP2, kP5, kP6, kP4, kP7, kP3, kPairProducts };

inline int BlockInputs(int k, int end) { return end - k < kPairInputs ? end - k : kPairInputs; }

// Floats of one operand: half a block, in whole cache lines and vectors.
inline int OperandFloats(int block) { return (block / 2 + 15) / 16 * 16; }

size_t PairFloats(int32_t inputs) {
  size_t floats = 0;
  for (int k = 0; k < inputs; k += kPairInputs) floats += kOperands * OperandFloats(BlockInputs(k, inputs));
  return floats;
}

// prepared[pair][block of inputs][operand][input]
void PreparePairs(const PreparePairsTask& task) {
  for (int pair = 0; pair < task.pairs; ++pair) {
    const float* row = task.in + 2 * pair * task.in_stride;
    float* out = task.prepared + pair * task.pair_stride;
    for (int k = 0; k < task.inputs; k += kPairInputs) {
      const int block = BlockInputs(k, task.inputs);
      const int half = block / 2, step = OperandFloats(block);
      const float* a1 = row + k;
      const float* a2 = a1 + task.in_stride;
      for (int i = 0; i < half; i += kLanes) {  // what is past a half's end, up to a whole vector, nobody reads
        const Vec a11 = Load(a1 + i), a12 = Load(a1 + half + i);
        const Vec a21 = Load(a2 + i), a22 = Load(a2 + half + i);
        const Vec s1 = Add(a21, a22), s2 = Sub(s1, a11);
        Store(out + kA11 * step + i, a11);
        Store(out + kA12 * step + i, a12);
        Store(out + kS1 * step + i, s1);
        Store(out + kS2 * step + i, s2);
        Store(out + kA22 * step + i, a22);
        Store(out + kS3 * step + i, Sub(a11, a21));
        Store(out + kS4 * step + i, Sub(a12, s2));
      }
      out += kOperands * step;
    }
  }
}

// What becomes of the products of pairs of rows with one pair of panels.
struct CombineTask {
  const float* products;  // [product][pair][column]
  ptrdiff_t product_stride;
  int pairs;
  const float* bias;      // of both panels; null: the inputs have not come to their end
  float* out;             // pair 0's first row, both panels' columns
  ptrdiff_t out_stride;
  bool fresh;             // otherwise the sums go onto `out`
};

template <int kActivation>
void Combine(const CombineTask& task) {
  const ptrdiff_t step = task.product_stride;
  const float* p = task.products;
  float* out1 = task.out;
  float* out2 = out1 + task.out_stride;
  for (int pair = 0; pair < task.pairs; ++pair) {
#pragma GCC unroll 4
    for (int n = 0; n < kPanel; n += kLanes) {
      const Vec p1 = Load(p + kP1 * step + n), p5 = Load(p + kP5 * step + n);
      const Vec u = Add(p1, Load(p + kP6 * step + n));
      const Vec v = Add(u, Load(p + kP7 * step + n));
      Vec c11 = Add(p1, Load(p + kP2 * step + n));
      Vec c12 = Add(Add(u, p5), Load(p + kP3 * step + n));
      Vec c21 = Sub(v, Load(p + kP4 * step + n));
      Vec c22 = Add(v, p5);
      if (!task.fresh) {
        c11 = Add(Load(out1 + n), c11);
        c12 = Add(Load(out1 + kPanel + n), c12);
        c21 = Add(Load(out2 + n), c21);
        c22 = Add(Load(out2 + kPanel + n), c22);
      }
      if (task.bias != nullptr) {
        const Vec b1 = Load(task.bias + n), b2 = Load(task.bias + kPanel + n);
        c11 = Activate(kActivation, Add(c11, b1));
        c12 = Activate(kActivation, Add(c12, b2));
        c21 = Activate(kActivation, Add(c21, b1));
        c22 = Activate(kActivation, Add(c22, b2));
      }
      Store(out1 + n, c11);
      Store(out1 + kPanel + n, c12);
      Store(out2 + n, c21);
      Store(out2 + kPanel + n, c22);
    }
    p += kPanel;
    out1 += 2 * task.out_stride;
    out2 += 2 * task.out_stride;
  }
}

using CombineFunction = void (*)(const CombineTask&);

inline CombineFunction FindCombine(int activation) {
  switch (activation) {
    case 1: return Combine<1>;
    case 2: return Combine<2>;
    case 3: return Combine<3>;
    case 4: return Combine<4>;
    default: return Combine<0>;
  }
}

// The last panels of a part go through a tile of their own: fewer columns exist than are computed.
void CombineNarrow(CombineFunction combine, const CombineTask& task, int width) {
  alignas(64) float edge[2][2 * kPanel] = {};
  CombineTask one = task;
  one.pairs = 1;
  one.out = edge[0];
  one.out_stride = 2 * kPanel;
  for (int pair = 0; pair < task.pairs; ++pair, one.products += kPanel) {
    float* out = task.out + 2 * pair * task.out_stride;
    for (int row = 0; !task.fresh && row < 2; ++row)
      for (int n = 0; n < width; ++n) edge[row][n] = out[row * task.out_stride + n];
    combine(one);
    for (int row = 0; row < 2; ++row)
      for (int n = 0; n < width; ++n) out[row * task.out_stride + n] = edge[row][n];
  }
}

// The seven products of some pairs with two panels and one block of inputs: products[product][pair][column].
struct SevenTask {
  const float* in;  // the block's operands of pair 0
  ptrdiff_t pair_stride;
  const float* weights;  // the first panel's at the block's first input, the second's panel_floats behind
  ptrdiff_t panel_floats;
  int block;
  const float* next;  // the two panels after these, fetched meanwhile into the second-level cache; null: none
  float* made;        // (block / 2, kPanel)
  float* products;
  ptrdiff_t product_stride;
};

void SevenProducts(const SevenTask& task, const RowTiles& tiles) {
  const int half = task.block / 2, step = OperandFloats(task.block);
  const float* b11 = task.weights;
  const float* b21 = b11 + half * kPanel;
  const float* b12 = b11 + task.panel_floats;
  const float* b22 = b12 + half * kPanel;
  float* made = task.made;  // T1, T2, T4, then T3
  const struct {
    const float* weights;
    const float* minus;  // null: the weights as they are
  } factors[kPairProducts] = {{b11, nullptr}, {b21, nullptr}, {b12, b11},    {b22, made},
                              {made, b21},    {b22, b12},     {b22, nullptr}};
  const MicroFunction micro[2] = {FindMicro<kRowTile, kPanelVecs, kPanel, kPrefetchAhead>(tiles.small),
                                  FindMicro<kRowTile, kPanelVecs, kPanel, kPrefetchAhead>(tiles.rows(0))};
  const MicroFunction make = FindMicro<kRowTile, kPanelVecs, kPanel, kPrefetchAhead, 1, true>(tiles.rows(0));
  // The tiles fetch a share of the next panels each.
  const int calls = kPairProducts * tiles.count;
  const int share = (4 * kPanel + calls - 1) / calls;  // floats with each input
  const ptrdiff_t of_panel = task.block * kPanel;
  ptrdiff_t fetched = task.next != nullptr ? 0 : 2 * of_panel;
  MicroTask t;
  t.in_stride = task.pair_stride;
  t.weights_stride = kPanel;
  t.bias = nullptr;
  t.out_stride = kPanel;
  t.inputs = half;
  t.fresh = true;
  t.made = made;
  for (int product = 0; product < kPairProducts; ++product) {
    t.in = task.in + product * step;
    t.weights = factors[product].weights;
    t.minus = factors[product].minus;
    t.out = task.products + product * task.product_stride;
    for (int tile = 0; tile < tiles.count; ++tile) {
      t.next = t.weights;
      t.next_step = 0;
      if (fetched < 2 * of_panel) {
        t.next = task.next + (fetched < of_panel ? fetched : task.panel_floats + fetched - of_panel);
        t.next_step = share;
        fetched += static_cast<ptrdiff_t>(share) * half;
      }
      if (tile == 0 && t.minus != nullptr) {
        make(t);
        t.weights = made;
      } else {
        micro[tile < tiles.larger](t);
      }
      t.in += tiles.rows(tile) * task.pair_stride;
      t.out += tiles.rows(tile) * kPanel;
    }
  }
}

void GemmPairs(const PairsTask& task) {
  alignas(64) float made[kPairInputs / 2 * kPanel];
  alignas(64) float products[kPairProducts * kPairBlock * kPanel];
  const CombineFunction combine = FindCombine(task.activation);
  for (int begin = 0; begin < task.pairs; begin += kPairBlock) {
    const int pairs = task.pairs - begin < kPairBlock ? task.pairs - begin : kPairBlock;
    const RowTiles tiles(pairs, kRowTile);
    SevenTask seven;
    seven.in = task.in + begin * task.pair_stride;
    seven.pair_stride = task.pair_stride;
    seven.panel_floats = static_cast<ptrdiff_t>(task.panel_floats);
    seven.made = made;
    seven.products = products;
    seven.product_stride = pairs * kPanel;
    CombineTask sums;
    sums.products = products;
    sums.product_stride = seven.product_stride;
    sums.pairs = pairs;
    sums.out_stride = task.out_stride;
    for (int k = task.k_begin; k < task.k_end; k += kPairInputs) {
      seven.block = BlockInputs(k, task.k_end);
      sums.fresh = k == 0;
      const bool last = k + seven.block == task.inputs;
      for (int p = 0; p < task.num_panels; p += 2) {
        seven.weights = task.weights + p * task.panel_floats + static_cast<ptrdiff_t>(k) * kPanel;
        seven.next = p + 2 < task.num_panels ? seven.weights + 2 * seven.panel_floats : nullptr;
        SevenProducts(seven, tiles);
        const Panel* panel = task.panels + p;
        const int width = panel[0].width + panel[1].width;
        sums.bias = last ? task.bias + p * kPanel : nullptr;
        sums.out = task.out + 2 * begin * task.out_stride + (panel->column - task.first_column);
        if (width == 2 * kPanel) {
          combine(sums);
        } else {
          CombineNarrow(combine, sums, width);
        }
      }
      seven.in += kOperands * OperandFloats(seven.block);
    }
  }
}

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_GEMM_STRASSEN_H_
