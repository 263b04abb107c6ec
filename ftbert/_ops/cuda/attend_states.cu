// What a row's first token finds among the row's states themselves: z = softmax(scale u X^T) X for each head, u (H) in,
// z (H) out in its place. 16-bit types, at most 16 heads, H a multiple of 64 up to 1,024, Hopper.
//
// A CTA takes a row, all its heads at once (the 16 rows of an mma), so that X is read once: that is the floor. Each of
// eight warps owns a stretch of the columns, of u, X and z alike. It brings its own part of 16 tokens after 16 tokens
// into shared memory, several under way, and meets the others only to add up the scores, which run over all columns:
// sixteen heads by sixteen tokens a step. Softmax is online, in fp32, the same in every warp.
#include "cuda/common.cuh"
#include "cuda/kernels.h"
#include "cuda/softmax.cuh"

namespace ftbert {
namespace cuda {
namespace {

constexpr int kWarps = 8, kTokens = 16, kMostHeads = 16;

// kSteps: steps of 16 columns that a warp owns at most.
template <int kSteps>
struct Layout {
  static constexpr int kPieces = 2 * kSteps;  // of 16 bytes, in a warp's part of a token
  static constexpr int kPart = kTokens * kPieces * 16;
  // Two CTAs a multiprocessor where they fit: one reads while the other adds up.
  static constexpr int kCtas = kSteps <= 6 ? 2 : 1, kStages = kSteps <= 6 ? 4 : 6;
  static constexpr int kScores = kMostHeads * kTokens;
  static constexpr int kShared = kStages * kWarps * kPart + (kWarps + 1) * kScores * 4;

  // Byte offset of a piece of row `row`, permuted so that eight consecutive rows meet no bank twice.
  static __device__ __forceinline__ uint32_t Offset(int row, int piece) {
    static_assert(kPieces % 4 == 0, "pieces are permuted by fours or eights");
    return (row * kPieces + (piece ^ (kPieces % 8 == 0 ? row & 7 : row >> 1 & 3))) * 16;
  }
};

// found: (rows, heads, H) u in, z out. A row of no tokens gives zeros.
template <typename T, int kSteps>
__global__ void __launch_bounds__(kWarps * 32, Layout<kSteps>::kCtas)
    AttendStates(const T* states, int64_t pitch, T* found, int heads, int hidden, const int2* ranges, float scale,
                 bool reversed) {
  using L = Layout<kSteps>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t own = SharedAddress(DynamicShared()) + warp * L::kPart;
  const uint32_t parts = SharedAddress(DynamicShared()) + L::kStages * kWarps * L::kPart;
  const uint32_t sums = parts + kWarps * L::kScores * 4;
  const int steps = hidden / 16, step0 = warp * steps / kWarps;
  const int pieces = 2 * ((warp + 1) * steps / kWarps - step0);
  const int64_t row = reversed ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
  LetNextKernelStart();
  WaitForPreviousKernel();

  const int2 range = ranges[row];
  T* const u = found + row * heads * hidden + step0 * 16;
  const T* const x = states + range.x * pitch + step0 * 16;
  const int tokens = range.y - range.x;
  // Item 0 is u, the others are tokens; what a warp does not own, or is not there, is zeros.
  const int items = 1 + CeilDiv(tokens, kTokens);
  const auto load = [&](int item) {
    const uint32_t to = own + item % L::kStages * kWarps * L::kPart;
    const int row0 = (item - 1) * kTokens;
#pragma unroll
    for (int i = lane; i < kTokens * L::kPieces; i += 32) {
      const int r = i / L::kPieces, piece = i % L::kPieces;
      const bool valid = piece < pieces && (item == 0 ? r < heads : row0 + r < tokens);
      const T* from = item == 0 ? u + r * hidden : x + (row0 + r) * pitch;
      CopyAsync16(to + L::Offset(r, piece), valid ? from + piece * 8 : u, valid);
    }
  };
#pragma unroll
  for (int s = 0; s < L::kStages - 1; ++s) {
    if (s < items) load(s);
    CommitCopies();
  }

  uint32_t a[kSteps][4];
  float z[2 * kSteps][4] = {};
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.f, 0.f};
  for (int item = 0; item < items; ++item) {
    WaitCopies<L::kStages - 2>();
    __syncwarp();  // every lane's copies are there, and the stage that is filled now has been read
    if (item + L::kStages - 1 < items) load(item + L::kStages - 1);
    CommitCopies();
    const uint32_t tile = own + item % L::kStages * kWarps * L::kPart;
    if (item == 0) {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) LoadMatrix4(a[i], tile + L::Offset(lane % 16, 2 * i + lane / 16));
      continue;
    }
    float s[2][4] = {};
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      uint32_t b[4];
      LoadMatrix4(b, tile + L::Offset(lane % 8 + lane / 16 * 8, 2 * i + lane / 8 % 2));
      MultiplyAdd<T>(s[0], a[i], b[0], b[1]);
      MultiplyAdd<T>(s[1], a[i], b[2], b[3]);
    }
    // Each warp's share of the scores, as its threads hold them; a thread adds up one score.
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      StoreShared4(parts + (warp * L::kScores + j * 128 + lane * 4) * 4,
                   make_float4(s[j][0], s[j][1], s[j][2], s[j][3]));
    }
    __syncthreads();
    float score = 0.f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) score += LoadShared1(parts + (w * L::kScores + threadIdx.x) * 4);
    StoreShared(sums + threadIdx.x * 4, score);
    __syncthreads();
    const int token0 = (item - 1) * kTokens + lane % 4 * 2;
    float most[2] = {top[0], top[1]};
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float4 all = LoadShared4(sums + (j * 128 + lane * 4) * 4);
      s[j][0] = all.x, s[j][1] = all.y, s[j][2] = all.z, s[j][3] = all.w;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (token0 + j * 8 + i % 2 >= tokens) s[j][i] = -INFINITY;
        most[i / 2] = fmaxf(most[i / 2], s[j][i]);
      }
    }
    float base[2], shrink[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      most[h] = fmaxf(most[h], __shfl_xor_sync(0xffffffffu, most[h], 1));
      most[h] = fmaxf(most[h], __shfl_xor_sync(0xffffffffu, most[h], 2));
      base[h] = most[h] * scale;
      shrink[h] = FastExp2(fmaf(top[h], scale, -base[h]));
      top[h] = most[h];
      sum[h] *= shrink[h];
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[j][i] = FastExp2(fmaf(s[j][i], scale, -base[i / 2]));
        sum[i / 2] += s[j][i];
      }
    }
    const uint32_t p[4] = {PackPair<T>(s[0][0], s[0][1]), PackPair<T>(s[0][2], s[0][3]), PackPair<T>(s[1][0], s[1][1]),
                           PackPair<T>(s[1][2], s[1][3])};
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
#pragma unroll
      for (int c = 0; c < 4; ++c) z[2 * i][c] *= shrink[c / 2], z[2 * i + 1][c] *= shrink[c / 2];
      uint32_t b[4];
      LoadMatrix4Transposed(b, tile + L::Offset(lane % 16, 2 * i + lane / 16));
      MultiplyAdd<T>(z[2 * i], p, b[0], b[1]);
      MultiplyAdd<T>(z[2 * i + 1], p, b[2], b[3]);
    }
  }

  // Turned around in the warp's first stage, for whole lines.
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
    sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
    sum[h] = sum[h] > 0.f ? 1.f / sum[h] : 0.f;
  }
  WaitCopies<0>();
  __syncwarp();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int j = 0; j < 2 * kSteps; ++j) {
      StoreShared(own + L::Offset(lane / 4 + 8 * h, j) + lane % 4 * 4,
                  PackPair<T>(z[j][2 * h] * sum[h], z[j][2 * h + 1] * sum[h]));
    }
  }
  __syncwarp();
  for (int i = lane; i < heads * L::kPieces; i += 32) {
    const int r = i / L::kPieces, piece = i % L::kPieces;
    if (piece >= pieces) continue;
    *reinterpret_cast<uint4*>(u + r * hidden + piece * 8) = LoadSharedPiece(own + L::Offset(r, piece));
  }
}

