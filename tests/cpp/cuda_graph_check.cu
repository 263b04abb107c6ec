// HoistFills on a card: recorded chains of kernels that count from zero, and of cuBLASLt's products, replayed.
//
//   cuda_graph_check     exit status 1 when something is wrong, 77 without a card
#include <cstdio>
#include <cstring>
#include <vector>

#include "cuda/graph_fills.h"
#include "cuda/lt.h"
#include "cuda_matrix.cuh"

using namespace ftbert::cuda;
using namespace ftbert_test;

namespace {

int failures = 0;

#define EXPECT(what)                                             \
  do {                                                           \
    if (!(what)) {                                               \
      ++failures;                                                \
      std::printf("FAIL %s:%d %s\n", __FILE__, __LINE__, #what); \
    }                                                            \
  } while (0)

__global__ void Count(int* counter, int* seen) {
  *seen = *counter;
  *counter += 5;
}

int FillsIn(cudaGraph_t graph) {
  size_t count = 0;
  CHECK_CUDA(cudaGraphGetNodes(graph, nullptr, &count));
  std::vector<cudaGraphNode_t> nodes(count);
  CHECK_CUDA(cudaGraphGetNodes(graph, nodes.data(), &count));
  int fills = 0;
  for (cudaGraphNode_t node : nodes) {
    cudaGraphNodeType type;
    CHECK_CUDA(cudaGraphNodeGetType(node, &type));
    fills += type == cudaGraphNodeTypeMemset;
  }
  return fills;
}

template <typename Body>
cudaGraph_t Recorded(cudaStream_t stream, const Body& body) {
  CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
  body();
  cudaGraph_t graph;
  CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
  return graph;
}

void Replay(cudaGraph_t graph, cudaStream_t stream, int times) {
  cudaGraphExec_t run;
  CHECK_CUDA(cudaGraphInstantiateWithFlags(&run, graph, 0));
  for (int i = 0; i < times; ++i) CHECK_CUDA(cudaGraphLaunch(run, stream));
  CHECK_CUDA(cudaStreamSynchronize(stream));
  CHECK_CUDA(cudaGraphExecDestroy(run));
  CHECK_CUDA(cudaGraphDestroy(graph));
}

// Each kernel must find its counter at zero, at every replay; one counter outside is filled where it was.
void CheckCounting(cudaStream_t stream) {
  constexpr int kCounters = 40, kStep = kLtCounterBytes / 4;
  Matrix counters(Element::kFloat, kCounters + 1, kStep), seen(Element::kFloat, 2, kCounters + 1);
  counters.Poison();
  seen.Poison();
  auto* counter = static_cast<int*>(counters.device);
  auto* found = static_cast<int*>(seen.device);
  cudaGraph_t graph = Recorded(stream, [&] {
    for (int i = 0; i <= kCounters; ++i) {
      CHECK_CUDA(cudaMemsetAsync(counter + i * kStep, 0, 4, stream));
      Count<<<1, 1, 0, stream>>>(counter + i * kStep, found + i);
      Count<<<1, 1, 0, stream>>>(counter + i * kStep, found + kCounters + 1 + i);
    }
  });
  EXPECT(FillsIn(graph) == kCounters + 1);
  CHECK_CUDA(HoistFills(graph, counter, kCounters * kLtCounterBytes));
  EXPECT(FillsIn(graph) == 2);
  Replay(graph, stream, 3);
  std::vector<int> values(2 * (kCounters + 1));
  CHECK_CUDA(cudaMemcpy(values.data(), found, values.size() * 4, cudaMemcpyDeviceToHost));
  for (int i = 0; i < 2 * (kCounters + 1); ++i) EXPECT(values[i] == (i > kCounters ? 5 : 0));
}

// A chain of products, each of the one before, with and without: the same bits. Returns the fills that were hoisted.
int CheckProducts(const Machine& machine, cudaStream_t stream, int m, int hidden, int wide, int act) {
  constexpr int kPairs = 3;
  Matrix states(Element::kHalf, m, hidden), between(Element::kHalf, m, wide);
  Matrix up(Element::kHalf, wide, hidden), down(Element::kHalf, hidden, wide), bias(Element::kHalf, 1, wide);
  Matrix scratch(Element::kFloat, 1, kLtAllBytes / 4);
  up.Random(0.05f), down.Random(0.05f), bias.Random(0.1f);
  auto* const place = static_cast<uint8_t*>(scratch.device) + kLtScratchBytes;
  const auto body = [&](bool counters) {
    for (int i = 0; i < 2 * kPairs; ++i) {
      Gemm g;
      g.m = m, g.n = i % 2 ? hidden : wide, g.k = i % 2 ? wide : hidden, g.act = i % 2 ? 0 : act;
      g.x = i % 2 ? between.device : states.device, g.ldx = g.k;
      g.out = i % 2 ? states.device : between.device, g.ldo = g.n;
      g.w = i % 2 ? down.device : up.device, g.bias_half = bias.device;
      g.scratch = scratch.device, g.scratch_bytes = kLtScratchBytes;
      if (counters) g.counter = place + i * kLtCounterBytes;
      CHECK_CUDA(RunLt(machine, 0, g, stream));
    }
  };
  std::vector<float> plain;
  int hoisted = 0;
  for (const bool counters : {false, true}) {
    generator.seed(5);
    states.Random(1.f);
    scratch.Poison();
    body(false);  // brings what has to be loaded to the card
    CHECK_CUDA(cudaStreamSynchronize(stream));
    generator.seed(5);
    states.Random(1.f);
    between.Poison();
    cudaGraph_t graph = Recorded(stream, [&] { body(counters); });
    const int before = FillsIn(graph);
    if (counters) CHECK_CUDA(HoistFills(graph, place, 2 * kPairs * kLtCounterBytes));
    const int after = FillsIn(graph);
    if (counters) {
      hoisted = before - after;
      EXPECT(after == (before > 0 ? 1 : 0));
    }
    Replay(graph, stream, 2);
    const std::vector<float> got = states.Download();
    if (!counters) plain = got;
    EXPECT(std::memcmp(got.data(), plain.data(), got.size() * sizeof(float)) == 0);
  }
  return hoisted;
}

}  // namespace

int main() {
  const Machine machine = FirstCard();
  cudaStream_t stream;
  CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  CheckCounting(stream);
  if (LtAvailable()) {
    for (int m : {64, 1024, 3072, 4096}) {
      const int hoisted = CheckProducts(machine, stream, m, 768, 3072, static_cast<int>(Act::kGeluTanh));
      std::printf("%d rows: %d fills hoisted\n", m, hoisted);
    }
  } else {
    std::printf("no cuBLASLt here: its products were not checked\n");
  }
  std::printf(failures == 0 ? "graphs are right\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
