// Matrix products: out (M, N) = act(x (M, K) w (N, K)^T + bias) [+ residual], and the kernels that can compute them.
//
// Both operands are K-major (row-major x, weights stored output by output), rows 16-byte aligned, N and K multiples of
// 16 (padding columns hold zeros, padding weights too). A Plan names a kernel; PlanFor and Search choose it.
#ifndef FTBERT_CUDA_GEMM_H_
#define FTBERT_CUDA_GEMM_H_

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

namespace ftbert {
namespace cuda {

enum class Act : int { kNone = 0, kGeluErf = 1, kGeluTanh = 2, kRelu = 3, kTanh = 4 };

constexpr float kFloat8Max = 448.f;  // the largest e4m3

__host__ __device__ constexpr int RoundUp(int value, int multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
__host__ __device__ constexpr int CeilDiv(int value, int divisor) { return (value + divisor - 1) / divisor; }

enum class Element : int { kFloat = 0, kHalf = 1, kBFloat = 2, kFloat8 = 3 };

inline int ElementBytes(Element e) { return e == Element::kFloat ? 4 : (e == Element::kFloat8 ? 1 : 2); }

// A scale of each row m: gain * values[m] + offset; no values: 1.
struct RowScale {
  const float* values = nullptr;
  float gain = 1.f;
  float offset = 0.f;
};

struct Gemm {
  int m = 0, n = 0, k = 0;
  Element in = Element::kHalf;   // of x and w; fp8 products come out as out_type with fp32 accumulation
  Element out_type = Element::kHalf;
  const void* x = nullptr;       // (m, ldx)
  int64_t ldx = 0;
  const void* w = nullptr;       // (n, k)
  const float* bias = nullptr;   // (n,)
  const void* bias_half = nullptr;  // (n,) in the type of `in`, for kLt; null: not there
  void* out = nullptr;           // (m, ldo)
  int64_t ldo = 0;
  int act = 0;                   // Act
  const void* residual = nullptr;  // (m, ldo) in out_type, added last; in kSplit, and kWgmma without act; no fp8 out
  const int2* residual_rows = nullptr;  // (m,) kSplit: the residual of row m is row residual_rows[m].x; null: row m
  RowScale x_scale;              // fp8 in: x = stored * scale
  const float* w_scale = nullptr;  // fp8 in: (n,)
  RowScale out_scale;            // fp8 out: stored = value / scale, which is 2^-15 at least (1 / scale fits into fp16)
  bool reversed = false;           // kWgmma: rows are taken from the last to the first
  void* scratch = nullptr;         // cuBLASLt's
  int64_t scratch_bytes = 0;
  void* counter = nullptr;         // kLtCounterBytes of scratch for this product alone; null: there are none
  // Several products of one shape, in kMma alone: x, w, bias (or null: none) and out of each lie so many elements
  // behind those of the one before.
  int batches = 1;
  int64_t x_step = 0, w_step = 0, bias_step = 0, out_step = 0;
  const void* prefetch = nullptr;  // weights needed soon, brought into L2 while this product runs
  int64_t prefetch_bytes = 0;
};

enum class Family : int { kSimt = 0, kMma = 1, kWgmma = 2, kSplit = 3, kLt = 4, kShared = 5 };

// What runs a product: a kernel of a family and, for kSplit and kShared, how many CTAs share K.
struct Plan {
  Family family = Family::kMma;
  int variant = 0;
  int split = 1;
  bool operator==(const Plan& o) const { return family == o.family && variant == o.variant && split == o.split; }
};

struct Machine {
  int device = 0;
  int sms = 0;
  int norm_clusters[5] = {};  // RunGemmNorm's clusters at once, by their CTAs
  // Shared memory of a multiprocessor, what it sets aside for each CTA, and what a CTA may have, bytes; 0: not known.
  int sm_shared = 0, shared_reserved = 0, cta_shared = 0;
  int capability = 0;        // 90 for 9.0
  bool hopper = false;       // wgmma kernels are in this build and run here
  bool dependent_launch = false;  // kernels start before the ones before them have ended; their code waits
  // Switches for finding faults (FTBERT_CUDA_DISABLE); all as they are here otherwise.
  bool graphs = true, watching = true, clusters = true, prefetch = true;
  bool lt = true;
  bool tiles = true;  // short rows lie in tiles, for attend_rows.cu
  std::string switches;  // as given
  std::string name;
  size_t memory = 0;
};

// Kernel launches. Each returns the launch's error; cudaErrorNotSupported: nothing was launched, the plan cannot run
// this product.
cudaError_t RunGemm(const Machine& machine, const Plan& plan, const Gemm& gemm, cudaStream_t stream);

// Products of similar height share a choice: the largest height of m's class. Classes are narrow where the number of
// waves matters.
int HeightClass(int m);

// The plan known to be good for shapes like this one without measuring.
Plan PlanFor(const Machine& machine, const Gemm& gemm);
// The same without cuBLASLt.
Plan OwnPlanFor(const Machine& machine, const Gemm& gemm);
// RunGemm; where the plan cannot run this product after all, one of our own kernels does.
cudaError_t RunGemmOrOwn(const Machine& machine, const Plan& plan, const Gemm& gemm, cudaStream_t stream);
// Whether a plan, wherever it came from, can run this product: not every family adds a residual.
bool CanRun(const Plan& plan, const Gemm& gemm);
// Everything that can run it, for Search.
std::vector<Plan> Candidates(const Machine& machine, const Gemm& gemm);
std::string PlanName(const Plan& plan);

// What the code that runs on the current card was built for. hopper: Hopper's own instructions (90a; for 90 the kernels
// that need them are empty). waits: for 9.0 or later, so that kernels wait for the one before; code of an older
// architecture, compiled for this card by its driver, does not, and must not start early.
cudaError_t FindCode(bool* hopper, bool* waits);
// Machine::norm_clusters of the current card.
cudaError_t FindNormClusters(int (&clusters)[5]);

// One per family (gemm_<family>.cu).
cudaError_t RunSimt(const Machine& machine, const Gemm& gemm, cudaStream_t stream);
cudaError_t RunMma(const Machine& machine, int variant, const Gemm& gemm, cudaStream_t stream);
cudaError_t RunWgmmaHalf(const Machine& machine, int variant, const Gemm& gemm, cudaStream_t stream);
cudaError_t RunWgmmaBFloat(const Machine& machine, int variant, const Gemm& gemm, cudaStream_t stream);
cudaError_t RunWgmmaFloat8(const Machine& machine, int variant, const Gemm& gemm, cudaStream_t stream);
cudaError_t RunSplit(const Machine& machine, int variant, int split, const Gemm& gemm, cudaStream_t stream);
cudaError_t RunSharedK(const Machine& machine, int variant, int split, const Gemm& gemm, cudaStream_t stream);

// Tile of each wgmma variant: rows (a CTA's), columns, whether two warpgroups alternate over tiles (else they share
// one), how many CTAs of a cluster share the weights' tiles, and whether the code of a tile's end with an activation is
// short: gone through step after step, instead of written out for the whole tile. Then it is fetched sooner, and is
// slower once it is there.
struct WgmmaTile {
  int rows, columns;
  bool alternate;
  int cluster;
  bool compact = false;
};
constexpr WgmmaTile kWgmmaTiles[] = {{128, 128, true, 1},  {128, 128, true, 2},  {128, 256, false, 1},
                                     {128, 192, false, 1}, {128, 128, false, 1}, {128, 96, false, 1},
                                     {128, 64, false, 1},  {64, 256, true, 2},   {64, 96, true, 1},
                                     {128, 144, false, 1}, {192, 256, false, 1}, {192, 192, false, 1},
                                     {128, 128, true, 1, true}};
// Tiles that are a CTA's only one mostly: their ends do without the copy engine, and are compact, too.
constexpr bool ForFewRows(const WgmmaTile& tile) {
  return tile.alternate ? tile.columns < 128 : tile.rows <= 128 && tile.columns < 256;
}
constexpr int kWgmmaVariants = sizeof(kWgmmaTiles) / sizeof(kWgmmaTiles[0]);

// Clusters that run at once.
inline int ClustersAtOnce(const Machine& machine, const WgmmaTile& tile) {
  return tile.cluster > 1 && !machine.clusters ? 0 : machine.sms / tile.cluster;
}
// What a cluster works on at a time, how many of it a product has.
inline int ClusterTiles(const WgmmaTile& tile, const Gemm& g) {
  return CeilDiv(g.n, tile.columns) * CeilDiv(g.m, tile.rows * tile.cluster);
}

// Up to so many rows products start while the kernels before them still run: timing one alone says little, and tuning
// keeps the rule.
constexpr int kRuledRows = 128;

// Tokens of a tile of the split-K kernel.
constexpr int kSplitTokens[] = {32, 64};
constexpr int kSplitVariants = 2;

// Tiles whose K a cluster shares: their columns, the rows of a variant, and how many CTAs may be in the cluster.
constexpr int kSharedColumns = 96;
constexpr int SharedRows(int variant) { return 64 * (1 + variant); }
struct SharedTile {
  int variant, split;
};
constexpr SharedTile kSharedTiles[] = {{1, 2}, {0, 2}, {0, 3}, {0, 6}};

// Launch with the attribute that lets the kernel start before the one before it has ended.
struct LaunchShape {
  dim3 grid, block;
  size_t shared = 0;
  cudaStream_t stream = nullptr;
  int cluster = 1;
  bool dependent = false;
};

// Lets `kernel` use `bytes` of shared memory on this device, once; `done` holds a bit for each device.
inline cudaError_t AllowShared(const Machine& machine, const void* kernel, int bytes, std::atomic<uint64_t>* done) {
  const uint64_t bit = uint64_t{1} << (machine.device & 63);
  if (done->load(std::memory_order_acquire) & bit) return cudaSuccess;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess) done->fetch_or(bit, std::memory_order_release);
  return error;
}

// Lets `kernel`, whose own arrays take `fixed` bytes of shared memory, use `bytes` more, or all there is: how much it
// takes to spread its CTAs (SpreadShared) follows from how many there are.
inline cudaError_t AllowSpreading(const Machine& machine, const void* kernel, int bytes, std::atomic<uint64_t>* done,
                                  int fixed = 0) {
  const int most = machine.cta_shared - fixed;
  return AllowShared(machine, kernel, most > bytes ? most : bytes, done);
}

// The dynamic shared memory to ask for, `bytes` at least, for no multiprocessor to take more than its share of a
// kernel's CTAs. One that starts early finds only some multiprocessors free, which take as many CTAs as find room,
// while those that are free soon after get none; where each has more than kMostSpread, there are enough for all.
constexpr int kMostSpread = 4;
inline size_t SpreadShared(const Machine& machine, dim3 grid, int bytes, int fixed = 0) {
  const int64_t ctas = static_cast<int64_t>(grid.x) * grid.y * grid.z;
  const int64_t each = machine.sms > 0 ? (ctas + machine.sms - 1) / machine.sms : 0;
  if (!machine.dependent_launch || machine.sm_shared == 0 || each < 1 || each > kMostSpread) return bytes;
  const int share = machine.sm_shared / static_cast<int>(each) - machine.shared_reserved;
  const int most = (share < machine.cta_shared ? share : machine.cta_shared) - fixed;
  return most > bytes ? most / 128 * 128 : bytes;
}

// How many clusters of `ctas` CTAs of `threads` threads with `shared` bytes each the current card runs at once.
template <typename Kernel>
cudaError_t FindClusters(Kernel kernel, int ctas, int threads, int shared, int* clusters) {
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = ctas;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(ctas * 256);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.attrs = &cluster;
  config.numAttrs = 1;
  return cudaOccupancyMaxActiveClusters(clusters, kernel, &config);
}

template <typename... Parameters, typename... Values>
cudaError_t Launch(const LaunchShape& shape, void (*kernel)(Parameters...), Values... values) {
  cudaLaunchAttribute attributes[2];
  int count = 0;
  if (shape.dependent) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = shape.cluster;
    attributes[count].val.clusterDim.y = 1;
    attributes[count++].val.clusterDim.z = 1;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared;
  config.stream = shape.stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(values)...);
}

}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_CUDA_GEMM_H_
