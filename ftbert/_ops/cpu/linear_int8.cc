// int8: quantization of weights, the portable form, and the choice of a form. See linear_int8_bf16.h for the layout.
//
// Weights: symmetric per output channel, q in [-127, 127], scale = the largest |w| / 127. (Clipping the largest does
// not pay at 8 bits: rounding K weights has the square error K (M / 127)^2 / 12, and lowering the range M by a part e
// saves 2e of that but costs (eM)^2 for the one weight at the end, more for any e above 1% and K up to 3,072.) Rounding
// keeps the sum of each column, because the inputs of the feed-forward's second product have a common mean.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cpu/linear_int8_bf16.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace ftbert {
namespace cpu {
namespace {

constexpr int kPortableColumns = 16;

float RoundEven(float x) { return std::nearbyint(x); }

void PreparePortable(const float* in, ptrdiff_t in_stride, int32_t rows, int32_t inputs, uint8_t* prepared,
                     size_t stride) {
  const int32_t padded = Lines(inputs, 1) * kLineBytes;
  for (int32_t r = 0; r < rows; ++r, in += in_stride, prepared += stride) {
    float smallest = in[0], largest = in[0];
    for (int32_t k = 1; k < inputs; ++k) {
      smallest = in[k] >= smallest ? smallest : in[k];
      largest = in[k] <= largest ? largest : in[k];
    }
    const float range = largest - smallest;
    const bool constant = range <= 1e-30f;
    const RowScale scale = {constant ? 0.0f : range / 255.0f, smallest};
    const float inverse = constant ? 0.0f : 255.0f / range;
    for (int32_t k = 0; k < inputs; ++k) {
      const float q = RoundEven((in[k] - smallest) * inverse);
      prepared[k] = q <= 255.0f ? static_cast<uint8_t>(q) : 255;  // NaN: 255, and the scale is NaN
    }
    std::memset(prepared + inputs, 0, padded - inputs);
    std::memcpy(prepared + padded, &scale, sizeof(scale));
  }
}

void ComputePortable(const LinearJob& job) {
  for (int32_t p = 0; p < job.panel_count; ++p) {
    const auto* weights = reinterpret_cast<const int8_t*>(job.weights + p * job.panel_bytes);
    const Panel& panel = job.panels[p];
    for (int32_t r = 0; r < job.rows; ++r) {
      const uint8_t* row = job.in + r * job.in_stride;
      int32_t sums[kPortableColumns] = {};
      for (int32_t group = 0; group < job.lines * (kLineBytes / 4); ++group) {
        const uint8_t* x = row + 4 * group;
        const int8_t* w = weights + 4 * kPortableColumns * group;
        for (int c = 0; c < kPortableColumns; ++c) {
          sums[c] += x[0] * w[4 * c] + x[1] * w[4 * c + 1] + x[2] * w[4 * c + 2] + x[3] * w[4 * c + 3];
        }
      }
      RowScale scale;
      std::memcpy(&scale, row + job.scale_offset, sizeof(scale));
      for (int c = 0; c < panel.width; ++c) {
        const int32_t column = p * kPortableColumns + c;
        const float x = scale.scale * job.column_scale[column] * static_cast<float>(sums[c]) +
                        (scale.low * job.column_sum[column] + job.bias[column]);
        job.out[r * job.out_stride + panel.column + c] = ApplyEpilogue(job.epilogue, x);
      }
    }
  }
}

// ---- Weights

// Adding and subtracting 1.5 x 2^23 rounds |x| < 2^22 to nearest even, and compilers vectorise it for any target.
inline float RoundSmall(float x) {
  return (x + 12582912.0f) - 12582912.0f;
}

// The columns of one panel while they are quantized: kernel[k * columns + c].
class PanelQuantizer {
 public:
  PanelQuantizer(int32_t inputs, int32_t columns)
      : inputs_(inputs), columns_(columns), kernel_(static_cast<size_t>(inputs) * columns), largest_(columns),
        inverse_(columns), remainder_(columns), levels_(columns) {}

  float* row(int32_t k) { return &kernel_[static_cast<size_t>(k) * columns_]; }

