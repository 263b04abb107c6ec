// What a thread is told to read next (Tile::then, PackedMatrix::following). A wrong address costs time, not answers:
// fetching never faults. So it is asked for here, of a kernel that writes down what it is given.
#include <algorithm>
#include <mutex>
#include <vector>

#include "check.h"
#include "core/weights.h"
#include "cpu/product.h"
#include "cpu/product_parts.h"
#include "cpu_model.h"

namespace {

using namespace ftbert;       // NOLINT
using namespace ftbert::cpu;  // NOLINT

struct Read {
  const void* first;
  const void* then;
};

class Recorder final : public LinearKernel {
 public:
  explicit Recorder(int32_t chunk_columns) : chunk_columns_(chunk_columns) {}

  Precision precision() const override { return Precision::kFloat32; }
  Isa isa() const override { return Isa::kPortable; }
  int32_t row_tile() const override { return 4; }
  int32_t panel_columns() const override { return 16; }
  int32_t block_rows() const override { return 32; }
  int32_t chunk_columns() const override { return chunk_columns_; }
  Status Pack(const std::vector<SourceMatrix>& parts, PackedMatrix* packed) const override {
    const Status status = MakePanels(*this, parts, packed);
    packed->panel_bytes = packed->inputs * 16 * sizeof(float);
    CHECK(packed->weights.Allocate(packed->panels.size() * packed->panel_bytes));
    return status;
  }
  void Compute(const PackedMatrix& weight, const Tile& tile) const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    reads_.push_back({FirstPanel(weight, tile.panel_begin, tile.k_begin), tile.then});
    for (int32_t panel = tile.panel_begin; panel < tile.panel_end; ++panel) {
      const Panel& p = weight.panels[panel];
      for (int32_t r = 0; r < tile.rows; ++r) {
        std::fill_n(tile.out + r * tile.out_stride + p.column - tile.first_column, p.width, 0.f);
      }
    }
  }
  std::vector<Read> Take() const {
    std::vector<Read> reads;
    reads.swap(reads_);
    return reads;
  }

 private:
  const int32_t chunk_columns_;
  mutable std::mutex mutex_;
  mutable std::vector<Read> reads_;
};

constexpr int32_t kHidden = 256, kIntermediate = 640;

struct Layer {
  PackedMatrix qkv, out, up, down;
  CpuNorm norm;

  explicit Layer(const LinearKernel& kernel) {
    norm.gamma.assign(kHidden, 1.f);
    norm.beta.assign(kHidden, 0.f);
    norm.epsilon = 1e-12f;
    Pack(kernel, kHidden, kHidden, 3, &qkv);
    Pack(kernel, kHidden, kHidden, 1, &out);
    Pack(kernel, kHidden, kIntermediate, 1, &up);
    Pack(kernel, kIntermediate, kHidden, 1, &down);
    qkv.following = &out, out.following = &up, up.following = &down, down.following = &qkv;
  }
  static void Pack(const LinearKernel& kernel, int32_t inputs, int32_t outputs, int parts, PackedMatrix* packed) {
    const std::vector<float> bias(outputs);
    std::vector<SourceMatrix> sources(parts);
    for (SourceMatrix& source : sources) source.rows = inputs, source.cols = outputs, source.bias = bias.data();
    CHECK_OK(kernel.Pack(sources, packed));
  }
  // What each product of the layer reads, `rows` rows, on so many threads.
  std::vector<Read> Run(const Recorder& kernel, int32_t rows, int threads) const {
    Team team(threads);
    ProductScratch scratch;
    CHECK(scratch.Reserve(kernel, kHidden, kIntermediate, rows, team.size()));
    Products products(KernelsFor(Isa::kPortable), &team, &scratch);
    std::vector<float> of_states(rows * PaddedStride(kHidden)), of_qkv(rows * PaddedStride(3 * kHidden));
    Rows states, wide;
    states.data = of_states.data(), states.stride = PaddedStride(kHidden);
    wide.data = of_qkv.data(), wide.stride = PaddedStride(3 * kHidden);
    states.count = wide.count = rows;
    products.Linear(qkv, 0, static_cast<int32_t>(qkv.panels.size()), Epilogue::kBias, states, wide);
    products.LinearAddNorm(out, norm, wide, states);
    products.FeedForward(up, down, Epilogue::kBiasRelu, norm, states);
    return kernel.Take();
  }
};

