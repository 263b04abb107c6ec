#include "cpu/linear_int8_bf16.h"

#include <cmath>

namespace ftbert {
namespace cpu {

LinearJob MakeJob(const PackedMatrix& weight, const Tile& tile, int32_t bytes_per_input, int32_t bytes_per_weight,
                  int32_t panel_columns) {
  LinearJob job;
  job.in = static_cast<const uint8_t*>(tile.in);
  job.in_stride = tile.in_stride;
  job.rows = tile.rows;
  job.inputs = weight.inputs;
  job.lines = Lines(tile.k_end - tile.k_begin, bytes_per_input);
  const size_t line_bytes = static_cast<size_t>(kLineBytes / bytes_per_input) * panel_columns * bytes_per_weight;
  job.weights = weight.weights.as<uint8_t>() + tile.panel_begin * weight.panel_bytes +
                Lines(tile.k_begin, bytes_per_input) * line_bytes;
  job.panel_bytes = weight.panel_bytes;
  job.continues = tile.k_begin > 0;
  job.unfinished = tile.k_end < weight.inputs;
  job.read_bytes = job.continues || job.unfinished ? job.lines * line_bytes : weight.panel_bytes;
  job.panels = weight.panels.data() + tile.panel_begin;
  job.panel_count = tile.panel_end - tile.panel_begin;
  job.bias = weight.bias.as<float>() + static_cast<size_t>(tile.panel_begin) * panel_columns;
  job.then = static_cast<const uint8_t*>(tile.then);
  job.epilogue = tile.epilogue;
  job.out = tile.out;
  job.out_stride = tile.out_stride;
  job.first_column = tile.first_column;
  job.rounded = tile.rounded;
  job.prepared_out = static_cast<uint8_t*>(tile.prepared_out);
  job.prepared_stride = tile.prepared_stride;
  return job;
}

float ApplyEpilogue(Epilogue epilogue, float x) {
  switch (epilogue) {
    case Epilogue::kBias:
      return x;
    case Epilogue::kBiasGeluErf:
      return 0.5f * x * (1.0f + std::erf(x * 0.70710678f));
    case Epilogue::kBiasGeluTanh:
      return 0.5f * x * (1.0f + std::tanh(0.79788456f * (x + 0.044715f * x * x * x)));
    case Epilogue::kBiasRelu:
      return x < 0.0f ? 0.0f : x;  // NaN stays
    case Epilogue::kBiasTanh:
      return std::tanh(x);
  }
  return x;
}

}  // namespace cpu
}  // namespace ftbert
