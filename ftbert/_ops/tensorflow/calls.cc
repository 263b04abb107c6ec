#include "calls.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>

namespace ftbert_op {
namespace {

constexpr int kInvalidArgument = 1;

std::string ShapeText(const Tensor& tensor) {
  std::string text = "(";
  for (size_t i = 0; i < tensor.shape.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(tensor.shape[i]);
  }
  return text + ")";
}

// Calls a function of the C ABI, whose last two arguments are the place for the error.
template <typename Function, typename... Arguments>
Result Call(Function function, Arguments... arguments) {
  char error[4096] = "";
  const int code = function(arguments..., error, sizeof(error));
  return code == 0 ? Result() : Result(code, error);
}

// ---- Fingerprints -------------------------------------------------------------------------------------------------
// Hashing BERT-base whole takes longer than running it on a short text. What tells of a change: where each array lies,
// all of a small array (every bias and norm), and evenly spaced numbers of a large one. An optimizer's step and a
// restored checkpoint change all of these; who changes single numbers by hand calls ftbert_encoder_refresh.

constexpr int64_t kWholeUpTo = 4096;  // numbers
constexpr int64_t kSamples = 64;

std::atomic<uint64_t> generation{1};

uint64_t Mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9E3779B97F4A7C15ull;  // Fibonacci hashing, one multiplication a word
  return hash ^ (hash >> 29);
}

uint64_t Fingerprint(const EncoderOptions& options, const std::vector<Tensor>& weights) {
  uint64_t hash = Mix(0, generation.load());
  for (const std::string& name : options.names) {
    for (char c : name) hash = Mix(hash, static_cast<unsigned char>(c));
  }
  for (char c : options.device) hash = Mix(hash, static_cast<unsigned char>(c));
  uint32_t epsilon;
  std::memcpy(&epsilon, &options.norm_epsilon, sizeof(epsilon));
  for (int64_t fact : {int64_t{options.num_heads}, int64_t{options.activation}, int64_t{options.precision},
                       int64_t{options.threads}, int64_t{epsilon}}) {
    hash = Mix(hash, static_cast<uint64_t>(fact));
  }
  for (const Tensor& weight : weights) {
    int64_t count = 1;
    for (int64_t size : weight.shape) {
      hash = Mix(hash, static_cast<uint64_t>(size));
      count *= size;
    }
    hash = Mix(hash, reinterpret_cast<uintptr_t>(weight.data));
    const float* numbers = static_cast<const float*>(weight.data);
    const int64_t samples = count <= kWholeUpTo ? count : kSamples;
    for (int64_t i = 0; i < samples; ++i) {
      uint32_t bits;
      std::memcpy(&bits, numbers + (count <= kWholeUpTo ? i : i * (count / kSamples)), sizeof(bits));
      hash = Mix(hash, bits);
    }
  }
  return hash;
}

// Several ops of one graph over the same variables (pooled output and token states, say) share one engine.
struct EngineCache {
  std::mutex mutex;
  std::map<uint64_t, std::weak_ptr<SharedEngine>> engines;
};

EngineCache& Cache() {
  static EngineCache* cache = new EngineCache;  // never destroyed: kernels may outlive the process's statics
  return *cache;
}

// ---- Building an engine from variables ----------------------------------------------------------------------------

const Tensor* Find(const EncoderOptions& options, const std::vector<Tensor>& weights, const std::string& name) {
  const auto found = std::find(options.names.begin(), options.names.end(), name);
  return found == options.names.end() ? nullptr : &weights[found - options.names.begin()];
}

Result ReadSize(const EncoderOptions& options, const std::vector<Tensor>& weights, const std::string& name, size_t axis,
                int32_t* size) {
  const Tensor* weight = Find(options, weights, name);
  if (weight == nullptr) return Result(kInvalidArgument, "Expected a weight named " + name + ", got none.");
  if (weight->shape.size() != 2) {
    return Result(kInvalidArgument, name + ": expected two dimensions, got the shape " + ShapeText(*weight) + ".");
  }
  *size = static_cast<int32_t>(weight->shape[axis]);
  return Result();
}

Result ReadConfig(const EncoderOptions& options, const std::vector<Tensor>& weights, ftbert_config* config) {
  const std::string base = "bert/embeddings/";
  *config = ftbert_config();
  Result result = ReadSize(options, weights, base + "word_embeddings", 0, &config->vocab_size);
  if (result.ok()) result = ReadSize(options, weights, base + "word_embeddings", 1, &config->hidden_size);
  if (result.ok()) result = ReadSize(options, weights, base + "position_embeddings", 0, &config->max_positions);
  if (result.ok()) result = ReadSize(options, weights, base + "token_type_embeddings", 0, &config->type_vocab_size);
  if (result.ok()) {
    const char* kernel = "bert/encoder/layer_0/intermediate/dense/kernel";
    result = ReadSize(options, weights, kernel, 1, &config->intermediate_size);
  }
  while (Find(options, weights,
              "bert/encoder/layer_" + std::to_string(config->num_layers) + "/attention/self/query/kernel") != nullptr) {
    ++config->num_layers;
  }
  config->num_heads = options.num_heads;
  config->has_pooler = Find(options, weights, "bert/pooler/dense/kernel") != nullptr;
  config->activation = options.activation;
  config->norm_epsilon = options.norm_epsilon;
  return result;
}

Result Build(const EncoderOptions& options, const std::vector<Tensor>& weights, std::shared_ptr<SharedEngine>* engine) {
  ftbert_config config;
  Result result = ReadConfig(options, weights, &config);
  ftbert_builder* builder = nullptr;
  if (result.ok()) {
    result = Call(ftbert_builder_create, &config, options.device.c_str(), options.precision, options.threads, &builder);
  }
  for (size_t i = 0; i < weights.size() && result.ok(); ++i) {
    result = Call(ftbert_builder_add, builder, options.names[i].c_str(), 0,
                  static_cast<int32_t>(weights[i].shape.size()), weights[i].shape.data(), weights[i].data, 0);
    if (!result.ok()) ftbert_builder_free(builder);
  }
  int64_t id = 0;
  if (result.ok()) result = Call(ftbert_builder_finish, builder, &id);
  if (result.ok()) *engine = std::make_shared<SharedEngine>(id, config);
  return result;
}

// The number of leading ones of a mask row; -1 when something else follows the zeros, -2 when it holds other numbers.
int64_t PrefixOfOnes(const int32_t* row, int64_t columns) {
  int64_t ones = 0;
  while (ones < columns && row[ones] == 1) ++ones;
  for (int64_t i = ones; i < columns; ++i) {
    if (row[i] == 1) return -1;
    if (row[i] != 0) return -2;
  }
  return ones;
}

}  // namespace

