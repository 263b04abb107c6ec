// Which sizes share a recorded graph, and how many graphs a workspace keeps. No CUDA here: tests/cpp/graphs_test.cc
// runs it without a card.
#ifndef FTBERT_CUDA_BUCKETS_H_
#define FTBERT_CUDA_BUCKETS_H_

#include <algorithm>
#include <cstddef>
#include <list>
#include <utility>
#include <vector>

namespace ftbert {
namespace cuda {

constexpr int kGraphTokens = 4096;  // beyond, launching costs nothing next to the work
// Of a workspace. Batches that want logits meet 32 sizes of tokens; rows add one more for single short texts and, where
// texts are very short, a second (see RowBucket), and rows in tiles another: traffic of one kind needs fewer than
// these, and nothing is evicted.
constexpr size_t kGraphs = 96;

// Tokens in steps of at most an eighth from 256 on: 32 sizes up to kGraphTokens.
inline int BucketStep(int tokens) { return tokens <= 256 ? 32 : (tokens <= 512 ? 64 : (tokens <= 2048 ? 128 : 256)); }
inline int TokenBucket(int tokens) {
  const int step = BucketStep(tokens);
  return (tokens + step - 1) / step * step;
}
// The fewest tokens that share a bucket.
inline int LeastTokens(int bucket) { return bucket - BucketStep(bucket) + 1; }

// Rows as a function of the tokens, so that random batches meet few sizes. What a row that is not there costs: its
// share of the last layer's first tokens and of the pooler. Up to 32 rows share one tile of every product there, and a
// 32nd of the tokens is what texts of 32 tokens on average bring. Shorter texts come under an eighth, and the rest
// under one row a token. A single short text, where every microsecond is felt, keeps a size of its own.
inline int RowBucket(int rows, int tokens) {
  if (rows == 1 && tokens <= 512) return 1;
  for (const int part : {32, 8}) {
    const int most = std::min(tokens, std::max(32, tokens / part));
    if (rows <= most) return most;
  }
  return tokens;
}

// What a workspace makes room for when a batch of so many tokens does not fit. All its graphs go with the old room, so
// it grows in few steps: twofold up to kGraphTokens, then by a quarter of a power of two.
inline int TokenRoom(int tokens) {
  int power = 256;
  while (power < tokens && power < kGraphTokens) power *= 2;
  if (tokens <= power) return power;
  while (power <= tokens / 2) power *= 2;
  return (tokens + power / 4 - 1) / (power / 4) * (power / 4);
}
// Rows to go with it: as many as the graphs of short texts have, up to kShortTokens whatever the texts, and then a 32nd
// of the tokens.
constexpr int kShortTokens = 1024;
inline int RowRoom(int token_room) {
  const int of_graphs = std::max(std::min(token_room, kGraphTokens) / 8, std::min(token_room, kShortTokens));
  return std::max(32, std::max(of_graphs, token_room / 32));
}

// What a graph was recorded for: sizes after rounding up.
struct GraphKey {
  int tokens = 0, rows = 0;
  bool all_tokens = false;
  bool tiled = false;  // rows lie in tiles (tiles.h)
  bool operator==(const GraphKey& o) const {
    return tokens == o.tokens && rows == o.rows && all_tokens == o.all_tokens && tiled == o.tiled;
  }
};

// The sizes to record before traffic comes: (tokens, rows) of a batch for every bucket of tokens up to that of
// `most_tokens`, of usual texts and of a single one. Rows hold at most `longest` tokens. Beyond kGraphTokens nothing is
// recorded; the largest size comes last all the same, so that room for it is there and need not grow later.
inline std::vector<std::pair<int, int>> WarmSizes(int most_tokens, int longest) {
  std::vector<std::pair<int, int>> sizes;
  const int end = TokenBucket(std::max(1, std::min(most_tokens, kGraphTokens)));
  for (int tokens = TokenBucket(1); tokens <= end; tokens = TokenBucket(tokens + 1)) {
    if (tokens <= longest && RowBucket(1, tokens) == 1) sizes.emplace_back(tokens, 1);
    sizes.emplace_back(tokens, std::max(2, (tokens + longest - 1) / longest));
  }
  if (most_tokens > kGraphTokens) sizes.emplace_back(most_tokens, (most_tokens + longest - 1) / longest);
  return sizes;
}

// Entries by key, the one used last in front; at most `most` of them.
template <typename Entry>
class RecentList {
 public:
  explicit RecentList(size_t most) : most_(most) {}

  // The entry of this key, in front from now on; null: none.
  Entry* Find(const GraphKey& key) {
    const auto found = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) { return e.key == key; });
    if (found == entries_.end()) return nullptr;
    entries_.splice(entries_.begin(), entries_, found);
    return &entries_.front();
  }
  // A new entry in front. Where that is one too many, drop(the one not used for longest) comes first.
  template <typename Drop>
  Entry* Add(const GraphKey& key, const Drop& drop) {
    if (entries_.size() == most_) {
      drop(&entries_.back());
      entries_.pop_back();
    }
    entries_.emplace_front();
    entries_.front().key = key;
    return &entries_.front();
  }
  template <typename Drop>
  void Clear(const Drop& drop) {
    for (Entry& entry : entries_) drop(&entry);
    entries_.clear();
  }
  size_t size() const { return entries_.size(); }

 private:
  size_t most_;
  std::list<Entry> entries_;
};

}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_CUDA_BUCKETS_H_
