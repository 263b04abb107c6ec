#include "cpu/product.h"

#include <algorithm>

#include "cpu/product_parts.h"

namespace ftbert {
namespace cpu {
namespace {

// Rows of a grid cell at most, and the least work that pays for handing it out (multiply-adds; some half microsecond).
constexpr int32_t kGridRows = 128;
constexpr int64_t kCellWork = 100000;
// Cells per thread: more even out threads that started late, fewer leave a cell panels enough to fetch the next one
// while it computes.
constexpr int32_t kTasksPerThread = 2;

// Rows and panels of a product cut into a grid for so many threads. `kernel` is that of the first rows: the cuts suit
// the others, too.
class Cells {
 public:
  Cells(const LinearKernel& kernel, int32_t rows, int32_t panels, int32_t inputs, int threads)
      : rows_(rows), row_tile_(kernel.row_tile()), panels_(panels), step_(kernel.panel_step()),
        down_(DivideUp(rows, kGridRows)) {
    const int64_t work = static_cast<int64_t>(rows) * panels * kernel.panel_columns() * inputs;
    const int64_t wanted = std::min<int64_t>(static_cast<int64_t>(threads) * kTasksPerThread, work / kCellWork + 1);
    across_ = std::min(DivideUp(panels, step_), DivideUp(wanted, down_));
  }
  int32_t count() const { return down_ * across_; }
  Range rows(int task) const { return Piece(rows_, row_tile_, down_, task / across_); }
  Range panels(int task) const { return Piece(panels_, step_, across_, task % across_); }

