// Times the CPU engine's parts against the peak that this machine's arithmetic units reach in the same run.
//
//   bench_kernels [--threads N] [--precision P] [--seconds S] [--case TEXT] [--json FILE] [part ...]
//
//   parts: gemm, model (default: both). --case runs only the model cases whose name contains TEXT.
//
//   peak    (always) register-only multiply-adds, one core
//   gemm    the fp32 product alone, one core, at BERT-base's four shapes, T from 16 to 4096, as a fraction of the peak
//   model   BERT-base of random weights through Engine::Run: 1 x 32, 1 x 128, 8 x 128, 32 x 128, and 256 texts of
//           lengths lognormal(median 40, sigma 0.6) clipped to 8..128; GFLOP/s counts what padding-free arithmetic
//           needs for every layer in full (the last layer's saving counts as speed)
//
// FTBERT_CPU_ISA chooses the instruction set. Pin it (taskset) to the cores you mean.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "../tests/cpp/cpu_model.h"
#include "cpu/isa.h"
#include "cpu/linear.h"

namespace {

using namespace ftbert;
using Clock = std::chrono::steady_clock;

double Now() { return std::chrono::duration<double>(Clock::now().time_since_epoch()).count(); }

double seconds_per_case = 1.0;
std::string wanted_case;
std::string json;

void Record(const std::string& name, const std::string& fields) {
  json += (json.empty() ? "" : ",\n  ") + std::string("{\"case\": \"") + name + "\", " + fields + "}";
}

std::string Number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

struct Times {
  double best = 1e30, median = 0;
};

Times Repeat(const std::function<void()>& body) {
  body();
  std::vector<double> all;
  const double end = Now() + seconds_per_case;
  while (all.size() < 3 || (Now() < end && all.size() < 1000)) {
    const double start = Now();
    body();
    all.push_back(Now() - start);
  }
  std::sort(all.begin(), all.end());
  return Times{all.front(), all[all.size() / 2]};
}

double MeasurePeak(const cpu::Kernels& kernels) {
  constexpr int64_t kRounds = 2000000;
  volatile float sink = 0;
  const Times times = Repeat([&] { sink = sink + kernels.peak(kRounds); });
  return 2.0 * kRounds * kernels.peak_chains * kernels.lanes / times.best;
}

void BenchGemm(cpu::Isa isa, double peak) {
  const cpu::LinearKernel& kernel = *cpu::Fp32Kernel(isa);
  const int shapes[][2] = {{768, 2304}, {768, 768}, {768, 3072}, {3072, 768}};
  for (const auto& shape : shapes) {
    const int32_t K = shape[0], N = shape[1];
    std::vector<float> values(static_cast<size_t>(K) * N), bias(N, 0.1f);
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 1013) * 1e-4f - 0.05f;
    SourceMatrix source;
    source.data = values.data();
    source.rows = K;
    source.cols = N;
    source.bias = bias.data();
    cpu::PackedMatrix packed;
    if (!kernel.Pack({source}, &packed).ok()) std::exit(1);
    std::printf("gemm %4d x %4d, of peak:", K, N);
    for (int32_t T : {16, 32, 64, 128, 512, 1024, 4096}) {
      const size_t in_stride = K + 16, out_stride = N + 16;
      cpu::Buffer in, out;
      if (!in.Allocate(T * in_stride * 4) || !out.Allocate(T * out_stride * 4)) std::exit(1);
      std::fill_n(in.as<float>(), T * in_stride, 0.01f);
      const int32_t block = kernel.block_rows(K, N);
      const Times times = Repeat([&] {
        for (int32_t row = 0; row < T; row += block) {
          cpu::Tile tile;
          tile.in = in.as<float>() + row * in_stride;
          tile.in_stride = in_stride * sizeof(float);
          tile.rows = std::min(block, T - row);
          tile.panel_end = static_cast<int32_t>(packed.panels.size());
          tile.k_end = K;
          tile.out = out.as<float>() + row * out_stride;
          tile.out_stride = out_stride;
          kernel.Compute(packed, tile);
        }
      });
      const double rate = 2.0 * T * K * N / times.median;
      std::printf("  T=%d %.3f", T, rate / peak);
      Record("gemm", "\"K\": " + std::to_string(K) + ", \"N\": " + std::to_string(N) + ", \"T\": " + std::to_string(T) +
                         ", \"gflops\": " + Number(rate / 1e9) + ", \"of_peak\": " + Number(rate / peak));
    }
    std::printf("\n");
    std::fflush(stdout);
  }
}

std::vector<int32_t> LognormalLengths(int count) {
  std::mt19937 random(7);
  std::lognormal_distribution<double> length(std::log(40.0), 0.6);
  std::vector<int32_t> lengths(count);
  for (int32_t& value : lengths)
    value = static_cast<int32_t>(std::min(128.0, std::max(8.0, std::round(length(random)))));
  return lengths;
}

