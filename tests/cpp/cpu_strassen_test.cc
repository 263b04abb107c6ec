// Products of pairs of rows (gemm_strassen.h) at every instruction set of this machine: against plain loops in double,
// whatever the sizes, the cuts and the addresses; pairs and single rows shared out by product.cc; and whole engines,
// where a row of text must not depend on what stands beside it.
#include <algorithm>
#include <cstdlib>

#include "cpu/isa.h"
#include "cpu_model.h"
#include "product_checks.h"

namespace {

using namespace ftbert_test;
using ftbert::Config;
using ftbert::Engine;
using ftbert::cpu::Isa;
using ftbert::cpu::Tile;

// Behind a row's end, as everywhere in the engine, a vector may be read.
constexpr int32_t kPad = 16;

// Rows of x, kPad of NaN behind each, and one float off every alignment.
struct PaddedRows {
  ptrdiff_t stride;
  std::vector<float> storage;
  explicit PaddedRows(const Problem& p) : stride(p.inputs + kPad), storage(p.rows * stride + 1, kNan) {
    for (int32_t r = 0; r < p.rows; ++r) std::copy_n(&p.x[static_cast<size_t>(r) * p.inputs], p.inputs, row(r));
  }
  float* row(int32_t r) { return storage.data() + 1 + r * stride; }
};

// Pairs [begin, begin + pairs) of a problem by panels [panel_begin, panel_end), from `splits` ranges of inputs, into
// rows of N + 7 floats full of NaN; checks that nothing else is written.
std::vector<float> Pairs(const LinearKernel& kernel, const PackedMatrix& packed, const Problem& p, int32_t begin,
                         int32_t pairs, int32_t panel_begin, int32_t panel_end, bool split, Epilogue epilogue) {
  PaddedRows rows(p);
  const ptrdiff_t out_stride = p.outputs + 7;
  std::vector<float> storage(2 * pairs * out_stride + 1, kNan);
  const int32_t step = kernel.input_step();
  for (int32_t k = 0; k < p.inputs; k += split ? step : p.inputs) {
    const int32_t k_end = split ? std::min(k + step, p.inputs) : p.inputs;
    const size_t stride = kernel.input_row_bytes(k_end - k) + 64;
    std::vector<uint8_t> prepared(2 * pairs * stride + 4, 0xff);
    kernel.Prepare(rows.row(2 * begin) + k, rows.stride, 2 * pairs, k_end - k, prepared.data() + 4, stride);
    Tile tile;
    tile.in = prepared.data() + 4;
    tile.in_stride = stride;
    tile.rows = 2 * pairs;
    tile.panel_begin = panel_begin;
    tile.panel_end = panel_end;
    tile.k_begin = k;
    tile.k_end = k_end;
    tile.epilogue = epilogue;
    tile.out = storage.data() + 1;
    tile.out_stride = out_stride;
    kernel.Compute(packed, tile);
  }
  std::vector<float> out;
  bool untouched = std::isnan(storage[0]);
  for (int32_t r = 0; r < 2 * pairs; ++r) {
    const float* row = storage.data() + 1 + r * out_stride;
    out.insert(out.end(), row, row + p.outputs);
    for (ptrdiff_t n = p.outputs; n < out_stride; ++n) untouched = untouched && std::isnan(row[n]);
  }
  CHECK(untouched);
  return out;
}

void TestProduct(const LinearKernel& rows, int32_t pairs, int32_t inputs, int32_t outputs, int parts,
                 Epilogue epilogue) {
  const LinearKernel& kernel = *rows.pairs();
  const Problem p(inputs, outputs, 2 * pairs, static_cast<uint32_t>(inputs + outputs + pairs));
  const PackedMatrix packed = p.Pack(rows, parts);
  const int32_t panels = static_cast<int32_t>(packed.panels.size());
  CHECK_EQ(panels / parts % kernel.panel_step(), 0);
  const std::vector<float> all = Pairs(kernel, packed, p, 0, pairs, 0, panels, false, epilogue);

  double worst = 0, largest = 0;
  std::vector<double> exact(all.size());
  for (int32_t r = 0; r < p.rows; ++r) {
    for (int32_t n = 0; n < outputs; ++n) {
      double sum = 0;
      for (int32_t k = 0; k < inputs; ++k) {
        sum += static_cast<double>(p.x[static_cast<size_t>(r) * inputs + k]) *
               p.weights[static_cast<size_t>(k) * outputs + n];
      }
      largest = std::fmax(largest, std::fabs(sum));
      exact[static_cast<size_t>(r) * outputs + n] = Activate(epilogue, sum + p.bias[n]);
    }
  }
  for (size_t i = 0; i < all.size(); ++i) KeepWorst(std::fabs(all[i] - exact[i]), &worst);
  // What one chain of K roundings may come to (cpu_kernels_test.cc), twice: operands are sums of up to four numbers,
  // and what they come to too much is taken away again. Beside it, the rounding of bias and activation.
  const double bound = 2 * 6e-8 * 1.5 * std::sqrt(static_cast<double>(inputs)) * largest + 1e-6;
  if (!(worst <= bound)) std::printf("  %s: %.3g, bound %.3g\n", Describe("pairs", p).c_str(), worst, bound);
  CHECK(worst <= bound);

  const std::vector<float> split = Pairs(kernel, packed, p, 0, pairs, 0, panels, true, epilogue);
  CHECK(SameBits(split.data(), all.data(), all.size()));
  for (int32_t pair = 0; pair < pairs; pair += 1 + pairs / 4) {
    const std::vector<float> alone = Pairs(kernel, packed, p, pair, 1, 0, panels, true, epilogue);
    CHECK(SameBits(alone.data(), &all[2 * static_cast<size_t>(pair) * outputs], alone.size()));
  }
  for (int32_t panel = 0; panel < panels; panel += 2) {
    const std::vector<float> some = Pairs(kernel, packed, p, 0, pairs, panel, panel + 2, false, epilogue);
    const int32_t first = packed.panels[panel].column;
    const int32_t width = packed.panels[panel].width + packed.panels[panel + 1].width;
    int32_t different = 0;
    for (int32_t r = 0; r < p.rows; ++r) {
      const size_t at = static_cast<size_t>(r) * outputs;
      different += !SameBits(&some[at + first], &all[at + first], width);
      for (int32_t n = 0; n < outputs; ++n) different += (n < first || n >= first + width) && !std::isnan(some[at + n]);
    }
    CHECK_EQ(different, 0);
  }
}

void TestProducts(const LinearKernel& rows) {
  const int32_t panel = rows.panel_columns();
  for (int32_t pairs = 1; pairs <= 2 * rows.row_tile() + 1; ++pairs) {
    TestProduct(rows, pairs, 40, 2 * panel, 1, Epilogue::kBias);
  }
  TestProduct(rows, 3, 2, 2 * panel, 1, Epilogue::kBias);
  TestProduct(rows, 73, 130, 4 * panel, 1, Epilogue::kBias);  // more than wait at a time; odd halves
  TestProduct(rows, 129, 30, 6 * panel, 3, Epilogue::kBias);
  TestProduct(rows, 5, rows.pairs()->input_step() + 2, 2 * panel, 1, Epilogue::kBiasTanh);  // a last block of two
  TestProduct(rows, 7, 2200, 4 * panel, 2, Epilogue::kBiasRelu);
  TestProduct(rows, 9, 768, 3 * (2 * panel - 5), 3, Epilogue::kBias);  // narrow last panels
  TestProduct(rows, 4, 1536, panel + 1, 1, Epilogue::kBiasGeluErf);
  for (const Epilogue epilogue : kEpilogues) TestProduct(rows, 11, 96, 2 * panel, 1, epilogue);
}

// Pairs have no business with other pairs: NaN stays in its own.
void TestBadPairsStayAlone(const LinearKernel& rows) {
  Problem p(64, 2 * rows.panel_columns(), 20);
  p.x[64 * 7 + 3] = kNan;
  const PackedMatrix packed = p.Pack(rows);
  const std::vector<float> out = Pairs(*rows.pairs(), packed, p, 0, 10, 0, 2, false, Epilogue::kBias);
  for (int32_t r = 0; r < p.rows; ++r) {
    const bool bad = std::isnan(out[static_cast<size_t>(r) * p.outputs]);
    CHECK(r == 7 ? bad : r == 6 || !bad);
  }
}

// product.cc's ways with `paired` rows in pairs before single ones, on any number of threads.
void TestSharing(const LinearKernel& kernel) {
  constexpr int32_t kHidden = 192, kIntermediate = 1728, kMostRows = 400;
  using Results = ProductSteps::Results;
  const ProductSteps steps(kernel, kHidden, kIntermediate, kMostRows, Epilogue::kBiasGeluErf);
  const Results pairs = steps.Run(0, kMostRows, 1, kMostRows), single = steps.Run(0, kMostRows, 1);
  CHECK_ALL_NEAR(pairs.wide.data(), single.wide.data(), single.wide.size(), 1e-5, "wide");
  CHECK_ALL_NEAR(pairs.states.data(), single.states.data(), single.states.size(), 2e-5, "states");
  CHECK(!SameBits(pairs.states.data(), single.states.data(), single.states.size()));  // they are two ways
  const auto same = [](const std::vector<float>& got, const std::vector<float>& first, const std::vector<float>& rest,
                       size_t paired) {
    return SameBits(got.data(), first.data(), paired) &&
           SameBits(got.data() + paired, rest.data() + paired, got.size() - paired);
  };
  for (int threads : kSanitized ? std::vector<int>{1, 8} : std::vector<int>{1, 2, 8}) {
    for (int32_t paired : {0, 2, 26, 258}) {
      for (int32_t others : {0, 67, 140}) {
        if (paired + others == 0) continue;
        const Results got = steps.Run(0, paired + others, threads, paired);
        CHECK(same(got.wide, pairs.wide, single.wide, static_cast<size_t>(paired) * kIntermediate));
        CHECK(same(got.states, pairs.states, single.states, static_cast<size_t>(paired) * kHidden));
      }
    }
  }
  const Results alone = steps.Run(80, 2, 1, 2);
  CHECK(SameBits(alone.states.data(), &pairs.states[80 * kHidden], alone.states.size()));
}

// What FTBERT_CPU_STRASSEN says to the engines built while this lives.
class Strassen {
 public:
  explicit Strassen(const char* value) { setenv("FTBERT_CPU_STRASSEN", value, 1); }
  ~Strassen() { unsetenv("FTBERT_CPU_STRASSEN"); }
};

bool UsesPairs(const Engine& engine) { return engine.Describe().find("\"strassen\": true") != std::string::npos; }

// Rows around the length from which tokens are paired, even and odd, in every mixture and on any number of threads.
void TestEngine(const std::vector<int32_t>& lengths) {
  const Config config = Model(192, 4, 768, 2);
  const RandomModel model(config);
  const RandomBatch batch(config, lengths);
  std::shared_ptr<Engine> reference, plain;
  CHECK_OK(model.Build("reference", 1, &reference));
  {
    const Strassen off("0");
    CHECK_OK(model.Build("cpu", 2, &plain));
  }
  if (!reference || !plain) return;
  CHECK(!UsesPairs(*plain));
  const bool any = std::any_of(lengths.begin(), lengths.end(), [](int32_t n) { return n >= 24; });
  Answers expected, without, first;
  CHECK_OK(Run(reference.get(), batch, true, &expected));
  CHECK_OK(Run(plain.get(), batch, true, &without));
  const size_t H = config.hidden_size;
  for (int threads : kSanitized ? std::vector<int>{1, 5} : std::vector<int>{1, 2, 5}) {
    const Strassen on("1");
    std::shared_ptr<Engine> engine;
    CHECK_OK(model.Build("cpu", threads, &engine));
    if (!engine) return;
    CHECK(UsesPairs(*engine));
    Answers got, again, alone, few;
    CHECK_OK(Run(engine.get(), batch, true, &got));
    CHECK_ALL_NEAR(got.logits.data(), expected.logits.data(), expected.logits.size(), 2e-5, "logits");
    CHECK_ALL_NEAR(got.token_states.data(), expected.token_states.data(), expected.token_states.size(), 2e-5, "states");
    CHECK_EQ(Same(got.token_states, without.token_states), !any);
    if (threads == 1) first = got;
    CHECK(Same(got.logits, first.logits));
    CHECK(Same(got.pooled, first.pooled));
    CHECK(Same(got.token_states, first.token_states));
    CHECK_OK(Run(engine.get(), batch, false, &few));
    CHECK_OK(Run(engine.get(), batch, false, &again));
    CHECK(Same(few.logits, again.logits));
    for (int32_t b = 0; b < batch.rows(); b += 1 + batch.rows() / 9) {
      CHECK_OK(Run(engine.get(), batch.Row(b), true, &alone));
      CHECK(Same(alone.token_states, std::vector<float>(got.token_states.begin() + batch.row_splits[b] * H,
                                                        got.token_states.begin() + batch.row_splits[b + 1] * H)));
      CHECK(SameBits(alone.logits.data(), &got.logits[b * config.num_labels], config.num_labels));
      CHECK_OK(Run(engine.get(), batch.Row(b), false, &alone));
      CHECK(SameBits(alone.first_states.data(), &few.first_states[b * H], H));
    }
  }
}

void TestEngines() {
  TestEngine({24});
  TestEngine({25});
  TestEngine({23, 1, 7});
  TestEngine({7, 25, 23, 140, 24, 1, 27});
  TestEngine({139, 131, 77, 24, 96, 45, 130, 3});
  std::vector<int32_t> many;
  for (int32_t i = 0; i < 60; ++i) many.push_back(1 + i * 37 % 71);
  TestEngine(many);
}

// Where pairs are taken unasked, where they cannot be, and that other precisions know nothing of them.
void TestChoice() {
  const auto uses = [](const Config& config, ftbert::Precision precision) {
    const RandomModel model(config);
    std::shared_ptr<Engine> engine;
    CHECK_OK(model.Build("cpu", 1, &engine, precision));
    return engine && UsesPairs(*engine);
  };
  const bool avx2 = ftbert::cpu::MachineIsa() >= Isa::kAvx2;
  if (avx2) {
    const IsaScope scope("avx2");
    CHECK(uses(Model(256, 4, 1024, 1), ftbert::Precision::kFloat32));
    CHECK(!uses(Model(192, 4, 768, 1), ftbert::Precision::kFloat32));
    CHECK(!uses(Model(256, 4, 1024, 1), ftbert::Precision::kInt8));
    CHECK(!uses(Model(256, 4, 1024, 1), ftbert::Precision::kBFloat16));
    const Strassen off("0");
    CHECK(!uses(Model(256, 4, 1024, 1), ftbert::Precision::kFloat32));
  }
  const Config config = Model(192, 4, 768, 1);
  const RandomModel model(config);
  std::shared_ptr<Engine> engine;
  for (const char* value : {"2", "on", "00"}) {
    const Strassen wrong(value);
    const ftbert::Status status = model.Build("cpu", 1, &engine);
    CHECK(status.code() == ftbert::Code::kInvalidArgument);
    CHECK(status.message().find("FTBERT_CPU_STRASSEN: expected 0 or 1, got \"" + std::string(value)) == 0);
  }
  const IsaScope scope("portable");
  CHECK(!uses(Model(256, 4, 1024, 1), ftbert::Precision::kFloat32));
  const Strassen on("1");
  CHECK(uses(Model(192, 4, 768, 1), ftbert::Precision::kFloat32));
  CHECK(!uses(Model(200, 4, 800, 1), ftbert::Precision::kFloat32));  // an odd number of panels
}

}  // namespace

int main() {
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (isa > ftbert::cpu::MachineIsa()) continue;
    std::printf("%s\n", ftbert::cpu::IsaName(isa));
    const LinearKernel& kernel = *ftbert::cpu::Fp32Kernel(isa);
    TestProducts(kernel);
    TestBadPairsStayAlone(kernel);
    TestSharing(kernel);
    const IsaScope scope(ftbert::cpu::IsaName(isa));
    TestEngines();
  }
  TestChoice();
  return Finish();
}
