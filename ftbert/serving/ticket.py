"""One call's place in the queue, and what comes back for it."""

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Dict, List, NamedTuple, Optional

import numpy as np

from ftbert.batching import PackedBatch
from ftbert.errors import DeadlineError
from ftbert.texts import Text

if TYPE_CHECKING:
    from ftbert.serving.queue import BatchingPredictor

__all__ = ["Answer", "QueueObserver", "Ticket", "wake"]


class Answer(NamedTuple):
    """What came back for one call's B texts.

    Attributes:
        values: (B, C) float32 logits, or (B, H) embeddings.
        truncated: (B,) bool; True where the text was longer than the model's maximum.
        tokens: T, tokens of all the texts, special tokens included.
        tokenization_seconds: the turn of the tokenizer that held these texts.
        queue_seconds: waiting for the tokenizer and for the engine.
        engine_seconds: the engine's runs that held these texts.
    """

    values: np.ndarray
    truncated: np.ndarray
    tokens: int
    tokenization_seconds: float
    queue_seconds: float
    engine_seconds: float


class QueueObserver:
    """What happens in the queue, for metrics. Each method is called from the queue's threads and does nothing here."""

    def tokenized(self, texts: int, truncated: int, seconds: float) -> None:
        """A turn of the tokenizer ended."""

    def ran(self, rows: int, tokens: int, seconds: float) -> None:
        """A batch left the engine."""

    def waited(self, seconds: float) -> None:
        """A call was answered that had spent this long waiting in queues."""


class Ticket:
    """One call's place in the queue. Made by `BatchingPredictor.submit`.

    What the queue keeps here is guarded by the queue's mutex.

    Attributes:
        texts: B texts.
        want: the kind of answer.
        truncation: a policy for long texts, in place of the predictor's.
        submitted, started: when it was queued, and when its first rows were handed to the engine.
        batch, truncated: the tokenized texts.
        next_row: rows before this one were handed to the engine.
        abandoned: no work is wanted any more: the caller has gone, or is answered.
        loop: the event loop that waits, if one does.
    """

    def __init__(
        self,
        queue: "BatchingPredictor",
        texts: List[Text],
        want: str,
        truncation: Optional[str],
        loop: Optional[asyncio.AbstractEventLoop] = None,
    ) -> None:
        self._queue = queue
        self._answer: Optional[Answer] = None
        self._error: Optional[BaseException] = None
        self._values: Optional[np.ndarray] = None
        self._rows_left = len(texts)
        self._engine_seconds = 0.0
        self._lock = threading.Lock()  # held until the answer is there
        self._lock.acquire()
        self._future = None if loop is None else loop.create_future()
        self.loop = loop
        self.texts = texts
        self.want = want
        self.truncation = truncation
        self.abandoned = False
        self.submitted = time.perf_counter()
        self.started = 0.0
        self.batch: Optional[PackedBatch] = None
        self.truncated: Optional[np.ndarray] = None
        self.tokenization_seconds = 0.0
        self.next_row = 0

    # For the caller

    def abandon(self) -> None:
        """Drops the call: what has not reached the engine never will, and its place in the queue is free at once."""
        self._queue.abandon(self)

    def result(self, timeout: Optional[float] = None) -> Answer:
        """Waits for the answer.

        Args:
            timeout: seconds; None waits as long as it takes.

        Raises:
            DeadlineError: the time is over; the call was dropped.
            FtbertError: whatever the tokenizer or the engine raised for this call.
        """
        if not self._lock.acquire(timeout=-1 if timeout is None else timeout):
            raise self._late(timeout)
        self._lock.release()
        return self._outcome()

    async def result_async(self, timeout: Optional[float] = None) -> Answer:
        """`result` for a coroutine. A cancelled coroutine drops the call."""
        try:
            if timeout is None:
                await self.future
            else:
                await asyncio.wait_for(self.future, timeout)
        except asyncio.TimeoutError:
            raise self._late(timeout) from None
        except asyncio.CancelledError:
            self.abandon()
            raise
        return self._outcome()

    @property
    def future(self) -> "asyncio.Future[None]":
        """Done when the answer is there (tickets of `submit_async` only); then `result(0)` gives it without waiting."""
        assert self._future is not None, "submitted from a thread, not from an event loop"
        return self._future

    def _late(self, timeout: Optional[float]) -> DeadlineError:
        self.abandon()
        return DeadlineError("Expected an answer within %.3g s, got none; the texts were dropped." % (timeout or 0.0))

    def _outcome(self) -> Answer:
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer

    # For the queue

    @property
    def tokens_left(self) -> int:
        """Tokens of the rows that were not handed to the engine."""
        assert self.batch is not None
        return int(self.batch.row_splits[-1] - self.batch.row_splits[self.next_row])

    @property
    def queue_seconds(self) -> float:
        """Waiting for the tokenizer and for the engine."""
        return max(0.0, self.started - self.submitted - self.tokenization_seconds)

    def fail(self, error: BaseException) -> None:
        """Gives the call an error in place of an answer."""
        self._error = error
        self.abandoned = True

    def deliver(self, first: int, end: int, values: np.ndarray, seconds: float) -> bool:
        """Takes the engine's values for rows [first, end); True when they were the last and the call is answered."""
        assert self.batch is not None and self.truncated is not None
        self._engine_seconds += seconds
        self._rows_left -= end - first
        if end - first == len(self.texts):
            self._values = values
        else:
            if self._values is None:
                self._values = np.empty((len(self.texts),) + values.shape[1:], np.float32)
            self._values[first:end] = values
        if self._rows_left:
            return False
        self._answer = Answer(
            self._values,
            self.truncated,
            self.batch.num_tokens,
            self.tokenization_seconds,
            self.queue_seconds,
            self._engine_seconds,
        )
        self.abandoned = True
        return True

    def release(self) -> None:
        """Lets a waiting thread go on; once, after `fail` or the last `deliver`."""
        self._lock.release()


def wake(tickets: List[Ticket]) -> None:
    """Wakes the callers of answered tickets: threads one by one, every event loop with a single call."""
    by_loop: Dict[asyncio.AbstractEventLoop, List["asyncio.Future[None]"]] = {}
    for ticket in tickets:
        if ticket.loop is not None:
            by_loop.setdefault(ticket.loop, []).append(ticket.future)
        ticket.release()
    for loop, futures in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, futures)
        except RuntimeError:
            pass  # the loop was closed: nobody waits there any more


def _resolve(futures: List["asyncio.Future[None]"]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
