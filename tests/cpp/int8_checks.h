// The checks of an int8 form, for cpu_int8_test.cc (the instruction sets of this machine) and cpu_amx_test.cc
// (emulated).
#ifndef FTBERT_TESTS_CPP_INT8_CHECKS_H_
#define FTBERT_TESTS_CPP_INT8_CHECKS_H_

#include "linear_fixture.h"
#include "product_checks.h"

namespace ftbert_test {

// Row 0's quantized form by plain loops in double: what Prepare promises.
struct PlainRow {
  std::vector<int> q;
  float scale = 0, low = 0;
  PlainRow(const float* x, int32_t inputs) : q(inputs) {
    float high = x[0];
    low = x[0];
    for (int32_t k = 0; k < inputs; ++k) low = std::fmin(low, x[k]), high = std::fmax(high, x[k]);
    const float range = high - low;
    scale = range / 255.0f;
    const float inverse = range > 1e-30f ? 255.0f / range : 0.0f;
    if (!(range > 1e-30f)) scale = 0;
    for (int32_t k = 0; k < inputs; ++k) q[k] = static_cast<int>(std::nearbyint((x[k] - low) * inverse));
  }
};

// The quantized weight q[k][n] and its scale, read out of the packed form.
struct PackedReader {
  const PackedMatrix& packed;
  int32_t columns;
  explicit PackedReader(const PackedMatrix& p) : packed(p), columns(p.kernel->panel_columns()) {}
  int32_t Place(int32_t n, int32_t* panel) const {
    for (*panel = 0;; ++*panel) {
      const auto& candidate = packed.panels[*panel];
      if (n < candidate.column + candidate.width) return n - candidate.column;
    }
  }
  int Level(int32_t k, int32_t n) const {
    int32_t panel;
    const int32_t c = Place(n, &panel);
    int32_t group = k / 4 * columns + c;
    if (packed.kernel->group_rows() > 1) {  // tile form: of each line, 16 groups of columns 0 .. 15, then of the others
      group = k / 64 * 16 * columns + c / 16 * 256 + k / 4 % 16 * 16 + c % 16;
    }
    return packed.weights.as<int8_t>()[panel * packed.panel_bytes + group * 4 + k % 4];
  }
  float Scale(int32_t n) const {
    int32_t panel;
    const int32_t c = Place(n, &panel);
    return packed.extra.as<float>()[panel * columns + c];
  }
};

// Every element against integer sums made by plain loops.
inline void CheckInt8Product(const Form& form, const Problem& p, int parts, Epilogue epilogue) {
  const std::string what = Describe(form.name, p);
  const PackedMatrix packed = p.Pack(*form.kernel, parts);
  const PackedReader reader(packed);
  const std::vector<float> got = Multiply(*form.kernel, packed, p.x.data(), p.rows, epilogue);
  const std::vector<float> again = Multiply(*form.kernel, packed, p.x.data(), p.rows, epilogue, 64);
  CHECK(SameBits(got.data(), again.data(), got.size()));
  double worst = 0;
  for (int32_t r = 0; r < p.rows; ++r) {
    const PlainRow row(&p.x[static_cast<size_t>(r) * p.inputs], p.inputs);
    for (int32_t n = 0; n < p.outputs; n += p.outputs > 200 ? 7 : 1) {
      int64_t sum = 0, column = 0;
      for (int32_t k = 0; k < p.inputs; ++k) {
        const int w = reader.Level(k, n);
        sum += row.q[k] * w;
        column += w;
      }
      const double s = reader.Scale(n);
      const double scaled = static_cast<double>(row.scale) * s * sum, offset = row.low * s * column;
      const double before = scaled + offset + p.bias[n];
      const double tolerance = 4e-7 * (std::fabs(scaled) + std::fabs(offset) + std::fabs(p.bias[n])) * 1.2 +
                               GeluTolerance(epilogue, before) + 1e-30;
      const double difference = std::fabs(got[static_cast<size_t>(r) * p.outputs + n] - Activate(epilogue, before));
      KeepWorst(difference / tolerance, &worst);
    }
  }
  const double zero = 0;
  CHECK_ALL_NEAR(&worst, &zero, 1, 1.0, what + ", in units of the tolerance");
}

// A weight is within three quarters of a step: half, but for the few that keep the column's sum.
inline void CheckQuantization(const Form& form, const Problem& p) {
  const PackedMatrix packed = p.Pack(*form.kernel);
  const PackedReader reader(packed);
  bool near = true;
  double worst_sum = 0, square = 0;
  for (int32_t n = 0; n < p.outputs; ++n) {
    const double s = reader.Scale(n);
    double sum = 0;
    for (int32_t k = 0; k < p.inputs; ++k) {
      const double w = p.weights[static_cast<size_t>(k) * p.outputs + n];
      const int q = reader.Level(k, n);
      const double exact = s > 0 ? w / s : 0;
      near = near && q >= -127 && q <= 127 && std::fabs(exact - q) <= 0.76;
      sum += exact - q;
      square += (exact - q) * (exact - q);
    }
    KeepWorst(std::fabs(sum), &worst_sum);
  }
  CHECK(near);
  if (p.inputs >= 512) CHECK(worst_sum <= 2.0);  // without it about sqrt(K / 12) = 8, at worst 3 times that
  CHECK(square / p.inputs / p.outputs <= 1.05 / 12);  // rounding's own is 1/12
}

inline void CheckInt8Sizes(const Form& form) {
  for (int32_t inputs : {1, 7, 64, 97, 129, 512, 768}) {
    for (int32_t outputs : {1, 7, 33, 97, 129}) {
      for (int32_t rows : {1, 7, 12, 13, 33, 97}) {
        CheckInt8Product(form, Problem(inputs, outputs, rows), 1, Epilogue::kBias);
      }
    }
  }
  for (Epilogue epilogue : kEpilogues) {
    Problem p(129, 129, 33);
    for (size_t i = 0; i < p.x.size(); ++i) p.x[i] *= 4;
    CheckInt8Product(form, p, 3, epilogue);
    CheckRowsAreIndependent(form, p, p.Pack(*form.kernel, 3), epilogue);
  }
  for (int32_t rows : {1, 7, 97, 129}) {
    const Problem p(512, 97, rows);
    CheckRowsAreIndependent(form, p, p.Pack(*form.kernel), Epilogue::kBias);
  }
  // K in parts (AMX), sums of several blocks of rows waiting from one to the next: as many rows as wait, and more.
  for (int32_t rows : {49, 512, 530}) {
    const Problem p(1601, 40, rows);
    CheckInt8Product(form, p, 1, Epilogue::kBiasGeluErf);
    CheckRowsAreIndependent(form, p, p.Pack(*form.kernel), Epilogue::kBiasGeluErf);
  }
  CheckQuantization(form, Problem(768, 97, 1));
  for (int32_t inputs : {1, 63, 64, 65, 129, 193, 769}) {
    const Problem p(inputs, 105, 65);
    CheckInt8Product(form, p, 3, Epilogue::kBiasGeluErf);
    CheckRowCounts(form, p, 3, Epilogue::kBiasGeluErf);
    CheckPrepare(form, p);
  }
  CheckProducts(form, 160, 224, Epilogue::kBiasGeluErf);
  CheckProducts(form, 97, 129, Epilogue::kBiasRelu);
}

inline void CheckInt8Extremes(const Form& form) {
  // All weights and inputs at the ends of their ranges, in runs of each sign: the largest sums there can be, where
  // 16-bit halves would saturate.
  for (int pattern = 0; pattern < 5; ++pattern) {
    Problem p(3072, 40, 5);
    for (int32_t k = 0; k < p.inputs; ++k) {
      for (int32_t n = 0; n < p.outputs; ++n) {
        const bool choices[] = {false, true, k % 2 == 1, k % 4 >= 2, n % 2 == 1};
        const bool negative = choices[pattern];
        p.weights[static_cast<size_t>(k) * p.outputs + n] = negative ? -1.0f : 1.0f;
      }
    }
    for (int32_t r = 0; r < p.rows; ++r) {
      for (int32_t k = 0; k < p.inputs; ++k) {
        const bool high = r == 0 ? k > 0 : r == 1 ? k == 0 : r == 2 ? k % 2 == 0 : r == 3 ? k % 4 < 2 : k % 3 == 0;
        p.x[static_cast<size_t>(r) * p.inputs + k] = high ? 3.0f : -5.0f;
      }
    }
    CheckInt8Product(form, p, 1, Epilogue::kBias);
  }
  // AVX2 adds chunks of 16 inputs in 16 bits where the norms of inputs and weights allow it. Weights in step with the
  // inputs reach the bound of Cauchy and Schwarz, so 28 to 36 steps lie on both sides of 32,767 / (8 x 127.5).
  for (int level = 28; level <= 36; ++level) {
    Problem p(512, 48, 4);
    const auto sign = [](int32_t k, int32_t n) { return (k * 2654435761u >> 7 ^ static_cast<uint32_t>(n) / 8) & 1; };
    for (int32_t k = 0; k < p.inputs; ++k) {
      for (int32_t n = 0; n < p.outputs; ++n) {
        const float value = k == 1 ? 1.0f : k == 0 ? 0.0f : static_cast<float>(level) / 127.0f;
        p.weights[static_cast<size_t>(k) * p.outputs + n] = sign(k, n) != 0 ? -value : value;
      }
      for (int32_t r = 0; r < p.rows; ++r) {
        const bool high = r == 3 ? k % 5 == 0 : sign(k, 8 * r) == 0;
        p.x[static_cast<size_t>(r) * p.inputs + k] = high ? 1.0f : -1.0f;
      }
    }
    CheckInt8Product(form, p, 1, Epilogue::kBias);
  }
  {  // pairs of weights at what quantization leaves of them: 64 and 64, 127 and 1, both signs, and the inputs 0 and 255
    Problem p(512, 48, 4);
    for (int32_t k = 0; k < p.inputs; ++k) {
      for (int32_t n = 0; n < p.outputs; ++n) {
        const float value = k % 4 < 2 ? 0.5f : k % 2 == 0 ? 0.999f : 0.001f;
        p.weights[static_cast<size_t>(k) * p.outputs + n] = n % 2 ? -value : value;
      }
    }
    for (int32_t r = 0; r < p.rows; ++r) {
      for (int32_t k = 0; k < p.inputs; ++k) {
        const bool high = r == 0 ? k == 0 : r == 1 ? k != 0 : r == 2 ? k % 16 < 8 : k % 2 == 0;
        p.x[static_cast<size_t>(r) * p.inputs + k] = high ? 1.0f : -1.0f;
      }
    }
    CheckInt8Product(form, p, 1, Epilogue::kBias);
  }
  {  // rows of zeros, of one value, with one huge value, of tiny values; columns of zeros, with one huge weight
    Problem p(97, 40, 6);
    for (int32_t k = 0; k < p.inputs; ++k) {
      p.x[k] = 0;
      p.x[p.inputs + k] = 2.5f;
      p.x[3 * p.inputs + k] *= 1e-38f;
      p.weights[static_cast<size_t>(k) * p.outputs] = 0;
    }
    p.x[2 * p.inputs + 5] = 3e7f;
    p.weights[3] = 1e4f;
    CheckInt8Product(form, p, 1, Epilogue::kBias);
    CheckQuantization(form, p);
    const std::vector<float> got = Multiply(*form.kernel, p.Pack(*form.kernel), p.x.data(), p.rows, Epilogue::kBias);
    CHECK(SameBits(got.data(), p.bias.data(), p.outputs));  // a row of zeros gives the bias, exactly
  }
  {  // a NaN in a row reaches the row's results and no other's
    Problem p(64, 33, 3);
    for (int32_t k = 0; k < p.inputs; ++k) p.x[p.inputs + k] = kNan;
    const std::vector<float> got = Multiply(*form.kernel, p.Pack(*form.kernel), p.x.data(), p.rows, Epilogue::kBias);
    for (int32_t n = 0; n < p.outputs; ++n) {
      CHECK(!std::isnan(got[n]) && std::isnan(got[p.outputs + n]) && !std::isnan(got[2 * p.outputs + n]));
    }
  }
}

}  // namespace ftbert_test

#endif  // FTBERT_TESTS_CPP_INT8_CHECKS_H_
