// The search for the fastest kernel of each product.
#include <algorithm>
#include <tuple>

#include "cuda/backend.h"
#include "cuda/lt.h"

namespace ftbert {
namespace cuda {

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
    if (error == cudaSuccess) error = scratch.Allocate(kLtAllBytes);
    if (error == cudaSuccess) error = ones.Allocate(sizeof(float) * m);
    // Zeros would run faster than data: noise of the size that activations have.
    if (error == cudaSuccess)
      error = FillNoise(element_, x.data(), static_cast<int64_t>(m) * std::max(pitch_, wide_), nullptr);
    if (error == cudaSuccess) error = cudaDeviceSynchronize();
    status = FromCuda(error, "making room to tune " + std::to_string(m) + " tokens");
    using Kind = std::tuple<int, int, Element>;
    const auto kind_of = [](const CudaLinear& l) { return Kind(l.part * l.parts, l.k, l.element); };
    std::vector<Kind> done;
    for (size_t first = 0; first < packed_.size() && status.ok(); ++first) {
      const CudaLinear& linear = *packed_[first];
      const Kind kind = kind_of(linear);
      if (linear.outputs == config_.num_labels || std::find(done.begin(), done.end(), kind) != done.end()) continue;
      done.push_back(kind);
      std::vector<const void*> weights;
      for (const CudaLinear* other : packed_) {
        if (kind_of(*other) == kind) weights.push_back(other->w.data());
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
      if (m <= kGraphTokens) g.counter = scratch.data() + kLtScratchBytes;
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