int TensorFlowCode(int ftbert_code) {
  switch (ftbert_code) {
    case 0: return 0;
    case 1: return 3;   // INVALID_ARGUMENT
    case 2: return 9;   // FAILED_PRECONDITION
    case 3: return 8;   // RESOURCE_EXHAUSTED
    default: return 13; // INTERNAL
  }
}

Result PrepareRun(const RunRequest& request, RunSizes* sizes) {
  for (const auto& named : {std::make_pair("token_ids", &request.token_ids),
                            std::make_pair("segment_ids", &request.segment_ids),
                            std::make_pair("row_splits", &request.row_splits)}) {
    if (named.second->shape.size() != 1) {
      return Result(kInvalidArgument, std::string(named.first) + ": expected one dimension, got the shape " +
                                          ShapeText(*named.second) + ".");
    }
  }
  sizes->tokens = request.token_ids.shape[0];
  sizes->rows = request.row_splits.shape[0] - 1;
  if (request.segment_ids.shape[0] != sizes->tokens) {
    return Result(kInvalidArgument, "segment_ids: expected as many as token_ids (" + std::to_string(sizes->tokens) +
                                        "), got " + std::to_string(request.segment_ids.shape[0]) + ".");
  }
  if (sizes->rows < 0) return Result(kInvalidArgument, "row_splits: expected at least one number, got none.");
  const int32_t end = static_cast<const int32_t*>(request.row_splits.data)[sizes->rows];
  if (end != sizes->tokens) {
    return Result(kInvalidArgument, "row_splits: expected the last to be the number of token_ids (" +
                                        std::to_string(sizes->tokens) + "), got " + std::to_string(end) + ".");
  }
  ftbert_config config;
  const Result result = Call(ftbert_engine_config, request.engine, &config);
  sizes->hidden_size = config.hidden_size;
  sizes->num_labels = config.num_labels;
  return result;
}

Result Run(const RunRequest& request, const RunSizes& sizes, const ftbert_outputs& outputs) {
  return Call(ftbert_run, request.engine, static_cast<const int32_t*>(request.token_ids.data),
              static_cast<const int32_t*>(request.segment_ids.data),
              static_cast<const int32_t*>(request.row_splits.data), static_cast<int32_t>(sizes.rows), &outputs);
}

