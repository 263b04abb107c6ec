// The engine: checks, the pool of workspaces, and the one layer loop that every device runs.
#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <utility>

#include "core/backend.h"
#include "core/weights.h"
#include "ftbert/engine.h"

namespace ftbert {
namespace {

// Runs that may be in flight at once on one engine; each holds a workspace. More callers wait for one to come free.
constexpr int kMaxWorkspaces = 4;

// embed -> [ linear(qkv) -> attend -> linear+add+norm -> feed forward+add+norm ] x L -> pool -> classify
//
// Only the first token of each row is read by the pooler, so the last layer computes its queries and all that follows
// attention for the first tokens alone, unless the caller wants the states of all tokens.
void RunLayers(const Config& config, const Weights& weights, Backend* k, Workspace* w) {
  k->Embed(w, *weights.embeddings, *weights.embedding_norm);
  for (int32_t l = 0; l < config.num_layers; ++l) {
    const LayerWeights& layer = weights.layers[l];
    const bool first_only = l + 1 == config.num_layers && !w->shape.all_tokens;
    const Span span = first_only ? Span::kFirstTokens : Span::kAllTokens;
    const Slot states = first_only ? Slot::kFirstStates : Slot::kStates;
    const Slot context = first_only ? Slot::kFirstContext : Slot::kContext;
    if (first_only) {
      k->GatherFirst(w);
      k->AttendFirst(w, *layer.qkv);
    } else {
      k->AttendAll(w, *layer.qkv);
    }
    k->LinearAddNorm(w, span, context, *layer.attention_out, states, *layer.attention_norm);
    k->FeedForward(w, span, states, *layer.up, *layer.down, *layer.output_norm);
  }
  if (w->shape.all_tokens) k->GatherFirst(w);
  if (weights.pooler) k->Pool(w, *weights.pooler);
  if (weights.classifier) k->Classify(w, *weights.classifier);
}

class WorkspacePool {
 public:
  explicit WorkspacePool(Backend* backend) : backend_(backend) {}

  Status Acquire(Workspace** workspace) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (free_.empty() && made_ == kMaxWorkspaces) returned_.wait(lock);
    if (free_.empty()) {
      std::unique_ptr<Workspace> fresh;
      const Status status = backend_->NewWorkspace(&fresh);
      if (!status.ok()) return status;
      ++made_;
      all_.push_back(std::move(fresh));
      free_.push_back(all_.back().get());
    }
    *workspace = free_.back();  // the last one used: its buffers are warm and the others need not grow
    free_.pop_back();
    return Status();
  }

  void Release(Workspace* workspace) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      free_.push_back(workspace);
    }
    returned_.notify_one();
  }

 private:
  Backend* backend_;
  std::mutex mutex_;
  std::condition_variable returned_;
  int made_ = 0;
  std::vector<std::unique_ptr<Workspace>> all_;
  std::vector<Workspace*> free_;
};

Status CheckConfig(const Config& c) {
  const std::pair<const char*, int32_t> positive[] = {
      {"vocab_size", c.vocab_size},       {"hidden_size", c.hidden_size},
      {"num_layers", c.num_layers},       {"num_heads", c.num_heads},
      {"intermediate_size", c.intermediate_size}, {"max_positions", c.max_positions},
      {"type_vocab_size", c.type_vocab_size}};
  for (const auto& item : positive) {
    if (item.second < 1) {
      return Status(Code::kInvalidArgument, std::string("Expected ") + item.first + " of at least 1, got " +
                                                std::to_string(item.second) + ".");
    }
  }
  if (c.hidden_size % c.num_heads != 0 || c.hidden_size / c.num_heads > 128) {
    return Status(Code::kInvalidArgument,
                  "Expected hidden_size to be num_heads times a head size of at most 128, got " +
                      std::to_string(c.hidden_size) + " and " + std::to_string(c.num_heads) + " heads.");
  }
  if (c.num_labels < 0 || (c.num_labels > 0 && !c.has_pooler)) {
    return Status(Code::kInvalidArgument, "A classifier (num_labels > 0) needs a pooler.");
  }
  const int32_t activation = static_cast<int32_t>(c.activation);
  if (activation < 0 || activation > 2) {
    return Status(Code::kInvalidArgument, "Unknown activation " + std::to_string(activation) + ".");
  }
  if (!(c.norm_epsilon > 0.f && c.norm_epsilon < 1.f)) {
    return Status(Code::kInvalidArgument, "Expected a norm_epsilon in (0, 1).");
  }
  return Status();
}

std::string At(const char* what, int64_t index) { return std::string(what) + "[" + std::to_string(index) + "]"; }

