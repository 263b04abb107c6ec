// The function table of one instruction set; included last by kernels_*.cc, after the vec_*.h and the constants.
#ifndef FTBERT_CPU_KERNELS_TABLE_H_
#define FTBERT_CPU_KERNELS_TABLE_H_

#include "cpu/attend_states.h"
#include "cpu/attention.h"
#include "cpu/gemm_fp32.h"
#include "cpu/gemm_strassen.h"
#include "cpu/row_kernels.h"

namespace ftbert {
namespace cpu {
namespace {

constexpr Kernels kKernels = {
    kRowTile, kPanel, kLanes, kQueryTile, false, kPairInputs, Gemm, PairFloats, PreparePairs, GemmPairs,
    AttentionScratchFloats, Attention, AttendStatesScratchFloats, AttendStates, Embed, AddNorm, ActivateSpan,
    kPeakChains, Peak,
};

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_KERNELS_TABLE_H_
