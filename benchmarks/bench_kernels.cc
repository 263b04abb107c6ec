// Times the CPU engine's parts against the peak that this machine's arithmetic units reach in the same run.
//
//   bench_kernels [--threads N,...] [--precision P,...] [--seconds S] [--least N] [--case TEXT] [--json FILE]
//                 [part ...]
//
//   parts: gemm, model (default: both). Each case runs S seconds (1) and N times (3) at least.
//   --case A,B runs only the model cases whose name contains one of the texts. Every precision runs
//   with every number of threads, on one set of random weights.
//
//   peak    (always) register-only multiply-adds: one core, then so many threads at once, which is what the model's
//           share is of: two threads on one core's two hardware threads have the peak of one core between them. On a
//           processor with AMX the peaks of its bf16 and int8 products too, of random tiles
//   gemm    the product alone in each precision, one core, BERT-base's four shapes, T from 16 to 4096, inputs prepared:
//           multiply-adds a second and, where the peak is that of the precision's own unit, the fraction of it
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
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__) && defined(__has_include)
#if __has_include(<amxtileintrin.h>)
#include <immintrin.h>
#define FTBERT_BENCH_AMX
#endif
#endif

#include "../tests/cpp/cpu_model.h"
#include "cpu/isa.h"
#include "cpu/linear.h"

namespace {

using namespace ftbert;
using Clock = std::chrono::steady_clock;

double Now() { return std::chrono::duration<double>(Clock::now().time_since_epoch()).count(); }

double seconds_per_case = 1.0;
size_t least_runs = 3;
std::string wanted_case;
std::string json, json_path;

// Written anew with every record: a run that is cut off leaves what it had.
void Record(const std::string& name, const std::string& fields) {
  json += (json.empty() ? "" : ",\n  ") + std::string("{\"case\": \"") + name + "\", " + fields + "}";
  if (json_path.empty()) return;
  std::FILE* file = std::fopen(json_path.c_str(), "w");
  if (file == nullptr) {
    std::perror(json_path.c_str());
    std::exit(1);
  }
  std::fprintf(file, "[\n  %s\n]\n", json.c_str());
  std::fclose(file);
}

std::vector<std::string> Split(const std::string& list) {
  std::vector<std::string> items(1);
  for (const char c : list) {
    if (c == ',') {
      items.emplace_back();
    } else {
      items.back() += c;
    }
  }
  return items;
}

std::string Number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

struct Times {
  double best = 1e30, median = 0;
};

// Runs the body once, then for the time and the number of times asked for; a first run of a second or more counts too.
Times Repeat(const std::function<void()>& body) {
  std::vector<double> all;
  const auto run = [&] {
    const double start = Now();
    body();
    all.push_back(Now() - start);
  };
  run();
  if (all.front() < 1.0) all.clear();
  const double end = Now() + seconds_per_case;
  while (all.size() < least_runs || (Now() < end && all.size() < 1000)) run();
  std::sort(all.begin(), all.end());
  return Times{all.front(), all[all.size() / 2]};
}

// The rate at which `threads` threads run body(rounds) at once, so many operations a round; the best of several.
double Rate(int threads, int64_t rounds, double operations, const std::function<void(int64_t)>& body) {
  const Times times = Repeat([&] {
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back([&] { body(rounds); });
    body(rounds);
    for (std::thread& thread : others) thread.join();
  });
  return operations * static_cast<double>(rounds) * threads / times.best;
}

double MeasurePeak(const cpu::Kernels& kernels, int threads) {
  return Rate(threads, 8000000, 2.0 * kernels.peak_chains * kernels.lanes, [&](int64_t rounds) {
    volatile float sink = kernels.peak(rounds);
    (void)sink;
  });
}

#ifdef FTBERT_BENCH_AMX
// Four tiles of 1 KiB. As bf16: both signs, 1/8 to 4.
const uint16_t* RandomTiles(bool bf16) {
  static const std::vector<uint16_t> tiles = [] {
    std::mt19937 random(11);
    std::vector<uint16_t> values(2 * 4 * 512);
    for (uint16_t& value : values) value = static_cast<uint16_t>(random());
    for (size_t i = 0; i < values.size() / 2; ++i) values[i] = (values[i] & 0x81ff) | 0x3e00;
    return values;
  }();
  return tiles.data() + (bf16 ? 0 : tiles.size() / 2);
}

// Four independent tiles of sums, two of inputs, two of weights: what a kernel at its best does between loads. Products
// of zeros would be faster than any others.
#define FTBERT_AMX_PEAK(name, product, bf16)                                                            \
  __attribute__((target("amx-tile,amx-bf16,amx-int8"))) void name(int64_t rounds) {                     \
    const uint16_t* tiles = RandomTiles(bf16);                                                          \
    struct alignas(64) {                                                                                \
      uint8_t palette = 1, start_row = 0, reserved[14] = {};                                            \
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};                                            \
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};                                              \
    } shapes;                                                                                           \
    asm volatile("" ::"m"(shapes)); /* else only eight bytes of it are stored */                          \
    _tile_loadconfig(&shapes);                                                                          \
    _tile_zero(0);                                                                                      \
    _tile_zero(1);                                                                                      \
    _tile_zero(2);                                                                                      \
    _tile_zero(3);                                                                                      \
    _tile_loadd(4, tiles, 64);                                                                          \
    _tile_loadd(5, tiles + 512, 64);                                                                    \
    _tile_loadd(6, tiles + 1024, 64);                                                                   \
    _tile_loadd(7, tiles + 1536, 64);                                                                   \
    for (int64_t i = 0; i < rounds; ++i) {                                                              \
      product(0, 4, 6);                                                                                 \
      product(1, 4, 7);                                                                                 \
      product(2, 5, 6);                                                                                 \
      product(3, 5, 7);                                                                                 \
    }                                                                                                   \
    _tile_release();                                                                                    \
  }
