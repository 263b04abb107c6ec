#include "cpu/linear.h"

#include <algorithm>
#include <cstring>

#include "core/half.h"

namespace ftbert {
namespace cpu {

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

void ReadRow(const SourceMatrix& source, int32_t k, int32_t n, int32_t count, float* out) {
  const size_t step = source.transposed ? static_cast<size_t>(source.rows) : 1;
  const size_t first = source.transposed ? static_cast<size_t>(n) * source.rows + k
                                         : static_cast<size_t>(k) * source.cols + n;
  switch (source.type) {
    case DataType::kFloat32: {
      const float* data = static_cast<const float*>(source.data) + first;
      for (int32_t i = 0; i < count; ++i) out[i] = data[i * step];
      return;
    }
    case DataType::kFloat16: {
      const uint16_t* data = static_cast<const uint16_t*>(source.data) + first;
      for (int32_t i = 0; i < count; ++i) out[i] = Float16ToFloat(data[i * step]);
      return;
    }
    case DataType::kBFloat16: {
      const uint16_t* data = static_cast<const uint16_t*>(source.data) + first;
      for (int32_t i = 0; i < count; ++i) out[i] = BFloat16ToFloat(data[i * step]);
      return;
    }
  }
}

}  // namespace cpu
}  // namespace ftbert
