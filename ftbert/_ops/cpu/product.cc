#include "cpu/product.h"

#include <algorithm>

namespace ftbert {
namespace cpu {
namespace {

// From so many rows for each thread on, threads take whole rows; below, the grid.
constexpr int32_t kRowsPerThread = 64;
// Rows of a grid cell at most, and the least work that pays for handing it out (multiply-adds; some half microsecond).
constexpr int32_t kGridRows = 128;
constexpr int64_t kCellWork = 100000;
// Cells per thread: more even out threads that started late, fewer leave a cell panels enough to fetch the next one
// while it computes.
constexpr int32_t kTasksPerThread = 2;
// Columns of the feed-forward's intermediate at a time, where the kernel can take its inputs in parts.
constexpr int32_t kFeedForwardColumns = 768;

int32_t DivideUp(int64_t a, int64_t b) { return static_cast<int32_t>((a + b - 1) / b); }

struct Range {
  int32_t begin = 0;
  int32_t end = 0;
  int32_t size() const { return end - begin; }
};

// The index-th of `parts` even pieces of [0, count), cut at multiples of `unit`.
Range Piece(int32_t count, int32_t unit, int32_t parts, int32_t index) {
  const int64_t units = DivideUp(count, unit);
  const auto cut = [&](int64_t i) { return std::min<int64_t>(count, units * i / parts * unit); };
  return Range{static_cast<int32_t>(cut(index)), static_cast<int32_t>(cut(index + 1))};
}

bool WholeRows(int32_t rows, int threads) {
  return threads == 1 || rows >= static_cast<int64_t>(threads) * kRowsPerThread;
}

// Blocks of rows for threads that take whole rows: of about `block` rows, as many for each thread as for the next.
int32_t RowBlocks(int32_t rows, int32_t block, int threads) {
  const int32_t blocks = DivideUp(rows, block);
  return threads == 1 ? blocks : DivideUp(blocks, threads) * threads;
}

// Rows and panels of a product cut into a grid for so many threads.
class Cells {
 public:
  Cells(const LinearKernel& kernel, int32_t rows, int32_t panels, int32_t inputs, int threads)
      : rows_(rows), row_tile_(kernel.row_tile()), panels_(panels), down_(DivideUp(rows, kGridRows)) {
    const int64_t work = static_cast<int64_t>(rows) * panels * kernel.panel_columns() * inputs;
    const int64_t wanted = std::min<int64_t>(static_cast<int64_t>(threads) * kTasksPerThread, work / kCellWork + 1);
    across_ = std::min(panels, DivideUp(wanted, down_));
  }
  int32_t count() const { return down_ * across_; }
  Range rows(int task) const { return Piece(rows_, row_tile_, down_, task / across_); }
  Range panels(int task) const { return Piece(panels_, 1, across_, task % across_); }

