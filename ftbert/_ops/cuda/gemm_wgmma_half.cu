#include "cuda/gemm_wgmma.cuh"

namespace ftbert {
namespace cuda {

cudaError_t RunWgmmaHalf(const Machine& machine, int variant, const Gemm& gemm, cudaStream_t stream) {
  return RunWgmma<Half, Half>(machine, Element::kHalf, variant, gemm, stream);
}

cudaError_t FindQuads(int* quads) {
  using Sizes = WgmmaSizes<Half, Half, 128, 128, true>;
  const auto kernel = GemmWgmma<Half, Half, 128, 128, true, 4>;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Sizes::kShared);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = 4;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(4 * 256);
  config.blockDim = dim3(384);
  config.dynamicSmemBytes = Sizes::kShared;
  config.attrs = &cluster;
  config.numAttrs = 1;
  return cudaOccupancyMaxActiveClusters(quads, kernel, &config);
}

}  // namespace cuda
}  // namespace ftbert
