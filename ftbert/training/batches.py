"""Encoded rows to padded batches of like lengths. Every epoch is a full permutation of the rows."""

from typing import Iterator, List, NamedTuple

import numpy as np

from ftbert.batching import PackedBatch

__all__ = ["Batch", "EncodedSet", "epoch_plan", "in_order"]

# Rows of this many batches are sorted by length together: little padding, and each epoch still mixes everything.
_POOL_BATCHES = 50


class Batch(NamedTuple):
    """B padded rows of S tokens.

    Attributes:
        token_ids, mask, segment_ids: int32 (B, S); mask is 1 on tokens, 0 on padding.
        labels: int32 (B,), or float32 (B, C) for multi-label.
    """

    token_ids: np.ndarray
    mask: np.ndarray
    segment_ids: np.ndarray
    labels: np.ndarray


class EncodedSet(NamedTuple):
    """All rows of a data set, end to end, with their labels (B,) or (B, C)."""

    rows: PackedBatch
    labels: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """(B,) tokens in each row."""
        return np.diff(self.rows.row_splits)

    def batch(self, chosen: np.ndarray) -> Batch:
        """The rows named, padded to the longest of them."""
        lengths = self.lengths[chosen]
        columns = np.arange(int(lengths.max()))
        mask = columns < lengths[:, None]
        source = np.where(mask, self.rows.row_splits[:-1][chosen][:, None] + columns, 0)
        mask = mask.astype(np.int32)
        return Batch(
            self.rows.token_ids[source] * mask, mask, self.rows.segment_ids[source] * mask, self.labels[chosen]
        )


def epoch_plan(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> List[np.ndarray]:
    """The batches of one epoch: row indices, each row once, in an order that (seed, epoch) alone decide.

    The rows are permuted as a whole, cut into pools of `_POOL_BATCHES` batches, sorted by length within a pool, cut
    into batches, and the batches are shuffled.
    """
    draw = np.random.RandomState([seed % (1 << 32), epoch])
    order = draw.permutation(len(lengths))
    batches = []
    for begin in range(0, len(order), batch_size * _POOL_BATCHES):
        pool = order[begin : begin + batch_size * _POOL_BATCHES]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[start : start + batch_size] for start in range(0, len(pool), batch_size)]
    return [batches[index] for index in draw.permutation(len(batches))]


def in_order(lengths: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Row indices in batches for measuring, longest first."""
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
