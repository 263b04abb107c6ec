#include "cpu/workspace.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

#include "cpu/product_parts.h"

namespace ftbert {
namespace cpu {
namespace {

// A workspace that needed less than a quarter of its memory for so many runs gives it back.
constexpr int kShrinkAfterRuns = 256;

// Halves of fewer inputs do not pay for adding up (4% faster with 256, 6% with 384, 7% with 768; Zen 3).
constexpr int32_t kPairedInputs = 256;

int Index(Slot slot) { return static_cast<int>(slot); }

}  // namespace

Status ChoosePairs(const LinearKernel& kernel, const Config& config, bool* pairs) {
  const char* variable = std::getenv("FTBERT_CPU_STRASSEN");
  const std::string wanted = variable != nullptr ? variable : "";
  if (!wanted.empty() && wanted != "0" && wanted != "1") {
    return Status(Code::kInvalidArgument, "FTBERT_CPU_STRASSEN: expected 0 or 1, got \"" + wanted +
                                              "\". Set one of them, or unset it for what is faster.");
  }
  *pairs = false;
  if (kernel.pairs() == nullptr || wanted == "0") return Status();
  for (const int32_t size : {config.hidden_size, config.intermediate_size}) {
    const int32_t panels = (size + kernel.panel_columns() - 1) / kernel.panel_columns();
    if (size % 2 != 0 || panels % kernel.pairs()->panel_step() != 0) return Status();
  }
  *pairs = wanted == "1" || (kernel.isa() == Isa::kAvx2 && config.hidden_size >= kPairedInputs);
  return Status();
}

ptrdiff_t WorkspacePlan::Stride(Slot slot) const {
  switch (slot) {
    case Slot::kQkv:
    case Slot::kContext: {
      const int64_t H = config.hidden_size, qkv = kernels->attends_bf16 ? H / 2 * 3 : H * 3;
      return PaddedStride(std::max(qkv, ContextColumn() + H));
    }
    case Slot::kLogits:
      return PaddedStride(config.num_labels);
    default:
      return PaddedStride(config.hidden_size);
  }
}

bool WorkspacePlan::prepares_context() const {
  return kernels->attends_bf16 && linear->precision() == Precision::kBFloat16;
}

int32_t WorkspacePlan::ContextColumn() const {
  return kernels->attends_bf16 && !prepares_context() ? config.hidden_size / 2 * 3 : 0;
}

ptrdiff_t WorkspacePlan::HeadsStride() const {
  return PaddedStride(static_cast<int64_t>(config.num_heads) * config.hidden_size);
}

int32_t WorkspacePlan::TokenRows(const Shape& shape) const { return shape.tokens + (pairs ? shape.rows : 0); }

int32_t WorkspacePlan::QkvRows(const Shape& shape) const {
  const int64_t heads = shape.rows * static_cast<int64_t>(HeadsStride());
  return std::max(TokenRows(shape), static_cast<int32_t>(heads / Stride(Slot::kQkv) + 1));
}

Rows CpuWorkspace::Heads() const {
  Rows rows;
  rows.data = slots_[Index(Slot::kQkv)].as<float>();
  rows.stride = plan_->HeadsStride();
  rows.count = shape.rows;
  return rows;
}

Rows CpuWorkspace::View(Slot slot) const {
  const bool all_tokens = slot == Slot::kStates || slot == Slot::kQkv || slot == Slot::kContext;
  const Slot home = slot == Slot::kContext ? Slot::kQkv : slot;
  Rows rows;
  rows.data = slots_[Index(home)].as<float>() + (slot == Slot::kContext ? plan_->ContextColumn() : 0);
  rows.stride = plan_->Stride(slot);
  rows.rounded = slot == Slot::kQkv && plan_->kernels->attends_bf16;
  rows.count = all_tokens ? token_rows_ : shape.rows;
  rows.paired = all_tokens ? paired_ : 0;
  rows.prepared_stride = PreparedStride(*plan_->linear, plan_->config.hidden_size);
  // By the team there is, as products decide: the system may have given fewer threads than were asked for.
  const bool few = team != nullptr && !WholeRows(*plan_->linear, token_rows_, team->size());
  if (slot == Slot::kStates && few && rows.prepared_stride > 0) rows.prepared = prepared_states_.data();
  if (slot == Slot::kContext && plan_->prepares_context()) rows.prepared = prepared_context_.data();
  return rows;
}

// Where each row of text goes. Allocates nothing once there was room for as many rows.
void CpuWorkspace::Place() {
  token_rows_ = shape.tokens;
  paired_ = 0;
  if (!plan_->pairs) return;
  begins_.resize(shape.rows);
  token_rows_ = 0;
  for (const bool in_pairs : {true, false}) {
    for (int32_t row = 0; row < shape.rows; ++row) {
      if ((Length(row) >= kPairedTokens) != in_pairs) continue;
      begins_[row] = token_rows_;
      token_rows_ += Length(row) + Filled(row);
    }
    if (in_pairs) paired_ = token_rows_;
  }
}

size_t CpuWorkspace::bytes() const {
  size_t total = products.bytes() + prepared_states_.size() + prepared_context_.size();
  for (const Buffer& slot : slots_) total += slot.size();
  for (const Buffer& scratch : attention) total += scratch.size();
  for (const auto& lane : lanes_) total += lane->bytes();
  return total;
}

Status CpuWorkspace::Prepare(const Shape& needed, const Batch& taken) {
  PlanGroups(taken, needed, plan_->config, plan_->threads, &groups_);
  shape = needed;
  batch = taken;
  Place();
  if (groups_.empty() ? MakeRoom(needed, plan_->threads) : MakeLanes()) return Status();
  return Status(Code::kOutOfMemory, "Out of memory for a batch of " + std::to_string(needed.tokens) +
                                        " tokens. Use a smaller batch (batch_tokens).");
}

void CpuWorkspace::ShrinkIfLarge(int32_t tokens) {
  most_tokens_ = std::max(most_tokens_, tokens);
  if (++runs_ < kShrinkAfterRuns) return;
  const size_t needed = static_cast<size_t>(most_tokens_) * plan_->Stride(Slot::kQkv) * sizeof(float);
  if (needed < slots_[Index(Slot::kQkv)].size() / 4) {
    for (Buffer& slot : slots_) slot.Free();
    prepared_states_.Free();
    prepared_context_.Free();
    products = ProductScratch();
    attention.clear();
  }
  if (!in_groups_) lanes_.clear();
  runs_ = 0;
  most_tokens_ = tokens;
  in_groups_ = false;
}

bool CpuWorkspace::ReserveSlots(const int64_t (&rows)[kNumSlots]) {
  bool enough = true;
  for (int slot = 0; slot < kNumSlots; ++slot) {
    enough = enough && slots_[slot].Reserve(rows[slot] * plan_->Stride(static_cast<Slot>(slot)) * sizeof(float));
  }
  return enough;
}

// Room for a run of the loop on this workspace.
bool CpuWorkspace::MakeRoom(const Shape& needed, int threads) {
  ShrinkIfLarge(needed.tokens);
  const int32_t rows = needed.rows;
  const int32_t token_rows = plan_->TokenRows(needed);
  bool enough = ReserveSlots({token_rows, plan_->QkvRows(needed), 0, rows, rows, rows, rows, rows});
  const size_t prepared = WholeGroups(*plan_->linear, token_rows) *
                          PreparedStride(*plan_->linear, plan_->config.hidden_size);
  if (!WholeRows(*plan_->linear, token_rows, threads)) enough = enough && prepared_states_.Reserve(prepared);
  if (plan_->prepares_context()) enough = enough && prepared_context_.Reserve(prepared);
  for (const LinearKernel* kernel : {plan_->linear, plan_->pairs ? plan_->linear->pairs() : nullptr}) {
    enough = enough && (kernel == nullptr ||
                        products.Reserve(*kernel, plan_->config.hidden_size, plan_->config.intermediate_size,
                                         std::max(token_rows, needed.rows), threads));
  }
  const Kernels& kernels = *plan_->kernels;
  const size_t scratch = sizeof(float) * std::max(
      kernels.attention_scratch_floats(needed.longest_row, plan_->head_size()),
      kernels.attend_states_scratch_floats(plan_->config.hidden_size));
  attention.resize(threads);
  for (Buffer& buffer : attention) enough = enough && buffer.Reserve(scratch);
  return enough;
}

// Room for the results here, and for any of the groups in each thread's workspace, where a run allocates nothing: an
// exception would end the process there.
bool CpuWorkspace::MakeLanes() {
  in_groups_ = true;
  ShrinkIfLarge(0);
  while (static_cast<int>(lanes_.size()) < plan_->threads) lanes_.emplace_back(new CpuWorkspace(plan_));
  bool enough = ReserveSlots({shape.all_tokens ? token_rows_ : 0, 0, 0, shape.rows, 0, 0, shape.rows, shape.rows});
  for (const auto& lane : lanes_) {
    lane->group_.Reserve(groups_);
    lane->stretches.reserve(groups_.largest.tokens / kStretchTokens + groups_.largest.rows);
    lane->begins_.reserve(groups_.largest.rows);
    enough = enough && lane->MakeRoom(groups_.largest, 1);
  }
  return enough;
}

void CpuWorkspace::Run(const std::function<void(Workspace*)>& loop) {
  Team all(plan_->threads);
  if (groups_.empty()) {
    team = &all;
    loop(this);
    team = nullptr;
    return;
  }
  all.ForEach(groups_.count(), [&](int group, int thread) { RunGroup(group, lanes_[thread].get(), loop); });
}

// One group in the workspace of the thread that has taken it; then its results to where the whole run's are read.
void CpuWorkspace::RunGroup(int index, CpuWorkspace* lane, const std::function<void(Workspace*)>& loop) const {
  Team alone;
  lane->group_.Take(batch, groups_, index);
  lane->batch = lane->group_.view();
  lane->shape = lane->group_.shape();
  lane->Place();
  lane->team = &alone;
  loop(lane);
  lane->team = nullptr;
  const int32_t* rows = groups_.rows.data() + groups_.splits[index];
  for (const Slot slot : {Slot::kFirstStates, Slot::kPooled, Slot::kLogits}) {
    const Rows from = lane->View(slot), to = View(slot);
    for (int32_t b = 0; b < from.count; ++b) std::memcpy(to.row(rows[b]), from.row(b), from.stride * sizeof(float));
  }
  if (!shape.all_tokens) return;
  const Rows from = lane->View(Slot::kStates), to = View(Slot::kStates);
  for (int32_t b = 0; b < lane->shape.rows; ++b) {
    std::memcpy(to.row(Begin(rows[b])), from.row(lane->Begin(b)),
                static_cast<size_t>(lane->Length(b)) * from.stride * sizeof(float));
  }
}

}  // namespace cpu
}  // namespace ftbert
