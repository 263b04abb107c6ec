#include "cpu/linear.h"

#include <algorithm>
#include <cstring>

#include "core/half.h"
#include "cpu/thread_pool.h"

namespace ftbert {
namespace cpu {

namespace {

thread_local int load_threads = 1;

}  // namespace

LoadThreads::LoadThreads(int threads) { load_threads = threads; }
LoadThreads::~LoadThreads() { load_threads = 1; }

void PackInParallel(int32_t count, const std::function<void(int32_t)>& body) {
  Team team(load_threads);
  team.ForEach(count, [&](int index, int) { body(index); });
}

void PackPanels(const PackedMatrix& packed, const std::vector<SourceMatrix>& parts,
                const std::function<void(int32_t, const SourceMatrix&, int32_t)>& body) {
  PackInParallel(static_cast<int32_t>(packed.panels.size()), [&](int32_t panel) {
    const size_t part = std::upper_bound(packed.part_begin.begin(), packed.part_begin.end(), panel) -
                        packed.part_begin.begin() - 1;
    body(panel, parts[part], (panel - packed.part_begin[part]) * packed.kernel->panel_columns());
  });
}

Status MakePanels(const LinearKernel& kernel, const std::vector<SourceMatrix>& parts, PackedMatrix* packed) {
  const int32_t width = kernel.panel_columns();
  packed->kernel = &kernel;
  packed->inputs = parts[0].rows;
  packed->outputs = 0;
  packed->panels.clear();
  packed->part_begin.assign(1, 0);
  for (const SourceMatrix& part : parts) {
    for (int32_t column = 0; column < part.cols; column += width) {
      packed->panels.push_back(Panel{packed->outputs + column, std::min(width, part.cols - column)});
    }
    packed->outputs += part.cols;
    packed->part_begin.push_back(static_cast<int32_t>(packed->panels.size()));
  }
  const size_t floats = packed->panels.size() * static_cast<size_t>(width);
  if (!packed->bias.Allocate(floats * sizeof(float))) return Status(Code::kOutOfMemory, "Out of memory for a bias.");
  std::memset(packed->bias.data(), 0, floats * sizeof(float));
  int32_t panel = 0;
  for (const SourceMatrix& part : parts) {
    for (int32_t column = 0; column < part.cols; column += width, ++panel) {
      std::copy_n(part.bias + column, packed->panels[panel].width,
                  packed->bias.as<float>() + static_cast<size_t>(panel) * width);
    }
  }
  return Status();
}

namespace {

// A loop of its own for neighbours, so that it becomes vector code.
template <typename T, typename Widen>
void CopyRow(const T* data, size_t step, int32_t count, float* out, Widen widen) {
  if (step == 1) {
    for (int32_t i = 0; i < count; ++i) out[i] = widen(data[i]);
  } else {
    for (int32_t i = 0; i < count; ++i) out[i] = widen(data[i * step]);
  }
}

}  // namespace

void ReadRow(const SourceMatrix& source, int32_t k, int32_t n, int32_t count, float* out) {
  const size_t step = source.transposed ? static_cast<size_t>(source.rows) : 1;
  const size_t first = source.transposed ? static_cast<size_t>(n) * source.rows + k
                                         : static_cast<size_t>(k) * source.cols + n;
  switch (source.type) {
    case DataType::kFloat32:
      CopyRow(static_cast<const float*>(source.data) + first, step, count, out, [](float value) { return value; });
      return;
    case DataType::kFloat16:
      CopyRow(static_cast<const uint16_t*>(source.data) + first, step, count, out, Float16ToFloat);
      return;
    case DataType::kBFloat16:
      CopyRow(static_cast<const uint16_t*>(source.data) + first, step, count, out, BFloat16ToFloat);
      return;
  }
}

Status PackHeads(const LinearKernel& kernel, const SourceMatrix& source, int32_t heads, bool keys,
                 std::unique_ptr<PackedMatrix>* packed) {
  const int32_t inputs = source.rows, size = source.cols / heads;
  std::vector<float> turned(static_cast<size_t>(inputs) * source.cols), row(source.cols);  // (outputs, inputs)
  const std::vector<float> zeros(inputs, 0.f);
  for (int32_t k = 0; k < inputs; ++k) {
    ReadRow(source, k, 0, source.cols, row.data());
    for (int32_t n = 0; n < source.cols; ++n) turned[static_cast<size_t>(n) * inputs + k] = row[n];
  }
  std::vector<SourceMatrix> parts(heads);
  for (int32_t head = 0; head < heads; ++head) {
    SourceMatrix& part = parts[head];
    part.data = turned.data() + static_cast<size_t>(head) * size * inputs;
    part.rows = keys ? size : inputs;
    part.cols = keys ? inputs : size;
    part.transposed = !keys;
    part.bias = keys ? zeros.data() : source.bias + head * size;
  }
  packed->reset(new PackedMatrix);
  return kernel.Pack(parts, packed->get());
}

}  // namespace cpu
}  // namespace ftbert
