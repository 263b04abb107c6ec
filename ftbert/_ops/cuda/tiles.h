// Which short rows share a tile of attend_rows.cu. No CUDA here: tests/cpp/graphs_test.cc runs it without a card.
#ifndef FTBERT_CUDA_TILES_H_
#define FTBERT_CUDA_TILES_H_

#include <cstdint>
#include <utility>
#include <vector>

namespace ftbert {
namespace cuda {

constexpr int kRowsTile = 128;  // tokens of a tile

struct RowTiles {
  std::vector<int> begins;                 // of each row, its first token's place
  std::vector<std::pair<int, int>> tiles;  // first token and the one behind the last; one after another from token 0 on
};

// Places for tiles of so many tokens, which rows must fill to seven eighths: else what tiles lack costs more than the
// kernels that they spare.
inline int TileSlots(int tokens) { return (tokens + kRowsTile / 8 * 7 - 1) / (kRowsTile / 8 * 7); }

// Whether attending in tiles is faster for so many tokens. A multiprocessor takes a tile of one head at a time: with
// few of them too many have none, and where the last round is short, two kernels share the work better.
inline bool TilesPay(int tokens, int heads, int multiprocessors) {
  const int work = (tokens + kRowsTile - 1) / kRowsTile * heads;
  const int rounds = (work + multiprocessors - 1) / multiprocessors;
  const double share = static_cast<double>(work) / (static_cast<double>(rounds) * multiprocessors);
  return share >= (rounds == 1 ? 0.45 : 0.7);
}

// Puts whole rows together to as few tiles as it finds, each time the longest row that still fits: with texts of usual
// lengths they come out full to a hundredth, and rows of one length stay in their order. False where a row is longer
// than a tile, or there are more than `most` tiles.
inline bool TileRows(const int32_t* splits, int rows, int most, RowTiles* out) {
  int first[kRowsTile + 1];  // a row of each length, which names the next one
  for (int& row : first) row = -1;
  std::vector<int> next(rows);
  uint64_t there[kRowsTile / 64] = {};  // lengths, from 1 on, of which there are rows
  out->begins.assign(rows, 0);
  out->tiles.clear();
  for (int b = rows - 1; b >= 0; --b) {
    const int length = splits[b + 1] - splits[b];
    if (length > kRowsTile) return false;
    if (length < 1) continue;
    next[b] = first[length];
    first[length] = b;
    there[(length - 1) / 64] |= uint64_t{1} << (length - 1) % 64;
  }
  // The longest row of at most `room` tokens; 0: none.
  const auto longest = [&](int room) {
    for (int word = (room - 1) / 64; room > 0 && word >= 0; --word) {
      const int last = word == (room - 1) / 64 ? (room - 1) % 64 : 63;
      const uint64_t bits = there[word] << (63 - last);
      if (bits != 0) return word * 64 + last + 1 - __builtin_clzll(bits);
    }
    return 0;
  };
  int at = 0;
  for (int length = longest(kRowsTile); length > 0; length = longest(kRowsTile)) {
    const int begin = at;
    for (; length > 0; length = longest(begin + kRowsTile - at)) {
      const int row = first[length];
      first[length] = next[row];
      if (first[length] < 0) there[(length - 1) / 64] &= ~(uint64_t{1} << (length - 1) % 64);
      out->begins[row] = at;
      at += length;
    }
    if (static_cast<int>(out->tiles.size()) == most) return false;
    out->tiles.emplace_back(begin, at);
  }
  return true;
}

}  // namespace cuda
}  // namespace ftbert

#endif  // FTBERT_CUDA_TILES_H_
