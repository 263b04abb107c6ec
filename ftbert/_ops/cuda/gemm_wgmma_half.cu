#include "cuda/gemm_wgmma.cuh"

namespace ftbert {
namespace cuda {

cudaError_t RunWgmmaHalf(const Machine& machine, int variant, const Gemm& gemm, cudaStream_t stream) {
  return RunWgmma<Half, Half>(machine, Element::kHalf, variant, gemm, stream);
}

}  // namespace cuda
}  // namespace ftbert
