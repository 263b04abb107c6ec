// Queries, keys, values and attention of short rows in one kernel, against plain loops.
#ifndef FTBERT_TESTS_CPP_CUDA_CHECK_ROWS_CUH_
#define FTBERT_TESTS_CPP_CUDA_CHECK_ROWS_CUH_

#include <cmath>
#include <string>
#include <vector>

#include "cuda/kernels.h"
#include "cuda_check_attention.cuh"
#include "cuda_check_report.cuh"
#include "cuda_matrix.cuh"

namespace ftbert_test {

// Rows of these lengths one after another, whole ones to a tile as long as they fit; behind them `padding` tokens that
// are no numbers, and slots of tiles that are not there. `size`: of the queries and keys, about.
inline void CheckRows(const Machine& machine, Element in, int heads, int k, const std::vector<int>& lengths,
                      int padding, float size = 1.f) {
  const Element type = in == Element::kFloat8 ? Element::kHalf : in;
  if (!machine.hopper) return;
  if (!RowsAttentionFits(machine, in, type, heads, 64)) {
    ++failures;
    std::printf("FAIL attention of rows does not take type %d\n", static_cast<int>(in));
    return;
  }
  const bool scaled = in == Element::kFloat8;
  const int part = RoundUp(heads * 64, 16), n = 3 * part;
  int tokens = 0;
  std::vector<int2> ranges, tiles;
  for (int length : lengths) {
    if (tiles.empty() || tokens + length - tiles.back().x > kRowsTile) tiles.push_back(make_int2(tokens, tokens));
    for (int i = 0; i < length; ++i) ranges.push_back(make_int2(tokens, tokens + length));
    tiles.back().y = tokens += length;
  }
  const int m = tokens + padding, used = static_cast<int>(tiles.size()), slots = used + 2;
  ranges.resize(m, make_int2(tokens, tokens));
  tiles.resize(slots, make_int2(0, 0));
  tiles.push_back(make_int2(used, 0));
  Matrix x(in, m, k), w(in, n, k), bias(Element::kFloat, 1, n), x_scale(Element::kFloat, m, 1);
  Matrix w_scale(Element::kFloat, n, 1), context(type, m, part), context8(Element::kFloat8, m, part);
  const float by = size / std::sqrt(static_cast<float>(k));
  x.Random(1.f), w.Random(scaled ? 1.f : by), bias.Random(0.5f);
  for (float& v : x_scale.host) v = scaled ? 0.5f + (generator() % 100) / 100.f : 1.f;
  for (float& v : w_scale.host) v = scaled ? (0.5f + (generator() % 100) / 100.f) * by : 1.f;
  x_scale.Upload(), w_scale.Upload();
  for (int64_t i = static_cast<int64_t>(tokens) * k; i < static_cast<int64_t>(m) * k; ++i) x.host[i] = NAN;
  x.Upload();
  Constant(w), Constant(bias), Constant(w_scale);
  int2 *device_ranges, *device_tiles;
  CHECK_CUDA(cudaMalloc(&device_ranges, sizeof(int2) * m));
  CHECK_CUDA(cudaMalloc(&device_tiles, sizeof(int2) * tiles.size()));
  CHECK_CUDA(cudaMemcpy(device_ranges, ranges.data(), sizeof(int2) * m, cudaMemcpyHostToDevice));
  CHECK_CUDA(cudaMemcpy(device_tiles, tiles.data(), sizeof(int2) * tiles.size(), cudaMemcpyHostToDevice));

  std::vector<double> qkv(static_cast<size_t>(tokens) * n);
  for (int t = 0; t < tokens; ++t) {
    for (int column = 0; column < n; ++column) {
      double sum = 0;
      for (int i = 0; i < k; ++i) sum += static_cast<double>(x.host[t * k + i]) * w.host[column * k + i];
      qkv[static_cast<size_t>(t) * n + column] = sum * x_scale.host[t] * w_scale.host[column] + bias.host[column];
    }
  }
  const std::vector<double> expected = PlainAttention(qkv, n, qkv, part, ranges, tokens, heads, 64);
  RowsAttention a;
  Gemm& g = a.product;
  g.m = m, g.n = n, g.k = k, g.in = in, g.out_type = type, g.x = x.device, g.ldx = k, g.w = w.device;
  g.bias = static_cast<float*>(bias.device);
  if (scaled) g.w_scale = static_cast<float*>(w_scale.device), g.x_scale.values = static_cast<float*>(x_scale.device);
  a.ranges = device_ranges, a.tiles = device_tiles, a.slots = slots, a.heads = heads, a.ld_context = part;
  for (int form = 0; form < 4; ++form) {
    g.reversed = form & 1, a.float8_context = form & 2;
    a.sure = form & 1 ? used : used / 2;
    if (a.float8_context && !scaled) continue;
    Matrix& to = a.float8_context ? context8 : context;
    a.context = to.device;
    to.Poison();
    CHECK_CUDA(RunRowsAttention(machine, a, nullptr));
    CHECK_CUDA(cudaDeviceSynchronize());
    std::vector<float> got = to.Download();
    for (size_t i = expected.size(); i < got.size(); ++i) {
      if (got[i] == got[i]) {
        ++failures;
        std::printf("FAIL attention of rows wrote context of a token that is in no tile\n");
        break;
      }
    }
    got.resize(expected.size());
    // Queries, keys, values and weights are rounded to 16 bits on the way.
    Report("attention of rows, type " + std::to_string(static_cast<int>(in)) + ", " + std::to_string(heads) +
               " heads, K " + std::to_string(k) + ", " + std::to_string(lengths.size()) + " rows from " +
               std::to_string(lengths[0]) + " tokens, size " + std::to_string(size) + ", form " + std::to_string(form),
           expected, got, a.float8_context ? Tolerance(Element::kFloat8) : 2 * Tolerance(type));
  }
  cudaFree(device_ranges);
  cudaFree(device_tiles);
}

// cases: 0 the fewest that go through all the kernel does, 1 small ones, 2 all. More tiles than multiprocessors; rows
// of every place in a tile; K of more slices than stages, and of less than one.
inline void CheckRowsAll(const Machine& machine, int cases) {
  for (Element in : {Element::kHalf, Element::kBFloat, Element::kFloat8}) {
    const int slice = in == Element::kFloat8 ? 128 : 64;
    CheckRows(machine, in, 1, 16, {5}, 0);
    CheckRows(machine, in, 3, 6 * slice + 16, {64, 64, 128, 1, 31, 70, 128, 127, 3, 17}, 5);
    if (cases == 0 && in == Element::kBFloat) continue;
    CheckRows(machine, in, machine.sms / 3 + 1, 2 * slice, {40, 60, 128, 100, 2, 3, 4, 5}, 70, 2.f);
    if (cases < 2) continue;
    std::vector<int> lengths;
    for (int i = 0; i < 24; ++i) lengths.push_back(1 + generator() % 128);
    CheckRows(machine, in, 3, 768, lengths, 33);
    CheckRows(machine, in, 3, 768, std::vector<int>(60, 32), 128);
    CheckRows(machine, in, 3, 768, std::vector<int>(7, 128), 0);
  }
}

}  // namespace ftbert_test

#endif  // FTBERT_TESTS_CPP_CUDA_CHECK_ROWS_CUH_
