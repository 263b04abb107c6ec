"""Unlabelled text for pretraining: read, cut into rows that fit, and a part held out."""

import os
from typing import Any, Iterable, List, NamedTuple, Optional, Tuple

import numpy as np

from ftbert.batching import PackedBatch
from ftbert.errors import ConfigError, InputError
from ftbert.rows import detect_format, scan_rows
from ftbert.tokenization import Tokenizer

__all__ = ["Corpus", "hold_out", "read_corpus", "rows_of"]

_MOST_NAMED = 20
_FEWEST = 2  # texts


class Corpus(NamedTuple):
    """Texts, and how many lines had none."""

    source: str
    texts: List[str]
    empty: int


def _from_file(path: str, format: Optional[str], text_column: str) -> Iterable[Any]:
    if detect_format(path, format) != "lines":
        for line, row in scan_rows(path, format, text_column):
            if isinstance(row, str):
                yield line, InputError(row)
            else:
                yield line, row.text
        return
    try:
        with open(path, "r", encoding="utf-8-sig") as file:
            for number, text in enumerate(file, 1):
                yield number, text
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            "%s: expected readable UTF-8 text, one document or sentence a line: %s" % (path, error)
        ) from error


def read_corpus(source: Any, format: Optional[str] = None, text_column: str = "text") -> Corpus:
    """Reads all texts.

    Args:
        source: a file of one document or sentence a line; a TSV, CSV or JSON lines file with a text column; or a list
            of strings. Empty lines are passed over.
        format: of a file; None: by its ending.
        text_column: of a table.

    Raises:
        InputError: lines cannot be read, or there are fewer than two.
    """
    if isinstance(source, (str, os.PathLike)):
        name, rows = os.fspath(source), _from_file(os.fspath(source), format, text_column)
    elif hasattr(source, "__iter__"):
        name, rows = "text", enumerate(source)
    else:
        raise ConfigError("text: expected a path or a list of strings, got %s." % type(source).__name__)
    corpus, bad, empty = Corpus(name, [], 0), [], 0
    for place, text in rows:
        if not isinstance(text, str):
            bad.append("%s: %s" % (place, text if isinstance(text, InputError) else "expected a string"))
        elif text.strip():
            corpus.texts.append(text.strip())
        else:
            empty += 1
    if bad:
        more = "\n  and %d more" % (len(bad) - _MOST_NAMED) if len(bad) > _MOST_NAMED else ""
        raise InputError(
            "%s: %d rows cannot be used; nothing was trained.\n  %s%s"
            % (name, len(bad), "\n  ".join(bad[:_MOST_NAMED]), more)
        )
    if len(corpus.texts) < _FEWEST:
        raise InputError("%s: expected lines of text, found %d." % (name, len(corpus.texts)))
    return corpus._replace(empty=empty)


def hold_out(texts: List[str], fraction: float, most: int, seed: int) -> Tuple[List[str], List[str]]:
    """(train, dev): a share of the texts, at most `most`, at least one, goes to dev; none where the share is 0."""
    count = 0 if fraction == 0.0 else min(most, max(1, int(round(fraction * len(texts)))))
    chosen = set(np.random.RandomState(seed % (1 << 32)).permutation(len(texts))[:count].tolist())
    return (
        [text for index, text in enumerate(texts) if index not in chosen],
        [texts[index] for index in sorted(chosen)],
    )


def rows_of(tokenizer: Tokenizer, texts: List[str], max_length: int) -> Tuple[PackedBatch, float]:
    """Every text as rows of at most `max_length` tokens, [CLS] and [SEP] included, and the share of [UNK].

    A longer text becomes several rows of equal length (but for rounding): nothing of it is dropped.
    """
    encoded = tokenizer.encode(texts, max_length=1 << 28)
    room = max_length - 2
    rows: List[np.ndarray] = []
    splits = encoded.batch.row_splits
    for begin, end in zip(splits[:-1].tolist(), splits[1:].tolist()):
        content = encoded.batch.token_ids[begin + 1 : end - 1]
        if len(content):
            rows += np.array_split(content, (len(content) + room - 1) // room)
    if not rows:
        raise InputError("Expected text with word pieces in it, found none after cleaning.")
    ends = np.cumsum([len(row) + 2 for row in rows])
    ids = np.empty(ends[-1], np.int32)
    for row, end in zip(rows, ends.tolist()):
        ids[end - len(row) - 2], ids[end - 1] = tokenizer.cls_id, tokenizer.sep_id
        ids[end - len(row) - 1 : end - 1] = row
    row_splits = np.concatenate([[0], ends]).astype(np.int32)
    return PackedBatch(ids, np.zeros_like(ids), row_splits), encoded.unknown_rate
