// Every CUDA kernel against plain loops on the card: fresh random inputs, odd sizes, outputs poisoned with NaN first.
//
//   cuda_kernels_check [seed [small|tiny]]   exit status 1 when one fails; small: few and small cases, for a sanitizer;
//                                            tiny: as few as take every kernel through all it does, for the emulation
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "cuda/kernels.h"
#include "cuda/lt.h"
#include "cuda_check_attention.cuh"
#include "cuda_check_launch.cuh"
#include "cuda_check_norm.cuh"
#include "cuda_check_pack.cuh"
#include "cuda_check_report.cuh"
#include "cuda_check_rows.cuh"
#include "cuda_check_states.cuh"
#include "cuda_matrix.cuh"

using namespace ftbert;
using namespace ftbert::cuda;
using namespace ftbert_test;

namespace {

__global__ void PlainGemm(const float* x, const float* w, const float* bias, int n, int k, int act, double* out) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
  if (column >= n) return;
  double sum = 0;
  for (int i = 0; i < k; ++i)
    sum += static_cast<double>(x[static_cast<int64_t>(row) * k + i]) * w[static_cast<int64_t>(column) * k + i];
  sum += bias[column];
  if (act == 1) sum = 0.5 * sum * (1 + erf(sum * 0.70710678118654752));
  if (act == 2) sum = 0.5 * sum * (1 + tanh(0.7978845608028654 * (sum + 0.044715 * sum * sum * sum)));
  if (act == 3) sum = sum > 0 ? sum : 0;
  if (act == 4) sum = tanh(sum);
  out[static_cast<int64_t>(row) * n + column] = sum;
}

void CheckGemm(const Machine& machine, Element in, Element out_type, int m, int n, int k, int act, bool adds = false) {
  Matrix x(in, m, k), w(in, n, k), bias(Element::kFloat, 1, n), xf(Element::kFloat, m, k), wf(Element::kFloat, n, k);
  Matrix x_scale(Element::kFloat, m, 1), w_scale(Element::kFloat, n, 1);
  const bool scaled = in == Element::kFloat8, by_rows = scaled && (m % 2 == 1 || act != 0);  // or by outputs alone
  x.Random(1.f), w.Random(scaled ? 1.f : 1.f / std::sqrt(static_cast<float>(k))), bias.Random(0.5f);
  for (float& v : x_scale.host) v = by_rows ? 0.5f + (generator() % 100) / 100.f : 1.f;
  for (float& v : w_scale.host)
    v = scaled ? (0.5f + (generator() % 100) / 100.f) / std::sqrt(static_cast<float>(k)) : 1.f;
  x_scale.Upload(), w_scale.Upload();
  Constant(w), Constant(bias), Constant(w_scale);
  for (int64_t i = 0; i < m * static_cast<int64_t>(k); ++i) xf.host[i] = x.host[i] * x_scale.host[i / k];
  for (int64_t i = 0; i < n * static_cast<int64_t>(k); ++i) wf.host[i] = w.host[i] * w_scale.host[i / k];
  xf.Upload(), wf.Upload();
  double* plain;
  CHECK_CUDA(cudaMalloc(&plain, sizeof(double) * m * n));
  LaunchShape plain_shape;
  plain_shape.grid = dim3((n + 127) / 128, m);
  plain_shape.block = dim3(128);
  CHECK_CUDA(Launch(plain_shape, PlainGemm, static_cast<const float*>(xf.device), static_cast<const float*>(wf.device),
                    static_cast<const float*>(bias.device), n, k, act, plain));
  std::vector<double> expected(static_cast<size_t>(m) * n);
  CHECK_CUDA(cudaMemcpy(expected.data(), plain, sizeof(double) * expected.size(), cudaMemcpyDeviceToHost));
  cudaFree(plain);
  Matrix out(out_type, m, n), out_scale(Element::kFloat, m, 1);
  for (float& v : out_scale.host) v = (1 + generator() % 3) * 0.1f;  // times 0.5 and 448: no value is larger
  out_scale.Upload();
  Gemm g;
  g.m = m, g.n = n, g.k = k, g.in = in, g.out_type = out_type, g.act = act;
  g.x = x.device, g.ldx = k, g.w = w.device, g.bias = static_cast<float*>(bias.device), g.out = out.device, g.ldo = n;
  if (scaled) g.w_scale = static_cast<float*>(w_scale.device);
  if (by_rows) g.x_scale.values = static_cast<float*>(x_scale.device);
  if (out_type == Element::kFloat8) g.out_scale.values = static_cast<float*>(out_scale.device), g.out_scale.gain = 0.5f;
  // cuBLASLt adds a bias in 16 bits.
  Matrix bias_half(in == Element::kBFloat ? Element::kBFloat : Element::kHalf, 1, n);
  Matrix scratch(Element::kFloat, 1, kLtScratchBytes / 4);
  if (in == Element::kHalf || in == Element::kBFloat) {
    bias_half.host = bias.host;
    bias_half.Upload();
    g.bias_half = bias_half.device;
  }
  g.scratch = scratch.device, g.scratch_bytes = kLtScratchBytes;
  Matrix residual(out_type, m, n);
  if (adds) {
    residual.Random(1.f);
    g.residual = residual.device;
    for (size_t i = 0; i < expected.size(); ++i) expected[i] += residual.host[i];
  }
  for (const Plan& plan : Candidates(machine, g)) {
    out.Poison();
    CHECK_CUDA(RunGemm(machine, plan, g, nullptr));
    const cudaError_t ran = cudaDeviceSynchronize();
    const std::string what = PlanName(plan) + " type " + std::to_string(static_cast<int>(in)) + " " +
                             std::to_string(m) + "x" + std::to_string(n) + "x" + std::to_string(k) + " act " +
                             std::to_string(act) + (adds ? " with residual" : "");
    if (ran != cudaSuccess) {
      std::printf("FAIL %s: %s\n", what.c_str(), cudaGetErrorString(ran));
      std::exit(1);
    }
    std::vector<float> got = out.Download();
    if (out_type == Element::kFloat8) {
      for (int64_t i = 0; i < static_cast<int64_t>(got.size()); ++i) got[i] *= out_scale.host[i / n] * 0.5f;
    }
    Report(what, expected, got, Tolerance(out_type));
  }
}

