// The buffers of one run on the CPU: activations by slot, intermediates of products and attention; and of a run in
// groups (groups.h), a workspace for each thread.
#ifndef FTBERT_CPU_WORKSPACE_H_
#define FTBERT_CPU_WORKSPACE_H_

#include <functional>
#include <memory>
#include <vector>

#include "core/backend.h"
#include "cpu/groups.h"
#include "cpu/kernels.h"
#include "cpu/linear.h"
#include "cpu/memory.h"
#include "cpu/product.h"
#include "cpu/thread_pool.h"

namespace ftbert {
namespace cpu {

// What all workspaces of an engine are made for.
struct WorkspacePlan {
  Config config;
  const LinearKernel* linear;
  const Kernels* kernels;
  int threads;
  bool pairs;  // as ChoosePairs says

  int32_t head_size() const { return config.hidden_size / config.num_heads; }
  ptrdiff_t Stride(Slot slot) const;  // floats
  // Attention leaves its context as the product that reads it would prepare it, not as floats: where both are in bf16.
  bool prepares_context() const;
  // Where a row's context, as floats, begins in its row of kQkv: over its queries, which are done with then; behind
  // queries, keys and values in bf16, which have no room for it.
  int32_t ContextColumn() const;
  ptrdiff_t HeadsStride() const;
  int32_t TokenRows(const Shape& shape) const;  // rows of slots that have one for each token, at most
  int32_t QkvRows(const Shape& shape) const;    // rows of kQkv that have the room of its two uses
};

// A row of text with so many tokens has them taken in pairs: alone on its processor, one of fewer would not pay for the
// adding up of weights. It is up to the row alone, so that its bits are.
constexpr int32_t kPairedTokens = 24;

// Whether the encoder's products take rows in pairs (gemm_strassen.h): where their sizes allow it and it is known to
// pay. The environment variable FTBERT_CPU_STRASSEN=0 says never, 1 wherever sizes allow; another value is an error.
Status ChoosePairs(const LinearKernel& kernel, const Config& config, bool* pairs);

// A stretch of one row of text: what one task of Embed or Attend works on.
struct Stretch {
  int32_t row = 0;
  int32_t begin = 0;  // within the row
  int32_t count = 0;
};
// Embed's, at most.
constexpr int32_t kStretchTokens = 32;

class CpuWorkspace final : public Workspace {
 public:
  explicit CpuWorkspace(const WorkspacePlan* plan) : plan_(plan) {}

  // Makes room for a run of this batch, whole or in groups, and takes it. May throw std::bad_alloc.
  Status Prepare(const Shape& shape, const Batch& batch);
  // Calls `loop` on this workspace, or on those of the threads for each group at once.
  void Run(const std::function<void(Workspace*)>& loop);

  // kContext, as floats, has no memory of its own: a head's output replaces its queries, which nobody else reads.
  Rows View(Slot slot) const;
  // (B, N * H): H floats for each head of each row, in the place of kQkv.
  Rows Heads() const;
  int32_t Length(int32_t row) const { return batch.row_splits[row + 1] - batch.row_splits[row]; }
  // Where a row of text begins in slots that have a row for each token: rows of text whose tokens are taken in pairs
  // come first, and where their number is odd a row follows that belongs to no token.
  int32_t Begin(int32_t row) const { return plan_->pairs ? begins_[row] : batch.row_splits[row]; }
  bool Filled(int32_t row) const { return plan_->pairs && Length(row) >= kPairedTokens && Length(row) % 2 == 1; }
  size_t bytes() const;

  Team* team = nullptr;  // of the run in flight
  Batch batch;           // the caller's arrays, which outlive the run, or the group's
  ProductScratch products;
  std::vector<Buffer> attention;  // one per thread
  std::vector<Stretch> stretches;

 private:
  static constexpr int kNumSlots = 8;

  void Place();
  bool MakeRoom(const Shape& needed, int threads);
  bool MakeLanes();
  bool ReserveSlots(const int64_t (&rows)[kNumSlots]);
  void ShrinkIfLarge(int32_t tokens);
  void RunGroup(int index, CpuWorkspace* lane, const std::function<void(Workspace*)>& loop) const;

  const WorkspacePlan* plan_;
  Buffer slots_[kNumSlots];
  // Inputs of products as their kernel prepares them, by who makes them. States, where threads share few rows: nobody
  // waits for that then. (Many rows are prepared a block at a time, by who reads them.) The context, where
  // prepares_context().
  Buffer prepared_states_, prepared_context_;
  std::vector<int32_t> begins_;  // of the rows of text, if the plan has pairs
  int32_t token_rows_ = 0;
  int32_t paired_ = 0;           // of token_rows_, the first ones
  int runs_ = 0;
  int32_t most_tokens_ = 0;  // of a run of the loop here, since the count of runs began
  bool in_groups_ = false;   // some run since then was
  GroupPlan groups_;
  std::vector<std::unique_ptr<CpuWorkspace>> lanes_;  // one per thread
  GroupBatch group_;                                  // a lane's
};

}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_WORKSPACE_H_
