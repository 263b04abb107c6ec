// Runs in groups of rows: what is planned, and that answers have the same bits as row after row, layer by layer.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <numeric>
#include <thread>

#include "check.h"
#include "cpu/groups.h"
#include "cpu/isa.h"
#include "cpu_model.h"

namespace {

using ftbert::Config;
using ftbert::Engine;
using ftbert::Precision;
using ftbert::cpu::GroupPlan;
using namespace ftbert_test;

std::vector<int32_t> MixedLengths(int rows, int32_t most) {
  std::mt19937 random(11);
  std::vector<int32_t> lengths(rows);
  for (int32_t& length : lengths) length = 1 + static_cast<int32_t>(random() % static_cast<uint32_t>(most));
  return lengths;
}

ftbert::Shape ShapeOf(const RandomBatch& batch) {
  ftbert::Shape shape;
  shape.tokens = batch.tokens();
  shape.rows = batch.rows();
  for (int32_t b = 0; b < batch.rows(); ++b) {
    shape.longest_row = std::max(shape.longest_row, batch.row_splits[b + 1] - batch.row_splits[b]);
  }
  return shape;
}

GroupPlan Plan(const std::vector<int32_t>& lengths, int threads) {
  const Config config = Model(768, 12, 3072, 1);
  const RandomBatch batch(config, lengths);
  GroupPlan plan;
  ftbert::cpu::PlanGroups(batch.view(), ShapeOf(batch), config, threads, &plan);
  return plan;
}

void TestPlans() {
  for (const int threads : {2, 3, 4, 16}) {
    for (const int rows : {64, 200, 1000}) {
      const std::vector<int32_t> lengths = MixedLengths(rows, 128);
      const GroupPlan plan = Plan(lengths, threads);
      CHECK(!plan.empty());
      if (plan.empty()) continue;
      CHECK_EQ(plan.count() % threads, 0);
      CHECK_EQ(plan.splits.front(), 0);
      CHECK_EQ(plan.splits.back(), rows);
      std::vector<int32_t> seen = plan.rows, all(rows);
      std::sort(seen.begin(), seen.end());
      std::iota(all.begin(), all.end(), 0);
      CHECK(seen == all);
      int32_t tokens = 0, most_rows = 0, longest = 0;
      for (int g = 0; g < plan.count(); ++g) {
        CHECK(plan.splits[g] < plan.splits[g + 1]);
        int32_t of_group = 0;
        for (int32_t i = plan.splits[g]; i < plan.splits[g + 1]; ++i) {
          of_group += lengths[plan.rows[i]];
          longest = std::max(longest, lengths[plan.rows[i]]);
        }
        tokens = std::max(tokens, of_group);
        most_rows = std::max(most_rows, plan.splits[g + 1] - plan.splits[g]);
      }
      CHECK_EQ(plan.largest.tokens, tokens);
      CHECK_EQ(plan.largest.rows, most_rows);
      CHECK_EQ(plan.largest.longest_row, longest);
      CHECK(plan.largest.tokens <= (threads == 16 ? 640 : 800));
    }
  }
  // One row of 512 at a time, where more at once would do, too.
  const GroupPlan long_rows = Plan(std::vector<int32_t>(32, 512), 16);
  CHECK_EQ(long_rows.count(), 32);
  CHECK_EQ(long_rows.largest.tokens, 512);
}

std::vector<int32_t> TokensOfGroups(const GroupPlan& plan, const std::vector<int32_t>& lengths) {
  std::vector<int32_t> tokens(plan.count(), 0);
  for (int g = 0; g < plan.count(); ++g) {
    for (int32_t i = plan.splits[g]; i < plan.splits[g + 1]; ++i) tokens[g] += lengths[plan.rows[i]];
  }
  return tokens;
}

// What each thread would take last is cut in two: but not a few groups, halves of too few tokens, or rows that cannot.
void TestHalves() {
  const auto even = [](int rows, int32_t length, int threads) {
    const std::vector<int32_t> lengths(rows, length);
    return TokensOfGroups(Plan(lengths, threads), lengths);
  };
  CHECK(even(32, 128, 16) == std::vector<int32_t>(32, 128));
  CHECK(even(32, 128, 2) == std::vector<int32_t>({512, 512, 512, 512, 512, 512, 256, 256, 256, 256}));
  CHECK(even(16, 128, 2) == std::vector<int32_t>(4, 512));
  CHECK(even(32, 100, 16) == std::vector<int32_t>(16, 200));
  CHECK(even(48, 340, 16) == std::vector<int32_t>(48, 340));
  const std::vector<int32_t> lengths = MixedLengths(200, 128), tokens = TokensOfGroups(Plan(lengths, 16), lengths);
  CHECK_EQ(tokens.size(), size_t{48});
  for (size_t g = 0; g < tokens.size(); ++g) {
    const double share = tokens[g] / static_cast<double>(tokens[0]);
    CHECK(g < 16 ? share > 0.9 && share < 1.1 : share > 0.4 && share < 0.6);
  }
}

// Whole rows that cannot be shared out evenly, or too few tokens: layer by layer.
void TestNoPlans() {
  CHECK(Plan(std::vector<int32_t>(100, 128), 1).empty());
  CHECK(Plan({512}, 2).empty());
  CHECK(Plan({512, 512, 512}, 2).empty());
  CHECK(Plan({512, 8, 8, 8, 8, 8, 8}, 2).empty());
  CHECK(Plan(std::vector<int32_t>(16, 8), 2).empty());
  CHECK(Plan(std::vector<int32_t>(8, 128), 16).empty());
}

void CheckEngine(const Config& config, Precision precision) {
  const RandomModel model(config);
  const std::vector<int32_t> lengths = MixedLengths(24, 75);
  RandomBatch batch(config, lengths);
  std::shared_ptr<Engine> serial;
  CHECK_OK(model.Build("cpu", 1, &serial, precision));
  if (!serial) return;
  Answers expected[2];
  for (const bool token_states : {false, true}) {
    CHECK_OK(Run(serial.get(), batch, token_states, &expected[token_states]));
  }
  for (const int threads : kSanitized ? std::vector<int>{3} : std::vector<int>{2, 3, 5}) {
    GroupPlan plan;
    ftbert::cpu::PlanGroups(batch.view(), ShapeOf(batch), config, threads, &plan);
    CHECK(!plan.empty());
    std::shared_ptr<Engine> engine;
    CHECK_OK(model.Build("cpu", threads, &engine, precision));
    if (!engine) return;
    for (const bool token_states : {false, true}) {
      Answers got, alone;
      CHECK_OK(Run(engine.get(), batch, token_states, &got));
      CHECK(Same(got, expected[token_states]));
      // A row alone goes layer by layer, on the same workspace.
      for (int32_t b = 0; b < batch.rows(); b += 7) {
        CHECK_OK(Run(engine.get(), batch.Row(b), token_states, &alone));
        CHECK(std::memcmp(alone.first_states.data(), &got.first_states[static_cast<size_t>(b) * config.hidden_size],
                          config.hidden_size * sizeof(float)) == 0);
      }
      CHECK_OK(Run(engine.get(), batch, token_states, &got));
      CHECK(Same(got, expected[token_states]));
    }
    // Other rows beside it, in other groups: the same bits for the last row.
    RandomBatch other(config, MixedLengths(31, 60), 5);
    const int32_t last = batch.rows() - 1, begin = batch.row_splits[last], end = batch.row_splits[last + 1];
    other.token_ids.insert(other.token_ids.end(), batch.token_ids.begin() + begin, batch.token_ids.begin() + end);
    other.segment_ids.insert(other.segment_ids.end(), batch.segment_ids.begin() + begin,
                             batch.segment_ids.begin() + end);
    other.row_splits.push_back(static_cast<int32_t>(other.token_ids.size()));
    Answers got;
    CHECK_OK(Run(engine.get(), other, false, &got));
    CHECK(std::memcmp(&got.first_states[got.first_states.size() - config.hidden_size],
                      &expected[0].first_states[expected[0].first_states.size() - config.hidden_size],
                      config.hidden_size * sizeof(float)) == 0);
    // No segment ids: all 0.
    RandomBatch zeros = batch;
    std::fill(zeros.segment_ids.begin(), zeros.segment_ids.end(), 0);
    ftbert::Batch none = batch.view();
    none.segment_ids = nullptr;
    Answers first, second;
    CHECK_OK(Run(engine.get(), zeros, false, &first));
    second.logits.assign(first.logits.size(), NAN);
    ftbert::Outputs outputs;
    outputs.logits = second.logits.data();
    if (config.num_labels > 0) {
      CHECK_OK(engine->Run(none, outputs));
      CHECK(Same(second.logits, first.logits));
    }
  }
}

void TestCallersAndEngines() {
  const Config config = Model(64, 2, 128, 2);
  const RandomModel model(config);
  std::shared_ptr<Engine> engines[2];
  CHECK_OK(model.Build("cpu", 2, &engines[0]));
  CHECK_OK(model.Build("cpu", 3, &engines[1], Precision::kInt8));
  const RandomBatch large(config, MixedLengths(40, 60)), small(config, {31, 5});
  Answers of_large[2], of_small[2];
  for (int e = 0; e < 2; ++e) {
    CHECK_OK(Run(engines[e].get(), large, true, &of_large[e]));
    CHECK_OK(Run(engines[e].get(), small, false, &of_small[e]));
  }
  constexpr int kCallers = 8;
  int wrong[kCallers] = {};
  std::vector<std::thread> callers;
  for (int i = 0; i < kCallers; ++i) {
    callers.emplace_back([&, i] {
      for (int round = 0; round < 12; ++round) {
        const int e = (i + round) % 2;
        const bool many = (i + round / 2) % 2 == 0;
        Answers got;
        wrong[i] += !Run(engines[e].get(), many ? large : small, many, &got).ok();
        wrong[i] += !Same(got, many ? of_large[e] : of_small[e]);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (int i = 0; i < kCallers; ++i) CHECK_EQ(wrong[i], 0);
}

long ScratchBytes(const Engine& engine) {
  const std::string text = engine.Describe(), key = "\"scratch_bytes\": ";
  const size_t at = text.find(key);
  CHECK(at != std::string::npos);
  return at == std::string::npos ? -1 : std::atol(text.c_str() + at + key.size());
}

// Memory goes with the groups, not with the tokens, and unused groups' memory is given back.
void TestMemory() {
  const Config config = Model(64, 2, 128, 1);
  const RandomModel model(config);
  std::shared_ptr<Engine> engine;
  CHECK_OK(model.Build("cpu", 2, &engine));
  Answers got;
  CHECK_OK(Run(engine.get(), RandomBatch(config, std::vector<int32_t>(100, 64)), false, &got));
  const long some = ScratchBytes(*engine);
  CHECK_OK(Run(engine.get(), RandomBatch(config, std::vector<int32_t>(400, 64)), false, &got));
  CHECK(ScratchBytes(*engine) < some + 400 * 4 * 1024);  // the results of 400 rows, not 25,600 tokens
  const RandomBatch small(config, {3});
  for (int i = 0; i < 600; ++i) CHECK_OK(Run(engine.get(), small, false, &got));
  std::shared_ptr<Engine> fresh;
  CHECK_OK(model.Build("cpu", 2, &fresh));
  CHECK_OK(Run(fresh.get(), small, false, &got));
  const long kept = ScratchBytes(*fresh) + 400 * 1024;  // where results of 400 rows were
  CHECK(ScratchBytes(*engine) <= kept);
  CHECK(kept < some);
}

// No memory for the groups is an error, and the engine goes on.
void TestOutOfMemory() {
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  const Config config = Model(768, 12, 768, 1);
  const RandomModel model(config);
  std::shared_ptr<Engine> engine;
  CHECK_OK(model.Build("cpu", 4, &engine));
  const RandomBatch large(config, std::vector<int32_t>(32, 128)), small(config, {7});
  const pid_t child = fork();
  if (child == 0) {
    alarm(30);
    Answers before, after, got;
    if (!Run(engine.get(), small, false, &before).ok()) _exit(2);
    long pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    struct rlimit limit;
    limit.rlim_cur = limit.rlim_max = static_cast<rlim_t>(pages) * sysconf(_SC_PAGESIZE) + (rlim_t{2} << 20);
    if (setrlimit(RLIMIT_AS, &limit) != 0) _exit(3);
    if (Run(engine.get(), large, false, &got).code() != ftbert::Code::kOutOfMemory) _exit(4);
    if (!Run(engine.get(), small, false, &after).ok()) _exit(5);
    _exit(Same(before, after) ? 0 : 6);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status));
  CHECK_EQ(WEXITSTATUS(status), 0);
#endif
}

}  // namespace

int main() {
  TestPlans();
  TestHalves();
  TestNoPlans();
  for (int level = 0; level <= static_cast<int>(ftbert::cpu::MachineIsa()); ++level) {
    const char* name = ftbert::cpu::IsaName(static_cast<ftbert::cpu::Isa>(level));
    const IsaScope scope(name);
    for (const Precision precision : {Precision::kFloat32, Precision::kBFloat16, Precision::kInt8}) {
      CheckEngine(Model(97, 1, 129, 2), precision);
      CheckEngine(Model(128, 4, 900, 2), precision);  // an intermediate in two parts, the second smaller
    }
    std::printf("%s checked\n", name);
  }
  Config bare = Model(64, 2, 128, 2);
  bare.num_labels = 0;
  CheckEngine(bare, Precision::kFloat32);
  bare.has_pooler = 0;
  CheckEngine(bare, Precision::kInt8);
  TestCallersAndEngines();
  TestMemory();
  TestOutOfMemory();
  return Finish();
}
