// Fills within a recorded chain of kernels, taken out of it.
#ifndef FTBERT_CUDA_GRAPH_FILLS_H_
#define FTBERT_CUDA_GRAPH_FILLS_H_

#include <cuda_runtime.h>

namespace ftbert {
namespace cuda {

// A fill that a library records before its own kernel is a step of the chain, which takes 2 us however few bytes it
// writes: cuBLASLt zeroes the counter of its tiles, 4 bytes, before products of more tiles than multiprocessors.
//
// Takes those fills with zeros out of `graph` whose bytes lie within the `bytes` at `place`, and puts one fill of all
// of `place` before everything else. For this each byte may be filled once, and what the chain does with it before
// that fill must not matter. Other fills stay where they are; without any of these the graph stays as it is.
cudaError_t HoistFills(cudaGraph_t graph, void* place, size_t bytes);

}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_CUDA_GRAPH_FILLS_H_
