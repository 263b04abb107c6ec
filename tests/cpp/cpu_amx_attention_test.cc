// Attention in bf16 by AMX on emulated tiles, as cpu_amx_test.cc does with products. (On a machine with AMX the same
// checks run on the real ones in cpu_bf16_test.)
#include "attention_checks.h"
#include "cpu/isa.h"
#include "cpu/linear.h"

#define FTBERT_EMULATED "cpu/attention_amx.cc"
#include "amx_emulated.h"

#ifdef FTBERT_EMULATES

int main() {
  using namespace ftbert::cpu;  // NOLINT
  if (MachineIsa() < Isa::kAvx512Bf16) SKIP("the emulation needs AVX512-BF16");
  Kernels kernels = *KernelsFor(Isa::kAvx512);
  UseAmxAttention(&kernels);
  ftbert_test::CheckBf16Attention(kernels);
  for (int32_t depth : {32, 64, 96, 128}) CHECK(AmxAttends(depth));
  for (int32_t depth : {8, 48, 80, 160}) CHECK(!AmxAttends(depth));
  return ftbert_test::Finish();
}
#else
int main() { SKIP("the emulation is written for GCC on x86-64"); }
#endif
