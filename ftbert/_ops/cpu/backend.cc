// The CPU backend: embeddings, attention and the kernel table. Buffers and groups of rows are in workspace.cc, products
// in product.cc, kernels in their own files, chosen once at load for the instruction set.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>

#include "core/backend.h"
#include "cpu/embedding_tables.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/linear.h"
#include "cpu/product.h"
#include "cpu/product_parts.h"
#include "cpu/thread_pool.h"
#include "cpu/workspace.h"

namespace ftbert {
namespace cpu {
namespace {

CpuWorkspace* Cast(Workspace* workspace) { return static_cast<CpuWorkspace*>(workspace); }

Epilogue EpilogueFor(Activation activation) {
  switch (activation) {
    case Activation::kGeluErf:
      return Epilogue::kBiasGeluErf;
    case Activation::kRelu:
      return Epilogue::kBiasRelu;
    case Activation::kGeluTanh:
      break;
  }
  return Epilogue::kBiasGeluTanh;
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(const Config& config, Isa level, const LinearKernel* linear, bool pairs, int threads)
      : config_(config), level_(level), linear_(linear), head_(Fp32Kernel(level)),
        kernels_(KernelsFor(level, linear->precision(), config.hidden_size / config.num_heads)),
        threads_(threads), plan_{config, linear, kernels_, threads, pairs} {}

  Status PackLinear(const std::vector<SourceMatrix>& parts, std::unique_ptr<PackedLinear>* packed) override {
    std::unique_ptr<PackedMatrix> matrix(new PackedMatrix);
    const LoadThreads threads(threads_);
    // Pooler and classifier are too small to gain from a low precision and stand right before the answer.
    Status status = (parts[0].head ? head_ : linear_)->Pack(parts, matrix.get());
    if (status.ok() && parts[0].last) {  // for B rows, like these
      status = PackHeads(*head_, parts[1], config_.num_heads, true, &matrix->to_states);
      if (status.ok()) status = PackHeads(*head_, parts[2], config_.num_heads, false, &matrix->to_values);
    }
    if (status.ok()) *packed = std::move(matrix);
    return status;
  }

  void Follow(PackedLinear* product, const PackedLinear& next) override {
    auto* last = static_cast<PackedMatrix*>(product);
    for (PackedMatrix* between : {last->to_states.get(), last->to_values.get()}) {
      if (between != nullptr) last = (last->following = between, between);
    }
    last->following = &static_cast<const PackedMatrix&>(next);
  }

  Status PackNorm(const float* gamma, const float* beta, std::unique_ptr<NormParameters>* packed) override {
    std::unique_ptr<CpuNorm> norm(new CpuNorm);
    norm->gamma.assign(gamma, gamma + config_.hidden_size);
    norm->beta.assign(beta, beta + config_.hidden_size);
    norm->epsilon = config_.norm_epsilon;
    *packed = std::move(norm);
    return Status();
  }

  // fp32 runs on fp32 tables. The lower precisions keep 16 bits: fp16, or bfloat16 if that is what came.
  Status PackEmbeddings(const SourceTable& words, const SourceTable& positions, const SourceTable& segments,
                        std::unique_ptr<EmbeddingTables>* packed) override {
    std::unique_ptr<CpuTables> tables(new CpuTables);
    if (linear_->precision() != Precision::kFloat32) {
      tables->type = words.type == DataType::kBFloat16 ? DataType::kBFloat16 : DataType::kFloat16;
    }
    const LoadThreads threads(threads_);
    const Status status = tables->Pack(words, positions, segments, config_.hidden_size);
    if (status.ok()) *packed = std::move(tables);
    return status;
  }

  Status NewWorkspace(std::unique_ptr<Workspace>* workspace) override {
    workspace->reset(new CpuWorkspace(&plan_));
    return Status();
  }

  Status Upload(Workspace* workspace, const Shape& shape, const Batch& batch) override {
    CpuWorkspace* w = Cast(workspace);
    const size_t before = w->bytes();
    const Status status = w->Prepare(shape, batch);
    scratch_bytes_ += static_cast<int64_t>(w->bytes()) - static_cast<int64_t>(before);
    return status;
  }

  Status Execute(Workspace* workspace, const std::function<void(Workspace*)>& loop) override {
    Cast(workspace)->Run(loop);
    return Status();
  }

  Status Download(Workspace* workspace, const Outputs& outputs) override {
    CpuWorkspace* w = Cast(workspace);
    Copy(w->View(Slot::kLogits), config_.num_labels, outputs.logits);
    Copy(w->View(Slot::kPooled), config_.hidden_size, outputs.pooled);
    Copy(w->View(Slot::kFirstStates), config_.hidden_size, outputs.first_states);
    if (outputs.token_states == nullptr) return Status();
    const Rows states = w->View(Slot::kStates);
    for (int32_t b = 0; b < w->shape.rows; ++b) {
      Rows of_row = states;
      of_row.data = states.row(w->Begin(b));
      of_row.count = w->Length(b);
      Copy(of_row, config_.hidden_size,
           outputs.token_states + static_cast<int64_t>(w->batch.row_splits[b]) * config_.hidden_size);
    }
    return Status();
  }

  void Embed(Workspace* workspace, const EmbeddingTables& embedding_tables, const NormParameters& norm) override {
    CpuWorkspace* w = Cast(workspace);
    const auto& tables = static_cast<const CpuTables&>(embedding_tables);
    const auto& layer_norm = static_cast<const CpuNorm&>(norm);
    const Rows states = w->View(Slot::kStates);
    w->stretches.clear();
    for (int32_t b = 0; b < w->shape.rows; ++b) {
      const int32_t length = w->Length(b);
      for (int32_t begin = 0; begin < length; begin += kStretchTokens) {
        w->stretches.push_back(Stretch{b, begin, std::min(kStretchTokens, length - begin)});
      }
    }
    ClearFilling(*w, states);
    w->team->ForEach(static_cast<int>(w->stretches.size()), [&](int index, int) {
      const Stretch& stretch = w->stretches[index];
      const int32_t first = w->batch.row_splits[stretch.row] + stretch.begin;
      EmbedTask task;
      task.words = tables.words.data();
      task.positions = tables.positions.data();
      task.segments = tables.segments.data();
      task.table_stride = CpuTables::Stride(config_.hidden_size);
      task.type = static_cast<int32_t>(tables.type);
      task.token_ids = w->batch.token_ids + first;
      task.segment_ids = w->batch.segment_ids != nullptr ? w->batch.segment_ids + first : nullptr;
      task.first_position = stretch.begin;
      task.rows = stretch.count;
      task.hidden = config_.hidden_size;
      task.gamma = layer_norm.gamma.data();
      task.beta = layer_norm.beta.data();
      task.epsilon = layer_norm.epsilon;
      task.out = states.row(w->Begin(stretch.row) + stretch.begin);
      task.out_stride = states.stride;
      kernels_->embed(task);
      if (states.prepared == nullptr) return;
      PrepareRows(*linear_, states, config_.hidden_size, w->Begin(stretch.row) + stretch.begin, stretch.count);
    });
  }

  void Linear(Workspace* workspace, Span, Slot in, const PackedLinear& weight, PartRange parts, Slot out) override {
    CpuWorkspace* w = Cast(workspace);
    const auto& matrix = static_cast<const PackedMatrix&>(weight);
    Of(w).Linear(matrix, matrix.part_begin[parts.begin], matrix.part_begin[parts.end], Epilogue::kBias, w->View(in),
                 w->View(out));
  }

  // Of all tokens: AttendFirst has its own way. Every task is one head of one row of text, the longest rows first; rows
  // are split only if there are too few of them to occupy the team.
  void Attend(Workspace* workspace, Span) override {
    CpuWorkspace* w = Cast(workspace);
    const int32_t H = config_.hidden_size, N = config_.num_heads, D = plan_.head_size();
    const Rows qkv = w->View(Slot::kQkv), out = w->View(Slot::kContext);
    const size_t element = kernels_->attends_bf16 ? sizeof(uint16_t) : sizeof(float);

    const int64_t wanted = 3 * w->team->size();
    const int64_t tasks = static_cast<int64_t>(w->shape.rows) * N;
    const int32_t pieces =
        w->team->size() == 1 || tasks >= wanted ? 1 : static_cast<int32_t>((wanted + tasks - 1) / tasks);
    w->stretches.clear();
    for (int32_t b = 0; b < w->shape.rows; ++b) {
      const int32_t length = w->Length(b);
      const int32_t tile = kernels_->query_tile;
      const int32_t piece = ((length + pieces - 1) / pieces + tile - 1) / tile * tile;
      for (int32_t begin = 0; begin < length; begin += piece) {
        w->stretches.push_back(Stretch{b, begin, std::min(piece, length - begin)});
      }
    }
    std::sort(w->stretches.begin(), w->stretches.end(), [&](const Stretch& a, const Stretch& b) {
      const int64_t work_a = static_cast<int64_t>(a.count) * w->Length(a.row);
      const int64_t work_b = static_cast<int64_t>(b.count) * w->Length(b.row);
      return work_a != work_b ? work_a > work_b : (a.row != b.row ? a.row < b.row : a.begin < b.begin);
    });

    ClearFilling(*w, out);
    w->team->ForEach(static_cast<int>(w->stretches.size()) * N, [&](int index, int thread) {
      const Stretch& stretch = w->stretches[index / N];
      const int32_t head = index % N;
      const int64_t first = w->Begin(stretch.row), at = first + stretch.begin;
      const auto of_head = [&](int64_t row, int32_t part) -> const void* {
        return reinterpret_cast<const char*>(qkv.row(row)) + (part * H + head * D) * element;
      };
      AttentionTask task;
      task.query = of_head(at, 0);
      task.key = of_head(first, 1);
      task.value = of_head(first, 2);
      task.stride = qkv.stride * static_cast<ptrdiff_t>(sizeof(float) / element);
      task.out = out.row(at) + head * D;
      task.out_stride = out.stride;
      if (out.prepared != nullptr) {
        task.prepared_out = static_cast<char*>(out.prepared) + head * D * element * linear_->group_rows();
        task.prepared_stride = out.prepared_stride;
        task.prepared_row = static_cast<int32_t>(at);
      }
      task.queries = stretch.count;
      task.keys = w->Length(stretch.row);
      task.head_size = D;
      task.scale = 1.f / __builtin_sqrtf(static_cast<float>(D));
      task.scratch = w->attention[thread].as<float>();
      task.fetch_next = w->team->size() == 1 && head + 1 < N;  // alone, a thread takes one head after the other
      kernels_->attention(task);
    });
  }

  void GatherFirst(Workspace* workspace) override {
    CpuWorkspace* w = Cast(workspace);
    const Rows states = w->View(Slot::kStates);
    const Rows first = w->View(Slot::kFirstStates);
    for (int32_t b = 0; b < w->shape.rows; ++b) {
      std::memcpy(first.row(b), states.row(w->Begin(b)), config_.hidden_size * sizeof(float));
    }
  }

  // With W_k and W_v a head's keys' and values' matrices, q its query and X the row's states:
  //   softmax(q (X W_k)^T) (X W_v + b) = (softmax((q W_k^T) X^T) X) W_v + b
  // for what the bias of keys adds is the same in every score, and a softmax sums to 1. So neither keys nor values are
  // computed, and X is read once.
  void AttendFirst(Workspace* workspace, const PackedLinear& qkv) override {
    CpuWorkspace* w = Cast(workspace);
    const auto& matrix = static_cast<const PackedMatrix&>(qkv);
    const int32_t H = config_.hidden_size, N = config_.num_heads, D = plan_.head_size();
    const Rows heads = w->Heads(), states = w->View(Slot::kStates);
    Linear(w, Span::kFirstTokens, Slot::kFirstStates, qkv, PartRange{0, 1}, Slot::kFirstQuery);
    Of(w).LinearOfParts(*matrix.to_states, D, w->View(Slot::kFirstQuery), heads);

    // A row's heads share the reading of its states; they are parted where there are too few rows for the threads.
    const int32_t rows = w->shape.rows;
    const int32_t together = w->team->size() == 1 || rows >= 2 * w->team->size() ? N : std::min(N, kernels_->lanes);
    const int32_t parts = (N + together - 1) / together;
    w->stretches.clear();
    for (int32_t b = 0; b < rows; ++b) w->stretches.push_back(Stretch{b, 0, w->Length(b)});
    std::sort(w->stretches.begin(), w->stretches.end(), [](const Stretch& a, const Stretch& b) {
      return a.count != b.count ? a.count > b.count : a.row < b.row;
    });
    w->team->ForEach(rows * parts, [&](int index, int thread) {
      const Stretch& stretch = w->stretches[index / parts];
      const int32_t head = index % parts * together;
      AttendStatesTask task;
      task.u = task.out = heads.row(stretch.row) + static_cast<ptrdiff_t>(head) * H;
      task.stride = H;
      task.heads = std::min(together, N - head);
      task.states = states.row(w->Begin(stretch.row));
      task.states_stride = states.stride;
      task.tokens = stretch.count;
      task.hidden = H;
      task.scale = 1.f / __builtin_sqrtf(static_cast<float>(D));
      task.scratch = w->attention[thread].as<float>();
      kernels_->attend_states(task);
    });
    Of(w).LinearOfParts(*matrix.to_values, H, heads, w->View(Slot::kFirstContext));
  }

  void LinearAddNorm(Workspace* workspace, Span, Slot in, const PackedLinear& weight, Slot residual,
                     const NormParameters& norm) override {
    CpuWorkspace* w = Cast(workspace);
    Of(w).LinearAddNorm(static_cast<const PackedMatrix&>(weight), static_cast<const CpuNorm&>(norm), w->View(in),
                        w->View(residual));
  }

  void FeedForward(Workspace* workspace, Span, Slot states, const PackedLinear& up, const PackedLinear& down,
                   const NormParameters& norm) override {
    CpuWorkspace* w = Cast(workspace);
    Of(w).FeedForward(static_cast<const PackedMatrix&>(up), static_cast<const PackedMatrix&>(down),
                      EpilogueFor(config_.activation), static_cast<const CpuNorm&>(norm), w->View(states));
  }

  void Pool(Workspace* workspace, const PackedLinear& weight) override {
    Whole(Cast(workspace), weight, Epilogue::kBiasTanh, Slot::kFirstStates, Slot::kPooled);
  }

  void Classify(Workspace* workspace, const PackedLinear& weight) override {
    Whole(Cast(workspace), weight, Epilogue::kBias, Slot::kPooled, Slot::kLogits);
  }

  std::string Name() const override {
    return std::string("cpu ") + IsaName(linear_->isa()) + " " + PrecisionText() + " " + std::to_string(threads_) +
           (threads_ == 1 ? " thread" : " threads");
  }

  std::string DescribeFields() const override {
    return std::string("\"device\": \"cpu\", \"precision\": \"") + PrecisionText() + "\", \"isa\": \"" +
           IsaName(linear_->isa()) + "\", \"isa_level\": \"" + IsaName(level_) + "\", \"threads\": " +
           std::to_string(threads_) + ", \"strassen\": " + (plan_.pairs ? "true" : "false") +
           ", \"scratch_bytes\": " + std::to_string(scratch_bytes_.load());
  }

 private:
  const char* PrecisionText() const {
    const Precision precision = linear_->precision();
    return precision == Precision::kInt8 ? "int8" : precision == Precision::kBFloat16 ? "bf16" : "fp32";
  }

  Products Of(CpuWorkspace* w) const { return Products(kernels_, w->team, &w->products); }

  void Whole(CpuWorkspace* w, const PackedLinear& weight, Epilogue epilogue, Slot in, Slot out) const {
    const auto& matrix = static_cast<const PackedMatrix&>(weight);
    Of(w).Linear(matrix, 0, static_cast<int32_t>(matrix.panels.size()), epilogue, w->View(in), w->View(out));
  }

  // The rows that belong to no token: their numbers are to stay small, as they are added to their pair's other row.
  void ClearFilling(const CpuWorkspace& w, const Rows& rows) const {
    for (int32_t b = 0; b < w.shape.rows; ++b) {
      if (w.Filled(b)) std::fill_n(rows.row(w.Begin(b) + w.Length(b)), config_.hidden_size, 0.f);
    }
  }

  static void Copy(const Rows& from, int32_t columns, float* to) {
    if (to == nullptr) return;
    for (int32_t row = 0; row < from.count; ++row) {
      std::memcpy(to + static_cast<int64_t>(row) * columns, from.row(row), columns * sizeof(float));
    }
  }

  Config config_;
  Isa level_;
  const LinearKernel* linear_;  // encoder
  const LinearKernel* head_;    // pooler, classifier and the last layer's heads: B rows
  const Kernels* kernels_;
  int threads_;
  WorkspacePlan plan_;
  std::atomic<int64_t> scratch_bytes_{0};  // of all workspaces
};

}  // namespace
}  // namespace cpu

Status NewCpuBackend(const Config& config, const Options& options, std::unique_ptr<Backend>* backend) {
  cpu::Isa level = cpu::Isa::kPortable;
  Status status = cpu::ChooseIsa(&level);
  if (!status.ok()) return status;
  const cpu::LinearKernel* linear = nullptr;
  switch (options.precision) {
    case Precision::kFloat32:
      linear = cpu::Fp32EncoderKernel(level);
      break;
    case Precision::kBFloat16:
      linear = cpu::Bf16Kernel(level);
      break;
    case Precision::kInt8:
      linear = cpu::Int8Kernel(level);
      break;
    case Precision::kFloat16:
    case Precision::kFloat8:
      break;
  }
  if (linear == nullptr) {
    return Status(Code::kUnavailable, std::string("This precision does not run on the CPU at the instruction set ") +
                                          cpu::IsaName(level) + ". The CPU runs fp32, bf16 and int8.");
  }
  bool pairs = false;
  status = cpu::ChoosePairs(*linear, config, &pairs);
  if (!status.ok()) return status;
  const int threads = options.threads > 0 ? options.threads : cpu::AvailableCpus();
  backend->reset(new cpu::CpuBackend(config, level, linear, pairs, threads));
  return Status();
}

std::string DescribeCpuFields() {
  std::string levels;
  for (int i = 0; i <= static_cast<int>(cpu::MachineIsa()); ++i) {
    levels += std::string(i > 0 ? ", " : "") + "\"" + cpu::IsaName(static_cast<cpu::Isa>(i)) + "\"";
  }
  return std::string("\"isa\": \"") + cpu::IsaName(cpu::MachineIsa()) + "\", \"levels\": [" + levels +
         "], \"threads\": " + std::to_string(cpu::AvailableCpus());
}

}  // namespace ftbert
