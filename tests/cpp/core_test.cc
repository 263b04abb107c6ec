// The core alone: 16-bit conversions over every value, and the C ABI's refusals.
#include <cmath>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "core/half.h"
#include "core/weights.h"
#include "ftbert/c_api.h"

namespace {

void TestHalfConversions() {
  long wrong16 = 0, wrong_bf16 = 0;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const float value = ftbert::Float16ToFloat(half);
    const uint16_t back = ftbert::FloatToFloat16(value);
    wrong16 += std::isnan(value) ? !std::isnan(ftbert::Float16ToFloat(back)) : back != half;
    const float brain = ftbert::BFloat16ToFloat(half);
    const uint16_t brain_back = ftbert::FloatToBFloat16(brain);
    wrong_bf16 += std::isnan(brain) ? !std::isnan(ftbert::BFloat16ToFloat(brain_back)) : brain_back != half;
  }
  CHECK_EQ(wrong16, 0L);
  CHECK_EQ(wrong_bf16, 0L);
  CHECK_EQ(ftbert::Float16ToFloat(0x3c00), 1.0f);
  CHECK_EQ(ftbert::Float16ToFloat(0x7bff), 65504.0f);
  CHECK_EQ(ftbert::Float16ToFloat(0x0001), std::ldexp(1.0f, -24));
  // Nearest, ties to even: halfway between 1 and the next value goes to 1, three halves go up.
  CHECK_EQ(ftbert::FloatToFloat16(1.0f + std::ldexp(1.0f, -11)), 0x3c00);
  CHECK_EQ(ftbert::FloatToFloat16(1.0f + 3 * std::ldexp(1.0f, -11)), 0x3c02);
  CHECK_EQ(ftbert::FloatToFloat16(65519.0f), 0x7bff);
  CHECK_EQ(ftbert::FloatToFloat16(65520.0f), 0x7c00);
  CHECK_EQ(ftbert::FloatToFloat16(std::ldexp(1.0f, -25)), 0x0000);
  CHECK_EQ(ftbert::FloatToFloat16(-std::ldexp(3.0f, -26)), 0x8001);
  CHECK_EQ(ftbert::FloatToBFloat16(1.0f + std::ldexp(1.0f, -8)), 0x3f80);
  CHECK_EQ(ftbert::FloatToBFloat16(1.0f + 3 * std::ldexp(1.0f, -8)), 0x3f82);
}

ftbert_config TinyConfig() {
  ftbert_config config = {};
  config.vocab_size = 11;
  config.hidden_size = 4;
  config.num_layers = 1;
  config.num_heads = 2;
  config.intermediate_size = 6;
  config.max_positions = 9;
  config.type_vocab_size = 2;
  config.num_labels = 3;
  config.has_pooler = 1;
  config.activation = 1;
  config.norm_epsilon = 1e-12f;
  return config;
}

int Create(const ftbert_config& config, const char* device, ftbert_builder** builder, std::string* message) {
  char error[512] = "";
  const int code = ftbert_builder_create(&config, device, 0, 1, builder, error, sizeof error);
  *message = error;
  return code;
}

void TestConfigurationsAreChecked() {
  const struct {
    int32_t ftbert_config::*field;
    int32_t value;
    const char* word;
  } wrong[] = {{&ftbert_config::vocab_size, 0, "vocab_size"},   {&ftbert_config::num_layers, -1, "num_layers"},
               {&ftbert_config::num_heads, 3, "hidden_size"},   {&ftbert_config::hidden_size, 1024, "hidden_size"},
               {&ftbert_config::has_pooler, 0, "pooler"},       {&ftbert_config::num_labels, -1, "pooler"},
               {&ftbert_config::activation, 3, "activation"},   {&ftbert_config::max_positions, 0, "max_positions"}};
  for (const auto& item : wrong) {
    ftbert_config config = TinyConfig();
    config.*item.field = item.value;
    ftbert_builder* builder = nullptr;
    std::string message;
    CHECK_EQ(Create(config, "reference", &builder, &message), 1);
    CHECK(message.find(item.word) != std::string::npos);
    CHECK(builder == nullptr);
  }
  ftbert_config config = TinyConfig();
  config.norm_epsilon = std::nanf("");
  ftbert_builder* builder = nullptr;
  std::string message;
  CHECK_EQ(Create(config, "reference", &builder, &message), 1);
}

