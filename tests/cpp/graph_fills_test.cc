// HoistFills on graphs in memory, chains and random ones: no card and no toolkit is needed for it.
#include "cuda/graph_fills.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "check.h"

struct CUgraphNode_st {
  CUgraph_st* graph;
  int name;  // of the test's
  cudaGraphNodeType type;
  cudaMemsetParams fill;
  std::set<cudaGraphNode_t> before, after;
};
struct CUgraph_st {
  std::vector<std::unique_ptr<CUgraphNode_st>> nodes;
  int calls_that_work = 1 << 30;  // then one fails

  bool Works() { return calls_that_work-- > 0; }
  cudaGraphNode_t Add(int name, cudaGraphNodeType type, const cudaMemsetParams& fill = cudaMemsetParams()) {
    nodes.emplace_back(new CUgraphNode_st{this, name, type, fill, {}, {}});
    return nodes.back().get();
  }
};

namespace {

template <typename Nodes>
cudaError_t Give(const Nodes& from, cudaGraphNode_t* nodes, size_t* count) {
  if (nodes == nullptr) {
    *count = from.size();
  } else {
    std::copy_n(from.begin(), std::min(*count, from.size()), nodes);
  }
  return cudaSuccess;
}

void Edge(cudaGraphNode_t from, cudaGraphNode_t to) {
  from->after.insert(to);
  to->before.insert(from);
}

}  // namespace

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  std::vector<cudaGraphNode_t> all;
  for (const auto& node : graph->nodes) all.push_back(node.get());
  return graph->Works() ? Give(all, nodes, count) : cudaErrorInvalidValue;
}
cudaError_t cudaGraphGetRootNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  std::vector<cudaGraphNode_t> roots;
  for (const auto& node : graph->nodes) {
    if (node->before.empty()) roots.push_back(node.get());
  }
  return graph->Works() ? Give(roots, nodes, count) : cudaErrorInvalidValue;
}
cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* type) {
  *type = node->type;
  return node->graph->Works() ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaGraphMemsetNodeGetParams(cudaGraphNode_t node, cudaMemsetParams* params) {
  *params = node->fill;
  return node->type == cudaGraphNodeTypeMemset && node->graph->Works() ? cudaSuccess : cudaErrorInvalidValue;
}
#ifdef FTBERT_FAKE_CUDART
#define FTBERT_NO_EDGES
#else
#define FTBERT_NO_EDGES cudaGraphEdgeData*,
#endif
cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t node, cudaGraphNode_t* nodes, FTBERT_NO_EDGES size_t* count) {
  return node->graph->Works() ? Give(node->before, nodes, count) : cudaErrorInvalidValue;
}
cudaError_t cudaGraphNodeGetDependentNodes(cudaGraphNode_t node, cudaGraphNode_t* nodes,
                                           FTBERT_NO_EDGES size_t* count) {
  return node->graph->Works() ? Give(node->after, nodes, count) : cudaErrorInvalidValue;
}
cudaError_t cudaGraphAddDependencies(cudaGraph_t graph, const cudaGraphNode_t* from, const cudaGraphNode_t* to,
                                     const FTBERT_NO_EDGES size_t count) {
  for (size_t i = 0; i < count; ++i) Edge(from[i], to[i]);
  return graph->Works() ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaGraphAddMemsetNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t*, size_t,
                                   const cudaMemsetParams* params) {
  *node = graph->Add(-1, cudaGraphNodeTypeMemset, *params);
  return graph->Works() ? cudaSuccess : cudaErrorInvalidValue;
}
cudaError_t cudaGraphDestroyNode(cudaGraphNode_t node) {
  CUgraph_st* graph = node->graph;
  for (cudaGraphNode_t other : node->before) other->after.erase(node);
  for (cudaGraphNode_t other : node->after) other->before.erase(node);
  const auto is = [&](const std::unique_ptr<CUgraphNode_st>& n) { return n.get() == node; };
  graph->nodes.erase(std::find_if(graph->nodes.begin(), graph->nodes.end(), is));
  return graph->Works() ? cudaSuccess : cudaErrorInvalidValue;
}

