// The end of a matrix product: scales, bias, activation, and the store.
#ifndef FTBERT_CUDA_EPILOGUE_CUH_
#define FTBERT_CUDA_EPILOGUE_CUH_

#include "cuda/common.cuh"
#include "cuda/gemm.h"

namespace ftbert {
namespace cuda {

// What a kernel needs of a Gemm, by value.
struct EpilogueArgs {
  const float* bias;
  const float* w_scale;
  RowScale x_scale, out_scale;
  const void* residual;
  void* out;
  int64_t ldo;
  int m, n, k;
  Act act;
  bool reversed;
};

inline EpilogueArgs MakeEpilogueArgs(const Gemm& g) {
  return EpilogueArgs{g.bias, g.w_scale, g.x_scale, g.out_scale, g.residual, g.out,
                      g.ldo,  g.m,       g.n,       g.k,         static_cast<Act>(g.act), g.reversed};
}

__device__ __forceinline__ float RowScaleOf(const RowScale& scale, int row, int rows) {
  return scale.values != nullptr && row < rows ? fmaf(scale.gain, scale.values[row], scale.offset) : 1.f;
}

}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_CUDA_EPILOGUE_CUH_
