#include "cuda/gemm_wgmma.cuh"

namespace ftbert {
namespace cuda {

cudaError_t RunWgmmaFloat8(const Machine& machine, int variant, const Gemm& gemm, cudaStream_t stream) {
  if (gemm.out_type == Element::kFloat8)
    return RunWgmma<Float8, Float8>(machine, Element::kFloat8, variant, gemm, stream);
  return RunWgmma<Float8, Half>(machine, Element::kFloat8, variant, gemm, stream);
}

}  // namespace cuda
}  // namespace ftbert
