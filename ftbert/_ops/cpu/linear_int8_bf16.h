// What the int8 and the bf16 kernels share: four bytes of inputs are one step of a dot-product instruction, whether
// they are four u8 or two bf16, so both precisions have one layout, one register tile and one border to the instruction
// sets.
//
// Prepared row:  [ inputs, zero-padded to whole lines of 64 bytes ][ int8: RowScale in a line, or what the form wants ]
// Packed panel:  [ group of 4 bytes of inputs, 16 groups to a line ][ column of the panel ][ 4 bytes ]
//                groups are padded with zeros to whole lines, columns to panel_columns; then what the form wants
//
// Tile form (AMX), where what one tile load reads is 1 KiB on end:
// Prepared rows: [ group of 16 rows ][ line of a row, as above ][ row of the group ][ 64 bytes ]
//                rows that the last group lacks are memory of any content
// Packed panel:  [ line of inputs ][ tile of 16 columns ][ group of 4 bytes of inputs ][ its column ][ 4 bytes ]
//
// The functions of an instruction set take plain pointers (LinearJob), so that no file compiled for more than the
// baseline instantiates a template of the standard library.
#ifndef FTBERT_CPU_LINEAR_INT8_BF16_H_
#define FTBERT_CPU_LINEAR_INT8_BF16_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "cpu/linear.h"

namespace ftbert {
namespace cpu {

constexpr int kLineBytes = 64;

// An int8 row stands for low + scale * u8: asymmetric, because GELU's outputs are nearly all on one side of zero.
struct RowScale {
  float scale = 0;
  float low = 0;
};

static inline int32_t Lines(int32_t inputs, int32_t bytes_per_input) {
  return (inputs * bytes_per_input + kLineBytes - 1) / kLineBytes;
}

// Where LinearOps::bounds_pairs: weights of one sign in bytes 0 and 1 of a group, and in bytes 2 and 3, add up to this
// at most. 255 times it still fits 16 bits.
constexpr int kPairLimit = 128;

// One Tile without standard library types. Arrays begin at the tile's first panel.
struct LinearJob {
  const uint8_t* in = nullptr;
  size_t in_stride = 0;  // bytes
  int32_t rows = 0;
  int32_t inputs = 0;     // K
  int32_t lines = 0;      // of a row's inputs
  size_t scale_offset = 0;  // of the RowScale from a row's first byte
  const uint8_t* weights = nullptr;
  size_t panel_bytes = 0;                   // from one panel's weights to the next's
  size_t read_bytes = 0;                    // of a panel's: all, or those of the inputs that there are
  const uint8_t* then = nullptr;            // as in Tile
  const Panel* panels = nullptr;
  int32_t panel_count = 0;
  const float* bias = nullptr;              // panel_count x panel_columns, as the next two
  const float* column_scale = nullptr;      // int8: s, a weight is s * q
  const float* column_sum = nullptr;        // int8: s * sum of q over the inputs
  Epilogue epilogue = Epilogue::kBias;
  float* out = nullptr;                     // row 0, column first_column
  ptrdiff_t out_stride = 0;
  int32_t first_column = 0;                 // the Panel::column that `out` or `prepared_out` begins with
  bool rounded = false;                     // AMX: rows of bf16 in the place of rows of floats
  // If the form splits inputs: `out` holds sums of others, to be added to; sums are to be left there as they are. Whole
  // groups of rows and whole panels are read and written.
  bool continues = false;
  bool unfinished = false;
  uint8_t* prepared_out = nullptr;          // bf16: instead of `out`
  size_t prepared_stride = 0;
};

// One instruction set's form of a precision.
struct LinearOps {
  Isa isa;
  int32_t row_tile;
  int32_t panel_columns;
  bool takes_floats;  // true: reads the fp32 rows themselves, there is no prepared form
  // Rows of the block that one thread takes at a time.
  int32_t block_rows;
  void (*prepare)(const float* in, ptrdiff_t in_stride, int32_t rows, int32_t inputs, uint8_t* prepared, size_t stride);
  void (*compute)(const LinearJob& job);
  // int8 forms without a 32-bit dot product:
  bool bounds_pairs = false;                                            // see kPairLimit
  size_t (*panel_tail_bytes)(int32_t lines) = nullptr;                  // kept behind a panel's weights
  void (*finish_panel)(uint8_t* panel, int32_t lines) = nullptr;        // fills that tail, or brings tiles in order
  size_t (*row_tail_bytes)(int32_t lines) = nullptr;                    // behind a row's inputs, RowScale first
  int32_t group_rows = 1;                                               // 16: rows and panels are in tile form
  int32_t chunk_columns = 0;                                            // LinearKernel's; parts are whole lines
  int32_t feed_forward_rows = 0;                                        // 0: as many as block_rows
};

// What the kernels on a form have in common.
class FormKernel : public LinearKernel {
 public:
  explicit FormKernel(const LinearOps& ops) : ops_(ops) {}

  Isa isa() const override { return ops_.isa; }
  int32_t row_tile() const override { return ops_.row_tile; }
  int32_t panel_columns() const override { return ops_.panel_columns; }
  int32_t group_rows() const override { return ops_.group_rows; }
  int32_t block_rows() const override { return ops_.block_rows; }
  int32_t feed_forward_rows() const override {
    return ops_.feed_forward_rows > 0 ? ops_.feed_forward_rows : ops_.block_rows;
  }
  void Prepare(const float* in, ptrdiff_t in_stride, int32_t rows, int32_t inputs, void* prepared,
               size_t stride) const override {
    if (!ops_.takes_floats) ops_.prepare(in, in_stride, rows, inputs, static_cast<uint8_t*>(prepared), stride);
  }

 protected:
  const LinearOps& ops_;
};

// int8. Every form gives the same integer sums; they differ in the last bits of the fp32 epilogue at most.
extern const LinearOps kInt8Portable;
extern const LinearOps kInt8Avx2;        // vpmaddubsw, exact, on weights whose pairs are bounded
extern const LinearOps kInt8Avx2Vnni;    // AVX-VNNI, of processors without AVX-512
extern const LinearOps kInt8Avx512Vnni;
extern const LinearOps kInt8Amx;

// bf16 weights. The first three keep inputs and products in fp32; the others round the inputs to bf16 too.
extern const LinearOps kBf16Portable;
extern const LinearOps kBf16Avx2;
extern const LinearOps kBf16Avx512;
extern const LinearOps kBf16Avx512Bf16;
extern const LinearOps kBf16Amx;

// fp32 by products of bf16 parts; fp32_parts.h has its layout.
extern const LinearOps kFp32Amx;

// AVX-VNNI is on no rung of the ladder of levels (processors with AVX-512 VNNI may lack it): asked of the machine.
bool MachineHasAvx2Vnni();

// A kernel on one form, for tests and measurements; the factories of linear.h choose among them.
std::unique_ptr<LinearKernel> NewInt8Kernel(const LinearOps& ops);
std::unique_ptr<LinearKernel> NewBf16Kernel(const LinearOps& ops);
std::unique_ptr<LinearKernel> NewFp32Kernel(const LinearOps& ops);

// What all these kernels fill alike.
LinearJob MakeJob(const PackedMatrix& weight, const Tile& tile, int32_t bytes_per_input, int32_t bytes_per_weight,
                  int32_t panel_columns);

// The scalar epilogue of the portable forms.
float ApplyEpilogue(Epilogue epilogue, float x);

}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_LINEAR_INT8_BF16_H_
