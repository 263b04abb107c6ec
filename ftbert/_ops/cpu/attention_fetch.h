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
template <typename Element>
inline __attribute__((always_inline)) void FetchNextHead(const AttentionTask& task, int query) {
  const int share = (task.keys + task.queries - 1) / task.queries;
  const int end = (query + 1) * share < task.keys ? (query + 1) * share : task.keys;
  const auto at = [&](const void* rows, int row, int d) {
    return static_cast<const Element*>(rows) + row * task.stride + d;
  };
  for (int d = task.head_size; d < 2 * task.head_size; d += 64 / sizeof(Element)) {
    PrefetchSecondLevel(at(task.query, query, d));
    for (int key = query * share; key < end; ++key) {
      PrefetchSecondLevel(at(task.key, key, d));
      PrefetchSecondLevel(at(task.value, key, d));
    }
  }
}

}  // namespace
}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_ATTENTION_FETCH_H_
