// The fp32 kernels against plain loops in double, at every instruction set of this machine: odd sizes, misaligned
// pointers, outputs and scratch full of NaN, extreme values, and bitwise independence of how the work was cut.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "attention_checks.h"
#include "check.h"
#include "cpu/isa.h"
#include "cpu/linear.h"
#include "cpu/product.h"
#include "fp32_parts_checks.h"

namespace {

using namespace ftbert;
using namespace ftbert_test;
using cpu::Isa;
using cpu::Kernels;

// ---- products -----------------------------------------------------------------------------------------------------

void TestProduct(const cpu::LinearKernel& kernel, int32_t T, int32_t K, std::vector<int32_t> part_columns,
                 int misalign) {
  std::vector<std::vector<float>> weights, biases;
  std::vector<SourceMatrix> parts;
  int32_t N = 0;
  for (int32_t columns : part_columns) {
    weights.push_back(Random(static_cast<size_t>(K) * columns));
    biases.push_back(Random(columns));
    N += columns;
  }
  for (size_t i = 0; i < part_columns.size(); ++i) {
    SourceMatrix part;
    part.data = weights[i].data();
    part.rows = K;
    part.cols = part_columns[i];
    part.transposed = i % 2 == 1;
    part.bias = biases[i].data();
    parts.push_back(part);
  }
  cpu::PackedMatrix packed;
  CHECK_OK(kernel.Pack(parts, &packed));
  CHECK(packed.bytes() >= static_cast<size_t>(K) * N * sizeof(float));
  const int32_t panels = static_cast<int32_t>(packed.panels.size());

  const ptrdiff_t in_stride = K + 3, out_stride = N + 5;
  const std::vector<float> in = Random(T * in_stride + 8);
  std::vector<float> out(T * out_stride + 8, kNan);
  cpu::Tile tile;
  tile.in = in.data() + misalign;
  tile.in_stride = in_stride * sizeof(float);
  tile.rows = T;
  tile.panel_end = panels;
  tile.k_end = K;
  tile.out = out.data() + misalign;
  tile.out_stride = out_stride;
  kernel.Compute(packed, tile);

  double worst = 0;
  for (int32_t t = 0; t < T; ++t) {
    int32_t offset = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      for (int32_t n = 0; n < part_columns[i]; ++n) {
        double sum = 0, largest = 0;
        for (int32_t k = 0; k < K; ++k) {
          const size_t at =
              parts[i].transposed ? static_cast<size_t>(n) * K + k : static_cast<size_t>(k) * part_columns[i] + n;
          sum += static_cast<double>(in[misalign + t * in_stride + k]) * weights[i][at];
          largest = std::fmax(largest, std::fabs(sum));
        }
        // One rounding of at most 6e-8 of the running sum for each of K additions, adding up like a random walk.
        const double bound =
            1e-7 + 6e-8 * (1.5 * std::sqrt(static_cast<double>(K)) * largest + std::fabs(biases[i][n]));
        const double error = std::fabs(out[misalign + t * out_stride + offset + n] - (sum + biases[i][n]));
        if (!(error / bound <= worst)) worst = error / bound;
      }
      offset += part_columns[i];
    }
    for (int32_t n = N; n < out_stride && misalign + t * out_stride + n < static_cast<ptrdiff_t>(out.size()); ++n) {
      if (!std::isnan(out[misalign + t * out_stride + n])) worst = 1e9;  // written past the row
    }
  }
  if (!(worst <= 1.0)) std::printf("  product %d x %d x %d: %.3g of its bound\n", T, K, N, worst);
  CHECK(worst <= 1.0);

  // The same bits, row by row, panel by panel, and in two ranges of inputs.
  std::vector<float> cut(out.size(), kNan);
  for (int32_t t = 0; t < T; t += 1 + T / 3) {
    for (int32_t p = 0; p < panels; ++p) {
      cpu::Tile one = tile;
      one.in = in.data() + misalign + t * in_stride;
      one.rows = 1;
      one.panel_begin = p;
      one.panel_end = p + 1;
      one.out = cut.data() + misalign + t * out_stride;
      if (K > 1) {
        one.k_end = K / 2;
        kernel.Compute(packed, one);
        one.in = in.data() + misalign + t * in_stride + K / 2;
        one.k_begin = K / 2;
      }
      one.k_end = K;
      kernel.Compute(packed, one);
    }
    CHECK(SameBits(&cut[misalign + t * out_stride], &out[misalign + t * out_stride], N));
  }
}

void TestProducts(const cpu::LinearKernel& kernel) {
  TestProduct(kernel, 1, 1, {1}, 0);
  TestProduct(kernel, 7, 7, {7, 7, 7}, 1);
  TestProduct(kernel, 97, 129, {97}, 2);
  TestProduct(kernel, 129, 97, {129, 7}, 3);
  TestProduct(kernel, 33, 512, {512}, 0);
  TestProduct(kernel, 5, 1700, {100, 48}, 1);
  TestProduct(kernel, 16, 64, {5}, 3);
  for (int32_t rows = 1; rows <= 2 * kernel.row_tile() + 1; ++rows)
    TestProduct(kernel, rows, 40, {2 * kernel.panel_columns()}, 1);
}

