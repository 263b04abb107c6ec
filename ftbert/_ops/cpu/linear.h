// The border between the CPU framework (threads, blocking, slots) and the matrix kernels, one per (precision,
// instruction set). The framework cuts a product into tiles and hands each to one thread; a kernel packs weights,
// prepares input rows and computes tiles, and knows nothing of threads.
//
//   out[m][n] = activation( sum over k of in[m][k] W[k][n]  +  bias[n] )
//
// Contract on results: element (m, n) depends on input row m and on the weights alone, bit for bit: never on how many
// rows the tile has, where the tile begins, or how the inputs are split into k ranges. (fp32: one accumulator per
// element, k ascending, whatever the register tile; by AMX, 32 inputs at a time. int8: integer sums are exact.) A
// kernel for pairs of rows: on both rows of the pair.
//
// Weights are kept in panels of `panel_columns` columns. Each part (q, k, v) begins a panel, so the last panel of a
// part may be narrower than the rest; its missing columns are packed as zeros and never written to `out`.
#ifndef FTBERT_CPU_LINEAR_H_
#define FTBERT_CPU_LINEAR_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "core/backend.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/memory.h"

namespace ftbert {
namespace cpu {

class LinearKernel;

struct PackedMatrix : PackedLinear {
  const LinearKernel* kernel = nullptr;
  int32_t inputs = 0;                 // K
  int32_t outputs = 0;                // N, all parts
  std::vector<Panel> panels;          // panel p covers out columns [column, column + width)
  std::vector<int32_t> part_begin;    // parts + 1: part q is panels [part_begin[q], part_begin[q + 1])
  Buffer weights;                     // the kernel's layout
  Buffer bias;                        // float, panels x panel_columns, zero where a column is missing
  Buffer extra;                       // whatever else the kernel keeps beside them (scales, column sums)
  size_t panel_bytes = 0;             // weights of panel p begin at p * panel_bytes
  const PackedMatrix* following = nullptr;  // of the product after this one, if known
  // The last layer's queries, keys and values: what takes each head's query to the states (one part a head, D inputs, H
  // outputs) and what it finds there to its value (H inputs, D outputs). Else null.
  std::unique_ptr<PackedMatrix> to_states, to_values;
  size_t bytes() const override {
    return weights.size() + bias.size() + extra.size() + (to_states ? to_states->bytes() : 0) +
           (to_values ? to_values->bytes() : 0);
  }
};

enum class Epilogue : int { kBias, kBiasGeluErf, kBiasGeluTanh, kBiasRelu, kBiasTanh };

// Work for one thread: `rows` rows by panels [panel_begin, panel_end), inputs [k_begin, k_end).
struct Tile {
  // Row 0 as Prepare wrote it, the first of a group of rows; where input_row_bytes() is 0, fp32 rows, at input k_begin.
  const void* in = nullptr;
  size_t in_stride = 0;  // bytes between rows
  int32_t rows = 0;
  int32_t panel_begin = 0;
  int32_t panel_end = 0;
  // A part of the inputs only if the kernel splits them (chunk_columns()); multiples of input_step() except for k_end
  // == K. If it prepares_parts(), `in` is what Prepare made of these inputs alone. Where k_begin > 0, `out` holds the
  // sum of the earlier ranges; bias and activation are applied when k_end == K.
  int32_t k_begin = 0;
  int32_t k_end = 0;
  Epilogue epilogue = Epilogue::kBias;
  const void* then = nullptr;  // weights that this thread reads next, if known: a kernel may fetch their beginning
  // Row 0, column first_column of the output. fp32, stride in floats ...
  float* out = nullptr;
  ptrdiff_t out_stride = 0;
  bool rounded = false;      // rows of bf16 instead (where attention takes them so; the kernels of AMX)
  int32_t first_column = 0;  // a Panel::column; 0 unless the kernel splits inputs
  // ... or, if the kernel writes_prepared() and this is not null, rows in the form Prepare would give for N inputs.
  void* prepared_out = nullptr;
  size_t prepared_stride = 0;  // bytes
};

class LinearKernel {
 public:
  virtual ~LinearKernel() = default;

  virtual Precision precision() const = 0;
  virtual Isa isa() const = 0;  // the level it needs; shown in Describe

  virtual int32_t row_tile() const = 0;       // rows of the register tile: rows are best given in multiples of it
  virtual int32_t panel_columns() const = 0;  // columns of a panel
  // Rows that one thread should take at a time when there are plenty (multiple of row_tile): large enough to reuse a
  // panel from cache, small enough that the rows' inputs and outputs stay in the second-level cache, or that what comes
  // from beyond it costs less than reading panels more often would (AMX). Of the feed-forward: feed_forward_rows().
  virtual int32_t block_rows() const = 0;
  virtual int32_t feed_forward_rows() const { return block_rows(); }

