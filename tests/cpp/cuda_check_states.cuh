// First tokens that attend to their rows' states, and the products around it, against plain loops.
#ifndef FTBERT_TESTS_CPP_CUDA_CHECK_STATES_CUH_
#define FTBERT_TESTS_CPP_CUDA_CHECK_STATES_CUH_

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "cuda/kernels.h"
#include "cuda_check_report.cuh"
#include "cuda_matrix.cuh"

namespace ftbert_test {

// Several products of one shape, each with operands, bias and result of its own beside the others', with bias or
// without.
inline void CheckBatchedGemm(const Machine& machine, Element element, int batches, int m, int n, int k, bool biased) {
  Matrix x(element, m, batches * k), w(element, batches * n, k), bias(Element::kFloat, 1, batches * n);
  Matrix out(element, m, batches * n);
  x.Random(1.f), w.Random(1.f / std::sqrt(static_cast<float>(k))), bias.Random(0.5f);
  Constant(w), Constant(bias);
  std::vector<double> expected(static_cast<size_t>(m) * batches * n);
  for (int64_t row = 0; row < m; ++row) {
    for (int64_t column = 0; column < batches * n; ++column) {
      double sum = biased ? bias.host[column] : 0.0;
      for (int i = 0; i < k; ++i) {
        sum += static_cast<double>(x.host[(row * batches + column / n) * k + i]) * w.host[column * k + i];
      }
      expected[row * batches * n + column] = sum;
    }
  }
  Gemm g;
  g.m = m, g.n = n, g.k = k, g.in = g.out_type = element, g.batches = batches;
  g.x = x.device, g.ldx = batches * k, g.x_step = k;
  g.w = w.device, g.w_step = static_cast<int64_t>(n) * k;
  if (biased) g.bias = static_cast<float*>(bias.device), g.bias_step = n;
  g.out = out.device, g.ldo = batches * n, g.out_step = n;
  for (int variant = 0; variant < 3; ++variant) {
    out.Poison();
    CHECK_CUDA(RunGemm(machine, Plan{Family::kMma, variant, 1}, g, nullptr));
    CHECK_CUDA(cudaDeviceSynchronize());
    Report("mma " + std::to_string(variant) + ", " + std::to_string(batches) + " products of " + std::to_string(m) +
               "x" + std::to_string(n) + "x" + std::to_string(k),
           expected, out.Download(), Tolerance(element));
  }
  if (RunGemm(machine, Plan{Family::kSplit, 0, 1}, g, nullptr) != cudaErrorNotSupported ||
      OwnPlanFor(machine, g).family != Family::kMma || PlanFor(machine, g).family != Family::kMma) {
    ++failures;
    std::printf("FAIL several products went to a kernel that knows of one\n");
  }
}

// Rows of these lengths, a gap of `gap` tokens before each: rows begin anywhere. 0: a row of no tokens, whose result is
// zeros. `size`: of the queries.
inline void CheckStates(const Machine& machine, Element element, int heads, int hidden, const std::vector<int>& lengths,
                        int gap, bool reversed, float size = 0.3f) {
  const int count = static_cast<int>(lengths.size()), pitch = hidden;
  std::vector<int2> rows;
  int tokens = 0;
  for (int length : lengths) {
    tokens += gap;
    rows.push_back(make_int2(tokens, tokens + length));
    tokens += length;
  }
  Matrix states(element, tokens + 1, pitch), found(element, count, heads * hidden);
  states.Random(1.f), found.Random(size);
  int2* ranges;
  CHECK_CUDA(cudaMalloc(&ranges, sizeof(int2) * count));
  CHECK_CUDA(cudaMemcpy(ranges, rows.data(), sizeof(int2) * count, cudaMemcpyHostToDevice));
  std::vector<double> expected(found.host.size());
  for (int b = 0; b < count; ++b) {
    for (int head = 0; head < heads; ++head) {
      const size_t at = (static_cast<size_t>(b) * heads + head) * hidden;
      const float* x = &states.host[static_cast<size_t>(rows[b].x) * pitch];
      std::vector<double> p(lengths[b], 0.0);
      double top = -1e300, sum = 0;
      for (int t = 0; t < lengths[b]; ++t) {
        for (int h = 0; h < hidden; ++h) p[t] += static_cast<double>(found.host[at + h]) * x[t * pitch + h];
        p[t] /= 8;  // the root of a head size of 64
        top = std::max(top, p[t]);
      }
      for (double& v : p) sum += v = std::exp(v - top);
      for (int t = 0; t < lengths[b]; ++t) {
        for (int h = 0; h < hidden; ++h) expected[at + h] += p[t] / sum * x[t * pitch + h];
      }
    }
  }
  StatesAttention a;
  a.states = states.device, a.pitch = pitch, a.found = found.device, a.ranges = ranges;
  a.count = count, a.heads = heads, a.hidden = hidden, a.head_size = 64, a.reversed = reversed;
  CHECK_CUDA(RunStatesAttention(machine, element, a, nullptr));
  CHECK_CUDA(cudaDeviceSynchronize());
  Report("attention to states, type " + std::to_string(static_cast<int>(element)) + ", " + std::to_string(heads) +
             " heads, hidden " + std::to_string(hidden) + ", " + std::to_string(count) + " rows from " +
             std::to_string(lengths[0]) + " tokens, size " + std::to_string(size),
         expected, found.Download(), Tolerance(element));
  cudaFree(ranges);
}

// `level` 0: as few as take the kernels through all they do; 1: for a sanitizer; 2: all.
inline void CheckStatesAll(const Machine& machine, int level) {
  if (!machine.hopper) return;
  for (Element e : {Element::kHalf, Element::kBFloat}) {
    CheckBatchedGemm(machine, e, 3, 35, 80, 48, e == Element::kHalf);
    CheckBatchedGemm(machine, e, 2, 70, 64, 272, e == Element::kBFloat);
    CheckStates(machine, e, 3, 192, {1, 17, 0, 40, 16}, 0, false);
    CheckStates(machine, e, 16, 1024, {5, 129}, 1, true);
    CheckStates(machine, e, 12, 768, {100, 2}, 3, e == Element::kHalf);
    if (level < 1) continue;
    CheckBatchedGemm(machine, e, 12, 33, 768, 64, false);
    CheckBatchedGemm(machine, e, 12, 33, 64, 768, true);
    for (int hidden = 64; hidden <= 1024; hidden += 64) {
      CheckStates(machine, e, 1 + hidden / 64 % 16, hidden, {1, 33, 64, 7, 97}, hidden / 64 % 3, hidden % 128 == 0);
    }
    CheckStates(machine, e, 12, 768, {40, 90}, 0, false, 4.f);  // one token takes nearly all
    if (level < 2) continue;
    for (int length : {1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 97, 127, 128, 129, 255, 384, 511, 512}) {
      CheckStates(machine, e, 12, 768, {length, 1, length}, length % 2, length % 3 == 0);
      CheckStates(machine, e, 16, 1024, {length, 3, length}, length % 2, length % 3 == 0);
    }
    std::vector<int> many(700);
    for (int& length : many) length = static_cast<int>(generator() % 60);
    CheckStates(machine, e, 12, 768, many, 0, true);
    CheckBatchedGemm(machine, e, 12, 300, 768, 64, false);
    CheckBatchedGemm(machine, e, 12, 300, 64, 768, true);
  }
}

}  // namespace ftbert_test

#endif  // FTBERT_TESTS_CPP_CUDA_CHECK_STATES_CUH_
