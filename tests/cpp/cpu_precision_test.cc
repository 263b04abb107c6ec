// Whole engines in bf16 and int8, on every instruction set of this machine: close to the double-precision reference,
// the same bits on any number of threads, and a row alone equals the row in a batch.
#include <cmath>
#include <cstring>

#include "check.h"
#include "cpu/isa.h"
#include "cpu_model.h"

using namespace ftbert_test;  // NOLINT
using ftbert::Config;
using ftbert::Precision;

namespace {

void CheckPrecision(const Config& config, const std::vector<int32_t>& lengths, Precision precision, double tolerance,
                    const std::string& what) {
  const RandomModel model(config);
  const RandomBatch batch(config, lengths);
  std::shared_ptr<ftbert::Engine> reference, one_thread, threads;
  CHECK_OK(model.Build("reference", 1, &reference));
  CHECK_OK(model.Build("cpu", 1, &one_thread, precision));
  CHECK_OK(model.Build("cpu", 3, &threads, precision, true));
  if (!reference || !one_thread || !threads) return;
  const size_t H = config.hidden_size, C = config.num_labels;
  for (bool token_states : {false, true}) {
    Answers expected, got, shared, alone;
    CHECK_OK(Run(reference.get(), batch, token_states, &expected));
    CHECK_OK(Run(one_thread.get(), batch, token_states, &got));
    CHECK_OK(Run(threads.get(), batch, token_states, &shared));
    // Layer norm makes the states of order 1: the root mean square of the difference is the relative error.
    double square = 0;
    for (size_t i = 0; i < got.first_states.size(); ++i) {
      square += std::pow(got.first_states[i] - expected.first_states[i], 2);
    }
    const double error = std::sqrt(square / got.first_states.size()), zero = 0;
    CHECK_ALL_NEAR(&error, &zero, 1, tolerance, what + " root mean square error of the first states");
    CHECK(error > 1e-6);  // it did run in the low precision
    CHECK(Same(got.first_states, shared.first_states));
    CHECK(Same(got.logits, shared.logits));
    CHECK(Same(got.token_states, shared.token_states));
    for (int32_t b = 0; b < batch.rows(); b += 1 + batch.rows() / 4) {
      CHECK_OK(Run(threads.get(), batch.Row(b), token_states, &alone));
      CHECK(std::memcmp(alone.first_states.data(), &got.first_states[b * H], H * sizeof(float)) == 0);
      CHECK(std::memcmp(alone.logits.data(), &got.logits[b * C], C * sizeof(float)) == 0);
    }
  }
}

}  // namespace

int main() {
  const std::vector<int32_t> mixed = {17, 1, 97, 40, 7, 128};
  const std::vector<int32_t> few = {17, 1, 40, 7, 30};  // few enough that threads share out columns, too
  const std::vector<int32_t> many(24, 33);              // enough that threads take whole blocks of rows
#ifdef FTBERT_EMULATES_AMX
  const int lowest = static_cast<int>(ftbert::cpu::Isa::kAmx);
  if (ftbert::cpu::MachineIsa() < ftbert::cpu::Isa::kAmx) SKIP("the emulation needs AVX512-BF16");
#else
  const int lowest = 0;
#endif
  for (int level = lowest; level <= static_cast<int>(ftbert::cpu::MachineIsa()); ++level) {
    const char* name = ftbert::cpu::IsaName(static_cast<ftbert::cpu::Isa>(level));
    const IsaScope scope(name);
    for (Precision precision : {Precision::kBFloat16, Precision::kInt8}) {
      const bool int8 = precision == Precision::kInt8;
      const double tolerance = int8 ? 0.03 : 0.01;
      const std::string what = std::string(name) + (int8 ? " int8" : " bf16");
      CheckPrecision(Model(97, 1, 129, 2, 128), mixed, precision, tolerance, what + " hidden 97");
      CheckPrecision(Model(128, 4, 512, 2, 128), mixed, precision, tolerance, what + " hidden 128");
      CheckPrecision(Model(128, 4, 900, 3, 128), few, precision, tolerance, what + " few rows");
      CheckPrecision(Model(64, 2, 200, 1, 128), many, precision, tolerance, what + " many rows");
    }
    std::printf("%s checked\n", name);
  }
  return Finish();
}
