// What the tests of the int8 and bf16 products share: sizes, random matrices, and a product run on a LinearKernel with
// everything around it poisoned.
#ifndef FTBERT_TESTS_CPP_LINEAR_FIXTURE_H_
#define FTBERT_TESTS_CPP_LINEAR_FIXTURE_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/linear_int8_bf16.h"

namespace ftbert_test {

using ftbert::cpu::Epilogue;
using ftbert::cpu::LinearKernel;
using ftbert::cpu::PackedMatrix;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Form {
  const char* name;
  std::unique_ptr<LinearKernel> kernel;
};

// W (K, N) with bias (N,), and X (M, K).
struct Problem {
  int32_t inputs, outputs, rows;
  std::vector<float> weights, bias, x;

  Problem(int32_t k, int32_t n, int32_t m, uint32_t seed = 1)
      : inputs(k), outputs(n), rows(m), weights(static_cast<size_t>(k) * n), bias(n), x(static_cast<size_t>(m) * k) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    for (float& value : weights) value = 0.05f * normal(generator);
    for (float& value : bias) value = normal(generator);
    for (float& value : x) value = normal(generator);
  }

  // As `parts` matrices side by side (N divides), like query, key and value; storage must outlive the call.
  PackedMatrix Pack(const LinearKernel& kernel, int parts = 1) const {
    std::vector<std::vector<float>> storage(parts);
    std::vector<ftbert::SourceMatrix> sources(parts);
    const int32_t columns = outputs / parts;
    for (int q = 0; q < parts; ++q) {
      storage[q].resize(static_cast<size_t>(inputs) * columns);
      for (int32_t k = 0; k < inputs; ++k) {
        for (int32_t n = 0; n < columns; ++n) {
          const float value = weights[static_cast<size_t>(k) * outputs + q * columns + n];
          storage[q][static_cast<size_t>(k) * columns + n] = value;
        }
      }
      sources[q].data = storage[q].data();
      sources[q].rows = inputs;
      sources[q].cols = columns;
      sources[q].bias = bias.data() + q * columns;
    }
    PackedMatrix packed;
    CHECK_OK(kernel.Pack(sources, &packed));
    return packed;
  }
};

inline std::string Describe(const char* form, const Problem& p) {
  return std::string(form) + " " + std::to_string(p.rows) + " x " + std::to_string(p.inputs) + " x " +
         std::to_string(p.outputs);
}

// Bytes that `rows` prepared rows take: whole groups.
inline size_t PreparedBytes(const LinearKernel& kernel, int32_t rows, size_t stride) {
  const int32_t group = kernel.group_rows();
  return static_cast<size_t>((rows + group - 1) / group) * group * stride;
}

// Rows as the kernel wants them, each with `gap` bytes of poison behind it, at an address that is odd for floats'
// vectors. The rows that the last group lacks are poison, too.
struct PreparedRows {
  std::vector<uint8_t> storage;
  uint8_t* data = nullptr;
  size_t stride = 0;

  PreparedRows(const LinearKernel& kernel, const float* x, ptrdiff_t x_stride, int32_t rows, int32_t inputs,
               size_t gap) {
    const size_t bytes = kernel.input_row_bytes(inputs);
    stride = (bytes == 0 ? inputs * sizeof(float) : bytes) + gap;
    storage.assign(PreparedBytes(kernel, rows, stride) + 4, 0xff);
    data = storage.data() + 4;
    if (bytes == 0) {
      for (int32_t r = 0; r < rows; ++r) std::memcpy(data + r * stride, x + r * x_stride, inputs * sizeof(float));
    } else {
      kernel.Prepare(x, x_stride, rows, inputs, data, stride);
    }
  }
};

// `lines` lines of 64 bytes of a prepared row, on end.
inline std::vector<uint8_t> RowLines(const LinearKernel& kernel, const uint8_t* prepared, size_t stride, int32_t row,
                                     int32_t lines) {
  std::vector<uint8_t> bytes;
  const uint8_t* line = prepared + kernel.RowOffset(row, stride);
  for (int32_t i = 0; i < lines; ++i, line += 64 * kernel.group_rows()) bytes.insert(bytes.end(), line, line + 64);
  return bytes;
}

// out (rows, N + 5) with NaN before and a mark after the columns; checks that the mark is untouched.
inline std::vector<float> Multiply(const LinearKernel& kernel, const PackedMatrix& packed, const float* x, int32_t rows,
                                   Epilogue epilogue, size_t gap = 0) {
  const PreparedRows prepared(kernel, x, packed.inputs, rows, packed.inputs, gap);
  const ptrdiff_t stride = packed.outputs + 5;
  const float mark = 12345.0f;
  std::vector<float> storage(rows * stride + 1, mark);
  float* out = storage.data() + 1;
  for (int32_t r = 0; r < rows; ++r) std::fill(out + r * stride, out + r * stride + packed.outputs, kNan);
  ftbert::cpu::Tile tile;
  tile.in = prepared.data;
  tile.in_stride = prepared.stride;
  tile.rows = rows;
  tile.panel_end = static_cast<int32_t>(packed.panels.size());
  tile.k_end = packed.inputs;
  tile.epilogue = epilogue;
  tile.out = out;
  tile.out_stride = stride;
  kernel.Compute(packed, tile);
  std::vector<float> result;
  bool untouched = storage[0] == mark;
  for (int32_t r = 0; r < rows; ++r) {
    result.insert(result.end(), out + r * stride, out + r * stride + packed.outputs);
    for (ptrdiff_t c = packed.outputs; c < stride; ++c) untouched = untouched && out[r * stride + c] == mark;
  }
  CHECK(untouched);
  return result;
}