Result Encoder::EngineFor(const std::vector<Tensor>& weights, std::shared_ptr<SharedEngine>* engine) {
  const uint64_t fingerprint = Fingerprint(options_, weights);
  std::lock_guard<std::mutex> lock(mutex_);
  if (engine_ == nullptr || fingerprint_ != fingerprint) {
    engine_.reset();  // first: two models at once may not fit
    EngineCache& cache = Cache();
    std::lock_guard<std::mutex> cache_lock(cache.mutex);
    for (auto it = cache.engines.begin(); it != cache.engines.end();) {
      it = it->second.expired() ? cache.engines.erase(it) : std::next(it);
    }
    const auto found = cache.engines.find(fingerprint);
    if (found != cache.engines.end()) engine_ = found->second.lock();
    if (engine_ == nullptr) {
      const Result result = Build(options_, weights, &engine_);
      if (!result.ok()) return result;
      cache.engines[fingerprint] = engine_;
    }
    fingerprint_ = fingerprint;
  }
  *engine = engine_;
  return Result();
}

Result Encoder::Prepare(const std::vector<Tensor>& weights, const Tensor& token_ids, const Tensor& mask,
                        const Tensor& segment_ids, PaddedCall* call) {
  if (weights.size() != options_.names.size()) {
    return Result(kInvalidArgument, "Expected a weight for each of " + std::to_string(options_.names.size()) +
                                        " names, got " + std::to_string(weights.size()) + ".");
  }
  if (token_ids.shape.size() != 2) {
    return Result(kInvalidArgument, "input_ids: expected the shape (rows, columns), got " + ShapeText(token_ids) + ".");
  }
  if (mask.shape != token_ids.shape || segment_ids.shape != token_ids.shape) {
    return Result(kInvalidArgument, "input_mask and token_type_ids: expected input_ids' shape " + ShapeText(token_ids) +
                                        ", got " + ShapeText(mask) + " and " + ShapeText(segment_ids) + ".");
  }
  const Result result = EngineFor(weights, &call->engine);
  if (!result.ok()) return result;
  call->rows = token_ids.shape[0];
  call->columns = token_ids.shape[1];
  call->hidden_size = call->engine->config().hidden_size;
  call->row_splits.assign(1, 0);
  const int32_t* ids = static_cast<const int32_t*>(token_ids.data);
  const int32_t* ones = static_cast<const int32_t*>(mask.data);
  const int32_t* segments = static_cast<const int32_t*>(segment_ids.data);
  for (int64_t row = 0; row < call->rows; ++row) {
    const int64_t begin = row * call->columns;
    int64_t length = PrefixOfOnes(ones + begin, call->columns);
    if (length < 0) {
      return Result(kInvalidArgument,
                    "input_mask: expected ones and then zeros in every row, got " +
                        std::string(length == -1 ? "a 1 after a 0" : "another number") + " in row " +
                        std::to_string(row) +
                        ". Put the padding at the end of the row, or use ftbert.modeling.BertModel for this mask.");
    }
    if (length == 0) length = call->columns;
    call->token_ids.insert(call->token_ids.end(), ids + begin, ids + begin + length);
    call->segment_ids.insert(call->segment_ids.end(), segments + begin, segments + begin + length);
    call->row_splits.push_back(static_cast<int32_t>(call->token_ids.size()));
  }
  return Result();
}

Result Encoder::Run(const PaddedCall& call, float* sequence, float* pooled) {
  if (call.rows == 0 || call.columns == 0) return Result();
  const int64_t hidden = call.hidden_size, tokens = static_cast<int64_t>(call.token_ids.size());
  const bool padded = tokens != call.rows * call.columns;
  std::vector<float> packed(sequence != nullptr && padded ? tokens * hidden : 0);
  ftbert_outputs outputs = ftbert_outputs();
  outputs.pooled = pooled;
  if (sequence != nullptr) outputs.token_states = padded ? packed.data() : sequence;
  const Result result = Call(ftbert_run, call.engine->id(), call.token_ids.data(), call.segment_ids.data(),
                             call.row_splits.data(), static_cast<int32_t>(call.rows), &outputs);
  if (!result.ok() || packed.empty()) return result;
  for (int64_t row = 0; row < call.rows; ++row) {
    const int64_t begin = call.row_splits[row], length = call.row_splits[row + 1] - begin;
    float* to = sequence + row * call.columns * hidden;
    std::copy_n(packed.data() + begin * hidden, length * hidden, to);
    std::fill_n(to + length * hidden, (call.columns - length) * hidden, 0.0f);
  }
  return Result();
}

}  // namespace ftbert_op

extern "C" void ftbert_encoder_refresh(void) { ++ftbert_op::generation; }
