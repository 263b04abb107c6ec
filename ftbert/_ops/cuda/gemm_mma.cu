// Matrix products with mma.sync, for every card from Ampere on; on Hopper the others are faster.
//
// Contract: fp16 or bf16 x (M, K) and w (N, K) as gemm.h says. A CTA computes kRows x kColumns; slices of 64 values of
// K come in through cp.async, three in flight, each row's eight 16-byte pieces permuted by its row number against bank
// conflicts. Several products of one shape are the grid's third dimension.
#include "cuda/epilogue.cuh"

namespace ftbert {
namespace cuda {
namespace {

constexpr int kSlice = 64;  // values of K: 128 bytes
constexpr int kStages = 3;

// From one product to the next, in elements: Gemm::x_step and so on.
struct Steps {
  int64_t x, w, bias, out;
};

// Each warp owns kWarpRows x 32.
template <typename T, int kRows, int kColumns, int kWarpRows>
__global__ void __launch_bounds__((kRows / kWarpRows) * (kColumns / 32) * 32)
    GemmMma(const T* x, int64_t ldx, const T* __restrict__ w, const EpilogueArgs e, const Steps steps) {
  constexpr int kThreads = (kRows / kWarpRows) * (kColumns / 32) * 32;
  constexpr int kFragments = kWarpRows / 16;
  constexpr int kStageBytes = (kRows + kColumns) * 128;
  const uint32_t base = SharedAddress(DynamicShared());
  const int row0 = blockIdx.y * kRows, column0 = blockIdx.x * kColumns;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp / (kColumns / 32) * kWarpRows, warp_column = warp % (kColumns / 32) * 32;
  x += blockIdx.z * steps.x;
  w += blockIdx.z * steps.w;
  T* const out = static_cast<T*>(e.out) + blockIdx.z * steps.out;
  LetNextKernelStart();
  WaitForPreviousKernel();

  const int slices = CeilDiv(e.k, kSlice);
  const auto load = [&](int slice) {
    const uint32_t stage = base + slice % kStages * kStageBytes;
    for (int i = threadIdx.x; i < (kRows + kColumns) * 8; i += kThreads) {
      const int r = i / 8, piece = i % 8, k = slice * kSlice + piece * 8;
      const bool is_x = r < kRows;
      const int row = is_x ? row0 + r : column0 + r - kRows;
      const bool valid = k < e.k && row < (is_x ? e.m : e.n);
      const T* from = is_x ? x + row * ldx + k : w + static_cast<int64_t>(row) * e.k + k;
      CopyAsync16(stage + r * 128 + ((piece ^ (r & 7)) * 16), valid ? from : x, valid);
    }
  };
  for (int s = 0; s < kStages - 1; ++s) {
    if (s < slices) load(s);
    CommitCopies();
  }
  float acc[kFragments][4][4] = {};
  for (int slice = 0; slice < slices; ++slice) {
    WaitCopies<kStages - 2>();
    __syncthreads();
    if (slice + kStages - 1 < slices) load(slice + kStages - 1);
    CommitCopies();
    const uint32_t x_tile = base + slice % kStages * kStageBytes, w_tile = x_tile + kRows * 128;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t a[kFragments][4], b[2][4];
#pragma unroll
      for (int i = 0; i < kFragments; ++i) {
        const int r = warp_row + i * 16 + lane % 16, piece = step * 2 + lane / 16;
        LoadMatrix4(a[i], x_tile + r * 128 + ((piece ^ (r & 7)) * 16));
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int r = warp_column + j * 16 + lane % 8 + lane / 16 * 8, piece = step * 2 + lane / 8 % 2;
        LoadMatrix4(b[j], w_tile + r * 128 + ((piece ^ (r & 7)) * 16));
      }
#pragma unroll
      for (int i = 0; i < kFragments; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) MultiplyAdd<T>(acc[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int n = column0 + warp_column + j * 8 + lane % 4 * 2;
    if (n >= e.n) continue;
    float2 bias = make_float2(0.f, 0.f);
    if (e.bias != nullptr) bias = __ldg(reinterpret_cast<const float2*>(e.bias + blockIdx.z * steps.bias + n));
#pragma unroll
    for (int i = 0; i < kFragments; ++i) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int m = row0 + warp_row + i * 16 + h * 8 + lane / 4;
        if (m >= e.m) continue;
        const float low = ActivateBy<false>(e.act, acc[i][j][2 * h] + bias.x);
        const float high = ActivateBy<false>(e.act, acc[i][j][2 * h + 1] + bias.y);
        *reinterpret_cast<uint32_t*>(out + m * e.ldo + n) = PackPair<T>(low, high);
      }
    }
  }
}

template <typename T, int kRows, int kColumns, int kWarpRows>
cudaError_t LaunchMma(const Machine& machine, const Gemm& g, cudaStream_t stream) {
  constexpr int kShared = kStages * (kRows + kColumns) * 128;
  const auto kernel = GemmMma<T, kRows, kColumns, kWarpRows>;
  static std::atomic<uint64_t> allowed{0};
  const cudaError_t refused = AllowShared(machine, reinterpret_cast<const void*>(kernel), kShared, &allowed);
  if (refused != cudaSuccess) return refused;
  LaunchShape shape;
  shape.grid = dim3(CeilDiv(g.n, kColumns), CeilDiv(g.m, kRows), g.batches);
  shape.block = dim3((kRows / kWarpRows) * (kColumns / 32) * 32);
  shape.shared = kShared;
  shape.stream = stream;
  shape.dependent = machine.dependent_launch;
  return Launch(shape, kernel, static_cast<const T*>(g.x), g.ldx, static_cast<const T*>(g.w), MakeEpilogueArgs(g),
                Steps{g.x_step, g.w_step, g.bias_step, g.out_step});
}

template <typename T>
cudaError_t RunTyped(const Machine& machine, int variant, const Gemm& g, cudaStream_t stream) {
  switch (variant) {
    case 0:
      return LaunchMma<T, 128, 128, 64>(machine, g, stream);
    case 1:
      return LaunchMma<T, 64, 64, 32>(machine, g, stream);
    case 2:
      return LaunchMma<T, 32, 32, 16>(machine, g, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t RunMma(const Machine& machine, int variant, const Gemm& g, cudaStream_t stream) {
  if (g.in == Element::kHalf) return RunTyped<Half>(machine, variant, g, stream);
  if (g.in == Element::kBFloat) return RunTyped<BFloat>(machine, variant, g, stream);
  return cudaErrorInvalidValue;
}

}  // namespace cuda
}  // namespace ftbert
