// The AMX kernels on emulated tiles, so that their indexing is checked on machines without AMX too: the file itself is
// compiled into this test with plain loops for the tile instructions, and its definitions take the place of the
// library's. (On a machine with AMX the same checks run on the real ones in cpu_int8_test and cpu_bf16_test.)
#include "bf16_checks.h"
#include "int8_checks.h"

#define FTBERT_EMULATED "cpu/linear_amx.cc"
#include "amx_emulated.h"

#ifdef FTBERT_EMULATES

int main() {
  using namespace ftbert_test;  // NOLINT
  if (ftbert::cpu::MachineIsa() < ftbert::cpu::Isa::kAvx512Bf16) SKIP("the emulation needs AVX512-BF16");
  const Form int8{"amx int8, emulated", ftbert::cpu::NewInt8Kernel(ftbert::cpu::kInt8Amx)};
  CheckInt8Sizes(int8);
  CheckInt8Extremes(int8);
  const Form bf16{"amx bf16, emulated", ftbert::cpu::NewBf16Kernel(ftbert::cpu::kBf16Amx)};
  CheckBf16(bf16);
  CheckRoundedRows(int8);
  CheckRoundedRows(bf16);
  // The same bits as AVX-512 VNNI: equal integer sums, the same epilogue.
  const Form vnni{"avx512 vnni", ftbert::cpu::NewInt8Kernel(ftbert::cpu::kInt8Avx512Vnni)};
  const Problem p(769, 130, 45);
  const auto a = Multiply(*int8.kernel, p.Pack(*int8.kernel), p.x.data(), p.rows, Epilogue::kBiasGeluErf);
  const auto b = Multiply(*vnni.kernel, p.Pack(*vnni.kernel), p.x.data(), p.rows, Epilogue::kBiasGeluErf);
  CHECK(SameBits(a.data(), b.data(), a.size()));
  return Finish();
}
#else
int main() { SKIP("the emulation is written for GCC on x86-64"); }
#endif
