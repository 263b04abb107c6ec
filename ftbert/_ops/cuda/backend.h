// The CUDA backend's own structures: packed weights and the buffers of one run.
#ifndef FTBERT_CUDA_BACKEND_H_
#define FTBERT_CUDA_BACKEND_H_

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/backend.h"
#include "cuda/buckets.h"
#include "cuda/device.h"
#include "cuda/gemm.h"
#include "cuda/kernels.h"
#include "cuda/plans.h"

namespace ftbert {
namespace cuda {

struct CudaLinear final : PackedLinear {
  size_t bytes() const override {
    return w.bytes() + half.bytes() + bias.bytes() + bias_half.bytes() + scale.bytes() + to_states.bytes() +
           to_values.bytes();
  }
  Element element = Element::kHalf;
  int k = 0, part = 0, parts = 1;  // padded inputs, padded outputs of a part
  int outputs = 0;                 // of a part, not padded
  DeviceArray w;                   // (parts * part, k)
  DeviceArray half;                // the same in fp16, where w is fp8 but also classifies
  DeviceArray bias;                // (parts * part,) fp32
  DeviceArray bias_half;           // likewise in 16 bits
  DeviceArray scale;               // (parts * part,) fp8: of each output
  // The last layer's queries, keys and values, for AttendFirst: the keys by heads, turned round (heads * H, head size),
  // and where w is fp8 the values (H, H), in 16 bits.
  DeviceArray to_states, to_values;
  bool bounded_values = false;     // queries, keys, values: JoinLayer has made values fit into fp8
  float longest = 0.f;             // Euclidean length of the longest output's weights
  float largest_bias = 0.f;
};

struct CudaNorm final : NormParameters {
  DeviceArray gamma, beta;
};

struct CudaEmbeddings final : EmbeddingTables {
  size_t bytes() const override { return words.bytes() + positions.bytes() + segments.bytes(); }
  DeviceArray words, positions, segments;  // (rows, pitch)
};

// The rows that a part of the loop works on: all tokens, or each row's first.
struct Rows {
  int count = 0;
  void* states = nullptr;  // (count, pitch)
  void* delta = nullptr;   // (count, pitch) what is to be added to states
  void* context = nullptr;
  void* wide = nullptr;    // (count, feed-forward pitch); shares its place with queries, keys, values and context
  Quantized quantized;
};

// Everything a run reads and writes, in one stretch of device memory.
struct Slots {
  Rows all, first;
  void* qkv = nullptr;
  void* first_query = nullptr;
  void* pooled = nullptr;
  float* logits = nullptr;         // device memory, or pinned where few
  // The latter: of the rows and, where they lie in tiles, of TileSlots tiles, and how many of these there are.
  int2 *ranges = nullptr, *row_ranges = nullptr;
  const Token* tokens = nullptr;   // device memory, or pinned where few
  const int2* row_source = nullptr;
  bool float8_context = false;     // of the layer under way, for all tokens
  bool reversed = false;           // the order in which the latest kernel over all tokens took them
  bool first_in_place = false;     // the last layer's queries lie in qkv and its states in `all`: nothing was gathered
};

struct Reach {
  const void* address;
  int64_t bytes;
};

struct RecordedGraph {
  GraphKey key;
  cudaGraphExec_t run = nullptr;  // null: seen once, not recorded yet
  std::vector<Reach> sequence;    // weights in the order of use, from the run that was not recorded
};

struct CudaWorkspace final : Workspace, Slots {
  explicit CudaWorkspace(int device_index) : device(device_index) {}
  ~CudaWorkspace() override;
  void DropGraphs();

  int device;
  cudaStream_t stream = nullptr;
  int token_room = 0, row_room = 0;  // what the arena holds
  DeviceArray arena;
  DeviceArray scratch;               // cuBLASLt's: kLtScratchBytes, then kLtCounters for a recording's products
  int counters = 0;                  // of the recording under way: used so far
  uint8_t* pinned = nullptr;         // inputs, then logits
  size_t pinned_bytes = 0;
  bool logits_pinned = false;
  bool watched = false;              // the host looks at the pinned logits themselves for the run's end
  Shape real;                        // `shape` holds the rounded sizes
  RowTiles tiles;
  bool tiled = false;                // rows lie as `tiles` says, for AttendAll in one kernel
  bool recorded = false;             // this run replays or records a graph: sizes are rounded

  RecentList<RecordedGraph> graphs{kGraphs};
  std::vector<Reach> sequence, ahead;  // weights in the order of use: so far, and, while recording, all that come
  bool recording = false;
  cudaError_t error = cudaSuccess;
  std::string failed;                // what was being done
};

// While a stream of this process records, no other thread may take memory or wait for the whole device.
std::mutex& RecordingMutex();

class CudaBackend final : public Backend {
 public:
  CudaBackend(const Config& config, Precision precision, const Machine& machine);

