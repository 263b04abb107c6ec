// Load time of the CUDA backend: weights to the card, in the layout and precision that run.
#include <algorithm>
#include <cmath>

#include "core/half.h"
#include "cuda/backend.h"

namespace ftbert {
namespace cuda {
namespace {

// So many layers before the last project attention's results in fp8. With all 23 of a BERT-large of random weights
// logits were off by 0.44 of their norm, with none by 0.32.
constexpr int kFloat8Projections = 12;

size_t SourceBytes(DataType type, int64_t count) {
  return static_cast<size_t>(count) * (type == DataType::kFloat32 ? 4 : 2);
}

Status Copy(void* to, const void* from, size_t bytes, const std::string& doing) {
  return FromCuda(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), doing);
}

}  // namespace

Status CudaBackend::PackPart(const SourceMatrix& source, int index, CudaLinear* to) {
  DeviceArray raw;
  const int64_t count = static_cast<int64_t>(source.rows) * source.cols;
  const std::string doing = "loading a weight of " + std::to_string(source.rows) + " x " + std::to_string(source.cols);
  Status status = FromCuda(raw.Allocate(SourceBytes(source.type, count)), doing);
  if (status.ok()) status = Copy(raw.data(), source.data, SourceBytes(source.type, count), doing);
  if (!status.ok()) return status;
  const int64_t row = static_cast<int64_t>(index) * to->part;
  const auto pack = [&](Element element, const DeviceArray& into) {
    float* scale = element == Element::kFloat8 ? to->scale.as<float>() + row : nullptr;
    return PackMatrix(raw.data(), source.type, source.rows, source.cols, source.transposed, element,
                      into.data() + row * to->k * ElementBytes(element), to->k, scale, nullptr);
  };
  cudaError_t error = pack(to->element, to->w);
  if (error == cudaSuccess && to->half.data() != nullptr) error = pack(Element::kHalf, to->half);
  if (error == cudaSuccess && to->element == Element::kFloat8) {
    DeviceArray length;
    error = length.Allocate(sizeof(float));
    if (error == cudaSuccess) {
      error = LongestColumn(raw.data(), source.type, source.rows, source.cols, source.transposed, length.as<float>(),
                            nullptr);
    }
    float longest = 0.f;
    if (error == cudaSuccess) error = cudaMemcpy(&longest, length.data(), sizeof longest, cudaMemcpyDeviceToHost);
    to->longest = std::max(to->longest, longest);
  }
  if (error == cudaSuccess) error = cudaDeviceSynchronize();  // `raw` goes now
  if (error != cudaSuccess) return FromCuda(error, doing);
  for (int i = 0; i < source.cols; ++i) to->largest_bias = std::max(to->largest_bias, std::fabs(source.bias[i]));
  status = Copy(to->bias.as<float>() + row, source.bias, sizeof(float) * source.cols, doing);
  if (status.ok() && to->bias_half.data() != nullptr) {
    error = PackMatrix(to->bias.as<float>() + row, DataType::kFloat32, 1, source.cols, true, element_,
                       to->bias_half.data() + row * 2, 1, nullptr, nullptr);
    status = FromCuda(error, doing);
  }
  return status;
}

// A head's query q finds key k with q . (x W_k) = (q W_k^T) . x: a product with W_k turned round instead of one with
// every x. The values of what it finds come from their own matrix.
Status CudaBackend::PackHeads(const std::vector<SourceMatrix>& parts, CudaLinear* to) {
  const int H = config_.hidden_size, size = H / config_.num_heads;
  const bool fits = StatesAttentionFits(machine_, element_, config_.num_heads, H);
  if (!fits || config_.num_heads == 1 || size % 16 != 0) return Status();
  const std::string doing = "loading the last layer's keys and values";
  const auto pack = [&](int part, bool by_heads, DeviceArray* into) {
    const SourceMatrix& source = parts[part];
    const size_t count = static_cast<size_t>(H) * H;
    std::vector<float> turned(count);  // (outputs, inputs)
    for (size_t k = 0; k < static_cast<size_t>(H); ++k) {
      for (size_t n = 0; n < static_cast<size_t>(H); ++n) {
        turned[n * H + k] = ReadAsFloat(source.data, source.type, source.transposed ? n * H + k : k * H + n);
      }
    }
    DeviceArray raw;
    cudaError_t error = raw.Allocate(count * sizeof(float));
    if (error == cudaSuccess) error = into->Allocate(count * 2);
    if (error == cudaSuccess) {
      error = cudaMemcpy(raw.data(), turned.data(), count * sizeof(float), cudaMemcpyHostToDevice);
    }
    if (!by_heads && error == cudaSuccess) {
      error = PackMatrix(raw.data(), DataType::kFloat32, H, H, true, element_, into->data(), H, nullptr, nullptr);
    }
    for (int head = 0; by_heads && error == cudaSuccess && head < config_.num_heads; ++head) {
      const size_t at = static_cast<size_t>(head) * size * H;
      error = PackMatrix(raw.as<float>() + at, DataType::kFloat32, size, H, false, element_, into->data() + at * 2,
                         size, nullptr, nullptr);
    }
    if (error == cudaSuccess) error = cudaDeviceSynchronize();  // `raw` goes now
    return FromCuda(error, doing);
  };
  const Status status = pack(1, true, &to->to_states);
  return !status.ok() || to->element != Element::kFloat8 ? status : pack(2, false, &to->to_values);
}

Status CudaBackend::PackLinear(const std::vector<SourceMatrix>& parts, std::unique_ptr<PackedLinear>* packed) {
  DeviceGuard guard(machine_.device);
  std::lock_guard<std::mutex> quiet(RecordingMutex());
  auto linear = std::make_unique<CudaLinear>();
  const int rows = parts[0].rows, cols = parts[0].cols, count = static_cast<int>(parts.size());
  linear->k = RoundUp(rows, 16);
  linear->part = RoundUp(cols, 16);
  linear->parts = count;
  linear->outputs = cols;
  // With fp8, products of H x H stay fp16 for now: what JoinLayer does not find a bound for has no scale beforehand.
  const bool large = count > 1 || (rows == config_.hidden_size && cols == config_.intermediate_size) ||
                     (rows == config_.intermediate_size && cols == config_.hidden_size);
  linear->element = precision_ == Precision::kFloat8 && large ? Element::kFloat8 : element_;
  const size_t outputs = static_cast<size_t>(linear->part) * count;
  const std::string doing = "loading a weight of " + std::to_string(rows) + " x " + std::to_string(cols * count);
  cudaError_t error = linear->w.Allocate(outputs * linear->k * ElementBytes(linear->element));
  if (error == cudaSuccess) error = linear->bias.Allocate(outputs * sizeof(float));
  if (error == cudaSuccess && linear->element == Element::kFloat8) {
    error = linear->scale.Allocate(outputs * sizeof(float));
    // A head whose labels are as many as F looks like a feed-forward matrix; it is kept in both forms.
    if (error == cudaSuccess && count == 1 && (cols == config_.num_labels || rows == cols)) {
      error = linear->half.Allocate(outputs * linear->k * 2);
    }
  }
  if (error == cudaSuccess && linear->element != Element::kFloat && linear->element != Element::kFloat8) {
    error = linear->bias_half.Allocate(outputs * 2);
  }
  if (error != cudaSuccess) return FromCuda(error, doing);
  for (int i = 0; i < count; ++i) {
    const Status status = PackPart(parts[i], i, linear.get());
    if (!status.ok()) return status;
  }
  Status status = FromCuda(cudaDeviceSynchronize(), doing);
  if (status.ok() && parts[0].last) status = PackHeads(parts, linear.get());
  if (!status.ok()) return status;
  packed_.push_back(linear.get());
  *packed = std::move(linear);
  return Status();
}

// fp8: context is a mean of values, and no value can exceed what follows from its weights and the norm before. So the
// values are stored as parts of that, column by column, context then fits into fp8 as it is, and the output
// projection's inputs count as many times more.
Status CudaBackend::JoinLayer(int32_t layer, const NormParameters& norm, PackedLinear* qkv,
                              PackedLinear* attention_out) {
  auto* values = static_cast<CudaLinear*>(qkv);
  auto* out = static_cast<CudaLinear*>(attention_out);
  const auto& n = static_cast<const CudaNorm&>(norm);
  const bool late = layer + 1 + kFloat8Projections >= config_.num_layers;
  if (values->element != Element::kFloat8 || !late || !Float8ContextFits(config_.hidden_size / config_.num_heads)) {
    return Status();
  }
  DeviceGuard guard(machine_.device);
  std::lock_guard<std::mutex> quiet(RecordingMutex());
  const DeviceArray& half = out->half.data() != nullptr ? out->half : out->w;
  DeviceArray divisor, w, scale;
  cudaError_t error = divisor.Allocate(sizeof(float) * values->part);
  if (error == cudaSuccess) error = w.Allocate(static_cast<size_t>(out->part) * out->k);
  if (error == cudaSuccess) error = scale.Allocate(sizeof(float) * out->part);
  if (error == cudaSuccess) {
    const int64_t row = 2 * static_cast<int64_t>(values->part);
    error = BoundOutputs(values->w.data() + row * values->k, config_.hidden_size, values->part, values->k,
                         n.gamma.as<float>(), n.beta.as<float>(), values->scale.as<float>() + row,
                         values->bias.as<float>() + row, divisor.as<float>(), nullptr);
  }
  if (error == cudaSuccess) {
    error = PackMatrix(half.data(), DataType::kFloat16, out->k, out->part, true, Element::kFloat8, w.data(), out->k,
                       scale.as<float>(), nullptr, divisor.as<float>());
  }
  if (error == cudaSuccess) error = cudaDeviceSynchronize();  // what it was packed from goes now
  if (error != cudaSuccess) return FromCuda(error, "joining values with what projects them");
  out->w.Swap(&w);
  out->scale.Swap(&scale);
  out->half.Free();
  out->bias_half.Free();
  out->element = Element::kFloat8;
  values->bounded_values = true;
  return Status();
}

Status CudaBackend::PackNorm(const float* gamma, const float* beta, std::unique_ptr<NormParameters>* packed) {
  DeviceGuard guard(machine_.device);
  std::lock_guard<std::mutex> quiet(RecordingMutex());
  auto norm = std::make_unique<CudaNorm>();
  const size_t bytes = sizeof(float) * config_.hidden_size;
  cudaError_t error = norm->gamma.Allocate(bytes);
  if (error == cudaSuccess) error = norm->beta.Allocate(bytes);
  if (error == cudaSuccess) error = cudaMemcpy(norm->gamma.data(), gamma, bytes, cudaMemcpyHostToDevice);
  if (error == cudaSuccess) error = cudaMemcpy(norm->beta.data(), beta, bytes, cudaMemcpyHostToDevice);
  if (error != cudaSuccess) return FromCuda(error, "loading a layer norm");
  *packed = std::move(norm);
  return Status();
}

Status CudaBackend::PackTable(const SourceTable& source, DeviceArray* to) {
  const std::string doing = "loading an embedding table of " + std::to_string(source.rows) + " rows";
  DeviceArray raw;
  const size_t bytes = SourceBytes(source.type, static_cast<int64_t>(source.rows) * config_.hidden_size);
  Status status = FromCuda(raw.Allocate(bytes), doing);
  if (status.ok()) status = Copy(raw.data(), source.data, bytes, doing);
  if (status.ok()) {
    status = FromCuda(to->Allocate(static_cast<size_t>(source.rows) * pitch_ * ElementBytes(element_)), doing);
  }
  if (!status.ok()) return status;
  cudaError_t error = PackMatrix(raw.data(), source.type, config_.hidden_size, source.rows, true, element_, to->data(),
                                 pitch_, nullptr, nullptr);
  if (error == cudaSuccess) error = cudaDeviceSynchronize();
  return FromCuda(error, doing);
}

Status CudaBackend::PackEmbeddings(const SourceTable& words, const SourceTable& positions, const SourceTable& segments,
                                   std::unique_ptr<EmbeddingTables>* packed) {
  DeviceGuard guard(machine_.device);
  std::lock_guard<std::mutex> quiet(RecordingMutex());
  auto tables = std::make_unique<CudaEmbeddings>();
  Status status = PackTable(words, &tables->words);
  if (status.ok()) status = PackTable(positions, &tables->positions);
  if (status.ok()) status = PackTable(segments, &tables->segments);
  if (status.ok()) *packed = std::move(tables);
  return status;
}

}  // namespace cuda
}  // namespace ftbert
