"""Text to words: google-research/bert's BasicTokenizer, by this Python's own Unicode tables.

Slower than the Rust library and the reference for it: `ftbert.tokenization` sends here what that library would split
differently.
"""

import unicodedata
from typing import Dict, List

__all__ = ["WordSplitter"]

_NOT_IN_VOCAB = "\uffff"  # stands for a lone surrogate, which no UTF-8 vocabulary can contain


def _is_chinese(code: int) -> bool:
    """The blocks that google-research/bert names in _is_chinese_char."""
    return (
        0x4E00 <= code <= 0x9FFF
        or 0x3400 <= code <= 0x4DBF
        or 0x20000 <= code <= 0x2A6DF
        or 0x2A700 <= code <= 0x2B73F
        or 0x2B740 <= code <= 0x2B81F
        or 0x2B820 <= code <= 0x2CEAF
        or 0xF900 <= code <= 0xFAFF
        or 0x2F800 <= code <= 0x2FA1F
    )


class _Cleaner(Dict[int, str]):
    """For str.translate: drops control characters, turns white space into ' ', sets Chinese characters apart."""

    def __init__(self, chinese_chars: bool) -> None:
        super().__init__()
        self._chinese_chars = chinese_chars

    def __missing__(self, code: int) -> str:
        char = chr(code)
        category = unicodedata.category(char)
        if char in " \t\n\r" or category == "Zs":
            value = " "
        elif code in (0, 0xFFFD) or category in ("Cc", "Cf"):
            value = ""
        elif category == "Cs":
            value = _NOT_IN_VOCAB
        elif self._chinese_chars and _is_chinese(code):
            value = " " + char + " "
        else:
            value = char
        self[code] = value
        return value


class _AccentStripper(Dict[int, str]):
    """For str.translate after NFD: drops combining marks."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        self[code] = value = "" if unicodedata.category(char) == "Mn" else char
        return value


class _PunctuationSplitter(Dict[int, str]):
    """For str.translate: sets punctuation apart; every ASCII symbol counts as such."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        ascii_symbol = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
        apart = ascii_symbol or unicodedata.category(char).startswith("P")
        self[code] = value = " " + char + " " if apart else char
        return value


class WordSplitter:
    """Splits texts into the words that WordPiece cuts.

    Args:
        lower_case: whether words are lower-cased.
        strip_accents: whether combining marks are dropped, after decomposition.
        chinese_chars: whether each Chinese character is a word.
    """

    def __init__(self, lower_case: bool, strip_accents: bool, chinese_chars: bool) -> None:
        self._lower_case = lower_case
        self._strip_accents = strip_accents
        self._clean = _Cleaner(chinese_chars)
        self._strip = _AccentStripper()
        self._punctuate = _PunctuationSplitter()

    def split(self, text: str) -> List[str]:
        """The words of a text, in order."""
        words = text.translate(self._clean).split()
        if self._lower_case:
            words = [word.lower() for word in words]
        if self._strip_accents:
            words = [unicodedata.normalize("NFD", word).translate(self._strip) for word in words]
        return " ".join(words).translate(self._punctuate).split()
