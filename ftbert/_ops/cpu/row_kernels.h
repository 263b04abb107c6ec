// Embedding lookup and layer norm, a row at a time; included by kernels_*.cc after vec_*.h.
//
// A row of H floats stays in the first-level cache over its three passes: sum, squared distances from the mean (a
// second pass, not E[x^2] - mean^2, which cancels), scale. Each sum runs over four vectors in an order that H alone
// decides.
#ifndef FTBERT_CPU_ROW_KERNELS_H_
#define FTBERT_CPU_ROW_KERNELS_H_

#include "cpu/kernels.h"
#include "cpu/vec.h"

namespace ftbert {
namespace cpu {
namespace {

// Calls body(i, lanes, which) for each vector of a row; lanes < kLanes only in the last one, which = its number modulo
// 4.
template <typename Body>
inline __attribute__((always_inline)) void ForEachVec(int hidden, const Body& body) {
  int i = 0;
  for (; i + 4 * kLanes <= hidden; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) body(i + j * kLanes, kLanes, j);
  }
  for (int j = 0; i < hidden; i += kLanes, j = (j + 1) & 3) body(i, hidden - i < kLanes ? hidden - i : kLanes, j);
}

inline __attribute__((always_inline)) Vec LoadLanes(const float* p, int lanes) {
  return lanes == kLanes ? Load(p) : LoadPartial(p, lanes);
}

inline __attribute__((always_inline)) void StoreLanes(float* p, Vec v, int lanes) {
  if (lanes == kLanes) {
    Store(p, v);
  } else {
    StorePartial(p, v, lanes);
  }
}

inline float SumOf4(const Vec* sums) { return Sum(Add(Add(sums[0], sums[1]), Add(sums[2], sums[3]))); }

// x = (x - mean) / sqrt(variance + epsilon) * gamma + beta, in place; `total` is the row's sum.
inline void NormalizeRow(float* x, float total, int hidden, const float* gamma, const float* beta, float epsilon) {
  const float mean = total / static_cast<float>(hidden);
  const Vec center = Set1(mean);
  Vec squares[4] = {Zero(), Zero(), Zero(), Zero()};
  ForEachVec(hidden, [&](int i, int lanes, int which) {
    Vec d = Sub(LoadLanes(x + i, lanes), center);
    if (lanes < kLanes) d = SelectFirst(lanes, d, Zero());
    squares[which] = Fma(d, d, squares[which]);
  });
  const float variance = SumOf4(squares) / static_cast<float>(hidden);
  const Vec scale = Set1(1.f / __builtin_sqrtf(variance + epsilon));
  ForEachVec(hidden, [&](int i, int lanes, int) {
    const Vec normal = Mul(Sub(LoadLanes(x + i, lanes), center), scale);
    StoreLanes(x + i, Fma(normal, LoadLanes(gamma + i, lanes), LoadLanes(beta + i, lanes)), lanes);
  });
}

void AddNorm(const AddNormTask& task) {
  for (int row = 0; row < task.rows; ++row) {
    const float* in = task.in + row * task.in_stride;
    float* x = task.residual + row * task.residual_stride;
    Vec sums[4] = {Zero(), Zero(), Zero(), Zero()};
    ForEachVec(task.hidden, [&](int i, int lanes, int which) {
      const Vec sum = Add(LoadLanes(in + i, lanes), LoadLanes(x + i, lanes));
      StoreLanes(x + i, sum, lanes);
      sums[which] = Add(sums[which], sum);
    });
    NormalizeRow(x, SumOf4(sums), task.hidden, task.gamma, task.beta, task.epsilon);
  }
}

// `lanes` values from element `i` of a table row, as fp32. Table rows are padded to whole vectors.
template <int kType>
inline __attribute__((always_inline)) Vec LoadTable(const void* table, size_t i) {
  if constexpr (kType == 1) return LoadFloat16(static_cast<const uint16_t*>(table) + i);
  if constexpr (kType == 2) return LoadBFloat16(static_cast<const uint16_t*>(table) + i);
  return Load(static_cast<const float*>(table) + i);
}

template <int kType>
void EmbedAs(const EmbedTask& task) {
  const size_t stride = static_cast<size_t>(task.table_stride);
  for (int row = 0; row < task.rows; ++row) {
    const size_t word = task.token_ids[row] * stride;
    const size_t position = (task.first_position + row) * stride;
    const size_t segment = (task.segment_ids != nullptr ? task.segment_ids[row] : 0) * stride;
    float* x = task.out + row * task.out_stride;
    Vec sums[4] = {Zero(), Zero(), Zero(), Zero()};
    ForEachVec(task.hidden, [&](int i, int lanes, int which) {
      const Vec sum = Add(Add(LoadTable<kType>(task.words, word + i), LoadTable<kType>(task.positions, position + i)),
                          LoadTable<kType>(task.segments, segment + i));
      StoreLanes(x + i, sum, lanes);
      sums[which] = Add(sums[which], lanes < kLanes ? SelectFirst(lanes, sum, Zero()) : sum);
    });
    NormalizeRow(x, SumOf4(sums), task.hidden, task.gamma, task.beta, task.epsilon);
  }
}

void Embed(const EmbedTask& task) {
  switch (task.type) {
    case 1: return EmbedAs<1>(task);
    case 2: return EmbedAs<2>(task);
    default: return EmbedAs<0>(task);
  }
}

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_ROW_KERNELS_H_
