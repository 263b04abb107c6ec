// The kernels for: AVX-512 F, BW, DQ, VL.
#include "cpu/vec_avx512.h"

namespace ftbert {
namespace cpu {
namespace {

// 8 x 48: 24 accumulators, 3 weights, 1 input of 32 registers; 11 loads for 24 multiply-adds.
constexpr int kRowTile = 8;
constexpr int kPanelVecs = 3;
constexpr int kQueryTile = 12;  // by 32
constexpr int kInputBlock = 768;
constexpr int kPairInputs = 768;
constexpr int kPrefetchAhead = 384;

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#include "cpu/kernels_table.h"

namespace ftbert {
namespace cpu {

const Kernels* KernelsAvx512() { return &kKernels; }

}  // namespace cpu
}  // namespace ftbert
