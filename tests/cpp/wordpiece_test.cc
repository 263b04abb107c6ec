// WordPiece alone: cuts, unknown words, characters outside of the table, threads. What characters are is Python's.
#include "ftbert/wordpiece.h"

#include <cstdint>
#include <string>
#include <vector>

#include "check.h"

namespace {

using ftbert::WordPiece;

struct Texts {
  std::vector<uint32_t> chars;
  std::vector<int64_t> ends;

  Texts(const std::vector<std::string>& texts) {
    for (const std::string& text : texts) {
      for (const char c : text) chars.push_back(static_cast<unsigned char>(c));
      ends.push_back(static_cast<int64_t>(chars.size()));
    }
  }
};

// Letters are letters (capitals become small), ' ' a space, '.' and '#' words, '~' dropped, anything else unknown.
WordPiece::Options OptionsOf(int32_t max_word_chars) {
  std::vector<uint32_t> table(128, 0);
  for (uint32_t c = 'a'; c <= 'z'; ++c) table[c] = 1u << 24 | c;
  for (uint32_t c = 'A'; c <= 'Z'; ++c) table[c] = 1u << 24 | (c + 32);
  table[' '] = 2u << 24;
  table['.'] = 3u << 24 | '.';
  table['#'] = 3u << 24 | '#';
  table['~'] = 4u << 24;
  return WordPiece::Options{table, 0, max_word_chars};
}

std::string Shown(const WordPiece& tokenizer, const std::vector<std::string>& texts, int threads) {
  const Texts in(texts);
  std::vector<int32_t> ids(in.chars.size()), lengths(texts.size());
  const int64_t count = tokenizer.Encode(in.chars.data(), in.ends.data(), static_cast<int32_t>(texts.size()), threads,
                                         ids.data(), lengths.data());
  std::string shown;
  int64_t at = 0;
  for (const int32_t length : lengths) {
    shown += length < 0 ? "?" : "";
    for (int32_t i = 0; i < length; ++i) shown += std::to_string(ids[at++]) + " ";
    shown += "|";
  }
  CHECK_EQ(at, count);
  return shown;
}

}  // namespace

int main() {
  const Texts pieces({"[unk]", "a", "##a", "ab", "##b", "abc", "##bc", ".", "#", "", "##", "un", "a"});
  const WordPiece tokenizer(pieces.chars.data(), pieces.ends.data(), static_cast<int32_t>(pieces.ends.size()),
                            OptionsOf(5));
  // "a" stands twice: the later id counts, as in a Python dict.
  CHECK_EQ(Shown(tokenizer, {"a", "aa", "abc abcbc", "aBC"}, 1), "12 |12 2 |5 5 6 |5 |");
  CHECK_EQ(Shown(tokenizer, {"", " ", "a.b", "##a", "a~b", "~"}, 1), "||12 7 0 |8 8 12 |3 ||");
  CHECK_EQ(Shown(tokenizer, {"aaaaa", "aaaaaa", "abx a", "un", "nu"}, 1), "12 2 2 2 2 |0 |0 12 |11 |0 |");
  CHECK_EQ(Shown(tokenizer, {"a", "a!", "b!b", "ab"}, 1), "12 |?|?|3 |");
  const WordPiece strict(pieces.chars.data(), pieces.ends.data(), static_cast<int32_t>(pieces.ends.size()),
                         OptionsOf(0));
  CHECK_EQ(Shown(strict, {".", "a"}, 1), "0 |0 |");

  // Thousands of pieces make the table of edges grow; threads give what one gives.
  std::vector<std::string> many = {"[unk]"}, texts;
  for (int i = 0; i < 5000; ++i) {
    std::string word;
    for (int n = i + 1; n > 0; n /= 26) word += static_cast<char>('a' + n % 26);
    many.push_back(i % 3 == 0 ? "##" + word : word);
    texts.push_back(word + (i % 7 == 0 ? "!" : "") + " " + word + word);
  }
  const Texts all(many);
  const WordPiece large(all.chars.data(), all.ends.data(), static_cast<int32_t>(all.ends.size()), OptionsOf(200));
  const std::string one = Shown(large, texts, 1);
  for (const int threads : {2, 3, 8}) CHECK_EQ(Shown(large, texts, threads) == one, true);
  CHECK_EQ(one.find("?") != std::string::npos, true);
  return ftbert_test::Finish();
}
