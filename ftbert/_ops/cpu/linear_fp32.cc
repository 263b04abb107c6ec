// The fp32 LinearKernels: of rows and of pairs of rows, the same classes over each instruction set's function table;
// and of floats in parts.
#include <algorithm>
#include <cstring>
#include <string>

#include "cpu/attention_amx.h"
#include "cpu/kernels.h"
#include "cpu/linear.h"
#include "cpu/linear_int8_bf16.h"
#include "cpu/thread_pool.h"

namespace ftbert {
namespace cpu {
namespace {

Status OutOfMemory(size_t bytes) {
  return Status(Code::kOutOfMemory, "Out of memory: a weight matrix needs " + std::to_string(bytes) + " bytes.");
}

class Fp32Linear : public LinearKernel {
 public:
  Fp32Linear(Isa isa, const Kernels* kernels, const LinearKernel* pairs = nullptr)
      : kernels_(kernels), isa_(isa), pairs_(pairs) {}

  const LinearKernel* pairs() const override { return pairs_; }

  Precision precision() const override { return Precision::kFloat32; }
  Isa isa() const override { return isa_; }
  int32_t row_tile() const override { return kernels_->row_tile; }
  int32_t panel_columns() const override { return kernels_->panel_columns; }
  // 96 rows of 768 floats, a block of inputs, are 288 KiB: they, their sums and a panel stay in a second-level cache of
  // 1 MiB, and each weight that comes from further away is used 96 times. (48 to 144 rows measured within 1%.)
  int32_t block_rows() const override { return 96; }
  int32_t chunk_columns() const override { return 768; }

  Status Pack(const std::vector<SourceMatrix>& parts, PackedMatrix* packed) const override {
    Status status = MakePanels(*this, parts, packed);
    if (!status.ok()) return status;
    const int32_t width = panel_columns();
    const size_t panel_floats = static_cast<size_t>(packed->inputs) * width;
    packed->panel_bytes = panel_floats * sizeof(float);
    const size_t bytes = packed->panels.size() * packed->panel_bytes;
    if (!packed->weights.Allocate(bytes)) return OutOfMemory(bytes);
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
    task.then = static_cast<const float*>(tile.then);
    FillTask(weight, tile, &task);
    kernels_->gemm(task);
  }

 protected:
  // What both forms of a product have in common.
  template <typename Task>
  void FillTask(const PackedMatrix& weight, const Tile& tile, Task* task) const {
    task->panel_floats = weight.panel_bytes / sizeof(float);
    task->weights = weight.weights.as<float>() + tile.panel_begin * task->panel_floats;
    task->bias = weight.bias.as<float>() + static_cast<size_t>(tile.panel_begin) * kernels_->panel_columns;
    task->panels = weight.panels.data() + tile.panel_begin;
    task->num_panels = tile.panel_end - tile.panel_begin;
    task->inputs = weight.inputs;
    task->k_begin = tile.k_begin;
    task->k_end = tile.k_end;
    task->activation = static_cast<int32_t>(tile.epilogue);
    task->out = tile.out;
    task->out_stride = tile.out_stride;
    task->first_column = tile.first_column;
  }

  const Kernels* kernels_;

 private:
  Isa isa_;
  const LinearKernel* pairs_;
};

// A prepared pair is what prepare_pairs makes of it, in the room of a group of two rows.
class Fp32Pairs final : public Fp32Linear {
 public:
  using Fp32Linear::Fp32Linear;

  int32_t row_tile() const override { return 2 * kernels_->row_tile; }
  int32_t panel_step() const override { return 2; }
  // In the grid, weights are added up once for all rows. (One row of 128 tokens on two threads: 4% faster than at 64.)
  int32_t rows_per_thread() const override { return 128; }
  int32_t input_step() const override { return kernels_->pair_inputs; }
  bool prepares_parts() const override { return true; }
  int32_t group_rows() const override { return 2; }
  size_t input_row_bytes(int32_t inputs) const override {
    return (kernels_->pair_floats(inputs) * sizeof(float) / 2 + 63) / 64 * 64;
  }

  void Prepare(const float* in, ptrdiff_t in_stride, int32_t rows, int32_t inputs, void* prepared,
               size_t stride) const override {
    PreparePairsTask task;
    task.in = in;
    task.in_stride = in_stride;
    task.pairs = rows / 2;
    task.inputs = inputs;
    task.prepared = static_cast<float*>(prepared);
    task.pair_stride = static_cast<ptrdiff_t>(2 * stride / sizeof(float));
    kernels_->prepare_pairs(task);
  }

