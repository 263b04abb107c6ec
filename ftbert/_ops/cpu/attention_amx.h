// Attention in bf16 with AMX: a form that takes the place of a kernel table's own.
#ifndef FTBERT_CPU_ATTENTION_AMX_H_
#define FTBERT_CPU_ATTENTION_AMX_H_

#include "cpu/kernels.h"

namespace ftbert {
namespace cpu {

// The fields of Kernels by the same names.
struct AttentionForm {
  int32_t query_tile;
  size_t (*attention_scratch_floats)(int32_t keys, int32_t head_size);
  void (*attention)(const AttentionTask& task);
};

extern const AttentionForm kAmxAttention;

// Whether it has this head size.
inline bool AmxAttends(int32_t head_size) { return head_size % 32 == 0 && head_size <= 128; }

}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_ATTENTION_AMX_H_
