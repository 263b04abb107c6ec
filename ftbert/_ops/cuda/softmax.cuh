// Softmax over blocks of keys as they come, on scores as matrix units leave them.
//
// A thread holds scores of two queries, h = 0 and 1, at s[4 j + 2 h + c]: of keys 8 j + 2 (lane % 4) + c of the block.
// Weights are 2 to the scores off a base of their query. That is the largest score at first, and moves only where one
// exceeds it by kSlack: seldom has what was summed up so far to be scaled, and with the first block never.
#ifndef FTBERT_CUDA_SOFTMAX_CUH_
#define FTBERT_CUDA_SOFTMAX_CUH_

#include "cuda/common.cuh"

namespace ftbert {
namespace cuda {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kSlack = 8.f;       // weights are at most 2 to this
constexpr float kNoScore = -1e30f;  // a base before there is a score: below every one

// Takes keys outside of their query's range out of the block, which begins with key0. Which a thread has are bits.
template <int kScores>
__device__ __forceinline__ void MaskKeys(float (&s)[kScores], const int2 (&range)[2], int key0, int lane) {
  const int mine = key0 + lane % 4 * 2;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    uint32_t bits = 0;
#pragma unroll
    for (int j = 0; j < kScores / 4; ++j) {
      const int from = mine + j / 4 * 32;
      if (j % 4 == 0) bits = BitsFrom(range[h].x - from) & ~BitsFrom(range[h].y - from);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        if (!(bits >> (j % 4 * 8 + c) & 1)) s[4 * j + 2 * h + c] = -INFINITY;
      }
    }
  }
}

// The largest score of query h, the same in the four lanes that share it.
template <int kScores>
__device__ __forceinline__ float LargestOfQuery(const float (&s)[kScores], int h) {
  float most = s[2 * h];
#pragma unroll
  for (int i = 1; i < kScores / 2; ++i) most = fmaxf(most, s[i / 2 * 4 + 2 * h + i % 2]);
  most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
  return fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
}

// The sums of the four lanes that share a query, in each of them.
__device__ __forceinline__ void AddQuads(float (&sum)[2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
    sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
  }
}

struct OnlineSoftmax {
  float base[2] = {kNoScore, kNoScore}, sum[2] = {0.f, 0.f};

  // Makes weights of a block's scores, which count times `scale`, and adds them up; scales `out` where a base moves.
  template <int kScores, int kSums>
  __device__ __forceinline__ void Weigh(float (&s)[kScores], float (&out)[kSums], float scale) {
    float shrink[2];
    bool shrinks = false;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float most = LargestOfQuery(s, h) * scale;
      const bool moves = most > base[h] + kSlack;
      shrink[h] = moves ? FastExp2(base[h] - most) : 1.f;
      shrinks = shrinks || (moves && base[h] != kNoScore);
      if (moves) base[h] = most;
    }
    if (!__all_sync(0xffffffffu, !shrinks)) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) out[i] *= shrink[i / 2 % 2];
      sum[0] *= shrink[0], sum[1] *= shrink[1];
    }
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      s[i] = FastExp2(fmaf(s[i], scale, -base[i / 2 % 2]));
      sum[i / 2 % 2] += s[i];
    }
  }
};

// 1 / sum; 0 where there was no key.
__device__ __forceinline__ float InverseOfSum(float sum) { return sum > 0.f ? FastDivide(1.f, sum) : 0.f; }

// Two weights in 16 bits: they are too small for the saturating that other values need.
template <typename T>
__device__ __forceinline__ uint32_t PackWeights(float low, float high) {
  return PackPair<T>(low, high);
}
template <>
__device__ __forceinline__ uint32_t PackWeights<Half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_CUDA_SOFTMAX_CUH_
