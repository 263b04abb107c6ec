// The fp32 LinearKernel: the same class over each instruction set's function table.
#include <algorithm>
#include <cstring>
#include <string>

#include "cpu/kernels.h"
#include "cpu/linear.h"
#include "cpu/thread_pool.h"

namespace ftbert {
namespace cpu {
namespace {

class Fp32Linear final : public LinearKernel {
 public:
  Fp32Linear(Isa isa, const Kernels* kernels) : isa_(isa), kernels_(kernels) {}

  Precision precision() const override { return Precision::kFloat32; }
  Isa isa() const override { return isa_; }
  int32_t row_tile() const override { return kernels_->row_tile; }
  int32_t panel_columns() const override { return kernels_->panel_columns; }
  // 96 rows of 768 floats, a block of inputs, are 288 KiB: they, their sums and a panel stay in a second-level cache of
  // 1 MiB, and each weight that comes from further away is used 96 times. (48 to 144 rows measured within 1%.)
  int32_t block_rows(int32_t, int32_t) const override { return 96; }
  bool splits_inputs() const override { return true; }

  Status Pack(const std::vector<SourceMatrix>& parts, PackedMatrix* packed) const override {
    Status status = MakePanels(*this, parts, packed);
    if (!status.ok()) return status;
    const int32_t width = panel_columns();
    const size_t panel_floats = static_cast<size_t>(packed->inputs) * width;
    packed->panel_bytes = panel_floats * sizeof(float);
    const size_t bytes = packed->panels.size() * packed->panel_bytes;
    if (!packed->weights.Allocate(bytes)) {
      return Status(Code::kOutOfMemory, "Out of memory: a weight matrix needs " + std::to_string(bytes) + " bytes.");
    }
    PackPanels(*packed, parts, [&](int32_t panel, const SourceMatrix& part, int32_t column) {
      const int32_t count = packed->panels[panel].width;
      float* out = packed->weights.as<float>() + panel * panel_floats;
      for (int32_t k = 0; k < part.rows; ++k, out += width) {
        ReadRow(part, k, column, count, out);
        std::fill(out + count, out + width, 0.f);
      }
    });
    return Status();
  }

  void Compute(const PackedMatrix& weight, const Tile& tile) const override {
    GemmTask task;
    task.in = static_cast<const float*>(tile.in);
    task.in_stride = static_cast<ptrdiff_t>(tile.in_stride / sizeof(float));
    task.rows = tile.rows;
    task.panel_floats = weight.panel_bytes / sizeof(float);
    task.weights = weight.weights.as<float>() + tile.panel_begin * task.panel_floats;
    task.bias = weight.bias.as<float>() + static_cast<size_t>(tile.panel_begin) * kernels_->panel_columns;
    task.panels = weight.panels.data() + tile.panel_begin;
    task.num_panels = tile.panel_end - tile.panel_begin;
    task.inputs = weight.inputs;
    task.k_begin = tile.k_begin;
    task.k_end = tile.k_end;
    task.activation = static_cast<int32_t>(tile.epilogue);
    task.out = tile.out;
    task.out_stride = tile.out_stride;
    task.first_column = tile.first_column;
    kernels_->gemm(task);
  }

 private:
  Isa isa_;
  const Kernels* kernels_;
};

}  // namespace

const Kernels* KernelsFor(Isa level) {
#ifdef FTBERT_WITH_AVX512
  if (level >= Isa::kAvx512) return KernelsAvx512();
#endif
#ifdef FTBERT_WITH_AVX2
  if (level >= Isa::kAvx2) return KernelsAvx2();
#endif
  (void)level;
  return KernelsPortable();
}

const LinearKernel* Fp32Kernel(Isa level) {
#ifdef FTBERT_WITH_AVX512
  static const Fp32Linear avx512(Isa::kAvx512, KernelsAvx512());
  if (level >= Isa::kAvx512) return &avx512;
#endif
#ifdef FTBERT_WITH_AVX2
  static const Fp32Linear avx2(Isa::kAvx2, KernelsAvx2());
  if (level >= Isa::kAvx2) return &avx2;
#endif
  static const Fp32Linear portable(Isa::kPortable, KernelsPortable());
  (void)level;
  return &portable;
}

}  // namespace cpu
}  // namespace ftbert