 private:
  int32_t rows_, row_tile_, panels_, step_, down_, across_;
};

}  // namespace

ptrdiff_t PaddedStride(int64_t columns) {
  const int64_t lines = (columns + 15) / 16 + 1;
  return static_cast<ptrdiff_t>((lines | 1) * 16);
}

bool ProductScratch::Reserve(const LinearKernel& kernel, int32_t hidden, int32_t intermediate, int32_t rows,
                             int threads) {
  const auto of_block = [&](int32_t block_rows) {
    return LayoutFor(kernel, hidden, intermediate, block_rows + kernel.row_tile(), true);
  };
  const Layout product = of_block(kernel.block_rows());
  const size_t block = std::max(product.in + product.out, of_block(kernel.feed_forward_rows()).total());
  if (local.size() < static_cast<size_t>(threads)) local.resize(threads);
  for (Buffer& buffer : local) {
    if (!buffer.Reserve(block)) return false;
  }
  // Few rows at the end of a large batch (first tokens) go through the grid too, hence the minimum.
  const int64_t most = static_cast<int64_t>(threads) * kernel.rows_per_thread();
  const int32_t grid_rows = threads == 1 ? 0 : static_cast<int32_t>(std::min<int64_t>(rows, most));
  const Layout all = LayoutFor(kernel, hidden, intermediate, grid_rows, false);
  return in.Reserve(all.in) && wide.Reserve(all.wide) && mid.Reserve(all.mid) && out.Reserve(all.out);
}

size_t ProductScratch::bytes() const {
  size_t total = in.size() + wide.size() + mid.size() + out.size();
  for (const Buffer& buffer : local) total += buffer.size();
  return total;
}

void Products::Linear(const PackedMatrix& weight, int32_t panel_begin, int32_t panel_end, Epilogue epilogue, Rows in,
                      Rows out) {
  if (!WholeRows(FirstKernel(weight, in), in.count, team_->size())) {
    Grid(weight, panel_begin, panel_end, epilogue, PrepareAll(weight, in, &scratch_->in), out);
    return;
  }
  const int32_t blocks = Blocks(in.count, FirstKernel(weight, in).block_rows());
  team_->ForEach(blocks, [&](int block, int thread) {
    const Range rows = Piece(in.count, FirstKernel(weight, in).row_tile(), blocks, block);
    ForKinds(*weight.kernel, in, rows, [&](const LinearKernel& kernel, Range some) {
      Block(kernel, weight, panel_begin, panel_end, epilogue, Some(in, some), Some(out, some),
            scratch_->local[thread].data(), TakesAnother(block, blocks));
    });
  });
}

void Products::LinearOfParts(const PackedMatrix& weight, int32_t step, Rows in, Rows out) {
  const LinearKernel& kernel = *weight.kernel;
  const int32_t panels = static_cast<int32_t>(weight.panels.size());
  const Cells cells(kernel, in.count, panels, weight.inputs, team_->size());
  team_->ForEach(cells.count(), [&](int task, int) {
    const Range rows = cells.rows(task), columns = cells.panels(task);
    for (int32_t part = 0; rows.size() > 0 && part + 1 < static_cast<int32_t>(weight.part_begin.size()); ++part) {
      Tile tile;
      tile.panel_begin = std::max(columns.begin, weight.part_begin[part]);
      tile.panel_end = std::min(columns.end, weight.part_begin[part + 1]);
      if (tile.panel_begin >= tile.panel_end) continue;
      tile.in = in.row(rows.begin) + static_cast<ptrdiff_t>(part) * step;
      tile.in_stride = in.stride * sizeof(float);
      tile.rows = rows.size();
      tile.k_end = weight.inputs;
      tile.then = tile.panel_end < columns.end      ? FirstPanel(weight, tile.panel_end)
                  : TakesAnother(task, cells.count()) ? FirstPanel(weight, cells.panels(task + team_->size()).begin)
                                                      : Beyond(weight);
      tile.out = out.row(rows.begin);
      tile.out_stride = out.stride;
      kernel.Compute(weight, tile);
    }
  });
}

void Products::LinearAddNorm(const PackedMatrix& weight, const CpuNorm& norm, Rows in, Rows residual) {
  const int32_t panels = static_cast<int32_t>(weight.panels.size());
  Rows sum;
  sum.stride = PaddedStride(weight.outputs);
  if (!WholeRows(FirstKernel(weight, in), in.count, team_->size())) {
    sum.data = scratch_->out.as<float>();
    sum.count = in.count;
    Linear(weight, 0, panels, Epilogue::kBias, in, sum);
    AddNormAll(*weight.kernel, sum, residual, norm);
    return;
  }
  const int32_t blocks = Blocks(in.count, FirstKernel(weight, in).block_rows());
  team_->ForEach(blocks, [&](int block, int thread) {
    const Range rows = Piece(in.count, FirstKernel(weight, in).row_tile(), blocks, block);
    ForKinds(*weight.kernel, in, rows, [&](const LinearKernel& kernel, Range some) {
      char* local = scratch_->local[thread].as<char>();
      Rows block_sum = sum;
      block_sum.count = some.size();
      block_sum.data = reinterpret_cast<float*>(
          local + WholeGroups(kernel, some.size()) * PreparedStride(kernel, weight.inputs));
      Block(kernel, weight, 0, panels, Epilogue::kBias, Some(in, some), block_sum, local,
            TakesAnother(block, blocks));
      AddNorm(block_sum, Some(residual, some), norm);
    });
  });
}

// Blocks of rows for threads that take whole rows: as many for each thread as for the next.
int32_t Products::Blocks(int32_t rows, int32_t block_rows) const {
  const int32_t blocks = DivideUp(rows, block_rows);
  return team_->size() == 1 ? blocks : DivideUp(blocks, team_->size()) * team_->size();
}

// One thread, one block of rows that `kernel` takes; it may prepare them at `local`. more: it takes another then.
void Products::Block(const LinearKernel& kernel, const PackedMatrix& weight, int32_t panel_begin, int32_t panel_end,
                     Epilogue epilogue, Rows in, Rows out, void* local, bool more) const {
  Tile tile;
  tile.in = in.data;
  tile.in_stride = in.stride * sizeof(float);
  const size_t prepared = PreparedStride(kernel, weight.inputs);
  if (prepared > 0) {
    if (in.prepared == nullptr) kernel.Prepare(in.data, in.stride, in.count, weight.inputs, local, prepared);
    tile.in = in.prepared != nullptr ? in.prepared : local;
    tile.in_stride = prepared;
  }
  tile.rows = in.count;
  tile.panel_begin = panel_begin;
  tile.panel_end = panel_end;
  tile.k_end = weight.inputs;
  tile.then = more ? FirstPanel(weight, panel_begin) : Beyond(weight);
  tile.epilogue = epilogue;
  tile.out = out.data;
  tile.out_stride = out.stride;
  tile.rounded = out.rounded;
  kernel.Compute(weight, tile);
}

void Products::Grid(const PackedMatrix& weight, int32_t panel_begin, int32_t panel_end, Epilogue epilogue,
                    Rows in, Rows out) {
  const Cells cells(FirstKernel(weight, in), in.count, panel_end - panel_begin, weight.inputs, team_->size());
  // The next product, as its first tasks will be cut for the threads; this one again where none is known.
  const PackedMatrix& next = weight.following != nullptr ? *weight.following : weight;
  const Cells of_next(FirstKernel(next, in), in.count, static_cast<int32_t>(next.panels.size()), next.inputs,
                      team_->size());
  const auto begin_next = [&](int n) -> const void* {
    return weight.following != nullptr ? FirstPanel(next, of_next.panels(n % of_next.count()).begin) : nullptr;
  };
  team_->ForEach(cells.count(), [&](int task, int) {
    const Range columns = cells.panels(task);
    if (columns.size() == 0) return;
    ForKinds(*weight.kernel, in, cells.rows(task), [&](const LinearKernel& kernel, Range some) {
      Tile tile;
      tile.in = in.row(some.begin);
      tile.in_stride = in.stride * sizeof(float);
      if (kernel.input_row_bytes(weight.inputs) > 0) {
        tile.in = Some(in, some).prepared;
        tile.in_stride = in.prepared_stride;
      }
      tile.rows = some.size();
      tile.panel_begin = panel_begin + columns.begin;
      tile.panel_end = panel_begin + columns.end;
      tile.k_end = weight.inputs;
      tile.then = TakesAnother(task, cells.count())
                      ? FirstPanel(weight, panel_begin + cells.panels(task + team_->size()).begin)
                      : begin_next(task + team_->size() - cells.count());
      tile.epilogue = epilogue;
      tile.out = out.row(some.begin);
      tile.out_stride = out.stride;
      tile.rounded = out.rounded;
      if (kernel.writes_prepared()) {
        tile.prepared_out = Some(out, some).prepared;
        tile.prepared_stride = out.prepared_stride;
      }
      kernel.Compute(weight, tile);
    });
  });
}

// The rows with what their kernel prepares, in `to` if it is nowhere yet.
Rows Products::PrepareAll(const PackedMatrix& weight, Rows in, Buffer* to) {
  const LinearKernel& kernel = FirstKernel(weight, in);
  const size_t stride = PreparedStride(kernel, weight.inputs);
  if (stride == 0 || in.prepared != nullptr) return in;
  in.prepared = to->data();
  in.prepared_stride = stride;
  constexpr int32_t kRowsAtATime = 4;
  const int32_t count = in.paired > 0 ? in.paired : in.count;
  team_->ForEach(DivideUp(count, kRowsAtATime), [&](int task, int) {
    const int32_t begin = task * kRowsAtATime;
    PrepareRows(kernel, in, weight.inputs, begin, std::min(kRowsAtATime, count - begin));
  });
  return in;
}

// kernel: of the products that read `residual`; all of the encoder's are one.
void Products::AddNormAll(const LinearKernel& kernel, Rows in, Rows residual, const CpuNorm& norm) {
  constexpr int32_t kRowsAtATime = 8;
  team_->ForEach(DivideUp(in.count, kRowsAtATime), [&](int task, int) {
    const Range some{task * kRowsAtATime, std::min((task + 1) * kRowsAtATime, in.count)};
    Rows of_residual = residual;  // as floats alone: these few may be within a group
    of_residual.data = residual.row(some.begin);
    AddNorm(Some(in, some), of_residual, norm);
    if (residual.prepared == nullptr) return;
    PrepareRows(kernel, residual, static_cast<int32_t>(norm.gamma.size()), some.begin, some.size());
  });
}

void Products::AddNorm(Rows in, Rows residual, const CpuNorm& norm) const {
  AddNormTask task;
  task.in = in.data;
  task.in_stride = in.stride;
  task.residual = residual.data;
  task.residual_stride = residual.stride;
  task.rows = in.count;
  task.hidden = static_cast<int32_t>(norm.gamma.size());
  task.gamma = norm.gamma.data();
  task.beta = norm.beta.data();
  task.epsilon = norm.epsilon;
  kernels_->add_norm(task);
}

}  // namespace cpu
}  // namespace ftbert