int64_t BuildTiny() {
  ftbert_builder* builder = nullptr;
  std::string message;
  CHECK_EQ(Create(TinyConfig(), "reference", &builder, &message), 0);
  std::vector<float> values(64);
  for (size_t i = 0; i < values.size(); ++i) values[i] = 0.01f * static_cast<float>((i * 37) % 29) - 0.1f;
  char error[512] = "";
  auto add = [&](const std::string& name, std::vector<int64_t> shape) {
    CHECK_EQ(ftbert_builder_add(builder, name.c_str(), 0, static_cast<int32_t>(shape.size()), shape.data(),
                                values.data(), 0, error, sizeof error),
             0);
  };
  add("bert/embeddings/word_embeddings", {11, 4});
  add("bert/embeddings/position_embeddings", {9, 4});
  add("bert/embeddings/token_type_embeddings", {2, 4});
  const std::string layer = "bert/encoder/layer_0/";
  for (const std::string& norm :
       {std::string("bert/embeddings"), layer + "attention/output", layer + "output"}) {
    add(norm + "/LayerNorm/gamma", {4});
    add(norm + "/LayerNorm/beta", {4});
  }
  for (const char* part :
       {"attention/self/query", "attention/self/key", "attention/self/value", "attention/output/dense"}) {
    add(layer + part + "/kernel", {4, 4});
    add(layer + part + "/bias", {4});
  }
  add(layer + "intermediate/dense/kernel", {4, 6});
  add(layer + "intermediate/dense/bias", {6});
  add(layer + "output/dense/kernel", {6, 4});
  add(layer + "output/dense/bias", {4});
  add("bert/pooler/dense/kernel", {4, 4});
  add("bert/pooler/dense/bias", {4});
  add("output_weights", {3, 4});
  add("output_bias", {3});
  int64_t engine = 0;
  CHECK_EQ(ftbert_builder_finish(builder, &engine, error, sizeof error), 0);
  return engine;
}

// More callers than workspaces: all are answered, all alike.
void TestManyCallers(int64_t engine) {
  const int32_t ids[] = {1, 2, 3, 10, 0}, splits[] = {0, 2, 5};
  std::vector<std::vector<float>> logits(16, std::vector<float>(6, std::nanf("")));
  std::vector<std::thread> callers;
  for (auto& mine : logits) {
    callers.emplace_back([&mine, engine, &ids, &splits] {
      for (int i = 0; i < 20; ++i) {
        ftbert_outputs outputs = {};
        outputs.logits = mine.data();
        ftbert_run(engine, ids, nullptr, splits, 2, &outputs, nullptr, 0);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const auto& mine : logits) {
    CHECK(std::isfinite(mine[0]) && std::memcmp(mine.data(), logits[0].data(), 6 * sizeof(float)) == 0);
  }
}

void TestTheAbiRefuses(int64_t engine) {
  char error[256] = "";
  const int32_t ids[] = {1}, splits[] = {0, 1};
  ftbert_outputs outputs = {};
  CHECK_EQ(ftbert_run(engine + 1000, ids, nullptr, splits, 1, &outputs, error, sizeof error), 1);
  CHECK(std::string(error).find("not loaded in this process") != std::string::npos);
  CHECK_EQ(ftbert_run(engine, ids, nullptr, splits, 1, nullptr, error, sizeof error), 1);
  CHECK_EQ(ftbert_run(engine, nullptr, nullptr, splits, 1, &outputs, error, sizeof error), 1);
  CHECK_EQ(ftbert_run(engine, ids, nullptr, splits, 0, &outputs, error, sizeof error), 1);
  CHECK_EQ(ftbert_warm(engine + 1000, 8, 1, error, sizeof error), 1);
  CHECK_EQ(ftbert_warm(engine, 0, 1, error, sizeof error), 1);
  CHECK_EQ(ftbert_warm(engine, 8, 0, error, sizeof error), 1);
  CHECK_EQ(ftbert_warm(engine, 8, 9, error, sizeof error), 0);  // nothing to prepare here
  CHECK_EQ(ftbert_describe(engine + 1000, error, sizeof error), -1);
  CHECK_EQ(ftbert_builder_create(nullptr, "cpu", 0, 0, nullptr, error, sizeof error), 1);
  CHECK_EQ(ftbert_builder_finish(nullptr, nullptr, error, sizeof error), 1);
  // A short buffer cuts the message and ends it.
  char tiny[8];
  std::memset(tiny, 'x', sizeof tiny);
  CHECK_EQ(ftbert_run(engine + 1000, ids, nullptr, splits, 1, &outputs, tiny, sizeof tiny), 1);
  CHECK_EQ(std::strlen(tiny), 7u);
  const int64_t wanted = ftbert_describe(engine, nullptr, 0);
  CHECK(wanted > 20 && ftbert_describe(engine, tiny, sizeof tiny) == wanted);
  CHECK_EQ(ftbert_engine_release(engine, error, sizeof error), 0);
  CHECK_EQ(ftbert_engine_release(engine, error, sizeof error), 1);
}

}  // namespace

int main() {
  TestHalfConversions();
  TestConfigurationsAreChecked();
  const int64_t engine = BuildTiny();
  TestManyCallers(engine);
  TestTheAbiRefuses(engine);
  return ftbert_test::Finish();
}
