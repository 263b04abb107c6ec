// Which batches share a recorded graph, and which graph is let go: no card is needed for it.
#include <algorithm>
#include <cmath>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "check.h"
#include "cuda/buckets.h"
#include "cuda/tiles.h"

namespace {

using namespace ftbert::cuda;

void TestBuckets() {
  std::set<int> tokens;
  for (int t = 1; t <= kGraphTokens; ++t) {
    const int bucket = TokenBucket(t);
    CHECK(bucket >= t);
    CHECK_EQ(TokenBucket(bucket), bucket);
    CHECK(LeastTokens(bucket) <= t);
    CHECK(LeastTokens(bucket) == 1 || TokenBucket(LeastTokens(bucket) - 1) < bucket);
    CHECK(bucket - t < 32 || bucket - t <= t / 4);  // waste: at most a tile, or a quarter
    CHECK(t > 256 || bucket % 32 == 0);
    CHECK(t == 1 || bucket >= TokenBucket(t - 1));
    tokens.insert(bucket);
    if (t % 37 != 0 && t > 100) continue;
    std::set<int> rows;
    for (int b = 1; b <= t; ++b) {
      const int most = RowBucket(b, bucket);
      CHECK(most >= b);
      CHECK(most <= bucket);
      CHECK(b == 1 || most >= RowBucket(b - 1, bucket));
      rows.insert(most);
    }
    CHECK(rows.size() <= 4);
    CHECK_EQ(RowBucket(bucket, bucket), bucket);
  }
  CHECK_EQ(tokens.size(), size_t{32});
  CHECK_EQ(RowBucket(1, 128), 1);
  CHECK_EQ(RowBucket(1, 576), 32);
  CHECK_EQ(RowBucket(8, 1024), 32);
  CHECK_EQ(RowBucket(33, 1024), 128);
  CHECK_EQ(RowBucket(129, 1024), 1024);
  CHECK_EQ(RowBucket(32, 4096), 128);
}

void TestRoom() {
  std::set<int> rooms;
  for (int t = 1; t <= 1 << 17; t += t < 5000 ? 1 : 97) {
    const int room = TokenRoom(t);
    CHECK(room >= t);
    CHECK(room >= TokenBucket(std::min(t, kGraphTokens)));
    CHECK(t <= kGraphTokens || room <= t + t / 4 + 1);
    CHECK_EQ(TokenRoom(room), room);
    CHECK(RowRoom(room) <= room);
    if (t <= kGraphTokens) CHECK(RowRoom(room) >= RowBucket(std::max(1, t / 8), TokenBucket(t)));
    if (t <= kShortTokens) CHECK(RowRoom(room) >= RowBucket(t, TokenBucket(t)));
    rooms.insert(room);
  }
  CHECK_EQ(rooms.size(), size_t{5 + 4 * 5});
  CHECK_EQ(TokenRoom(32768), 32768);
}

struct Entry {
  GraphKey key;
  int made = 0;
};

GraphKey KeyOf(int rows, int tokens, bool tiled = false) {
  GraphKey key;
  key.tokens = TokenBucket(tokens);
  key.rows = RowBucket(rows, key.tokens);
  key.tiled = tiled;
  return key;
}

// Batches as the soak's and a server's: whatever comes, graphs are made at the beginning, never later.
void TestRandomTraffic() {
  std::mt19937 random(5);
  std::lognormal_distribution<double> lengths(std::log(40.), 0.6);
  for (const int most_rows : {4, 32, 128}) {
    RecentList<Entry> graphs(kGraphs);
    int made = 0, late = 0, dropped = 0, tiled_keys = 0;
    for (int i = 0; i < 20000; ++i) {
      const int rows = 1 + static_cast<int>(random() % most_rows);
      int tokens = 0;
      const bool some_long = random() % 2 == 0;
      std::vector<int32_t> splits{0};
      for (int b = 0; b < rows; ++b) {
        const bool any = some_long && random() % 8 == 0;
        const int length = any ? 1 + static_cast<int>(random() % 512) : static_cast<int>(lengths(random));
        tokens += std::max(3, std::min(some_long ? 512 : 128, length));
        splits.push_back(tokens);
      }
      if (tokens > kGraphTokens) continue;
      const int bucket = TokenBucket(tokens);
      RowTiles tiles;
      const bool tiled = TilesPay(bucket, 12, 132) && TileRows(splits.data(), rows, TileSlots(bucket), &tiles);
      const GraphKey key = KeyOf(rows, tokens, tiled);
      tiled_keys += tiled;
      if (graphs.Find(key) != nullptr) continue;
      graphs.Add(key, [&](Entry*) { ++dropped; });
      ++made;
      late += i >= 10000;
    }
    CHECK(made <= 64);
    CHECK(late <= 1);
    CHECK(most_rows == 4 || tiled_keys > 1000);
    CHECK_EQ(dropped, 0);
    CHECK_EQ(graphs.size(), static_cast<size_t>(made));
  }
}

void TestEviction() {
  RecentList<Entry> list(3);
  std::vector<int> dropped;
  const auto drop = [&](Entry* e) { dropped.push_back(e->made); };
  const auto key = [](int tokens) {
    GraphKey k;
    k.tokens = tokens;
    return k;
  };
  for (int i = 1; i <= 3; ++i) list.Add(key(i), drop)->made = i;
  CHECK(list.Find(key(1)) != nullptr);  // now 2 is the one not used for longest
  CHECK_EQ(list.Find(key(1))->made, 1);
  list.Add(key(4), drop)->made = 4;
  CHECK_EQ(dropped.size(), size_t{1});
  CHECK_EQ(dropped[0], 2);
  CHECK(list.Find(key(2)) == nullptr);
  GraphKey other = key(1);
  other.all_tokens = true;
  CHECK(list.Find(other) == nullptr);
  other = key(1);
  other.rows = 1;
  CHECK(list.Find(other) == nullptr);
  other = key(1);
  other.tiled = true;
  CHECK(list.Find(other) == nullptr);
  CHECK_EQ(list.size(), size_t{3});
  list.Clear(drop);
  CHECK_EQ(dropped.size(), size_t{4});
  CHECK_EQ(list.size(), size_t{0});
}

// Every row whole in one tile, tiles one after another and none too long, from random lengths; how full they are.
void TestTiles() {
  std::mt19937 random(9);
  std::lognormal_distribution<double> lengths(std::log(40.), 0.6);
  RowTiles out;
  for (int round = 0; round < 400; ++round) {
    const int rows = 1 + static_cast<int>(random() % (round % 4 == 0 ? 700 : 40));
    std::vector<int32_t> splits{0};
    for (int b = 0; b < rows; ++b) {
      const int usual = std::max(1, std::min(128, static_cast<int>(lengths(random))));
      splits.push_back(splits.back() + (round % 2 == 0 ? usual : static_cast<int>(random() % 129)));
    }
    CHECK(TileRows(splits.data(), rows, rows, &out));
    int at = 0;
    for (const auto& tile : out.tiles) {
      CHECK_EQ(tile.first, at);
      CHECK(tile.second > at && tile.second - at <= kRowsTile);
      at = tile.second;
    }
    CHECK_EQ(at, splits.back());
    std::vector<int> owner(at, -1);
    bool good = out.begins.size() == static_cast<size_t>(rows);
    for (int b = 0; b < rows && good; ++b) {
      const int begin = out.begins[b], end = begin + splits[b + 1] - splits[b];
      bool inside = begin == end;
      for (const auto& tile : out.tiles) inside = inside || (tile.first <= begin && end <= tile.second);
      good = good && inside && end <= at;
      for (int t = begin; t < end && good; ++t) {
        good = owner[t] < 0;
        owner[t] = b;
      }
    }
    CHECK(good);
    const int used = static_cast<int>(out.tiles.size());
    if (rows >= 300 && round % 2 == 0) CHECK(used * kRowsTile <= at * 1.03);
    if (used == 0) continue;
    CHECK(TileRows(splits.data(), rows, used, &out));
    CHECK(!TileRows(splits.data(), rows, used - 1, &out));
  }
  std::vector<int32_t> even{0};
  for (int b = 0; b < 20; ++b) even.push_back(even.back() + 32);
  CHECK(TileRows(even.data(), 20, TileSlots(640), &out));
  CHECK_EQ(out.tiles.size(), size_t{5});
  for (int b = 0; b < 20; ++b) CHECK_EQ(out.begins[b], 32 * b);
  const int32_t too_long[] = {0, 5, 134};
  CHECK(!TileRows(too_long, 2, 9, &out));
  // On 132 multiprocessors: from five tiles of twelve heads on, and not where a second round is short.
  CHECK(!TilesPay(512, 12, 132) && TilesPay(640, 12, 132) && TilesPay(1408, 12, 132));
  CHECK(!TilesPay(1536, 12, 132) && TilesPay(2048, 12, 132) && TilesPay(32768, 12, 132));
  CHECK_EQ(TileSlots(1), 1);
  CHECK_EQ(TileSlots(1024), 10);
}

// What is warmed up is what traffic asks for, each size once, and it fits.
void TestWarmSizes() {
  for (const int longest : {33, 128, 512}) {
    for (const int most : {1, 100, 1024, 4096, 100000}) {
      std::set<std::pair<int, int>> keys;
      std::set<int> tokens;
      for (const auto& size : WarmSizes(most, longest)) {
        CHECK(size.second >= 1 && size.second <= size.first);
        CHECK((size.first + size.second - 1) / size.second <= longest);
        if (size.first > kGraphTokens) {  // last, for its room alone
          CHECK_EQ(size.first, most);
          CHECK_EQ(size.first, WarmSizes(most, longest).back().first);
          continue;
        }
        const GraphKey key = KeyOf(size.second, size.first);
        CHECK_EQ(key.tokens, size.first);
        CHECK(keys.insert(std::make_pair(key.tokens, key.rows)).second);
        tokens.insert(size.first);
      }
      CHECK(keys.size() <= kGraphs);
      for (int t = 1; t <= std::min(most, kGraphTokens); ++t) CHECK_EQ(tokens.count(TokenBucket(t)), size_t{1});
    }
  }
  CHECK_EQ(WarmSizes(4096, 512).size(), size_t{44});
  CHECK_EQ(WarmSizes(1, 512).size(), size_t{2});
}

}  // namespace

int main() {
  TestBuckets();
  TestRoom();
  TestRandomTraffic();
  TestEviction();
  TestTiles();
  TestWarmSizes();
  return ftbert_test::Finish();
}
