// Attention of packed rows against plain loops.
#ifndef FTBERT_TESTS_CPP_CUDA_CHECK_ATTENTION_CUH_
#define FTBERT_TESTS_CPP_CUDA_CHECK_ATTENTION_CUH_

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "cuda/kernels.h"
#include "cuda_check_report.cuh"
#include "cuda_matrix.cuh"

namespace ftbert_test {

// (n, heads * head_size): query q of `queries` (n, ld) to the keys seen[q] of qkv (tokens, 3 * part).
template <typename T>
std::vector<double> PlainAttention(const std::vector<T>& queries, int64_t ld, const std::vector<T>& qkv, int64_t part,
                                   const std::vector<int2>& seen, int n, int heads, int head_size) {
  const size_t width = static_cast<size_t>(heads) * head_size;
  std::vector<double> out(n * width), p;
  for (int q = 0; q < n; ++q) {
    for (int h = 0; h < heads; ++h) {
      p.assign(seen[q].y - seen[q].x, 0);
      double top = -1e300, sum = 0;
      for (size_t j = 0; j < p.size(); ++j) {
        for (int d = h * head_size; d < (h + 1) * head_size; ++d) {
          p[j] += static_cast<double>(queries[q * ld + d]) * qkv[(seen[q].x + j) * 3 * part + part + d];
        }
        p[j] /= std::sqrt(static_cast<double>(head_size));
        top = std::max(top, p[j]);
      }
      for (double& v : p) sum += v = std::exp(v - top);
      for (size_t j = 0; j < p.size(); ++j) {
        for (int d = h * head_size; d < (h + 1) * head_size; ++d) {
          out[q * width + d] += p[j] / sum * qkv[(seen[q].x + j) * 3 * part + 2 * part + d];
        }
      }
    }
  }
  return out;
}

// spread: of queries, keys and values. At 3 the largest score so far is exceeded by far now and then.
inline void CheckAttention(const Machine& machine, Element element, int heads, int head_size,
                           const std::vector<int>& lengths, int padding, float spread = 1.f) {
  const int width = heads * head_size, part = RoundUp(width, 16);
  int tokens = 0;
  for (int l : lengths) tokens += l;
  const int count = tokens + padding;
  Matrix qkv(element, count, 3 * part), context(element, count, part), first(element, lengths.size(), part);
  Matrix first_context(element, lengths.size(), part), context8(Element::kFloat8, count, part);
  qkv.Random(spread);
  first.Random(spread);
  std::vector<int2> ranges(count, make_int2(tokens, tokens)), rows;
  int at = 0;
  for (int l : lengths) {
    for (int i = 0; i < l; ++i) ranges[at + i] = make_int2(at, at + l);
    rows.push_back(make_int2(at, at + l));
    at += l;
  }
  int2 *device_ranges, *device_rows;
  CHECK_CUDA(cudaMalloc(&device_ranges, sizeof(int2) * count));
  CHECK_CUDA(cudaMalloc(&device_rows, sizeof(int2) * rows.size()));
  CHECK_CUDA(cudaMemcpy(device_ranges, ranges.data(), sizeof(int2) * count, cudaMemcpyHostToDevice));
  CHECK_CUDA(cudaMemcpy(device_rows, rows.data(), sizeof(int2) * rows.size(), cudaMemcpyHostToDevice));
  const auto plain = [&](const std::vector<float>& queries, int64_t ld, const std::vector<int2>& seen, int n) {
    return PlainAttention(queries, ld, qkv.host, part, seen, n, heads, head_size);
  };
  const auto narrow = [&](const Matrix& m, int n) {
    const std::vector<float> all = m.Download();
    std::vector<float> out;
    for (int q = 0; q < n; ++q) out.insert(out.end(), all.begin() + q * part, all.begin() + q * part + width);
    return out;
  };
  const std::string what = "attention type " + std::to_string(static_cast<int>(element)) + " heads " +
                           std::to_string(heads) + " of " + std::to_string(head_size) + ", " + std::to_string(tokens) +
                           " tokens";
  Attention a;
  a.qkv = qkv.device, a.ld = 3 * part, a.part = part, a.ranges = device_ranges, a.count = count, a.heads = heads;
  a.head_size = head_size, a.context = context.device, a.ld_context = part;
  const std::vector<double> expected = plain(qkv.host, 3 * part, ranges, tokens);
  for (AttentionKernel kernel : {AttentionKernel::kChosen, AttentionKernel::kTiles, AttentionKernel::kWgmma}) {
    a.kernel = kernel;
    context.Poison();
    CHECK_CUDA(RunAttention(machine, element, a, nullptr));
    CHECK_CUDA(cudaDeviceSynchronize());
    Report(what + " kernel " + std::to_string(static_cast<int>(kernel)), expected, narrow(context, tokens),
           Tolerance(element));
    if (element != Element::kHalf || !Float8ContextFits(head_size)) continue;
    Attention narrowed = a;
    narrowed.context = context8.device, narrowed.float8_context = true;
    context8.Poison();
    CHECK_CUDA(RunAttention(machine, element, narrowed, nullptr));
    CHECK_CUDA(cudaDeviceSynchronize());
    Report(what + " in fp8, kernel " + std::to_string(static_cast<int>(kernel)), expected, narrow(context8, tokens),
           Tolerance(Element::kFloat8));
  }
  a.first_queries = first.device, a.ranges = device_rows, a.count = static_cast<int>(rows.size());
  a.context = first_context.device;
  first_context.Poison();
  CHECK_CUDA(RunAttention(machine, element, a, nullptr));
  CHECK_CUDA(cudaDeviceSynchronize());
  Report("first " + what, plain(first.host, part, rows, a.count), narrow(first_context, a.count), Tolerance(element));
  // The same queries where the rows begin, among those of all tokens.
  a.first_queries = qkv.device, a.ld_first = 3 * part, a.first_at_range = true;
  std::vector<float> begins;
  for (const int2& row : rows) {
    begins.insert(begins.end(), qkv.host.begin() + row.x * 3 * part, qkv.host.begin() + row.x * 3 * part + part);
  }
  first_context.Poison();
  CHECK_CUDA(RunAttention(machine, element, a, nullptr));
  CHECK_CUDA(cudaDeviceSynchronize());
  Report("begins " + what, plain(begins, part, rows, a.count), narrow(first_context, a.count), Tolerance(element));
  cudaFree(device_ranges);
  cudaFree(device_rows);
}

}  // namespace ftbert_test

#endif  // FTBERT_TESTS_CPP_CUDA_CHECK_ATTENTION_CUH_
