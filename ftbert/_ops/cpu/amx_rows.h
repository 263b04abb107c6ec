// What the AMX products have in common: where sums of a block of rows are, and rows whose sums are done but for the
// epilogue.
#ifndef FTBERT_CPU_AMX_ROWS_H_
#define FTBERT_CPU_AMX_ROWS_H_

#include "cpu/amx_tiles.h"
#include "cpu/tile_bf16.h"

namespace ftbert {
namespace cpu {
namespace {

static_assert(kColumns == 2 * kTileRows, "a panel is two tiles wide");

// Where sums of a block of rows are, or are to be: rows of kColumns, `stride` bytes apart.
struct SumRows {
  void* at = nullptr;
  size_t stride = 0;

  uint8_t* OfTile(int tile) const {
    return static_cast<uint8_t*>(at) + tile / 2 * kTileRows * stride + tile % 2 * kLineBytes;
  }
};

// Where sums of a block of 16 rows by a panel wait for other inputs: where the output is to be.
inline SumRows AtOutput(const LinearJob& job, int32_t panel, int32_t block) {
  if (!job.continues && !job.unfinished) return SumRows();
  const int32_t column = job.panels[panel].column - job.first_column;
  return SumRows{job.out + block * kTileRows * job.out_stride + column, job.out_stride * sizeof(float)};
}

// Rows of a panel whose sums are done but for the epilogue. A Form supplies
//   Element                  of the sums
//   Columns                  as a Dot's of tile_int8_bf16.h
//   Activated<Epilogue>(x)
//   kPreparedTiles           that a line of prepared rows is made of
//   StoreLine(to, x, y)      a panel's columns of a row as inputs of the next product; jobs are `rounded` only where
//                            that is bf16
template <Epilogue kEpilogue, typename Form>
struct PendingRows {
  const LinearJob* job = nullptr;
  const typename Form::Element* sums = nullptr;  // of row `row`, kColumns apart
  int32_t panel = 0;
  int32_t row = 0;   // of the job, the first of a group
  int32_t next = 0;  // rows before it are finished
  int32_t rows = 0;

  // Finishes up to `count` more rows, a part of 16.
  void Advance(int32_t count) {
    if (next < rows) Finish(count < rows - next ? count : rows - next);
  }
  void FinishAll() {
    while (next < rows) Advance(kTileRows - next % kTileRows);
  }

  // `count` rows, of one group. Not inlined: the loop over steps needs the registers.
  __attribute__((noinline)) void Finish(int32_t count) {
    const typename Form::Columns first(*job, panel * kColumns), second(*job, panel * kColumns + kLanes);
    const int32_t column = job->panels[panel].column - job->first_column, width = job->panels[panel].width;
    const uint8_t* in = PreparedRow<kTileRows>(job->in, job->in_stride, row + next);
    const typename Form::Element* sum = sums + next * kColumns;
    const typename Form::Element* const end = sum + count * kColumns;
    if (job->prepared_out != nullptr || job->rounded) {
      // A panel is a line of the row, and panels are whole: the padding of a prepared row is made of columns without
      // weights, which are zero; heads that tiles attend with are multiples of 32 columns.
      const bool prepared = job->prepared_out != nullptr;
      const ptrdiff_t stride = prepared ? kLineBytes : job->out_stride * static_cast<ptrdiff_t>(sizeof(float));
      uint8_t* to = prepared ? PreparedRow<kTileRows>(job->prepared_out, job->prepared_stride, row + next) +
                                   column / kColumns * Form::kPreparedTiles * kTileBytes
                             : reinterpret_cast<uint8_t*>(job->out) + (row + next) * stride + column * sizeof(uint16_t);
      for (; sum != end; sum += kColumns, in += kLineBytes, to += stride) {
        const Vec x = first.Value(*job, in, sum), y = second.Value(*job, in, sum + kLanes);
        Form::StoreLine(to, Form::template Activated<kEpilogue>(x), Form::template Activated<kEpilogue>(y));
      }
    } else {
      const int left = width < kLanes ? width : kLanes, right = width - left;
      float* to = job->out + (row + next) * job->out_stride + column;
      for (; sum != end; sum += kColumns, in += kLineBytes, to += job->out_stride) {
        const Vec x = first.Value(*job, in, sum), y = second.Value(*job, in, sum + kLanes);
        StorePartial(to, Form::template Activated<kEpilogue>(x), left);
        if (right > 0) StorePartial(to + kLanes, Form::template Activated<kEpilogue>(y), right);
      }
    }
    next += count;
  }
};

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_AMX_ROWS_H_
