// The CUDA engine against the reference engine: every precision, odd sizes, recorded and replayed graphs, threads, and
// what it says when it cannot.
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "core/cuda_loader.h"
#include "ftbert/engine.h"

namespace {

using namespace ftbert;

std::mt19937 generator(std::random_device{}());

int Between(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

struct Model {
  Config config;
  std::vector<std::pair<std::string, std::vector<int64_t>>> names;
  std::vector<std::vector<float>> values;

  void Add(const std::string& name, std::vector<int64_t> shape, float scale, float mean) {
    int64_t count = 1;
    for (int64_t size : shape) count *= size;
    std::normal_distribution<float> normal(mean, scale);
    std::vector<float> array(count);
    for (float& v : array) v = normal(generator);
    names.emplace_back(name, std::move(shape));
    values.push_back(std::move(array));
  }
};

Model MakeModel(int hidden, int heads, int wide, int layers, int labels, Activation activation) {
  Model m;
  Config& c = m.config;
  c.vocab_size = 211, c.hidden_size = hidden, c.num_layers = layers, c.num_heads = heads, c.intermediate_size = wide;
  c.max_positions = 160, c.type_vocab_size = 2, c.num_labels = labels, c.activation = activation;
  const float scale = 1.f / std::sqrt(static_cast<float>(hidden));
  const int64_t H = hidden, F = wide;
  m.Add("bert/embeddings/word_embeddings", {c.vocab_size, H}, 1.f, 0.f);
  m.Add("bert/embeddings/position_embeddings", {c.max_positions, H}, 0.5f, 0.f);
  m.Add("bert/embeddings/token_type_embeddings", {2, H}, 0.5f, 0.f);
  const auto add_norm = [&](const std::string& scope) {
    m.Add(scope + "/LayerNorm/gamma", {H}, 0.1f, 1.f);
    m.Add(scope + "/LayerNorm/beta", {H}, 0.1f, 0.f);
  };
  const auto add_dense = [&](const std::string& scope, int64_t in, int64_t out) {
    m.Add(scope + "/kernel", {in, out}, 1.f / std::sqrt(static_cast<float>(in)), 0.f);
    m.Add(scope + "/bias", {out}, 0.2f, 0.f);
  };
  add_norm("bert/embeddings");
  for (int l = 0; l < layers; ++l) {
    const std::string scope = "bert/encoder/layer_" + std::to_string(l) + "/";
    for (const char* part : {"query", "key", "value"}) add_dense(scope + "attention/self/" + part, H, H);
    add_dense(scope + "attention/output/dense", H, H);
    add_norm(scope + "attention/output");
    add_dense(scope + "intermediate/dense", H, F);
    add_dense(scope + "output/dense", F, H);
    add_norm(scope + "output");
  }
  add_dense("bert/pooler/dense", H, H);
  m.Add("output_weights", {labels, H}, scale, 0.f);
  m.Add("output_bias", {labels}, 0.2f, 0.f);
  return m;
}

Status Load(const Model& m, const std::string& device, Precision precision, std::shared_ptr<Engine>* engine) {
  Options options;
  options.device = device;
  options.precision = precision;
  std::unique_ptr<Builder> builder;
  Status status = Builder::Create(m.config, options, &builder);
  for (size_t i = 0; i < m.names.size() && status.ok(); ++i) {
    Array array;
    array.name = m.names[i].first;
    array.shape = m.names[i].second;
    array.data = m.values[i].data();
    status = builder->AddWeight(array);
  }
  return status.ok() ? builder->Finish(engine) : status;
}

struct Rows {
  std::vector<int32_t> ids, segments, splits{0};
  Batch batch() const {
    return Batch{ids.data(), segments.data(), splits.data(), static_cast<int32_t>(splits.size()) - 1};
  }
  int tokens() const { return static_cast<int>(ids.size()); }
};

Rows MakeRows(const Config& c, const std::vector<int>& lengths) {
  Rows r;
  for (int length : lengths) {
    for (int i = 0; i < length; ++i) {
      r.ids.push_back(Between(0, c.vocab_size - 1));
      r.segments.push_back(i > length / 2 ? Between(0, 1) : 0);
    }
    r.splits.push_back(static_cast<int32_t>(r.ids.size()));
  }
  return r;
}

struct Results {
  std::vector<float> logits, pooled, first, tokens;
  Outputs outputs() {
    return Outputs{logits.data(), pooled.data(), first.data(), tokens.empty() ? nullptr : tokens.data()};
  }
};

// Poisoned: what is not written stays NaN.
Results Room(const Config& c, const Rows& rows, bool tokens) {
  const size_t b = rows.splits.size() - 1;
  const float nan = std::nanf("");
  Results r;
  r.logits.assign(b * c.num_labels, nan);
  r.pooled.assign(b * c.hidden_size, nan);
  r.first.assign(b * c.hidden_size, nan);
  if (tokens) r.tokens.assign(static_cast<size_t>(rows.tokens()) * c.hidden_size, nan);
  return r;
}

double MeanSquare(const std::vector<float>& values) {
  double sum = 0;
  for (float v : values) sum += static_cast<double>(v) * v;
  return sum / values.size();
}

// `usual`: the mean square that such values have; a row that happens to come out near zero is not judged by its own.
double RelativeError(const std::vector<float>& got, const std::vector<float>& expected, double usual) {
  double error = 0, norm = 1e-30;
  for (size_t i = 0; i < got.size(); ++i) {
    error += (static_cast<double>(got[i]) - expected[i]) * (static_cast<double>(got[i]) - expected[i]);
    norm += static_cast<double>(expected[i]) * expected[i];
  }
  return std::sqrt(error / std::max(norm, usual * got.size()));
}

double Allowed(Precision precision) {
  switch (precision) {
    case Precision::kFloat32:
      return 2e-5;
    case Precision::kFloat16:
      return 4e-3;
    case Precision::kBFloat16:
      return 3e-2;
    default:
      return 1.5e-1;
  }
}

void Compare(const Model& model, const std::vector<std::vector<int>>& batches, bool hopper) {
  std::shared_ptr<Engine> reference;
  CHECK_OK(Load(model, "reference", Precision::kFloat32, &reference));
  std::vector<Rows> rows;
  std::vector<Results> expected;
  for (const auto& lengths : batches) {
    rows.push_back(MakeRows(model.config, lengths));
    expected.push_back(Room(model.config, rows.back(), true));
    CHECK_OK(reference->Run(rows.back().batch(), expected.back().outputs()));
  }
  double usual_logits = 0;
  for (const Results& e : expected) usual_logits += MeanSquare(e.logits) / expected.size();
  for (Precision precision : {Precision::kFloat32, Precision::kFloat16, Precision::kBFloat16, Precision::kFloat8}) {
    if (precision == Precision::kFloat8 && !hopper) continue;
    std::shared_ptr<Engine> engine;
    CHECK_OK(Load(model, "cuda", precision, &engine));
    if (!engine) continue;
    // Three rounds: run as it is, recorded, replayed. Rounds interleave the batches, so that a bucket's graph serves
    // others.
    for (int round = 0; round < 3; ++round) {
      for (size_t i = 0; i < rows.size(); ++i) {
        for (bool tokens : {false, true}) {
          Results got = Room(model.config, rows[i], tokens);
          CHECK_OK(engine->Run(rows[i].batch(), got.outputs()));
          const std::string what = engine->Describe().substr(0, 60) + " H " + std::to_string(model.config.hidden_size) +
                                   " batch " + std::to_string(i) + " of " + std::to_string(rows[i].tokens()) +
                                   " tokens, round " + std::to_string(round) + (tokens ? " all tokens" : "");
          const auto check = [&](const char* name, const std::vector<float>& g, const std::vector<float>& e,
                                 double usual = 0) {
            const double error = RelativeError(g, e, usual);
            ftbert_test::Report(error <= Allowed(precision), __FILE__, __LINE__,
                                what + ": " + name + " off by " + std::to_string(error));
          };
          check("first states", got.first, expected[i].first);
          check("pooled", got.pooled, expected[i].pooled);
          check("logits", got.logits, expected[i].logits, usual_logits);
          if (tokens) check("token states", got.tokens, expected[i].tokens);
        }
      }
    }
  }
}

void TestThreads(const Model& model, int seconds) {
  std::shared_ptr<Engine> engine;
  CHECK_OK(Load(model, "cuda", Precision::kFloat16, &engine));
  if (!engine) return;
  // Each thread's rows run alone first; whatever batch they come back in, the answer must be the same to rounding.
  const Config& c = model.config;
  std::vector<std::vector<int32_t>> rows;
  std::vector<std::vector<float>> alone;
  for (int i = 0; i < 64; ++i) {  // the first half may lie in tiles
    const Rows one = MakeRows(c, {Between(1, i < 32 ? 128 : c.max_positions)});
    Results r = Room(c, one, false);
    Batch b = one.batch();
    b.segment_ids = nullptr;  // as in the threads
    CHECK_OK(engine->Run(b, r.outputs()));
    rows.push_back(one.ids);
    alone.push_back(r.logits);
  }
  CHECK_OK(engine->Warm(2048, 3));  // three workspaces bring their graphs, the fourth makes its own
  CHECK(!engine->Warm(0, 1).ok());
  std::vector<long> wrong(8, 0), runs(8, 0);
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 mine(t);
      const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
      while (std::chrono::steady_clock::now() < end) {
        std::vector<int> chosen(1 + mine() % (mine() % 8 == 0 ? 60 : 6));
        const size_t among = mine() % 2 == 0 ? rows.size() : rows.size() / 2;
        Rows batch;
        for (int& i : chosen) {
          i = mine() % among;
          batch.ids.insert(batch.ids.end(), rows[i].begin(), rows[i].end());
          batch.splits.push_back(static_cast<int32_t>(batch.ids.size()));
        }
        std::vector<float> logits(chosen.size() * c.num_labels, std::nanf(""));
        Outputs outputs;
        outputs.logits = logits.data();
        Batch b = batch.batch();
        b.segment_ids = nullptr;
        if (!engine->Run(b, outputs).ok()) ++wrong[t];
        for (size_t i = 0; i < chosen.size(); ++i) {
          for (int l = 0; l < c.num_labels; ++l) {
            const float difference = std::fabs(logits[i * c.num_labels + l] - alone[chosen[i]][l]);
            if (!(difference <= 0.02f)) ++wrong[t];
          }
        }
        ++runs[t];
      }
    });
  }
  long all = 0;
  for (int t = 0; t < 8; ++t) {
    threads[t].join();
    CHECK_EQ(wrong[t], 0L);
    CHECK(runs[t] > 0);
    all += runs[t];
  }
  std::printf("8 threads, %d s: %ld runs, %s\n", seconds, all, engine->Describe().c_str());
}

