"""Tokenized calls that wait for the engine, and how a batch is cut out of them; guarded by the queue's mutex."""

from collections import deque
from typing import TYPE_CHECKING, Deque, Dict, List, Optional, Tuple

import numpy as np

from ftbert.batching import PackedBatch
from ftbert.serving.ticket import Ticket

if TYPE_CHECKING:
    from ftbert.predictor import FastBertClassifier

__all__ = ["ReadyTickets", "Slice", "join", "least_tokens"]

# Rows [first, end) of a call.
Slice = Tuple[Ticket, int, int]


class ReadyTickets:
    """One line of calls for each kind of answer (logits, or a pooling): a batch holds one kind.

    Args:
        batch_tokens: T at most in a batch; a longer row makes a batch of its own.
        least_tokens: a batch takes half of what waits, but not less than this: under a light load the first rows of a
            batch do not wait for the last, under a heavy one batches are large.
        max_wait: seconds after a call's submission when it is due, however small the batch.
    """

    def __init__(self, batch_tokens: int, least_tokens: int, max_wait: float) -> None:
        self._batch_tokens = batch_tokens
        self._least_tokens = min(least_tokens, batch_tokens)
        self._max_wait = max_wait
        self._lines: Dict[str, Deque[Ticket]] = {}
        self._tokens: Dict[str, int] = {}

    def add(self, ticket: Ticket) -> None:
        """Puts a tokenized call at the end of its line."""
        self._lines.setdefault(ticket.want, deque()).append(ticket)
        self._tokens[ticket.want] = self._tokens.get(ticket.want, 0) + ticket.tokens_left

    def due_in(self, now: float) -> Optional[float]:
        """Seconds until a batch must run; 0 or less: now. None: nothing waits."""
        heads = [line[0] for line in self._lines.values() if line]
        if not heads:
            return None
        oldest = min(heads, key=_submitted)
        if self._tokens[oldest.want] >= self._batch_tokens:
            return 0.0
        return oldest.submitted + self._max_wait - now

    def take(self, now: float) -> List[Slice]:
        """Cuts a batch for the kind whose call has waited longest; [] when all of its callers have gone."""
        want = min((line[0] for line in self._lines.values() if line), key=_submitted).want
        line = self._lines[want]
        slices: List[Slice] = []
        room = min(self._batch_tokens, max(self._least_tokens, self._tokens[want] // 2))
        while line and room > 0:
            ticket = line[0]
            if ticket.abandoned:
                self._tokens[want] -= ticket.tokens_left
                line.popleft()
                continue
            assert ticket.batch is not None
            splits = ticket.batch.row_splits
            first, end = ticket.next_row, len(splits) - 1
            if ticket.tokens_left > room:
                end = int(np.searchsorted(splits, splits[first] + room, side="right")) - 1
                if end <= first:
                    if slices:
                        break
                    end = first + 1
            tokens = int(splits[end] - splits[first])
            room -= tokens
            self._tokens[want] -= tokens
            if first == 0:
                ticket.started = now
            ticket.next_row = end
            slices.append((ticket, first, end))
            line.popleft()
            if end < len(splits) - 1:
                line.append(ticket)  # the rest of a long call goes behind those who came meanwhile
                break
        return slices

    def remove(self, ticket: Ticket) -> None:
        """Takes out what is left of a call, if it is still in its line."""
        line = self._lines.get(ticket.want)
        if line is not None and ticket in line:
            line.remove(ticket)
            self._tokens[ticket.want] -= ticket.tokens_left

    def drain(self) -> List[Ticket]:
        """Takes out everything."""
        left = [ticket for line in self._lines.values() for ticket in line]
        self._lines.clear()
        self._tokens.clear()
        return left


def join(slices: List[Slice]) -> PackedBatch:
    """The rows of all slices, end to end."""
    tokens, segments, lengths = [], [], []
    for ticket, first, end in slices:
        assert ticket.batch is not None
        token_ids, segment_ids, splits = ticket.batch
        tokens.append(token_ids[splits[first] : splits[end]])
        segments.append(segment_ids[splits[first] : splits[end]])
        lengths.append(np.diff(splits[first : end + 1]))
    row_lengths = np.concatenate(lengths)
    row_splits = np.zeros(len(row_lengths) + 1, np.int32)
    np.cumsum(row_lengths, out=row_splits[1:])
    return PackedBatch(np.concatenate(tokens), np.concatenate(segments), row_splits)


def _submitted(ticket: Ticket) -> float:
    return ticket.submitted


def least_tokens(predictor: "FastBertClassifier") -> int:
    """Tokens below which a batch would use the device badly: a card takes all that waits."""
    if any(device.startswith("cuda") for device in predictor.devices):
        return predictor.batch_tokens
    # About ten times the tokens whose time a batch costs besides (benchmarks/queue_bound.py): smaller batches lose more
    # to that cost, larger ones let the first rows wait longer for the last.
    return 256 * max(1, sum(int(engine.get("threads", 1)) for engine in predictor.describe()))
