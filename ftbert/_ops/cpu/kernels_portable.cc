// The kernels for: Plain C++ in the compiler's vector type; runs everywhere.
#include "cpu/vec_portable.h"

namespace ftbert {
namespace cpu {
namespace {

constexpr int kRowTile = 4;
constexpr int kPanelVecs = 1;
constexpr int kQueryTile = 4;
constexpr int kInputBlock = 256;
constexpr int kPrefetchAhead = 0;

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#include "cpu/attention.h"
#include "cpu/gemm_fp32.h"
#include "cpu/row_kernels.h"

namespace ftbert {
namespace cpu {

const Kernels* KernelsPortable() {
  static constexpr Kernels kernels = {
      kRowTile, kPanel, kLanes,  kQueryTile,   Gemm,        AttentionScratchFloats,
      Attention, Embed, AddNorm, ActivateSpan, kPeakChains, Peak,
  };
  return &kernels;
}

}  // namespace cpu
}  // namespace ftbert
