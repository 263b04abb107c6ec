// The layer norm's kernels against plain loops.
#ifndef FTBERT_TESTS_CPP_CUDA_CHECK_NORM_CUH_
#define FTBERT_TESTS_CPP_CUDA_CHECK_NORM_CUH_

#include "cuda/kernels.h"
#include "cuda_check_report.cuh"
#include "cuda_matrix.cuh"

namespace ftbert_test {

inline void CheckNorm(const Machine& machine, Element element, int rows, int width, float scale, bool summed = false) {
  const int pitch = RoundUp(width, 16);
  Matrix states(element, rows, pitch), delta(element, rows, pitch), gamma(Element::kFloat, 1, width);
  Matrix beta(Element::kFloat, 1, width), fp8(Element::kFloat8, rows, pitch), fp8_scale(Element::kFloat, rows, 1);
  Matrix length(Element::kFloat, rows, 1);
  states.Random(summed ? 0.f : scale), delta.Random(scale), gamma.Random(1.f), beta.Random(1.f);
  Constant(gamma), Constant(beta);
  fp8.Poison(), fp8_scale.Poison();
  if (summed) states.Poison();
  std::vector<double> expected(static_cast<size_t>(rows) * width);
  for (int r = 0; r < rows; ++r) {
    double mean = 0, variance = 0;
    const auto x = [&](int i) { return static_cast<double>(states.host[r * pitch + i]) + delta.host[r * pitch + i]; };
    for (int i = 0; i < width; ++i) mean += x(i) / width;
    for (int i = 0; i < width; ++i) variance += (x(i) - mean) * (x(i) - mean) / width;
    for (int i = 0; i < width; ++i) {
      expected[static_cast<size_t>(r) * width + i] =
          (x(i) - mean) / std::sqrt(variance + 1e-12) * gamma.host[i] + beta.host[i];
    }
  }
  Norm n;
  n.gamma = static_cast<float*>(gamma.device), n.beta = static_cast<float*>(beta.device);
  n.epsilon = 1e-12f, n.width = width, n.pitch = pitch, n.summed = summed;
  Quantized q;
  if (element == Element::kHalf) {
    q.values = static_cast<uint8_t*>(fp8.device), q.scale = static_cast<float*>(fp8_scale.device);
    q.norm = static_cast<float*>(length.device);
  }
  CHECK_CUDA(RunAddNorm(machine, element, n, rows, states.device, delta.device, q, nullptr));
  CHECK_CUDA(cudaDeviceSynchronize());
  const std::vector<float> all = states.Download(), all8 = fp8.Download(), scales = fp8_scale.Download();
  std::vector<float> got, got8;
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < width; ++i) {
      got.push_back(all[static_cast<size_t>(r) * pitch + i]);
      got8.push_back(all8[static_cast<size_t>(r) * pitch + i] * scales[r]);
    }
  }
  const std::string what = std::string(summed ? "summed " : "") + "norm type " +
                           std::to_string(static_cast<int>(element)) + " " + std::to_string(rows) + "x" +
                           std::to_string(width);
  Report(what, expected, got, Tolerance(element));
  if (q.values != nullptr) Report(what + " fp8", expected, got8, Tolerance(Element::kFloat8));
}

// The product with the norm in it: x (m, k), n columns, in place of the residual. quantizes: an fp8 copy as well.
inline void CheckGemmNorm(const Machine& machine, Element in, int m, int n, int k, bool quantizes, bool reversed) {
  Matrix x(in, m, k), w(in, n, k), bias(Element::kFloat, 1, n), gamma(Element::kFloat, 1, n);
  Matrix beta(Element::kFloat, 1, n);
  Matrix states(in, m, n);
  Matrix values(Element::kFloat8, m, n), scale(Element::kFloat, m, 1), length(Element::kFloat, m, 1);
  x.Random(1.f), w.Random(1.f / std::sqrt(static_cast<float>(k))), bias.Random(1.f), states.Random(1.f);
  gamma.Random(1.f), beta.Random(1.f);
  for (Matrix* matrix : {&w, &bias, &gamma, &beta}) Constant(*matrix);
  values.Poison(), scale.Poison(), length.Poison();
  std::vector<double> expected(static_cast<size_t>(m) * n), lengths(m);
  for (int r = 0; r < m; ++r) {
    double* const row = &expected[static_cast<size_t>(r) * n];
    double mean = 0, variance = 0;
    for (int c = 0; c < n; ++c) {
      double sum = 0;
      for (int i = 0; i < k; ++i) sum += static_cast<double>(x.host[r * k + i]) * w.host[c * k + i];
      row[c] = sum + bias.host[c] + states.host[r * n + c];
      mean += row[c] / n;
    }
    for (int c = 0; c < n; ++c) variance += (row[c] - mean) * (row[c] - mean) / n;
    for (int c = 0; c < n; ++c) {
      row[c] = (row[c] - mean) / std::sqrt(variance + 1e-12) * gamma.host[c] + beta.host[c];
      lengths[r] += row[c] * row[c];
    }
    lengths[r] = std::sqrt(lengths[r]);
  }
  Gemm g;
  g.m = m, g.n = n, g.k = k, g.in = in, g.out_type = in, g.x = x.device, g.ldx = k, g.w = w.device;
  g.bias = static_cast<float*>(bias.device), g.out = states.device, g.residual = states.device, g.ldo = n;
  g.reversed = reversed;
  Norm norm;
  norm.gamma = static_cast<float*>(gamma.device), norm.beta = static_cast<float*>(beta.device);
  norm.epsilon = 1e-12f, norm.width = n, norm.pitch = n;
  Quantized q;
  if (quantizes) {
    q.values = static_cast<uint8_t*>(values.device), q.scale = static_cast<float*>(scale.device);
    q.norm = static_cast<float*>(length.device);
  }
  const std::string what = "product and norm, type " + std::to_string(static_cast<int>(in)) + " " + std::to_string(m) +
                           "x" + std::to_string(n) + "x" + std::to_string(k);
  if (!GemmNormFits(machine, g, norm)) {
    ++failures, std::printf("FAIL %s: no kernel\n", what.c_str());
    return;
  }
  CHECK_CUDA(RunGemmNorm(machine, g, norm, q, nullptr));
  CHECK_CUDA(cudaDeviceSynchronize());
  Report(what, expected, states.Download(), Tolerance(in));
  if (!quantizes) return;
  std::vector<float> got = values.Download();
  const std::vector<float> scales = scale.Download();
  for (size_t i = 0; i < got.size(); ++i) got[i] *= scales[i / n];
  Report(what + " fp8", expected, got, Tolerance(Element::kFloat8));
  Report(what + " lengths", lengths, length.Download(), 1e-3f);
}

}  // namespace ftbert_test

#endif  // FTBERT_TESTS_CPP_CUDA_CHECK_NORM_CUH_