namespace {

using ftbert::cuda::HoistFills;

uint8_t memory[4096];
uint8_t* const place = memory + 1024;
constexpr size_t kBytes = 1024;

cudaMemsetParams Fill(void* at, size_t width, unsigned value = 0, unsigned element = 1, size_t height = 1) {
  cudaMemsetParams fill = {};
  fill.dst = at;
  fill.width = width;
  fill.value = value;
  fill.elementSize = element;
  fill.height = height;
  return fill;
}

void Reach(cudaGraphNode_t from, std::set<int>* names) {
  for (cudaGraphNode_t to : from->after) {
    if (names->insert(to->name).second) Reach(to, names);
  }
}

// Which node comes after which, by way of others or not.
std::set<std::pair<int, int>> Order(const CUgraph_st& graph) {
  std::set<std::pair<int, int>> order;
  for (const auto& node : graph.nodes) {
    std::set<int> names;
    Reach(node.get(), &names);
    for (int name : names) order.emplace(node->name, name);
  }
  return order;
}

// As a stream records them: kernel, fill, kernel, fill ...
void TestChain() {
  CUgraph_st graph;
  cudaGraphNode_t last = nullptr;
  for (int i = 0; i < 20; ++i) {
    cudaGraphNode_t node = i % 4 == 2 ? graph.Add(i, cudaGraphNodeTypeMemset, Fill(place + 64 * i / 4, 4))
                                      : graph.Add(i, cudaGraphNodeTypeKernel);
    if (last != nullptr) Edge(last, node);
    last = node;
  }
  CHECK_EQ(HoistFills(&graph, place, kBytes), cudaSuccess);
  CHECK_EQ(graph.nodes.size(), size_t{16});
  cudaGraphNode_t node = graph.nodes.back().get();
  CHECK(node->type == cudaGraphNodeTypeMemset && node->before.empty());
  CHECK(node->fill.dst == place && node->fill.width * node->fill.elementSize == kBytes);
  CHECK(node->fill.value == 0 && node->fill.height == 1);
  for (int i = 0; i < 20; ++i) {  // one after the other, as before
    if (i % 4 == 2) continue;
    CHECK_EQ(node->after.size(), size_t{1});
    if (node->after.empty()) break;
    node = *node->after.begin();
    CHECK_EQ(node->name, i);
    CHECK(node->type == cudaGraphNodeTypeKernel);
  }
  CHECK(node->after.empty());
}

void TestOthersStay() {
  const cudaMemsetParams others[] = {Fill(place - 4, 8),          Fill(place + kBytes - 2, 4), Fill(memory, 4),
                                     Fill(place + 8, 4, 1),       Fill(place + 8, 4, 0, 1, 2), Fill(place + kBytes, 4),
                                     Fill(place + kBytes - 8, 4, 0, 4)};
  for (const cudaMemsetParams& other : others) {
    CUgraph_st graph;
    const cudaGraphNode_t kernel = graph.Add(0, cudaGraphNodeTypeKernel);
    const cudaGraphNode_t fill = graph.Add(1, cudaGraphNodeTypeMemset, other);
    Edge(kernel, fill);
    CHECK_EQ(HoistFills(&graph, place, kBytes), cudaSuccess);
    CHECK(graph.nodes.size() == 2 && graph.nodes[1].get() == fill && fill->name == 1);
    CHECK(kernel->after.count(fill) == 1);
  }
  for (const cudaMemsetParams& inside : {Fill(place, kBytes), Fill(place + kBytes - 4, 4), Fill(place + 8, 2, 0, 4)}) {
    CUgraph_st graph;
    Edge(graph.Add(0, cudaGraphNodeTypeKernel), graph.Add(1, cudaGraphNodeTypeMemset, inside));
    CHECK_EQ(HoistFills(&graph, place, kBytes), cudaSuccess);
    CHECK_EQ(graph.nodes.size(), size_t{2});
    CHECK(graph.nodes[0]->name == 0 && graph.nodes[1]->name == -1);
  }
  CUgraph_st empty;
  CHECK_EQ(HoistFills(&empty, place, kBytes), cudaSuccess);
  CHECK(empty.nodes.empty());
}

// With whatever edges: who comes after whom stays, the one fill comes before all, and a failed call is told.
void TestRandom() {
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    const int count = 1 + random() % 14, edges = random() % 30, failing = random() % 3 == 0 ? random() % 60 : 1 << 30;
    CUgraph_st graph;
    std::set<int> fills;
    for (int i = 0; i < count; ++i) {
      if (random() % 3 == 0) {
        graph.Add(i, cudaGraphNodeTypeMemset, Fill(place + 4 * i, 4));
        fills.insert(i);
      } else {
        graph.Add(i, cudaGraphNodeTypeKernel);
      }
    }
    for (int i = 0; i < edges && count > 1; ++i) {
      const int from = random() % (count - 1), to = from + 1 + random() % (count - 1 - from);
      Edge(graph.nodes[from].get(), graph.nodes[to].get());
    }
    std::set<std::pair<int, int>> wanted;
    for (const auto& pair : Order(graph)) {
      if (fills.count(pair.first) == 0 && fills.count(pair.second) == 0) wanted.insert(pair);
    }
    for (int i = 0; i < count && !fills.empty(); ++i) {
      if (fills.count(i) == 0) wanted.emplace(-1, i);
    }
    graph.calls_that_work = failing;
    const cudaError_t error = HoistFills(&graph, place, kBytes);
    CHECK_EQ(error == cudaSuccess, graph.calls_that_work >= 0);
    if (error != cudaSuccess) continue;
    CHECK_EQ(graph.nodes.size(), count - fills.size() + !fills.empty());
    CHECK(Order(graph) == wanted);
  }
}

}  // namespace

int main() {
  TestChain();
  TestOthersStay();
  TestRandom();
  return ftbert_test::Finish();
}
