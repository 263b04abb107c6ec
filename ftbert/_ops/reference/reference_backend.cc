// The oracle: BERT in plain loops and double precision, for tests only. Slow on purpose, so that it can be read.
//
// fp32 keeps everything in double. The other precisions are refused: kernels are judged against the true values.
#include <algorithm>
#include <cmath>

#include "core/backend.h"
#include "core/half.h"

namespace ftbert {
namespace {

using Vector = std::vector<double>;

struct ReferenceLinear final : PackedLinear {
  struct Part {
    int32_t rows = 0, cols = 0;
    Vector kernel;  // (rows, cols)
    Vector bias;    // (cols,)
  };
  std::vector<Part> parts;
  size_t bytes() const override {
    size_t values = 0;
    for (const Part& part : parts) values += part.kernel.size() + part.bias.size();
    return values * sizeof(double);
  }
};

struct ReferenceNorm final : NormParameters {
  Vector gamma, beta;  // (H,)
};

struct ReferenceTables final : EmbeddingTables {
  Vector words, positions, segments;  // (V, H), (P, H), (segments, H)
  size_t bytes() const override { return (words.size() + positions.size() + segments.size()) * sizeof(double); }
};

struct ReferenceWorkspace final : Workspace {
  std::vector<int32_t> token_ids, segment_ids, row_splits;
  Vector slots[8];
  Vector& operator[](Slot slot) { return slots[static_cast<int>(slot)]; }
};

class ReferenceBackend final : public Backend {
 public:
  explicit ReferenceBackend(const Config& config) : config_(config) {}

  Status PackLinear(const std::vector<SourceMatrix>& parts, std::unique_ptr<PackedLinear>* packed) override {
    std::unique_ptr<ReferenceLinear> linear(new ReferenceLinear);
    for (const SourceMatrix& source : parts) {
      ReferenceLinear::Part part;
      part.rows = source.rows;
      part.cols = source.cols;
      for (int64_t k = 0; k < source.rows; ++k) {
        for (int64_t n = 0; n < source.cols; ++n) {
          const int64_t at = source.transposed ? n * source.rows + k : k * source.cols + n;
          part.kernel.push_back(ReadAsFloat(source.data, source.type, static_cast<size_t>(at)));
        }
      }
      part.bias.assign(source.bias, source.bias + source.cols);
      linear->parts.push_back(std::move(part));
    }
    *packed = std::move(linear);
    return Status();
  }

  Status PackNorm(const float* gamma, const float* beta, std::unique_ptr<NormParameters>* packed) override {
    std::unique_ptr<ReferenceNorm> norm(new ReferenceNorm);
    norm->gamma.assign(gamma, gamma + config_.hidden_size);
    norm->beta.assign(beta, beta + config_.hidden_size);
    *packed = std::move(norm);
    return Status();
  }

  Status PackEmbeddings(const SourceTable& words, const SourceTable& positions, const SourceTable& segments,
                        std::unique_ptr<EmbeddingTables>* packed) override {
    std::unique_ptr<ReferenceTables> tables(new ReferenceTables);
    tables->words = ReadTable(words);
    tables->positions = ReadTable(positions);
    tables->segments = ReadTable(segments);
    *packed = std::move(tables);
    return Status();
  }

  Status NewWorkspace(std::unique_ptr<Workspace>* workspace) override {
    workspace->reset(new ReferenceWorkspace);
    return Status();
  }

  Status Upload(Workspace* workspace, const Shape& shape, const Batch& batch) override {
    ReferenceWorkspace& w = Cast(workspace);
    w.shape = shape;
    w.token_ids.assign(batch.token_ids, batch.token_ids + shape.tokens);
    w.row_splits.assign(batch.row_splits, batch.row_splits + shape.rows + 1);
    w.segment_ids.assign(shape.tokens, 0);
    if (batch.segment_ids) w.segment_ids.assign(batch.segment_ids, batch.segment_ids + shape.tokens);
    const size_t T = shape.tokens, B = shape.rows, H = config_.hidden_size, C = config_.num_labels;
    const size_t sizes[8] = {T * H, T * 3 * H, T * H, B * H, B * H, B * H, B * H, B * C};
    for (int slot = 0; slot < 8; ++slot) w.slots[slot].assign(sizes[slot], std::nan(""));
    return Status();
  }

  Status Download(Workspace* workspace, const Outputs& outputs) override {
    ReferenceWorkspace& w = Cast(workspace);
    Copy(w[Slot::kLogits], outputs.logits);
    Copy(w[Slot::kPooled], outputs.pooled);
    Copy(w[Slot::kFirstStates], outputs.first_states);
    Copy(w[Slot::kStates], outputs.token_states);
    return Status();
  }