// The rows that a product with GELU writes for the next one, which are what Prepare makes of its fp32 result `floats`,
// padding included.
inline std::vector<uint8_t> CheckedPreparedOutput(const LinearKernel& kernel, const Problem& p,
                                                  const PackedMatrix& packed, const std::vector<float>& floats) {
  const size_t bytes = kernel.input_row_bytes(p.outputs);
  const PreparedRows expected(kernel, floats.data(), p.outputs, p.rows, p.outputs, 0);
  const PreparedRows in(kernel, p.x.data(), p.inputs, p.rows, p.inputs, 0);
  std::vector<uint8_t> got(PreparedBytes(kernel, p.rows, bytes), 0xff);
  ftbert::cpu::Tile tile;
  tile.in = in.data;
  tile.in_stride = in.stride;
  tile.rows = p.rows;
  tile.panel_end = static_cast<int32_t>(packed.panels.size());
  tile.k_end = p.inputs;
  tile.epilogue = Epilogue::kBiasGeluTanh;
  tile.prepared_out = got.data();
  tile.prepared_stride = bytes;
  kernel.Compute(packed, tile);
  const int32_t lines = static_cast<int32_t>(bytes / 64);
  bool same = true;
  for (int32_t r = 0; r < p.rows; ++r) {
    same = same && RowLines(kernel, got.data(), bytes, r, lines) ==
                       RowLines(kernel, expected.data, expected.stride, r, lines);
  }
  CHECK(same);
  return got;
}

inline bool SameBits(const float* a, const float* b, size_t count) {
  return std::memcmp(a, b, count * sizeof(float)) == 0;
}

// A row of the product must not depend on the rows beside it, on the panels of the tile, or on where the inputs lie.
inline void CheckRowsAreIndependent(const Form& form, const Problem& p, const PackedMatrix& packed, Epilogue epilogue) {
  const LinearKernel& kernel = *form.kernel;
  const std::vector<float> all = Multiply(kernel, packed, p.x.data(), p.rows, epilogue);
  const std::vector<float> moved = Multiply(kernel, packed, p.x.data(), p.rows, epilogue, 192);
  CHECK(SameBits(all.data(), moved.data(), all.size()));
  bool same = true;
  for (int32_t r = 0; r < p.rows; r += 1 + p.rows / 5) {
    const std::vector<float> alone = Multiply(kernel, packed, &p.x[static_cast<size_t>(r) * p.inputs], 1, epilogue);
    same = same && SameBits(alone.data(), &all[static_cast<size_t>(r) * p.outputs], p.outputs);
  }
  CHECK(same);
  const PreparedRows prepared(kernel, p.x.data(), p.inputs, p.rows, p.inputs, 0);
  std::vector<float> pieces(all.size(), kNan);
  for (int32_t panel = 0; panel < static_cast<int32_t>(packed.panels.size()); ++panel) {
    ftbert::cpu::Tile tile;
    tile.in = prepared.data;
    tile.in_stride = prepared.stride;
    tile.rows = p.rows;
    tile.panel_begin = panel;
    tile.panel_end = panel + 1;
    tile.k_end = p.inputs;
    tile.epilogue = epilogue;
    tile.out = pieces.data();
    tile.out_stride = p.outputs;
    kernel.Compute(packed, tile);
  }
  CHECK(SameBits(all.data(), pieces.data(), all.size()));
}

// The larger of the two; a NaN stays.
inline void KeepWorst(double value, double* worst) {
  if (!(value <= *worst) && !std::isnan(*worst)) *worst = value;
}

inline double Activate(Epilogue epilogue, double x) {
  switch (epilogue) {
    case Epilogue::kBias: return x;
    case Epilogue::kBiasGeluErf: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Epilogue::kBiasGeluTanh: return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    case Epilogue::kBiasRelu: return x > 0 ? x : 0;
    case Epilogue::kBiasTanh: return std::tanh(x);
  }
  return kNan;
}

constexpr Epilogue kEpilogues[] = {Epilogue::kBias, Epilogue::kBiasGeluErf, Epilogue::kBiasGeluTanh,
                                   Epilogue::kBiasRelu, Epilogue::kBiasTanh};

// GELU of the low precisions is within 8e-5 for |x| <= 8 and 8e-6 |x| beyond.
inline double GeluTolerance(Epilogue epilogue, double x) {
  const bool gelu = epilogue == Epilogue::kBiasGeluErf || epilogue == Epilogue::kBiasGeluTanh;
  return gelu ? std::fmax(8e-5, 8e-6 * std::fabs(x)) : 0.0;
}

}  // namespace ftbert_test

#endif  // FTBERT_TESTS_CPP_LINEAR_FIXTURE_H_
