// How long a boundary between dependent steps takes on a card, in three ways:
//
//   bench_launches
//
//   wait    kernels in a graph that start before the one before has ended, and wait for it (griddepcontrol.wait)
//   flags   the same launches, each waiting for a counter in memory that the CTAs before have added to
//   one     one kernel, with a barrier over its grid between the steps
//
// In each step every CTA reads all of a buffer (1 to 192 KiB) and writes its share of another, which the next step
// reads. Prints microseconds a step and whether all three computed the same. Needs compute capability 9.0.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "cuda_matrix.cuh"

namespace {

using namespace ftbert::cuda;

constexpr int kThreads = 512, kSteps = 84, kTogether = 6;
constexpr int kFlagStride = 64;  // counters do not share a line

struct Step {
  const uint4* in;
  uint4* out;
  int count;  // of 16 bytes
};

struct Counters {
  const uint32_t* runs;    // graphs that have run before
  const uint32_t* before;  // null: the first step
  uint32_t ctas_before;
  uint32_t* mine;
};

__device__ __forceinline__ uint32_t LoadAcquire(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
__device__ __forceinline__ void AddRelease(uint32_t* to) {
  asm volatile("red.release.gpu.add.u32 [%0], 1;" ::"l"(to) : "memory");
}
// Counters wrap; they are never 2^31 apart.
__device__ __forceinline__ void SpinUntil(const uint32_t* counter, uint32_t target) {
  while (static_cast<int32_t>(LoadAcquire(counter) - target) < 0) {
  }
}
__device__ void Work(const Step& step) {
  __shared__ uint32_t all;
  uint32_t bits = 0;
  for (int first = threadIdx.x; first < step.count; first += kThreads * kTogether) {
    uint4 piece[kTogether];
#pragma unroll
    for (int u = 0; u < kTogether; ++u) {
      const int i = first + u * kThreads;
      piece[u] = i < step.count ? __ldcg(step.in + i) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int u = 0; u < kTogether; ++u) bits ^= piece[u].x ^ piece[u].y ^ piece[u].z ^ piece[u].w;
  }
  if (threadIdx.x == 0) all = 0;
  __syncthreads();
  for (int distance = 16; distance > 0; distance /= 2) bits ^= __shfl_xor_sync(~0u, bits, distance);
  if (threadIdx.x % 32 == 0) atomicXor(&all, bits);
  __syncthreads();
  const int share = (step.count + gridDim.x - 1) / gridDim.x, i = blockIdx.x * share + threadIdx.x;
  if (threadIdx.x < share && i < step.count) step.out[i] = make_uint4(all + i, all ^ i, i, all * 3 + 1);
}

__global__ void __launch_bounds__(kThreads, 1) StepAfterWait(Step step) {
  LetNextKernelStart();
  WaitForPreviousKernel();
  Work(step);
}

__global__ void __launch_bounds__(kThreads, 1) StepAfterFlags(Step step, Counters counters) {
  LetNextKernelStart();
  if (counters.before == nullptr) {
    WaitForPreviousKernel();
  } else {
    if (threadIdx.x == 0) SpinUntil(counters.before, (*counters.runs + 1) * counters.ctas_before);
    __syncthreads();
  }
  Work(step);
  __syncthreads();
  if (threadIdx.x == 0) AddRelease(counters.mine);
}

__global__ void CountRun(uint32_t* runs) {
  if (threadIdx.x == 0) *runs += 1;
}

// Every CTA must be on the card at once: there are at most as many as multiprocessors.
__global__ void __launch_bounds__(kThreads, 1) AllSteps(Step even, Step odd, uint32_t* counter, uint32_t begin) {
  for (int i = 0; i < kSteps; ++i) {
    Work(i % 2 == 0 ? even : odd);
    __syncthreads();
    begin += gridDim.x;
    if (threadIdx.x == 0) {
      AddRelease(counter);
      SpinUntil(counter, begin);
    }
    __syncthreads();
  }
}

LaunchShape Shape(int ctas, cudaStream_t stream, bool early) {
  LaunchShape shape;
  shape.grid = dim3(ctas), shape.block = dim3(kThreads), shape.stream = stream, shape.dependent = early;
  return shape;
}

// Microseconds a step, the median of 200 runs after 20.
template <typename Run>
double Time(const Run& run) {
  std::vector<double> times;
  for (int i = 0; i < 220; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - start;
    if (i >= 20) times.push_back(took.count() / kSteps);
  }
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

template <typename Queue>
double TimeGraph(cudaStream_t stream, const Queue& queue) {
  cudaGraph_t graph;
  cudaGraphExec_t run;
  CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  queue();
  CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
  CHECK_CUDA(cudaGraphInstantiate(&run, graph, 0));
  const double time = Time([&] {
    CHECK_CUDA(cudaGraphLaunch(run, stream));
    CHECK_CUDA(cudaStreamSynchronize(stream));
  });
  CHECK_CUDA(cudaGraphExecDestroy(run));
  CHECK_CUDA(cudaGraphDestroy(graph));
  return time;
}

}  // namespace

int main() {
  cudaDeviceProp card;
  CHECK_CUDA(cudaGetDeviceProperties(&card, 0));
  if (card.major < 9) {
    std::printf("%s: kernels do not start early before compute capability 9.0\n", card.name);
    return 1;
  }
  std::printf("%s, microseconds a step\n", card.name);
  cudaStream_t stream;
  CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  uint32_t* flags;  // of each step, then the runs, then the barrier's
  const size_t flag_bytes = sizeof(uint32_t) * kFlagStride * (kSteps + 2);
  CHECK_CUDA(cudaMalloc(&flags, flag_bytes));
  uint32_t *const runs = flags + kFlagStride * kSteps, *const barrier = runs + kFlagStride;
  int wrong = 0;
  for (int kilobytes : {1, 48, 96, 192}) {
    const size_t bytes = size_t{1024} * kilobytes;
    uint4 *x, *y;
    CHECK_CUDA(cudaMalloc(&x, bytes));
    CHECK_CUDA(cudaMalloc(&y, bytes));
    const Step even{x, y, static_cast<int>(bytes / 16)}, odd{y, x, even.count};
    const auto step = [&](int i) { return i % 2 == 0 ? even : odd; };
    const auto begin = [&] {
      CHECK_CUDA(cudaMemset(flags, 0, flag_bytes));
      CHECK_CUDA(cudaMemset(x, 1, bytes));
      CHECK_CUDA(cudaDeviceSynchronize());
    };
    const auto answer = [&] {
      uint32_t word;
      CHECK_CUDA(cudaMemcpy(&word, x, sizeof word, cudaMemcpyDeviceToHost));
      return word;
    };
    for (int ctas : {12, 48, 96, card.multiProcessorCount}) {
      begin();
      const double wait = TimeGraph(stream, [&] {
        for (int i = 0; i < kSteps; ++i) CHECK_CUDA(Launch(Shape(ctas, stream, true), StepAfterWait, step(i)));
      });
      const uint32_t expected = answer();
      begin();
      const double by_flags = TimeGraph(stream, [&] {
        for (int i = 0; i < kSteps; ++i) {
          const uint32_t* const before = i > 0 ? flags + kFlagStride * (i - 1) : nullptr;
          const Counters counters{runs, before, static_cast<uint32_t>(ctas), flags + kFlagStride * i};
          CHECK_CUDA(Launch(Shape(ctas, stream, i > 0), StepAfterFlags, step(i), counters));
        }
        CHECK_CUDA(Launch(Shape(1, stream, false), CountRun, runs));
      });
      const bool alike = answer() == expected;
      begin();
      uint32_t passed = 0;
      const double one = Time([&] {
        CHECK_CUDA(Launch(Shape(ctas, stream, false), AllSteps, even, odd, barrier, passed));
        CHECK_CUDA(cudaStreamSynchronize(stream));
        passed += kSteps * ctas;
      });
      wrong += !alike || answer() != expected;
      std::printf("%3d KiB, %3d CTAs: wait %.2f  flags %.2f  one %.2f%s\n", kilobytes, ctas, wait, by_flags, one,
                  alike && answer() == expected ? "" : "  DIFFERENT");
    }
    CHECK_CUDA(cudaFree(x));
    CHECK_CUDA(cudaFree(y));
  }
  return wrong == 0 ? 0 : 1;
}
