#include "ftbert/wordpiece.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <system_error>
#include <thread>
#include <utility>

#include "ftbert/c_api.h"

namespace ftbert {
namespace {

constexpr int32_t kWordStart = 0, kInsideWord = 1;  // the two roots: pieces that begin a word, and the "##..." ones
constexpr uint64_t kFree = ~uint64_t{0};
constexpr uint32_t kCharacterBits = 24;
constexpr uint32_t kCharacterMask = (1u << kCharacterBits) - 1;
constexpr size_t kAloneCharacters = 65536;
constexpr int32_t kTextsOfThread = 512;  // fewer are done before another thread has begun

uint64_t Key(int32_t node, uint32_t character) { return static_cast<uint64_t>(node) << kCharacterBits | character; }

size_t Hash(uint64_t key) { return static_cast<size_t>((key * 0x9E3779B97F4A7C15ull) >> 20); }

}  // namespace

WordPiece::WordPiece(const uint32_t* pieces, const int64_t* ends, int32_t count, Options options)
    : options_(std::move(options)), slots_(1 << 12, Slot{kFree, -1}), ids_(2, -1) {
  int64_t begin = 0;
  for (int32_t id = 0; id < count; ++id) {
    const uint32_t* at = pieces + begin;
    const uint32_t* const end = pieces + ends[id];
    begin = ends[id];
    const bool inside = end - at > 2 && at[0] == '#' && at[1] == '#';
    if (inside) at += 2;
    if (at == end) continue;
    int32_t node = inside ? kInsideWord : kWordStart;
    for (; at != end; ++at) node = AddChild(node, *at);
    ids_[node] = id;
  }
  alone_.resize(kAloneCharacters);
  for (size_t c = 0; c < kAloneCharacters; ++c) {
    const int32_t node = Child(kWordStart, static_cast<uint32_t>(c));
    alone_[c] = node < 0 || ids_[node] < 0 ? options_.unknown_id : ids_[node];
  }
}

int32_t WordPiece::Child(int32_t node, uint32_t character) const {
  const uint64_t key = Key(node, character);
  for (size_t at = Hash(key);; ++at) {
    const Slot& slot = slots_[at & (slots_.size() - 1)];
    if (slot.key == key) return slot.node;
    if (slot.key == kFree) return -1;
  }
}

int32_t WordPiece::AddChild(int32_t node, uint32_t character) {
  const int32_t found = Child(node, character);
  if (found >= 0) return found;
  if (2 * (edges_ + 1) > slots_.size()) Grow();
  const uint64_t key = Key(node, character);
  size_t at = Hash(key);
  while (slots_[at & (slots_.size() - 1)].key != kFree) ++at;
  const int32_t fresh = static_cast<int32_t>(ids_.size());
  slots_[at & (slots_.size() - 1)] = Slot{key, fresh};
  ids_.push_back(-1);
  ++edges_;
  return fresh;
}

void WordPiece::Grow() {
  std::vector<Slot> old(2 * slots_.size(), Slot{kFree, -1});
  old.swap(slots_);
  for (const Slot& slot : old) {
    if (slot.key == kFree) continue;
    size_t at = Hash(slot.key);
    while (slots_[at & (slots_.size() - 1)].key != kFree) ++at;
    slots_[at & (slots_.size() - 1)] = slot;
  }
}

// One word's pieces, or the one unknown id where some part of it is no piece.
int32_t* WordPiece::Cut(const uint32_t* word, int32_t length, int32_t* out) const {
  if (length > options_.max_word_chars) {
    *out = options_.unknown_id;
    return out + 1;
  }
  int32_t* const start = out;
  for (int32_t begin = 0; begin < length;) {
    int32_t node = begin == 0 ? kWordStart : kInsideWord, best = -1, best_end = begin;
    for (int32_t end = begin; end < length; ++end) {
      node = Child(node, word[end]);
      if (node < 0) break;
      if (ids_[node] >= 0) best = ids_[node], best_end = end + 1;
    }
    if (best < 0) {
      *start = options_.unknown_id;
      return start + 1;
    }
    *out++ = best;
    begin = best_end;
  }
  return out;
}

// Null where a character is not in the table.
int32_t* WordPiece::EncodeText(const uint32_t* begin, const uint32_t* end, std::vector<uint32_t>* word,
                               int32_t* out) const {
  word->clear();
  const auto flush = [&] {
    if (word->empty()) return;
    out = Cut(word->data(), static_cast<int32_t>(word->size()), out);
    word->clear();
  };
  for (const uint32_t* at = begin; at != end; ++at) {
    const uint32_t entry = *at < options_.table.size() ? options_.table[*at] : 0;
    const uint32_t character = entry & kCharacterMask;
    switch (static_cast<CharKind>(entry >> kCharacterBits)) {
      case CharKind::kLetter:
        word->push_back(character);
        break;
      case CharKind::kSpace:
        flush();
        break;
      case CharKind::kAlone:
        flush();
        if (character < kAloneCharacters && options_.max_word_chars >= 1) {
          *out++ = alone_[character];
        } else {
          out = Cut(&character, 1, out);
        }
        break;
      case CharKind::kDropped:
        break;
      default:
        return nullptr;
    }
  }
  flush();
  return out;
}

int64_t WordPiece::EncodeRange(const uint32_t* chars, const int64_t* ends, int32_t first, int32_t last, int32_t* ids,
                               int32_t* lengths) const {
  std::vector<uint32_t> word;
  int32_t* out = ids;
  for (int32_t i = first; i < last; ++i) {
    int32_t* const end = EncodeText(chars + (i == 0 ? 0 : ends[i - 1]), chars + ends[i], &word, out);
    lengths[i] = end == nullptr ? -1 : static_cast<int32_t>(end - out);
    if (end != nullptr) out = end;
  }
  return out - ids;
}

int64_t WordPiece::Encode(const uint32_t* chars, const int64_t* ends, int32_t texts, int32_t threads, int32_t* ids,
                          int32_t* lengths) const {
  const int32_t parts = std::max(1, std::min(threads, texts / kTextsOfThread));
  if (parts == 1) return EncodeRange(chars, ends, 0, texts, ids, lengths);
  // A text has no more ids than characters, so each part writes from where its characters begin.
  struct Part {
    int32_t first, last;
    int64_t place, count;
  };
  std::vector<Part> work(parts);
  std::vector<std::thread> helpers;
  for (int32_t p = 0; p < parts; ++p) {
    const int32_t first = static_cast<int32_t>(int64_t{texts} * p / parts);
    const int32_t last = static_cast<int32_t>(int64_t{texts} * (p + 1) / parts);
    work[p] = Part{first, last, first == 0 ? 0 : ends[first - 1], -1};
  }
  const auto run = [&](Part* part) {
    try {
      part->count = EncodeRange(chars, ends, part->first, part->last, ids + part->place, lengths);
    } catch (const std::exception&) {
      part->count = -1;  // no memory; an exception must not leave a thread
    }
  };
  helpers.reserve(parts - 1);
  for (int32_t p = 1; p < parts; ++p) {
    try {
      helpers.emplace_back(run, &work[p]);
    } catch (const std::system_error&) {
      break;  // no more threads to be had: what is left is done here
    }
  }
  run(&work[0]);
  for (size_t p = helpers.size() + 1; p < work.size(); ++p) run(&work[p]);
  for (std::thread& helper : helpers) helper.join();
  int64_t used = 0;
  for (int32_t p = 0; p < parts; ++p) {
    if (work[p].count < 0) return -1;
    std::memmove(ids + used, ids + work[p].place, sizeof(int32_t) * static_cast<size_t>(work[p].count));
    used += work[p].count;
  }
  return used;
}

}  // namespace ftbert

struct ftbert_wordpiece {
  ftbert::WordPiece tokenizer;
};

ftbert_wordpiece* ftbert_wordpiece_create(const uint32_t* pieces, const int64_t* ends, int32_t count,
                                          const uint32_t* table, int32_t table_size, int32_t unknown_id,
                                          int32_t max_word_chars) {
  try {
    ftbert::WordPiece::Options options{{table, table + table_size}, unknown_id, max_word_chars};
    return new ftbert_wordpiece{ftbert::WordPiece(pieces, ends, count, std::move(options))};
  } catch (const std::exception&) {
    return nullptr;
  }
}

int64_t ftbert_wordpiece_encode(const ftbert_wordpiece* tokenizer, const uint32_t* chars, const int64_t* ends,
                                int32_t texts, int32_t threads, int32_t* ids, int32_t* lengths) {
  try {
    return tokenizer->tokenizer.Encode(chars, ends, texts, threads, ids, lengths);
  } catch (const std::exception&) {
    return -1;
  }
}

void ftbert_wordpiece_free(ftbert_wordpiece* tokenizer) { delete tokenizer; }
