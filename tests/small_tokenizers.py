"""Tokenizers of a small vocabulary with pieces of every kind."""

from ftbert.tokenization import Tokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def small_vocab(lower_case):
    """Pieces of every kind: letters, capitals, Greek with both sigmas, Chinese, kana, punctuation, emoji, marks."""
    plain = LETTERS + ("" if lower_case else LETTERS.upper()[:26])
    plain += "αβσς的卡丢我かカ가éеж.,!?[]-_。，\u0301\u093f\U0001f600"
    pieces = list(dict.fromkeys(plain))
    words = ["the", "un", "want", "runn", "##ing", "##ed", "##able", "unwanted", "ab", "##bc", "ΑΣ", "ας", "ασ"]
    return SPECIAL + pieces + ["##" + piece for piece in pieces] + words


TOKENIZERS = {}


def tokenizer_of(lower_case, max_word_chars=200):
    key = lower_case, max_word_chars
    if key not in TOKENIZERS:
        TOKENIZERS[key] = Tokenizer(small_vocab(lower_case), lower_case, max_word_chars=max_word_chars)
    return TOKENIZERS[key]
