// The checks of attention kernels, for cpu_kernels_test.cc (fp32) and those of AMX (bf16).
#ifndef FTBERT_TESTS_CPP_ATTENTION_CHECKS_H_
#define FTBERT_TESTS_CPP_ATTENTION_CHECKS_H_

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "core/half.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"
#include "linear_fixture.h"

namespace ftbert_test {

using ftbert::cpu::Kernels;

inline std::vector<float> Random(size_t count, float scale = 1.f) {
  static std::mt19937 generator(3);
  std::normal_distribution<float> normal(0.f, scale);
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

struct Heads {
  int32_t keys, depth;
  ptrdiff_t stride;
  std::vector<float> qkv;
  Heads(int32_t keys, int32_t depth, float scale) : keys(keys), depth(depth), stride(3 * depth + 18) {
    qkv = Random(keys * stride + 16, scale);
  }
  const float* query() const { return qkv.data() + 1; }
  const float* key() const { return query() + depth; }
  const float* value() const { return query() + 2 * depth; }
};

// Where a form in bf16 leaves what the next product reads: a head's first line, and query 0's row.
struct PreparedContext {
  uint8_t* out = nullptr;
  size_t stride = 0;
  int32_t row = 0;
};

inline void Attend(const Kernels& kernels, const Heads& h, int32_t first, int32_t queries, float scale, float* out,
                   PreparedContext prepared = PreparedContext()) {
  const size_t floats = kernels.attention_scratch_floats(h.keys, h.depth);
  ftbert::cpu::Buffer scratch;
  CHECK(scratch.Allocate(floats * sizeof(float)));
  std::fill_n(scratch.as<float>(), floats, kNan);
  std::vector<uint16_t> rounded(h.qkv.size());
  for (size_t i = 0; i < rounded.size(); ++i) rounded[i] = ftbert::FloatToBFloat16(h.qkv[i]);
  const auto at = [&](const float* value) -> const void* {
    return kernels.attends_bf16 ? static_cast<const void*>(rounded.data() + (value - h.qkv.data())) : value;
  };
  ftbert::cpu::AttentionTask task = {};
  task.query = at(h.query() + first * h.stride);
  task.key = at(h.key());
  task.value = at(h.value());
  task.stride = h.stride;
  task.out = out;
  task.out_stride = h.depth + 1;
  task.prepared_out = prepared.out;
  task.prepared_stride = prepared.stride;
  task.prepared_row = prepared.row;
  task.queries = queries;
  task.keys = h.keys;
  task.head_size = h.depth;
  task.scale = scale;
  task.scratch = scratch.as<float>();
  kernels.attention(task);
}

// `rounded`: queries, keys and values are such as bf16 holds, so that what is left is the form's own error.
inline void CheckAttention(const Kernels& kernels, int32_t keys, int32_t depth, float size, double tolerance,
                           bool rounded = false) {
  Heads h(keys, depth, size);
  if (rounded) {
    for (float& value : h.qkv) value = ftbert::BFloat16ToFloat(ftbert::FloatToBFloat16(value));
  }
  const float scale = 1.f / std::sqrt(static_cast<float>(depth));
  const ptrdiff_t out_stride = depth + 1;
  std::vector<float> out(keys * out_stride, kNan);
  Attend(kernels, h, 0, keys, scale, out.data());
  double worst = 0;
  for (int32_t q = 0; q < keys; q += 1 + keys / 40) {
    std::vector<double> scores(keys);
    double largest = -1e300, total = 0;
    for (int32_t k = 0; k < keys; ++k) {
      double sum = 0;
      for (int32_t d = 0; d < depth; ++d)
        sum += static_cast<double>(h.query()[q * h.stride + d]) * h.key()[k * h.stride + d];
      scores[k] = sum * scale;
      largest = std::fmax(largest, scores[k]);
    }
    for (double& score : scores) total += score = std::exp(score - largest);
    for (int32_t d = 0; d < depth; ++d) {
      double sum = 0;
      for (int32_t k = 0; k < keys; ++k) sum += scores[k] * h.value()[k * h.stride + d];
      const double error = std::fabs(out[q * out_stride + d] - sum / total);
      if (!(error <= worst)) worst = error;
    }
    CHECK(std::isnan(out[q * out_stride + depth]));
  }
  if (!(worst <= tolerance))
    std::printf("  attention %d keys, head %d, size %g: error %.3g\n", keys, depth, size, worst);
  CHECK(worst <= tolerance);
  // A query alone, and the last few together: the same bits.
  std::vector<float> alone(keys * out_stride, kNan);
  const int32_t last = std::min(keys, 5);
  Attend(kernels, h, keys / 2, 1, scale, alone.data());
  CHECK(SameBits(alone.data(), &out[keys / 2 * out_stride], depth));
  Attend(kernels, h, keys - last, last, scale, alone.data());
  for (int32_t q = 0; q < last; ++q)
    CHECK(SameBits(&alone[q * out_stride], &out[(keys - last + q) * out_stride], depth));
}

// Scores of 1e30 and equal ones: the largest wins or shares, nothing overflows.
inline void CheckExtremeScores(const Kernels& kernels, int32_t depth, double tolerance) {
  Heads h(300, depth, 1.f);
  for (int32_t k = 0; k < h.keys; ++k) {
    for (int32_t d = 0; d < h.depth; ++d) {
      float* row = h.qkv.data() + 1 + k * h.stride;
      row[d] = d == 0 ? 1e15f : 0.f;
      row[h.depth + d] = d == 0 ? (k == 290 ? 1e15f : -1e15f) : 0.f;
      row[2 * h.depth + d] = static_cast<float>(k);
    }
  }
  std::vector<float> out(h.keys * (h.depth + 1), kNan);
  Attend(kernels, h, 0, h.keys, 0.25f, out.data());
  for (int32_t q = 0; q < h.keys; ++q) CHECK_NEAR(out[q * (h.depth + 1)], 290.0, tolerance);
  for (int32_t k = 0; k < h.keys; ++k) h.qkv[1 + k * h.stride + h.depth] = -1e15f;
  Attend(kernels, h, 0, h.keys, 0.25f, out.data());
  for (int32_t q = 0; q < h.keys; ++q) CHECK_NEAR(out[q * (h.depth + 1)], 149.5, tolerance);
  // A NaN in one query spoils that query alone; in a value, that dimension; in a key, everything.
  Heads n(40, depth, 1.f);
  n.qkv[1 + 7 * n.stride + 3] = kNan;
  std::vector<float> spoiled(n.keys * (n.depth + 1), 0.f);
  Attend(kernels, n, 0, n.keys, 0.25f, spoiled.data());
  for (int32_t q = 0; q < n.keys; ++q) CHECK_EQ(std::isnan(spoiled[q * (n.depth + 1) + 5]), q == 7);
  n.qkv[1 + 7 * n.stride + 3] = 0.f;
  n.qkv[1 + 9 * n.stride + 2 * n.depth + 5] = kNan;
  Attend(kernels, n, 0, n.keys, 0.25f, spoiled.data());
  for (int32_t d = 0; d < n.depth; ++d) CHECK_EQ(std::isnan(spoiled[3 * (n.depth + 1) + d]), d == 5);
  n.qkv[1 + 9 * n.stride + n.depth + 5] = kNan;
  Attend(kernels, n, 0, n.keys, 0.25f, spoiled.data());
  for (int32_t d = 0; d < n.depth; ++d) CHECK(std::isnan(spoiled[3 * (n.depth + 1) + d]));
}

// The second of three heads' context among prepared rows, in tile form: rounded as it would be later, nothing else
// touched.
inline void CheckPreparedContext(const Kernels& kernels, int32_t keys, int32_t depth, int32_t row) {
  constexpr int kGroup = 16, kLine = 64;
  const Heads h(keys, depth, 1.f);
  std::vector<float> floats(static_cast<size_t>(keys) * (depth + 1), kNan);
  Attend(kernels, h, 0, keys, 0.125f, floats.data());
  PreparedContext prepared;
  prepared.stride = 3 * depth * sizeof(uint16_t);
  prepared.row = row;
  std::vector<uint8_t> got((row + keys + kGroup) / kGroup * kGroup * prepared.stride, 0xa5), expected = got;
  prepared.out = got.data() + depth * sizeof(uint16_t) * kGroup;
  for (int32_t q = 0; q < keys; ++q) {
    const int32_t of_group = (row + q) % kGroup;
    for (int32_t d = 0; d < depth; ++d) {
      const uint16_t value = ftbert::FloatToBFloat16(floats[q * (depth + 1) + d]);
      const size_t at = (depth + d) * sizeof(uint16_t);
      const size_t group = (row + q - of_group) * prepared.stride;
      std::memcpy(&expected[group + (at / kLine * kGroup + of_group) * kLine + at % kLine], &value, sizeof(value));
    }
  }
  Attend(kernels, h, 0, keys, 0.125f, nullptr, prepared);
  CHECK(got == expected);
}

// A form in bf16: what it rounds itself are the weights of a sum, each by 2^-9 of itself at most.
inline void CheckBf16Attention(const Kernels& kernels) {
  for (int32_t keys : {1, 2, 7, 15, 16, 17, 31, 32, 33, 48, 97, 127, 128, 129, 160, 255, 256, 257, 300, 512, 513}) {
    CheckAttention(kernels, keys, 64, 1.f, 3e-3, true);
  }
  for (int32_t depth : {32, 64, 96, 128}) {
    CheckAttention(kernels, 37, depth, 1.f, 3e-3, true);
    CheckAttention(kernels, 270, depth, 1.f, 3e-3, true);
  }
  CheckAttention(kernels, 129, 64, 5.f, 2e-2, true);  // values are up to 20
  CheckAttention(kernels, 129, 64, 1.f, 3e-2);
  CheckExtremeScores(kernels, 32, 0.1);
  for (int32_t row : {0, 5, 16, 31}) {
    for (int32_t keys : {1, 3, 16, 40, 300}) CheckPreparedContext(kernels, keys, 64, row);
    CheckPreparedContext(kernels, 33, 32, row);
    CheckPreparedContext(kernels, 33, 96, row);
  }
}

}  // namespace ftbert_test

#endif  // FTBERT_TESTS_CPP_ATTENTION_CHECKS_H_
