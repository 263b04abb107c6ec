// Groups of whole rows, each taken by one thread through all layers, alone.
//
// Layer by layer, every operation of a large batch waits for its slowest thread, and what one thread has written the
// next operation reads on another. In groups, threads meet once, at the end, and a group's activations stay with its
// thread. Neither rows nor the kernels' results depend on how they are taken (linear.h, attention.h).
#ifndef FTBERT_CPU_GROUPS_H_
#define FTBERT_CPU_GROUPS_H_

#include <cstdint>
#include <vector>

#include "core/backend.h"

namespace ftbert {
namespace cpu {

struct GroupPlan {
  std::vector<int32_t> rows;    // every row of the batch once, group after group
  std::vector<int32_t> splits;  // group g is rows [splits[g], splits[g + 1]); most work first
  Shape largest;                // the most that any of them needs

  bool empty() const { return splits.empty(); }  // the batch is not taken in groups
  int count() const { return empty() ? 0 : static_cast<int>(splits.size()) - 1; }
};

// The groups for so many threads; empty where there is one thread, where the tokens are too few, or where whole rows
// cannot be shared out evenly. May throw std::bad_alloc.
void PlanGroups(const Batch& batch, const Shape& shape, const Config& config, int threads, GroupPlan* plan);

// A group's rows as a batch of their own.
class GroupBatch {
 public:
  // Makes room for any group of this plan: Take then allocates nothing. May throw std::bad_alloc.
  void Reserve(const GroupPlan& plan);
  void Take(const Batch& batch, const GroupPlan& plan, int group);

  const Batch& view() const { return view_; }    // until the next Take
  const Shape& shape() const { return shape_; }

 private:
  std::vector<int32_t> token_ids_, segment_ids_, row_splits_;
  Batch view_;
  Shape shape_;
};

}  // namespace cpu
}  // namespace ftbert

#endif  // FTBERT_CPU_GROUPS_H_
