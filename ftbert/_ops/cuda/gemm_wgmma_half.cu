#include "cuda/gemm_wgmma.cuh"

namespace ftbert {
namespace cuda {

cudaError_t RunWgmmaHalf(const Machine& machine, int variant, const Gemm& gemm, cudaStream_t stream) {
  return RunWgmma<Half, Half>(machine, Element::kHalf, variant, gemm, stream);
}

cudaError_t FindQuads(int* quads) {
  using Sizes = WgmmaSizes<Half, Half, 128, 128, true>;
  return FindClusters(GemmWgmma<Half, Half, 128, 128, true, 4>, 4, 384, Sizes::kShared, quads);
}

}  // namespace cuda
}  // namespace ftbert
