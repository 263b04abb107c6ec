// What the TensorFlow adapters do between tensors and the C ABI (tensorflow/calls.h), without a TensorFlow.
#include "tensorflow/calls.h"

#include <cmath>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"

namespace {

using ftbert_op::Encoder;
using ftbert_op::EncoderOptions;
using ftbert_op::PaddedCall;
using ftbert_op::PrepareRun;
using ftbert_op::Result;
using ftbert_op::Run;
using ftbert_op::RunRequest;
using ftbert_op::RunSizes;
using ftbert_op::Tensor;

constexpr int64_t kHidden = 24, kInner = 40, kWords = 300, kPositions = 20;

struct Model {
  std::vector<std::string> names;
  std::vector<std::vector<int64_t>> shapes;
  std::vector<std::vector<float>> arrays;

  Model() {
    const std::string layer = "bert/encoder/layer_0/", base = "bert/embeddings/";
    Add(base + "word_embeddings", {kWords, kHidden});
    Add(base + "position_embeddings", {kPositions, kHidden});
    Add(base + "token_type_embeddings", {2, kHidden});
    for (const std::string& norm : {base, layer + "attention/output/", layer + "output/"}) {
      Add(norm + "LayerNorm/gamma", {kHidden});
      Add(norm + "LayerNorm/beta", {kHidden});
    }
    for (const char* part : {"attention/self/query", "attention/self/key", "attention/self/value"}) {
      Dense(layer + part, kHidden, kHidden);
    }
    Dense(layer + "attention/output/dense", kHidden, kHidden);
    Dense(layer + "intermediate/dense", kHidden, kInner);
    Dense(layer + "output/dense", kInner, kHidden);
    Dense("bert/pooler/dense", kHidden, kHidden);
  }
  void Dense(const std::string& name, int64_t inputs, int64_t outputs) {
    Add(name + "/kernel", {inputs, outputs});
    Add(name + "/bias", {outputs});
  }
  void Add(const std::string& name, std::vector<int64_t> shape) {
    static std::mt19937 random(7);
    std::normal_distribution<float> normal(0.0f, 0.3f);
    size_t count = 1;
    for (int64_t size : shape) count *= static_cast<size_t>(size);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random);
    names.push_back(name);
    shapes.push_back(std::move(shape));
    arrays.push_back(std::move(values));
  }
  std::vector<Tensor> Views() const {
    std::vector<Tensor> views(names.size());
    for (size_t i = 0; i < views.size(); ++i) {
      views[i].data = arrays[i].data();
      views[i].shape = shapes[i];
    }
    return views;
  }
  EncoderOptions Options() const {
    EncoderOptions options;
    options.names = names;
    options.num_heads = 3;
    options.threads = 1;
    return options;
  }
};

Tensor Ints(const std::vector<int32_t>& values, std::vector<int64_t> shape) {
  Tensor tensor;
  tensor.data = values.data();
  tensor.shape = std::move(shape);
  return tensor;
}

struct Answer {
  Result result;
  int64_t engine = 0;
  std::vector<float> sequence, pooled;
};

Answer Ask(Encoder* encoder, const Model& model, const std::vector<int32_t>& ids, const std::vector<int32_t>& mask,
           int64_t rows, int64_t columns) {
  const std::vector<int32_t> segments(ids.size(), 0);
  PaddedCall call;
  Answer answer;
  answer.result = encoder->Prepare(model.Views(), Ints(ids, {rows, columns}), Ints(mask, {rows, columns}),
                                   Ints(segments, {rows, columns}), &call);
  if (!answer.result.ok()) return answer;
  answer.engine = call.engine->id();
  answer.sequence.assign(ids.size() * kHidden, NAN);
  answer.pooled.assign(static_cast<size_t>(rows) * kHidden, NAN);
  answer.result = Encoder::Run(call, answer.sequence.data(), answer.pooled.data());
  return answer;
}

void TestPadding(const Model& model) {
  Encoder encoder(model.Options());
  const Answer padded = Ask(&encoder, model, {5, 6, 7, 0, 0, 8, 9, 10, 11, 12}, {1, 1, 1, 0, 0, 1, 1, 1, 1, 1}, 2, 5);
  const Answer alone = Ask(&encoder, model, {5, 6, 7}, {1, 1, 1}, 1, 3);
  CHECK_EQ(padded.result.message, std::string());
  CHECK_EQ(alone.engine, padded.engine);
  CHECK_ALL_NEAR(padded.sequence.data(), alone.sequence.data(), 3 * kHidden, 0, "states of a padded row");
  CHECK_ALL_NEAR(padded.pooled.data(), alone.pooled.data(), kHidden, 0, "pooled output of a padded row");
  const std::vector<float> zeros(2 * kHidden, 0.0f);
  CHECK_ALL_NEAR(padded.sequence.data() + 3 * kHidden, zeros.data(), zeros.size(), 0, "states of padding");
  const Answer ones = Ask(&encoder, model, {5, 6, 7}, {1, 1, 1}, 1, 3);
  const Answer none = Ask(&encoder, model, {5, 6, 7}, {0, 0, 0}, 1, 3);
  CHECK_ALL_NEAR(none.sequence.data(), ones.sequence.data(), 3 * kHidden, 0, "a mask of zeros");
  CHECK(Ask(&encoder, model, {}, {}, 0, 5).result.ok());
}

