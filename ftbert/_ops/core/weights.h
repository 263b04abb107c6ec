// A model's weights in packed form, and the collector that packs them as their arrays arrive.
#ifndef FTBERT_CORE_WEIGHTS_H_
#define FTBERT_CORE_WEIGHTS_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/backend.h"

namespace ftbert {

struct LayerWeights {
  std::unique_ptr<PackedLinear> qkv;             // (H, 3H), three parts
  std::unique_ptr<PackedLinear> attention_out;   // (H, H)
  std::unique_ptr<NormParameters> attention_norm;  // (H,)
  std::unique_ptr<PackedLinear> up;              // (H, F)
  std::unique_ptr<PackedLinear> down;            // (F, H)
  std::unique_ptr<NormParameters> output_norm;   // (H,)
};

struct Weights {
  std::unique_ptr<EmbeddingTables> embeddings;  // (V, H), (P, H), (segments, H)
  std::unique_ptr<NormParameters> embedding_norm;
  std::vector<LayerWeights> layers;             // L
  std::unique_ptr<PackedLinear> pooler;         // (H, H); null where the model has none
  std::unique_ptr<PackedLinear> classifier;     // (H, C); null where the model has none

  size_t bytes() const;
};

// Takes arrays in any order. Arrays that are packed together (a kernel and its bias, q, k and v) are held as copies
// until the last of them is there, then packed and released, so at most one group of each layer is ever held twice.
class WeightCollector {
 public:
  WeightCollector(const Config& config, Backend* backend);
  Status Add(const Array& array);
  // kInvalidArgument with the names that are missing.
  Status Finish(Weights* weights);

 private:
  struct Member {
    std::string name;
    std::vector<int64_t> shape;  // as google-research/bert stores it
    bool kernel = false;         // may come transposed
    bool always_transposed = false;
    bool present = false;
    bool packed = false;
    bool transposed = false;
    DataType type = DataType::kFloat32;
    const void* data = nullptr;  // the caller's while the last member is added, else `copy`'s
    std::vector<unsigned char> copy;
  };
  enum class Kind { kEmbeddings, kNorm, kLinear };
  struct Group {
    Kind kind = Kind::kLinear;
    std::vector<Member> members;  // kLinear: kernel, bias, kernel, bias, ...; kNorm: gamma, beta
    std::unique_ptr<PackedLinear>* linear = nullptr;
    std::unique_ptr<NormParameters>* norm = nullptr;
  };

  void AddLinear(const std::vector<std::string>& scopes, int32_t rows, int32_t cols, std::unique_ptr<PackedLinear>* to);
  void AddNorm(const std::string& scope, std::unique_ptr<NormParameters>* to);
  void AddGroup(Group group);
  Status Pack(Group* group);

  Config config_;
  Backend* backend_;
  Weights weights_;
  std::vector<Group> groups_;
  std::map<std::string, std::pair<size_t, size_t>> index_;  // name -> group, member
};

size_t ElementSize(DataType type);
// Reads `count` values as fp32.
std::vector<float> ToFloat(const void* data, DataType type, size_t count);

}  // namespace ftbert

#endif  // FTBERT_CORE_WEIGHTS_H_
