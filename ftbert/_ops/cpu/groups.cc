#include "cpu/groups.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <utility>

namespace ftbert {
namespace cpu {
namespace {

// Tokens of a group, about: fewer read the weights, and the last layer's for their few first tokens, more often (128:
// up to 8% slower; 400: 2% in bf16; 512 to 2,048 alike); more leave fewer groups to even out threads of unequal speed.
// With many threads scratch counts: 12 to 18 KB for each token in flight, for BERT-base.
constexpr int64_t kGroupTokens = 512, kFewestGroupTokens = 256, kTokensInFlight = 6400;
// Fewer tokens for each thread go layer by layer.
constexpr int64_t kLeastTokens = 128;
// From so many groups on, the last round's are halves: what a slow thread is late by is half a group then. Fewer groups
// would not move from one thread to another, and halves cost 2 to 5% more for their tokens.
constexpr int64_t kHalvedGroups = 8;
// The last thread to be done may take so much longer than the average, in hundredths, before another number of groups
// is tried, and before groups are given up.
constexpr int64_t kEven = 104, kUneven = 110;

// The least loaded of several, which is given more: groups of rows, then threads of groups. The last `halves` of them
// get half as much as the others.
class Lightest {
 public:
  explicit Lightest(int64_t count, int64_t halves = 0) : first_half_(count - halves) {
    for (int64_t i = 0; i < count; ++i) queue_.emplace(0, static_cast<int32_t>(i));
  }
  // Returns who got it.
  int32_t Give(int64_t work) {
    const Entry entry = queue_.top();
    queue_.pop();
    const int64_t load = entry.first + (entry.second < first_half_ ? work : 2 * work);
    queue_.emplace(load, entry.second);
    most_ = std::max(most_, load);
    return entry.second;
  }
  int64_t most() const { return most_; }

 private:
  using Entry = std::pair<int64_t, int32_t>;
  std::priority_queue<Entry, std::vector<Entry>, std::greater<Entry>> queue_;
  const int64_t first_half_;
  int64_t most_ = 0;
};

struct Division {
  int64_t groups = 0;
  int64_t halves = 0;  // so many of them, half as large as the others
};

int32_t Length(const Batch& batch, int32_t row) { return batch.row_splits[row + 1] - batch.row_splits[row]; }

}  // namespace

void PlanGroups(const Batch& batch, const Shape& shape, const Config& config, int threads, GroupPlan* plan) {
  plan->rows.clear();
  plan->splits.clear();
  plan->largest = Shape();
  if (threads == 1 || shape.tokens < threads * kLeastTokens || shape.rows < threads) return;

  // A token's work, but for a constant: the layer's products, and attention to each token of its row.
  const int64_t products = 2 * static_cast<int64_t>(config.hidden_size) + config.intermediate_size;
  const auto work = [&](int32_t row) { return Length(batch, row) * (products + Length(batch, row)); };
  std::vector<int32_t> order(shape.rows);  // the longest row first
  int64_t total = 0;
  for (int32_t row = 0; row < shape.rows; ++row) {
    order[row] = row;
    total += work(row);
  }
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return Length(batch, a) != Length(batch, b) ? Length(batch, a) > Length(batch, b) : a < b;
  });

  // As many groups for each thread as for the next; each row to the group with the least work so far.
  const int64_t in_flight =
      threads * std::max(kFewestGroupTokens, std::min(kGroupTokens, kTokensInFlight / threads));
  const int64_t rounds = std::clamp<int64_t>((shape.tokens + in_flight / 2) / in_flight, 1, shape.rows / threads);
  std::vector<int32_t> group_of(shape.rows), by_work;
  std::vector<int64_t> load;
  const auto share_out = [&](Division division) {
    Lightest lightest(division.groups, division.halves);
    load.assign(division.groups, 0);
    for (const int32_t row : order) {
      group_of[row] = lightest.Give(work(row));
      load[group_of[row]] += work(row);
    }
    by_work.resize(division.groups);
    for (int32_t group = 0; group < division.groups; ++group) by_work[group] = group;
    std::sort(by_work.begin(), by_work.end(),
              [&](int32_t a, int32_t b) { return load[a] != load[b] ? load[a] > load[b] : a < b; });
    Lightest free(threads);
    for (const int32_t group : by_work) free.Give(load[group]);
    return free.most() * threads * 100 / total;  // of the average thread
  };
  Division best, last;
  int64_t best_uneven = kUneven + 1;
  for (int64_t groups = rounds * threads; groups < (rounds + 3) * threads; groups += threads) {
    for (const bool halved : {true, false}) {
      if (best_uneven <= kEven || (halved && groups < kHalvedGroups)) continue;
      const Division division{halved ? groups + threads : groups, halved ? 2 * threads : 0};
      const int64_t least = halved ? groups * 2 : groups;  // of which none has fewer tokens than the least
      if (division.groups > shape.rows || shape.tokens < least * kLeastTokens) continue;
      last = division;
      const int64_t uneven = share_out(division);
      if (uneven < best_uneven) best = division, best_uneven = uneven;
    }
  }
  if (best.groups == 0) return;
  if (best.groups != last.groups || best.halves != last.halves) share_out(best);

  std::vector<int32_t> place(best.groups);
  for (int32_t i = 0; i < best.groups; ++i) place[by_work[i]] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return place[group_of[a]] < place[group_of[b]]; });
  plan->rows = order;
  plan->largest.all_tokens = shape.all_tokens;
  for (int32_t i = 0; i < shape.rows;) {
    const int32_t group = group_of[order[i]];
    plan->splits.push_back(i);
    int32_t tokens = 0;
    for (; i < shape.rows && group_of[order[i]] == group; ++i) {
      tokens += Length(batch, order[i]);
      plan->largest.longest_row = std::max(plan->largest.longest_row, Length(batch, order[i]));
    }
    plan->largest.tokens = std::max(plan->largest.tokens, tokens);
    plan->largest.rows = std::max(plan->largest.rows, i - plan->splits.back());
  }
  plan->splits.push_back(shape.rows);
}

void GroupBatch::Reserve(const GroupPlan& plan) {
  token_ids_.reserve(plan.largest.tokens);
  segment_ids_.reserve(plan.largest.tokens);
  row_splits_.reserve(plan.largest.rows + 1);
}

void GroupBatch::Take(const Batch& batch, const GroupPlan& plan, int group) {
  token_ids_.clear();
  segment_ids_.clear();
  row_splits_.assign(1, 0);
  shape_ = Shape();
  shape_.all_tokens = plan.largest.all_tokens;
  for (int32_t i = plan.splits[group]; i < plan.splits[group + 1]; ++i) {
    const int32_t begin = batch.row_splits[plan.rows[i]], end = batch.row_splits[plan.rows[i] + 1];
    token_ids_.insert(token_ids_.end(), batch.token_ids + begin, batch.token_ids + end);
    if (batch.segment_ids != nullptr) {
      segment_ids_.insert(segment_ids_.end(), batch.segment_ids + begin, batch.segment_ids + end);
    }
    row_splits_.push_back(static_cast<int32_t>(token_ids_.size()));
    shape_.longest_row = std::max(shape_.longest_row, end - begin);
  }
  shape_.rows = plan.splits[group + 1] - plan.splits[group];
  shape_.tokens = row_splits_.back();
  view_.token_ids = token_ids_.data();
  view_.segment_ids = batch.segment_ids != nullptr ? segment_ids_.data() : nullptr;
  view_.row_splits = row_splits_.data();
  view_.num_rows = shape_.rows;
}

}  // namespace cpu
}  // namespace ftbert
