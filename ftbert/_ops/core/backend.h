// The kernel table: what a device must offer so that the one layer loop (core/engine.cc) runs on it.
//
// A backend implements these kernels; precision is its own template argument or member. The loop addresses activations
// by Slot, never by pointer, so that a backend keeps whatever companions it needs beside them (quantized copies,
// scales, padding). Kernels that cannot fail return nothing; a device that can fail (CUDA) records the first error in
// its Workspace and reports it from Download.
#ifndef FTBERT_CORE_BACKEND_H_
#define FTBERT_CORE_BACKEND_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ftbert/engine.h"

namespace ftbert {

// ---- Load time ----------------------------------------------------------------------------------------------------

// A weight matrix as it came, to be read as W[k][n], k < rows (inputs), n < cols (outputs).
struct SourceMatrix {
  const void* data = nullptr;
  DataType type = DataType::kFloat32;
  int32_t rows = 0;         // K, inputs
  int32_t cols = 0;         // N, outputs
  bool transposed = false;  // stored (cols, rows)
  const float* bias = nullptr;  // (cols,), fp32
  bool head = false;            // pooler or classifier: runs on B rows, right before the answer
  bool last = false;            // the last layer's queries, keys and values: what AttendFirst takes
};

// A weight matrix in the layout the device's kernels want, bias included. May be of several parts side by side (q, k,
// v); each part starts where a kernel can start, so that a range of parts can be computed alone.
struct PackedLinear {
  virtual ~PackedLinear() = default;
  virtual size_t bytes() const = 0;
};

struct NormParameters {
  virtual ~NormParameters() = default;
};

struct EmbeddingTables {
  virtual ~EmbeddingTables() = default;
  virtual size_t bytes() const = 0;
};

struct SourceTable {
  const void* data = nullptr;
  DataType type = DataType::kFloat32;
  int32_t rows = 0;
};

// ---- Run time -----------------------------------------------------------------------------------------------------

enum class Slot : int {
  kStates,        // (T, H)   the residual stream
  kQkv,           // (T, 3H)  query, key, value side by side
  kContext,       // (T, H)   what attention returns
  kFirstStates,   // (B, H)   the same three for the first token of each row alone, used in the last layer
  kFirstQuery,    // (B, H)
  kFirstContext,  // (B, H)
  kPooled,        // (B, H)
  kLogits,        // (B, C)
};

// Which rows of the slots a kernel works on.
enum class Span : int { kAllTokens, kFirstTokens };

struct PartRange {
  int begin = 0;
  int end = 1;
};

// What one run needs, decided by the backend (it may round up) before the loop starts.
struct Shape {
  int32_t tokens = 0;       // T
  int32_t rows = 0;         // B
  int32_t longest_row = 0;  // S
  bool all_tokens = false;  // token_states are wanted: the last layer runs over every token
};

// The buffers of one run in flight; a bounded pool of them belongs to the engine.
struct Workspace {
  virtual ~Workspace() = default;
  Shape shape;
};

class Backend {
 public:
  virtual ~Backend() = default;

  // -- load
  virtual Status PackLinear(const std::vector<SourceMatrix>& parts, std::unique_ptr<PackedLinear>* packed) = 0;
  virtual Status PackNorm(const float* gamma, const float* beta, std::unique_ptr<NormParameters>* packed) = 0;  // (H,)
  virtual Status PackEmbeddings(const SourceTable& words, const SourceTable& positions, const SourceTable& segments,
                                std::unique_ptr<EmbeddingTables>* packed) = 0;
  // Once all weights are there, for every layer but the last. `norm`: whose results queries, keys and values are of.
  virtual Status JoinLayer(int32_t layer, const NormParameters& norm, PackedLinear* qkv, PackedLinear* attention_out) {
    (void)layer, (void)norm, (void)qkv, (void)attention_out;
    return Status();
  }
  // Then, that `next` is the product that comes after this one: its weights may be fetched ahead.
  virtual void Follow(PackedLinear* product, const PackedLinear& next) { (void)product, (void)next; }

