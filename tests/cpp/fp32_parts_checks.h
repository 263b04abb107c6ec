// The checks of fp32 products by bf16 parts, for cpu_kernels_test.cc (where the machine has AMX) and
// cpu_amx_fp32_test.cc (emulated).
#ifndef FTBERT_TESTS_CPP_FP32_PARTS_CHECKS_H_
#define FTBERT_TESTS_CPP_FP32_PARTS_CHECKS_H_

#include <algorithm>

#include "core/half.h"
#include "linear_fixture.h"
#include "product_checks.h"

namespace ftbert_test {

// A product's sums in double, and of the terms' magnitudes.
struct ExactSum {
  double sum, magnitude;

  ExactSum(const Problem& p, int32_t r, int32_t n) : sum(p.bias[n]), magnitude(std::fabs(p.bias[n])) {
    for (int32_t k = 0; k < p.inputs; ++k) {
      const double term = static_cast<double>(p.x[static_cast<size_t>(r) * p.inputs + k]) *
                          p.weights[static_cast<size_t>(k) * p.outputs + n];
      sum += term;
      magnitude += std::fabs(term);
    }
  }
};

inline void CheckFp32Product(const Form& form, const Problem& p, int parts, Epilogue epilogue) {
  const std::vector<float> got = Multiply(*form.kernel, p.Pack(*form.kernel, parts), p.x.data(), p.rows, epilogue);
  double worst = 0;
  for (int32_t r = 0; r < p.rows; r += p.rows > 100 ? 3 : 1) {
    for (int32_t n = 0; n < p.outputs; ++n) {
      const ExactSum exact(p, r, n);
      // A product is within 2^-20; sums are of 16 products at a time.
      const double products = 9.6e-7 * exact.magnitude, summing = 1.2e-7 * exact.magnitude * 0.1 * std::sqrt(p.inputs);
      const double gelu = 4e-7 * std::fmax(1, std::fabs(exact.sum));
      const double tolerance = products + summing + (epilogue == Epilogue::kBias ? 0 : gelu) + 1e-30;
      const double difference = std::fabs(got[static_cast<size_t>(r) * p.outputs + n] - Activate(epilogue, exact.sum));
      KeepWorst(difference / tolerance, &worst);
    }
  }
  const double zero = 0;
  CHECK_ALL_NEAR(&worst, &zero, 1, 1.0, Describe(form.name, p) + ", in units of the tolerance");
}

// At random, sums are closer to the exact ones than those of a chain of fp32 multiply-adds.
inline void CheckCloserThanMultiplyAdds(const Form& form) {
  const Problem p(768, 96, 33);
  const std::vector<float> got = Multiply(*form.kernel, p.Pack(*form.kernel), p.x.data(), p.rows, Epilogue::kBias);
  double of_parts = 0, of_chain = 0;
  for (int32_t r = 0; r < p.rows; ++r) {
    for (int32_t n = 0; n < p.outputs; ++n) {
      float chain = 0;
      for (int32_t k = 0; k < p.inputs; ++k) {
        chain = std::fma(p.x[static_cast<size_t>(r) * p.inputs + k], p.weights[static_cast<size_t>(k) * p.outputs + n],
                         chain);
      }
      const double exact = ExactSum(p, r, n).sum;
      of_parts += std::pow(got[static_cast<size_t>(r) * p.outputs + n] - exact, 2);
      of_chain += std::pow(static_cast<double>(chain + p.bias[n]) - exact, 2);
    }
  }
  const double ratio = std::sqrt(of_parts / of_chain);
  std::printf("%s: sums are off by %.2f of what those of fp32 multiply-adds are\n", form.name, ratio);
  CHECK(ratio < 1);
}

// A prepared row holds three parts of each float that add up to it.
inline void CheckPreparedParts(const Form& form, const Problem& p) {
  const LinearKernel& kernel = *form.kernel;
  const PackedMatrix packed = p.Pack(kernel);
  const std::vector<float> floats = Multiply(kernel, packed, p.x.data(), p.rows, Epilogue::kBiasGeluTanh);
  const std::vector<uint8_t> got = CheckedPreparedOutput(kernel, p, packed, floats);
  const size_t bytes = kernel.input_row_bytes(p.outputs);
  const int32_t lines = static_cast<int32_t>(bytes / 64);
  bool whole = true;
  for (int32_t r = 0; r < p.rows; ++r) {
    const std::vector<uint8_t> row = RowLines(kernel, got.data(), bytes, r, lines);
    for (int32_t n = 0; n < 32 * lines / 3; ++n) {
      float sum = 0;
      for (int part : {2, 1, 0}) {
        uint16_t half;
        std::memcpy(&half, &row[n / 32 * 192 + part * 64 + n % 32 * 2], sizeof(half));
        sum += ftbert::BFloat16ToFloat(half);
      }
      whole = whole && sum == (n < p.outputs ? floats[static_cast<size_t>(r) * p.outputs + n] : 0.f);
    }
  }
  CHECK(whole);
}

// Weights of a panel as they are held: the first part, and sign and mantissa of the others, 7 and 14 powers of two
// below.
inline void CheckWeightParts(const ftbert::cpu::LinearOps& ops) {
  constexpr int kCount = 32 * 32;  // a line of a panel
  const auto bf16 = [](int bits) { return static_cast<double>(ftbert::BFloat16ToFloat(static_cast<uint16_t>(bits))); };
  double worst = 0, square = 0;
  int64_t count = 0;
  std::mt19937 random(5);
  // All leading bits of a mantissa with all others random, by powers of two; then halves, of which nothing may be lost
  // but in rare cases; zeros; what is not finite.
  enum { kRandom, kHalves, kZero, kInfinite, kNotANumber };
  int32_t inexact_halves = 0, halves = 0;
  for (int kind : {kRandom, kHalves, kZero, kInfinite, kNotANumber}) {
    for (int turn = 0; turn < (kind <= kHalves ? 512 : 1); ++turn) {
      std::vector<float> weights(kCount);
      for (int i = 0; i < kCount; ++i) {
        uint32_t bits = (random() & 0x800fffffu) | static_cast<uint32_t>(127 - turn % 60) << 23 | (i % 8) << 20;
        if (kind == kHalves) bits &= ~0x1fffu;
        if (kind == kZero) bits &= 0x80000000u;
        if (kind == kInfinite) bits = (bits & 0x80000000u) | 0x7f800000u;
        if (kind == kNotANumber) bits = 0x7f800000u | (i + 1);
        std::memcpy(&weights[i], &bits, sizeof(bits));
      }
      std::vector<uint8_t> panel(kCount * sizeof(float) + 64);
      uint8_t* const at = panel.data() + 64 - reinterpret_cast<uintptr_t>(panel.data()) % 64;
      std::memcpy(at, weights.data(), kCount * sizeof(float));
      ops.finish_panel(at, 1);
      for (int i = 0; i < kCount; ++i) {  // i: [ tile ][ input ][ column ]
        const uint8_t* const place = at + i / 32 * 128 + i % 16 * 4 + i / 16 % 2 * 2;
        uint16_t first, rest;
        std::memcpy(&first, place, sizeof(first));
        std::memcpy(&rest, place + 64, sizeof(rest));
        const int exponents = first & 0x7f80;
        const int second = (rest & 0x807f) | std::max(0, exponents - (7 << 7));
        const int third = (rest & 0x80) << 8 | (rest >> 8 & 0x7f) | std::max(0, exponents - (14 << 7));
        const double sum = bf16(first) + bf16(second) + bf16(third);
        if (kind == kZero) {
          CHECK(exponents == 0 && (second & 0x7f80) == 0 && (third & 0x7f80) == 0);  // zeros to AMX
        } else if (kind == kInfinite) {
          CHECK(sum == weights[i]);
        } else if (kind == kNotANumber) {
          CHECK(std::isnan(sum));
        } else {
          const double error = std::fabs(sum - weights[i]) / std::fabs(weights[i]);
          if (kind == kHalves) ++halves, inexact_halves += error != 0;
          KeepWorst(error, &worst);
          square += error * error;
          ++count;
        }
      }
    }
  }
  CHECK(worst < std::ldexp(1, -21));
  CHECK(std::sqrt(square / count) < std::ldexp(1, -23));
  CHECK(inexact_halves * 100 < halves);
}

inline void CheckFp32Parts(const Form& form) {
  for (int32_t inputs : {1, 7, 31, 32, 33, 97, 129, 768}) {
    for (int32_t outputs : {1, 17, 33, 97}) {
      for (int32_t rows : {1, 7, 16, 17, 33}) {
        CheckFp32Product(form, Problem(inputs, outputs, rows), 1, Epilogue::kBias);
      }
    }
  }
  for (Epilogue epilogue : kEpilogues) {
    Problem p(129, 129, 33);
    for (float& value : p.x) value *= 4;
    CheckFp32Product(form, p, 3, epilogue);
    CheckRowsAreIndependent(form, p, p.Pack(*form.kernel, 3), epilogue);
  }
  for (int32_t rows : {7, 97, 256, 257, 300, 530}) {  // more than those whose sums wait at a time
    const Problem p(300, 97, rows);
    CheckFp32Product(form, p, 1, Epilogue::kBiasGeluErf);
    CheckRowsAreIndependent(form, p, p.Pack(*form.kernel), Epilogue::kBiasGeluErf);
  }
  for (int32_t inputs : {1, 33, 64, 97, 225}) {
    const Problem p(inputs, 105, 49);
    CheckFp32Product(form, p, 3, Epilogue::kBiasGeluErf);
    CheckRowCounts(form, p, 3, Epilogue::kBiasGeluErf);
    CheckPrepare(form, p);
  }
  for (int32_t outputs : {1, 31, 32, 97, 512}) CheckPreparedParts(form, Problem(97, outputs, 35));
  for (int32_t rows : {1, 15, 16, 17, 33}) CheckPreparedParts(form, Problem(70, 97, rows));
  CheckCloserThanMultiplyAdds(form);
  CheckProducts(form, 97, 129, Epilogue::kBiasRelu);
  CheckProducts(form, 72, 1000, Epilogue::kBiasGeluErf);  // the intermediate in chunks
  {  // zeros give the bias, exactly; large values and small ones keep their precision; NaN reaches its own row alone
    Problem p(64, 33, 5);
    for (int32_t k = 0; k < p.inputs; ++k) {
      p.x[k] = 0;
      p.x[p.inputs + k] *= 1e30f;
      p.x[3 * p.inputs + k] *= 1e-25f;
    }
    std::fill(p.bias.begin(), p.bias.end(), 0.f);
    CheckFp32Product(form, p, 1, Epilogue::kBias);
    p.bias[0] = 1;
    std::fill_n(&p.x[2 * p.inputs], p.inputs, kNan);
    const std::vector<float> got = Multiply(*form.kernel, p.Pack(*form.kernel), p.x.data(), p.rows, Epilogue::kBias);
    CHECK(SameBits(got.data(), p.bias.data(), p.outputs));
    for (int32_t n = 0; n < p.outputs; ++n) {
      CHECK(std::isfinite(got[p.outputs + n]) && std::isnan(got[2 * p.outputs + n]) &&
            std::isfinite(got[3 * p.outputs + n]) && std::isfinite(got[4 * p.outputs + n]));
    }
  }
}

}  // namespace ftbert_test

#endif  // FTBERT_TESTS_CPP_FP32_PARTS_CHECKS_H_
