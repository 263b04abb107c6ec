// The checks of a bf16 form, for cpu_bf16_test.cc (the instruction sets of this machine) and cpu_amx_test.cc
// (emulated).
#ifndef FTBERT_TESTS_CPP_BF16_CHECKS_H_
#define FTBERT_TESTS_CPP_BF16_CHECKS_H_

#include "core/half.h"
#include "linear_fixture.h"
#include "product_checks.h"

namespace ftbert_test {

inline float Rounded(float x) { return ftbert::BFloat16ToFloat(ftbert::FloatToBFloat16(x)); }

// Every element against double sums of the rounded weights and inputs: what is left is fp32 summation.
inline void CheckBf16Product(const Form& form, const Problem& p, int parts, Epilogue epilogue) {
  const std::string what = Describe(form.name, p);
  const bool rounds_inputs = form.kernel->input_row_bytes(p.inputs) != 0;
  const std::vector<float> got = Multiply(*form.kernel, p.Pack(*form.kernel, parts), p.x.data(), p.rows, epilogue);
  double worst = 0;
  for (int32_t r = 0; r < p.rows; ++r) {
    const float* x = &p.x[static_cast<size_t>(r) * p.inputs];
    for (int32_t n = 0; n < p.outputs; n += p.outputs > 200 ? 7 : 1) {
      double sum = p.bias[n], magnitude = std::fabs(p.bias[n]);
      for (int32_t k = 0; k < p.inputs; ++k) {
        const double term = static_cast<double>(rounds_inputs ? Rounded(x[k]) : x[k]) *
                            Rounded(p.weights[static_cast<size_t>(k) * p.outputs + n]);
        sum += term;
        magnitude += std::fabs(term);
      }
      // Rounding errors of a sum grow with its magnitude and, at random, with the root of its length.
      const double summing = 1.2e-7 * magnitude * (2 + 0.25 * std::sqrt(p.inputs));
      const double tolerance = summing + GeluTolerance(epilogue, sum) + 1e-30;
      const double difference = std::fabs(got[static_cast<size_t>(r) * p.outputs + n] - Activate(epilogue, sum));
      KeepWorst(difference / tolerance, &worst);
    }
  }
  const double zero = 0;
  CHECK_ALL_NEAR(&worst, &zero, 1, 1.0, what + ", in units of the tolerance");
}

// What a product writes for the next one is what Prepare makes of its fp32 result, padding included.
inline void CheckPreparedOutput(const Form& form, const Problem& p) {
  const LinearKernel& kernel = *form.kernel;
  if (!kernel.writes_prepared()) return;
  const PackedMatrix packed = p.Pack(kernel);
  const std::vector<float> floats = Multiply(kernel, packed, p.x.data(), p.rows, Epilogue::kBiasGeluTanh);
  const std::vector<uint8_t> got = CheckedPreparedOutput(kernel, p, packed, floats);
  const size_t bytes = kernel.input_row_bytes(p.outputs);
  const int32_t lines = static_cast<int32_t>(bytes / 64);
  bool rounded = true;
  for (int32_t r = 0; r < p.rows; ++r) {
    const std::vector<uint8_t> row = RowLines(kernel, got.data(), bytes, r, lines);
    for (int32_t n = 0; n < 32 * lines; ++n) {
      uint16_t half;
      std::memcpy(&half, &row[2 * n], sizeof(half));
      const float value = n < p.outputs ? Rounded(floats[static_cast<size_t>(r) * p.outputs + n]) : 0.0f;
      rounded = rounded && ftbert::BFloat16ToFloat(half) == value;
    }
  }
  CHECK(rounded);
  // The next product on it is the one on the floats.
  const Problem next(p.outputs, 70, p.rows, 2);
  const PackedMatrix second = next.Pack(kernel);
  const std::vector<float> wanted = Multiply(kernel, second, floats.data(), p.rows, Epilogue::kBias);
  std::vector<float> chained(wanted.size(), kNan);
  ftbert::cpu::Tile tile;
  tile.in = got.data();
  tile.in_stride = bytes;
  tile.rows = p.rows;
  tile.panel_end = static_cast<int32_t>(second.panels.size());
  tile.k_end = p.outputs;
  tile.out = chained.data();
  tile.out_stride = second.outputs;
  kernel.Compute(second, tile);
  CHECK(SameBits(chained.data(), wanted.data(), wanted.size()));
}

inline void CheckBf16(const Form& form) {
  for (int32_t inputs : {1, 7, 64, 97, 129, 512, 768}) {
    for (int32_t outputs : {1, 7, 33, 97, 129}) {
      for (int32_t rows : {1, 7, 12, 13, 33, 97}) {
        CheckBf16Product(form, Problem(inputs, outputs, rows), 1, Epilogue::kBias);
      }
    }
  }
  for (Epilogue epilogue : kEpilogues) {
    Problem p(129, 129, 33);
    for (float& value : p.x) value *= 4;
    CheckBf16Product(form, p, 3, epilogue);
    CheckRowsAreIndependent(form, p, p.Pack(*form.kernel, 3), epilogue);
  }
  for (int32_t rows : {1, 7, 97, 129, 300}) {
    const Problem p(512, 97, rows);
    CheckRowsAreIndependent(form, p, p.Pack(*form.kernel), Epilogue::kBias);
  }
  for (int32_t outputs : {1, 31, 32, 97, 512}) CheckPreparedOutput(form, Problem(97, outputs, 35));
  for (int32_t rows = 1; rows <= 65; ++rows) CheckPreparedOutput(form, Problem(70, 97, rows));
  // K in parts (AMX), sums of several blocks of rows waiting from one to the next: as many rows as wait, and more.
  for (int32_t rows : {49, 512, 530}) {
    const Problem p(1000, 40, rows);
    CheckBf16Product(form, p, 1, Epilogue::kBiasGeluErf);
    CheckRowsAreIndependent(form, p, p.Pack(*form.kernel), Epilogue::kBiasGeluErf);
  }
  for (int32_t inputs : {1, 31, 32, 33, 64, 65, 97, 769}) {
    const Problem p(inputs, 105, 65);
    CheckBf16Product(form, p, 3, Epilogue::kBiasGeluErf);
    CheckRowCounts(form, p, 3, Epilogue::kBiasGeluErf);
    CheckPrepare(form, p);
  }
  CheckProducts(form, 160, 224, Epilogue::kBiasGeluErf);
  CheckProducts(form, 97, 129, Epilogue::kBiasRelu);
  CheckProducts(form, 40, 1700, Epilogue::kBiasGeluErf);  // the intermediate in three chunks (AMX)
  {  // zeros give the bias, exactly; huge values stay finite; NaN and infinity reach their own row alone
    Problem p(64, 33, 4);
    for (int32_t k = 0; k < p.inputs; ++k) {
      p.x[k] = 0;
      p.x[p.inputs + k] *= 1e30f;
      p.x[2 * p.inputs + k] = kNan;
    }
    const std::vector<float> got = Multiply(*form.kernel, p.Pack(*form.kernel), p.x.data(), p.rows, Epilogue::kBias);
    CHECK(SameBits(got.data(), p.bias.data(), p.outputs));
    for (int32_t n = 0; n < p.outputs; ++n) {
      CHECK(std::isfinite(got[p.outputs + n]) && std::isnan(got[2 * p.outputs + n]) &&
            std::isfinite(got[3 * p.outputs + n]));
    }
  }
}

}  // namespace ftbert_test

#endif  // FTBERT_TESTS_CPP_BF16_CHECKS_H_
