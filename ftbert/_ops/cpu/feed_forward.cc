// The two products of the feed-forward, residual and layer norm.
#include <algorithm>

#include "cpu/product.h"
#include "cpu/product_parts.h"

namespace ftbert {
namespace cpu {

int32_t ChunkPanels(const LinearKernel& kernel) {
  if (kernel.chunk_columns() == 0) return 0;
  return std::max(1, std::max(kernel.chunk_columns(), kernel.input_step()) / kernel.panel_columns());
}

Layout LayoutFor(const LinearKernel& kernel, int32_t hidden, int32_t intermediate, int32_t rows, bool chunked) {
  const int32_t chunk = ChunkPanels(kernel) * kernel.panel_columns();
  const int32_t columns = chunked && chunk > 0 ? std::min(chunk, intermediate) : intermediate;
  Layout layout;
  layout.in = WholeGroups(kernel, rows) * PreparedStride(kernel, hidden);
  layout.mid = WholeGroups(kernel, rows) * PreparedStride(kernel, kernel.prepares_parts() ? columns : intermediate);
  if (layout.mid == 0 || !kernel.writes_prepared()) layout.wide = rows * PaddedStride(columns) * sizeof(float);
  layout.out = WholeGroups(kernel, rows) * PaddedStride(hidden) * sizeof(float);
  return layout;
}

void Products::FeedForward(const PackedMatrix& up, const PackedMatrix& down, Epilogue activation, const CpuNorm& norm,
                           Rows states) {
  if (WholeRows(FirstKernel(up, states), states.count, team_->size())) {
    const int32_t blocks = Blocks(states.count, FirstKernel(up, states).feed_forward_rows());
    team_->ForEach(blocks, [&](int block, int thread) {
      const Range rows = Piece(states.count, FirstKernel(up, states).row_tile(), blocks, block);
      ForKinds(*up.kernel, states, rows, [&](const LinearKernel& kernel, Range some) {
        FeedForwardBlock(kernel, up, down, activation, norm, Some(states, some), scratch_->local[thread].data(),
                         TakesAnother(block, blocks));
      });
    });
    return;
  }
  const bool direct = up.kernel->writes_prepared();
  Rows middle;
  middle.data = scratch_->wide.as<float>();
  middle.stride = PaddedStride(up.outputs);
  middle.count = states.count;
  middle.paired = states.paired;
  if (direct) {
    middle.prepared = scratch_->mid.data();
    middle.prepared_stride = PreparedStride(*up.kernel, up.outputs);
  }
  Grid(up, 0, static_cast<int32_t>(up.panels.size()), activation, PrepareAll(up, states, &scratch_->in), middle);
  middle = PrepareAll(down, middle, &scratch_->mid);
  Rows sum;
  sum.data = scratch_->out.as<float>();
  sum.stride = PaddedStride(down.outputs);
  sum.count = states.count;
  Grid(down, 0, static_cast<int32_t>(down.panels.size()), Epilogue::kBias, middle, sum);
  AddNormAll(*down.kernel, sum, states, norm);
}

// One thread, one block of rows, both products. The (rows, F) intermediate is made and used in chunks of columns if the
// kernel can add up the second product chunk by chunk.
void Products::FeedForwardBlock(const LinearKernel& kernel, const PackedMatrix& up, const PackedMatrix& down,
                                Epilogue activation, const CpuNorm& norm, Rows states, void* local, bool more) const {
  const Layout layout = LayoutFor(kernel, up.inputs, up.outputs, states.count, true);
  char* in = static_cast<char*>(local);
  char* wide = in + layout.in;
  char* mid = wide + layout.wide;
  Rows sum;
  sum.data = reinterpret_cast<float*>(mid + layout.mid);
  sum.stride = PaddedStride(down.outputs);
  sum.count = states.count;
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
  first.epilogue = activation;
  Tile second;
  second.rows = states.count;
  second.panel_end = static_cast<int32_t>(down.panels.size());
  second.out = sum.data;
  second.out_stride = sum.stride;
  for (int32_t panel = 0; panel < panels; panel += chunk) {
    const int32_t next = std::min(panel + chunk, panels);
    const int32_t column = up.panels[panel].column;
    const int32_t columns = up.panels[next - 1].column + up.panels[next - 1].width - column;
    const int32_t prepared = kernel.prepares_parts() ? columns : up.outputs;
    first.panel_begin = panel;
    first.panel_end = next;
    first.first_column = column;  // what is written begins with the chunk
    first.then = FirstPanel(down, 0, column);
    second.then = next < panels ? FirstPanel(up, next) : more ? FirstPanel(up, 0) : Beyond(down);
    if (layout.wide == 0) {
      first.prepared_out = mid;
      first.prepared_stride = PreparedStride(kernel, prepared);
    } else {
      first.out_stride = PaddedStride(columns);
      first.out = reinterpret_cast<float*>(wide);
    }
    kernel.Compute(up, first);
    if (layout.mid > 0) {
      second.in = mid;
      second.in_stride = PreparedStride(kernel, prepared);
      if (layout.wide > 0) {
        kernel.Prepare(first.out, first.out_stride, states.count, prepared, mid, second.in_stride);
      }
    } else {
      second.in = wide;
      second.in_stride = first.out_stride * sizeof(float);
    }
    second.k_begin = column;
    second.k_end = column + columns;
    kernel.Compute(down, second);
  }
  AddNorm(sum, states, norm);
}

}  // namespace cpu
}  // namespace ftbert