void TestRefusals(const Model& model) {
  std::shared_ptr<Engine> engine;
  CHECK(Load(model, "cuda:97", Precision::kFloat16, &engine).code() == Code::kUnavailable);
  CHECK(Load(model, "cuda:x", Precision::kFloat16, &engine).code() == Code::kInvalidArgument);
  CHECK(Load(model, "cuda", Precision::kInt8, &engine).code() == Code::kUnavailable);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string devices = DescribeCuda();
  if (devices.find("\"devices\": []") != std::string::npos) {
    if (std::getenv("FTBERT_REQUIRE_GPU") != nullptr) {
      std::printf("a GPU is required here: %s\n", devices.c_str());
      return 1;
    }
    SKIP(devices.c_str());
  }
  std::printf("%s\n", devices.c_str());
  const bool hopper = devices.find("\"compute_capability\": \"9.0\"") != std::string::npos;
  const bool quick = argc > 1 && std::string(argv[1]) == "quick";  // under a sanitizer
  const int soak = argc > 1 && !quick ? std::atoi(argv[1]) : 3;
  Compare(MakeModel(64, 2, 128, 2, 3, Activation::kGeluTanh), {{1}, {5, 1, 9}, {31, 2}, {70}}, hopper);
  Compare(MakeModel(20, 5, 36, 2, 7, Activation::kRelu), {{3}, {8, 30}}, hopper);
  if (quick) return ftbert_test::Finish();
  Compare(MakeModel(768, 12, 3072, 2, 77, Activation::kGeluErf), {{32}, {128}, {20, 9, 1}, {60, 61, 50, 90}}, hopper);
  Compare(MakeModel(256, 4, 1024, 3, 2, Activation::kGeluTanh),
          {std::vector<int>(40, 33), std::vector<int>(70, 9), std::vector<int>(40, 130)}, hopper);
  // First tokens attend to the states; with too little room for it, to keys and values.
  Compare(MakeModel(128, 8, 128, 1, 3, Activation::kRelu),
          {std::vector<int>(310, 41), std::vector<int>(12300, 1)}, hopper);
  // Rows of at most 128 tokens in tiles, in a bucket and beyond; with longer ones among them, and such as fill no tile.
  std::vector<int> usual(25, 64), many(130, 50);
  for (int i = 0; i < 30; ++i) usual.push_back(Between(1, 64));
  for (int i = 0; i < 40; ++i) many.push_back(Between(1, 128));
  std::vector<int> mixed = usual;
  mixed.push_back(129);
  Compare(MakeModel(512, 8, 1024, 3, 4, Activation::kGeluTanh),
          {std::vector<int>(16, 128), usual, many, mixed, std::vector<int>(20, 70)}, hopper);
  Compare(MakeModel(1024, 16, 4096, 1, 5, Activation::kGeluTanh), {{64}, {3}}, hopper);
  Compare(MakeModel(256, 2, 512, 2, 4, Activation::kGeluTanh), {{129, 5}, {33}}, hopper);
  TestThreads(MakeModel(256, 4, 1024, 3, 5, Activation::kGeluTanh), soak);
  TestRefusals(MakeModel(20, 5, 36, 1, 7, Activation::kRelu));
  return ftbert_test::Finish();
}
