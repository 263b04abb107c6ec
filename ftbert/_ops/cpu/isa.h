// Instruction sets of the CPU backend: what this machine has, and what FTBERT_CPU_ISA lowers it to.
#ifndef FTBERT_CPU_ISA_H_
#define FTBERT_CPU_ISA_H_

#include <string>

#include "ftbert/engine.h"

namespace ftbert {
namespace cpu {

// A ladder: each level has everything of the levels before it.
enum class Isa : int {
  kPortable = 0,    // what the compiler's baseline has
  kAvx2 = 1,        // AVX2, FMA, F16C
  kAvx512 = 2,      // AVX-512 F, BW, DQ, VL, CD
  kAvx512Vnni = 3,  // + VNNI
  kAvx512Bf16 = 4,  // + BF16
  kAmx = 5,         // + AMX-TILE, AMX-BF16, AMX-INT8, and Linux let this process use the tiles
};

constexpr int kNumIsas = 6;

// "portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx".
const char* IsaName(Isa isa);

// The highest level that both the machine and the build have. Asked once; asks Linux for the AMX tiles.
Isa MachineIsa();

// MachineIsa, or what the environment variable FTBERT_CPU_ISA names. Unknown or unavailable: an error that lists the
// choices. Read at each load.
Status ChooseIsa(Isa* isa);

// "portable, avx2, avx512": the levels up to MachineIsa.
std::string AvailableIsas();

}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_ISA_H_