  void Embed(Workspace* workspace, const EmbeddingTables& embedding_tables, const NormParameters& norm) override {
    ReferenceWorkspace& w = Cast(workspace);
    const auto& tables = static_cast<const ReferenceTables&>(embedding_tables);
    const int64_t H = config_.hidden_size;
    for (int32_t b = 0; b < w.shape.rows; ++b) {
      for (int64_t t = w.row_splits[b]; t < w.row_splits[b + 1]; ++t) {
        const int64_t position = t - w.row_splits[b];
        for (int64_t h = 0; h < H; ++h) {
          w[Slot::kStates][t * H + h] = tables.words[w.token_ids[t] * H + h] + tables.positions[position * H + h] +
                                        tables.segments[w.segment_ids[t] * H + h];
        }
        Normalize(&w[Slot::kStates][t * H], norm);
      }
    }
  }

  void Linear(Workspace* workspace, Span span, Slot in, const PackedLinear& weight, PartRange parts,
              Slot out) override {
    ReferenceWorkspace& w = Cast(workspace);
    const auto& linear = static_cast<const ReferenceLinear&>(weight);
    const int64_t stride = out == Slot::kQkv ? 3 * config_.hidden_size : linear.parts[0].cols;
    int64_t offset = 0;
    for (int p = 0; p < static_cast<int>(linear.parts.size()); ++p) {
      if (p >= parts.begin && p < parts.end) {
        for (int32_t r = 0; r < Rows(w, span); ++r) {
          const int64_t column = out == Slot::kQkv ? offset : 0;
          Product(&w[in][static_cast<int64_t>(r) * linear.parts[p].rows], linear.parts[p],
                  &w[out][r * stride + column]);
        }
      }
      offset += linear.parts[p].cols;
    }
  }

  void Attend(Workspace* workspace, Span span) override {
    ReferenceWorkspace& w = Cast(workspace);
    const int64_t H = config_.hidden_size, N = config_.num_heads, D = H / N;
    const bool first_only = span == Span::kFirstTokens;
    for (int32_t b = 0; b < w.shape.rows; ++b) {
      const int64_t begin = w.row_splits[b], end = w.row_splits[b + 1];
      for (int64_t t = begin; t < (first_only ? begin + 1 : end); ++t) {
        for (int64_t head = 0; head < N; ++head) {
          const double* q = first_only ? &w[Slot::kFirstQuery][b * H + head * D] : &w[Slot::kQkv][t * 3 * H + head * D];
          double* out = first_only ? &w[Slot::kFirstContext][b * H + head * D] : &w[Slot::kContext][t * H + head * D];
          Vector scores(end - begin);
          double largest = -INFINITY;
          for (int64_t s = begin; s < end; ++s) {
            double dot = 0;
            for (int64_t d = 0; d < D; ++d) dot += q[d] * w[Slot::kQkv][s * 3 * H + H + head * D + d];
            scores[s - begin] = dot / std::sqrt(static_cast<double>(D));
            largest = std::fmax(largest, scores[s - begin]);
          }
          double sum = 0;
          for (double& score : scores) sum += score = std::exp(score - largest);
          for (int64_t d = 0; d < D; ++d) {
            double value = 0;
            for (int64_t s = begin; s < end; ++s) {
              value += scores[s - begin] / sum * w[Slot::kQkv][s * 3 * H + 2 * H + head * D + d];
            }
            out[d] = value;
          }
        }
      }
    }
  }

  void GatherFirst(Workspace* workspace) override {
    ReferenceWorkspace& w = Cast(workspace);
    const int64_t H = config_.hidden_size;
    for (int32_t b = 0; b < w.shape.rows; ++b) {
      for (int64_t h = 0; h < H; ++h) w[Slot::kFirstStates][b * H + h] = w[Slot::kStates][w.row_splits[b] * H + h];
    }
  }

  void LinearAddNorm(Workspace* workspace, Span span, Slot in, const PackedLinear& weight, Slot residual,
                     const NormParameters& norm) override {
    ReferenceWorkspace& w = Cast(workspace);
    const ReferenceLinear::Part& part = static_cast<const ReferenceLinear&>(weight).parts[0];
    Vector product(part.cols);
    for (int32_t r = 0; r < Rows(w, span); ++r) {
      Product(&w[in][static_cast<int64_t>(r) * part.rows], part, product.data());
      AddNorm(product, &w[residual][static_cast<int64_t>(r) * part.cols], norm);
    }
  }

