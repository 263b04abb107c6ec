// What attention kernels fetch while they work on one head: the next one's share of queries, keys and values.
#ifndef FTBERT_CPU_ATTENTION_FETCH_H_
#define FTBERT_CPU_ATTENTION_FETCH_H_

#include "cpu/kernels.h"

namespace ftbert {
namespace cpu {
namespace {

// What lies one head behind query `query` and behind its share of the keys and values, into the second-level cache.
// Heads are short pieces of long rows, which the processor does not foresee. (Always inlined, like the prefetches: GCC
// drops calls of a function that does nothing else.)
inline __attribute__((always_inline)) void FetchNextHead(const AttentionTask& task, int query) {
  const int share = (task.keys + task.queries - 1) / task.queries;
  const int end = (query + 1) * share < task.keys ? (query + 1) * share : task.keys;
  for (int d = task.head_size; d < 2 * task.head_size; d += 16) {
    PrefetchSecondLevel(task.query + query * task.query_stride + d);
    for (int key = query * share; key < end; ++key) {
      PrefetchSecondLevel(task.key + key * task.key_stride + d);
      PrefetchSecondLevel(task.value + key * task.key_stride + d);
    }
  }
}

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_ATTENTION_FETCH_H_