template <typename T, int kSteps>
cudaError_t LaunchStates(const Machine& machine, const StatesAttention& a, cudaStream_t stream) {
  const auto kernel = AttendStates<T, kSteps>;
  static std::atomic<uint64_t> allowed{0};
  const cudaError_t refused =
      AllowShared(machine, reinterpret_cast<const void*>(kernel), Layout<kSteps>::kShared, &allowed);
  if (refused != cudaSuccess) return refused;
  LaunchShape shape;
  shape.grid = dim3(a.count);
  shape.block = dim3(kWarps * 32);
  shape.shared = Layout<kSteps>::kShared;
  shape.stream = stream;
  shape.dependent = machine.dependent_launch;
  return Launch(shape, kernel, static_cast<const T*>(a.states), a.pitch, static_cast<T*>(a.found), a.heads, a.hidden,
                a.ranges, kLog2E / sqrtf(static_cast<float>(a.head_size)), a.reversed);
}

template <typename T>
cudaError_t RunTyped(const Machine& machine, const StatesAttention& a, cudaStream_t stream) {
  return a.hidden <= 768 ? LaunchStates<T, 6>(machine, a, stream) : LaunchStates<T, 8>(machine, a, stream);
}

}  // namespace

bool StatesAttentionFits(const Machine& machine, Element element, int heads, int hidden) {
  return machine.hopper && (element == Element::kHalf || element == Element::kBFloat) && heads <= kMostHeads &&
         hidden % 64 == 0 && hidden <= 1024;
}

cudaError_t RunStatesAttention(const Machine& machine, Element element, const StatesAttention& a,
                               cudaStream_t stream) {
  if (!StatesAttentionFits(machine, element, a.heads, a.hidden)) return cudaErrorNotSupported;
  return element == Element::kHalf ? RunTyped<Half>(machine, a, stream) : RunTyped<BFloat>(machine, a, stream);
}

}  // namespace cuda
}  // namespace ftbert
