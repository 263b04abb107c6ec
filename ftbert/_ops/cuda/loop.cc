// The kernel table: what the layer loop calls, put onto the workspace's stream.
#include "cuda/backend.h"
#include "cuda/lt.h"

namespace ftbert {
namespace cuda {
namespace {

// How many products ahead weights are brought into L2: about a layer's, which L2 holds beside the activations.
constexpr size_t kReach = 2;
constexpr int kReachRows = 4096;  // beyond, reading the weights is no time at all
// From here on products of ours add the residual, so that the norm reads one row, not two: its time is memory's, theirs
// is not. cuBLASLt's take longer for it than the norm does.
constexpr int kSumRows = 2048;
// From here on the output projection and the norm after it are one kernel; with fewer rows too many multiprocessors
// have nothing to do. The second product of the feed-forward part loses more by the tiles that this takes.
constexpr int kFusedRows = 8192;
// Up to here the last layer computes the queries of every token with the keys and values: more work, but two kernels
// less that wait for one another.
constexpr int kInPlaceTokens = 2048;
constexpr int kInPlaceRows = 128;
// From here on each kernel over all tokens takes them the other way round than the one before: what was written last is
// still in L2.
constexpr int kTurnTokens = 4096;

// From more tokens on the last layer's first tokens attend to the states, and neither keys nor values are computed.
// With fewer, the kernels that this takes are longer than what it saves.
constexpr int kAttendStatesTokens = 12288;
static_assert(kAttendStatesTokens >= kInPlaceTokens, "the first tokens' states have been gathered");

bool Turn(CudaWorkspace* w, const Rows* rows) {
  if (rows != &w->all || w->all.count <= kTurnTokens) return false;
  w->reversed = !w->reversed;
  return w->reversed;
}

}  // namespace

void CudaBackend::Check(CudaWorkspace* w, cudaError_t error, const char* doing) const {
  if (error == cudaSuccess || w->error != cudaSuccess) return;
  w->error = error;
  w->failed = doing;
}

Norm CudaBackend::NormOf(const CudaNorm& norm) const {
  Norm n;
  n.gamma = norm.gamma.as<float>();
  n.beta = norm.beta.as<float>();
  n.epsilon = config_.norm_epsilon;
  n.width = config_.hidden_size;
  n.pitch = pitch_;
  return n;
}

Gemm CudaBackend::Product(const CudaLinear& weight, int first_part, int parts) const {
  Gemm g;
  const int64_t row = static_cast<int64_t>(first_part) * weight.part;
  g.n = parts * weight.part;
  g.k = weight.k;
  g.in = weight.element;
  g.out_type = element_;
  g.w = weight.w.data() + row * weight.k * ElementBytes(weight.element);
  g.bias = weight.bias.as<float>() + row;
  if (weight.bias_half.data() != nullptr) g.bias_half = weight.bias_half.data() + row * 2;
  if (weight.element == Element::kFloat8) g.w_scale = weight.scale.as<float>() + row;
  return g;
}

// Notes whose turn it is, and lets this product bring the weights of a later one.
void CudaBackend::ReachAhead(CudaWorkspace* w, Gemm* g) const {
  const size_t index = w->sequence.size();
  w->sequence.push_back(Reach{g->w, static_cast<int64_t>(g->n) * g->k * ElementBytes(g->in)});
  if (machine_.prefetch && w->all.count <= kReachRows && index + kReach < w->ahead.size()) {
    g->prefetch = w->ahead[index + kReach].address;
    g->prefetch_bytes = w->ahead[index + kReach].bytes;
  }
}

void CudaBackend::Multiply(CudaWorkspace* w, Gemm g, const char* doing) {
  const Plan plan = plans_.Find(g);
  if (plan.family == Family::kLt) {
    // Without zeros: they would be written beside this stream, and might come after the product's first sums. Where
    // there is no memory for it, the product runs in a kernel of our own.
    if (w->scratch.bytes() == 0) w->scratch.Allocate(kLtAllBytes, false);
    g.scratch = w->scratch.data();
    g.scratch_bytes = w->scratch.bytes() > 0 ? kLtScratchBytes : 0;
    if (w->recording && g.scratch_bytes > 0 && w->counters < kLtCounters) {
      g.counter = w->scratch.data() + kLtScratchBytes + w->counters++ * kLtCounterBytes;
    }
    w->reversed = false;  // it knows no other order: what comes next begins with the last rows
  }
  ReachAhead(w, &g);
  Check(w, RunGemmOrOwn(machine_, plan, g, w->stream), doing);
}

// A product whose result is added to the rows' states, and the norm of the sum.
void CudaBackend::MultiplyAddNorm(CudaWorkspace* w, Rows* rows, Gemm g, const char* doing, const NormParameters& norm) {
  g.m = rows->count;
  g.out = rows->delta;
  g.ldo = pitch_;
  Norm n = NormOf(static_cast<const CudaNorm&>(norm));
  Gemm whole = g;
  whole.out = rows->states;
  whole.residual = rows->states;
  if (rows->count >= kFusedRows && g.k <= g.n && GemmNormFits(machine_, whole, n, rows->quantized)) {
    whole.reversed = Turn(w, rows);
    return Check(w, RunGemmNorm(machine_, whole, n, rows->quantized, w->stream), doing);
  }
  const bool gathers = rows == &w->first && w->first_in_place;
  w->first_in_place = w->first_in_place && !gathers;
  n.summed = gathers || (machine_.hopper && element_ != Element::kFloat && rows->count >= kSumRows &&
                         plans_.Find(g).family != Family::kLt);
  if (n.summed) g.residual = gathers ? w->all.states : rows->states;
  if (gathers) g.residual_rows = w->row_ranges;
  g.reversed = Turn(w, rows);
  Multiply(w, g, doing);
  n.reversed = Turn(w, rows);
  Check(w, RunAddNorm(machine_, element_, n, rows->count, rows->states, rows->delta, rows->quantized, w->stream),
        "normalizing");
}

void CudaBackend::TakeStates(CudaWorkspace* w, Rows* rows, const CudaLinear& weight, Gemm* g) const {
  g->m = rows->count;
  g->ldx = pitch_;
  g->reversed = Turn(w, rows);
  if (weight.element == Element::kFloat8) {
    g->x = rows->quantized.values;
    g->x_scale.values = rows->quantized.scale;
  } else {
    g->x = rows->states;
  }
}

void CudaBackend::MultiplyStates(CudaWorkspace* w, Rows* rows, const CudaLinear& weight, Gemm g, const char* doing) {
  TakeStates(w, rows, weight, &g);
  Multiply(w, g, doing);
}

void CudaBackend::Embed(Workspace* workspace, const EmbeddingTables& tables, const NormParameters& norm) {
  auto* w = static_cast<CudaWorkspace*>(workspace);
  const auto& t = static_cast<const CudaEmbeddings&>(tables);
  w->reversed = false;
  Embedding e;
  e.words = t.words.data();
  e.positions = t.positions.data();
  e.segments = t.segments.data();
  e.tokens = w->tokens;
  e.rows = w->row_source;
  e.count = w->all.count;
  e.row_count = w->first.count + (w->tiled ? TileSlots(w->all.count) + 1 : 0);  // the tiles lie behind the rows
  e.ranges = w->ranges;
  e.row_ranges = w->row_ranges;
  Check(w, RunEmbed(machine_, element_, e, NormOf(static_cast<const CudaNorm&>(norm)), w->all.states,
                    w->all.quantized, w->stream),
        "embedding");
}

// The product that follows must be able to fetch its residual from where the rows' first tokens are.
bool CudaBackend::InPlace(const CudaWorkspace* w) const {
  if (w->all.count > kInPlaceTokens || w->first.count > kInPlaceRows || element_ == Element::kFloat) return false;
  Gemm g;
  g.m = w->first.count;
  g.n = g.k = pitch_;
  g.in = g.out_type = element_;
  return PlanFor(machine_, g).family == Family::kSplit;
}

void CudaBackend::Linear(Workspace* workspace, Span span, Slot, const PackedLinear& weight, PartRange parts, Slot out) {
  auto* w = static_cast<CudaWorkspace*>(workspace);
  const auto& linear = static_cast<const CudaLinear&>(weight);
  if (out == Slot::kQkv && w->first_in_place) parts.begin = 0;
  if (out == Slot::kFirstQuery && w->first_in_place) return;
  w->float8_context = linear.bounded_values;
  Gemm g = Product(linear, parts.begin, parts.end - parts.begin);
  if (out == Slot::kFirstQuery) {
    g.out = w->first_query;
    g.ldo = pitch_;
  } else {
    g.out = static_cast<uint8_t*>(w->qkv) + static_cast<size_t>(parts.begin) * linear.part * ElementBytes(element_);
    g.ldo = 3 * static_cast<int64_t>(pitch_);
  }
  MultiplyStates(w, span == Span::kAllTokens ? &w->all : &w->first, linear, g, "computing queries, keys and values");
}

void CudaBackend::Attend(Workspace* workspace, Span span) {
  auto* w = static_cast<CudaWorkspace*>(workspace);
  const bool every = span == Span::kAllTokens;
  Attention a;
  a.qkv = w->qkv;
  a.ld = 3 * static_cast<int64_t>(pitch_);
  a.part = pitch_;
  a.first_queries = every ? nullptr : (w->first_in_place ? w->qkv : w->first_query);
  a.ld_first = w->first_in_place ? a.ld : pitch_;
  a.first_at_range = w->first_in_place;
  a.ranges = every ? w->ranges : w->row_ranges;
  a.count = every ? w->all.count : w->first.count;
  a.heads = config_.num_heads;
  a.head_size = config_.hidden_size / config_.num_heads;
  a.context = every ? w->all.context : w->first.context;
  a.ld_context = pitch_;
  a.float8_context = w->float8_context;
  a.reversed = every && Turn(w, &w->all);
  Check(w, RunAttention(machine_, element_, a, w->stream), "attending");
}

void CudaBackend::AttendAll(Workspace* workspace, const PackedLinear& qkv) {
  auto* w = static_cast<CudaWorkspace*>(workspace);
  const auto& linear = static_cast<const CudaLinear&>(qkv);
  if (!w->tiled) return Backend::AttendAll(workspace, qkv);
  w->float8_context = linear.bounded_values;
  RowsAttention a;
  a.product = Product(linear, 0, 3);
  TakeStates(w, &w->all, linear, &a.product);
  a.ranges = w->ranges, a.tiles = w->row_ranges + w->first.count, a.slots = TileSlots(w->all.count);
  a.sure = CeilDiv(w->recorded ? LeastTokens(w->all.count) : w->all.count, kRowsTile);  // of any batch that runs this
  a.heads = config_.num_heads;
  a.context = w->all.context, a.ld_context = pitch_;
  a.float8_context = w->float8_context;
  ReachAhead(w, &a.product);
  Check(w, RunRowsAttention(machine_, a, w->stream), "attending");
}

void CudaBackend::GatherFirst(Workspace* workspace) {
  auto* w = static_cast<CudaWorkspace*>(workspace);
  w->first_in_place = !w->shape.all_tokens && InPlace(w);
  if (w->first_in_place) return;
  Check(w, RunGather(machine_, element_, w->row_ranges, w->first.count, pitch_, w->all.states, w->first.states,
                     w->first.quantized, w->stream),
        "gathering first tokens");
}

// What the heads' queries become, and what they find, lies where queries, keys, values and context of all tokens would:
// there is room for it but for batches of very short rows.
bool CudaBackend::AttendsStates(const CudaWorkspace* w, const CudaLinear& qkv) const {
  const int64_t found = static_cast<int64_t>(w->first.count) * config_.num_heads;
  return qkv.to_states.data() != nullptr && w->all.count > kAttendStatesTokens &&
         found <= 4 * static_cast<int64_t>(w->all.count);
}

// With W_k and W_v a head's keys' and values' matrices, q its query and X the row's states:
//   softmax(q (X W_k)^T) (X W_v + b) = (softmax((q W_k^T) X^T) X) W_v + b
// for what the bias of keys adds is the same in every score, and a softmax sums to 1.
void CudaBackend::AttendFirst(Workspace* workspace, const PackedLinear& qkv) {
  auto* w = static_cast<CudaWorkspace*>(workspace);
  const auto& linear = static_cast<const CudaLinear&>(qkv);
  if (!AttendsStates(w, linear)) return Backend::AttendFirst(workspace, qkv);
  const int heads = config_.num_heads, size = config_.hidden_size / heads;
  Linear(workspace, Span::kFirstTokens, Slot::kFirstStates, qkv, PartRange{0, 1}, Slot::kFirstQuery);
  Gemm g;
  g.m = w->first.count, g.n = pitch_, g.k = size;
  g.in = g.out_type = element_;
  g.batches = heads;
  g.x = w->first_query, g.ldx = pitch_, g.x_step = size;
  g.w = linear.to_states.data(), g.w_step = static_cast<int64_t>(pitch_) * size;
  g.out = w->qkv, g.ldo = static_cast<int64_t>(heads) * pitch_, g.out_step = pitch_;
  Check(w, RunGemm(machine_, OwnPlanFor(machine_, g), g, w->stream), "taking queries to the states");

  StatesAttention a;
  a.states = w->all.states, a.pitch = pitch_;
  a.found = w->qkv;
  a.ranges = w->row_ranges;
  a.count = w->first.count, a.heads = heads, a.hidden = config_.hidden_size, a.head_size = size;
  a.reversed = Turn(w, &w->all);
  Check(w, RunStatesAttention(machine_, element_, a, w->stream), "attending to the states");

  const bool own = linear.to_values.data() != nullptr;
  g.n = size, g.k = pitch_;
  g.x = w->qkv, g.ldx = g.ldo, g.x_step = pitch_;
  g.w = own ? linear.to_values.data() : linear.w.data() + 2 * static_cast<int64_t>(linear.part) * linear.k * 2;
  g.bias = linear.bias.as<float>() + 2 * linear.part, g.bias_step = size;
  g.out = w->first.context, g.ldo = pitch_, g.out_step = size;
  Check(w, RunGemm(machine_, OwnPlanFor(machine_, g), g, w->stream), "taking what was found to values");
}

void CudaBackend::LinearAddNorm(Workspace* workspace, Span span, Slot, const PackedLinear& weight, Slot,
                                const NormParameters& norm) {
  auto* w = static_cast<CudaWorkspace*>(workspace);
  Rows* rows = span == Span::kAllTokens ? &w->all : &w->first;
  const auto& linear = static_cast<const CudaLinear&>(weight);
  Gemm g = Product(linear, 0, 1);
  g.x = rows->context;
  g.ldx = pitch_;
  if (linear.half.data() != nullptr) {  // F equals H, and the last layer: it looked like a feed-forward matrix
    g.in = Element::kHalf;
    g.w = linear.half.data();
    g.w_scale = nullptr;
  }
  MultiplyAddNorm(w, rows, g, "projecting the context", norm);
}

void CudaBackend::FeedForward(Workspace* workspace, Span span, Slot, const PackedLinear& up_weight,
                              const PackedLinear& down_weight, const NormParameters& norm) {
  auto* w = static_cast<CudaWorkspace*>(workspace);
  Rows* rows = span == Span::kAllTokens ? &w->all : &w->first;
  const auto& up = static_cast<const CudaLinear&>(up_weight);
  const auto& down = static_cast<const CudaLinear&>(down_weight);
  // fp8: the activations' scale is known before they are, from what a row of this length can give at most. Not less
  // than Gemm::out_scale's least.
  RowScale scale;
  if (down.element == Element::kFloat8) {
    scale.values = rows->quantized.norm;
    scale.gain = up.longest / kFloat8Max;
    scale.offset = (up.largest_bias + 0.02f) / kFloat8Max;
  }
  Gemm g = Product(up, 0, 1);
  g.act = ActOf(config_.activation);
  g.out = rows->wide;
  g.ldo = wide_;
  g.out_type = down.element;
  g.out_scale = scale;
  MultiplyStates(w, rows, up, g, "feeding forward");
  g = Product(down, 0, 1);
  g.x = rows->wide;
  g.ldx = wide_;
  g.x_scale = scale;
  MultiplyAddNorm(w, rows, g, "feeding forward", norm);
}

void CudaBackend::Pool(Workspace* workspace, const PackedLinear& weight) {
  auto* w = static_cast<CudaWorkspace*>(workspace);
  const auto& linear = static_cast<const CudaLinear&>(weight);
  Gemm g = Product(linear, 0, 1);
  g.act = static_cast<int>(Act::kTanh);
  g.out = w->pooled;
  g.ldo = pitch_;
  if (linear.element != Element::kFloat8) return MultiplyStates(w, &w->first, linear, g, "pooling");
  g.m = w->first.count;
  g.x = w->first.states;
  g.ldx = pitch_;
  g.in = Element::kHalf;
  g.w = linear.half.data();
  g.w_scale = nullptr;
  Multiply(w, g, "pooling");
}

void CudaBackend::Classify(Workspace* workspace, const PackedLinear& weight) {
  auto* w = static_cast<CudaWorkspace*>(workspace);
  const auto& linear = static_cast<const CudaLinear&>(weight);
  const DeviceArray& matrix = linear.element == Element::kFloat8 ? linear.half : linear.w;
  Check(w, RunClassify(machine_, element_, w->pooled, pitch_, w->first.count, matrix.data(), linear.bias.as<float>(),
                       linear.outputs, w->logits, w->stream, w->row_ranges),
        "classifying");
}

}  // namespace cuda
}  // namespace ftbert