  // q[k][c] = round(w / scale[c]), clipped, in the layout of a packed panel whose padding is zero; sum = scale x sum of
  // q over the inputs.
  void Quantize(bool bounds_pairs, int8_t* packed, float* scale, float* sum) {
    Measure();
    if (bounds_pairs) MeasurePairs();
    int32_t* levels = levels_.data();
    for (int32_t c = 0; c < columns_; ++c) scale[c] = largest_[c] / 127.0f;
    for (int32_t c = 0; c < columns_; ++c) inverse_[c] = scale[c] > 0 ? 1.0f / scale[c] : 0.0f;
    std::fill(levels_.begin(), levels_.end(), 0);
    std::fill(remainder_.begin(), remainder_.end(), 0.0f);
    for (int32_t k = 0; k < inputs_; ++k) {
      const float* w = row(k);
      int8_t* to = packed + static_cast<size_t>(k / 4) * 4 * columns_ + k % 4;
      for (int32_t c = 0; c < columns_; ++c) {
        const float level = Level(w[c], inverse_[c]);
        remainder_[c] += Clipped(w[c], inverse_[c]) - level;
        levels[c] += static_cast<int32_t>(level);
        to[4 * c] = static_cast<int8_t>(level);
      }
    }
    KeepSums(bounds_pairs, packed);
    for (int32_t c = 0; c < columns_; ++c) sum[c] = scale[c] * static_cast<float>(levels[c]);
  }

 private:
  static float Clipped(float w, float inverse) {
    const float level = w * inverse;
    return level < -127.0f ? -127.0f : level > 127.0f ? 127.0f : level;
  }
  static float Level(float w, float inverse) { return RoundSmall(Clipped(w, inverse)); }

  // Rounding leaves the sum of a column off by a few steps, and inputs with a common mean (GELU's) would see all of it.
  // So as many weights, of those that lay closest to the middle between two steps, are rounded the other way.
  void KeepSums(bool bounds_pairs, int8_t* packed) {
    for (int32_t c = 0; c < columns_; ++c) {
      const float wanted = RoundSmall(remainder_[c]);
      const int step = wanted > 0 ? 1 : -1;
      int left = static_cast<int>(std::fabs(wanted));
      const float share = 2.0f * static_cast<float>(left + 2) / static_cast<float>(inputs_);
      const float closest = share < 0.25f ? 0.5f - share : 0.25f;
      for (int32_t k = 0; k < inputs_ && left > 0; ++k) {
        const float level = Clipped(row(k)[c], inverse_[c]);
        const float rounded = RoundSmall(level);
        if ((level - rounded) * static_cast<float>(step) < closest) continue;
        int8_t* pair = packed + (k / 4 * columns_ + c) * 4 + k % 4 / 2 * 2;
        const int turned = static_cast<int>(rounded) + step, other = pair[1 - k % 2];
        if (bounds_pairs && turned * other > 0 && std::abs(turned + other) > kPairLimit) continue;
        pair[k % 2] = static_cast<int8_t>(turned);
        levels_[c] += step;
        --left;
      }
    }
  }

  void Measure() {
    std::fill(largest_.begin(), largest_.end(), 0.0f);
    for (int32_t k = 0; k < inputs_; ++k) {
      const float* w = row(k);
      for (int32_t c = 0; c < columns_; ++c) {
        const float magnitude = std::fabs(w[c]);
        largest_[c] = magnitude > largest_[c] ? magnitude : largest_[c];
      }
    }
  }

  // Where two weights of one sign meet in a pair and make more than the largest alone, they set the scale: 127 steps
  // for both, which rounding raises to kPairLimit at most.
  void MeasurePairs() {
    for (int32_t k = 0; k + 1 < inputs_; k += 2) {
      const float *first = row(k), *second = row(k + 1);
      for (int32_t c = 0; c < columns_; ++c) {
        const float both = std::fabs(first[c] + second[c]);  // of opposite signs: less than the larger alone
        largest_[c] = both > largest_[c] ? both : largest_[c];
      }
    }
  }

  int32_t inputs_, columns_;
  std::vector<float> kernel_, largest_, inverse_, remainder_;
  std::vector<int32_t> levels_;  // sums of q
};

class Int8LinearKernel : public FormKernel {
 public:
  using FormKernel::FormKernel;

  Precision precision() const override { return Precision::kInt8; }
  size_t input_row_bytes(int32_t inputs) const override {
    const int32_t lines = Lines(inputs, 1);
    return lines * kLineBytes + (ops_.row_tail_bytes != nullptr ? ops_.row_tail_bytes(lines) : kLineBytes);
  }

