// The part of the CUDA runtime that edits graphs, declared for graph_fills_test.cc, which defines it: as in CUDA 13,
// or, with FTBERT_FAKE_CUDART=12000, as before it.
#ifndef FTBERT_TESTS_CPP_FAKE_GRAPHS_CUDA_RUNTIME_H_
#define FTBERT_TESTS_CPP_FAKE_GRAPHS_CUDA_RUNTIME_H_

#include <cstddef>

#ifdef FTBERT_FAKE_CUDART
#define CUDART_VERSION FTBERT_FAKE_CUDART
#define FTBERT_EDGES
#else
#define CUDART_VERSION 13000
#define FTBERT_EDGES cudaGraphEdgeData *edges,
#endif

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaGraphNodeType { cudaGraphNodeTypeKernel = 0, cudaGraphNodeTypeMemset = 2 };

struct CUgraphNode_st;
struct CUgraph_st;
using cudaGraphNode_t = CUgraphNode_st*;
using cudaGraph_t = CUgraph_st*;
struct cudaGraphEdgeData {
  unsigned char from_port, to_port, type, reserved[5];
};
struct cudaMemsetParams {
  void* dst;
  size_t pitch;
  unsigned int value, elementSize;
  size_t width, height;
};

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count);
cudaError_t cudaGraphGetRootNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count);
cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* type);
cudaError_t cudaGraphMemsetNodeGetParams(cudaGraphNode_t node, cudaMemsetParams* params);
cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t node, cudaGraphNode_t* nodes, FTBERT_EDGES size_t* count);
cudaError_t cudaGraphNodeGetDependentNodes(cudaGraphNode_t node, cudaGraphNode_t* nodes, FTBERT_EDGES size_t* count);
cudaError_t cudaGraphAddDependencies(cudaGraph_t graph, const cudaGraphNode_t* from, const cudaGraphNode_t* to,
                                     const FTBERT_EDGES size_t count);
cudaError_t cudaGraphAddMemsetNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* before,
                                   size_t before_count, const cudaMemsetParams* params);
cudaError_t cudaGraphDestroyNode(cudaGraphNode_t node);

#endif  // FTBERT_TESTS_CPP_FAKE_GRAPHS_CUDA_RUNTIME_H_
