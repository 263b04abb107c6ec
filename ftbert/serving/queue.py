"""One predictor for many callers: their texts are run together, by a token budget and a deadline.

Two stages, each a thread of its own, so that neither a caller nor an event loop ever tokenizes or runs the engine:

    predict / predict_async -> waiting -> [tokenizer thread] -> ready -> [engine thread] -> callers woken

A batch is run as soon as it is full (`batch_tokens`) or its oldest text has waited `max_wait_ms`. While the engine is busy
the next batch grows, so load raises throughput before it raises latency. Rows are packed without padding; mixing short
and long texts costs nothing.
"""

import asyncio
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Deque, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ftbert.batching import PackedBatch
from ftbert.errors import ClosedError, ConfigError, DeadlineError, InputError, OutOfMemoryError, OverloadedError
from ftbert.tokenization import Text, check_texts

if TYPE_CHECKING:
    from ftbert.predictor import FastBertClassifier, Prediction

__all__ = ["LOGITS", "Answer", "BatchingPredictor", "QueueObserver", "Ticket"]

# One turn of the tokenizer thread takes texts up to this many characters, so that a large request delays small ones by
# a few milliseconds at most.
_TURN_CHARACTERS = 65536

LOGITS = "logits"


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
    """What happens in the queue, for metrics. Every method is called from the queue's own threads and does nothing here."""

    def tokenized(self, texts: int, truncated: int, seconds: float) -> None:
        """A turn of the tokenizer ended."""

    def ran(self, rows: int, tokens: int, seconds: float) -> None:
        """A batch left the engine."""

    def waited(self, seconds: float) -> None:
        """A call was answered that had spent this long waiting in queues."""


class Ticket:
    """One call's place in the queue. Made by `BatchingPredictor.submit`."""

    __slots__ = (
        "_abandoned", "_answer", "_error", "_lock", "_loop_future", "_queue", "batch", "engine_seconds", "left", "next_row",
        "started", "submitted", "texts", "tokenization_seconds", "truncated", "truncation", "values", "want",
    )  # fmt: skip

    def __init__(self, queue: "BatchingPredictor", texts: List[Text], want: str, truncation: Optional[str]) -> None:
        self._queue = queue
        self._abandoned = False
        self._answer: Optional[Answer] = None
        self._error: Optional[BaseException] = None
        self._loop_future: Optional[Tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]] = None
        self._lock = threading.Lock()  # held until the answer is there
        self._lock.acquire()
        self.texts = texts
        self.want = want
        self.truncation = truncation
        self.submitted = time.perf_counter()
        self.batch: Optional[PackedBatch] = None
        self.truncated: Optional[np.ndarray] = None
        self.values: Optional[np.ndarray] = None
        self.next_row = 0
        self.left = len(texts)
        self.started = 0.0
        self.tokenization_seconds = 0.0
        self.engine_seconds = 0.0

    @property
    def abandoned(self) -> bool:
        """True when nobody waits for the answer any more."""
        return self._abandoned

    def abandon(self) -> None:
        """Drops the call: what has not reached the engine yet never will, and its place in the queue is free at once."""
        self._queue._abandon(self)

    def result(self, timeout: Optional[float] = None) -> Answer:
        """Waits for the answer.

        Args:
            timeout: seconds; None waits as long as it takes.

        Raises:
            DeadlineError: the time is over; the call was dropped.
            FtbertError: whatever the tokenizer or the engine raised for this call.
        """
        if not self._lock.acquire(timeout=-1 if timeout is None else timeout):
            self.abandon()
            raise DeadlineError("Expected an answer within %.3g s, got none; the texts were dropped." % (timeout or 0.0))
        self._lock.release()
        return self._outcome()

    async def result_async(self, timeout: Optional[float] = None) -> Answer:
        """`result` for a coroutine. A cancelled coroutine drops the call."""
        _, future = self._loop_future  # type: ignore[misc]
        try:
            if timeout is None:
                await future
            else:
                await asyncio.wait_for(future, timeout)
        except asyncio.TimeoutError:
            self.abandon()
            raise DeadlineError("Expected an answer within %.3g s, got none; the texts were dropped." % timeout) from None
        except asyncio.CancelledError:
            self.abandon()
            raise
        return self._outcome()

    @property
    def future(self) -> "asyncio.Future[None]":
        """Done when the answer is there (tickets of `submit_async` only); then `result(0)` gives it without waiting."""
        assert self._loop_future is not None
        return self._loop_future[1]

    def _outcome(self) -> Answer:
        if self._error is not None:
            raise self._error
        assert self._answer is not None
        return self._answer