// A product has no business with other rows: NaN and infinity stay in theirs.
void TestBadRowsStayAlone(const cpu::LinearKernel& kernel) {
  constexpr int32_t T = 40, K = 65, N = 50;
  const std::vector<float> weights = Random(K * N), bias(N, 0.f);
  SourceMatrix source;
  source.data = weights.data();
  source.rows = K;
  source.cols = N;
  source.bias = bias.data();
  cpu::PackedMatrix packed;
  CHECK_OK(kernel.Pack({source}, &packed));
  std::vector<float> in = Random(T * K), out(T * N, kNan);
  in[11 * K + 64] = kNan;
  in[12 * K] = 3e38f;
  in[12 * K + 1] = 3e38f;
  cpu::Tile tile;
  tile.in = in.data();
  tile.in_stride = K * sizeof(float);
  tile.rows = T;
  tile.panel_end = static_cast<int32_t>(packed.panels.size());
  tile.k_end = K;
  tile.out = out.data();
  tile.out_stride = N;
  kernel.Compute(packed, tile);
  for (int32_t t = 0; t < T; ++t) {
    for (int32_t n = 0; n < N; ++n) {
      if (t == 11) CHECK(std::isnan(out[t * N + n]));
      if (t != 11 && t != 12) CHECK(std::isfinite(out[t * N + n]));
    }
  }
}

// ---- attention ----------------------------------------------------------------------------------------------------

void CheckAttentions(const Kernels& kernels) {
  for (int32_t keys : {1, 2, 7, 15, 16, 17, 31, 32, 33, 48, 97, 129, 255, 256, 257, 300, 512, 513, 800}) {
    for (int32_t depth : {64}) CheckAttention(kernels, keys, depth, 1.f, 5e-6);
  }
  for (int32_t depth : {1, 3, 8, 15, 16, 17, 24, 31, 32, 33, 40, 48, 63, 80, 96, 97, 127, 128}) {
    CheckAttention(kernels, 37, depth, 1.f, 5e-6);
    CheckAttention(kernels, 270, depth, 1.f, 5e-6);
  }
  // Scores up to hundreds: rounding of the scores themselves (1e-7 of them) is all the error there may be.
  CheckAttention(kernels, 129, 64, 5.f, 5e-3);
}

// ---- norms --------------------------------------------------------------------------------------------------------

void TestAddNorm(const Kernels& kernels, int32_t hidden, float offset) {
  constexpr int32_t kRowCount = 3;
  const ptrdiff_t stride = hidden + 3;
  const std::vector<float> in = Random(kRowCount * stride + 4), gamma = Random(hidden), beta = Random(hidden);
  std::vector<float> residual = Random(kRowCount * stride + 4);
  for (float& value : residual) value += offset;
  const std::vector<float> before = residual;
  cpu::AddNormTask task = {};
  task.in = in.data() + 1;
  task.in_stride = stride;
  task.residual = residual.data() + 1;
  task.residual_stride = stride;
  task.rows = kRowCount;
  task.hidden = hidden;
  task.gamma = gamma.data();
  task.beta = beta.data();
  task.epsilon = 1e-12f;
  kernels.add_norm(task);
  double worst = 0;
  for (int32_t r = 0; r < kRowCount; ++r) {
    double mean = 0, variance = 0;
    std::vector<double> x(hidden);
    for (int32_t i = 0; i < hidden; ++i) {
      x[i] = static_cast<double>(in[1 + r * stride + i] + before[1 + r * stride + i]);
      mean += x[i] / hidden;
    }
    for (double value : x) variance += (value - mean) * (value - mean) / hidden;
    for (int32_t i = 0; i < hidden; ++i) {
      const double expected = hidden == 1 ? beta[i] : (x[i] - mean) / std::sqrt(variance + 1e-12) * gamma[i] + beta[i];
      const double error = std::fabs(residual[1 + r * stride + i] - expected);
      if (!(error <= worst)) worst = error;
    }
    for (int32_t i = hidden; i < stride; ++i) CHECK_EQ(residual[1 + r * stride + i], before[1 + r * stride + i]);
  }
  const double tolerance = 5e-6 + 4e-7 * std::fabs(offset);
  if (!(worst <= tolerance)) std::printf("  norm of %d around %g: error %.3g\n", hidden, offset, worst);
  CHECK(worst <= tolerance);
}

}  // namespace

int main() {
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (isa > cpu::MachineIsa()) continue;
    std::printf("%s\n", cpu::IsaName(isa));
    const Kernels& kernels = *cpu::KernelsFor(isa);
    const cpu::LinearKernel& linear = *cpu::Fp32Kernel(isa);
    CHECK(linear.isa() == isa);
    TestProducts(linear);
    TestBadRowsStayAlone(linear);
    CheckAttentions(kernels);
    CheckExtremeScores(kernels, 16, 1e-3);
    for (int32_t hidden : {1, 7, 8, 16, 31, 64, 97, 129, 312, 512, 768, 1024}) {
      TestAddNorm(kernels, hidden, 0.f);
      TestAddNorm(kernels, hidden, 1000.f);  // E[x^2] - mean^2 would have no digits left here
    }
  }
#if defined(__x86_64__)
  if (cpu::MachineIsa() >= Isa::kAmx) {
    CheckWeightParts(ftbert::cpu::kFp32Amx);
    CheckFp32Parts(ftbert_test::Form{"amx", ftbert::cpu::NewFp32Kernel(ftbert::cpu::kFp32Amx)});
  }
#endif
  return ftbert_test::Finish();
}
