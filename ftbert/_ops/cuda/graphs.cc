// Graphs of the CUDA backend: what is recorded when, and what is let go.
//
// Batches of up to kGraphTokens tokens are rounded up to a bucket (buckets.h). The first batch of a bucket runs as it
// is, which also brings every kernel to the card and tells which weights follow which; the second is recorded, reaching
// ahead for these weights; from then on its graph is replayed. Row splits lie on the device, so that one graph serves
// every batch of its bucket. Engine::Warm takes all this out of the first callers' way.
#include "cuda/backend.h"
#include "cuda/graph_fills.h"
#include "cuda/lt.h"

namespace ftbert {
namespace cuda {
namespace {

void LetGo(RecordedGraph* graph) {
  if (graph->run != nullptr) cudaGraphExecDestroy(graph->run);
  graph->run = nullptr;
}

}  // namespace

std::mutex& RecordingMutex() {
  static auto* mutex = new std::mutex;
  return *mutex;
}

void CudaWorkspace::DropGraphs() {
  // A run that was watched for its logits may still be ending.
  if (stream != nullptr) cudaStreamSynchronize(stream);
  graphs.Clear(LetGo);
}

std::vector<Shape> CudaBackend::WarmShapes(int32_t most_tokens) const {
  std::vector<Shape> shapes;
  if (!machine_.graphs) return shapes;
  for (const auto& size : WarmSizes(most_tokens, config_.max_positions)) {
    Shape shape;
    shape.tokens = size.first;
    shape.rows = size.second;
    shapes.push_back(shape);
    // Texts that are short enough lie in tiles, which is another graph.
    if (shape.rows == 1 || shape.tokens > kGraphTokens || !MayTile(shape.tokens)) continue;
    shape.rows = CeilDiv(shape.tokens, kRowsTile);
    if (shape.rows > size.second) shapes.push_back(shape);
  }
  return shapes;
}

Status CudaBackend::RunLoop(CudaWorkspace* w, const std::function<void()>& loop) {
  w->sequence.clear();
  w->first_in_place = false;
  loop();
  return FromCuda(w->error, w->failed);
}

Status CudaBackend::Execute(Workspace* workspace, const std::function<void(Workspace*)>& layers) {
  auto* w = static_cast<CudaWorkspace*>(workspace);
  const auto loop = [&] { layers(workspace); };
  DeviceGuard guard(machine_.device);
  const Status status = RunOrReplay(w, loop);
  // What was queued before the failure still reads this batch's inputs, whose place the next batch overwrites.
  if (!status.ok()) cudaStreamSynchronize(w->stream);
  return status;
}

Status CudaBackend::RunOrReplay(CudaWorkspace* w, const std::function<void()>& loop) {
  w->ahead.clear();
  if (!w->recorded) return RunLoop(w, loop);
  const GraphKey key{w->shape.tokens, w->shape.rows, w->shape.all_tokens, w->tiled};
  RecordedGraph* graph = w->graphs.Find(key);
  if (graph == nullptr) {
    const Status status = RunLoop(w, loop);
    if (!status.ok()) return status;
    graph = w->graphs.Add(key, [&](RecordedGraph* oldest) {
      if (oldest->run != nullptr) cudaStreamSynchronize(w->stream);  // nothing of it may still run
      LetGo(oldest);
    });
    graph->sequence = w->sequence;
    return status;
  }
  if (graph->run == nullptr) {
    const Status status = Record(w, graph, loop);
    if (!status.ok()) return status;
  }
  return FromCuda(cudaGraphLaunch(graph->run, w->stream), "launching a graph");
}

Status CudaBackend::Record(CudaWorkspace* w, RecordedGraph* graph, const std::function<void()>& loop) {
  std::lock_guard<std::mutex> quiet(RecordingMutex());
  cudaError_t error = cudaStreamBeginCapture(w->stream, cudaStreamCaptureModeRelaxed);
  if (error != cudaSuccess) return FromCuda(error, "recording a graph");
  w->ahead.swap(graph->sequence);
  w->recording = true;
  w->counters = 0;
  const Status status = RunLoop(w, loop);
  w->recording = false;
  w->ahead.swap(graph->sequence);
  cudaGraph_t recording = nullptr;
  error = cudaStreamEndCapture(w->stream, &recording);
  if (status.ok() && error == cudaSuccess && w->counters > 0) {
    error = HoistFills(recording, w->scratch.data() + kLtScratchBytes, w->counters * kLtCounterBytes);
  }
  if (status.ok() && error == cudaSuccess) error = cudaGraphInstantiateWithFlags(&graph->run, recording, 0);
  if (recording != nullptr) cudaGraphDestroy(recording);
  if (!status.ok() || error != cudaSuccess) {
    graph->run = nullptr;
    cudaGetLastError();
    return status.ok() ? FromCuda(error, "recording a graph") : status;
  }
  graph->sequence = std::vector<Reach>();  // it is in the graph now
  return Status();
}

}  // namespace cuda
}  // namespace ftbert
