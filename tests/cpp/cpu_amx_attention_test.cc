// Attention in bf16 by AMX on emulated tiles, as cpu_amx_test.cc does with products. (On a machine with AMX the same
// checks run on the real ones in cpu_bf16_test.)
#include "attention_checks.h"
#include "cpu/isa.h"
#include "cpu/linear.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FTBERT_EMULATE_AMX
// GCC's own intrinsics start vectors from themselves and are warned about.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vnni,avx512bf16")
#include "cpu/attention_amx.cc"
#pragma GCC pop_options

int main() {
  using namespace ftbert::cpu;  // NOLINT
  if (MachineIsa() < Isa::kAvx512Bf16) SKIP("the emulation needs AVX512-BF16");
  Kernels kernels = *KernelsFor(Isa::kAvx512);
  kernels.attention_scratch_floats = kAmxAttention.attention_scratch_floats;
  kernels.attention = kAmxAttention.attention;
  ftbert_test::CheckBf16Attention(kernels);
  for (int32_t depth : {32, 64, 96, 128}) CHECK(AmxAttends(depth));
  for (int32_t depth : {8, 48, 80, 160}) CHECK(!AmxAttends(depth));
  return ftbert_test::Finish();
}
#else
int main() { SKIP("the emulation is written for GCC on x86-64"); }
#endif
