// The layer norm's kernels against plain loops.
#ifndef FTBERT_TESTS_CPP_CUDA_CHECK_NORM_CUH_
#define FTBERT_TESTS_CPP_CUDA_CHECK_NORM_CUH_

#include <algorithm>
#include <cstring>

#include "cuda/kernels.h"
#include "cuda_check_report.cuh"
#include "cuda_matrix.cuh"

namespace ftbert_test {

// offset is added to every value, peak to one column: means and variances that sums must not lose.
inline void CheckNorm(const Machine& machine, Element element, int rows, int width, float scale, bool summed = false,
                      float offset = 0.f, float peak = 0.f, bool reversed = false) {
  const int pitch = RoundUp(width, 16);
  Matrix states(element, rows, pitch), delta(element, rows, pitch), gamma(Element::kFloat, 1, width);
  Matrix beta(Element::kFloat, 1, width), fp8(Element::kFloat8, rows, pitch), fp8_scale(Element::kFloat, rows, 1);
  Matrix length(Element::kFloat, rows, 1);
  states.Random(summed ? 0.f : scale), delta.Random(scale), gamma.Random(1.f), beta.Random(1.f);
  for (float& v : delta.host) v += offset;
  for (int r = 0; r < rows; ++r) delta.host[static_cast<size_t>(r) * pitch + std::min(3, width - 1)] += peak;
  delta.Upload();
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
  n.epsilon = 1e-12f, n.width = width, n.pitch = pitch, n.summed = summed, n.reversed = reversed;
  Quantized q;
  if (element == Element::kHalf) {
    q.values = static_cast<uint8_t*>(fp8.device), q.scale = static_cast<float*>(fp8_scale.device);
    q.norm = static_cast<float*>(length.device);
  }
  CHECK_CUDA(RunAddNorm(machine, element, n, rows, states.device, delta.device, q, nullptr));
  CHECK_CUDA(cudaDeviceSynchronize());
  const std::vector<float> all = states.Download(), all8 = fp8.Download(), scales = fp8_scale.Download();
  std::vector<float> got, got8;
  std::vector<double> lengths(rows);
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < width; ++i) {
      lengths[r] += expected[static_cast<size_t>(r) * width + i] * expected[static_cast<size_t>(r) * width + i];
      got.push_back(all[static_cast<size_t>(r) * pitch + i]);
      got8.push_back(all8[static_cast<size_t>(r) * pitch + i] * scales[r]);
    }
    lengths[r] = std::sqrt(lengths[r]);
  }
  const std::string what = std::string(summed ? "summed " : "") + "norm type " +
                           std::to_string(static_cast<int>(element)) + " " + std::to_string(rows) + "x" +
                           std::to_string(width);
  Report(what, expected, got, Tolerance(element));
  if (q.values == nullptr) return;
  Report(what + " fp8", expected, got8, Tolerance(Element::kFloat8));
  Report(what + " lengths", lengths, length.Download(), 1e-3f);
}

// The norm of embeddings' sums: rows of `lengths` tokens, and `padding` tokens that only fill the bucket.
inline void CheckEmbed(const Machine& machine, Element element, const std::vector<int>& lengths, int padding,
                       int width) {
  const int pitch = RoundUp(width, 16), vocabulary = 31;
  const int positions = *std::max_element(lengths.begin(), lengths.end());
  Matrix words(element, vocabulary, pitch), places(element, positions, pitch), segments(element, 2, pitch);
  Matrix gamma(Element::kFloat, 1, width), beta(Element::kFloat, 1, width);
  for (Matrix* matrix : {&words, &places, &segments, &gamma, &beta}) matrix->Random(1.f), Constant(*matrix);
  std::vector<Token> tokens;
  std::vector<int2> rows;
  for (int length : lengths) {
    const int begin = static_cast<int>(tokens.size());
    for (int i = 0; i < length; ++i) {
      tokens.push_back(Token{static_cast<int>(generator() % vocabulary), static_cast<int>(generator() % 2), begin,
                             begin + length});
    }
    rows.push_back(make_int2(begin, begin + length));
  }
  const int real = static_cast<int>(tokens.size()), count = real + padding;
  tokens.resize(count, Token{0, 0, real, real});
  std::vector<double> expected(static_cast<size_t>(real) * width);
  for (int t = 0; t < real; ++t) {
    double* const row = &expected[static_cast<size_t>(t) * width];
    double mean = 0, variance = 0;
    for (int i = 0; i < width; ++i) {
      row[i] = static_cast<double>(words.host[tokens[t].id * pitch + i]) +
               segments.host[tokens[t].segment * pitch + i] + places.host[(t - tokens[t].row_begin) * pitch + i];
      mean += row[i] / width;
    }
    for (int i = 0; i < width; ++i) variance += (row[i] - mean) * (row[i] - mean) / width;
    for (int i = 0; i < width; ++i) {
      row[i] = (row[i] - mean) / std::sqrt(variance + 1e-12) * gamma.host[i] + beta.host[i];
    }
  }
  Matrix states(element, count, pitch), fp8(Element::kFloat8, count, pitch), scale(Element::kFloat, count, 1);
  Matrix norms(Element::kFloat, count, 1);
  states.Poison(), fp8.Poison(), scale.Poison(), norms.Poison();
  Embedding e;
  e.words = words.device, e.positions = places.device, e.segments = segments.device;
  e.count = count, e.row_count = static_cast<int>(rows.size());
  Token* device_tokens;
  int2 *device_rows, *ranges, *row_ranges;
  CHECK_CUDA(cudaMalloc(&device_tokens, sizeof(Token) * count));
  CHECK_CUDA(cudaMalloc(&device_rows, sizeof(int2) * rows.size()));
  CHECK_CUDA(cudaMalloc(&ranges, sizeof(int2) * count));
  CHECK_CUDA(cudaMalloc(&row_ranges, sizeof(int2) * rows.size()));
  CHECK_CUDA(cudaMemcpy(device_tokens, tokens.data(), sizeof(Token) * count, cudaMemcpyHostToDevice));
  CHECK_CUDA(cudaMemcpy(device_rows, rows.data(), sizeof(int2) * rows.size(), cudaMemcpyHostToDevice));
  e.tokens = device_tokens, e.rows = device_rows, e.ranges = ranges, e.row_ranges = row_ranges;
  Norm n;
  n.gamma = static_cast<float*>(gamma.device), n.beta = static_cast<float*>(beta.device);
  n.epsilon = 1e-12f, n.width = width, n.pitch = pitch;
  Quantized q;
  if (element == Element::kHalf) {
    q.values = static_cast<uint8_t*>(fp8.device), q.scale = static_cast<float*>(scale.device);
    q.norm = static_cast<float*>(norms.device);
  }
  CHECK_CUDA(RunEmbed(machine, element, e, n, states.device, q, nullptr));
  CHECK_CUDA(cudaDeviceSynchronize());
  const std::vector<float> all = states.Download(), all8 = fp8.Download(), scales = scale.Download();
  std::vector<float> got, got8;
  for (int64_t t = 0; t < real; ++t) {
    for (int i = 0; i < width; ++i) {
      got.push_back(all[t * pitch + i]);
      got8.push_back(all8[t * pitch + i] * scales[t]);
    }
  }
  const std::string what = "embedding type " + std::to_string(static_cast<int>(element)) + " " +
                           std::to_string(count) + "x" + std::to_string(width);
  Report(what, expected, got, Tolerance(element));
  if (q.values != nullptr) Report(what + " fp8", expected, got8, Tolerance(Element::kFloat8));
  std::vector<int2> copied(count), copied_rows(rows.size());
  CHECK_CUDA(cudaMemcpy(copied.data(), ranges, sizeof(int2) * count, cudaMemcpyDeviceToHost));
  CHECK_CUDA(cudaMemcpy(copied_rows.data(), row_ranges, sizeof(int2) * rows.size(), cudaMemcpyDeviceToHost));
  bool same = std::memcmp(copied_rows.data(), rows.data(), sizeof(int2) * rows.size()) == 0;
  for (int t = 0; t < count; ++t) {
    same = same && copied[t].x == tokens[t].row_begin && copied[t].y == tokens[t].row_end;
  }
  if (!same) ++failures, std::printf("FAIL %s: ranges\n", what.c_str());
  cudaFree(device_tokens), cudaFree(device_rows), cudaFree(ranges), cudaFree(row_ranges);
}