  // The kernel that takes rows in pairs, both of one row of text, on the same packed weights, if every part has a
  // multiple of its panel_step() of panels. Null: none.
  virtual const LinearKernel* pairs() const { return nullptr; }

  virtual int32_t panel_step() const { return 1; }  // tiles begin and end at multiples of so many panels of a part
  // From so many rows for each thread on, threads take whole rows.
  virtual int32_t rows_per_thread() const { return 64; }

  // Columns of the feed-forward's intermediate to make and use at a time; 0: all, the kernel takes no inputs in parts.
  virtual int32_t chunk_columns() const { return 0; }
  virtual int32_t input_step() const { return 1; }
  virtual bool prepares_parts() const { return false; }
  virtual bool writes_prepared() const { return false; }

  // parts[i].rows is the same K for all. Fills everything in `packed`; use MakePanels and Reader below.
  virtual Status Pack(const std::vector<SourceMatrix>& parts, PackedMatrix* packed) const = 0;

  // Bytes of one input row in the kernel's own form (multiple of 64, scale and sums included); 0: it reads fp32 rows.
  virtual size_t input_row_bytes(int32_t inputs) const {
    (void)inputs;
    return 0;
  }
  // Prepared rows come in groups of so many, interleaved line by line (64 bytes): group g is the group_rows() * stride
  // bytes behind g * group_rows() * stride, whole even where its last rows are missing. Tiles begin with a group;
  // row_tile() is a multiple of it. (A kernel for pairs lays out the room of its two rows as it likes.)
  virtual int32_t group_rows() const { return 1; }
  // Where row `row` of prepared ones begins.
  size_t RowOffset(int32_t row, size_t stride) const {
    const int32_t of_group = row % group_rows();
    return (row - of_group) * stride + of_group * size_t{64};
  }
  // Converts `rows` fp32 rows of K inputs (in_stride in floats) into rows of input_row_bytes(K), `stride` bytes apart.
  // `prepared` is where the first of them begins; that is a group's first row, or all of them are of one group.
  virtual void Prepare(const float* in, ptrdiff_t in_stride, int32_t rows, int32_t inputs, void* prepared,
                       size_t stride) const {
    (void)in, (void)in_stride, (void)rows, (void)inputs, (void)prepared, (void)stride;
  }

  // Computes one tile. Called from many threads at once; may use up to 256 KiB of stack, allocates nothing.
  virtual void Compute(const PackedMatrix& weight, const Tile& tile) const = 0;
};

// Fills kernel, inputs, outputs, panels, part_begin and bias (zero-padded).
Status MakePanels(const LinearKernel& kernel, const std::vector<SourceMatrix>& parts, PackedMatrix* packed);

// Reads W[k][n] of a source matrix whatever its type and layout. Row `k`, columns [n, n + count) into fp32.
void ReadRow(const SourceMatrix& source, int32_t k, int32_t n, int32_t count, float* out);

// Calls body(i) for i in [0, count) on the threads that LoadThreads gave: for Pack, whose panels are independent.
void PackInParallel(int32_t count, const std::function<void(int32_t)>& body);

// The same for every panel: body(panel, the part it belongs to, its first column in that part).
void PackPanels(const PackedMatrix& packed, const std::vector<SourceMatrix>& parts,
                const std::function<void(int32_t, const SourceMatrix&, int32_t)>& body);

// The keys' or values' matrix (H, H) cut into heads, one part each: of the values (H inputs, D outputs) and their bias;
// of the keys, turned round, (D inputs, H outputs) without: it adds the same to all scores of a query.
Status PackHeads(const LinearKernel& kernel, const SourceMatrix& source, int32_t heads, bool keys,
                 std::unique_ptr<PackedMatrix>* packed);

// While it lives, PackInParallel called from this thread uses so many threads.
class LoadThreads {
 public:
  explicit LoadThreads(int threads);
  ~LoadThreads();
};

// The function table of the highest of portable, avx2, avx512 that `level` includes.
const Kernels* KernelsFor(Isa level);
// The same for an encoder of this precision: but for fp32, attention is in bf16 where the processor has tiles for it.
const Kernels* KernelsFor(Isa level, Precision precision, int32_t head_size);

// The kernels. Each returns null where the instruction set was not compiled in; `level` is the one chosen at load, so a
// factory returns the best form for it. One definition per precision, in linear_fp32.cc, linear_bf16.cc,
// linear_int8.cc.
const LinearKernel* Fp32Kernel(Isa level);
// The same for the encoder's products: by AMX where there is AMX. (A single row, as of pooler and classifier, is better
// off without.)
const LinearKernel* Fp32EncoderKernel(Isa level);
const LinearKernel* Bf16Kernel(Isa level);
const LinearKernel* Int8Kernel(Isa level);

}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_LINEAR_H_
