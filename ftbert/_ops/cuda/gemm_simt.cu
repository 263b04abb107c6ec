// fp32 matrix products in fp32 arithmetic (no TF32), for every card.
//
// Contract: fp32 x (M, K) and w (N, K) as gemm.h says. 64 x 64 tiles, 256 threads of 4 x 4 outputs, 16 values of K at a
// time.
#include "cuda/epilogue.cuh"

namespace ftbert {
namespace cuda {
namespace {

constexpr int kTile = 64;
constexpr int kSlice = 16;

__global__ void __launch_bounds__(256) GemmSimt(const float* x, int64_t ldx, const float* __restrict__ w,
                                                const EpilogueArgs e) {
  __shared__ __align__(16) float xs[kSlice][kTile + 4], ws[kSlice][kTile + 4];
  LetNextKernelStart();
  WaitForPreviousKernel();
  const int row0 = blockIdx.y * kTile, column0 = blockIdx.x * kTile;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int r = threadIdx.x / 4, piece = threadIdx.x % 4 * 4;
  float acc[4][4] = {};
  for (int k = 0; k < e.k; k += kSlice) {
    const float4 zero = make_float4(0.f, 0.f, 0.f, 0.f);
    const float4 a = row0 + r < e.m ? *reinterpret_cast<const float4*>(x + (row0 + r) * ldx + k + piece) : zero;
    const float4 b = column0 + r < e.n
                         ? *reinterpret_cast<const float4*>(w + static_cast<int64_t>(column0 + r) * e.k + k + piece)
                         : zero;
    __syncthreads();
    xs[piece][r] = a.x, xs[piece + 1][r] = a.y, xs[piece + 2][r] = a.z, xs[piece + 3][r] = a.w;
    ws[piece][r] = b.x, ws[piece + 1][r] = b.y, ws[piece + 2][r] = b.z, ws[piece + 3][r] = b.w;
    __syncthreads();
#pragma unroll
    for (int kk = 0; kk < kSlice; ++kk) {
      const float4 u = *reinterpret_cast<const float4*>(&xs[kk][ty * 4]);
      const float4 v = *reinterpret_cast<const float4*>(&ws[kk][tx * 4]);
      const float us[4] = {u.x, u.y, u.z, u.w}, vs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) acc[i][j] = fmaf(us[i], vs[j], acc[i][j]);
      }
    }
  }
  const int n = column0 + tx * 4;
  if (n >= e.n) return;
  const float4 bias = *reinterpret_cast<const float4*>(e.bias + n);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int m = row0 + ty * 4 + i;
    if (m >= e.m) continue;
    *reinterpret_cast<float4*>(static_cast<float*>(e.out) + m * e.ldo + n) =
        make_float4(ActivateBy<true>(e.act, acc[i][0] + bias.x), ActivateBy<true>(e.act, acc[i][1] + bias.y),
                    ActivateBy<true>(e.act, acc[i][2] + bias.z), ActivateBy<true>(e.act, acc[i][3] + bias.w));
  }
}

}  // namespace

cudaError_t RunSimt(const Machine& machine, const Gemm& g, cudaStream_t stream) {
  LaunchShape shape;
  shape.grid = dim3(CeilDiv(g.n, kTile), CeilDiv(g.m, kTile));
  shape.block = dim3(256);
  shape.stream = stream;
  shape.dependent = machine.dependent_launch;
  return Launch(shape, GemmSimt, static_cast<const float*>(g.x), g.ldx, static_cast<const float*>(g.w),
                MakeEpilogueArgs(g));
}

}  // namespace cuda
}  // namespace ftbert