  void FeedForward(Workspace* workspace, Span span, Slot states, const PackedLinear& up, const PackedLinear& down,
                   const NormParameters& norm) override {
    ReferenceWorkspace& w = Cast(workspace);
    const ReferenceLinear::Part& widen = static_cast<const ReferenceLinear&>(up).parts[0];
    const ReferenceLinear::Part& narrow = static_cast<const ReferenceLinear&>(down).parts[0];
    Vector inner(widen.cols), product(narrow.cols);
    for (int32_t r = 0; r < Rows(w, span); ++r) {
      double* row = &w[states][static_cast<int64_t>(r) * config_.hidden_size];
      Product(row, widen, inner.data());
      for (double& x : inner) x = Activate(x);
      Product(inner.data(), narrow, product.data());
      AddNorm(product, row, norm);
    }
  }

  void Pool(Workspace* workspace, const PackedLinear& weight) override {
    ReferenceWorkspace& w = Cast(workspace);
    const ReferenceLinear::Part& part = static_cast<const ReferenceLinear&>(weight).parts[0];
    for (int32_t b = 0; b < w.shape.rows; ++b) {
      Product(&w[Slot::kFirstStates][static_cast<int64_t>(b) * part.rows], part,
              &w[Slot::kPooled][static_cast<int64_t>(b) * part.cols]);
    }
    for (double& x : w[Slot::kPooled]) x = std::tanh(x);
  }

  void Classify(Workspace* workspace, const PackedLinear& weight) override {
    ReferenceWorkspace& w = Cast(workspace);
    const ReferenceLinear::Part& part = static_cast<const ReferenceLinear&>(weight).parts[0];
    for (int32_t b = 0; b < w.shape.rows; ++b) {
      Product(&w[Slot::kPooled][static_cast<int64_t>(b) * part.rows], part,
              &w[Slot::kLogits][static_cast<int64_t>(b) * part.cols]);
    }
  }

  std::string Name() const override { return "reference fp64"; }
  std::string DescribeFields() const override {
    return "\"device\": \"reference\", \"precision\": \"fp32\", \"isa\": \"none\", \"threads\": 1";
  }

 private:
  static ReferenceWorkspace& Cast(Workspace* workspace) { return *static_cast<ReferenceWorkspace*>(workspace); }

  static int32_t Rows(const ReferenceWorkspace& w, Span span) {
    return span == Span::kAllTokens ? w.shape.tokens : w.shape.rows;
  }

  Vector ReadTable(const SourceTable& source) const {
    Vector values(static_cast<size_t>(source.rows) * config_.hidden_size);
    for (size_t i = 0; i < values.size(); ++i) values[i] = ReadAsFloat(source.data, source.type, i);
    return values;
  }

  static void Product(const double* in, const ReferenceLinear::Part& part, double* out) {
    // Each sum takes its terms with k ascending; the kernel is read as it lies in memory.
    std::copy(part.bias.begin(), part.bias.end(), out);
    for (int64_t k = 0; k < part.rows; ++k) {
      const double* weights = &part.kernel[k * part.cols];
      for (int64_t n = 0; n < part.cols; ++n) out[n] += in[k] * weights[n];
    }
  }

  void AddNorm(const Vector& product, double* residual, const NormParameters& norm) const {
    for (int64_t h = 0; h < config_.hidden_size; ++h) residual[h] += product[h];
    Normalize(residual, norm);
  }

  void Normalize(double* row, const NormParameters& parameters) const {
    const auto& norm = static_cast<const ReferenceNorm&>(parameters);
    const int64_t H = config_.hidden_size;
    double mean = 0, variance = 0;
    for (int64_t h = 0; h < H; ++h) mean += row[h] / H;
    for (int64_t h = 0; h < H; ++h) variance += (row[h] - mean) * (row[h] - mean) / H;
    const double scale = 1 / std::sqrt(variance + config_.norm_epsilon);
    for (int64_t h = 0; h < H; ++h) row[h] = (row[h] - mean) * scale * norm.gamma[h] + norm.beta[h];
  }

  double Activate(double x) const {
    switch (config_.activation) {
      case Activation::kGeluErf:
        return 0.5 * x * (1 + std::erf(x * std::sqrt(0.5)));
      case Activation::kGeluTanh:
        return 0.5 * x * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
      case Activation::kRelu:
        break;
    }
    return x > 0 ? x : 0;
  }

  static void Copy(const Vector& from, float* to) {
    if (to == nullptr) return;
    for (size_t i = 0; i < from.size(); ++i) to[i] = static_cast<float>(from[i]);
  }

  Config config_;
};

}  // namespace

Status NewReferenceBackend(const Config& config, const Options& options, std::unique_ptr<Backend>* backend) {
  if (options.precision != Precision::kFloat32) {
    return Status(Code::kUnavailable, "The reference computes true values only: ask for fp32.");
  }
  backend->reset(new ReferenceBackend(config));
  return Status();
}

}  // namespace ftbert
