// bf16: rounding of weights, the portable form, and the choice of a form. See linear_int8_bf16.h for the layout.
//
// Where the processor has no bf16 products (before AVX512-BF16 and AMX), the weights are still held once, in bf16, and
// widened on the way into fp32 products; inputs stay fp32. That halves the memory at about the speed of fp32, and is
// closer to fp32 than the bf16 instructions are.
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/half.h"
#include "cpu/linear_int8_bf16.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace ftbert {
namespace cpu {
namespace {

constexpr int kPortableColumns = 16;

void ComputePortable(const LinearJob& job) {
  for (int32_t p = 0; p < job.panel_count; ++p) {
    const auto* weights = reinterpret_cast<const uint16_t*>(job.weights + p * job.panel_bytes);
    const Panel& panel = job.panels[p];
    for (int32_t r = 0; r < job.rows; ++r) {
      const auto* x = reinterpret_cast<const float*>(job.in + r * job.in_stride);
      float sums[kPortableColumns] = {};
      for (int32_t k = 0; k < job.inputs; ++k) {
        const uint16_t* w = weights + 2 * kPortableColumns * (k / 2) + k % 2;
        for (int c = 0; c < kPortableColumns; ++c) sums[c] += x[k] * BFloat16ToFloat(w[2 * c]);
      }
      for (int c = 0; c < panel.width; ++c) {
        job.out[r * job.out_stride + panel.column + c] =
            ApplyEpilogue(job.epilogue, sums[c] + job.bias[p * kPortableColumns + c]);
      }
    }
  }
}

class Bf16LinearKernel : public FormKernel {
 public:
  using FormKernel::FormKernel;

  Precision precision() const override { return Precision::kBFloat16; }
  bool writes_prepared() const override { return !ops_.takes_floats; }
  int32_t chunk_columns() const override { return ops_.chunk_columns; }
  int32_t input_step() const override { return kLineBytes / 2; }
  bool prepares_parts() const override { return ops_.chunk_columns > 0; }
  size_t input_row_bytes(int32_t inputs) const override {
    return ops_.takes_floats ? 0 : static_cast<size_t>(Lines(inputs, 2)) * kLineBytes;
  }

  Status Pack(const std::vector<SourceMatrix>& parts, PackedMatrix* packed) const override {
    const Status status = MakePanels(*this, parts, packed);
    if (!status.ok()) return status;
    const int32_t columns = ops_.panel_columns, inputs = packed->inputs;
    packed->panel_bytes = static_cast<size_t>(Lines(inputs, 2)) * kLineBytes * columns;
    if (!packed->weights.Allocate(packed->panels.size() * packed->panel_bytes)) {
      return Status(Code::kOutOfMemory, "bf16 weights of " + std::to_string(inputs) + " x " +
                    std::to_string(packed->outputs) + ": no memory for them. Free memory, or use precision int8.");
    }
    std::memset(packed->weights.data(), 0, packed->weights.size());
    PackPanels(*packed, parts, [&](int32_t panel, const SourceMatrix& part, int32_t first) {
      const int32_t width = packed->panels[panel].width;
      auto* to = reinterpret_cast<uint16_t*>(packed->weights.as<uint8_t>() + panel * packed->panel_bytes);
      std::vector<float> row(columns);
      for (int32_t k = 0; k < inputs; ++k) {
        ReadRow(part, k, first, width, row.data());
        for (int32_t c = 0; c < width; ++c) to[(k / 2 * columns + c) * 2 + k % 2] = FloatToBFloat16(row[c]);
      }
      if (ops_.finish_panel != nullptr) ops_.finish_panel(reinterpret_cast<uint8_t*>(to), Lines(inputs, 2));
    });
    return Status();
  }

  void Compute(const PackedMatrix& weight, const Tile& tile) const override {
    ops_.compute(MakeJob(weight, tile, 2, 2, ops_.panel_columns));
  }
};

}  // namespace

const LinearOps kBf16Portable = {Isa::kPortable, 1, kPortableColumns, true, 64, nullptr, ComputePortable};

namespace {

// On Intel's processors vdpbf16ps is slower than fp32 multiply-adds on widened weights (a Xeon with AMX, one core: 35
// and 53 GMAC/s), AMX being what is meant to be used; on AMD's (Zen 5) it is twice as fast (245 and 125).
[[maybe_unused]] bool IsIntel() {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(0, &a, &b, &c, &d) != 0 && b == 0x756e6547;  // "Genu"
#else
  return false;
#endif
}

}  // namespace

std::unique_ptr<LinearKernel> NewBf16Kernel(const LinearOps& ops) { return std::make_unique<Bf16LinearKernel>(ops); }

const LinearKernel* Bf16Kernel(Isa level) {
#ifdef FTBERT_WITH_AMX
  static const Bf16LinearKernel amx(kBf16Amx);
  if (level >= Isa::kAmx) return &amx;
#endif
#ifdef FTBERT_WITH_AVX512_BF16
  static const Bf16LinearKernel avx512_bf16(kBf16Avx512Bf16);
  if (level >= Isa::kAvx512Bf16 && !IsIntel()) return &avx512_bf16;
#endif
#ifdef FTBERT_WITH_AVX512
  static const Bf16LinearKernel avx512(kBf16Avx512);
  if (level >= Isa::kAvx512) return &avx512;
#endif
#ifdef FTBERT_WITH_AVX2
  static const Bf16LinearKernel avx2(kBf16Avx2);
  if (level >= Isa::kAvx2) return &avx2;
#endif
  (void)level;
  static const Bf16LinearKernel portable(kBf16Portable);
  return &portable;
}

}  // namespace cpu
}  // namespace ftbert