// The product with the norm in it: x (m, k), n columns, in place of the residual. quantizes: an fp8 copy as well.
inline void CheckGemmNorm(const Machine& machine, Element in, int m, int n, int k, bool quantizes, bool reversed) {
  const bool float8 = in == Element::kFloat8;
  const Element out = float8 ? Element::kHalf : in;
  Matrix x(in, m, k), w(in, n, k), bias(Element::kFloat, 1, n), gamma(Element::kFloat, 1, n);
  Matrix beta(Element::kFloat, 1, n), w_scale(Element::kFloat, 1, n);
  Matrix states(out, m, n);
  Matrix values(Element::kFloat8, m, n), scale(Element::kFloat, m, 1), length(Element::kFloat, m, 1);
  const float size = 1.f / std::sqrt(static_cast<float>(k));
  x.Random(1.f), w.Random(float8 ? 1.f : size), bias.Random(1.f), states.Random(1.f);
  gamma.Random(1.f), beta.Random(1.f);
  for (float& v : w_scale.host) v = float8 ? (0.5f + (generator() % 100) / 100.f) * size : 1.f;
  w_scale.Upload();
  for (Matrix* matrix : {&w, &bias, &gamma, &beta, &w_scale}) Constant(*matrix);
  values.Poison(), scale.Poison(), length.Poison();
  std::vector<double> expected(static_cast<size_t>(m) * n), lengths(m);
  for (int r = 0; r < m; ++r) {
    double* const row = &expected[static_cast<size_t>(r) * n];
    double mean = 0, variance = 0;
    for (int c = 0; c < n; ++c) {
      double sum = 0;
      for (int i = 0; i < k; ++i) sum += static_cast<double>(x.host[r * k + i]) * w.host[c * k + i];
      row[c] = sum * w_scale.host[c] + bias.host[c] + states.host[r * n + c];
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
  g.m = m, g.n = n, g.k = k, g.in = in, g.out_type = out, g.x = x.device, g.ldx = k, g.w = w.device;
  g.bias = static_cast<float*>(bias.device), g.out = states.device, g.residual = states.device, g.ldo = n;
  g.reversed = reversed;
  if (float8) g.w_scale = static_cast<float*>(w_scale.device);
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
  if (!GemmNormFits(machine, g, norm, q)) {
    ++failures, std::printf("FAIL %s: no kernel\n", what.c_str());
    return;
  }
  CHECK_CUDA(RunGemmNorm(machine, g, norm, q, nullptr));
  CHECK_CUDA(cudaDeviceSynchronize());
  Report(what, expected, states.Download(), Tolerance(out));
  if (!quantizes) return;
  std::vector<float> got = values.Download();
  const std::vector<float> scales = scale.Download();
  for (size_t i = 0; i < got.size(); ++i) got[i] *= scales[i / n];
  Report(what + " fp8", expected, got, Tolerance(Element::kFloat8));
  Report(what + " lengths", lengths, length.Download(), 1e-3f);
}

}  // namespace ftbert_test

#endif  // FTBERT_TESTS_CPP_CUDA_CHECK_NORM_CUH_