FTBERT_AMX_PEAK(PeakAmxBf16, _tile_dpbf16ps, true)
FTBERT_AMX_PEAK(PeakAmxInt8, _tile_dpbusd, false)
#undef FTBERT_AMX_PEAK
#endif

// Peaks of one thread, by unit.
std::map<std::string, double> peaks;

void RecordPeak(const char* unit, int threads, double rate) {
  if (threads == 1) peaks[unit] = rate;
  std::printf("peak of %s, %d thread%s: %.1f Gop/s\n", unit, threads, threads == 1 ? "" : "s at once", rate / 1e9);
  Record("peak", std::string("\"unit\": \"") + unit + "\", \"threads\": " + std::to_string(threads) +
                     ", \"gflops\": " + Number(rate / 1e9));
}

void MeasureAmxPeaks(cpu::Isa isa, int threads) {
#ifdef FTBERT_BENCH_AMX
  if (isa < cpu::Isa::kAmx) return;
  RecordPeak("amx bf16", threads, Rate(threads, 200000, 4 * 2.0 * 16 * 16 * 32, PeakAmxBf16));
  RecordPeak("amx int8", threads, Rate(threads, 200000, 4 * 2.0 * 16 * 16 * 64, PeakAmxInt8));
#else
  (void)isa, (void)threads;
#endif
}

const cpu::LinearKernel& KernelOf(cpu::Isa isa, const std::string& precision) {
  return precision == "int8"   ? *cpu::Int8Kernel(isa)
         : precision == "bf16" ? *cpu::Bf16Kernel(isa)
                               : *cpu::Fp32EncoderKernel(isa);
}

