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
constexpr int kPairInputs = 1536;
constexpr int kPrefetchAhead = 256;

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#include "cpu/kernels_table.h"

namespace ftbert {
namespace cpu {

const Kernels* KernelsAvx2() { return &kKernels; }

}  // namespace cpu
}  // namespace ftbert
