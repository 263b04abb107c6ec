#include "cpu/embedding_tables.h"

#include <algorithm>
#include <cstring>

#include "core/half.h"
#include "cpu/linear.h"

namespace ftbert {
namespace cpu {
namespace {

Status PackTable(const SourceTable& source, int32_t columns, DataType type, Buffer* packed) {
  const size_t stride = CpuTables::Stride(columns);
  const size_t width = type == DataType::kFloat32 ? 4 : 2;
  if (!packed->Allocate(source.rows * stride * width))
    return Status(Code::kOutOfMemory, "Out of memory for the embeddings.");
  constexpr int32_t kRowsAtATime = 512;
  PackInParallel((source.rows + kRowsAtATime - 1) / kRowsAtATime, [&](int32_t block) {
    const int32_t end = std::min(source.rows, (block + 1) * kRowsAtATime);
    for (int32_t row = block * kRowsAtATime; row < end; ++row) {
      const size_t from = static_cast<size_t>(row) * columns;
      char* to = packed->as<char>() + row * stride * width;
      if (source.type == type) {
        std::memcpy(to, static_cast<const char*>(source.data) + from * width, columns * width);
      } else {
        for (int32_t i = 0; i < columns; ++i) {
          const float value = ReadAsFloat(source.data, source.type, from + i);
          if (type == DataType::kFloat32) {
            reinterpret_cast<float*>(to)[i] = value;
          } else {
            reinterpret_cast<uint16_t*>(to)[i] =
                type == DataType::kFloat16 ? FloatToFloat16(value) : FloatToBFloat16(value);
          }
        }
      }
      std::memset(to + columns * width, 0, (stride - columns) * width);
    }
  });
  return Status();
}

}  // namespace

Status CpuTables::Pack(const SourceTable& from_words, const SourceTable& from_positions,
                       const SourceTable& from_segments, int32_t hidden) {
  Status status = PackTable(from_words, hidden, type, &words);
  if (status.ok()) status = PackTable(from_positions, hidden, type, &positions);
  if (status.ok()) status = PackTable(from_segments, hidden, type, &segments);
  return status;
}

}  // namespace cpu
}  // namespace ftbert
