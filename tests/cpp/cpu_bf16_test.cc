// bf16 products of every instruction set this machine has, against plain loops.
#include "attention_checks.h"
#include "bf16_checks.h"
#include "cpu/linear.h"

using namespace ftbert_test;  // NOLINT
using ftbert::cpu::Isa;

int main() {
  std::vector<Form> forms;
  forms.push_back({"portable", NewBf16Kernel(ftbert::cpu::kBf16Portable)});
#if defined(__x86_64__)
  const Isa machine = ftbert::cpu::MachineIsa();
  if (machine >= Isa::kAvx2) forms.push_back({"avx2", NewBf16Kernel(ftbert::cpu::kBf16Avx2)});
  if (machine >= Isa::kAvx512) forms.push_back({"avx512", NewBf16Kernel(ftbert::cpu::kBf16Avx512)});
  if (machine >= Isa::kAvx512Bf16) forms.push_back({"avx512 bf16", NewBf16Kernel(ftbert::cpu::kBf16Avx512Bf16)});
  if (machine >= Isa::kAmx) forms.push_back({"amx", NewBf16Kernel(ftbert::cpu::kBf16Amx)});
#endif
  for (const Form& form : forms) {
    CheckBf16(form);
    if (form.kernel->isa() == Isa::kAmx) CheckRoundedRows(form);
    std::printf("%s checked\n", form.name);
  }
#if defined(__x86_64__)
  if (machine >= Isa::kAmx) {
    CheckBf16Attention(*ftbert::cpu::KernelsFor(Isa::kAmx, ftbert::Precision::kBFloat16, 64));
    std::printf("amx attention checked\n");
  }
#endif
  return Finish();
}
