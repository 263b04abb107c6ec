// The kernels for: AVX2, FMA and F16C.
#include "cpu/vec_avx2.h"

namespace ftbert {
namespace cpu {
namespace {

// 6 x 16: 12 accumulators, 2 weights, 1 input of 16 registers.
constexpr int kRowTile = 6;
constexpr int kPanelVecs = 2;
constexpr int kQueryTile = 6;
constexpr int kInputBlock = 768;
constexpr int kPrefetchAhead = 256;

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#include "cpu/attention.h"
#include "cpu/gemm_fp32.h"
#include "cpu/row_kernels.h"

namespace ftbert {
namespace cpu {

const Kernels* KernelsAvx2() {
  static constexpr Kernels kernels = {
      kRowTile, kPanel, kLanes,  kQueryTile,   Gemm,        AttentionScratchFloats,
      Attention, Embed, AddNorm, ActivateSpan, kPeakChains, Peak,
  };
  return &kernels;
}

}  // namespace cpu
}  // namespace ftbert
