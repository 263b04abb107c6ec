// fp32 products by AMX on emulated tiles, as cpu_amx_test.cc has those of bf16 and int8.
#include "fp32_parts_checks.h"

#define FTBERT_EMULATED "cpu/linear_fp32_amx.cc"
#include "amx_emulated.h"

#ifdef FTBERT_EMULATES

int main() {
  using namespace ftbert_test;  // NOLINT
  if (ftbert::cpu::MachineIsa() < ftbert::cpu::Isa::kAvx512Bf16) SKIP("the emulation needs AVX512-BF16");
  CheckWeightParts(ftbert::cpu::kFp32Amx);
  CheckFp32Parts(Form{"amx fp32, emulated", ftbert::cpu::NewFp32Kernel(ftbert::cpu::kFp32Amx)});
  return Finish();
}
#else
int main() { SKIP("the emulation is written for GCC on x86-64"); }
#endif
