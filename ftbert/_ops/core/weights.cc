#include "core/weights.h"

#include <algorithm>

#include "core/half.h"

namespace ftbert {
namespace {

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

size_t CountOf(const std::vector<int64_t>& shape) {
  size_t count = 1;
  for (int64_t size : shape) count *= static_cast<size_t>(size);
  return count;
}

}  // namespace

size_t ElementSize(DataType type) { return type == DataType::kFloat32 ? 4 : 2; }

std::vector<float> ToFloat(const void* data, DataType type, size_t count) {
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) values[i] = ReadAsFloat(data, type, i);
  return values;
}

size_t Weights::bytes() const {
  size_t total = embeddings ? embeddings->bytes() : 0;
  for (const LayerWeights& layer : layers) {
    for (const auto* linear : {&layer.qkv, &layer.attention_out, &layer.up, &layer.down}) total += (*linear)->bytes();
  }
  if (pooler) total += pooler->bytes();
  if (classifier) total += classifier->bytes();
  return total;
}

WeightCollector::WeightCollector(const Config& config, Backend* backend) : config_(config), backend_(backend) {
  const int32_t H = config.hidden_size;
  Group tables;
  tables.kind = Kind::kEmbeddings;
  const struct {
    const char* name;
    int32_t rows;
  } names[] = {{"word_embeddings", config.vocab_size},
               {"position_embeddings", config.max_positions},
               {"token_type_embeddings", config.type_vocab_size}};
  for (const auto& table : names) {
    Member member;
    member.name = std::string("bert/embeddings/") + table.name;
    member.shape = {table.rows, H};
    tables.members.push_back(std::move(member));
  }
  AddGroup(std::move(tables));
  AddNorm("bert/embeddings/LayerNorm", &weights_.embedding_norm);

  weights_.layers.resize(config.num_layers);  // sized before any pointer into it is kept
  for (int32_t l = 0; l < config.num_layers; ++l) {
    LayerWeights* layer = &weights_.layers[l];
    const std::string scope = "bert/encoder/layer_" + std::to_string(l) + "/";
    AddLinear({scope + "attention/self/query", scope + "attention/self/key", scope + "attention/self/value"}, H, H,
              &layer->qkv);
    AddLinear({scope + "attention/output/dense"}, H, H, &layer->attention_out);
    AddNorm(scope + "attention/output/LayerNorm", &layer->attention_norm);
    AddLinear({scope + "intermediate/dense"}, H, config.intermediate_size, &layer->up);
    AddLinear({scope + "output/dense"}, config.intermediate_size, H, &layer->down);
    AddNorm(scope + "output/LayerNorm", &layer->output_norm);
  }
  if (config.has_pooler) AddLinear({"bert/pooler/dense"}, H, H, &weights_.pooler);
  if (config.num_labels > 0) {
    Group head;
    head.kind = Kind::kLinear;
    head.linear = &weights_.classifier;
    Member kernel;
    kernel.name = "output_weights";
    kernel.shape = {config.num_labels, H};
    kernel.always_transposed = true;
    Member bias;
    bias.name = "output_bias";
    bias.shape = {config.num_labels};
    head.members.push_back(std::move(kernel));
    head.members.push_back(std::move(bias));
    AddGroup(std::move(head));
  }
}

void WeightCollector::AddGroup(Group group) {
  for (size_t m = 0; m < group.members.size(); ++m) index_[group.members[m].name] = {groups_.size(), m};
  groups_.push_back(std::move(group));
}

void WeightCollector::AddLinear(const std::vector<std::string>& scopes, int32_t rows, int32_t cols,
                                std::unique_ptr<PackedLinear>* to) {
  Group group;
  group.kind = Kind::kLinear;
  group.linear = to;
  for (const std::string& scope : scopes) {
    Member kernel;
    kernel.name = scope + "/kernel";
    kernel.shape = {rows, cols};
    kernel.kernel = true;
    Member bias;
    bias.name = scope + "/bias";
    bias.shape = {cols};
    group.members.push_back(std::move(kernel));
    group.members.push_back(std::move(bias));
  }
  AddGroup(std::move(group));
}

void WeightCollector::AddNorm(const std::string& scope, std::unique_ptr<NormParameters>* to) {
  Group group;
  group.kind = Kind::kNorm;
  group.norm = to;
  for (const char* part : {"/gamma", "/beta"}) {
    Member member;
    member.name = scope + part;
    member.shape = {config_.hidden_size};
    group.members.push_back(std::move(member));
  }
  AddGroup(std::move(group));
}

