// How product.cc and feed_forward.cc cut rows and columns, and the room that intermediates take.
#ifndef FTBERT_CPU_PRODUCT_PARTS_H_
#define FTBERT_CPU_PRODUCT_PARTS_H_

#include <algorithm>

#include "cpu/product.h"

namespace ftbert {
namespace cpu {

inline int32_t DivideUp(int64_t a, int64_t b) { return static_cast<int32_t>((a + b - 1) / b); }

struct Range {
  int32_t begin = 0;
  int32_t end = 0;
  int32_t size() const { return end - begin; }
};

// The index-th of `parts` even pieces of [0, count), cut at multiples of `unit`.
inline Range Piece(int32_t count, int32_t unit, int32_t parts, int32_t index) {
  const int64_t units = DivideUp(count, unit);
  const auto cut = [&](int64_t i) { return std::min<int64_t>(count, units * i / parts * unit); };
  return Range{static_cast<int32_t>(cut(index)), static_cast<int32_t>(cut(index + 1))};
}

// Below, the grid. `kernel` is that of the first rows.
inline bool WholeRows(const LinearKernel& kernel, int32_t rows, int threads) {
  return threads == 1 || rows >= static_cast<int64_t>(threads) * kernel.rows_per_thread();
}

// A range of rows that are prepared begins with a group.
inline Rows Some(Rows rows, Range range) {
  Rows some = rows;
  some.data = rows.row(range.begin);
  some.count = range.size();
  if (rows.prepared != nullptr) some.prepared = static_cast<char*>(rows.prepared) + range.begin * rows.prepared_stride;
  some.paired = std::max(0, std::min(rows.paired, range.end) - range.begin);
  return some;
}

// Calls body(kernel, those of the rows that it takes) for the paired rows of a range, then for the others. A range
// begins with a pair.
template <typename Body>
void ForKinds(const LinearKernel& kernel, Rows rows, Range range, const Body& body) {
  const int32_t middle = std::min(range.end, std::max(range.begin, rows.paired));
  if (range.begin < middle) body(*kernel.pairs(), Range{range.begin, middle});
  if (middle < range.end) body(kernel, Range{middle, range.end});
}

inline size_t PreparedStride(const LinearKernel& kernel, int32_t inputs) {
  const size_t bytes = kernel.input_row_bytes(inputs);
  if (bytes == 0 || kernel.group_rows() > 1) return bytes;
  return bytes + (bytes / 64 % 2 == 0 ? 64 : 0);  // an odd number of cache lines
}

// Rows that prepared ones take the room of: whole groups.
inline int32_t WholeGroups(const LinearKernel& kernel, int32_t rows) {
  return DivideUp(rows, kernel.group_rows()) * kernel.group_rows();
}

// Prepares rows [begin, begin + count), for inputs of `columns`, where they are to be.
inline void PrepareRows(const LinearKernel& kernel, const Rows& rows, int32_t columns, int32_t begin, int32_t count) {
  const int32_t group = kernel.group_rows(), end = begin + count;
  while (begin < end) {  // up to the next group, then all others
    const int32_t next = begin % group == 0 ? end : std::min(end, (begin / group + 1) * group);
    kernel.Prepare(rows.row(begin), rows.stride, next - begin, columns,
                   static_cast<char*>(rows.prepared) + kernel.RowOffset(begin, rows.prepared_stride),
                   rows.prepared_stride);
    begin = next;
  }
}

// What a thread reads next: Tile::then. Where the kernel splits inputs, a panel begins with them in order.
inline const void* FirstPanel(const PackedMatrix& weight, int32_t panel, int32_t input = 0) {
  return weight.weights.as<char>() + panel * weight.panel_bytes + weight.panel_bytes / weight.inputs * input;
}

// Where the product after this one begins; null: not known.
inline const void* Beyond(const PackedMatrix& weight) {
  return weight.following != nullptr ? FirstPanel(*weight.following, 0) : nullptr;
}

// Bytes of each intermediate, `rows` rows of it.
struct Layout {
  size_t in = 0, wide = 0, mid = 0, out = 0;
  size_t total() const { return in + wide + mid + out; }
};

// Panels of the feed-forward's intermediate at a time; 0: all of them.
int32_t ChunkPanels(const LinearKernel& kernel);
// chunked: of the intermediate, no more columns than are there at a time.
Layout LayoutFor(const LinearKernel& kernel, int32_t hidden, int32_t intermediate, int32_t rows, bool chunked);

}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_PRODUCT_PARTS_H_
