// WordPiece over code points: words to ids, greedily, longest piece first, as google-research/bert's tokenization.py.
//
// What a character is, comes as a table made in Python: this file knows no Unicode. A character that the table does not
// know makes its text the caller's to tokenize in another way.
#ifndef FTBERT_WORDPIECE_H_
#define FTBERT_WORDPIECE_H_

#include <cstdint>
#include <memory>
#include <vector>

namespace ftbert {

// An entry of the table: the kind in the upper bits, the character that it becomes in the lower 24.
enum class CharKind : uint32_t {
  kUnknown = 0,  // not for this tokenizer
  kLetter = 1,   // part of a word
  kSpace = 2,    // ends a word
  kAlone = 3,    // a word by itself: punctuation, Chinese characters
  kDropped = 4,  // as if it were not there
};

class WordPiece {
 public:
  struct Options {
    std::vector<uint32_t> table;  // by code point
    int32_t unknown_id;
    int32_t max_word_chars;  // longer words are unknown
  };

  // `pieces`: code points of all pieces, end to end; piece i ends before ends[i] and has the id i. A later piece takes
  // the place of an equal one before it.
  WordPiece(const uint32_t* pieces, const int64_t* ends, int32_t count, Options options);

  // Text i is [ends[i - 1], ends[i]) of `chars`. Its ids are appended to `ids`, which has room for one for each
  // character, and counted in lengths[i]; -1: a character is not in the table, and there are no ids.
  // Returns the number of ids. Uses up to `threads` threads.
  int64_t Encode(const uint32_t* chars, const int64_t* ends, int32_t texts, int32_t threads, int32_t* ids,
                 int32_t* lengths) const;

 private:
  struct Slot {
    uint64_t key;
    int32_t node;
  };

  int32_t Child(int32_t node, uint32_t character) const;
  int32_t AddChild(int32_t node, uint32_t character);
  void Grow();
  int32_t* Cut(const uint32_t* word, int32_t length, int32_t* out) const;
  int32_t* EncodeText(const uint32_t* begin, const uint32_t* end, std::vector<uint32_t>* word, int32_t* out) const;
  int64_t EncodeRange(const uint32_t* chars, const int64_t* ends, int32_t first, int32_t last, int32_t* ids,
                      int32_t* lengths) const;

  Options options_;
  std::vector<Slot> slots_;     // open addressing: (node, character) -> node; a trie's edges
  size_t edges_ = 0;
  std::vector<int32_t> ids_;    // by node: the piece that ends there, or -1
  std::vector<int32_t> alone_;  // by character below 65,536: the id of the word that it is
};

}  // namespace ftbert

#endif  // FTBERT_WORDPIECE_H_
