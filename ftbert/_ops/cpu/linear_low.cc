#include "cpu/linear.h"

namespace ftbert {
namespace cpu {

const LinearKernel* Bf16Kernel(Isa) { return nullptr; }
const LinearKernel* Int8Kernel(Isa) { return nullptr; }

}  // namespace cpu
}  // namespace ftbert