 private:
  int32_t rows_, row_tile_, panels_, down_, across_;
};

size_t PreparedStride(const LinearKernel& kernel, int32_t inputs) {
  const size_t bytes = kernel.input_row_bytes(inputs);
  if (bytes == 0 || kernel.group_rows() > 1) return bytes;
  return bytes + (bytes / 64 % 2 == 0 ? 64 : 0);  // an odd number of cache lines
}

// Rows that prepared ones take the room of: whole groups.
int32_t WholeGroups(const LinearKernel& kernel, int32_t rows) {
  return DivideUp(rows, kernel.group_rows()) * kernel.group_rows();
}

// What a thread that goes through blocks of rows reads next: Tile::then.
const void* FirstPanel(const PackedMatrix& weight, int32_t panel) {
  return weight.weights.as<char>() + panel * weight.panel_bytes;
}

// Bytes of each intermediate, `rows` rows of it.
struct Layout {
  size_t in = 0, wide = 0, mid = 0, out = 0;
  size_t total() const { return in + wide + mid + out; }
};

// Panels of the feed-forward's intermediate at a time; 0: all of them.
int32_t ChunkPanels(const LinearKernel& kernel) {
  const bool reads_floats = kernel.input_row_bytes(1) == 0;
  if (!kernel.splits_inputs() || !(reads_floats || kernel.writes_prepared())) return 0;
  return std::max(1, kFeedForwardColumns / kernel.panel_columns());
}

Layout LayoutFor(const LinearKernel& kernel, int32_t hidden, int32_t intermediate, int32_t rows, bool chunked) {
  Layout layout;
  layout.in = WholeGroups(kernel, rows) * PreparedStride(kernel, hidden);
  layout.mid = WholeGroups(kernel, rows) * PreparedStride(kernel, intermediate);
  const int32_t chunk = ChunkPanels(kernel) * kernel.panel_columns();
  const int32_t columns = chunked && chunk > 0 ? std::min(chunk, intermediate) : intermediate;
  if (layout.mid == 0 || !kernel.writes_prepared()) layout.wide = rows * PaddedStride(columns) * sizeof(float);
  layout.out = rows * PaddedStride(hidden) * sizeof(float);
  return layout;
}

int32_t LargestBlock(const LinearKernel& kernel, int32_t hidden, int32_t intermediate) {
  return std::max(kernel.block_rows(hidden, hidden), kernel.block_rows(hidden, intermediate)) + kernel.row_tile();
}

}  // namespace

ptrdiff_t PaddedStride(int64_t columns) {
  const int64_t lines = (columns + 15) / 16 + 1;
  return static_cast<ptrdiff_t>((lines | 1) * 16);
}

bool ProductScratch::Reserve(const LinearKernel& kernel, int32_t hidden, int32_t intermediate, int32_t rows,
                             int threads) {
  const Layout block =
      LayoutFor(kernel, hidden, intermediate, LargestBlock(kernel, hidden, intermediate), true);
  if (local.size() < static_cast<size_t>(threads)) local.resize(threads);
  for (Buffer& buffer : local) {
    if (!buffer.Reserve(block.total())) return false;
  }
  // Few rows at the end of a large batch (first tokens) go through the grid too, hence the minimum.
  const int32_t grid_rows = threads == 1 ? 0 : std::min<int64_t>(rows, static_cast<int64_t>(threads) * kRowsPerThread);
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
  const LinearKernel& kernel = *weight.kernel;
  const size_t prepared = PreparedStride(kernel, weight.inputs);
  if (!WholeRows(in.count, team_->size())) {
    size_t stride = 0;
    const void* ready = PrepareAll(kernel, in, weight.inputs, &scratch_->in, &stride);
    Grid(weight, panel_begin, panel_end, epilogue, ready, stride, in.count, out, nullptr, 0);
    return;
  }
  const int32_t blocks = RowBlocks(in.count, kernel.block_rows(weight.inputs, weight.outputs), team_->size());
  team_->ForEach(blocks, [&](int block, int thread) {
    const Range rows = Piece(in.count, kernel.row_tile(), blocks, block);
    if (rows.size() == 0) return;
    Tile tile;
    tile.in = in.row(rows.begin);
    tile.in_stride = in.stride * sizeof(float);
    if (prepared > 0) {
      void* local = scratch_->local[thread].data();
      kernel.Prepare(in.row(rows.begin), in.stride, rows.size(), weight.inputs, local, prepared);
      tile.in = local;
      tile.in_stride = prepared;
    }
    tile.rows = rows.size();
    tile.panel_begin = panel_begin;
    tile.panel_end = panel_end;
    tile.k_end = weight.inputs;
    tile.then = FirstPanel(weight, panel_begin);
    tile.epilogue = epilogue;
    tile.out = out.row(rows.begin);
    tile.out_stride = out.stride;
    kernel.Compute(weight, tile);
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
      tile.out = out.row(rows.begin);
      tile.out_stride = out.stride;
      kernel.Compute(weight, tile);
    }
  });
}

void Products::LinearAddNorm(const PackedMatrix& weight, const CpuNorm& norm, Rows in, Rows residual) {
  const LinearKernel& kernel = *weight.kernel;
  const int32_t panels = static_cast<int32_t>(weight.panels.size());
  const ptrdiff_t sum_stride = PaddedStride(weight.outputs);
  if (!WholeRows(in.count, team_->size())) {
    Rows sum;
    sum.data = scratch_->out.as<float>();
    sum.stride = sum_stride;
    sum.count = in.count;
    Linear(weight, 0, panels, Epilogue::kBias, in, sum);
    AddNormAll(sum, residual, norm);
    return;
  }
  const size_t prepared = PreparedStride(kernel, weight.inputs);
  const int32_t blocks = RowBlocks(in.count, kernel.block_rows(weight.inputs, weight.outputs), team_->size());
  team_->ForEach(blocks, [&](int block, int thread) {
    const Range rows = Piece(in.count, kernel.row_tile(), blocks, block);
    if (rows.size() == 0) return;
    char* local = scratch_->local[thread].as<char>();
    Tile tile;
    tile.in = in.row(rows.begin);
    tile.in_stride = in.stride * sizeof(float);
    if (prepared > 0) {
      kernel.Prepare(in.row(rows.begin), in.stride, rows.size(), weight.inputs, local, prepared);
      tile.in = local;
      tile.in_stride = prepared;
      local += WholeGroups(kernel, rows.size()) * prepared;
    }
    tile.rows = rows.size();
    tile.panel_end = panels;
    tile.k_end = weight.inputs;
    tile.then = FirstPanel(weight, 0);
    tile.out = reinterpret_cast<float*>(local);
    tile.out_stride = sum_stride;
    kernel.Compute(weight, tile);
    AddNorm(tile.out, sum_stride, residual.row(rows.begin), residual.stride, rows.size(), norm);
  });
}

void Products::FeedForward(const PackedMatrix& up, const PackedMatrix& down, Epilogue activation, const CpuNorm& norm,
                           Rows states) {
  const LinearKernel& kernel = *up.kernel;
  if (WholeRows(states.count, team_->size())) {
    const int32_t blocks = RowBlocks(states.count, kernel.block_rows(up.inputs, up.outputs), team_->size());
    team_->ForEach(blocks, [&](int block, int thread) {
      const Range rows = Piece(states.count, kernel.row_tile(), blocks, block);
      if (rows.size() == 0) return;
      Rows some = states;
      some.data = states.row(rows.begin);
      some.count = rows.size();
      FeedForwardBlock(up, down, activation, norm, some, scratch_->local[thread].data());
    });
    return;
  }
  size_t stride = 0;
  const void* ready = PrepareAll(kernel, states, up.inputs, &scratch_->in, &stride);
  const size_t mid_stride = PreparedStride(kernel, up.outputs);
  const bool direct = mid_stride > 0 && kernel.writes_prepared();
  Rows wide;
  wide.data = scratch_->wide.as<float>();
  wide.stride = PaddedStride(up.outputs);
  wide.count = states.count;
  Grid(up, 0, static_cast<int32_t>(up.panels.size()), activation, ready, stride, states.count, wide,
       direct ? scratch_->mid.data() : nullptr, mid_stride);
  const void* middle = scratch_->mid.data();
  stride = mid_stride;
  if (!direct) middle = PrepareAll(kernel, wide, up.outputs, &scratch_->mid, &stride);
  Rows sum;
  sum.data = scratch_->out.as<float>();
  sum.stride = PaddedStride(down.outputs);
  sum.count = states.count;
  Grid(down, 0, static_cast<int32_t>(down.panels.size()), Epilogue::kBias, middle, stride, states.count, sum, nullptr,
       0);
  AddNormAll(sum, states, norm);
}

// One thread, one block of rows, both products. The (rows, F) intermediate is made and used in chunks of columns if the
// kernel can add up the second product chunk by chunk.
void Products::FeedForwardBlock(const PackedMatrix& up, const PackedMatrix& down, Epilogue activation,
                                const CpuNorm& norm, Rows states, void* local) const {
  const LinearKernel& kernel = *up.kernel;
  const Layout layout = LayoutFor(kernel, up.inputs, up.outputs, states.count, true);
  char* in = static_cast<char*>(local);
  char* wide = in + layout.in;
  char* mid = wide + layout.wide;
  float* sum = reinterpret_cast<float*>(mid + layout.mid);
  const ptrdiff_t sum_stride = PaddedStride(down.outputs);
  const size_t mid_stride = PreparedStride(kernel, up.outputs);
  const int32_t panels = static_cast<int32_t>(up.panels.size());
  const int32_t chunk = ChunkPanels(kernel) > 0 ? std::min(ChunkPanels(kernel), panels) : panels;

  Tile first;
  first.in = states.data;
  first.in_stride = states.stride * sizeof(float);
  if (layout.in > 0) {
    first.in_stride = PreparedStride(kernel, up.inputs);
    kernel.Prepare(states.data, states.stride, states.count, up.inputs, in, first.in_stride);
    first.in = in;
  }
  first.rows = states.count;
  first.k_end = up.inputs;
  first.then = FirstPanel(down, 0);
  first.epilogue = activation;
  Tile second;
  second.rows = states.count;
  second.panel_end = static_cast<int32_t>(down.panels.size());
  second.then = FirstPanel(up, 0);
  second.out = sum;
  second.out_stride = sum_stride;
  for (int32_t panel = 0; panel < panels; panel += chunk) {
    const int32_t next = std::min(panel + chunk, panels);
    const int32_t column = up.panels[panel].column;
    const int32_t columns = up.panels[next - 1].column + up.panels[next - 1].width - column;
    first.panel_begin = panel;
    first.panel_end = next;
    if (layout.wide == 0) {
      first.prepared_out = mid;
      first.prepared_stride = mid_stride;
    } else {
      // Panel::column counts from the first column of all; the chunk's own columns begin at `wide`.
      first.out_stride = PaddedStride(columns);
      first.out = reinterpret_cast<float*>(wide);
      first.first_column = column;
    }
    kernel.Compute(up, first);
    if (layout.mid > 0) {
      if (layout.wide > 0) {
        kernel.Prepare(first.out, first.out_stride, states.count, up.outputs, mid, mid_stride);
      }
      second.in = mid;
      second.in_stride = mid_stride;
    } else {
      second.in = wide;
      second.in_stride = first.out_stride * sizeof(float);
    }
    second.k_begin = column;
    second.k_end = column + columns;
    kernel.Compute(down, second);
  }
  AddNorm(sum, sum_stride, states.data, states.stride, states.count, norm);
}

void Products::Grid(const PackedMatrix& weight, int32_t panel_begin, int32_t panel_end, Epilogue epilogue,
                    const void* in, size_t in_stride, int32_t rows, Rows out, void* prepared_out,
                    size_t prepared_stride) {
  const LinearKernel& kernel = *weight.kernel;
  const Cells cells(kernel, rows, panel_end - panel_begin, weight.inputs, team_->size());
  team_->ForEach(cells.count(), [&](int task, int) {
    const Range some = cells.rows(task), columns = cells.panels(task);
    if (some.size() == 0 || columns.size() == 0) return;
    Tile tile;
    tile.in = static_cast<const char*>(in) + some.begin * in_stride;
    tile.in_stride = in_stride;
    tile.rows = some.size();
    tile.panel_begin = panel_begin + columns.begin;
    tile.panel_end = panel_begin + columns.end;
    tile.k_end = weight.inputs;
    tile.epilogue = epilogue;
    tile.out = out.row(some.begin);
    tile.out_stride = out.stride;
    if (prepared_out != nullptr) {
      tile.prepared_out = static_cast<char*>(prepared_out) + some.begin * prepared_stride;
      tile.prepared_stride = prepared_stride;
    }
    kernel.Compute(weight, tile);
  });
}

// The rows as the kernel reads them: prepared into `to`, or the fp32 rows themselves.
const void* Products::PrepareAll(const LinearKernel& kernel, Rows in, int32_t inputs, Buffer* to, size_t* stride) {
  *stride = PreparedStride(kernel, inputs);
  if (*stride == 0) {
    *stride = in.stride * sizeof(float);
    return in.data;
  }
  constexpr int32_t kRowsAtATime = 4;
  team_->ForEach(DivideUp(in.count, kRowsAtATime), [&](int task, int) {
    const int32_t begin = task * kRowsAtATime;
    kernel.Prepare(in.row(begin), in.stride, std::min(kRowsAtATime, in.count - begin), inputs,
                   to->as<char>() + kernel.RowOffset(begin, *stride), *stride);
  });
  return to->data();
}

void Products::AddNormAll(Rows in, Rows residual, const CpuNorm& norm) {
  constexpr int32_t kRowsAtATime = 8;
  team_->ForEach(DivideUp(in.count, kRowsAtATime), [&](int task, int) {
    const int32_t begin = task * kRowsAtATime;
    AddNorm(in.row(begin), in.stride, residual.row(begin), residual.stride, std::min(kRowsAtATime, in.count - begin),
            norm);
  });
}

void Products::AddNorm(const float* in, ptrdiff_t in_stride, float* residual, ptrdiff_t residual_stride, int32_t rows,
                       const CpuNorm& norm) const {
  AddNormTask task;
  task.in = in;
  task.in_stride = in_stride;
  task.residual = residual;
  task.residual_stride = residual_stride;
  task.rows = rows;
  task.hidden = static_cast<int32_t>(norm.gamma.size());
  task.gamma = norm.gamma.data();
  task.beta = norm.beta.data();
  task.epsilon = norm.epsilon;
  kernels_->add_norm(task);
}

}  // namespace cpu
}  // namespace ftbert