  void Compute(const PackedMatrix& weight, const Tile& tile) const override {
    PairsTask task;
    task.in = static_cast<const float*>(tile.in);
    task.pair_stride = static_cast<ptrdiff_t>(2 * tile.in_stride / sizeof(float));
    task.pairs = tile.rows / 2;
    FillTask(weight, tile, &task);
    kernels_->gemm_pairs(task);
  }
};

// Floats as three bf16 parts, for AMX.
class Fp32PartsKernel final : public FormKernel {
 public:
  using FormKernel::FormKernel;

  Precision precision() const override { return Precision::kFloat32; }
  bool writes_prepared() const override { return true; }
  int32_t chunk_columns() const override { return ops_.chunk_columns; }
  int32_t input_step() const override { return kInputs; }
  bool prepares_parts() const override { return true; }
  size_t input_row_bytes(int32_t inputs) const override {
    return static_cast<size_t>(Lines(inputs, sizeof(uint16_t))) * 3 * kLineBytes;
  }

  Status Pack(const std::vector<SourceMatrix>& parts, PackedMatrix* packed) const override {
    const Status status = MakePanels(*this, parts, packed);
    if (!status.ok()) return status;
    const int32_t columns = ops_.panel_columns;
    packed->panel_bytes = static_cast<size_t>(Lines(packed->inputs, sizeof(uint16_t))) * kInputs * columns * 4;
    const size_t bytes = packed->panels.size() * packed->panel_bytes;
    if (!packed->weights.Allocate(bytes)) return OutOfMemory(bytes);
    std::memset(packed->weights.data(), 0, bytes);
    PackPanels(*packed, parts, [&](int32_t panel, const SourceMatrix& part, int32_t first) {
      const int32_t width = packed->panels[panel].width;
      float* const to = packed->weights.as<float>() + panel * (packed->panel_bytes / sizeof(float));
      std::vector<float> row(columns);
      for (int32_t k = 0; k < part.rows; ++k) {
        ReadRow(part, k, first, width, row.data());
        float* const line = to + k / kInputs * kInputs * columns;
        for (int32_t c = 0; c < width; c += kTileColumns) {
          std::copy_n(&row[c], std::min(kTileColumns, width - c), line + (c * kInputs + k % kInputs * kTileColumns));
        }
      }
      ops_.finish_panel(reinterpret_cast<uint8_t*>(to), Lines(part.rows, sizeof(uint16_t)));
    });
    return Status();
  }

  void Compute(const PackedMatrix& weight, const Tile& tile) const override {
    ops_.compute(MakeJob(weight, tile, sizeof(uint16_t), sizeof(float), ops_.panel_columns));
  }

 private:
  static constexpr int32_t kInputs = kLineBytes / 2;  // of a line
  static constexpr int32_t kTileColumns = 16;
};

}  // namespace

std::unique_ptr<LinearKernel> NewFp32Kernel(const LinearOps& ops) { return std::make_unique<Fp32PartsKernel>(ops); }

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

const Kernels* KernelsFor(Isa level, Precision precision, int32_t head_size) {
#ifdef FTBERT_WITH_AMX
  if (level >= Isa::kAmx && precision != Precision::kFloat32 && AmxAttends(head_size)) {
    static const Kernels tiles = [] {
      Kernels table = *KernelsAvx512();
      UseAmxAttention(&table);
      return table;
    }();
    return &tiles;
  }
#endif
  (void)precision, (void)head_size;
  return KernelsFor(level);
}

const LinearKernel* Fp32Kernel(Isa level) {
#ifdef FTBERT_WITH_AVX512
  static const Fp32Pairs avx512_pairs(Isa::kAvx512, KernelsAvx512());
  static const Fp32Linear avx512(Isa::kAvx512, KernelsAvx512(), &avx512_pairs);
  if (level >= Isa::kAvx512) return &avx512;
#endif
#ifdef FTBERT_WITH_AVX2
  static const Fp32Pairs avx2_pairs(Isa::kAvx2, KernelsAvx2());
  static const Fp32Linear avx2(Isa::kAvx2, KernelsAvx2(), &avx2_pairs);
  if (level >= Isa::kAvx2) return &avx2;
#endif
  static const Fp32Pairs portable_pairs(Isa::kPortable, KernelsPortable());
  static const Fp32Linear portable(Isa::kPortable, KernelsPortable(), &portable_pairs);
  (void)level;
  return &portable;
}

const LinearKernel* Fp32EncoderKernel(Isa level) {
#ifdef FTBERT_WITH_AMX
  static const Fp32PartsKernel amx(kFp32Amx);
  if (level >= Isa::kAmx) return &amx;
#endif
  return Fp32Kernel(level);
}

}  // namespace cpu
}  // namespace ftbert
