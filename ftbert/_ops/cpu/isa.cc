#include "cpu/isa.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ftbert {
namespace cpu {
namespace {

const char* const kNames[kNumIsas] = {"portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx"};

#if defined(__x86_64__)

uint64_t ExtendedControl() {
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

constexpr bool Bit(uint32_t word, int bit) { return ((word >> bit) & 1u) != 0; }

// Linux gives the 8 KiB of tile registers to a process only when asked (arch_prctl ARCH_REQ_XCOMP_PERM, feature 18).
[[maybe_unused]] bool RequestTiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023;
  constexpr int kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// Instruction bits from CPUID, and from XCR0 whether the system saves the registers: 0x6 AVX, 0xe6 AVX-512, 0x60000
// tiles.
Isa Detect() {
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return Isa::kPortable;
  const bool fma = Bit(c, 12), xsave = Bit(c, 27), avx = Bit(c, 28), f16c = Bit(c, 29);
  if (!(fma && xsave && avx && f16c)) return Isa::kPortable;
  const uint64_t saved = ExtendedControl();
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return Isa::kPortable;
  const uint32_t b7 = b, c7 = c, d7 = d;
  uint32_t a71 = 0;
  if (a >= 1 && __get_cpuid_count(7, 1, &a71, &b, &c, &d) == 0) a71 = 0;

  Isa isa = Isa::kPortable;
  (void)c7, (void)d7, (void)a71, (void)b7, (void)saved;
#ifdef FTBERT_WITH_AVX2
  if ((saved & 0x6) != 0x6 || !Bit(b7, 5)) return isa;
  isa = Isa::kAvx2;
#ifdef FTBERT_WITH_AVX512
  if ((saved & 0xe6) != 0xe6 || !Bit(b7, 16) || !Bit(b7, 17) || !Bit(b7, 28) || !Bit(b7, 30) || !Bit(b7, 31))
    return isa;
  isa = Isa::kAvx512;
#ifdef FTBERT_WITH_AVX512_VNNI
  if (!Bit(c7, 11)) return isa;
  isa = Isa::kAvx512Vnni;
#ifdef FTBERT_WITH_AVX512_BF16
  if (!Bit(a71, 5)) return isa;
  isa = Isa::kAvx512Bf16;
#ifdef FTBERT_WITH_AMX
#ifndef FTBERT_EMULATE_AMX  // plain loops (amx_tiles.h) need neither the instructions nor a permission
  if ((saved & 0x60000) != 0x60000 || !Bit(d7, 22) || !Bit(d7, 24) || !Bit(d7, 25) || !RequestTiles()) return isa;
#endif
  isa = Isa::kAmx;
#endif
#endif
#endif
#endif
#endif
  return isa;
}

#else

Isa Detect() { return Isa::kPortable; }

#endif

}  // namespace

const char* IsaName(Isa isa) { return kNames[static_cast<int>(isa)]; }

Isa MachineIsa() {
  static const Isa isa = Detect();
  return isa;
}

std::string AvailableIsas() {
  std::string names;
  for (int i = 0; i <= static_cast<int>(MachineIsa()); ++i) {
    if (i > 0) names += ", ";
    names += kNames[i];
  }
  return names;
}

Status ChooseIsa(Isa* isa) {
  const char* wanted = std::getenv("FTBERT_CPU_ISA");
  if (wanted == nullptr || *wanted == '\0') {
    *isa = MachineIsa();
    return Status();
  }
  for (int i = 0; i < kNumIsas; ++i) {
    if (std::strcmp(wanted, kNames[i]) != 0) continue;
    if (i > static_cast<int>(MachineIsa())) {
      return Status(Code::kUnavailable, std::string("FTBERT_CPU_ISA=") + wanted +
                                            " is not available here: this machine and "
                                            "build have " +
                                            AvailableIsas() +
                                            ". Set one of them, or unset FTBERT_CPU_ISA for the best.");
    }
    *isa = static_cast<Isa>(i);
    return Status();
  }
  return Status(Code::kInvalidArgument, std::string("FTBERT_CPU_ISA: expected one of ") + AvailableIsas() + ", got \"" +
                wanted + "\". Unset it for the best of them.");
}

}  // namespace cpu
}  // namespace ftbert