  // -- one run: Upload, Execute (which calls the loop), Download, all on one workspace
  virtual Status NewWorkspace(std::unique_ptr<Workspace>* workspace) = 0;
  // Makes room (may fail with kOutOfMemory and leaves the workspace usable) and takes the inputs.
  virtual Status Upload(Workspace* workspace, const Shape& shape, const Batch& batch) = 0;
  // Runs `loop` on the workspace, or on workspaces of its own that hold groups of the rows, several at once; or replays
  // what it recorded of an earlier run of the same shape.
  virtual Status Execute(Workspace* workspace, const std::function<void(Workspace*)>& loop) {
    loop(workspace);
    return Status();
  }
  virtual Status Download(Workspace* workspace, const Outputs& outputs) = 0;
  virtual Status Tune(const std::vector<int32_t>& token_counts) {
    (void)token_counts;
    return Status();
  }

  // Batches (tokens, rows) up to most_tokens whose second run is the first at full speed; what Engine::Warm runs.
  virtual std::vector<Shape> WarmShapes(int32_t most_tokens) const {
    (void)most_tokens;
    return {};
  }

  // -- the kernels, in the order of the loop
  // kStates = norm(word[token] + position[index in row] + segment[segment])
  virtual void Embed(Workspace* w, const EmbeddingTables& tables, const NormParameters& norm) = 0;
  // out = in W + bias, for the parts named; part p goes to columns of its own offset in `out`, kFirstQuery holds part 0
  // only
  virtual void Linear(Workspace* w, Span span, Slot in, const PackedLinear& weight, PartRange parts, Slot out) = 0;
  // kAllTokens: kQkv -> kContext. kFirstTokens: kFirstQuery with keys and values of kQkv -> kFirstContext.
  // softmax(q k / sqrt(D)) v within each row, every head.
  virtual void Attend(Workspace* w, Span span) = 0;
  // kStates -> kContext: each token attends to its row with the queries, keys and values of `qkv`. A backend may reach
  // the same result without keeping these.
  virtual void AttendAll(Workspace* w, const PackedLinear& qkv) {
    Linear(w, Span::kAllTokens, Slot::kStates, qkv, PartRange{0, 3}, Slot::kQkv);
    Attend(w, Span::kAllTokens);
  }
  // kFirstStates[b] = kStates[row_splits[b]]
  virtual void GatherFirst(Workspace* w) = 0;
  // kFirstStates, kStates -> kFirstContext: each row's first token attends to all tokens of its row, with the queries,
  // keys and values of `qkv`. Follows GatherFirst. A backend may reach the same result without the keys and values.
  virtual void AttendFirst(Workspace* w, const PackedLinear& qkv) {
    Linear(w, Span::kAllTokens, Slot::kStates, qkv, PartRange{1, 3}, Slot::kQkv);
    Linear(w, Span::kFirstTokens, Slot::kFirstStates, qkv, PartRange{0, 1}, Slot::kFirstQuery);
    Attend(w, Span::kFirstTokens);
  }
  // residual = norm(residual + in W + bias), in place
  virtual void LinearAddNorm(Workspace* w, Span span, Slot in, const PackedLinear& weight, Slot residual,
                             const NormParameters& norm) = 0;
  // states = norm(states + activation(states U + bias) D + bias), in place
  virtual void FeedForward(Workspace* w, Span span, Slot states, const PackedLinear& up, const PackedLinear& down,
                           const NormParameters& norm) = 0;
  // kPooled = tanh(kFirstStates W + bias)
  virtual void Pool(Workspace* w, const PackedLinear& weight) = 0;
  // kLogits = kPooled W + bias
  virtual void Classify(Workspace* w, const PackedLinear& weight) = 0;

  // -- facts, merged into Engine::Describe
  virtual std::string Name() const = 0;          // "cpu avx512 fp32 4 threads"
  virtual std::string DescribeFields() const = 0;  // JSON members without braces: "\"isa\": \"avx512\", ..."
};

// The backends. Each returns kUnavailable with the remedy where it cannot run.
Status NewReferenceBackend(const Config& config, const Options& options, std::unique_ptr<Backend>* backend);
Status NewCpuBackend(const Config& config, const Options& options, std::unique_ptr<Backend>* backend);
// JSON members without braces: "isa": best level usable, "levels": [...], "threads": what the process may use.
std::string DescribeCpuFields();
// Lives in libftbert_cuda, opened when a CUDA device is first asked for (core/cuda_loader.cc).
Status NewCudaBackend(const Config& config, const Options& options, std::unique_ptr<Backend>* backend);

}  // namespace ftbert

#endif  // FTBERT_CORE_BACKEND_H_
