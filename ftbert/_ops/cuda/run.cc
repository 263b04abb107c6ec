// One run of the CUDA backend: room, inputs, outputs. Graphs: graphs.cc.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "cuda/backend.h"

namespace ftbert {
namespace cuda {
namespace {

constexpr int kPinnedTokens = 1024;   // up to here the card reads its inputs from host memory: no copy to wait for
constexpr size_t kPinnedLogits = 64 << 10;

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

// What a batch brings: its tokens, the ranges of its rows, its tiles and their number.
size_t InputBytes(int tokens, int rows) {
  return sizeof(Token) * tokens + sizeof(int2) * (rows + TileSlots(tokens) + 1);
}

size_t Aligned(size_t bytes) { return (bytes + 1023) / 1024 * 1024; }

}  // namespace

CudaWorkspace::~CudaWorkspace() {
  DeviceGuard guard(device);
  if (stream != nullptr) cudaStreamSynchronize(stream);
  DropGraphs();
  if (pinned != nullptr) cudaFreeHost(pinned);
  if (stream != nullptr) cudaStreamDestroy(stream);
  arena.Free();
  scratch.Free();
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
  s->tokens = reinterpret_cast<const Token*>(take(InputBytes(tokens, rows)));
  s->ranges = reinterpret_cast<int2*>(take(sizeof(int2) * tokens));
  s->row_ranges = reinterpret_cast<int2*>(take(sizeof(int2) * (rows + TileSlots(tokens) + 1)));
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
  tokens = std::max(w->token_room, TokenRoom(tokens));
  rows = std::max(w->row_room, std::max(rows, RowRoom(tokens)));
  w->DropGraphs();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    workspace_bytes_ -= w->arena.bytes();
  }
  Slots unused;
  const size_t bytes = Arrange(nullptr, tokens, rows, &unused);
  const size_t pinned = InputBytes(tokens, rows) +
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
  w->recorded = machine_.graphs && shape.tokens <= kGraphTokens;
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
  const int slots = TileSlots(tokens);
  w->tiled = Tiles(w, batch, slots);
  for (int b = 0; b < shape.rows; ++b) {
    const int from = batch.row_splits[b], count = batch.row_splits[b + 1] - from;
    const int begin = w->tiled ? w->tiles.begins[b] : from;
    row[b] = make_int2(begin, begin + count);
    for (int t = 0; t < count; ++t) {
      const int32_t segment = batch.segment_ids != nullptr ? batch.segment_ids[from + t] : 0;
      token[begin + t] = Token{batch.token_ids[from + t], segment, begin, begin + count};
    }
  }
  for (int t = shape.tokens; t < tokens; ++t) token[t] = Token{0, 0, shape.tokens, shape.tokens};
  for (int b = shape.rows; b < rows; ++b) row[b] = make_int2(0, 0);
  if (w->tiled) {
    const int used = static_cast<int>(w->tiles.tiles.size());
    for (int i = 0; i < slots; ++i) {
      row[rows + i] = i < used ? make_int2(w->tiles.tiles[i].first, w->tiles.tiles[i].second) : make_int2(0, 0);
    }
    row[rows + slots] = make_int2(used, 0);
  }

  if (tokens <= kPinnedTokens) {
    w->tokens = token;
    w->row_source = row;
  } else {
    const size_t bytes = InputBytes(tokens, rows);
    w->row_source = reinterpret_cast<const int2*>(w->tokens + tokens);
    status =
        FromCuda(cudaMemcpyAsync(const_cast<Token*>(w->tokens), w->pinned, bytes, cudaMemcpyHostToDevice, w->stream),
                 "copying the inputs");
  }
  const size_t logits = sizeof(float) * rows * config_.num_labels;
  w->logits_pinned = logits <= kPinnedLogits;
  w->watched = machine_.watching && w->logits_pinned && tokens <= kPinnedTokens;
  if (w->logits_pinned) {
    w->logits = reinterpret_cast<float*>(w->pinned + InputBytes(w->token_room, w->row_room));
    auto* words = reinterpret_cast<uint32_t*>(w->logits);
    if (w->watched) std::fill(words, words + static_cast<size_t>(shape.rows) * config_.num_labels, kNotYet);
  }
  return status;
}

bool CudaBackend::HasTiles() const {
  const Element in = precision_ == Precision::kFloat8 ? Element::kFloat8 : element_;
  return machine_.tiles &&
         RowsAttentionFits(machine_, in, element_, config_.num_heads, config_.hidden_size / config_.num_heads);
}

bool CudaBackend::MayTile(int tokens) const {
  return HasTiles() && TilesPay(tokens, config_.num_heads, machine_.sms);
}

bool CudaBackend::Tiles(CudaWorkspace* w, const Batch& batch, int most) const {
  return !w->shape.all_tokens && MayTile(w->shape.tokens) &&
         TileRows(batch.row_splits, w->real.rows, most, &w->tiles);
}

Status CudaBackend::Download(Workspace* workspace, const Outputs& outputs) {
  auto* w = static_cast<CudaWorkspace*>(workspace);
  DeviceGuard guard(machine_.device);
  const int width = config_.hidden_size, rows = w->real.rows;
  const size_t logits = sizeof(float) * rows * config_.num_labels;
  cudaError_t error = cudaSuccess;
  float* const host = reinterpret_cast<float*>(w->pinned + InputBytes(w->token_room, w->row_room));
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
  // Few tokens: the logits are watched for; none are written for rows that only fill the bucket. Whatever else the
  // stream still does, a later call on it waits for.
  const bool only_logits = outputs.logits != nullptr && outputs.token_states == nullptr &&
                           outputs.first_states == nullptr && outputs.pooled == nullptr;
  const size_t written = static_cast<size_t>(rows) * config_.num_labels;
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

}  // namespace cuda
}  // namespace ftbert