// The split-K kernel with a residual: each row's own, or rows in another order.
void CheckSplitResidual(const Machine& machine, Element in, int m, int n, int k) {
  const bool fp8 = in == Element::kFloat8;
  const Element half = fp8 ? Element::kHalf : in;
  Matrix x(in, m, k), w(in, n, k), bias(Element::kFloat, 1, n), ones(Element::kFloat, std::max(m, n), 1);
  Matrix xf(Element::kFloat, m, k), wf(Element::kFloat, n, k), out(half, m, n), residual(half, m + 3, n);
  x.Random(1.f), w.Random(1.f), bias.Random(0.5f), residual.Random(std::sqrt(static_cast<float>(k)));
  for (float& v : ones.host) v = 1.f;
  ones.Upload();
  xf.host = x.host, wf.host = w.host;
  xf.Upload(), wf.Upload();
  double* plain;
  CHECK_CUDA(cudaMalloc(&plain, sizeof(double) * m * n));
  LaunchShape plain_shape;
  plain_shape.grid = dim3((n + 127) / 128, m);
  plain_shape.block = dim3(128);
  CHECK_CUDA(Launch(plain_shape, PlainGemm, static_cast<const float*>(xf.device), static_cast<const float*>(wf.device),
                    static_cast<const float*>(bias.device), n, k, 0, plain));
  std::vector<double> product(static_cast<size_t>(m) * n);
  CHECK_CUDA(cudaMemcpy(product.data(), plain, sizeof(double) * product.size(), cudaMemcpyDeviceToHost));
  cudaFree(plain);
  std::vector<int2> order(m);
  for (int i = 0; i < m; ++i) order[i] = make_int2((i * 7 + 3) % (m + 3), -1);
  int2* device_order;
  CHECK_CUDA(cudaMalloc(&device_order, sizeof(int2) * m));
  CHECK_CUDA(cudaMemcpy(device_order, order.data(), sizeof(int2) * m, cudaMemcpyHostToDevice));
  Constant(w), Constant(bias), Constant(ones);
  Gemm g;
  g.m = m, g.n = n, g.k = k, g.in = in, g.out_type = half, g.x = x.device, g.ldx = k, g.w = w.device, g.ldo = n;
  g.bias = static_cast<float*>(bias.device), g.out = out.device, g.residual = residual.device;
  if (fp8) g.x_scale.values = g.w_scale = static_cast<float*>(ones.device);
  int ran = 0;
  for (const Plan& plan : Candidates(machine, g)) {
    if (plan.family != Family::kSplit) continue;
    for (bool ordered : {false, true}) {
      g.residual_rows = ordered ? device_order : nullptr;
      std::vector<double> expected = product;
      for (int64_t i = 0; i < m * int64_t{n}; ++i) {
        expected[i] += residual.host[(ordered ? order[i / n].x : i / n) * int64_t{n} + i % n];
      }
      out.Poison();
      CHECK_CUDA(RunGemm(machine, plan, g, nullptr));
      CHECK_CUDA(cudaDeviceSynchronize());
      Report(PlanName(plan) + (ordered ? " gathered" : "") + " residual type " + std::to_string(static_cast<int>(in)) +
                 " " + std::to_string(m) + "x" + std::to_string(n) + "x" + std::to_string(k),
             expected, out.Download(), Tolerance(half));
      ++ran;
    }
  }
  cudaFree(device_order);
  if (ran == 0) ++failures, std::printf("FAIL no split-K plan adds a residual\n");
}

