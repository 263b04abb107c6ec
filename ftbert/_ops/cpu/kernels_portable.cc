// The kernels for: Plain C++ in the compiler's vector type; runs everywhere.
#include "cpu/vec_portable.h"

namespace ftbert {
namespace cpu {
namespace {

constexpr int kRowTile = 4;
constexpr int kPanelVecs = 1;
constexpr int kQueryTile = 4;
constexpr int kInputBlock = 256;
constexpr int kPairInputs = 256;
constexpr int kPrefetchAhead = 0;

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#include "cpu/kernels_table.h"

namespace ftbert {
namespace cpu {

const Kernels* KernelsPortable() { return &kKernels; }

}  // namespace cpu
}  // namespace ftbert
