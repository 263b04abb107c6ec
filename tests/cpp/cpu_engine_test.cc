// The whole CPU engine against the reference, at every instruction set of this machine: odd sizes, odd rows; a row
// alone equals the row in a batch bit for bit; the number of threads changes nothing; many callers at once; a fork.
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "check.h"
#include "cpu/isa.h"
#include "cpu_model.h"

namespace {

using ftbert::Activation;
using ftbert::Config;
using ftbert::Engine;
using namespace ftbert_test;

Config ErfModel(int32_t hidden, int32_t heads, int32_t intermediate, int32_t layers, int32_t positions) {
  Config c = Model(hidden, heads, intermediate, layers, positions);
  c.activation = Activation::kGeluErf;
  return c;
}

// Values are of order 1 after layer norm; fp32 sums of up to 3,072 terms over the layers stay within this.
constexpr double kTolerance = 2e-5;

void CompareWithReference(const Config& config, const std::vector<int32_t>& lengths, const std::string& what) {
  const RandomModel model(config);
  const RandomBatch batch(config, lengths);
  std::shared_ptr<Engine> reference, engine, one_thread;
  CHECK_OK(model.Build("reference", 1, &reference));
  CHECK_OK(model.Build("cpu", 3, &engine, ftbert::Precision::kFloat32, true));
  CHECK_OK(model.Build("cpu", 1, &one_thread));
  if (!reference || !engine || !one_thread) return;
  for (bool token_states : {false, true}) {
    Answers expected, got, alone, serial;
    CHECK_OK(Run(reference.get(), batch, token_states, &expected));
    CHECK_OK(Run(engine.get(), batch, token_states, &got));
    CHECK_OK(Run(one_thread.get(), batch, token_states, &serial));
    const auto compare = [&](const std::vector<float>& a, const std::vector<float>& b, const char* name) {
      CHECK_EQ(a.size(), b.size());
      if (!a.empty()) CHECK_ALL_NEAR(a.data(), b.data(), a.size(), kTolerance, what + " " + name);
    };
    compare(got.first_states, expected.first_states, "first states");
    compare(got.pooled, expected.pooled, "pooled");
    compare(got.logits, expected.logits, "logits");
    compare(got.token_states, expected.token_states, "token states");
    CHECK(Same(got.first_states, serial.first_states));
    CHECK(Same(got.logits, serial.logits));
    CHECK(Same(got.token_states, serial.token_states));
    const size_t H = config.hidden_size;
    for (int32_t b = 0; b < batch.rows(); b += 1 + batch.rows() / 5) {
      CHECK_OK(Run(engine.get(), batch.Row(b), token_states, &alone));
      CHECK(std::memcmp(alone.first_states.data(), &got.first_states[b * H], H * sizeof(float)) == 0);
      if (config.num_labels > 0) {
        CHECK(std::memcmp(alone.logits.data(), &got.logits[b * config.num_labels], config.num_labels * sizeof(float)) ==
              0);
      }
      if (token_states) {
        CHECK(std::memcmp(alone.token_states.data(), &got.token_states[batch.row_splits[b] * H],
                          alone.token_states.size() * sizeof(float)) == 0);
      }
    }
  }
}

void TestSizes() {
  CompareWithReference(ErfModel(1, 1, 1, 1, 4), {1, 2, 3}, "hidden 1");
  CompareWithReference(ErfModel(7, 1, 13, 2, 40), {1, 7, 33, 2}, "hidden 7");
  CompareWithReference(ErfModel(97, 1, 129, 2, 40), {17, 1, 40}, "hidden 97, head 97");
  CompareWithReference(ErfModel(64, 8, 200, 2, 140), {129, 1, 97, 16}, "heads of 8");
  CompareWithReference(ErfModel(120, 3, 480, 2, 64), std::vector<int32_t>(30, 7), "heads of 40");
  CompareWithReference(ErfModel(256, 2, 1000, 1, 520), {512, 257, 520}, "heads of 128, several key blocks");
  CompareWithReference(ErfModel(80, 40, 100, 2, 70), {70, 1, 9}, "40 heads of 2");
  std::vector<int32_t> single(400, 1);  // the first queries of all heads take more room than keys and values would
  single[7] = 9;
  CompareWithReference(ErfModel(64, 16, 64, 2, 16), single, "rows of one token");
  Config relu = ErfModel(48, 4, 96, 2, 64);
  relu.activation = Activation::kRelu;
  relu.num_labels = 0;
  CompareWithReference(relu, {5, 64}, "relu, no classifier");
  Config gelu = ErfModel(100, 5, 300, 3, 64);
  gelu.activation = Activation::kGeluTanh;
  gelu.num_labels = 1;
  CompareWithReference(gelu, {64, 3, 1}, "tanh gelu, one label");
  Config bare = ErfModel(32, 4, 64, 1, 16);
  bare.has_pooler = 0;
  bare.num_labels = 0;
  CompareWithReference(bare, {16, 1}, "no pooler");
}

// Enough rows that threads take whole blocks of rows, with the feed-forward in chunks.
void TestManyRows() {
  CompareWithReference(ErfModel(192, 3, 1700, 1, 128), {128, 100, 1, 97, 128, 64, 33, 77, 128, 128}, "many rows");
}

void TestConcurrentRunsAgree() {
  const Config config = ErfModel(96, 4, 384, 2, 64);
  const RandomModel model(config);
  std::shared_ptr<Engine> first, second;
  CHECK_OK(model.Build("cpu", 2, &first));
  CHECK_OK(model.Build("cpu", 3, &second));
  const RandomBatch batch(config, {64, 5, 31, 64});
  Answers expected;
  CHECK_OK(Run(first.get(), batch, false, &expected));
  constexpr int kCallers = 8;
  int wrong[kCallers] = {};
  std::vector<std::thread> callers;
  for (int i = 0; i < kCallers; ++i) {
    callers.emplace_back([&, i] {
      for (int round = 0; round < 20; ++round) {
        Answers got;
        Engine* engine = (i + round) % 2 ? first.get() : second.get();
        wrong[i] += !Run(engine, batch, false, &got).ok() || !Same(got.logits, expected.logits);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (int i = 0; i < kCallers; ++i) CHECK_EQ(wrong[i], 0);
}

void TestRunsAfterAFork() {
  const Config config = ErfModel(64, 4, 128, 1, 64);
  const RandomModel model(config);
  std::shared_ptr<Engine> engine;
  CHECK_OK(model.Build("cpu", 3, &engine));
  const RandomBatch batch(config, {64, 64, 64});
  Answers expected;
  CHECK_OK(Run(engine.get(), batch, false, &expected));
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);  // a hang ends the child with a signal
    Answers got;
    const bool ok = Run(engine.get(), batch, false, &got).ok() && Same(got.logits, expected.logits);
    _exit(ok ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

long ScratchBytes(const Engine& engine) {
  const std::string text = engine.Describe();
  const std::string key = "\"scratch_bytes\": ";
  const size_t at = text.find(key);
  CHECK(at != std::string::npos);
  return at == std::string::npos ? -1 : std::atol(text.c_str() + at + key.size());
}

// Memory that grew for one large batch is given back after many small ones, and answers stay.
void TestWorkspaceShrinks() {
  const Config config = ErfModel(64, 4, 128, 1, 64);
  const RandomModel model(config);
  std::shared_ptr<Engine> engine;
  CHECK_OK(model.Build("cpu", 1, &engine));  // in groups, memory does not grow so
  const RandomBatch small(config, {3});
  Answers expected, got;
  CHECK_OK(Run(engine.get(), RandomBatch(config, std::vector<int32_t>(100, 64)), false, &got));
  CHECK_OK(Run(engine.get(), small, false, &expected));
  const long grown = ScratchBytes(*engine);
  for (int i = 0; i < 600; ++i) CHECK_OK(Run(engine.get(), small, false, &got));
  CHECK(Same(got.logits, expected.logits));
  CHECK(grown > 100 * 64 * 64 * 4 * 4);
  CHECK(ScratchBytes(*engine) < grown / 2);
}

void TestDescription() {
  const RandomModel model(ErfModel(64, 4, 128, 1, 64));
  std::shared_ptr<Engine> engine;
  const IsaScope scope("portable");
  CHECK_OK(model.Build("cpu", 2, &engine));
  const std::string text = engine->Describe();
  CHECK(text.find("\"name\": \"cpu portable fp32 2 threads\"") != std::string::npos);
  CHECK(text.find("\"isa\": \"portable\"") != std::string::npos);
  CHECK(text.find("\"threads\": 2") != std::string::npos);
  CHECK(text.find("\"weight_bytes\": ") != std::string::npos);
}

}  // namespace

int main() {
  for (int i = 0; i <= static_cast<int>(ftbert::cpu::Isa::kAvx512); ++i) {
    if (i > static_cast<int>(ftbert::cpu::MachineIsa())) break;
    const char* name = ftbert::cpu::IsaName(static_cast<ftbert::cpu::Isa>(i));
    std::printf("%s\n", name);
    const IsaScope scope(name);
    TestSizes();
    TestManyRows();
  }
  TestConcurrentRunsAgree();
  TestRunsAfterAFork();
  TestWorkspaceShrinks();
  TestDescription();
  return Finish();
}