// The first id that is not in [0, end), or -1. All are looked at before one is searched for: the compiler makes vectors
// of that, and every batch goes through here.
int64_t FirstOutside(const int32_t* ids, int32_t count, int32_t end) {
  uint32_t outside = 0;
  for (int32_t t = 0; t < count; ++t) outside |= static_cast<uint32_t>(ids[t]) >= static_cast<uint32_t>(end);
  if (outside == 0) return -1;
  int64_t t = 0;
  while (static_cast<uint32_t>(ids[t]) < static_cast<uint32_t>(end)) ++t;
  return t;
}

// Everything is looked at before anything runs: a wrong id would read outside the tables.
Status CheckBatch(const Config& config, const Batch& batch, Shape* shape) {
  if (batch.num_rows < 1 || batch.token_ids == nullptr || batch.row_splits == nullptr) {
    return Status(Code::kInvalidArgument, "Expected a batch of at least one row with token_ids and row_splits.");
  }
  if (batch.row_splits[0] != 0) {
    return Status(Code::kInvalidArgument,
                  "Expected row_splits[0] to be 0, got " + std::to_string(batch.row_splits[0]) + ".");
  }
  for (int32_t b = 0; b < batch.num_rows; ++b) {
    const int64_t length = static_cast<int64_t>(batch.row_splits[b + 1]) - batch.row_splits[b];
    if (length < 1 || length > config.max_positions) {
      return Status(Code::kInvalidArgument, "Row " + std::to_string(b) + " has " + std::to_string(length) +
                                                " tokens; expected 1 to " + std::to_string(config.max_positions) +
                                                " (max_position_embeddings). Truncate it with max_length.");
    }
    shape->longest_row = std::max(shape->longest_row, static_cast<int32_t>(length));
  }
  shape->rows = batch.num_rows;
  shape->tokens = batch.row_splits[batch.num_rows];
  const int64_t token = FirstOutside(batch.token_ids, shape->tokens, config.vocab_size);
  if (token >= 0) {
    return Status(Code::kInvalidArgument, At("token_ids", token) + " is " + std::to_string(batch.token_ids[token]) +
                                              "; expected 0 to " + std::to_string(config.vocab_size - 1) +
                                              ". The vocabulary does not belong to this model.");
  }
  const int64_t segment =
      batch.segment_ids != nullptr ? FirstOutside(batch.segment_ids, shape->tokens, config.type_vocab_size) : -1;
  if (segment >= 0) {
    return Status(Code::kInvalidArgument, At("segment_ids", segment) + " is " +
                                              std::to_string(batch.segment_ids[segment]) + "; expected 0 to " +
                                              std::to_string(config.type_vocab_size - 1) + ".");
  }
  return Status();
}

// No exception leaves the engine.
template <typename Body>
Status Guard(const Body& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return Status(Code::kOutOfMemory, "Out of memory on the host. Use a smaller batch.");
  } catch (const std::exception& error) {
    return Status(Code::kInternal, std::string("Unexpected failure: ") + error.what());
  }
}

class LayeredEngine final : public Engine {
 public:
  LayeredEngine(const Config& config, std::unique_ptr<Backend> backend, Weights weights)
      : config_(config), backend_(std::move(backend)), weights_(std::move(weights)), pool_(backend_.get()) {}

  Status Run(const Batch& batch, const Outputs& outputs) override {
    return Guard([&] { return CheckedRun(batch, outputs); });
  }

  Status Tune(const std::vector<int32_t>& token_counts) override {
    return Guard([&] { return backend_->Tune(token_counts); });
  }

  Status Warm(int32_t most_tokens, int32_t at_once) override {
    return Guard([&] {
      if (most_tokens < 1 || at_once < 1) {
        return Status(Code::kInvalidArgument, "Expected to warm up for at least 1 token and 1 run at once, got " +
                                                  std::to_string(most_tokens) + " and " + std::to_string(at_once) +
                                                  ".");
      }
      const std::vector<Shape> shapes = backend_->WarmShapes(most_tokens);
      if (shapes.empty() || !weights_.classifier) return Status();
      std::lock_guard<std::mutex> lock(warm_mutex_);  // two that each hold some workspaces would wait for one another
      std::vector<Workspace*> held;
      Status status;
      for (int i = 0; i < std::min(at_once, static_cast<int32_t>(kMaxWorkspaces)) && status.ok(); ++i) {
        Workspace* workspace = nullptr;
        status = pool_.Acquire(&workspace);
        if (status.ok()) held.push_back(workspace);
      }
      // The largest first: room is made once.
      for (Workspace* workspace : held) {
        for (auto shape = shapes.rbegin(); shape != shapes.rend() && status.ok(); ++shape) {
          for (int pass = 0; pass < 2 && status.ok(); ++pass) status = WarmOne(workspace, *shape);
        }
      }
      for (Workspace* workspace : held) pool_.Release(workspace);
      return status;
    });
  }

