// Attention in bf16 with AMX, in the place of a kernel table's own.
#ifndef FTBERT_CPU_ATTENTION_AMX_H_
#define FTBERT_CPU_ATTENTION_AMX_H_

#include "cpu/kernels.h"

namespace ftbert {
namespace cpu {

void UseAmxAttention(Kernels* table);

// Whether it has this head size.
inline bool AmxAttends(int32_t head_size) { return head_size % 32 == 0 && head_size <= 128; }

}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_ATTENTION_AMX_H_
