// Attention of one query a row: the first tokens of the last layer. Head sizes that are multiples of 8, at most 128.
//
// AttendFirst: a CTA takes a row and a head. kLanes lanes hold a key (16 bytes of it each for 16-bit types), so a warp
// reads whole 128-byte lines; every group of lanes keeps its own online softmax over its share of the keys, and all are
// put together at the end. Keys and values of a step are loaded together: the memory's latency is waited for once a
// step, not twice.
#include "cuda/common.cuh"
#include "cuda/kernels.h"

namespace ftbert {
namespace cuda {
namespace {

constexpr float kLog2E = 1.4426950408889634f;

// queries: (rows, ld_queries), or at_range: one at ranges[i].x. Query i sees keys [ranges[i].x, ranges[i].y); values
// lie `part` behind keys.
template <typename T, int kLanes, int kWarps>
__global__ void __launch_bounds__(kWarps * 32)
    AttendFirst(const T* queries, int64_t ld_queries, bool at_range, const T* keys,
                int64_t ld, int part, int head_size, const int2* ranges, float scale,
                T* __restrict__ context, int64_t ld_context) {
  constexpr int kThreads = kWarps * 32, kSlots = kThreads / kLanes, kEach = 4, kWidth = kLanes * 8;
  static_assert(kThreads >= kWidth, "a thread writes a column");
  __shared__ float parts[kWarps][kWidth + 2];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int piece = threadIdx.x % kLanes, slot = threadIdx.x / kLanes;
  const int head = blockIdx.x * head_size, column = head + piece * 8;
  const int64_t row = blockIdx.y;
  const bool mine = piece * 8 < head_size;
  LetNextKernelStart();
  WaitForPreviousKernel();

  const int2 range = ranges[row];
  float q[8] = {};
  if (mine && range.y > range.x) Load8(queries + (at_range ? range.x : row) * ld_queries + column, q);
#pragma unroll
  for (int i = 0; i < 8; ++i) q[i] *= scale;
  float out[8] = {}, top = -INFINITY, sum = 0.f;
  for (int key0 = range.x; key0 < range.y; key0 += kSlots * kEach) {
    float k[kEach][8], v[kEach][8];
#pragma unroll
    for (int u = 0; u < kEach; ++u) {
      const int64_t key = key0 + u * kSlots + slot;
#pragma unroll
      for (int i = 0; i < 8; ++i) k[u][i] = v[u][i] = 0.f;
      if (key < range.y && mine) {
        Load8(keys + key * ld + column, k[u]);
        Load8(keys + key * ld + part + column, v[u]);
      }
    }
    float s[kEach], most = top;
#pragma unroll
    for (int u = 0; u < kEach; ++u) {
      s[u] = 0.f;
#pragma unroll
      for (int i = 0; i < 8; ++i) s[u] = fmaf(q[i], k[u][i], s[u]);
#pragma unroll
      for (int step = 1; step < kLanes; step <<= 1) s[u] += __shfl_xor_sync(0xffffffffu, s[u], step);
      if (key0 + u * kSlots + slot >= range.y) s[u] = -INFINITY;
      most = fmaxf(most, s[u]);
    }
    const float base = most == -INFINITY ? 0.f : most;  // no key of this row yet
    const float shrink = FastExp2(top - base);
    top = most;
    sum *= shrink;
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] *= shrink;
#pragma unroll
    for (int u = 0; u < kEach; ++u) {
      const float p = FastExp2(s[u] - base);
      sum += p;
#pragma unroll
      for (int i = 0; i < 8; ++i) out[i] = fmaf(p, v[u][i], out[i]);
    }
  }

  // The groups of this warp, then the warps.
  float most = top;
#pragma unroll
  for (int step = kLanes; step < 32; step <<= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
  const float weight = most == -INFINITY ? 0.f : FastExp2(top - most);
  sum *= weight;
#pragma unroll
  for (int i = 0; i < 8; ++i) out[i] *= weight;
#pragma unroll
  for (int step = kLanes; step < 32; step <<= 1) {
    sum += __shfl_xor_sync(0xffffffffu, sum, step);
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] += __shfl_xor_sync(0xffffffffu, out[i], step);
  }
  if (lane < kLanes) {
#pragma unroll
    for (int i = 0; i < 8; ++i) parts[warp][lane * 8 + i] = out[i];
    if (lane == 0) parts[warp][kWidth] = most, parts[warp][kWidth + 1] = sum;
  }
  __syncthreads();
  const int d = threadIdx.x;
  if (d >= head_size) return;
  most = -INFINITY;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) most = fmaxf(most, parts[w][kWidth]);
  float total = 0.f, value = 0.f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    const float share = most == -INFINITY ? 0.f : FastExp2(parts[w][kWidth] - most);
    total = fmaf(share, parts[w][kWidth + 1], total);
    value = fmaf(share, parts[w][d], value);
  }
  context[row * ld_context + head + d] = FromFloat<T>(total > 0.f ? value / total : 0.f);
}

template <typename T, int kLanes>
cudaError_t LaunchFirst(const Machine& machine, const Attention& a, cudaStream_t stream) {
  // Few rows: more warps share each, as each waits on memory alone.
  const bool few = a.count * a.heads <= 4 * machine.sms;
  LaunchShape shape;
  shape.grid = dim3(a.heads, a.count);
  shape.block = dim3(few ? 256 : 128);
  shape.stream = stream;
  shape.dependent = machine.dependent_launch;
  const T* qkv = static_cast<const T*>(a.qkv);
  return Launch(shape, few ? AttendFirst<T, kLanes, 8> : AttendFirst<T, kLanes, 4>,
                static_cast<const T*>(a.first_queries), a.ld_first > 0 ? a.ld_first : a.ld_context, a.first_at_range,
                qkv + a.part, a.ld, a.part, a.head_size, a.ranges,
                kLog2E / sqrtf(static_cast<float>(a.head_size)), static_cast<T*>(a.context), a.ld_context);
}

template <typename T>
cudaError_t RunTyped(const Machine& machine, const Attention& a, cudaStream_t stream) {
  if (a.head_size <= 32) return LaunchFirst<T, 4>(machine, a, stream);
  return a.head_size <= 64 ? LaunchFirst<T, 8>(machine, a, stream) : LaunchFirst<T, 16>(machine, a, stream);
}

}  // namespace

bool FirstAttentionFits(const Attention& a) {
  return a.first_queries != nullptr && a.head_size % 8 == 0 && a.head_size <= 128 && a.count <= 65535;
}

cudaError_t RunFirstAttention(const Machine& machine, Element element, const Attention& a, cudaStream_t stream) {
  if (element == Element::kFloat) return RunTyped<float>(machine, a, stream);
  return element == Element::kHalf ? RunTyped<Half>(machine, a, stream) : RunTyped<BFloat>(machine, a, stream);
}

}  // namespace cuda
}  // namespace ftbert