  const Config& config() const override { return config_; }

  std::string Describe() const override {
    return "{\"name\": \"" + backend_->Name() + "\", " + backend_->DescribeFields() +
           ", \"weight_bytes\": " + std::to_string(weights_.bytes()) + "}";
  }

 private:
  Status CheckedRun(const Batch& batch, const Outputs& outputs) {
    if (outputs.logits != nullptr && !weights_.classifier) {
      return Status(Code::kInvalidArgument, "This model has no classifier: logits cannot be had. Ask for the pooled "
                                            "output or the token states.");
    }
    if (outputs.pooled != nullptr && !weights_.pooler) {
      return Status(Code::kInvalidArgument, "This model has no pooler. Ask for first_states or token_states.");
    }
    Shape shape;
    Status status = CheckBatch(config_, batch, &shape);
    if (!status.ok()) return status;
    shape.all_tokens = outputs.token_states != nullptr;
    Workspace* workspace = nullptr;
    status = pool_.Acquire(&workspace);
    if (!status.ok()) return status;
    status = RunOn(workspace, shape, batch, outputs);
    pool_.Release(workspace);
    return status;
  }

  Status RunOn(Workspace* workspace, const Shape& shape, const Batch& batch, const Outputs& outputs) {
    return Guard([&] {
      Status step = backend_->Upload(workspace, shape, batch);
      if (step.ok()) {
        step = backend_->Execute(workspace, [&](Workspace* w) { RunLayers(config_, weights_, backend_.get(), w); });
      }
      if (step.ok()) step = backend_->Download(workspace, outputs);
      return step;
    });
  }

  // A batch of token 0 with its tokens spread evenly over the rows.
  Status WarmOne(Workspace* workspace, const Shape& size) {
    const std::vector<int32_t> ids(size.tokens, 0);
    std::vector<int32_t> splits(size.rows + 1, 0);
    for (int32_t b = 0; b < size.rows; ++b) {
      splits[b + 1] = static_cast<int32_t>(static_cast<int64_t>(size.tokens) * (b + 1) / size.rows);
    }
    std::vector<float> logits(static_cast<size_t>(size.rows) * config_.num_labels);
    Batch batch;
    batch.token_ids = ids.data();
    batch.row_splits = splits.data();
    batch.num_rows = size.rows;
    Outputs outputs;
    outputs.logits = logits.data();
    Shape shape;
    const Status status = CheckBatch(config_, batch, &shape);
    return status.ok() ? RunOn(workspace, shape, batch, outputs) : status;
  }

  Config config_;
  std::unique_ptr<Backend> backend_;
  Weights weights_;     // freed before the backend that made them
  WorkspacePool pool_;  // likewise
  std::mutex warm_mutex_;
};

class LayeredBuilder final : public Builder {
 public:
  LayeredBuilder(const Config& config, std::unique_ptr<Backend> backend)
      : config_(config), backend_(std::move(backend)), collector_(config, backend_.get()) {}

  Status AddWeight(const Array& array) override {
    return Guard([&] { return collector_.Add(array); });
  }

  Status Finish(std::shared_ptr<Engine>* engine) override {
    return Guard([&] {
      Weights weights;
      const Status status = collector_.Finish(&weights);
      if (status.ok()) *engine = std::make_shared<LayeredEngine>(config_, std::move(backend_), std::move(weights));
      return status;
    });
  }

 private:
  Config config_;
  std::unique_ptr<Backend> backend_;
  WeightCollector collector_;
};

}  // namespace

Status Builder::Create(const Config& config, const Options& options, std::unique_ptr<Builder>* builder) {
  return Guard([&] {
    Status status = CheckConfig(config);
    if (!status.ok()) return status;
    if (options.threads < 0) {
      return Status(Code::kInvalidArgument, "Expected threads of 0 (what the process may use) or more, got " +
                                                std::to_string(options.threads) + ".");
    }
    const int32_t precision = static_cast<int32_t>(options.precision);
    if (precision < 0 || precision > 4) {
      return Status(Code::kInvalidArgument, "Unknown precision " + std::to_string(precision) + ".");
    }
    std::unique_ptr<Backend> backend;
    if (options.device == "cpu") {
      status = NewCpuBackend(config, options, &backend);
    } else if (options.device == "reference") {
      status = NewReferenceBackend(config, options, &backend);
    } else if (options.device.compare(0, 4, "cuda") == 0) {
      status = NewCudaBackend(config, options, &backend);
    } else {
      status = Status(Code::kInvalidArgument,
                      "Expected the device \"cpu\", \"cuda\" or \"cuda:<index>\", got \"" + options.device + "\".");
    }
    if (status.ok()) builder->reset(new LayeredBuilder(config, std::move(backend)));
    return status;
  });
}

}  // namespace ftbert