  // load.cc
  Status PackLinear(const std::vector<SourceMatrix>& parts, std::unique_ptr<PackedLinear>* packed) override;
  Status PackNorm(const float* gamma, const float* beta, std::unique_ptr<NormParameters>* packed) override;
  Status PackEmbeddings(const SourceTable& words, const SourceTable& positions, const SourceTable& segments,
                        std::unique_ptr<EmbeddingTables>* packed) override;
  Status JoinLayer(int32_t layer, const NormParameters& norm, PackedLinear* qkv,
                   PackedLinear* attention_out) override;

  // run.cc
  Status NewWorkspace(std::unique_ptr<Workspace>* workspace) override;
  Status Upload(Workspace* workspace, const Shape& shape, const Batch& batch) override;
  Status Download(Workspace* workspace, const Outputs& outputs) override;

  // graphs.cc
  Status Execute(Workspace* workspace, const std::function<void(Workspace*)>& layers) override;
  std::vector<Shape> WarmShapes(int32_t most_tokens) const override;

  // tune.cc
  Status Tune(const std::vector<int32_t>& token_counts) override;

  // loop.cc
  void Embed(Workspace* w, const EmbeddingTables& tables, const NormParameters& norm) override;
  void Linear(Workspace* w, Span span, Slot in, const PackedLinear& weight, PartRange parts, Slot out) override;
  void Attend(Workspace* w, Span span) override;
  void AttendAll(Workspace* w, const PackedLinear& qkv) override;
  void GatherFirst(Workspace* w) override;
  void AttendFirst(Workspace* w, const PackedLinear& qkv) override;
  void LinearAddNorm(Workspace* w, Span span, Slot in, const PackedLinear& weight, Slot residual,
                     const NormParameters& norm) override;
  void FeedForward(Workspace* w, Span span, Slot states, const PackedLinear& up, const PackedLinear& down,
                   const NormParameters& norm) override;
  void Pool(Workspace* w, const PackedLinear& weight) override;
  void Classify(Workspace* w, const PackedLinear& weight) override;

  std::string Name() const override;
  std::string DescribeFields() const override;

 private:
  Status PackPart(const SourceMatrix& source, int index, CudaLinear* to);
  Status PackHeads(const std::vector<SourceMatrix>& parts, CudaLinear* to);
  Status PackTable(const SourceTable& source, DeviceArray* to);
  Status MakeRoom(CudaWorkspace* w, int tokens, int rows);
  // Points the slots into an arena; null: only its size is wanted.
  size_t Arrange(uint8_t* arena, int tokens, int rows, Slots* slots) const;
  Status RunOrReplay(CudaWorkspace* w, const std::function<void()>& loop);
  Status RunLoop(CudaWorkspace* w, const std::function<void()>& loop);
  Status Record(CudaWorkspace* w, RecordedGraph* graph, const std::function<void()>& loop);

  Norm NormOf(const CudaNorm& norm) const;
  Gemm Product(const CudaLinear& weight, int first_part, int parts) const;
  void ReachAhead(CudaWorkspace* w, Gemm* gemm) const;
  void Multiply(CudaWorkspace* w, Gemm gemm, const char* doing);
  // x = the rows' states, in the type that `weight` wants.
  void TakeStates(CudaWorkspace* w, Rows* rows, const CudaLinear& weight, Gemm* gemm) const;
  void MultiplyStates(CudaWorkspace* w, Rows* rows, const CudaLinear& weight, Gemm gemm, const char* doing);
  void MultiplyAddNorm(CudaWorkspace* w, Rows* rows, Gemm gemm, const char* doing, const NormParameters& norm);
  bool InPlace(const CudaWorkspace* w) const;
  // Whether there are tiles of short rows for this model here; whether batches of so many tokens, rounded, run in them
  // where their rows fit; and whether this one's rows do, into at most so many: `w->tiles` then.
  bool HasTiles() const;
  bool MayTile(int tokens) const;
  bool Tiles(CudaWorkspace* w, const Batch& batch, int most) const;
  bool AttendsStates(const CudaWorkspace* w, const CudaLinear& qkv) const;
  void Check(CudaWorkspace* w, cudaError_t error, const char* doing) const;

  Config config_;
  Precision precision_;
  Machine machine_;
  Element element_;    // of activations, and of weights that are not fp8
  int pitch_, wide_;   // of H and of F columns
  PlanTable plans_;
  std::vector<const CudaLinear*> packed_;  // for Tune; owned by the engine
  mutable std::mutex mutex_;
  size_t workspace_bytes_ = 0;             // of all workspaces
};

int ActOf(Activation activation);  // as Gemm::act

}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_CUDA_BACKEND_H_