Status WeightCollector::Add(const Array& array) {
  const auto found = index_.find(array.name);
  if (found == index_.end()) {
    return Status(Code::kInvalidArgument, "Weight \"" + array.name +
                                              "\" is not one of this configuration's. Leave out what the encoder does "
                                              "not use, or check num_hidden_layers and the head.");
  }
  Group& group = groups_[found->second.first];
  Member& member = group.members[found->second.second];
  if (member.present) return Status(Code::kInvalidArgument, "Weight \"" + array.name + "\" came twice.");
  std::vector<int64_t> expected = member.shape;
  if (array.transposed && member.kernel) std::reverse(expected.begin(), expected.end());
  if (array.shape != expected) {
    return Status(Code::kInvalidArgument, "Weight \"" + array.name + "\": expected the shape " + ShapeText(expected) +
                                              " of the configuration, got " + ShapeText(array.shape) + ".");
  }
  if (array.data == nullptr) return Status(Code::kInvalidArgument, "Weight \"" + array.name + "\" has no data.");
  member.present = true;
  member.type = array.type;
  member.transposed = member.always_transposed || (array.transposed && member.kernel);
  member.data = array.data;
  const bool complete =
      std::all_of(group.members.begin(), group.members.end(), [](const Member& m) { return m.present; });
  if (complete) return Pack(&group);
  const auto* bytes = static_cast<const unsigned char*>(array.data);
  member.copy.assign(bytes, bytes + CountOf(member.shape) * ElementSize(array.type));
  member.data = member.copy.data();
  return Status();
}

Status WeightCollector::Pack(Group* group) {
  Status status;
  std::vector<Member>& m = group->members;
  if (group->kind == Kind::kNorm) {
    const std::vector<float> gamma = ToFloat(m[0].data, m[0].type, CountOf(m[0].shape));
    const std::vector<float> beta = ToFloat(m[1].data, m[1].type, CountOf(m[1].shape));
    status = backend_->PackNorm(gamma.data(), beta.data(), group->norm);
  } else if (group->kind == Kind::kEmbeddings) {
    SourceTable tables[3];
    for (int i = 0; i < 3; ++i) {
      tables[i].data = m[i].data;
      tables[i].type = m[i].type;
      tables[i].rows = static_cast<int32_t>(m[i].shape[0]);
    }
    status = backend_->PackEmbeddings(tables[0], tables[1], tables[2], &weights_.embeddings);
  } else {
    std::vector<SourceMatrix> parts;
    std::vector<std::vector<float>> biases(m.size() / 2);
    for (size_t i = 0; i < m.size(); i += 2) {
      const Member& kernel = m[i];
      biases[i / 2] = ToFloat(m[i + 1].data, m[i + 1].type, CountOf(m[i + 1].shape));
      SourceMatrix part;
      part.data = kernel.data;
      part.type = kernel.type;
      part.transposed = kernel.transposed;
      part.rows = static_cast<int32_t>(kernel.shape[kernel.always_transposed ? 1 : 0]);
      part.cols = static_cast<int32_t>(kernel.shape[kernel.always_transposed ? 0 : 1]);
      part.bias = biases[i / 2].data();
      part.head = group->linear == &weights_.pooler || group->linear == &weights_.classifier;
      part.last = group->linear == &weights_.layers.back().qkv;
      parts.push_back(part);
    }
    status = backend_->PackLinear(parts, group->linear);
  }
  for (Member& member : m) {
    member.packed = status.ok();
    member.data = nullptr;
    std::vector<unsigned char>().swap(member.copy);
  }
  return status;
}

Status WeightCollector::Finish(Weights* weights) {
  std::string missing;
  int count = 0;
  for (const Group& group : groups_) {
    for (const Member& member : group.members) {
      if (member.present && member.packed) continue;
      if (member.present && !member.copy.empty()) continue;  // its partner is the missing one
      if (++count <= 8) missing += (count > 1 ? ", " : "") + member.name;
    }
  }
  if (count > 0) {
    if (count > 8) missing += " and " + std::to_string(count - 8) + " more";
    return Status(Code::kInvalidArgument, "The model is incomplete: missing " + missing + ".");
  }
  const NormParameters* norm = weights_.embedding_norm.get();
  for (int32_t l = 0; l + 1 < config_.num_layers; ++l) {
    const LayerWeights& layer = weights_.layers[l];
    const Status status = backend_->JoinLayer(l, *norm, layer.qkv.get(), layer.attention_out.get());
    if (!status.ok()) return status;
    norm = layer.output_norm.get();
  }
  PackedLinear* before = nullptr;
  const auto then = [&](PackedLinear* product) {
    if (before != nullptr && product != nullptr) backend_->Follow(before, *product);
    before = product;
  };
  for (const LayerWeights& layer : weights_.layers) {
    for (const auto* product : {&layer.qkv, &layer.attention_out, &layer.up, &layer.down}) then(product->get());
  }
  then(weights_.pooler.get());
  *weights = std::move(weights_);
  return Status();
}

}  // namespace ftbert
