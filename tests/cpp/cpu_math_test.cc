// Error bounds of exp2, GELU and tanh as vec.h states them, at every instruction set of this machine, over dense grids
// and the edges: overflow, subnormals, NaN.
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/linear.h"

namespace {

using ftbert::cpu::Epilogue;
using ftbert::cpu::Isa;
using ftbert::cpu::Kernels;

double Exact(Epilogue activation, double x) {
  switch (activation) {
    case Epilogue::kBiasGeluErf:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Epilogue::kBiasGeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Epilogue::kBiasRelu:
      return x > 0 ? x : 0;
    case Epilogue::kBiasTanh:
      return std::tanh(x);
    default:
      return x;
  }
}

std::vector<float> Grid() {
  std::vector<float> values;
  for (double x = -20; x <= 20; x += 1.0 / 4096) values.push_back(static_cast<float>(x));
  for (int e = -149; e <= 127; ++e) {
    for (float sign : {-1.f, 1.f}) {
      values.push_back(sign * std::ldexp(1.f, e));
      values.push_back(sign * std::ldexp(1.37f, e));
    }
  }
  values.push_back(0.f);
  values.push_back(-0.f);
  values.push_back(std::numeric_limits<float>::max());
  values.push_back(-std::numeric_limits<float>::max());
  return values;
}

void TestActivations(const Kernels& kernels) {
  const std::vector<float> in = Grid();
  std::vector<float> out(in.size());
  const struct {
    Epilogue activation;
    double per_size, absolute;  // bound: max(per_size |x|, absolute)
  } cases[] = {{Epilogue::kBias, 0, 0},
               {Epilogue::kBiasGeluErf, 4e-7, 4e-7},
               {Epilogue::kBiasGeluTanh, 4e-7, 4e-7},
               {Epilogue::kBiasRelu, 0, 0},
               {Epilogue::kBiasTanh, 0, 4e-7}};
  for (const auto& item : cases) {
    kernels.activate(static_cast<int>(item.activation), in.data(), static_cast<int64_t>(in.size()), out.data());
    double worst = 0;
    float where = 0;
    for (size_t i = 0; i < in.size(); ++i) {
      const double bound = std::fmax(item.per_size * std::fabs(in[i]), item.absolute);
      const double error = std::fabs(out[i] - Exact(item.activation, in[i]));
      const double ratio = bound > 0 ? error / bound : (error == 0 ? 0 : 1e9);
      if (!(ratio <= worst)) worst = ratio, where = in[i];
    }
    std::printf("  activation %d: worst error %.2f of its bound, at %g\n", static_cast<int>(item.activation), worst,
                where);
    CHECK(worst <= 1.0);
  }
  // A NaN stays one, in every lane, and its neighbours are not touched; so for every length and alignment.
  for (const auto& item : cases) {
    for (int count : {1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 97}) {
      for (int offset : {0, 1, 3}) {
        std::vector<float> values(count + offset + 1, 0.5f), results(count + offset + 1, -7.f);
        const int bad = count / 2;
        values[offset + bad] = std::numeric_limits<float>::quiet_NaN();
        kernels.activate(static_cast<int>(item.activation), values.data() + offset, count, results.data() + offset);
        for (int i = 0; i < count; ++i) {
          const float got = results[offset + i];
          CHECK(i == bad ? std::isnan(got) : std::fabs(got - Exact(item.activation, 0.5)) <= 4e-7);
        }
        CHECK_EQ(results[offset + count], -7.f);
      }
    }
  }
}

// exp2 is not in the table by itself; one query over two keys shows it: with values 1 and 0 and scores x and 0 the
// output is 2^(x log2 e) / (1 + 2^(x log2 e)).
void TestExponential(const Kernels& kernels) {
  constexpr int kKeys = 2, kDepth = 1, kStride = 32;
  alignas(64) float key[kKeys * kStride] = {}, value[kKeys * kStride] = {}, out[kStride] = {}, query[kStride] = {};
  std::vector<float> scratch(kernels.attention_scratch_floats(kKeys, kDepth) + 16);
  key[0] = 1;
  value[0] = 1;
  double worst = 0;
  for (double x = -87; x <= 87; x += 0.01) {
    query[0] = static_cast<float>(x);
    ftbert::cpu::AttentionTask task = {};
    task.query = query;
    task.key = key;
    task.value = value;
    task.stride = kStride;
    task.out = out;
    task.out_stride = kStride;
    task.queries = 1;
    task.keys = kKeys;
    task.head_size = kDepth;
    task.scale = 1;
    task.scratch = scratch.data();
    kernels.attention(task);
    const double exact = 1 / (1 + std::exp(-static_cast<double>(query[0])));
    // The score in base 2 is rounded once (6e-8 of it, twice over), the polynomial and the quotient add 3e-7.
    const double bound = exact * (4e-7 + 1.3e-7 * std::fabs(x * 1.4427));
    const double ratio = std::fabs(out[0] - exact) / bound;
    if (!(ratio <= worst)) worst = ratio;
  }
  std::printf("  exp2: worst error %.2f of its bound\n", worst);
  CHECK(worst <= 1.0);
}

}  // namespace

int main() {
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (isa > ftbert::cpu::MachineIsa()) continue;
    std::printf("%s\n", ftbert::cpu::IsaName(isa));
    TestActivations(*ftbert::cpu::KernelsFor(isa));
    TestExponential(*ftbert::cpu::KernelsFor(isa));
  }
  return ftbert_test::Finish();
}
