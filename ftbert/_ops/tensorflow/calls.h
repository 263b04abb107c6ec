// What both TensorFlow adapters do between TensorFlow's tensors and the engine's C ABI. No TensorFlow header here, and
// of the engine only c_api.h; C++14, because TensorFlow 1.x asks for it.
//
// FtbertRun      packed token ids -> outputs of an engine that Python has loaded (its id is an attribute).
// FtbertEncoder  a graph's own BERT variables and padded token ids -> token states and pooled outputs; the engine is
//                built from the variables at the first run, and again when they have changed.
//
// Shapes: B rows, T tokens in all rows, S columns of a padded batch, H hidden size, C labels.
#ifndef FTBERT_TENSORFLOW_CALLS_H_
#define FTBERT_TENSORFLOW_CALLS_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "ftbert/c_api.h"

namespace ftbert_op {

// `code` is a ftbert::Code; 0 is success.
struct Result {
  Result() = default;
  Result(int code_, std::string message_) : code(code_), message(std::move(message_)) {}
  bool ok() const { return code == 0; }
  int code = 0;
  std::string message;
};

// TensorFlow's canonical status code for a ftbert::Code, the same numbers in every TensorFlow.
// "Unavailable" is not passed on as such: MonitoredSession and Estimator take it for a lost worker and retry forever.
int TensorFlowCode(int ftbert_code);

// A borrowed tensor: row-major, int32 for ids and masks, float for weights.
struct Tensor {
  const void* data = nullptr;
  std::vector<int64_t> shape;
};

// ---- FtbertRun ----------------------------------------------------------------------------------------------------

struct RunRequest {
  int64_t engine = 0;
  Tensor token_ids;    // (T,)
  Tensor segment_ids;  // (T,)
  Tensor row_splits;   // (B + 1,)
};

struct RunSizes {
  int64_t rows = 0, tokens = 0, hidden_size = 0, num_labels = 0;  // B, T, H, C
};

// Checks what the engine cannot see, the lengths of the arrays, and tells how large the outputs are.
Result PrepareRun(const RunRequest& request, RunSizes* sizes);
Result Run(const RunRequest& request, const RunSizes& sizes, const ftbert_outputs& outputs);

// ---- FtbertEncoder ------------------------------------------------------------------------------------------------

struct EncoderOptions {
  std::vector<std::string> names;  // google-research/bert's name of each weight, "bert/..."
  int32_t num_heads = 0;
  int32_t activation = 1;  // as in ftbert_config
  float norm_epsilon = 1e-12f;
  std::string device = "cpu";
  int32_t precision = 0;
  int32_t threads = 0;
};

// An engine that is released with its last user.
class SharedEngine {
 public:
  SharedEngine(int64_t id, const ftbert_config& config) : id_(id), config_(config) {}
  ~SharedEngine() { ftbert_engine_release(id_, nullptr, 0); }
  SharedEngine(const SharedEngine&) = delete;
  SharedEngine& operator=(const SharedEngine&) = delete;
  int64_t id() const { return id_; }
  const ftbert_config& config() const { return config_; }

 private:
  int64_t id_;
  ftbert_config config_;
};

// One padded batch with its padding taken out. Kept apart from the kernel, so that many threads may run one kernel.
struct PaddedCall {
  std::shared_ptr<SharedEngine> engine;
  int64_t rows = 0, columns = 0, hidden_size = 0;  // B, S, H
  std::vector<int32_t> token_ids, segment_ids, row_splits;
};

class Encoder {
 public:
  explicit Encoder(EncoderOptions options) : options_(std::move(options)) {}

  // Packs the batch and finds or builds the engine for these weights. Thread-safe.
  //   weights       one per options.names
  //   token_ids, mask, segment_ids  (B, S); a row's mask is ones and then zeros. A row without a one attends to all of
  //                 its S tokens: adding the same number to every score, as google-research/bert does, masks nothing.
  Result Prepare(const std::vector<Tensor>& weights, const Tensor& token_ids, const Tensor& mask,
                 const Tensor& segment_ids, PaddedCall* call);

  // sequence: (B, S, H) or null, zero where the mask is 0. pooled: (B, H) or null.
  static Result Run(const PaddedCall& call, float* sequence, float* pooled);

 private:
  Result EngineFor(const std::vector<Tensor>& weights, std::shared_ptr<SharedEngine>* engine);

  const EncoderOptions options_;
  std::mutex mutex_;
  uint64_t fingerprint_ = 0;
  std::shared_ptr<SharedEngine> engine_;
};

}  // namespace ftbert_op

extern "C" {
// Makes every FtbertEncoder of this process build its engine anew at its next run.
FTBERT_API void ftbert_encoder_refresh(void);
}

#endif  // FTBERT_TENSORFLOW_CALLS_H_
