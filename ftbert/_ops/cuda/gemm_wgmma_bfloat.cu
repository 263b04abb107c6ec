#include "cuda/gemm_wgmma.cuh"

namespace ftbert {
namespace cuda {

cudaError_t RunWgmmaBFloat(const Machine& machine, int variant, const Gemm& gemm, cudaStream_t stream) {
  return RunWgmma<BFloat, BFloat>(machine, Element::kBFloat, variant, gemm, stream);
}

}  // namespace cuda
}  // namespace ftbert
