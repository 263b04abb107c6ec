// softmax(scale q K^T) V for one head of one row of text, fused; included by kernels_*.cc after gemm_fp32.h.
//
// Keys are transposed once per head into panels of kKeyVecs vectors, weights[d][key], so that both products run on
// MicroTile. Queries go in tiles of kQueryTile; keys in blocks of kKeyBlock, so the scores of a tile stay in the
// first-level cache, and between blocks the softmax is rescaled (online softmax, Milakov and Gimelshein 2018). A
// query's result depends on its row of text alone: the blocks begin at the row's first key and every sum has one fixed
// order.
//
// The running maximum begins as the first block's own, so no infinity is ever made; a NaN in q, k or v reaches the
// output.
#ifndef FTBERT_CPU_ATTENTION_H_
#define FTBERT_CPU_ATTENTION_H_

#include "cpu/attention_fetch.h"
#include "cpu/gemm_fp32.h"

namespace ftbert {
namespace cpu {
namespace {

constexpr int kKeyPanel = 2 * kLanes;
constexpr int kKeyBlock = 256;  // a multiple of kKeyPanel
constexpr int kMaxHeadSize = 128;

constexpr int RoundUp(int value, int unit) { return (value + unit - 1) / unit * unit; }

// Scratch: the transposed keys, panels of kKeyPanel as [d][key]; then one tile's scores; then one tile's output.
size_t AttentionScratchFloats(int32_t keys, int32_t head_size) {
  return static_cast<size_t>(RoundUp(keys, kKeyPanel)) * RoundUp(head_size, kLanes) + kQueryTile * kKeyBlock +
         kQueryTile * (kMaxHeadSize + kKeyPanel);
}

// packed[panel][d][kKeyPanel] = key[panel * kKeyPanel + i][d], zero where there is no such key.
void PackKeys(const AttentionTask& task, float* packed) {
  alignas(64) float block[kLanes * kLanes];
  const int depth = task.head_size;
  const int padded_depth = RoundUp(depth, kLanes);
  for (int first = 0; first < task.keys; first += kLanes) {
    float* out = packed + static_cast<ptrdiff_t>(first / kKeyPanel) * padded_depth * kKeyPanel + first % kKeyPanel;
    const int keys = task.keys - first < kLanes ? task.keys - first : kLanes;
    for (int d = 0; d < depth; d += kLanes) {
      const float* in = static_cast<const float*>(task.key) + first * task.stride + d;
      const int lanes = depth - d < kLanes ? depth - d : kLanes;
      if (keys == kLanes && lanes == kLanes) {
        Transpose(in, task.stride, out + d * kKeyPanel, kKeyPanel);
      } else {
        for (int i = 0; i < kLanes; ++i) {
          Store(block + i * kLanes, i < keys ? LoadPartial(in + i * task.stride, lanes) : Zero());
        }
        Transpose(block, kLanes, out + d * kKeyPanel, kKeyPanel);
      }
    }
  }
  // The half of the last panel that no key reached.
  const int reached = RoundUp(task.keys, kLanes);
  if (reached % kKeyPanel != 0) {
    float* out = packed + static_cast<ptrdiff_t>(reached / kKeyPanel) * padded_depth * kKeyPanel + reached % kKeyPanel;
    for (int d = 0; d < depth; ++d) Store(out + d * kKeyPanel, Zero());
  }
}

// scores[i] = exp2(factor * (scores[i] - maximum)); returns the sum. `maximum` is raised to the block's own first, or
// set to it where this is the first block. Lanes after `keys`, up to a whole vector, become 0.
inline float SoftmaxBlock(float* scores, int keys, float factor, bool first, float* maximum) {
  const int whole = keys / kLanes * kLanes;
  const int rest = keys - whole;
  Vec largest = Set1(first ? scores[0] : *maximum);
  for (int i = 0; i < whole; i += kLanes) largest = Max(largest, Load(scores + i));
  if (rest > 0) largest = Max(largest, SelectFirst(rest, Load(scores + whole), largest));
  *maximum = Largest(largest);
  const Vec scale = Set1(factor);
  const Vec top = Set1(*maximum);  // subtracted before scaling: the largest score gives exactly 1, however large it is
  Vec sum = Zero();
  for (int i = 0; i < whole; i += kLanes) {
    const Vec p = Exp2(Mul(Sub(Load(scores + i), top), scale));
    Store(scores + i, p);
    sum = Add(sum, p);
  }
  if (rest > 0) {
    const Vec p = SelectFirst(rest, Exp2(Mul(Sub(Load(scores + whole), top), scale)), Zero());
    Store(scores + whole, p);
    sum = Add(sum, p);
  }
  return Sum(sum);
}

template <int kVecs>
inline void Product(MicroTask* t, int rows) {
  FindMicro<kQueryTile, kVecs, 0, 0>(rows)(*t);
}

void Attention(const AttentionTask& task) {
  const int depth = task.head_size;
  const int padded_depth = RoundUp(depth, kLanes);
  const float factor = task.scale * 1.44269504f;  // log2(e)
  float* packed = task.scratch;
  float* scores = packed + static_cast<ptrdiff_t>(RoundUp(task.keys, kKeyPanel)) * padded_depth;
  float* sums = scores + kQueryTile * kKeyBlock;
  constexpr int kOutStride = kMaxHeadSize + kKeyPanel;
  PackKeys(task, packed);

  const RowTiles tiles(task.queries, kQueryTile);
  int query = 0;
  for (int tile = 0; tile < tiles.count; ++tile) {
    const int rows = tiles.rows(tile);
    float maximum[kQueryTile];
    float total[kQueryTile];
    for (int block = 0; block < task.keys; block += kKeyBlock) {
      const int keys = task.keys - block < kKeyBlock ? task.keys - block : kKeyBlock;
      MicroTask t;
      t.in = static_cast<const float*>(task.query) + query * task.stride;
      t.in_stride = task.stride;
      t.weights_stride = kKeyPanel;
      t.bias = nullptr;
      t.out_stride = kKeyBlock;
      t.inputs = depth;
      t.fresh = true;
      const MicroFunction product = FindMicro<kQueryTile, 2, 0, 0>(rows);
      for (int key = 0; key < keys; key += kKeyPanel) {
        t.weights = packed + static_cast<ptrdiff_t>(block + key) * padded_depth;
        t.out = scores + key;
        if (keys - key > kLanes) {
          product(t);
        } else {
          Product<1>(&t, rows);
        }
      }
      for (int m = 0; m < rows; ++m) {
        const float before = maximum[m];
        const float sum = SoftmaxBlock(scores + m * kKeyBlock, keys, factor, block == 0, &maximum[m]);
        if (block == 0) {
          if (task.fetch_next) FetchNextHead<float>(task, query + m);
          total[m] = sum;
          continue;
        }
        const Vec correction = Exp2(Set1((before - maximum[m]) * factor));
        total[m] = total[m] * FirstLane(correction) + sum;
        float* row = sums + m * kOutStride;
        for (int d = 0; d < padded_depth; d += kLanes) Store(row + d, Mul(Load(row + d), correction));
      }
      t.in = scores;
      t.in_stride = kKeyBlock;
      t.weights_stride = task.stride;
      t.out_stride = kOutStride;
      t.inputs = keys;
      t.fresh = block == 0;
      for (int d = 0; d < depth; d += kKeyPanel) {
        t.weights = static_cast<const float*>(task.value) + block * task.stride + d;
        t.out = sums + d;
        if (depth - d > kLanes) {
          product(t);
        } else {
          Product<1>(&t, rows);
        }
      }
    }
    for (int m = 0; m < rows; ++m) {
      const Vec inverse = Set1(1.f / total[m]);
      const float* row = sums + m * kOutStride;
      float* out = task.out + (query + m) * task.out_stride;
      for (int d = 0; d < depth; d += kLanes) {
        const Vec value = Mul(Load(row + d), inverse);
        if (depth - d < kLanes) {
          StorePartial(out + d, value, depth - d);
        } else {
          Store(out + d, value);
        }
      }
    }
    query += rows;
  }
}

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_ATTENTION_H_