class BatchingPredictor:
    """A queue in front of a `FastBertClassifier`, for threads and for coroutines.

    Args:
        predictor: the loaded model; closed by `close()`.
        batch_tokens: T at most in one run of the engine (a longer row runs alone). None: the predictor's own.
        max_wait_ms: how long a text may wait for others to share its batch while the engine is idle.
        max_queue_texts: texts that may wait; one more raises OverloadedError.
        workers: batches in the engine at a time. None: one for a CPU, two for each card, so that none waits for Python.
        observer: told of every turn, batch and wait.

    Raises:
        ConfigError: an argument is out of range.
    """

    def __init__(
        self,
        predictor: "FastBertClassifier",
        batch_tokens: Optional[int] = None,
        max_wait_ms: float = 1.0,
        max_queue_texts: int = 8192,
        workers: Optional[int] = None,
        observer: Optional[QueueObserver] = None,
    ) -> None:
        if batch_tokens is None:
            batch_tokens = predictor.batch_tokens
        if workers is None:
            workers = sum(2 if device.startswith("cuda") else 1 for device in predictor.devices)
        for name, value, least in (
            ("batch_tokens", batch_tokens, 1),
            ("max_wait_ms", max_wait_ms, 0),
            ("max_queue_texts", max_queue_texts, 1),
            ("workers", workers, 1),
        ):
            if not value >= least:
                raise ConfigError("%s: expected at least %d, got %r." % (name, least, value))
        self.predictor = predictor
        self.batch_tokens = int(batch_tokens)
        self.max_wait = max_wait_ms / 1000.0
        self.max_queue_texts = int(max_queue_texts)
        self._observer = observer or QueueObserver()
        self._mutex = threading.Lock()
        self._to_tokenize = threading.Condition(self._mutex)
        self._to_run = threading.Condition(self._mutex)
        self._waiting: Deque[Ticket] = deque()
        self._tokenizing = 0  # tickets between the two queues
        self._ready: Dict[str, Deque[Ticket]] = {}
        self._ready_tokens: Dict[str, int] = {}
        self._queued_texts = 0  # submitted and not yet handed to the engine
        self._texts_per_second = 0.0
        self._closing = False
        self._threads = [threading.Thread(target=self._tokenizer_loop, name="ftbert-tokenizer", daemon=True)]
        for index in range(workers):
            self._threads.append(threading.Thread(target=self._engine_loop, name="ftbert-engine-%d" % index, daemon=True))
        for thread in self._threads:
            thread.start()

    # Calls

    def predict(
        self, texts: Sequence[Text], top_k: int = 1, timeout: Optional[float] = None
    ) -> "List[Prediction]":
        """`FastBertClassifier.predict`, sharing batches with every other thread that calls it now.

        Args:
            texts: B texts, or pairs of texts.
            top_k: how many labels each prediction's `scores` names.
            timeout: seconds to wait.

        Raises:
            OverloadedError: the queue is full.
            DeadlineError: `timeout` is over.
            InputError: `texts` is not a sequence of texts.
            ClosedError: after `close()`.
        """
        answer = self.submit(texts).result(timeout)
        return self.predictor.predictions_from_logits(answer.values, answer.truncated, top_k)

    async def predict_async(
        self, texts: Sequence[Text], top_k: int = 1, timeout: Optional[float] = None
    ) -> "List[Prediction]":
        """`predict` for a coroutine; the event loop is never held up. Cancelling it drops the work."""
        answer = await self.submit_async(texts).result_async(timeout)
        return self.predictor.predictions_from_logits(answer.values, answer.truncated, top_k)

    def submit(self, texts: Sequence[Text], want: str = LOGITS, truncation: Optional[str] = None) -> Ticket:
        """Puts texts in the queue and returns at once.

        Args:
            texts: B texts, or pairs of texts; none gives an error.
            want: "logits", or a pooling that `FastBertClassifier.encode` knows ("pooled", "first", "mean").
            truncation: overrides the predictor's policy for texts that are too long.

        Raises:
            OverloadedError, InputError, ClosedError: as `predict`.
        """
        ticket = Ticket(self, self._checked(texts), want, truncation)
        self._enqueue(ticket)
        return ticket

    def submit_async(self, texts: Sequence[Text], want: str = LOGITS, truncation: Optional[str] = None) -> Ticket:
        """`submit` from a running event loop: the ticket's `result_async` may be awaited there."""
        ticket = Ticket(self, self._checked(texts), want, truncation)
        loop = asyncio.get_event_loop()
        ticket._loop_future = (loop, loop.create_future())
        self._enqueue(ticket)
        return ticket

    @property
    def queued_texts(self) -> int:
        """Texts that were submitted and have not reached the engine."""
        return self._queued_texts

    def close(self, timeout: Optional[float] = None) -> None:
        """Answers what is queued, then stops the threads and closes the predictor.

        Args:
            timeout: seconds to wait for the queue to empty; what is left then is answered with ClosedError.
        """
        with self._mutex:
            self._closing = True
            self._to_tokenize.notify_all()
            self._to_run.notify_all()
        end = None if timeout is None else time.perf_counter() + timeout
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.perf_counter()))
        with self._mutex:
            left = list(self._waiting)
            self._waiting.clear()
            for queue in self._ready.values():
                left.extend(queue)
                queue.clear()
            left = [ticket for ticket in left if not ticket._abandoned]
            for ticket in left:
                ticket._abandoned = True  # a part of it that is in the engine now is not answered twice
            self._queued_texts = 0
        self._finish([(ticket, ClosedError("The predictor was closed before this text was reached.")) for ticket in left])
        if not any(thread.is_alive() for thread in self._threads):
            self.predictor.close()

    def __enter__(self) -> "BatchingPredictor":
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        return "BatchingPredictor(%r, batch_tokens=%d, max_wait_ms=%g, max_queue_texts=%d)" % (
            self.predictor, self.batch_tokens, self.max_wait * 1000, self.max_queue_texts,
        )  # fmt: skip

    # The way in and the way out

    @staticmethod
    def _checked(texts: Sequence[Text]) -> List[Text]:
        checked = check_texts(texts)
        if not checked:
            raise InputError("texts: expected at least one text, got none.")
        return checked

    def _enqueue(self, ticket: Ticket) -> None:
        with self._mutex:
            if self._closing:
                raise ClosedError("Expected an open predictor, but this one was closed; load it again.")
            if self._queued_texts + ticket.left > self.max_queue_texts:
                rate = self._texts_per_second
                raise OverloadedError(
                    "Expected room for %d more texts, but %d of at most %d wait already. Try again later."
                    % (ticket.left, self._queued_texts, self.max_queue_texts),
                    retry_after=min(60.0, self._queued_texts / rate) if rate else 1.0,
                )
            self._queued_texts += ticket.left
            self._waiting.append(ticket)
            self._to_tokenize.notify()

    def _abandon(self, ticket: Ticket) -> None:
        with self._mutex:
            if not ticket._abandoned and ticket._answer is None and ticket._error is None:
                ticket._abandoned = True
                self._queued_texts = max(0, self._queued_texts - (len(ticket.texts) - ticket.next_row))

    @staticmethod
    def _finish(outcomes: List[Tuple[Ticket, Optional[BaseException]]]) -> None:
        """Wakes the callers of finished tickets: threads one by one, every event loop with a single call."""
        by_loop: Dict[asyncio.AbstractEventLoop, List["asyncio.Future[None]"]] = {}
        for ticket, error in outcomes:
            ticket._error = error
            if ticket._loop_future is not None:
                loop, future = ticket._loop_future
                by_loop.setdefault(loop, []).append(future)
            ticket._lock.release()
        for loop, futures in by_loop.items():
            try:
                loop.call_soon_threadsafe(_resolve, futures)
            except RuntimeError:
                pass  # the loop was closed: nobody waits there any more

    # Stage 1

    def _tokenizer_loop(self) -> None:
        while True:
            with self._mutex:
                while not self._waiting and not self._closing:
                    self._to_tokenize.wait()
                if not self._waiting:
                    self._to_run.notify_all()
                    return
                turn = self._take_turn()
                self._tokenizing += len(turn)
            failed = self._tokenize(turn)
            with self._mutex:
                self._tokenizing -= len(turn)
                for ticket in turn:
                    if ticket.batch is not None and not ticket._abandoned:
                        self._ready.setdefault(ticket.want, deque()).append(ticket)
                        self._ready_tokens[ticket.want] = self._ready_tokens.get(ticket.want, 0) + ticket.batch.num_tokens
                for ticket, _ in failed:
                    if not ticket._abandoned:
                        self._queued_texts -= len(ticket.texts)
                self._to_run.notify_all()
            self._finish(failed)

    def _take_turn(self) -> List[Ticket]:
        turn: List[Ticket] = []
        characters = 0
        truncation = None
        while self._waiting and characters < _TURN_CHARACTERS:
            ticket = self._waiting[0]
            if not ticket._abandoned:
                if turn and ticket.truncation != truncation:
                    break
                truncation = ticket.truncation
                turn.append(ticket)
                for text in ticket.texts:
                    characters += len(text) if isinstance(text, str) else len(text[0]) + len(text[1])
            self._waiting.popleft()
        return turn

    def _tokenize(self, turn: List[Ticket]) -> List[Tuple[Ticket, Optional[BaseException]]]:
        if not turn:
            return []
        began = time.perf_counter()
        texts = [text for ticket in turn for text in ticket.texts]
        try:
            predictor = self.predictor
            encoded = predictor.tokenizer.encode(texts, predictor.max_length, turn[0].truncation or predictor.truncation)
        except Exception as error:
            if len(turn) == 1:
                return [(turn[0], error)]
            # One caller's text must not fail the others'.
            return [outcome for ticket in turn for outcome in self._tokenize([ticket])]
        seconds = time.perf_counter() - began
        batch, truncated = encoded.batch, encoded.truncated
        row = 0
        for ticket in turn:
            end = row + len(ticket.texts)
            first, last = int(batch.row_splits[row]), int(batch.row_splits[end])
            ticket.batch = PackedBatch(
                batch.token_ids[first:last], batch.segment_ids[first:last], batch.row_splits[row : end + 1] - first
            )
            ticket.truncated = truncated[row:end]
            ticket.tokenization_seconds = seconds
            row = end
        self._observer.tokenized(len(texts), int(truncated.sum()), seconds)
        return []

    # Stage 2

    def _engine_loop(self) -> None:
        while True:
            with self._mutex:
                slices = self._wait_for_batch()
            if slices is None:
                return
            if slices:
                self._run(slices)

    def _wait_for_batch(self) -> Optional[List[Tuple[Ticket, int, int]]]:
        """The next batch as (ticket, first row, end row); None when the queue is closed and empty. Holds the mutex."""
        while True:
            heads = [queue[0] for queue in self._ready.values() if queue]
            if not heads:
                if self._closing and not self._waiting and not self._tokenizing:
                    return None
                self._to_run.wait()
                continue
            head = min(heads, key=lambda ticket: ticket.submitted)
            wait = head.submitted + self.max_wait - time.perf_counter()
            if wait <= 0 or self._closing or self._ready_tokens[head.want] >= self.batch_tokens:
                return self._take_batch(head.want)
            self._to_run.wait(wait)

    def _take_batch(self, want: str) -> List[Tuple[Ticket, int, int]]:
        queue = self._ready[want]
        slices = []
        room = self.batch_tokens
        now = time.perf_counter()
        while queue and room > 0:
            ticket = queue[0]
            assert ticket.batch is not None
            splits = ticket.batch.row_splits
            start, end = ticket.next_row, len(splits) - 1
            if ticket._abandoned:
                self._ready_tokens[want] -= int(splits[end] - splits[start])
                queue.popleft()
                continue
            if splits[end] - splits[start] > room:
                end = int(np.searchsorted(splits, splits[start] + room, side="right")) - 1
                if end <= start:
                    if slices:
                        break
                    end = start + 1
            tokens = int(splits[end] - splits[start])
            room -= tokens
            self._ready_tokens[want] -= tokens
            self._queued_texts -= end - start
            if start == 0:
                ticket.started = now
            ticket.next_row = end
            slices.append((ticket, start, end))
            queue.popleft()
            if end < len(splits) - 1:
                queue.append(ticket)  # the rest of a long call goes behind those who came meanwhile
                break
        return slices

    def _run(self, slices: List[Tuple[Ticket, int, int]]) -> None:
        error: Optional[BaseException] = None
        values = None
        batch = _join(slices)
        began = time.perf_counter()
        try:
            values = self._values(batch, slices[0][0].want)
        except Exception as raised:
            error = raised
        seconds = time.perf_counter() - began
        if error is None:
            self._observer.ran(batch.num_rows, batch.num_tokens, seconds)
        outcomes: List[Tuple[Ticket, Optional[BaseException]]] = []
        row = 0
        for ticket, start, end in slices:
            ticket.engine_seconds += seconds
            if values is not None:
                if ticket.values is None and end - start == len(ticket.texts):
                    ticket.values = values[row : row + end - start]
                else:
                    if ticket.values is None:
                        ticket.values = np.empty((len(ticket.texts),) + values.shape[1:], np.float32)
                    ticket.values[start:end] = values[row : row + end - start]
            row += end - start
            ticket.left -= end - start
            if error is not None or ticket.left == 0:
                outcomes.append((ticket, error))
        with self._mutex:
            if seconds > 0:
                rate = batch.num_rows / seconds
                self._texts_per_second = rate if not self._texts_per_second else 0.9 * self._texts_per_second + 0.1 * rate
            if error is not None:
                self._drop_rest(slices)
            outcomes = [outcome for outcome in outcomes if not outcome[0]._abandoned]
            for ticket, failure in outcomes:
                if failure is None:
                    self._settle(ticket)
                else:
                    ticket._error = failure
        for ticket, failure in outcomes:
            if failure is None:
                self._observer.waited(ticket._answer.queue_seconds)  # type: ignore[union-attr]
        self._finish(outcomes)

    def _drop_rest(self, slices: List[Tuple[Ticket, int, int]]) -> None:
        """Takes the unreached rows of a call whose other rows failed out of the queue."""
        for ticket, _, end in slices:
            if end < len(ticket.texts) and not ticket._abandoned:
                self._queued_texts -= len(ticket.texts) - end
                ticket.next_row = end
                try:
                    self._ready[ticket.want].remove(ticket)
                except ValueError:
                    continue
                assert ticket.batch is not None
                splits = ticket.batch.row_splits
                self._ready_tokens[ticket.want] -= int(splits[-1] - splits[end])

    def _values(self, batch: PackedBatch, want: str) -> np.ndarray:
        try:
            if want == LOGITS:
                return self.predictor.predict_ids(batch)
            return self.predictor.encode_ids(batch, pooling=want)
        except OutOfMemoryError:
            if batch.num_rows == 1:
                raise
            half = batch.num_rows // 2
            rows = np.arange(batch.num_rows)
            return np.concatenate(
                [self._values(batch.take(rows[:half]), want), self._values(batch.take(rows[half:]), want)]
            )

    def _settle(self, ticket: Ticket) -> None:
        assert ticket.values is not None and ticket.truncated is not None and ticket.batch is not None
        ticket._answer = Answer(
            ticket.values,
            ticket.truncated,
            ticket.batch.num_tokens,
            ticket.tokenization_seconds,
            max(0.0, ticket.started - ticket.submitted - ticket.tokenization_seconds),
            ticket.engine_seconds,
        )


def _join(slices: List[Tuple[Ticket, int, int]]) -> PackedBatch:
    tokens, segments, lengths = [], [], []
    for ticket, start, end in slices:
        batch = ticket.batch
        assert batch is not None
        first, last = batch.row_splits[start], batch.row_splits[end]
        tokens.append(batch.token_ids[first:last])
        segments.append(batch.segment_ids[first:last])
        lengths.append(np.diff(batch.row_splits[start : end + 1]))
    row_lengths = np.concatenate(lengths)
    splits = np.zeros(len(row_lengths) + 1, np.int32)
    np.cumsum(row_lengths, out=splits[1:])
    return PackedBatch(np.concatenate(tokens), np.concatenate(segments), splits)


def _resolve(futures: List["asyncio.Future[None]"]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)

