"""Words to word pieces in the native library, for texts of common characters; `ftbert.tokenization` has the rest.

Python says once what every character is (`character_table`, by the rules of `ftbert.words`); the library walks texts
by that table and cuts words by a trie of the pieces. It lets go of the GIL and makes no Python object for a piece,
which the Rust library does.
"""

import ctypes
import functools
import itertools
import os
import re
import weakref
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np

from ftbert._ops import library
from ftbert.errors import OutOfMemoryError, UnavailableError
from ftbert.words import WordSplitter

__all__ = ["NativePieces", "character_table", "flattened", "make_pieces"]

_TABLE_SIZE = 0x20000
_LETTER, _SPACE, _ALONE, _DROPPED = (kind << 24 for kind in (1, 2, 3, 4))

# Filled as wholes: Chinese characters are themselves. Hangul is left to others: each is decomposed into several.
_CHINESE = ((0x3400, 0x4DC0), (0x4E00, 0xA000))
_HANGUL = (0xAC00, 0xD7A4)

_MOST_THREADS = 4


@functools.lru_cache(maxsize=8)
def character_table(lower_case: bool, strip_accents: bool, chinese_chars: bool, plain: Any) -> np.ndarray:
    """What becomes of each character: uint32 (131,072,), the kind in the upper 8 bits, the character in the lower 24.

    Args:
        lower_case, strip_accents, chinese_chars: as `WordSplitter`.
        plain: a compiled pattern "[...]*" of the characters that mean the same beside any other; all others are 0.
    """
    splitter = WordSplitter(lower_case, strip_accents, chinese_chars)
    table = np.zeros(_TABLE_SIZE, np.uint32)
    wanted = np.zeros(_TABLE_SIZE, bool)
    for run in re.finditer(plain.pattern[:-1] + "+", "".join(map(chr, range(_TABLE_SIZE)))):
        wanted[run.start() : run.end()] = True
    for first, end in _CHINESE + (_HANGUL,):
        wanted[first:end] = False
    codes = np.flatnonzero(wanted).tolist()
    # Each character between two letters, and a word between each two of those: what the splitter makes of it shows.
    words = iter(splitter.split(" z ".join("a%sb" % chr(code) for code in codes) + " z"))
    for code in codes:
        table[code] = _entry(list(itertools.takewhile(lambda word: word != "z", words)))
    for first, end in _CHINESE:
        if plain.fullmatch(chr(first) + chr(end - 1)):
            table[first:end] = np.arange(first, end, dtype=np.uint32) | np.uint32(_ALONE if chinese_chars else _LETTER)
    table.setflags(write=False)
    return table


def _entry(words: List[str]) -> int:
    if words == ["a", "b"]:
        return _SPACE
    if words == ["ab"]:
        return _DROPPED
    if len(words) == 1 and len(words[0]) == 3 and words[0][0] == "a" and words[0][2] == "b":
        return _LETTER | ord(words[0][1])
    if len(words) == 3 and len(words[1]) == 1 and words[0] == "a" and words[2] == "b":
        return _ALONE | ord(words[1])
    return 0


class NativePieces:
    """WordPiece for one vocabulary. Thread-safe.

    Args:
        vocab: the pieces, by id.
        unk_id: the id of an unknown word.
        max_word_chars: longer words are unknown.
        table: `character_table`.

    Raises:
        UnavailableError: the native library is not here, or is an older one without this.
    """

    def __init__(self, vocab: Sequence[str], unk_id: int, max_word_chars: int, table: np.ndarray) -> None:
        lib = library()
        try:
            create, self._encode = lib.ftbert_wordpiece_create, lib.ftbert_wordpiece_encode
        except AttributeError as error:
            raise UnavailableError("The native library has no tokenizer: install the package again.") from error
        pointer, i32 = ctypes.c_void_p, ctypes.c_int32
        create.restype, create.argtypes = pointer, [pointer, pointer, i32, pointer, i32, i32, i32]
        self._encode.restype = ctypes.c_int64
        self._encode.argtypes = [pointer, pointer, pointer, i32, i32, pointer, pointer]
        lib.ftbert_wordpiece_free.argtypes = [pointer]
        characters, ends = _flatten(vocab)
        self._table = np.ascontiguousarray(table, np.uint32)
        self._handle = create(
            characters.ctypes.data, ends.ctypes.data, len(vocab), self._table.ctypes.data, len(table), unk_id,
            max_word_chars,
        )  # fmt: skip
        if not self._handle:
            raise OutOfMemoryError("Expected memory for a vocabulary of %d pieces." % len(vocab))
        finalizer = weakref.finalize(self, lib.ftbert_wordpiece_free, self._handle)
        # Not at exit: a stream that was left early may still be in the library, in a thread that nobody waits for.
        finalizer.atexit = False
        self._threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        self._made_of = (list(vocab), unk_id, max_word_chars, table)

    def __reduce__(self) -> Any:
        return NativePieces, self._made_of

    def encode(self, texts: List[str]) -> Tuple[np.ndarray, np.ndarray]:
        """Piece ids without special tokens.

        Returns:
            ids int32 (T,), end to end, and lengths int64 (B,): -1 where a text has a character that is not in the
            table, and no ids.
        """
        characters, ends = _flatten(texts)
        ids = np.empty(len(characters), np.int32)
        lengths = np.empty(len(texts), np.int32)
        count = self._encode(
            self._handle, characters.ctypes.data, ends.ctypes.data, len(texts), self._threads, ids.ctypes.data,
            lengths.ctypes.data,
        )  # fmt: skip
        if count < 0:
            raise OutOfMemoryError("Expected memory to tokenize %d texts." % len(texts))
        return ids[:count], lengths.astype(np.int64)

    def rows(self, texts: List[str]) -> Optional[List[List[int]]]:
        """`encode` as lists, quicker for a few texts; None where one has a character that is not in the table."""
        ids, lengths = self.encode(texts)
        counts = lengths.tolist()
        if min(counts) < 0:
            return None
        flat = iter(ids.tolist())
        return [list(itertools.islice(flat, count)) for count in counts]


def make_pieces(
    vocab: Sequence[str], unk_id: int, max_word_chars: int, flags: Tuple[bool, bool, bool], plain: Any
) -> Optional[NativePieces]:
    """NativePieces where the library has them; None elsewhere. `flags` and `plain`: as `character_table`."""
    try:
        return NativePieces(vocab, unk_id, max_word_chars, character_table(*flags, plain))
    except UnavailableError:
        return None


def flattened(rows: List[List[int]]) -> Tuple[np.ndarray, np.ndarray]:
    """Rows of ids end to end, int32 (T,), and their lengths, int64 (B,)."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(itertools.chain.from_iterable(rows), np.int32, int(lengths.sum())), lengths


def _flatten(texts: Sequence[str]) -> Tuple[np.ndarray, np.ndarray]:
    """Code points of all texts, uint32, and where each text ends, int64 (B,)."""
    joined = "".join(texts).encode("utf-32-le", "surrogatepass")
    characters = np.frombuffer(joined, np.uint32) if joined else np.zeros(0, np.uint32)
    return characters, np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
