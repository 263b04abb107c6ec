"""google-research/bert's tokenizer again, in plain Python: the twin that the fast one must equal."""

import unicodedata


def _whitespace(char):
    return char in " \t\n\r" or unicodedata.category(char) == "Zs"


def _control(char):
    return char not in "\t\n\r" and unicodedata.category(char) in ("Cc", "Cf")


def _punctuation(char):
    code = ord(char)
    if 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126:
        return True
    return unicodedata.category(char).startswith("P")


_CHINESE = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def _clean(text):
    """Control characters away, white space to spaces."""
    kept = [char for char in text if ord(char) not in (0, 0xFFFD) and not _control(char)]
    return "".join(" " if _whitespace(char) else char for char in kept)


def _space_chinese(text):
    spaced = []
    for char in text:
        chinese = any(low <= ord(char) <= high for low, high in _CHINESE)
        spaced.append(" " + char + " " if chinese else char)
    return "".join(spaced)


def _strip_accents(word):
    return "".join(char for char in unicodedata.normalize("NFD", word) if unicodedata.category(char) != "Mn")


def _split_punctuation(word):
    parts = [""]
    for char in word:
        if _punctuation(char):
            parts += [char, ""]
        else:
            parts[-1] += char
    return [part for part in parts if part]


def basic_words(text, lower_case):
    """BasicTokenizer.tokenize."""
    words = []
    for word in _space_chinese(_clean(text)).strip().split():
        if lower_case:
            word = _strip_accents(word.lower())
        words += _split_punctuation(word)
    return " ".join(words).split()


def word_pieces(words, vocab, max_word_chars=200):
    """WordpieceTokenizer.tokenize: greedy, longest first; a word with any piece unknown is [UNK] as a whole."""
    output = []
    for word in words:
        pieces, start = [], 0
        while start < len(word) <= max_word_chars:
            end = len(word)
            while end > start:
                piece = ("##" if start else "") + word[start:end]
                if piece in vocab:
                    break
                end -= 1
            if end == start:
                break
            pieces.append(piece)
            start = end
        output += pieces if start == len(word) else ["[UNK]"]
    return output


def tokenize(text, vocab, lower_case, max_word_chars=200):
    """FullTokenizer.tokenize."""
    return word_pieces(basic_words(text, lower_case), vocab, max_word_chars)


def truncate_pair(first, second, room):
    """google's _truncate_seq_pair: the longer one loses its last piece until both fit; at a tie, the second."""
    first, second = list(first), list(second)
    while len(first) + len(second) > room:
        if len(first) > len(second):
            first.pop()
        else:
            second.pop()
    return first, second