void BenchModel(int threads, Precision precision, double peak) {
  Config config;
  config.vocab_size = 21128;
  config.hidden_size = 768;
  config.num_layers = 12;
  config.num_heads = 12;
  config.intermediate_size = 3072;
  config.max_positions = 512;
  config.type_vocab_size = 2;
  config.num_labels = 5;
  config.activation = Activation::kGeluErf;
  std::shared_ptr<Engine> engine;
  {
    const ftbert_test::RandomModel model(config);
    const double start = Now();
    const Status status = model.Build("cpu", threads, &engine, precision);
    if (!status.ok()) {
      std::fprintf(stderr, "%s\n", status.message().c_str());
      std::exit(1);
    }
    std::printf("%s\nbuilt in %.2f s\n", engine->Describe().c_str(), Now() - start);
  }
  const struct {
    const char* name;
    std::vector<int32_t> lengths;
    int rows_per_run;
  } cases[] = {{"1 x 16", {16}, 1},
               {"1 x 32", {32}, 1},
               {"1 x 128", {128}, 1},
               {"8 x 128", std::vector<int32_t>(8, 128), 8},
               {"32 x 128", std::vector<int32_t>(32, 128), 32},
               {"1 x 512", {512}, 1},
               {"256 texts", LognormalLengths(256), 64}};
  for (const auto& item : cases) {
    if (std::string(item.name).find(wanted_case) == std::string::npos) continue;
    double flops = 0;
    std::vector<ftbert_test::RandomBatch> batches;
    for (size_t begin = 0; begin < item.lengths.size(); begin += item.rows_per_run) {
      const size_t end = std::min(item.lengths.size(), begin + item.rows_per_run);
      const std::vector<int32_t> some(item.lengths.begin() + begin, item.lengths.begin() + end);
      batches.emplace_back(config, some);
      for (int32_t length : some) {
        flops += 12.0 * length * (2.0 * (4 * 768 * 768 + 2 * 768 * 3072) + 4.0 * length * 768);
      }
    }
    ftbert_test::Answers answers;
    std::vector<float> logits(item.lengths.size() * config.num_labels);
    const Times times = Repeat([&] {
      for (const auto& batch : batches) {
        Outputs outputs;
        outputs.logits = logits.data();
        if (!engine->Run(batch.view(), outputs).ok()) std::exit(1);
      }
    });
    std::printf("%-10s best %9.3f ms  median %9.3f ms  %7.1f GFLOP/s  %.3f of peak\n", item.name, times.best * 1e3,
                times.median * 1e3, flops / times.median / 1e9, flops / times.median / peak / threads);
    std::fflush(stdout);
    Record(item.name, "\"best_ms\": " + Number(times.best * 1e3) + ", \"median_ms\": " + Number(times.median * 1e3) +
                          ", \"gflops\": " + Number(flops / times.median / 1e9) + ", \"of_peak\": " +
                          Number(flops / times.median / peak / threads) + ", \"threads\": " + std::to_string(threads));
  }
}

}  // namespace

int main(int argc, char** argv) {
  int threads = 1;
  std::string json_path, parts;
  Precision precision = Precision::kFloat32;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--threads" && i + 1 < argc) {
      threads = std::atoi(argv[++i]);
    } else if (argument == "--seconds" && i + 1 < argc) {
      seconds_per_case = std::atof(argv[++i]);
    } else if (argument == "--case" && i + 1 < argc) {
      wanted_case = argv[++i];
    } else if (argument == "--json" && i + 1 < argc) {
      json_path = argv[++i];
    } else if (argument == "--precision" && i + 1 < argc) {
      const std::string name = argv[++i];
      precision = name == "int8" ? Precision::kInt8 : name == "bf16" ? Precision::kBFloat16 : Precision::kFloat32;
    } else {
      parts += " " + argument;
    }
  }
  const auto wanted = [&](const char* part) { return parts.empty() || parts.find(part) != std::string::npos; };
  cpu::Isa isa;
  const Status status = cpu::ChooseIsa(&isa);
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.message().c_str());
    return 1;
  }
  const cpu::Kernels& kernels = *cpu::KernelsFor(isa);
  const double peak = MeasurePeak(kernels);
  std::printf("%s: peak of one core %.1f GFLOP/s (fp32, register-only multiply-adds)\n", cpu::IsaName(isa), peak / 1e9);
  Record("peak", "\"isa\": \"" + std::string(cpu::IsaName(isa)) + "\", \"gflops\": " + Number(peak / 1e9));
  if (wanted("gemm")) BenchGemm(isa, peak);
  if (wanted("model")) BenchModel(threads, precision, peak);
  if (!json_path.empty()) {
    std::FILE* file = std::fopen(json_path.c_str(), "w");
    if (file == nullptr) {
      std::perror(json_path.c_str());
      return 1;
    }
    std::fprintf(file, "[\n  %s\n]\n", json.c_str());
    std::fclose(file);
  }
  return 0;
}
