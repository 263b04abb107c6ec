"""Token ids to packed batches: rows end to end, no padding. numpy only."""

import math
from typing import Any, List, NamedTuple, Optional, Sequence

import numpy as np

from ftbert.errors import InputError

__all__ = ["PackedBatch", "check_batch", "pack", "plan", "spread"]


class PackedBatch(NamedTuple):
    """B rows of T tokens in all, end to end.

    Attributes:
        token_ids: (T,) int32.
        segment_ids: (T,) int32.
        row_splits: (B + 1,) int32; row b is ``[row_splits[b], row_splits[b + 1])``.
    """

    token_ids: np.ndarray
    segment_ids: np.ndarray
    row_splits: np.ndarray

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.row_splits) - 1

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.token_ids)

    def take(self, rows: np.ndarray) -> "PackedBatch":
        """The rows named, in that order, as a batch of their own.

        Args:
            rows: (B',) integer indices.
        """
        starts = self.row_splits[:-1][rows].astype(np.int64)
        lengths = np.diff(self.row_splits)[rows].astype(np.int64)
        splits = np.zeros(len(lengths) + 1, np.int32)
        np.cumsum(lengths, out=splits[1:])
        # Position of every token in the source: its row's start plus its place in the row.
        source = np.arange(splits[-1], dtype=np.int64) + np.repeat(starts - splits[:-1], lengths)
        return PackedBatch(self.token_ids[source], self.segment_ids[source], splits)


def check_batch(batch: Any) -> None:
    """Raises InputError unless `batch` is a PackedBatch."""
    if not isinstance(batch, PackedBatch):
        raise InputError(
            "Expected a PackedBatch, got %s. For rows of ids write ftbert.batching.pack(rows), for texts "
            "tokenize(texts).batch." % type(batch).__name__
        )


def pack(token_ids: Sequence[Sequence[int]], segment_ids: Optional[Sequence[Sequence[int]]] = None) -> PackedBatch:
    """Puts rows end to end.

    Args:
        token_ids: B rows of at least one id each.
        segment_ids: B rows of the same lengths; None: all 0.

    Raises:
        InputError: there is no row, a row is empty, the two differ in lengths, or an id is no integer of 32 bits.
    """
    lengths = [len(row) for row in token_ids]
    if not lengths:
        raise InputError("Expected at least one row of token ids, got none.")
    if min(lengths) == 0:
        raise InputError("Expected at least one token in every row, but row %d is empty." % lengths.index(0))
    if segment_ids is not None and [len(row) for row in segment_ids] != lengths:
        raise InputError("Expected segment_ids of the same row lengths as token_ids.")
    splits = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=splits[1:])
    tokens = _joined("token_ids", token_ids)
    segments = np.zeros(len(tokens), np.int32) if segment_ids is None else _joined("segment_ids", segment_ids)
    return PackedBatch(tokens, segments, splits)


def _joined(name: str, rows: Sequence[Sequence[int]]) -> np.ndarray:
    ids = np.concatenate([np.asarray(row) for row in rows])
    limits = np.iinfo(np.int32)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or ids.min() < limits.min or ids.max() > limits.max:
        raise InputError("%s: expected rows of 32-bit integers, got %s values %s." % (name, ids.dtype, ids[:4]))
    return ids.astype(np.int32)


def plan(lengths: np.ndarray, batch_tokens: int, row_tile: int = 0) -> List[np.ndarray]:
    """Groups rows into batches of at most `batch_tokens` tokens each (a longer row gets a batch of its own).

    Rows are taken longest first, so that the rows of a batch are alike and the last batch, of the shortest, ends soon.
    But an engine that fills tiles with whole rows wants all lengths in a batch: short rows fill what long ones leave.

    Args:
        lengths: (B,) tokens in each row.
        batch_tokens: the budget, at least 1.
        row_tile: tokens of the engine's tiles (Engine.describe); rows of no more are dealt out to batches of as many
            tokens each. 0: it has none.

    Returns:
        Index arrays that together name each row once.
    """
    if batch_tokens < 1:
        raise InputError("batch_tokens: expected at least 1, got %r." % (batch_tokens,))
    lengths = np.asarray(lengths, np.int64)
    order = _longest_first(lengths)
    dealt: List[np.ndarray] = []
    longer = int(np.count_nonzero(lengths > row_tile))
    if longer < len(order):
        rest = order[longer:]
        # Of rows dealt out longest first, no batch has more than the others' mean and its longest row.
        room = batch_tokens - int(lengths[rest[0]])
        parts = math.ceil(int(lengths[rest].sum()) / room) if room > 0 else len(order)
        if parts < len(rest):
            dealt = [rest[i::parts] for i in range(parts)]
            order = order[:longer]
    groups = []
    ends = np.cumsum(lengths[order])
    start = 0
    while start < len(order):
        used = ends[start - 1] if start else 0
        end = max(int(np.searchsorted(ends, used + batch_tokens, side="right")), start + 1)
        groups.append(order[start:end])
        start = end
    return groups + dealt


def spread(lengths: np.ndarray, parts: int, row_tile: int = 0) -> List[np.ndarray]:
    """Groups rows into `parts` batches of as many tokens each, to within a row; longest rows first, or dealt out, as
    `plan`.

    Args:
        lengths: (B,) tokens in each row.
        parts: from 1 to B.
        row_tile: as in `plan`; where a row is longer, none is dealt out.

    Returns:
        Index arrays that together name each row once; none is empty.
    """
    lengths = np.asarray(lengths, np.int64)
    if not 1 <= parts <= len(lengths):
        raise InputError("parts: expected 1 to %d, the rows, got %r." % (len(lengths), parts))
    order = _longest_first(lengths)
    if lengths[order[0]] <= row_tile:
        return [order[i::parts] for i in range(parts)]
    ends = np.cumsum(lengths[order])
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, parts) / parts)
    # Every part gets a row, however long single rows are.
    least = np.arange(1, parts)
    cuts = np.minimum(np.maximum.accumulate(np.maximum(cuts, least) - least) + least, len(lengths) - parts + least)
    return np.split(order, cuts)


def _longest_first(lengths: np.ndarray) -> np.ndarray:
    # Sorting 16-bit numbers takes numpy a tenth of the time, which counts when several cards wait for the first batch.
    small = len(lengths) and lengths.max() < 32768
    return np.argsort(-lengths.astype(np.int16 if small else np.int64), kind="stable")
