#include "cuda/graph_fills.h"

#include <cstdint>
#include <vector>

namespace ftbert {
namespace cuda {
namespace {

// CUDA 13 gave these functions an argument: what kind of edge it is. Null, or none: the plain kind, which a fill's are.
#if CUDART_VERSION >= 13000
cudaError_t Before(cudaGraphNode_t node, cudaGraphNode_t* nodes, size_t* count) {
  return cudaGraphNodeGetDependencies(node, nodes, nullptr, count);
}
cudaError_t After(cudaGraphNode_t node, cudaGraphNode_t* nodes, size_t* count) {
  return cudaGraphNodeGetDependentNodes(node, nodes, nullptr, count);
}
cudaError_t Connect(cudaGraph_t graph, cudaGraphNode_t from, cudaGraphNode_t to) {
  return cudaGraphAddDependencies(graph, &from, &to, nullptr, 1);
}
#else
cudaError_t Before(cudaGraphNode_t node, cudaGraphNode_t* nodes, size_t* count) {
  return cudaGraphNodeGetDependencies(node, nodes, count);
}
cudaError_t After(cudaGraphNode_t node, cudaGraphNode_t* nodes, size_t* count) {
  return cudaGraphNodeGetDependentNodes(node, nodes, count);
}
cudaError_t Connect(cudaGraph_t graph, cudaGraphNode_t from, cudaGraphNode_t to) {
  return cudaGraphAddDependencies(graph, &from, &to, 1);
}
#endif

using Nodes = std::vector<cudaGraphNode_t>;

// What `list` names: asked first how many there are.
template <typename List>
cudaError_t Read(const List& list, Nodes* nodes) {
  size_t count = 0;
  cudaError_t error = list(nullptr, &count);
  nodes->resize(count);
  if (error == cudaSuccess && count > 0) error = list(nodes->data(), &count);
  return error;
}

cudaError_t FindFills(cudaGraph_t graph, const uint8_t* place, size_t bytes, Nodes* fills) {
  Nodes nodes;
  cudaError_t error = Read([&](cudaGraphNode_t* n, size_t* c) { return cudaGraphGetNodes(graph, n, c); }, &nodes);
  for (size_t i = 0; i < nodes.size() && error == cudaSuccess; ++i) {
    cudaGraphNodeType type;
    error = cudaGraphNodeGetType(nodes[i], &type);
    if (error != cudaSuccess || type != cudaGraphNodeTypeMemset) continue;
    cudaMemsetParams fill;
    error = cudaGraphMemsetNodeGetParams(nodes[i], &fill);
    if (error != cudaSuccess) continue;
    const auto* at = static_cast<const uint8_t*>(fill.dst);
    const size_t length = fill.elementSize * fill.width;
    const bool inside = at >= place && at + length <= place + bytes && fill.height == 1;
    if (inside && fill.value == 0) fills->push_back(nodes[i]);
  }
  return error;
}

cudaError_t TakeOut(cudaGraph_t graph, cudaGraphNode_t fill) {
  Nodes before, after;
  cudaError_t error = Read([&](cudaGraphNode_t* n, size_t* c) { return Before(fill, n, c); }, &before);
  if (error == cudaSuccess) error = Read([&](cudaGraphNode_t* n, size_t* c) { return After(fill, n, c); }, &after);
  for (cudaGraphNode_t from : before) {
    for (cudaGraphNode_t to : after) {
      if (error == cudaSuccess) error = Connect(graph, from, to);
    }
  }
  return error == cudaSuccess ? cudaGraphDestroyNode(fill) : error;
}

}  // namespace

cudaError_t HoistFills(cudaGraph_t graph, void* place, size_t bytes) {
  Nodes fills, roots;
  cudaError_t error = FindFills(graph, static_cast<const uint8_t*>(place), bytes, &fills);
  if (error != cudaSuccess || fills.empty()) return error;
  for (size_t i = 0; i < fills.size() && error == cudaSuccess; ++i) error = TakeOut(graph, fills[i]);
  if (error == cudaSuccess) {
    error = Read([&](cudaGraphNode_t* n, size_t* c) { return cudaGraphGetRootNodes(graph, n, c); }, &roots);
  }
  if (error != cudaSuccess) return error;
  cudaMemsetParams all = {};
  all.dst = place;
  all.elementSize = 1;
  all.width = bytes;
  all.height = 1;
  cudaGraphNode_t first;
  error = cudaGraphAddMemsetNode(&first, graph, nullptr, 0, &all);
  for (size_t i = 0; i < roots.size() && error == cudaSuccess; ++i) error = Connect(graph, first, roots[i]);
  return error;
}

}  // namespace cuda
}  // namespace ftbert