  Status Pack(const std::vector<SourceMatrix>& parts, PackedMatrix* packed) const override {
    const Status status = MakePanels(*this, parts, packed);
    if (!status.ok()) return status;
    const int32_t columns = ops_.panel_columns, inputs = packed->inputs;
    const size_t padded_columns = packed->panels.size() * columns;
    const int32_t lines = Lines(inputs, 1);
    packed->panel_bytes = static_cast<size_t>(lines) * kLineBytes * columns;
    if (ops_.panel_tail_bytes != nullptr) packed->panel_bytes += ops_.panel_tail_bytes(lines);
    if (!packed->weights.Allocate(packed->panels.size() * packed->panel_bytes) ||
        !packed->extra.Allocate(2 * padded_columns * sizeof(float))) {
      return Status(Code::kOutOfMemory, "int8 weights of " + std::to_string(inputs) + " x " +
                    std::to_string(packed->outputs) + ": no memory for them. Free memory, or use a smaller model.");
    }
    std::memset(packed->weights.data(), 0, packed->weights.size());
    float* scale = packed->extra.as<float>();
    float* sum = scale + padded_columns;
    PackPanels(*packed, parts, [&](int32_t panel, const SourceMatrix& part, int32_t first) {
      const int32_t width = packed->panels[panel].width;
      PanelQuantizer quantizer(inputs, columns);
      for (int32_t k = 0; k < inputs; ++k) {
        std::fill(quantizer.row(k) + width, quantizer.row(k) + columns, 0.0f);
        ReadRow(part, k, first, width, quantizer.row(k));
      }
      const size_t column = static_cast<size_t>(panel) * columns;
      auto* to = packed->weights.as<uint8_t>() + panel * packed->panel_bytes;
      quantizer.Quantize(ops_.bounds_pairs, reinterpret_cast<int8_t*>(to), scale + column, sum + column);
      if (ops_.finish_panel != nullptr) ops_.finish_panel(to, lines);
    });
    return Status();
  }

  void Compute(const PackedMatrix& weight, const Tile& tile) const override {
    LinearJob job = MakeJob(weight, tile, 1, 1, ops_.panel_columns);
    job.scale_offset = static_cast<size_t>(job.lines) * kLineBytes * ops_.group_rows;
    const size_t padded_columns = weight.panels.size() * ops_.panel_columns;
    const size_t first = static_cast<size_t>(tile.panel_begin) * ops_.panel_columns;
    job.column_scale = weight.extra.as<float>() + first;
    job.column_sum = job.column_scale + padded_columns;
    ops_.compute(job);
  }
};

}  // namespace

const LinearOps kInt8Portable = {
    Isa::kPortable, 1, kPortableColumns, false, 64, PreparePortable, ComputePortable};

bool MachineHasAvx2Vnni() {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  return MachineIsa() >= Isa::kAvx2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
#else
  return false;
#endif
}

std::unique_ptr<LinearKernel> NewInt8Kernel(const LinearOps& ops) { return std::make_unique<Int8LinearKernel>(ops); }

const LinearKernel* Int8Kernel(Isa level) {
#ifdef FTBERT_WITH_AMX
  static const Int8LinearKernel amx(kInt8Amx);
  if (level >= Isa::kAmx) return &amx;
#endif
#ifdef FTBERT_WITH_AVX512_VNNI
  static const Int8LinearKernel avx512_vnni(kInt8Avx512Vnni);
  if (level >= Isa::kAvx512Vnni) return &avx512_vnni;
#endif
#ifdef FTBERT_WITH_AVX2
#ifdef FTBERT_WITH_AVX2_VNNI
  // On a machine whose best level this is; one with AVX-512 that was lowered to avx2 shall run what an AVX2 machine
  // runs.
  static const Int8LinearKernel avx2_vnni(kInt8Avx2Vnni);
  if (level == Isa::kAvx2 && MachineIsa() == Isa::kAvx2 && MachineHasAvx2Vnni()) return &avx2_vnni;
#endif
  static const Int8LinearKernel avx2(kInt8Avx2);
  if (level >= Isa::kAvx2) return &avx2;
#endif
  (void)level;
  static const Int8LinearKernel portable(kInt8Portable);
  return &portable;
}

}  // namespace cpu
}  // namespace ftbert