void TestRefusals(const Model& model) {
  Encoder encoder(model.Options());
  const Answer hole = Ask(&encoder, model, {5, 6, 7}, {1, 0, 1}, 1, 3);
  CHECK_EQ(hole.result.code, 1);
  CHECK(hole.result.message.find("a 1 after a 0 in row 0") != std::string::npos);
  CHECK_EQ(Ask(&encoder, model, {5, 6, 7}, {1, 2, 0}, 1, 3).result.code, 1);
  CHECK_EQ(Ask(&encoder, model, {5, kWords, 7}, {1, 1, 1}, 1, 3).result.code, 1);
  Model incomplete = model;
  incomplete.names[3] = "bert/other";
  Encoder lacking(incomplete.Options());
  CHECK_EQ(Ask(&lacking, incomplete, {5}, {1}, 1, 1).result.code, 1);
}

void TestChangedWeights() {
  Model model;
  Encoder encoder(model.Options()), second(model.Options());
  const std::vector<int32_t> ids = {1, 2, 3}, mask = {1, 1, 1};
  const Answer before = Ask(&encoder, model, ids, mask, 1, 3);
  CHECK_EQ(Ask(&second, model, ids, mask, 1, 3).engine, before.engine);  // ops over the same weights share an engine
  model.arrays.back()[5] += 1.0f;  // one number of a bias
  const Answer after = Ask(&encoder, model, ids, mask, 1, 3);
  CHECK(after.engine != before.engine);
  CHECK(std::fabs(after.pooled[5] - before.pooled[5]) > 1e-3f);
  model.arrays[0][kHidden + 1] += 1.0f;  // one number of a large table may pass unseen ...
  ftbert_encoder_refresh();              // ... until this
  const Answer refreshed = Ask(&encoder, model, ids, mask, 1, 3);
  CHECK(refreshed.engine != after.engine);
  CHECK(refreshed.pooled != after.pooled);
  CHECK_EQ(Ask(&encoder, model, ids, mask, 1, 3).engine, refreshed.engine);
}

void TestThreads(const Model& model) {
  Encoder encoder(model.Options());
  const Answer expected = Ask(&encoder, model, {1, 2, 3, 4}, {1, 1, 1, 0}, 1, 4);
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        if (t == 0 && i % 10 == 0) ftbert_encoder_refresh();
        wrong[t] += Ask(&encoder, model, {1, 2, 3, 4}, {1, 1, 1, 0}, 1, 4).pooled != expected.pooled;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int count : wrong) CHECK_EQ(count, 0);
}

void TestRun(const Model& model) {
  Encoder encoder(model.Options());
  const std::vector<int32_t> ids = {1, 2, 3, 4, 5}, mask(5, 1), segments(5, 0), splits = {0, 2, 5};
  const std::vector<int32_t> short_splits = {0, 2, 4};
  PaddedCall call;  // holds the engine that the requests below name
  CHECK(encoder.Prepare(model.Views(), Ints(ids, {1, 5}), Ints(mask, {1, 5}), Ints(segments, {1, 5}), &call).ok());
  RunRequest request;
  request.engine = call.engine->id();
  request.token_ids = Ints(ids, {5});
  request.segment_ids = Ints(segments, {5});
  request.row_splits = Ints(splits, {3});
  RunSizes sizes;
  CHECK_EQ(PrepareRun(request, &sizes).message, std::string());
  CHECK_EQ(sizes.rows, 2);
  CHECK_EQ(sizes.tokens, 5);
  CHECK_EQ(sizes.hidden_size, kHidden);
  CHECK_EQ(sizes.num_labels, 0);
  std::vector<float> pooled(2 * kHidden, NAN);
  ftbert_outputs outputs = ftbert_outputs();
  outputs.pooled = pooled.data();
  CHECK(Run(request, sizes, outputs).ok());
  for (float value : pooled) CHECK(std::fabs(value) <= 1.0f);

  RunRequest bad = request;
  bad.row_splits = Ints(short_splits, {3});
  CHECK_EQ(PrepareRun(bad, &sizes).code, 1);
  bad = request;
  bad.segment_ids = Ints(segments, {4});
  CHECK_EQ(PrepareRun(bad, &sizes).code, 1);
  bad = request;
  bad.token_ids = Ints(ids, {1, 5});
  CHECK_EQ(PrepareRun(bad, &sizes).code, 1);
  bad = request;
  bad.engine = 1 << 30;
  CHECK_EQ(PrepareRun(bad, &sizes).code, 1);
  bad = request;
  bad.row_splits = Ints(splits, {0});
  CHECK_EQ(PrepareRun(bad, &sizes).code, 1);
}

}  // namespace

int main() {
  const Model model;
  TestPadding(model);
  TestRefusals(model);
  TestChangedWeights();
  TestThreads(model);
  TestRun(model);
  return ftbert_test::Finish();
}
