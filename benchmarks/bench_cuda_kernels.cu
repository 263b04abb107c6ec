// Times every CUDA kernel that can run BERT-base's products, attention and layer norm: docs/roofline.md's table.
//
//   bench_cuda_kernels [tokens ...]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "cuda/kernels.h"
#include "cuda/lt.h"
#include "cuda_matrix.cuh"

using namespace ftbert;
using namespace ftbert::cuda;
using namespace ftbert_test;

namespace {

// Median time in microseconds of each plan, over weights that do not fit into L2 together, in a graph.
void TimeGemm(const Machine& machine, Element in, Element out_type, int m, int n, int k, int act, const char* name) {
  const int copies = m >= 4096 ? 5 : 24;  // reading many rows empties L2 as well
  Matrix x(in, m, k), w(in, static_cast<int64_t>(n) * copies, k), bias(Element::kFloat, 1, n), out(out_type, m, n);
  Matrix ones(Element::kFloat, 1, std::max(n, m));
  CHECK_CUDA(FillNoise(in, x.device, static_cast<int64_t>(m) * k, nullptr));
  CHECK_CUDA(cudaDeviceSynchronize());
  bias.Random(1.f);
  {
    std::vector<uint8_t> bytes(static_cast<size_t>(n) * k * copies * ElementBytes(in));
    for (size_t i = 0; i < bytes.size(); ++i)
      bytes[i] = generator() & (in == Element::kFloat8 ? 0xbf : (i % 2 ? 0xb3 : 0xff));
    CHECK_CUDA(cudaMemcpy(w.device, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
  }
  for (float& v : ones.host) v = 0.05f;
  ones.Upload();
  Matrix bias_half(Element::kHalf, 1, n), scratch(Element::kFloat, 1, kLtScratchBytes / 4);
  bias_half.Random(1.f);
  Gemm g;
  g.m = m, g.n = n, g.k = k, g.in = in, g.out_type = out_type, g.act = act;
  g.x = x.device, g.ldx = k, g.bias = static_cast<float*>(bias.device), g.out = out.device, g.ldo = n;
  g.bias_half = bias_half.device, g.scratch = scratch.device, g.scratch_bytes = kLtScratchBytes;
  if (in == Element::kFloat8) g.x_scale.values = g.w_scale = static_cast<float*>(ones.device);
  if (out_type == Element::kFloat8) g.out_scale.values = static_cast<float*>(ones.device);
  cudaStream_t stream;
  CHECK_CUDA(cudaStreamCreate(&stream));
  cudaEvent_t a, b;
  cudaEventCreate(&a), cudaEventCreate(&b);
  std::vector<std::pair<float, std::string>> table;
  const Plan chosen = PlanFor(machine, g);
  float chosen_time = 0;
  for (const Plan& plan : Candidates(machine, g)) {
    if (plan.family == Family::kMma && m > 256) continue;
    cudaGraph_t graph;
    cudaGraphExec_t run;
    CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    bool good = true;
    for (int i = 0; i < copies; ++i) {
      g.w = static_cast<uint8_t*>(w.device) + static_cast<size_t>(i) * n * k * ElementBytes(in);
      good = good && RunGemm(machine, plan, g, stream) == cudaSuccess;
    }
    CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
    if (!good) {
      std::printf("%s does not launch: %s\n", PlanName(plan).c_str(), cudaGetErrorString(cudaGetLastError()));
      continue;
    }
    CHECK_CUDA(cudaGraphInstantiate(&run, graph, 0));
    std::vector<float> times;
    for (int i = 0; i < 6; ++i) {
      cudaEventRecord(a, stream);
      CHECK_CUDA(cudaGraphLaunch(run, stream));
      cudaEventRecord(b, stream);
      CHECK_CUDA(cudaStreamSynchronize(stream));
      float ms;
      cudaEventElapsedTime(&ms, a, b);
      times.push_back(ms * 1e3f / copies);
    }
    std::sort(times.begin(), times.end());
    table.push_back({times[2], PlanName(plan)});
    if (plan == chosen) chosen_time = times[2];
    cudaGraphExecDestroy(run);
    cudaGraphDestroy(graph);
  }
  std::sort(table.begin(), table.end());
  std::printf("TIME %s %s m=%d n=%d k=%d: chosen %s %.2f us", in == Element::kFloat8 ? "fp8" : "fp16", name, m, n, k,
              PlanName(chosen).c_str(), chosen_time);
  for (size_t i = 0; i < table.size() && i < 12; ++i) {
    std::printf(" | %s %.2f (%.0f)", table[i].second.c_str(), table[i].first, 2e-6 * m * n * k / table[i].first);
  }
  std::printf("\n");
  std::fflush(stdout);
  cudaStreamDestroy(stream);
}

// Median time in microseconds of what `launch` puts onto the stream, ten times in a graph.
template <typename Body>
float TimeGraph(cudaStream_t stream, const Body& launch) {
  cudaGraph_t graph;
  cudaGraphExec_t run;
  cudaEvent_t a, b;
  cudaEventCreate(&a), cudaEventCreate(&b);
  CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < 10; ++i) CHECK_CUDA(launch());
  CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
  CHECK_CUDA(cudaGraphInstantiate(&run, graph, 0));
  float times[7];
  for (float& time : times) {
    cudaEventRecord(a, stream);
    CHECK_CUDA(cudaGraphLaunch(run, stream));
    cudaEventRecord(b, stream);
    CHECK_CUDA(cudaStreamSynchronize(stream));
    cudaEventElapsedTime(&time, a, b);
  }
  std::sort(times, times + 7);
  cudaGraphExecDestroy(run);
  cudaGraphDestroy(graph);
  return times[3] * 100;
}

// The last layer without keys and values: the first tokens' queries to the states, what they find there, its values.
void TimeStates(const Machine& machine, const Matrix& states, const int2* ranges, int rows, cudaStream_t stream) {
  constexpr int kHidden = 768, kHeads = 12, kSize = kHidden / kHeads;
  Matrix queries(Element::kHalf, rows, kHidden), found(Element::kHalf, rows, kHeads * kHidden);
  Matrix weights(Element::kHalf, kHidden, kHidden), bias(Element::kFloat, 1, kHidden);
  queries.Random(1.f), weights.Random(0.04f), bias.Random(1.f);
  CHECK_CUDA(FillNoise(Element::kHalf, found.device, found.rows * found.columns, nullptr));
  Gemm to_states;
  to_states.m = rows, to_states.n = kHidden, to_states.k = kSize, to_states.batches = kHeads;
  to_states.x = queries.device, to_states.ldx = kHidden, to_states.x_step = kSize;
  to_states.w = weights.device, to_states.w_step = kHidden * kSize;
  to_states.out = found.device, to_states.ldo = kHeads * kHidden, to_states.out_step = kHidden;
  Gemm to_values = to_states;
  to_values.n = kSize, to_values.k = kHidden;
  to_values.x = found.device, to_values.ldx = kHeads * kHidden, to_values.x_step = kHidden;
  to_values.bias = static_cast<float*>(bias.device), to_values.bias_step = kSize;
  to_values.out = queries.device, to_values.ldo = kHidden, to_values.out_step = kSize;
  StatesAttention a;
  a.states = states.device, a.pitch = kHidden, a.found = found.device, a.ranges = ranges;
  a.count = rows, a.heads = kHeads, a.hidden = kHidden, a.head_size = kSize;
  const auto product = [&](const Gemm& g) {
    return TimeGraph(stream, [&] { return RunGemm(machine, OwnPlanFor(machine, g), g, stream); });
  };
  std::printf("  first tokens to states %.2f, attending %.2f, to values %.2f\n", product(to_states),
              TimeGraph(stream, [&] { return RunStatesAttention(machine, Element::kHalf, a, stream); }),
              product(to_values));
}

// Attention by each kernel, attention of the first tokens, and the norm. Tokens of `jitter` or more shorten rows.
void TimeAttention(const Machine& machine, int rows, int length, int jitter = 0) {
  std::vector<int2> ranges, firsts;
  for (int r = 0, at = 0; r < rows; ++r) {
    const int mine = length - (jitter > 0 ? static_cast<int>(generator() % jitter) : 0);
    ranges.insert(ranges.end(), mine, make_int2(at, at + mine));
    firsts.push_back(make_int2(at, at + mine));
    at += mine;
  }
  const int tokens = static_cast<int>(ranges.size());
  Matrix qkv(Element::kHalf, tokens, 2304), context(Element::kHalf, tokens, 768), first(Element::kHalf, rows, 768);
  CHECK_CUDA(FillNoise(Element::kHalf, qkv.device, qkv.rows * qkv.columns, nullptr));
  first.Random(1.f);
  int2 *device_ranges, *device_firsts;
  CHECK_CUDA(cudaMalloc(&device_ranges, sizeof(int2) * tokens));
  CHECK_CUDA(cudaMemcpy(device_ranges, ranges.data(), sizeof(int2) * tokens, cudaMemcpyHostToDevice));
  CHECK_CUDA(cudaMalloc(&device_firsts, sizeof(int2) * rows));
  CHECK_CUDA(cudaMemcpy(device_firsts, firsts.data(), sizeof(int2) * rows, cudaMemcpyHostToDevice));
  Attention a;
  a.qkv = qkv.device, a.ld = 2304, a.part = 768, a.ranges = device_ranges, a.count = tokens, a.heads = 12;
  a.head_size = 64, a.context = context.device, a.ld_context = 768;
  Matrix gamma(Element::kFloat, 1, 768);
  gamma.Random(1.f);
  Norm n;
  n.gamma = n.beta = static_cast<float*>(gamma.device);
  n.epsilon = 1e-12f, n.width = 768, n.pitch = 768;
  cudaStream_t stream;
  CHECK_CUDA(cudaStreamCreate(&stream));
  const auto attend = [&](AttentionKernel kernel) {
    a.kernel = kernel;
    return TimeGraph(stream, [&] { return RunAttention(machine, Element::kHalf, a, stream); });
  };
  std::printf("TIME %d x %d%s, us: attention %.2f (tiles %.2f", rows, length, jitter > 0 ? " or less" : "",
              attend(AttentionKernel::kChosen), attend(AttentionKernel::kTiles));
  if (machine.hopper) std::printf(", wgmma %.2f", attend(AttentionKernel::kWgmma));
  Attention f = a;
  f.first_queries = first.device, f.ranges = device_firsts, f.count = rows;
  std::printf("), of first tokens %.2f, norm %.2f\n",
              TimeGraph(stream, [&] { return RunAttention(machine, Element::kHalf, f, stream); }),
              TimeGraph(stream, [&] {
                return RunAddNorm(machine, Element::kHalf, n, tokens, context.device, qkv.device, Quantized(), stream);
              }));
  if (machine.hopper) TimeStates(machine, context, device_firsts, rows, stream);
  std::fflush(stdout);
  cudaStreamDestroy(stream);
  cudaFree(device_ranges);
  cudaFree(device_firsts);
}

}  // namespace

int main(int argc, char** argv) {
  const Machine machine = FirstCard();
  std::vector<int> counts;
  for (int i = 1; i < argc; ++i) counts.push_back(std::atoi(argv[i]));
  for (int rows : {1, 8, 32, 256}) TimeAttention(machine, rows, 128);
  TimeAttention(machine, 1, 32), TimeAttention(machine, 500, 32), TimeAttention(machine, 32, 384);
  TimeAttention(machine, 800, 64, 48), TimeAttention(machine, 16, 128), TimeAttention(machine, 64, 128);
  for (int m : counts) {
    for (Element in : {Element::kHalf, Element::kFloat8}) {
      TimeGemm(machine, in, Element::kHalf, m, 2304, 768, 0, "qkv");
      TimeGemm(machine, in, Element::kHalf, m, 768, 768, 0, "out");
      TimeGemm(machine, in, in, m, 3072, 768, 2, "up");
      TimeGemm(machine, in, Element::kHalf, m, 768, 3072, 0, "down");
    }
  }
  return 0;
}
