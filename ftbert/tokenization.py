"""Text to token ids, exactly as google-research/bert's BasicTokenizer and WordPiece do it, in parallel.

Texts of common characters are done by the native library (`ftbert.pieces`), others by the Rust library `tokenizers`.
Its BERT normalizer differs from google's code for private-use characters, scripts younger than its Unicode tables, one
block of rare Chinese characters and the Greek final sigma. So a text goes to it whole when all its characters are ones
on which the two agree (`_PLAIN`, every common script); any other text is first split into words here, by google's
rules and this Python's Unicode tables, and only cut into pieces there. Texts never contain special tokens: "[SEP]"
typed by a user is five characters of text.
"""

import os
import re
import warnings
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ftbert.batching import PackedBatch
from ftbert.errors import CheckpointError, ConfigError, InputError
from ftbert.paths import PathLike
from ftbert.pieces import flattened, make_pieces
from ftbert.texts import Text, check_texts
from ftbert.vocabulary import GOOGLE_WORD_CHARS, read_tokenizer_settings, read_vocab
from ftbert.words import WordSplitter

__all__ = ["TRUNCATIONS", "Encoded", "FullTokenizer", "Tokenizer"]

# What happens to a text longer than max_length: refuse it, or keep its beginning, its end, or a quarter of the room
# from its beginning and the rest from its end (Sun et al. 2019, "How to Fine-Tune BERT for Text Classification?").
TRUNCATIONS = ("error", "head", "tail", "head+tail")

# Characters on which the Rust library and google's code agree, alone and in any order (tests prove it for every one).
_PLAIN = re.compile(
    "[\x00-\x7f\xa0-\u02ff\u0391-\u03a1\u03a4-\u03a9\u03ac-\u03ce\u0400-\u0482\u048a-\u052f\u05d0-\u05ea\u0621-\u064a"
    "\u0660-\u0669\u1e00-\u1eff\u2000-\u205e\u20a0-\u20bf\u2100-\u218b\u2190-\u23ff\u2460-\u2bff\u3000-\u3029"
    "\u3030-\u3096\u309b-\u30ff\u3105-\u312f\u3131-\u318e\u3200-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\ufe0f"
    "\ufe30-\ufe4f\uff01-\uffee\U0001f300-\U0001f64f\U0001f680-\U0001f6ff\U0001f900-\U0001f9ff]*"
)

_FEW = 8  # texts for which plain lists are quicker than numpy's whole-array steps

_PADDED = 128  # embeddings are padded to multiples of at most this, for the hardware's sake

_CHUNK = 4096  # texts handed to the Rust threads at once: bounds what their result objects hold


class Encoded(NamedTuple):
    """B texts as token ids.

    Attributes:
        batch: their rows, end to end, [CLS] and [SEP] included.
        truncated: (B,) bool; which rows lost pieces to max_length.
        pieces: (B,) int32; how many word pieces each row kept, [CLS] and [SEP] not counted.
        unknown: (B,) int32; how many of them are [UNK].
    """

    batch: PackedBatch
    truncated: np.ndarray
    pieces: np.ndarray
    unknown: np.ndarray

    def rows(self, begin: int, end: int) -> "Encoded":
        """The texts [begin, end) alone."""
        batch = self.batch
        first, last = int(batch.row_splits[begin]), int(batch.row_splits[end])
        splits = batch.row_splits[begin : end + 1] - batch.row_splits[begin]
        part = PackedBatch(batch.token_ids[first:last], batch.segment_ids[first:last], splits)
        return Encoded(part, self.truncated[begin:end], self.pieces[begin:end], self.unknown[begin:end])

    @property
    def unknown_rate(self) -> float:
        """The share of the pieces that are [UNK]; 0 without pieces."""
        return float(self.unknown.sum()) / max(int(self.pieces.sum()), 1)


