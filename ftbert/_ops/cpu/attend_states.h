// softmax(scale u X^T) X for the heads of one row of text, fused; included by kernels_*.cc after attention.h.
//
// X is read in blocks of kTokenBlock tokens, once for kHeadGroup heads, and a block is still in the second-level cache
// when its second product begins. Both products run on MicroTile: scores as tokens by heads, X times u transposed, so
// that the softmax has a head in each lane; sums as heads by columns, the scores turned round times X. Between blocks
// the softmax is rescaled, as in attention.h. A head's result depends on its u and its row of text alone: the blocks
// begin at the row's first token, and every sum has one fixed order.
//
// A NaN in u or X reaches the output.
#ifndef FTBERT_CPU_ATTEND_STATES_H_
#define FTBERT_CPU_ATTEND_STATES_H_

#include "cpu/attention.h"

namespace ftbert {
namespace cpu {
namespace {

constexpr int kHeadGroup = 2 * kLanes;
constexpr int kTokenBlock = 64;      // a multiple of kLanes
constexpr int kStateInputs = 256;    // inputs whose part of u stays in the first-level cache over a block's tokens

// Scratch: u transposed, [h][head]; a block's scores, [token][head], and their transpose; the sums, [head][h].
size_t AttendStatesScratchFloats(int32_t hidden) {
  return static_cast<size_t>(kHeadGroup) * (RoundUp(hidden, kLanes) + 2 * kTokenBlock + RoundUp(hidden, kKeyPanel));
}

// turned[h][head] = u[head][h], zero where there is no such head.
void TurnHeads(const float* u, ptrdiff_t stride, int heads, int hidden, float* turned) {
  alignas(64) float block[kLanes * kLanes];
  for (int head = 0; head < kHeadGroup; head += kLanes) {
    for (int h = 0; h < hidden; h += kLanes) {
      const int lanes = hidden - h < kLanes ? hidden - h : kLanes;
      const float* in = u + head * stride + h;
      if (heads - head >= kLanes && lanes == kLanes) {
        Transpose(in, stride, turned + h * kHeadGroup + head, kHeadGroup);
        continue;
      }
      for (int i = 0; i < kLanes; ++i) {
        Store(block + i * kLanes, head + i < heads ? LoadPartial(in + i * stride, lanes) : Zero());
      }
      Transpose(block, kLanes, turned + h * kHeadGroup + head, kHeadGroup);
    }
  }
}

// In each lane, a head: scores = exp2(factor * (scores - maximum)), their sum onto `total`; what was summed before is
// to be multiplied by `correction`.
inline void SoftmaxLanes(float* scores, int tokens, float factor, bool first, Vec* maximum, Vec* total,
                         Vec* correction) {
  const Vec before = first ? Load(scores) : *maximum;
  Vec top = before;
  for (int t = 0; t < tokens; ++t) top = Max(top, Load(scores + t * kHeadGroup));
  const Vec scale = Set1(factor);
  Vec sum = Zero();
  for (int t = 0; t < tokens; ++t) {
    const Vec p = Exp2(Mul(Sub(Load(scores + t * kHeadGroup), top), scale));
    Store(scores + t * kHeadGroup, p);
    sum = Add(sum, p);
  }
  *correction = Exp2(Mul(Sub(before, top), scale));
  *total = first ? sum : Fma(*total, *correction, sum);
  *maximum = top;
}

// At most kHeadGroup heads.
void AttendStatesGroup(const AttendStatesTask& task, int head, int heads) {
  const int hidden = task.hidden;
  const int vecs = heads > kLanes ? 2 : 1;
  const int sum_stride = RoundUp(hidden, kKeyPanel);
  const float factor = task.scale * 1.44269504f;  // log2(e)
  float* turned = task.scratch;
  float* scores = turned + kHeadGroup * RoundUp(hidden, kLanes);
  float* weights = scores + kHeadGroup * kTokenBlock;
  float* sums = weights + kHeadGroup * kTokenBlock;
  alignas(64) float corrections[kHeadGroup];
  Vec maximum[2] = {Zero(), Zero()}, total[2] = {Zero(), Zero()};
  TurnHeads(task.u + head * task.stride, task.stride, heads, hidden, turned);

  const RowTiles head_tiles(heads, kQueryTile);
  for (int block = 0; block < task.tokens; block += kTokenBlock) {
    const int tokens = task.tokens - block < kTokenBlock ? task.tokens - block : kTokenBlock;
    const float* states = task.states + block * task.states_stride;
    const RowTiles tiles(tokens, kQueryTile);
    MicroTask t;
    t.bias = nullptr;
    t.in_stride = task.states_stride;
    t.weights_stride = kHeadGroup;
    t.out_stride = kHeadGroup;
    for (int k = 0; k < hidden; k += kStateInputs) {
      t.weights = turned + k * kHeadGroup;
      t.inputs = hidden - k < kStateInputs ? hidden - k : kStateInputs;
      t.fresh = k == 0;
      for (int tile = 0, token = 0; tile < tiles.count; token += tiles.rows(tile++)) {
        t.in = states + token * task.states_stride + k;
        t.out = scores + token * kHeadGroup;
        if (vecs == 2) {
          Product<2>(&t, tiles.rows(tile));
        } else {
          Product<1>(&t, tiles.rows(tile));
        }
      }
    }
    for (int v = 0; v < vecs; ++v) {
      Vec correction = Zero();
      SoftmaxLanes(scores + v * kLanes, tokens, factor, block == 0, &maximum[v], &total[v], &correction);
      Store(corrections + v * kLanes, correction);
      for (int token = 0; token < tokens; token += kLanes) {
        Transpose(scores + token * kHeadGroup + v * kLanes, kHeadGroup, weights + v * kLanes * kTokenBlock + token,
                  kTokenBlock);
      }
    }
    for (int i = 0; block > 0 && i < heads; ++i) {
      const Vec correction = Set1(corrections[i]);
      float* row = sums + i * sum_stride;
      for (int h = 0; h < hidden; h += kLanes) Store(row + h, Mul(Load(row + h), correction));
    }
    t.in_stride = kTokenBlock;
    t.weights_stride = task.states_stride;
    t.out_stride = sum_stride;
    t.inputs = tokens;
    t.fresh = block == 0;
    for (int h = 0; h < hidden; h += kKeyPanel) {
      t.weights = states + h;
      for (int tile = 0, row = 0; tile < head_tiles.count; row += head_tiles.rows(tile++)) {
        t.in = weights + row * kTokenBlock;
        t.out = sums + row * sum_stride + h;
        if (hidden - h > kLanes) {
          Product<2>(&t, head_tiles.rows(tile));
        } else {
          Product<1>(&t, head_tiles.rows(tile));
        }
      }
    }
  }
  alignas(64) float totals[kHeadGroup];
  for (int v = 0; v < vecs; ++v) Store(totals + v * kLanes, total[v]);
  for (int i = 0; i < heads; ++i) {
    const Vec inverse = Set1(1.f / totals[i]);
    float* out = task.out + (head + i) * task.stride;
    for (int h = 0; h < hidden; h += kLanes) {
      const Vec value = Mul(Load(sums + i * sum_stride + h), inverse);
      if (hidden - h < kLanes) {
        StorePartial(out + h, value, hidden - h);
      } else {
        Store(out + h, value);
      }
    }
  }
}

void AttendStates(const AttendStatesTask& task) {
  for (int head = 0; head < task.heads; head += kHeadGroup) {
    AttendStatesGroup(task, head, task.heads - head < kHeadGroup ? task.heads - head : kHeadGroup);
  }
}

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_ATTEND_STATES_H_
