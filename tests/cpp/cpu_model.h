// A BERT of random weights at realistic scale, built and run through the engine's API on any device.
#ifndef FTBERT_TESTS_CPP_CPU_MODEL_H_
#define FTBERT_TESTS_CPP_CPU_MODEL_H_

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "ftbert/engine.h"

namespace ftbert_test {

inline ftbert::Config Model(int32_t hidden, int32_t heads, int32_t intermediate, int32_t layers,
                            int32_t positions = 512) {
  ftbert::Config c;
  c.vocab_size = 211;
  c.hidden_size = hidden;
  c.num_heads = heads;
  c.intermediate_size = intermediate;
  c.num_layers = layers;
  c.max_positions = positions;
  c.type_vocab_size = 2;
  c.num_labels = 5;
  return c;
}

inline bool Same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

struct RandomModel {
  ftbert::Config config;
  std::map<std::string, std::vector<int64_t>> shapes;
  std::map<std::string, std::vector<float>> arrays;

  explicit RandomModel(const ftbert::Config& c, uint32_t seed = 1) : config(c), random_(seed) {
    const int64_t H = c.hidden_size, F = c.intermediate_size;
    Normal("bert/embeddings/word_embeddings", {c.vocab_size, H}, 0.05f);
    Normal("bert/embeddings/position_embeddings", {c.max_positions, H}, 0.02f);
    Normal("bert/embeddings/token_type_embeddings", {c.type_vocab_size, H}, 0.02f);
    Norm("bert/embeddings/LayerNorm");
    for (int32_t l = 0; l < c.num_layers; ++l) {
      const std::string scope = "bert/encoder/layer_" + std::to_string(l) + "/";
      for (const char* name : {"query", "key", "value"}) Dense(scope + "attention/self/" + name, H, H);
      Dense(scope + "attention/output/dense", H, H);
      Norm(scope + "attention/output/LayerNorm");
      Dense(scope + "intermediate/dense", H, F);
      Dense(scope + "output/dense", F, H);
      Norm(scope + "output/LayerNorm");
    }
    if (c.has_pooler) Dense("bert/pooler/dense", H, H);
    if (c.num_labels > 0) {
      Normal("output_weights", {c.num_labels, H}, 0.05f);
      Normal("output_bias", {c.num_labels}, 0.1f);
    }
  }

  ftbert::Status Build(const std::string& device, int threads, std::shared_ptr<ftbert::Engine>* engine,
                       ftbert::Precision precision = ftbert::Precision::kFloat32, bool transposed = false) const {
    ftbert::Options options;
    options.device = device;
    options.threads = threads;
    options.precision = precision;
    std::unique_ptr<ftbert::Builder> builder;
    ftbert::Status status = ftbert::Builder::Create(config, options, &builder);
    for (auto it = arrays.begin(); status.ok() && it != arrays.end(); ++it) {
      ftbert::Array array;
      array.name = it->first;
      array.shape = shapes.at(it->first);
      array.data = it->second.data();
      std::vector<float> turned;
      const bool kernel = it->first.size() > 7 && it->first.compare(it->first.size() - 7, 7, "/kernel") == 0;
      if (transposed && kernel) {
        const int64_t rows = array.shape[0], cols = array.shape[1];
        turned.resize(it->second.size());
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t n = 0; n < cols; ++n) turned[n * rows + r] = it->second[r * cols + n];
        array.shape = {cols, rows};
        array.data = turned.data();
        array.transposed = true;
      }
      status = builder->AddWeight(array);
    }
    return status.ok() ? builder->Finish(engine) : status;
  }

 private:
  void Normal(const std::string& name, std::vector<int64_t> shape, float scale, float mean = 0.f) {
    size_t count = 1;
    for (int64_t size : shape) count *= static_cast<size_t>(size);
    std::normal_distribution<float> normal(mean, scale);
    std::vector<float>& values = arrays[name];
    values.resize(count);
    for (float& value : values) value = normal(random_);
    shapes[name] = std::move(shape);
  }
  void Dense(const std::string& scope, int64_t rows, int64_t cols) {
    Normal(scope + "/kernel", {rows, cols}, 0.04f);
    Normal(scope + "/bias", {cols}, 0.05f);
  }
  void Norm(const std::string& scope) {
    Normal(scope + "/gamma", {config.hidden_size}, 0.1f, 1.f);
    Normal(scope + "/beta", {config.hidden_size}, 0.1f);
  }

  std::mt19937 random_;
};

struct RandomBatch {
  std::vector<int32_t> token_ids, segment_ids, row_splits;

  RandomBatch(const ftbert::Config& config, const std::vector<int32_t>& lengths, uint32_t seed = 2) {
    std::mt19937 random(seed);
    row_splits.push_back(0);
    for (int32_t length : lengths) {
      for (int32_t i = 0; i < length; ++i) {
        token_ids.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(config.vocab_size)));
        segment_ids.push_back(i * 2 > length && config.type_vocab_size > 1 ? 1 : 0);
      }
      row_splits.push_back(static_cast<int32_t>(token_ids.size()));
    }
  }

  int32_t rows() const { return static_cast<int32_t>(row_splits.size()) - 1; }
  int32_t tokens() const { return row_splits.back(); }

  ftbert::Batch view() const {
    ftbert::Batch batch;
    batch.token_ids = token_ids.data();
    batch.segment_ids = segment_ids.data();
    batch.row_splits = row_splits.data();
    batch.num_rows = rows();
    return batch;
  }

  // Row `b` alone.
  RandomBatch Row(int32_t b) const {
    RandomBatch one = *this;
    one.token_ids.assign(token_ids.begin() + row_splits[b], token_ids.begin() + row_splits[b + 1]);
    one.segment_ids.assign(segment_ids.begin() + row_splits[b], segment_ids.begin() + row_splits[b + 1]);
    one.row_splits = {0, row_splits[b + 1] - row_splits[b]};
    return one;
  }
};

struct Answers {
  std::vector<float> logits, pooled, first_states, token_states;
};

inline bool Same(const Answers& a, const Answers& b) {
  return Same(a.logits, b.logits) && Same(a.pooled, b.pooled) && Same(a.first_states, b.first_states) &&
         Same(a.token_states, b.token_states);
}

inline ftbert::Status Run(ftbert::Engine* engine, const RandomBatch& batch, bool token_states, Answers* answers) {
  const ftbert::Config& c = engine->config();
  const size_t B = batch.rows(), T = batch.tokens(), H = c.hidden_size;
  ftbert::Outputs outputs;
  answers->first_states.assign(B * H, NAN);
  outputs.first_states = answers->first_states.data();
  if (c.has_pooler) {
    answers->pooled.assign(B * H, NAN);
    outputs.pooled = answers->pooled.data();
  }
  if (c.num_labels > 0) {
    answers->logits.assign(B * c.num_labels, NAN);
    outputs.logits = answers->logits.data();
  }
  if (token_states) {
    answers->token_states.assign(T * H, NAN);
    outputs.token_states = answers->token_states.data();
  }
  return engine->Run(batch.view(), outputs);
}

// FTBERT_CPU_ISA for the engines built while this lives.
class IsaScope {
 public:
  explicit IsaScope(const char* name) { setenv("FTBERT_CPU_ISA", name, 1); }
  ~IsaScope() { unsetenv("FTBERT_CPU_ISA"); }
};

}  // namespace ftbert_test

#endif  // FTBERT_TESTS_CPP_CPU_MODEL_H_