void BenchGemm(cpu::Isa isa, const std::string& precision) {
  const cpu::LinearKernel& kernel = KernelOf(isa, precision);
  // fp32 by AMX takes six products of bf16.
  const bool amx = kernel.isa() == cpu::Isa::kAmx, parts = amx && precision == "fp32";
  const std::string unit = parts ? "amx bf16" : amx ? "amx " + precision : precision == "fp32" ? "fp32" : "";
  const double peak = peaks.count(unit) != 0 ? peaks.at(unit) / (parts ? 6 : 1) : 0;
  const int shapes[][2] = {{768, 2304}, {768, 768}, {768, 3072}, {3072, 768}};
  std::printf("%s %s, 10^9 multiply-adds/s%s\n", precision.c_str(), cpu::IsaName(kernel.isa()),
              peak > 0 ? " (of peak)" : "");
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
    std::printf("gemm %4d x %4d:", K, N);
    for (int32_t T : {16, 32, 64, 128, 512, 1024, 4096}) {
      const size_t in_stride = K + 16, out_stride = N + 16;
      cpu::Buffer in, prepared, out;
      const int32_t group = kernel.group_rows();
      const size_t prepared_stride = kernel.input_row_bytes(K);
      if (!in.Allocate(T * in_stride * 4) || !out.Allocate(T * out_stride * 4) ||
          !prepared.Allocate((T + group - 1) / group * group * prepared_stride)) {
        std::exit(1);
      }
      for (size_t i = 0; i < T * in_stride; ++i) {
        in.as<float>()[i] = static_cast<float>(i * 2654435761u % 2003) * 1e-3f - 1.0f;
      }
      if (prepared_stride > 0) kernel.Prepare(in.as<float>(), in_stride, T, K, prepared.data(), prepared_stride);
      const bool feed_forward = N != K && N != 3 * K;
      const int32_t block = feed_forward ? kernel.feed_forward_rows() : kernel.block_rows();
      const Times times = Repeat([&] {
        for (int32_t row = 0; row < T; row += block) {
          cpu::Tile tile;
          tile.in = in.as<float>() + row * in_stride;
          tile.in_stride = in_stride * sizeof(float);
          if (prepared_stride > 0) {
            tile.in = prepared.as<char>() + kernel.RowOffset(row, prepared_stride);
            tile.in_stride = prepared_stride;
          }
          tile.rows = std::min(block, T - row);
          tile.panel_end = static_cast<int32_t>(packed.panels.size());
          tile.k_end = K;
          tile.out = out.as<float>() + row * out_stride;
          tile.out_stride = out_stride;
          kernel.Compute(packed, tile);
        }
      });
      const double rate = 2.0 * T * K * N / times.median;
      std::printf("  T=%d %.1f", T, rate / 2e9);
      if (peak > 0) std::printf(" (%.3f)", rate / peak);
      Record("gemm", "\"K\": " + std::to_string(K) + ", \"N\": " + std::to_string(N) + ", \"T\": " + std::to_string(T) +
                         ", \"precision\": \"" + precision + "\", \"gflops\": " + Number(rate / 1e9) +
                         (peak > 0 ? ", \"of_peak\": " + Number(rate / peak) : ""));
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

Config BertBase() {
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
  return config;
}

// `peak` is that of all the threads together.
void BenchModel(const ftbert_test::RandomModel& model, int threads, Precision precision, const std::string& name,
                double peak) {
  const Config& config = model.config;
  std::shared_ptr<Engine> engine;
  {
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
    const std::vector<std::string> texts = Split(wanted_case);
    if (std::none_of(texts.begin(), texts.end(), [&](const std::string& text) {
          return std::string(item.name).find(text) != std::string::npos;
        })) {
      continue;
    }
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
    std::printf("%-10s best %9.3f ms  median %9.3f ms  %7.1f GFLOP/s  %.3f of fp32 peak\n", item.name, times.best * 1e3,
                times.median * 1e3, flops / times.median / 1e9, flops / times.median / peak);
    std::fflush(stdout);
    Record(item.name, "\"best_ms\": " + Number(times.best * 1e3) + ", \"median_ms\": " + Number(times.median * 1e3) +
                          ", \"gflops\": " + Number(flops / times.median / 1e9) + ", \"of_peak\": " +
                          Number(flops / times.median / peak) + ", \"threads\": " + std::to_string(threads) +
                          ", \"precision\": \"" + name + "\"");
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::string parts, thread_list = "1", precision_list = "fp32";
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--threads" && i + 1 < argc) {
      thread_list = argv[++i];
    } else if (argument == "--seconds" && i + 1 < argc) {
      seconds_per_case = std::atof(argv[++i]);
    } else if (argument == "--least" && i + 1 < argc) {
      least_runs = static_cast<size_t>(std::max(1, std::atoi(argv[++i])));
    } else if (argument == "--case" && i + 1 < argc) {
      wanted_case = argv[++i];
    } else if (argument == "--json" && i + 1 < argc) {
      json_path = argv[++i];
    } else if (argument == "--precision" && i + 1 < argc) {
      precision_list = argv[++i];
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
  std::printf("%s\n", cpu::IsaName(isa));
  Record("isa", std::string("\"isa\": \"") + cpu::IsaName(isa) + "\"");
  const double one = MeasurePeak(kernels, 1);
  RecordPeak("fp32", 1, one);
  MeasureAmxPeaks(isa, 1);
  if (wanted("gemm")) {
    for (const std::string& name : Split(precision_list)) BenchGemm(isa, name);
  }
  if (wanted("model")) {
    const ftbert_test::RandomModel model(BertBase());
    for (const std::string& count : Split(thread_list)) {
      const int threads = std::atoi(count.c_str());
      for (const std::string& name : Split(precision_list)) {
        const double peak = MeasurePeak(kernels, threads);
        if (threads > 1) RecordPeak("fp32", threads, peak);
        if (threads > 1) MeasureAmxPeaks(isa, threads);
        const Precision precision =
            name == "int8" ? Precision::kInt8 : name == "bf16" ? Precision::kBFloat16 : Precision::kFloat32;
        BenchModel(model, threads, precision, name, peak);
      }
    }
  }
  return 0;
}