// Rows of every number of warps, whole and not, and such as a warp takes alone; `several`: rows of which some CTAs take
// several. Then rows whose variance is small beside their mean, or lies in one column.
void CheckNorms(const Machine& machine, Element e, int several) {
  for (int width : {8, 20, 40, 256, 264, 384, 768, 776, 1024, 1280, 1536, 1800, 2048, 2056}) {
    CheckNorm(machine, e, 1 + generator() % 3, width, 1.f);
    CheckNorm(machine, e, 2, width, 1.f, true);
  }
  for (int width : {40, 264, 768, 1024}) {
    CheckNorm(machine, e, several, width, 1.f, false, 0.f, 0.f, width == 768);
    CheckEmbed(machine, e, {5, 1, 3}, width % 3, width);
    CheckEmbed(machine, e, {several, 1, 3}, 3, width);
  }
  CheckEmbed(machine, e, {4, 3}, 1, 20);
  CheckNorm(machine, e, 3, 768, 1.f, true, 8.f);
  CheckNorm(machine, e, 3, 776, 1.f, true, 0.f, 50.f);
}

// Tiles that are not full, one row, several tiles a CTA, K that is no multiple of the stages; for attention every shape
// of tile at each head size, with several short rows in one.
int CheckTiny(const Machine& machine) {
  const char* level = std::getenv("FTBERT_CPU_ISA");
  if (level != nullptr && std::string(level) != "portable") {
    std::printf("skipped: the emulation is the same at every CPU level\n");
    return 77;
  }
  int act = 0;
  for (Element e : {Element::kFloat, Element::kHalf, Element::kBFloat, Element::kFloat8}) {
    CheckGemm(machine, e, e, 1, 80, 48, act++ % 5);
    CheckGemm(machine, e, e == Element::kFloat8 ? Element::kHalf : e, 33, 144, 528, act++ % 5);
    CheckGemm(machine, e, e, 193, 272, 80, act++ % 5);
    if (e == Element::kFloat) continue;
    // Nine slices of K, so that rings of seven stages come round; twice as many where a cluster shares them. In bf16
    // fewer: rings are the same in every type.
    const Element out = e == Element::kFloat8 ? Element::kHalf : e;
    const int slices9 = e == Element::kFloat8 ? 1040 : (e == Element::kHalf ? 528 : 144);
    const int slices17 = e == Element::kFloat8 ? 2064 : (e == Element::kHalf ? 1040 : 272);
    CheckGemm(machine, e, out, 65, 208, slices9, act++ % 5, true);
    CheckGemm(machine, e, out, 65, 208, slices9, 0, true);
    CheckSplitResidual(machine, e, 35, 80, 144);
    CheckGemm(machine, e, out, 70, 208, slices17, 0);
    CheckGemmNorm(machine, e, 197, 512, e == Element::kFloat8 ? 528 : 272, e != Element::kBFloat, e == Element::kHalf);
  }
  CheckBound(40, 48);
  for (Element e : {Element::kFloat, Element::kHalf, Element::kBFloat}) {
    for (int head_size : {32, 64, 128}) {
      CheckAttention(machine, e, 1, head_size, {5, 1, 40}, 3);
      CheckAttention(machine, e, 2, head_size, {33, 1, 1, 65}, 0);
      CheckAttention(machine, e, 3, head_size, {1, 97, 2, 64}, 20);
    }
    CheckAttention(machine, e, 3, 40, {31, 50}, 7);
    CheckAttention(machine, e, 2, 7, {31, 8}, 1);
    CheckAttention(machine, e, 2, 8, {5, 17, 3}, 0);
    CheckAttention(machine, e, 1, 64, {300, 1, 40}, 9, 3.f);
    CheckNorms(machine, e, 13);
    for (int width : {40, 776}) {
      CheckNorm(machine, e, 1027, width, 1.f);
      CheckEmbed(machine, e, {3, 1020}, 4, width);
    }
  }
  CheckRowsAll(machine, 0);
  CheckStatesAll(machine, 0);
  std::printf(failures ? "%d FAILED\n" : "all kernels match\n", failures);
  return failures ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  const Machine machine = FirstCard();
  generator.seed(argc > 1 ? std::atoi(argv[1]) : std::random_device()());
  CheckSpreading();
  if (argc > 2 && std::string(argv[2]) == "tiny") return CheckTiny(machine);
  const bool small = argc > 2;  // under a sanitizer
  int act = 0;
  for (Element e : {Element::kFloat, Element::kHalf, Element::kBFloat, Element::kFloat8}) {
    if (e == Element::kFloat8 && !machine.hopper) continue;
    if (!small && (e == Element::kHalf || e == Element::kBFloat)) {  // where cuBLASLt's choices are kept by class
      CheckGemm(machine, e, e, 2100, 272, 784, 2);
      if (machine.hopper) CheckGemm(machine, e, e, 4700, 768, 768, 0, true);
    }
    for (int m : small ? std::vector<int>{1, 129} : std::vector<int>{1, 7, 32, 97, 129, 512, 1000}) {
      CheckGemm(machine, e, e, m, 80, 48, act++ % 5);
      CheckGemm(machine, e, e == Element::kFloat8 ? Element::kHalf : e, m, 784, 272, act++ % 5);
      if (!small) CheckGemm(machine, e, e == Element::kFloat8 ? Element::kHalf : e, m, 2304, 768, act++ % 5);
      if (!small) CheckGemm(machine, e, e, m, 768, 3072, act++ % 5);
      if (machine.hopper && e != Element::kFloat && m > 64) {
        CheckGemm(machine, e, e == Element::kFloat8 ? Element::kHalf : e, m, 208, 768, 0, true);
      }
    }
  }
  for (Element e : {Element::kFloat, Element::kHalf, Element::kBFloat}) {
    CheckAttention(machine, e, 3, 64, {1, 7, 97, 129, 2, 64}, 20);
    CheckAttention(machine, e, 2, 32, {33, 1, 1, 65}, 0);
    CheckAttention(machine, e, 2, 128, {70, 130, 5}, 7);
    CheckAttention(machine, e, 3, 40, {31, 90}, 7);
    CheckAttention(machine, e, 5, 7, {31, 40}, 1);
    CheckAttention(machine, e, 4, 8, {5, 17, 3}, 0);
    CheckAttention(machine, e, 2, 96, {50}, 0);
    if (!small) CheckAttention(machine, e, 12, 64, {512, 384, 16}, 0);
    CheckAttention(machine, e, 3, 64, {1, 7, 97, 129, 2, 64}, 20, 3.f);
    if (!small) CheckAttention(machine, e, 12, 64, std::vector<int>(60, 31), 4);
    if (!small) CheckAttention(machine, e, 1, 64, {128, 128, 1, 1023, 77, 500}, 65);
    for (int width : {97, 128, 1000}) {
      CheckNorm(machine, e, 1 + generator() % 9, width, 1.f);
      CheckNorm(machine, e, 1 + generator() % 9, width, 1.f, true);
    }
    for (int rows : small ? std::vector<int>{machine.sms + 5} : std::vector<int>{machine.sms + 5, 1021, 2500}) {
      CheckNorms(machine, e, rows);
    }
    if (e != Element::kFloat) CheckNorm(machine, e, 5, 768, 8000.f);  // sums beyond what fp16 holds
  }
  for (Element e : {Element::kHalf, Element::kBFloat, Element::kFloat8}) {
    if (!machine.hopper) break;
    const Element out = e == Element::kFloat8 ? Element::kHalf : e;
    if (small) {  // cuBLASLt's kernels for such a K are not clean under racecheck
      Machine own = machine;
      own.lt = false;
      CheckGemm(own, e, out, 65, 112, 1552, 0);
    }
    for (int m : small ? std::vector<int>{} : std::vector<int>{1, 193, 512, 1030}) {
      CheckGemm(machine, e, out, m, 768, 1536, 0);
    }
  }
  for (Element e : {Element::kHalf, Element::kBFloat, Element::kFloat8}) {
    for (int n : {512, 768, 1024}) {
      const int m = 1 + static_cast<int>(generator() % 600);
      if (machine.hopper) CheckGemmNorm(machine, e, m, n, 272, e != Element::kBFloat, n == 512);
      if (machine.hopper && !small) CheckGemmNorm(machine, e, 6000 - m, n, 48, e == Element::kFloat8, n == 768);
    }
  }
  if (machine.hopper) {
    for (Element e : {Element::kHalf, Element::kBFloat, Element::kFloat8}) {
      for (int m : small ? std::vector<int>{1, 65} : std::vector<int>{1, 5, 33, 64, 128}) {
        CheckSplitResidual(machine, e, m, 80, 48);
        if (!small) CheckSplitResidual(machine, e, m, 768, 768);
      }
    }
  }
  CheckRowsAll(machine, small ? 1 : 2);
  CheckStatesAll(machine, small ? 1 : 2);
  CheckBound(40, 48), CheckBound(768, 768);
  std::printf(failures ? "%d FAILED\n" : "all kernels match\n", failures);
  return failures ? 1 : 0;
}
