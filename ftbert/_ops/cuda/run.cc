// One run of the CUDA backend: room, inputs, graphs, outputs.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "cuda/backend.h"
#include "cuda/lt.h"

namespace ftbert {
namespace cuda {
namespace {

constexpr int kGraphTokens = 4096;    // beyond, launching costs nothing next to the work
constexpr size_t kGraphs = 32;        // of a workspace, each some hundred KiB
constexpr int kPinnedTokens = 1024;   // up to here the card reads its inputs from host memory: no copy to wait for
constexpr size_t kPinnedLogits = 64 << 10;

// Sizes within a bucket share a graph.
int TokenBucket(int tokens) {
  const int step = tokens <= 256 ? 32 : (tokens <= 512 ? 64 : (tokens <= 2048 ? 128 : 256));
  return RoundUp(tokens, step);
}

int RowBucket(int rows, int tokens) {
  int bucket = 1;
  while (bucket < rows) bucket *= 4;
  return std::min(bucket, tokens);
}

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// What the logits' place holds before a run: a NaN that no kernel computes, so that the last of them to change tells
// that all are there, sooner than the stream's own end does.
constexpr uint32_t kNotYet = 0x7fedcba9u;
constexpr int kLooks = 4096;  // between questions whether the stream failed or was done all along

bool Arrived(const volatile uint32_t* words, size_t count, cudaStream_t stream) {
  size_t there = 0;
  for (int64_t look = 1;; ++look) {
    while (there < count && words[there] != kNotYet) ++there;
    if (there == count) break;
    Pause();
    if (look % kLooks == 0 && cudaStreamQuery(stream) != cudaErrorNotReady) return false;
  }
  std::atomic_thread_fence(std::memory_order_acquire);
  return true;
}

size_t Aligned(size_t bytes) { return (bytes + 1023) / 1024 * 1024; }

}  // namespace

std::mutex& RecordingMutex() {
  static auto* mutex = new std::mutex;
  return *mutex;
}

CudaWorkspace::~CudaWorkspace() {
  DeviceGuard guard(device);
  if (stream != nullptr) cudaStreamSynchronize(stream);
  DropGraphs();
  if (pinned != nullptr) cudaFreeHost(pinned);
  if (stream != nullptr) cudaStreamDestroy(stream);
  arena.Free();
  scratch.Free();
}

void CudaWorkspace::DropGraphs() {
  // A run that was watched for its logits may still be ending.
  if (!graphs.empty() && stream != nullptr) cudaStreamSynchronize(stream);
  for (RecordedGraph& graph : graphs) {
    if (graph.run != nullptr) cudaGraphExecDestroy(graph.run);
  }
  graphs.clear();
}

Status CudaBackend::NewWorkspace(std::unique_ptr<Workspace>* workspace) {
  DeviceGuard guard(machine_.device);
  auto w = std::make_unique<CudaWorkspace>(machine_.device);
  const cudaError_t error = cudaStreamCreateWithFlags(&w->stream, cudaStreamNonBlocking);
  if (error != cudaSuccess) return FromCuda(error, "making a stream");
  *workspace = std::move(w);
  return Status();
}

size_t CudaBackend::Arrange(uint8_t* arena, int tokens, int rows, Slots* s) const {
  const size_t each = ElementBytes(element_), line = each * pitch_;
  size_t used = 0;
  const auto take = [&](size_t bytes) -> uint8_t* {
    uint8_t* at = arena == nullptr ? nullptr : arena + used;
    used += Aligned(bytes);
    return at;
  };
  s->tokens = reinterpret_cast<const Token*>(take(sizeof(Token) * tokens + sizeof(int2) * rows));
  s->ranges = reinterpret_cast<int2*>(take(sizeof(int2) * tokens));
  s->row_ranges = reinterpret_cast<int2*>(take(sizeof(int2) * rows));
  // Queries, keys, values and context are dead when the feed-forward activations come: they share a place, unless their
  // padding columns, which must stay zeros, would be overwritten.
  const size_t attention = 4 * line * tokens, forward = each * wide_ * tokens;
  const bool share = pitch_ == config_.hidden_size && wide_ == config_.intermediate_size;
  uint8_t* const place = take(share ? std::max(attention, forward) : attention);
  uint8_t* const wide_place = share ? place : take(forward);
  const auto arrange_rows = [&](Rows* r, int count) {
    *r = Rows();
    r->states = take(line * count);
    r->delta = take(line * count);
    if (precision_ == Precision::kFloat8) {
      r->quantized.values = take(static_cast<size_t>(pitch_) * count);
      r->quantized.scale = reinterpret_cast<float*>(take(sizeof(float) * count));
      r->quantized.norm = reinterpret_cast<float*>(take(sizeof(float) * count));
    }
    r->wide = wide_place;
  };
  arrange_rows(&s->all, tokens);
  arrange_rows(&s->first, rows);
  s->qkv = place;
  s->all.context = place == nullptr ? nullptr : place + 3 * line * tokens;
  s->first.context = take(line * rows);
  s->first_query = take(line * rows);
  s->pooled = take(line * rows);
  s->logits = reinterpret_cast<float*>(take(sizeof(float) * rows * std::max(config_.num_labels, 1)));
  return used;
}

Status CudaBackend::MakeRoom(CudaWorkspace* w, int tokens, int rows) {
  if (tokens <= w->token_room && rows <= w->row_room) return Status();
  tokens = std::max(w->token_room, tokens <= kGraphTokens ? TokenBucket(tokens) : RoundUp(tokens, 2048));
  rows = std::max(w->row_room, RowBucket(rows, tokens));
  w->DropGraphs();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    workspace_bytes_ -= w->arena.bytes();
  }
  Slots unused;
  const size_t bytes = Arrange(nullptr, tokens, rows, &unused);
  const size_t pinned = sizeof(Token) * tokens + sizeof(int2) * rows +
                        std::max(kPinnedLogits, sizeof(float) * rows * std::max(config_.num_labels, 1));
  w->token_room = w->row_room = 0;
  std::lock_guard<std::mutex> quiet(RecordingMutex());
  cudaError_t error = w->arena.Allocate(bytes);
  if (error == cudaSuccess && pinned > w->pinned_bytes) {
    if (w->pinned != nullptr) cudaFreeHost(w->pinned);
    w->pinned = nullptr;
    w->pinned_bytes = 0;
    void* host = nullptr;
    error = cudaHostAlloc(&host, pinned, cudaHostAllocPortable | cudaHostAllocMapped);
    if (error == cudaSuccess) w->pinned = static_cast<uint8_t*>(host), w->pinned_bytes = pinned;
  }
  // The zeros must be there before this stream's first kernel: the fill ran on another stream.
  if (error == cudaSuccess) error = cudaDeviceSynchronize();
  if (error != cudaSuccess) {
    cudaGetLastError();
    w->arena.Free();
    return FromCuda(error,
                    "making room for " + std::to_string(tokens) + " tokens (" + std::to_string(bytes >> 20) + " MiB)");
  }
  std::lock_guard<std::mutex> lock(mutex_);
  workspace_bytes_ += bytes;
  w->token_room = tokens;
  w->row_room = rows;
  return Status();
}

Status CudaBackend::Upload(Workspace* workspace, const Shape& shape, const Batch& batch) {
  auto* w = static_cast<CudaWorkspace*>(workspace);
  DeviceGuard guard(machine_.device);
  w->error = cudaSuccess;
  w->real = shape;
  w->shape = shape;
  w->recorded = shape.tokens <= kGraphTokens;
  if (w->recorded) {
    w->shape.tokens = TokenBucket(shape.tokens);
    w->shape.rows = RowBucket(shape.rows, w->shape.tokens);
  }
  Status status = MakeRoom(w, w->shape.tokens, w->shape.rows);
  if (!status.ok()) return status;
  const int tokens = w->shape.tokens, rows = w->shape.rows;

  // Places follow the room, not the batch, so that recorded graphs stay right.
  Arrange(w->arena.data(), w->token_room, w->row_room, w);
  w->all.count = tokens;
  w->first.count = rows;

  auto* token = reinterpret_cast<Token*>(w->pinned);
  auto* row = reinterpret_cast<int2*>(token + tokens);
  for (int b = 0; b < shape.rows; ++b) {
    const int begin = batch.row_splits[b], end = batch.row_splits[b + 1];
    row[b] = make_int2(begin, end);
    for (int t = begin; t < end; ++t) {
      token[t] = Token{batch.token_ids[t], batch.segment_ids != nullptr ? batch.segment_ids[t] : 0, begin, end};
    }
  }
  for (int t = shape.tokens; t < tokens; ++t) token[t] = Token{0, 0, shape.tokens, shape.tokens};
  for (int b = shape.rows; b < rows; ++b) row[b] = make_int2(0, 0);

  if (tokens <= kPinnedTokens) {
    w->tokens = token;
    w->row_source = row;
  } else {
    const size_t bytes = sizeof(Token) * tokens + sizeof(int2) * rows;
    w->row_source = reinterpret_cast<const int2*>(w->tokens + tokens);
    status =
        FromCuda(cudaMemcpyAsync(const_cast<Token*>(w->tokens), w->pinned, bytes, cudaMemcpyHostToDevice, w->stream),
                 "copying the inputs");
  }
  const size_t logits = sizeof(float) * rows * config_.num_labels;
  w->logits_pinned = logits <= kPinnedLogits;
  w->watched = w->logits_pinned && tokens <= kPinnedTokens;
  if (w->logits_pinned) {
    w->logits = reinterpret_cast<float*>(w->pinned + sizeof(Token) * w->token_room + sizeof(int2) * w->row_room);
    auto* words = reinterpret_cast<uint32_t*>(w->logits);
    if (w->watched) std::fill(words, words + static_cast<size_t>(rows) * config_.num_labels, kNotYet);
  }
  return status;
}

Status CudaBackend::RunLoop(CudaWorkspace* w, const std::function<void()>& loop) {
  w->last_sequence.swap(w->sequence);
  w->sequence.clear();
  w->first_in_place = false;
  loop();
  return FromCuda(w->error, w->failed);
}

// The first time a size is seen it runs as it is (which also brings every kernel to the card), the second time it is
// recorded, then replayed.
Status CudaBackend::Execute(Workspace* workspace, const std::function<void()>& loop) {
  auto* w = static_cast<CudaWorkspace*>(workspace);
  DeviceGuard guard(machine_.device);
  w->sequence.clear();
  if (!w->recorded) return RunLoop(w, loop);
  const GraphKey key{w->shape.tokens, w->shape.rows, w->shape.all_tokens};
  const auto found =
      std::find_if(w->graphs.begin(), w->graphs.end(), [&](const RecordedGraph& g) { return g.key == key; });
  if (found == w->graphs.end()) {
    if (w->graphs.size() == kGraphs) {
      cudaStreamSynchronize(w->stream);
      if (w->graphs.back().run != nullptr) cudaGraphExecDestroy(w->graphs.back().run);
      w->graphs.pop_back();
    }
    w->graphs.push_front(RecordedGraph());
    w->graphs.front().key = key;
    return RunLoop(w, loop);
  }
  w->graphs.splice(w->graphs.begin(), w->graphs, found);
  RecordedGraph* graph = &w->graphs.front();
  if (graph->run == nullptr) {
    const Status status = Record(w, graph, loop);
    if (!status.ok()) return status;
  }
  return FromCuda(cudaGraphLaunch(graph->run, w->stream), "launching a graph");
}

// Recorded twice: the first pass tells which weights follow which, the second reaches ahead for them.
Status CudaBackend::Record(CudaWorkspace* w, RecordedGraph* graph, const std::function<void()>& loop) {
  std::lock_guard<std::mutex> quiet(RecordingMutex());
  for (int pass = 0; pass < 2; ++pass) {
    cudaError_t error = cudaStreamBeginCapture(w->stream, cudaStreamCaptureModeRelaxed);
    if (error != cudaSuccess) return FromCuda(error, "recording a graph");
    const Status status = RunLoop(w, loop);
    cudaGraph_t recording = nullptr;
    error = cudaStreamEndCapture(w->stream, &recording);
    if (status.ok() && error == cudaSuccess && pass == 1)
      error = cudaGraphInstantiateWithFlags(&graph->run, recording, 0);
    if (recording != nullptr) cudaGraphDestroy(recording);
    if (!status.ok() || error != cudaSuccess) {
      graph->run = nullptr;
      cudaGetLastError();
      return status.ok() ? FromCuda(error, "recording a graph") : status;
    }
  }
  return Status();
}

Status CudaBackend::Download(Workspace* workspace, const Outputs& outputs) {
  auto* w = static_cast<CudaWorkspace*>(workspace);
  DeviceGuard guard(machine_.device);
  const int width = config_.hidden_size, rows = w->real.rows;
  const size_t logits = sizeof(float) * rows * config_.num_labels;
  cudaError_t error = cudaSuccess;
  float* const host = reinterpret_cast<float*>(w->pinned + sizeof(Token) * w->token_room + sizeof(int2) * w->row_room);
  if (outputs.logits != nullptr && !w->logits_pinned) {
    error = cudaMemcpyAsync(host, w->logits, logits, cudaMemcpyDeviceToHost, w->stream);
  }
  // Rarely wanted: widened to fp32 where queries and keys were, one after another.
  const auto fetch = [&](const void* from, int count, float* to) {
    if (to == nullptr || error != cudaSuccess) return;
    auto* wide = static_cast<float*>(w->qkv);
    error = RunToFloat(machine_, element_, from, pitch_, count, width, wide, w->stream);
    if (error == cudaSuccess) {
      error = cudaMemcpyAsync(to, wide, sizeof(float) * width * count, cudaMemcpyDeviceToHost, w->stream);
    }
  };
  // Few tokens: the logits are watched for, those of rows that only fill the bucket too, so that none comes late.
  // Whatever else the stream still does, a later call on it waits for.
  const bool only_logits = outputs.logits != nullptr && outputs.token_states == nullptr &&
                           outputs.first_states == nullptr && outputs.pooled == nullptr;
  const size_t written = static_cast<size_t>(w->shape.rows) * config_.num_labels;
  if (only_logits && w->watched && Arrived(reinterpret_cast<uint32_t*>(host), written, w->stream)) {
    std::memcpy(outputs.logits, host, logits);
    return Status();
  }
  fetch(w->all.states, w->real.tokens, outputs.token_states);
  fetch(w->first.states, rows, outputs.first_states);
  fetch(w->pooled, rows, outputs.pooled);
  const cudaError_t ran = cudaStreamSynchronize(w->stream);
  if (error == cudaSuccess) error = ran;
  if (error != cudaSuccess) return FromCuda(error, "running a batch of " + std::to_string(w->real.tokens) + " tokens");
  if (outputs.logits != nullptr) std::memcpy(outputs.logits, host, logits);
  return Status();
}

// Every product of the model at each height, all kernels that can run it.
Status CudaBackend::Tune(const std::vector<int32_t>& token_counts) {
  DeviceGuard guard(machine_.device);
  std::lock_guard<std::mutex> quiet(RecordingMutex());
  cudaStream_t stream;
  Status status = FromCuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  if (!status.ok()) return status;
  for (size_t i = 0; i < token_counts.size() && status.ok(); ++i) {
    if (token_counts[i] < 1) {
      status =
          Status(Code::kInvalidArgument, "Expected token counts of at least 1, got " + std::to_string(token_counts[i]));
      break;
    }
    const int m = token_counts[i] <= kGraphTokens ? TokenBucket(token_counts[i]) : token_counts[i];
    DeviceArray x, out, scratch, ones;
    cudaError_t error = x.Allocate(sizeof(float) * m * std::max(pitch_, wide_));
    if (error == cudaSuccess) error = out.Allocate(sizeof(float) * m * std::max(3 * pitch_, wide_));
    if (error == cudaSuccess) error = scratch.Allocate(kLtScratchBytes);
    if (error == cudaSuccess) error = ones.Allocate(sizeof(float) * m);
    // Zeros would run faster than data: noise of the size that activations have.
    if (error == cudaSuccess)
      error = FillNoise(element_, x.data(), static_cast<int64_t>(m) * std::max(pitch_, wide_), nullptr);
    if (error == cudaSuccess) error = cudaDeviceSynchronize();
    status = FromCuda(error, "making room to tune " + std::to_string(m) + " tokens");
    std::vector<std::pair<int, int>> done;
    for (size_t first = 0; first < packed_.size() && status.ok(); ++first) {
      const CudaLinear& linear = *packed_[first];
      const std::pair<int, int> size(linear.part * linear.parts, linear.k);
      if (linear.outputs == config_.num_labels || std::find(done.begin(), done.end(), size) != done.end()) continue;
      done.push_back(size);
      std::vector<const void*> weights;
      for (const CudaLinear* other : packed_) {
        if (std::pair<int, int>(other->part * other->parts, other->k) == size) weights.push_back(other->w.data());
      }
      Gemm g = Product(linear, 0, linear.parts);
      const bool up = linear.parts == 1 && linear.outputs == config_.intermediate_size;
      g.m = m;
      g.x = x.data();
      g.ldx = g.k;
      g.out = out.data();
      g.ldo = g.n;
      g.act = up ? ActOf(config_.activation) : 0;
      g.scratch = scratch.data();
      g.scratch_bytes = kLtScratchBytes;
      if (linear.element == Element::kFloat8) {
        g.x_scale = RowScale{ones.as<float>(), 0.f, 1.f};
        if (up) g.out_type = Element::kFloat8, g.out_scale = g.x_scale;
      }
      status = plans_.Search(g, weights, stream);
    }
  }
  cudaStreamDestroy(stream);
  if (status.ok()) plans_.Save();
  return status;
}

}  // namespace cuda
}  // namespace ftbert