// A thread alone takes block after block: what it is told is what it reads next, into the next layer.
void TestAlone(int32_t chunk_columns, int32_t rows, size_t products) {
  const Recorder kernel(chunk_columns);
  const Layer layer(kernel);
  const std::vector<Read> all = layer.Run(kernel, rows, 1);
  CHECK_EQ(all.size(), products);
  size_t wrong = 0;
  for (size_t i = 0; i < all.size(); ++i) wrong += all[i].then != (i + 1 < all.size() ? all[i + 1] : all[0]).first;
  CHECK_EQ(wrong, size_t{0});
}

// Parts of other inputs each, whose panels a task may begin or end within.
void TestParts() {
  const Recorder kernel(0);
  const Layer layer(kernel);
  Team team(1);
  ProductScratch scratch;
  const ptrdiff_t stride = PaddedStride(3 * kHidden);
  std::vector<float> of_in(8 * stride), of_out(8 * stride);
  Rows in, out;
  in.data = of_in.data(), out.data = of_out.data();
  in.stride = out.stride = stride;
  in.count = out.count = 8;
  Products(KernelsFor(Isa::kPortable), &team, &scratch).LinearOfParts(layer.qkv, kHidden, in, out);
  const std::vector<Read> reads = kernel.Take();
  CHECK_EQ(reads.size(), size_t{4});  // three parts, the second of them in two tasks
  for (size_t i = 0; i < reads.size(); ++i) {
    CHECK(reads[i].then == (i + 1 < reads.size() ? reads[i + 1].first : FirstPanel(layer.out, 0)));
  }
}

// Few rows are cut by columns. A thread that takes task n is told of task n + threads, and the last of a product of the
// next one's: those are handed out in the same order.
void TestTogether(int threads) {
  const Recorder kernel(0);
  const Layer layer(kernel);
  const auto of = [](const PackedMatrix& weight, const Read& read) {
    const auto* const begin = weight.weights.as<char>();
    return read.first >= begin && read.first < begin + weight.weights.size();
  };
  std::vector<std::vector<Read>> products(4);
  for (const Read& read : layer.Run(kernel, 24, threads)) {
    products[of(layer.qkv, read) ? 0 : of(layer.out, read) ? 1 : of(layer.up, read) ? 2 : 3].push_back(read);
  }
  size_t wrong = 0;
  for (auto& product : products) {
    std::sort(product.begin(), product.end(), [](const Read& a, const Read& b) { return a.first < b.first; });
  }
  for (size_t p = 0; p < products.size(); ++p) {
    const auto& product = products[p];
    const auto& next = products[(p + 1) % products.size()];
    CHECK_EQ(product.size(), size_t{2} * threads);
    for (size_t task = 0; task < product.size(); ++task) {
      const size_t then = task + threads;
      const void* const expected =
          then < product.size() ? product[then].first : next[(then - product.size()) % next.size()].first;
      wrong += product[task].then != expected;
    }
  }
  CHECK_EQ(wrong, size_t{0});
}

// A model's products follow each other through its layers, to the pooler.
void TestModel() {
  const ftbert_test::RandomModel model(ftbert_test::Model(64, 4, 96, 3));
  Options options;
  options.device = "cpu";
  options.threads = 1;
  std::unique_ptr<Backend> backend;
  CHECK_OK(NewCpuBackend(model.config, options, &backend));
  WeightCollector collector(model.config, backend.get());
  for (const auto& named : model.arrays) {
    Array array;
    array.name = named.first;
    array.shape = model.shapes.at(named.first);
    array.data = named.second.data();
    CHECK_OK(collector.Add(array));
  }
  Weights weights;
  CHECK_OK(collector.Finish(&weights));
  const auto matrix = [](const std::unique_ptr<PackedLinear>& linear) {
    return static_cast<const PackedMatrix*>(linear.get());
  };
  std::vector<const PackedMatrix*> order;
  for (const LayerWeights& layer : weights.layers) {
    order.push_back(matrix(layer.qkv));
    if (&layer == &weights.layers.back()) {  // in place of keys and values
      order.push_back(order.back()->to_states.get());
      order.push_back(matrix(layer.qkv)->to_values.get());
    }
    for (const auto* linear : {&layer.attention_out, &layer.up, &layer.down}) order.push_back(matrix(*linear));
  }
  order.push_back(matrix(weights.pooler));
  for (size_t i = 0; i + 1 < order.size(); ++i) CHECK(order[i]->following == order[i + 1]);
  CHECK(order.back()->following == nullptr);
}

}  // namespace

int main() {
  TestAlone(0, 16, 4);        // one block
  TestAlone(0, 100, 4 * 4);   // four
  TestAlone(32, 16, 2 + 40);  // the intermediate in twenty chunks
  TestAlone(32, 100, 2 * 4 + 40 * 4);
  TestParts();
  for (int threads : {2, 3}) TestTogether(threads);
  TestModel();
  return ftbert_test::Finish();
}
