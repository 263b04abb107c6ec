// int8 products of every instruction set this machine has, against plain loops and against each other.
#include "int8_checks.h"

using namespace ftbert_test;  // NOLINT
using ftbert::cpu::Isa;

namespace {

std::vector<Form> Forms() {
  std::vector<Form> forms;
  forms.push_back({"portable", NewInt8Kernel(ftbert::cpu::kInt8Portable)});
#if defined(__x86_64__)
  const Isa machine = ftbert::cpu::MachineIsa();
  if (machine >= Isa::kAvx2) forms.push_back({"avx2", NewInt8Kernel(ftbert::cpu::kInt8Avx2)});
  if (ftbert::cpu::MachineHasAvx2Vnni()) forms.push_back({"avx2 vnni", NewInt8Kernel(ftbert::cpu::kInt8Avx2Vnni)});
  if (machine >= Isa::kAvx512Vnni) forms.push_back({"avx512 vnni", NewInt8Kernel(ftbert::cpu::kInt8Avx512Vnni)});
  if (machine >= Isa::kAmx) forms.push_back({"amx", NewInt8Kernel(ftbert::cpu::kInt8Amx)});
#endif
  return forms;
}

// The integer sums are the same everywhere, and the vector forms' epilogues are the same operations: the same bits.
// AVX2 alone bounds pairs of weights, so this holds for it where no two weights meet in a pair.
void CheckFormsAgree(const std::vector<Form>& forms) {
  for (const bool paired : {false, true}) {
    Problem p(769, 130, 45);
    for (int32_t k = 1; k < p.inputs && !paired; k += 2) {
      for (int32_t n = 0; n < p.outputs; ++n) p.weights[static_cast<size_t>(k) * p.outputs + n] = 0;
    }
    const Form* first = nullptr;
    std::vector<float> expected;
    for (size_t i = 1; i < forms.size(); ++i) {
      if (paired && std::string(forms[i].name) == "avx2") continue;
      const std::vector<float> got =
          Multiply(*forms[i].kernel, p.Pack(*forms[i].kernel), p.x.data(), p.rows, Epilogue::kBiasGeluTanh);
      if (first == nullptr) {
        first = &forms[i];
        expected = got;
      }
      std::printf("%s and %s: %s\n", first->name, forms[i].name,
                  SameBits(expected.data(), got.data(), got.size()) ? "same bits" : "DIFFERENT");
      CHECK(SameBits(expected.data(), got.data(), got.size()));
    }
  }
}

}  // namespace

int main() {
  const std::vector<Form> forms = Forms();
  for (const Form& form : forms) {
    CheckInt8Sizes(form);
    if (form.kernel->isa() == ftbert::cpu::Isa::kAmx) CheckRoundedRows(form);
    CheckInt8Extremes(form);
    std::printf("%s checked\n", form.name);
  }
  CheckFormsAgree(forms);
  return Finish();
}
