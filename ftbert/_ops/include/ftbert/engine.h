// The whole C++ API of the engine: a BERT encoder and classifier that knows no framework.
//
// Life of an engine:  Builder -> AddWeight (once per array) -> Finish -> Engine -> Run (any number, any thread).
// Nothing here throws across the border, prints, or exits: every failure is a Status with a message that says what was
// expected, what came, and what to do.
//
// Shapes, one legend: B rows, T tokens in all rows together, S longest row, H hidden size, N heads, D = H / N head
// size, F feed-forward (intermediate) size, L layers, V vocabulary, C labels.
#ifndef FTBERT_ENGINE_H_
#define FTBERT_ENGINE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace ftbert {

enum class Code : int32_t {
  kOk = 0,
  kInvalidArgument = 1,  // the caller's values are wrong: nothing was run
  kUnavailable = 2,      // the device, instruction set or library asked for is not here
  kOutOfMemory = 3,      // the engine is still usable with a smaller batch
  kInternal = 4,
};

class Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}
  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

// How a source array is stored in memory.
enum class DataType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

// What the matrix products run in. Softmax, layer norm and the residual are fp32 in every precision on a CPU.
enum class Precision : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kInt8 = 3, kFloat8 = 4 };

// kGeluTanh is google-research/bert's "gelu"; kGeluErf is Hugging Face's.
enum class Activation : int32_t { kGeluErf = 0, kGeluTanh = 1, kRelu = 2 };

struct Config {
  int32_t vocab_size = 0;         // V
  int32_t hidden_size = 0;        // H, a multiple of num_heads
  int32_t num_layers = 0;         // L
  int32_t num_heads = 0;          // N
  int32_t intermediate_size = 0;  // F
  int32_t max_positions = 0;      // the longest row that may be run
  int32_t type_vocab_size = 0;    // number of segment ids
  int32_t num_labels = 0;         // C; 0: the model has no classifier
  int32_t has_pooler = 1;         // 0: the model has no pooler (then num_labels must be 0)
  Activation activation = Activation::kGeluTanh;
  float norm_epsilon = 1e-12f;
};

struct Options {
  std::string device = "cpu";  // "cpu", "reference" (tests only), "cuda" or "cuda:<index>"
  Precision precision = Precision::kFloat32;
  int32_t threads = 0;         // CPU threads, 0: what the process may use (affinity and cgroup)
};

// A borrowed array: the pointers need to live only for the call that takes it.
struct Array {
  std::string name;            // google-research/bert's variable name, e.g. "bert/encoder/layer_0/output/dense/kernel"
  DataType type = DataType::kFloat32;
  std::vector<int64_t> shape;  // row-major
  const void* data = nullptr;
  bool transposed = false;     // true: a kernel stored as (out, in), as torch does; false: (in, out)
};

// Rows packed end to end, without padding.
struct Batch {
  const int32_t* token_ids = nullptr;    // (T,)  each in [0, V)
  const int32_t* segment_ids = nullptr;  // (T,)  each in [0, type_vocab_size); null: all 0
  const int32_t* row_splits = nullptr;   // (B + 1,)  row b is [row_splits[b], row_splits[b + 1]), never empty
  int32_t num_rows = 0;                  // B
};

// Host memory of the caller, row-major fp32; null where an output is not wanted.
struct Outputs {
  float* logits = nullptr;        // (B, C)
  float* pooled = nullptr;        // (B, H)  tanh pooler over each row's first token
  float* first_states = nullptr;  // (B, H)  last layer's state of each row's first token, before the pooler
  float* token_states = nullptr;  // (T, H)  last layer's states; asking for it costs the last layer's full work
};

class Engine {
 public:
  virtual ~Engine() = default;

  // Thread-safe. Returns after the outputs are written.
  virtual Status Run(const Batch& batch, const Outputs& outputs) = 0;

  // Searches the fastest kernels for the shapes named (token counts T) and remembers them; a no-op where there is
  // nothing to choose.
  virtual Status Tune(const std::vector<int32_t>& token_counts) = 0;

  // Does what the first runs of each size up to most_tokens would do, for this many runs at once (1 to 4; more count as
  // 4). Meanwhile other runs may wait. A no-op where sizes need no preparing.
  virtual Status Warm(int32_t most_tokens, int32_t at_once) = 0;

  virtual const Config& config() const = 0;

  // One JSON object: device, name ("cpu avx512 fp32 4 threads", "cuda:0 NVIDIA H100 80GB HBM3 fp16"), precision,
  // weight_bytes, scratch_bytes; a CPU's isa, isa_level, threads and strassen (products take tokens in pairs).
  virtual std::string Describe() const = 0;
};

// Weights are converted, packed into the layout the kernels want and released one by one, so that a model is never held
// twice. Arrays may come in any order; Finish names what is missing.
class Builder {
 public:
  static Status Create(const Config& config, const Options& options, std::unique_ptr<Builder>* builder);
  virtual ~Builder() = default;
  virtual Status AddWeight(const Array& array) = 0;
  virtual Status Finish(std::shared_ptr<Engine>* engine) = 0;
};

// What this machine offers, as JSON: cpu levels, threads, CUDA devices with driver, and why a device is not usable.
std::string DescribeMachine();

}  // namespace ftbert

#endif  // FTBERT_ENGINE_H_
