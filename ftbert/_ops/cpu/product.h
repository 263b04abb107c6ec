// How a matrix product of many rows is cut into tiles for the team's threads, and what is fused behind it.
//
// Two ways. Many rows per thread: each thread takes blocks of rows through the whole product (and through what follows:
// both products of the feed-forward, residual and layer norm), so that a block's intermediates stay near it.
// Few rows per thread: rows x columns are cut into a grid, so that each weight is read by as few threads as possible
// and a text of 16 tokens still occupies all of them.
//
// Rows that stand in pairs go to the kernel's pairs(), the others to the kernel itself, in one pass: a task that has
// rows of both kinds takes one after the other.
#ifndef FTBERT_CPU_PRODUCT_H_
#define FTBERT_CPU_PRODUCT_H_

#include <vector>

#include "cpu/linear.h"
#include "cpu/thread_pool.h"

namespace ftbert {
namespace cpu {

// Floats from one row to the next: at least 16 more than `columns` (kernels may read a vector past the end of a row)
// and an odd number of cache lines, so that a column of rows does not fall into one set of the cache.
ptrdiff_t PaddedStride(int64_t columns);

// (count, columns) fp32.
struct Rows {
  float* data = nullptr;
  ptrdiff_t stride = 0;
  int32_t count = 0;
  int32_t paired = 0;  // so many of the first rows stand in pairs: an even number
  bool rounded = false;  // (count, columns) bf16 instead, rows as far apart
  // The same rows (the paired ones, where there are any) as the product's kernel prepares them, or null: whole groups.
  // Of inputs, who changes the floats keeps them so; of the grid's outputs, a kernel that writes_prepared() fills them
  // instead of the floats.
  void* prepared = nullptr;
  size_t prepared_stride = 0;  // bytes
  float* row(int64_t index) const { return data + index * stride; }
};

struct CpuNorm final : NormParameters {
  std::vector<float> gamma, beta;  // (H,)
  float epsilon = 0;
};

// Intermediates of products, beside the slots.
struct ProductScratch {
  Buffer in;    // prepared inputs, for all rows
  Buffer wide;  // (rows, F) fp32
  Buffer mid;   // prepared (rows, F)
  Buffer out;   // (rows, H) fp32
  std::vector<Buffer> local;  // one per thread: the same four for a block of rows

  // Makes room for products of up to `rows` rows with this kernel. False: out of memory.
  bool Reserve(const LinearKernel& kernel, int32_t hidden, int32_t intermediate, int32_t rows, int threads);
  size_t bytes() const;
};

class Products {
 public:
  Products(const Kernels* kernels, Team* team, ProductScratch* scratch)
      : kernels_(kernels), team_(team), scratch_(scratch) {}

  // out = activation(in W + bias), panels [panel_begin, panel_end); where `out` is rounded, in bf16.
  void Linear(const PackedMatrix& weight, int32_t panel_begin, int32_t panel_end, Epilogue epilogue, Rows in, Rows out);
  // The same where each part of W takes other inputs: part p those that begin at column p * step. W's kernel reads
  // floats.
  void LinearOfParts(const PackedMatrix& weight, int32_t step, Rows in, Rows out);
  // residual = norm(residual + in W + bias)
  void LinearAddNorm(const PackedMatrix& weight, const CpuNorm& norm, Rows in, Rows residual);
  // states = norm(states + activation(states U + bias) D + bias)
  void FeedForward(const PackedMatrix& up, const PackedMatrix& down, Epilogue activation, const CpuNorm& norm,
                   Rows states);

 private:
  // The kernel of the rows [0, paired) or, without any, of all.
  static const LinearKernel& FirstKernel(const PackedMatrix& weight, Rows rows) {
    return rows.paired > 0 ? *weight.kernel->pairs() : *weight.kernel;
  }
  int32_t Blocks(int32_t rows, int32_t block_rows) const;
  // Whether who takes this task takes another of so many, if all threads are alike.
  bool TakesAnother(int32_t task, int32_t tasks) const { return task + team_->size() < tasks; }
  void Block(const LinearKernel& kernel, const PackedMatrix& weight, int32_t panel_begin, int32_t panel_end,
             Epilogue epilogue, Rows in, Rows out, void* local, bool more) const;
  void Grid(const PackedMatrix& weight, int32_t panel_begin, int32_t panel_end, Epilogue epilogue, Rows in, Rows out);
  Rows PrepareAll(const PackedMatrix& weight, Rows in, Buffer* to);
  void AddNormAll(const LinearKernel& kernel, Rows in, Rows residual, const CpuNorm& norm);
  void AddNorm(Rows in, Rows residual, const CpuNorm& norm) const;
  void FeedForwardBlock(const LinearKernel& kernel, const PackedMatrix& up, const PackedMatrix& down,
                        Epilogue activation, const CpuNorm& norm, Rows states, void* local, bool more) const;

  const Kernels* kernels_;
  Team* team_;
  ProductScratch* scratch_;
};

}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_PRODUCT_H_