class Tokenizer:
    """BERT's tokenizer. Thread-safe; `encode` lets go of the GIL while the Rust threads work."""

    def __init__(
        self,
        vocab: Sequence[str],
        lower_case: Optional[bool] = None,
        strip_accents: Optional[bool] = None,
        chinese_chars: bool = True,
        max_word_chars: int = GOOGLE_WORD_CHARS,
    ) -> None:
        """
        Args:
            vocab: the word pieces, by id.
            lower_case: None: True if no piece has an upper-case ASCII letter.
            strip_accents: None: as `lower_case`, as google-research/bert does.
            chinese_chars: whether each Chinese character is a word.
            max_word_chars: longer words become [UNK].

        Raises:
            CheckpointError: the vocabulary lacks [CLS], [SEP] or [UNK].
        """
        from tokenizers import Tokenizer as RustTokenizer
        from tokenizers.models import WordPiece
        from tokenizers.normalizers import BertNormalizer
        from tokenizers.pre_tokenizers import BertPreTokenizer, CharDelimiterSplit

        self.vocab = list(vocab)
        ids = {piece: index for index, piece in enumerate(self.vocab)}
        missing = [piece for piece in ("[CLS]", "[SEP]", "[UNK]") if piece not in ids]
        if missing:
            raise CheckpointError(
                "The vocabulary of %d pieces lacks %s: expected BERT's vocab.txt."
                % (len(self.vocab), ", ".join(missing))
            )
        self.cls_id, self.sep_id, self.unk_id = ids["[CLS]"], ids["[SEP]"], ids["[UNK]"]
        upper = sum(1 for piece in self.vocab if piece[:1] != "[" and any("A" <= char <= "Z" for char in piece))
        lower = sum(1 for piece in self.vocab if piece[:1] != "[" and any("a" <= char <= "z" for char in piece))
        self.lower_case = upper == 0 if lower_case is None else bool(lower_case)
        self.strip_accents = self.lower_case if strip_accents is None else bool(strip_accents)
        self.chinese_chars = bool(chinese_chars)
        self.max_word_chars = int(max_word_chars)
        self._warn_of_contradiction(upper, lower)

        model = WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=self.max_word_chars)
        self._whole = RustTokenizer(model)
        self._whole.normalizer = BertNormalizer(
            clean_text=True,
            handle_chinese_chars=self.chinese_chars,
            strip_accents=self.strip_accents,
            lowercase=self.lower_case,
        )
        self._whole.pre_tokenizer = BertPreTokenizer()
        self._words = RustTokenizer(model)
        self._words.pre_tokenizer = CharDelimiterSplit(" ")
        flags = (self.lower_case, self.strip_accents, self.chinese_chars)
        self._splitter = WordSplitter(*flags)
        self._native = make_pieces(self.vocab, self.unk_id, self.max_word_chars, flags, _PLAIN)

    def _warn_of_contradiction(self, upper: int, lower: int) -> None:
        """`upper`, `lower`: pieces with such ASCII letters. Chinese vocabularies have few of either."""
        if self.lower_case and upper > 20 and upper * 20 > lower:
            warnings.warn(
                "lower_case is on, but %d of %d pieces have upper-case letters, which can then never match: this looks "
                "like a cased vocabulary." % (upper, len(self.vocab)),
                stacklevel=4,
            )
        elif not self.lower_case and upper == 0 and lower > 20:
            warnings.warn(
                "lower_case is off, but none of %d pieces has an upper-case letter, so that every capital becomes "
                "[UNK]: this looks like an uncased vocabulary." % len(self.vocab),
                stacklevel=4,
            )

    @classmethod
    def from_vocab(
        cls, path: PathLike, lower_case: Optional[bool] = None, max_word_chars: int = GOOGLE_WORD_CHARS
    ) -> "Tokenizer":
        """The tokenizer of a vocab.txt."""
        return cls(read_vocab(os.fspath(path)), lower_case, max_word_chars=max_word_chars)

    @classmethod
    def from_folder(cls, folder: PathLike, lower_case: Optional[bool] = None) -> "Tokenizer":
        """The tokenizer of a model folder: google-research/bert's, Hugging Face's or ours.

        Args:
            folder: holds vocab.txt or tokenizer.json.
            lower_case: None: as ftbert.json, tokenizer_config.json or tokenizer.json says; if none does, as the pieces
                look.

        Raises:
            CheckpointError: no vocabulary there, or not BERT's.
        """
        vocab, settings = read_tokenizer_settings(os.fspath(folder))
        if lower_case is not None:
            settings["lower_case"] = lower_case
        return cls(vocab, **settings)

    @property
    def vocab_size(self) -> int:
        """Number of word pieces."""
        return len(self.vocab)

    def check_fits(self, model: str, embedded: int) -> None:
        """Raises CheckpointError if there are more pieces than the `embedded` ones of a model (`model`: its name, for
        messages), and warns if there are so few that the vocabulary is probably another model's."""
        message = "%s: the vocabulary has %d pieces, but the model embeds %d" % (model, self.vocab_size, embedded)
        if self.vocab_size > embedded:
            raise CheckpointError(message + ": they are of different models.")
        if embedded - self.vocab_size >= _PADDED:
            warnings.warn(message + ": if this is another model's vocabulary, all answers are wrong.", stacklevel=3)

    def settings(self) -> Dict[str, Any]:
        """What ftbert.json keeps under "tokenizer"; the constructor's arguments besides the vocabulary."""
        return {
            "lower_case": self.lower_case,
            "strip_accents": self.strip_accents,
            "chinese_chars": self.chinese_chars,
            "max_word_chars": self.max_word_chars,
        }

    def save(self, folder: PathLike) -> None:
        """Writes vocab.txt into the folder (the settings go into ftbert.json, beside those of the model)."""
        with open(os.path.join(os.fspath(folder), "vocab.txt"), "w", encoding="utf-8", newline="\n") as file:
            file.write("".join(piece + "\n" for piece in self.vocab))

    def pieces(self, text: Text) -> List[str]:
        """The word pieces of one text, without special tokens and without truncation."""
        ids = self._piece_ids([text] if isinstance(text, str) else list(text))
        return [self.vocab[index] for row in ids for index in row]

    def _piece_ids(self, texts: List[str]) -> List[List[int]]:
        """Ids of each text's pieces, without special tokens."""
        if self._native is not None and 0 < len(texts) <= _FEW:
            rows = self._native.rows(texts)
            if rows is not None:
                return rows
        joined = "".join(texts)
        if joined.isascii() or _PLAIN.fullmatch(joined):
            return _run(self._whole, texts)
        odd = [index for index, text in enumerate(texts) if not _PLAIN.fullmatch(text)]
        by_words = iter(_run(self._words, [" ".join(self._splitter.split(texts[index])) for index in odd]))
        odd_set = set(odd)
        whole = iter(_run(self._whole, [text for index, text in enumerate(texts) if index not in odd_set]))
        return [next(by_words) if index in odd_set else next(whole) for index in range(len(texts))]

    def _flat_ids(self, texts: List[str]) -> Tuple[np.ndarray, np.ndarray]:
        """`_piece_ids` end to end: int32 (T,), and how many each text has: int64 (B,)."""
        if self._native is None:
            return flattened(self._piece_ids(texts))
        ids, lengths = self._native.encode(texts)
        odd = np.flatnonzero(lengths < 0)
        if len(odd):
            others, counts = flattened(self._piece_ids([texts[index] for index in odd.tolist()]))
            lengths[odd] = 0
            ids = np.insert(ids, np.repeat(np.cumsum(lengths)[odd], counts), others)
            lengths[odd] = counts
        return ids, lengths

    def encode(
        self, texts: Sequence[Text], max_length: int = 512, truncation: str = "head", first_index: int = 0
    ) -> Encoded:
        """Token ids of texts and pairs: [CLS] text [SEP], or [CLS] first [SEP] second [SEP].

        Args:
            texts: B strings or pairs of strings. An empty text is [CLS] [SEP].
            max_length: the longest row, special tokens included; at least 3.
            truncation: one of `TRUNCATIONS`. The longer text of a pair is shortened first, as google-research/bert
                does.
            first_index: the number of the first text, for messages.

        Raises:
            InputError: an item is no text, or, with "error", one is too long: nothing is returned.
        """
        texts = check_texts(texts, first_index)
        if truncation not in TRUNCATIONS:
            raise ConfigError("truncation: expected one of %s, got %r." % (", ".join(TRUNCATIONS), truncation))
        if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 3:
            raise ConfigError("max_length: expected an integer of at least 3, got %r." % (max_length,))
        if len(texts) <= _CHUNK:
            return self._encode_chunk(texts, first_index, max_length, truncation)
        parts = [
            self._encode_chunk(texts[begin : begin + _CHUNK], first_index + begin, max_length, truncation)
            for begin in range(0, len(texts), _CHUNK)
        ]
        lengths = np.concatenate([np.diff(part.batch.row_splits) for part in parts])
        batch = PackedBatch(
            np.concatenate([part.batch.token_ids for part in parts]),
            np.concatenate([part.batch.segment_ids for part in parts]),
            _splits(lengths),
        )
        return Encoded(batch, *(np.concatenate([part[field] for part in parts]) for field in (1, 2, 3)))

    def _encode_chunk(self, texts: List[Text], first_index: int, max_length: int, truncation: str) -> Encoded:
        if len(texts) <= _FEW and all(isinstance(text, str) for text in texts):
            rows = self._piece_ids(texts)  # type: ignore[arg-type]
            if all(len(row) <= max_length - 2 for row in rows):
                return self._join_few(rows)
        pairs = np.fromiter((not isinstance(text, str) for text in texts), bool, len(texts))
        if pairs.any():
            # A single text is a pair whose second text takes no room.
            flat = [part for text in texts for part in ((text, "") if isinstance(text, str) else text)]
        else:
            flat = texts  # type: ignore[assignment]
        ids, lengths = self._flat_ids(flat)
        starts = np.cumsum(lengths) - lengths
        if pairs.any():
            first, second = lengths[0::2], lengths[1::2]
            first_start, second_start = starts[0::2], starts[1::2]
        else:
            first, second = lengths, np.zeros(len(texts), np.int64)
            first_start = second_start = starts
        room = max_length - 2 - pairs.astype(np.int64)
        truncated = first + second > room
        if truncation == "error" and truncated.any():
            index = int(np.argmax(truncated))
            needed = int((first + second - room)[index]) + max_length
            raise InputError(
                "texts[%d]: expected at most %d tokens, got %d (%s...). Shorten it, or choose truncation='head', "
                "'tail' or 'head+tail'." % (first_index + index, max_length, needed, repr(texts[index])[:60])
            )
        # The longer text loses pieces until both fit: the closed form of google's loop, where at a tie the second
        # loses.
        kept_first = np.where(truncated, np.minimum(first, np.maximum(room - second, room - room // 2)), first)
        kept_second = np.where(truncated, room - kept_first, second)

        row_lengths = kept_first + kept_second + 2 + pairs
        splits = _splits(row_lengths)
        begins, ends = splits[:-1].astype(np.int64), splits[1:].astype(np.int64)
        tokens = np.full(int(splits[-1]), self.sep_id, np.int32)
        segments = np.zeros(int(splits[-1]), np.int32)
        tokens[begins] = self.cls_id
        _copy_kept(ids, first_start, first, kept_first, tokens, begins + 1, truncation)
        if pairs.any():
            _copy_kept(ids, second_start, second, kept_second, tokens, begins + 2 + kept_first, truncation)
            second_length = np.where(pairs, kept_second + 1, 0)
            segments[_ranges(ends - second_length, second_length)] = 1
        unknown_before = np.concatenate([[0], np.cumsum(tokens == self.unk_id)])
        unknown = (unknown_before[ends] - unknown_before[begins]).astype(np.int32)
        pieces = (kept_first + kept_second).astype(np.int32)
        return Encoded(PackedBatch(tokens, segments, splits), truncated, pieces, unknown)

    def _join_few(self, rows: List[List[int]]) -> Encoded:
        """Rows of pieces that need no cutting, with [CLS] and [SEP]."""
        tokens: List[int] = []
        splits = [0]
        for row in rows:
            tokens.append(self.cls_id)
            tokens += row
            tokens.append(self.sep_id)
            splits.append(len(tokens))
        return Encoded(
            PackedBatch(np.array(tokens, np.int32), np.zeros(len(tokens), np.int32), np.array(splits, np.int32)),
            np.zeros(len(rows), bool),
            np.array([len(row) for row in rows], np.int32),
            np.array([row.count(self.unk_id) for row in rows], np.int32),
        )


class FullTokenizer:
    """google-research/bert's class of this name, for code that was written against it; `Tokenizer` makes whole rows.

    `vocab` has each piece's id, `inv_vocab` the other way round. do_lower_case: False for a cased model.
    """

    def __init__(self, vocab_file: PathLike, do_lower_case: bool = True) -> None:
        self._tokenizer = Tokenizer.from_vocab(vocab_file, do_lower_case)
        self.vocab = {piece: index for index, piece in enumerate(self._tokenizer.vocab)}
        self.inv_vocab = {index: piece for piece, index in self.vocab.items()}

    def tokenize(self, text: str) -> List[str]:
        """The word pieces of a text."""
        return self._tokenizer.pieces(text)

    def convert_tokens_to_ids(self, tokens: Sequence[str]) -> List[int]:
        """Their ids; a KeyError for one that is no piece."""
        return [self.vocab[token] for token in tokens]

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> List[str]:
        """The inverse."""
        return [self.inv_vocab[index] for index in ids]


def _run(rust: Any, texts: List[str]) -> List[List[int]]:
    if not texts:
        return []
    encode = getattr(rust, "encode_batch_fast", None) or rust.encode_batch
    return [encoding.ids for encoding in encode(texts, add_special_tokens=False)]


def _splits(lengths: np.ndarray) -> np.ndarray:
    splits = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=splits[1:])
    return splits


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The indices of all [start, start + length), one after the other."""
    before = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) + np.repeat(starts - before, lengths)


def _copy_kept(
    source: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    kept: np.ndarray,
    target: np.ndarray,
    places: np.ndarray,
    truncation: str,
) -> None:
    """Copies the pieces that stay to their places: `head` of each text from its start, the rest from its end."""
    if truncation in ("head", "error"):
        head = kept
    elif truncation == "tail":
        head = np.zeros_like(kept)
    else:
        head = np.where(kept < lengths, kept // 4, kept)
    tail = kept - head
    target[_ranges(places, head)] = source[_ranges(starts, head)]
    if tail.any():
        target[_ranges(places + head, tail)] = source[_ranges(starts + lengths - tail, tail)]
