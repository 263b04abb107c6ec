// Attention of one query a row: the first tokens of the last layer. Head sizes that are multiples of 8, at most 128.
//
// AttendFirst: a CTA takes a row and a head. kLanes lanes hold a key (16 bytes of it each for 16-bit types), so a warp
// reads whole 128-byte lines; every group of lanes keeps its own online softmax over its share of the keys, and all are
// put together at the end. A thread's keys and values come into shared memory of its own, kStages ahead, so that the
// memory's latency is waited for once, and what is done with a key stands in the code once.
#include "cuda/common.cuh"
#include "cuda/kernels.h"
#include "cuda/softmax.cuh"

namespace ftbert {
namespace cuda {
namespace {

// Of a thread's keys and values: 32 KB in a CTA of 256 threads, whatever the type; then there is its query.
template <typename T>
struct Stages {
  static constexpr int kWords = sizeof(T) / 2;  // of 16 bytes, for eight columns
  static constexpr int kStages = 8 / sizeof(T);
  static constexpr int kThreadBytes = (kStages * 2 + 1) * kWords * 16;
};

// queries: (rows, ld_queries), or at_range: one at ranges[i].x. Query i sees keys [ranges[i].x, ranges[i].y); values
// lie `part` behind keys.
template <typename T, int kLanes, int kWarps>
__global__ void __launch_bounds__(kWarps * 32)
    AttendFirst(const T* queries, int64_t ld_queries, bool at_range, const T* keys,
                int64_t ld, int part, int head_size, const int2* ranges, float scale,
                T* __restrict__ context, int64_t ld_context) {
  constexpr int kThreads = kWarps * 32, kSlots = kThreads / kLanes, kWidth = kLanes * 8;
  constexpr int kWords = Stages<T>::kWords, kStages = Stages<T>::kStages;
  static_assert(kThreads >= kWidth, "a thread writes a column");
  __shared__ float parts[kWarps][kWidth + 2];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int piece = threadIdx.x % kLanes, slot = threadIdx.x / kLanes;
  const int head = blockIdx.x * head_size, column = head + piece * 8;
  const int64_t row = blockIdx.y;
  const bool mine = piece * 8 < head_size;
  const uint32_t own = SharedAddress(DynamicShared()) + threadIdx.x * 16;
  LetNextKernelStart();
  WaitForPreviousKernel();

  const int2 range = ranges[row];
  // The words of a thread's query, then of each stage its key's and its value's.
  const auto bring = [&](int word, const T* from, bool there) {
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      CopyAsync16(own + (word + w) * (kThreads * 16), from + w * (16 / sizeof(T)), there);
    }
  };
  const auto fetch = [&](int word, float (&to)[8]) {
    uint4 words[kWords];
#pragma unroll
    for (int w = 0; w < kWords; ++w) words[w] = LoadSharedPiece(own + (word + w) * (kThreads * 16));
    Load8(reinterpret_cast<const T*>(words), to);
  };
  const auto stage = [&](int step) { return kWords + (step & (kStages - 1)) * 2 * kWords; };
  bring(0, queries + (at_range ? range.x : row) * ld_queries + column, mine && range.y > range.x);
  float q[8] = {}, out[8] = {}, base = kNoScore, sum = 0.f;
  const int steps = CeilDiv(range.y - range.x, kSlots);
  const T* from = keys + (range.x + slot) * ld + column;  // of the key to be copied next
  int left = mine ? range.y - range.x - slot : 0;         // keys from that one on
#pragma unroll 1
  for (int step = -kStages; step < steps; ++step) {  // below 0: just copies
    if (step >= 0) {
      WaitCopies<kStages - 1>();
      if (step == 0) fetch(0, q);
      float k[8], v[8];
      fetch(stage(step), k);
      fetch(stage(step) + kWords, v);
      float s = q[0] * k[0], odd = q[1] * k[1];
#pragma unroll
      for (int i = 2; i < 8; i += 2) s = fmaf(q[i], k[i], s), odd = fmaf(q[i + 1], k[i + 1], odd);
      s += odd;
#pragma unroll
      for (int lanes = 1; lanes < kLanes; lanes <<= 1) s += __shfl_xor_sync(0xffffffffu, s, lanes);
      s = range.x + step * kSlots + slot < range.y ? s * scale : -INFINITY;
      const bool moves = s > base + kSlack, shrinks = moves && base != kNoScore;
      const float shrink = moves ? FastExp2(base - s) : 1.f;
      if (moves) base = s;
      if (!__all_sync(0xffffffffu, !shrinks)) {
        sum *= shrink;
#pragma unroll
        for (int i = 0; i < 8; ++i) out[i] *= shrink;
      }
      const float p = FastExp2(s - base);
      sum += p;
#pragma unroll
      for (int i = 0; i < 8; ++i) out[i] = fmaf(p, v[i], out[i]);
    }
    if (step + kStages < steps) {
      bring(stage(step), from, left > 0);
      bring(stage(step) + kWords, from + part, left > 0);
      from += kSlots * ld, left -= kSlots;
    }
    CommitCopies();
  }

  // The groups of this warp, then the warps.
  float most = base;
#pragma unroll
  for (int step = kLanes; step < 32; step <<= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
  const float weight = FastExp2(base - most);
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
  most = kNoScore;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) most = fmaxf(most, parts[w][kWidth]);
  float total = 0.f, value = 0.f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    const float share = FastExp2(parts[w][kWidth] - most);
    total = fmaf(share, parts[w][kWidth + 1], total);
    value = fmaf(share, parts[w][d], value);
  }
  context[row * ld_context + head + d] = FromFloat<T>(value * InverseOfSum(total));
}

template <typename T, int kLanes>
cudaError_t LaunchFirst(const Machine& machine, const Attention& a, cudaStream_t stream) {
  // Few rows: more warps share each, as each waits on memory alone.
  const bool few = a.count * a.heads <= 4 * machine.sms;
  LaunchShape shape;
  shape.grid = dim3(a.heads, a.count);
  shape.block = dim3(few ? 256 : 128);
  shape.shared = (few ? 256 : 128) * Stages<T>::kThreadBytes;
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
