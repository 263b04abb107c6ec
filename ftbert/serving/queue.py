"""One predictor for many callers: their texts are run together, by a token budget and a deadline.

Two stages, each a thread of its own, so that neither a caller nor an event loop ever tokenizes or runs the engine:

    predict / predict_async -> waiting -> [tokenizer thread] -> ready -> [engine thread] -> callers woken

A batch is run as soon as it is full (`batch_tokens`) or its oldest text has waited `max_wait_ms`. While the engine is
busy the next batch grows, so load raises throughput before it raises latency. Rows are packed without padding; mixing
short and long texts costs nothing.
"""

import asyncio
import logging
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Deque, Dict, List, Optional, Sequence

import numpy as np

from ftbert.batching import PackedBatch
from ftbert.errors import ClosedError, ConfigError, EngineError, InputError, OutOfMemoryError, OverloadedError
from ftbert.serving.ready import ReadyTickets, Slice, join, least_tokens
from ftbert.serving.ticket import QueueObserver, Ticket, wake
from ftbert.texts import Text, check_texts

if TYPE_CHECKING:
    from ftbert.predictor import FastBertClassifier, Prediction

__all__ = ["LOGITS", "BatchingPredictor"]

# One turn of the tokenizer thread takes texts up to this many characters, so that a large request delays small ones by
# a few milliseconds at most.
_TURN_CHARACTERS = 65536

LOGITS = "logits"

_log = logging.getLogger("ftbert.serving")


class BatchingPredictor:
    """A queue in front of a `FastBertClassifier`, for threads and for coroutines.

    Args:
        predictor: the loaded model; closed by `close()`.
        batch_tokens: T at most in one run of the engine (a longer row runs alone). None: the predictor's own. On a CPU
            a batch takes half of what waits, between 256 tokens a thread and this.
        max_wait_ms: how long a text may wait for others to share its batch while the engine is idle.
        max_queue_texts: texts that may wait; one more raises OverloadedError.
        workers: batches in the engine at a time. None: one for a CPU, two for each card, so that none waits for Python.
        observer: told of every turn, batch and wait.

    Attributes:
        failed_batches: batches that the engine failed at since it last ran one.

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
        self._process = os.getpid()
        self._mutex = threading.Lock()
        self._to_tokenize = threading.Condition(self._mutex)
        self._to_run = threading.Condition(self._mutex)
        self._waiting: Deque[Ticket] = deque()
        self._tokenizing = 0  # tickets between the two queues
        self._ready = ReadyTickets(self.batch_tokens, least_tokens(predictor), self.max_wait)
        self._queued_texts = 0  # submitted and not yet handed to the engine
        self._texts_per_second = 0.0
        self.failed_batches = 0
        self._closing = False
        self._threads = [threading.Thread(target=self._tokenizer_loop, name="ftbert-tokenizer", daemon=True)]
        for index in range(workers):
            self._threads.append(
                threading.Thread(target=self._engine_loop, name="ftbert-engine-%d" % index, daemon=True)
            )
        if predictor.devices[0].startswith("cuda"):  # else the first minute's batches would record graphs on their way
            try:
                predictor.warm(self.batch_tokens, -(-workers // len(predictor.devices)))
            except OutOfMemoryError as error:  # smaller batches may still find room
                _log.warning("%s Not every size was prepared.", error)
        for thread in self._threads:
            thread.start()

    # Calls

    def predict(
        self, texts: Sequence[Text], top_k: Optional[int] = 1, timeout: Optional[float] = None
    ) -> "List[Prediction]":
        """`FastBertClassifier.predict`, sharing batches with every other thread that calls it now.

        Args:
            texts: B texts, or pairs of texts.
            top_k: how many labels each prediction's `top` names; None: all.
            timeout: seconds to wait.

        Raises:
            OverloadedError: the queue is full.
            DeadlineError: `timeout` is over.
            InputError: `texts` is not a sequence of texts.
            ClosedError: after `close()`.
        """
        texts = check_texts(texts)
        if not texts:
            return []
        answer = self.submit(texts).result(timeout)
        return self.predictor.predictions_from_logits(answer.values, answer.truncated, top_k)

    async def predict_async(
        self, texts: Sequence[Text], top_k: Optional[int] = 1, timeout: Optional[float] = None
    ) -> "List[Prediction]":
        """`predict` for a coroutine; the event loop is never held up. Cancelling it drops the work."""
        texts = check_texts(texts)
        if not texts:
            return []
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
        ticket = Ticket(self, self._checked(texts), want, truncation, asyncio.get_event_loop())
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
            left += self._ready.drain()
            left = [ticket for ticket in left if not ticket.abandoned]
            for ticket in left:
                ticket.fail(ClosedError("The predictor was closed before this text was reached."))
            self._queued_texts = 0
        wake(left)
        if not any(thread.is_alive() for thread in self._threads):
            self.predictor.close()

    def __enter__(self) -> "BatchingPredictor":
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        return "BatchingPredictor(%r, batch_tokens=%d)" % (self.predictor, self.batch_tokens)

    # The way in and the way out

    @staticmethod
    def _checked(texts: Sequence[Text]) -> List[Text]:
        checked = check_texts(texts)
        if not checked:
            raise InputError("texts: expected at least one text, got none.")
        return checked

    def _enqueue(self, ticket: Ticket) -> None:
        if os.getpid() != self._process:
            raise ClosedError(
                "This queue was made in process %d; a forked child (%d) has none of its threads. Make one in the child."
                % (self._process, os.getpid())
            )
        with self._mutex:
            if self._closing:
                raise ClosedError("Expected an open predictor, but this one was closed; load it again.")
            if self._queued_texts + len(ticket.texts) > self.max_queue_texts:
                rate = self._texts_per_second
                raise OverloadedError(
                    "Expected room for %d more texts, but %d of at most %d wait already. Try again later."
                    % (len(ticket.texts), self._queued_texts, self.max_queue_texts),
                    retry_after=min(60.0, self._queued_texts / rate) if rate else 1.0,
                )
            self._queued_texts += len(ticket.texts)
            self._waiting.append(ticket)
            self._to_tokenize.notify()

    def abandon(self, ticket: Ticket) -> None:
        """Drops a call; `Ticket.abandon`."""
        with self._mutex:
            if not ticket.abandoned:
                ticket.abandoned = True
                self._queued_texts -= len(ticket.texts) - ticket.next_row

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
            done: List[Ticket] = []
            with self._mutex:
                self._tokenizing -= len(turn)
                for ticket in turn:
                    if ticket.abandoned:
                        continue
                    if ticket in failed:
                        ticket.fail(failed[ticket])
                        self._queued_texts -= len(ticket.texts)
                        done.append(ticket)
                    else:
                        self._ready.add(ticket)
                self._to_run.notify_all()
            wake(done)

    def _take_turn(self) -> List[Ticket]:
        turn: List[Ticket] = []
        characters = 0
        truncation = None
        while self._waiting and characters < _TURN_CHARACTERS:
            ticket = self._waiting[0]
            if not ticket.abandoned:
                if turn and ticket.truncation != truncation:
                    break
                truncation = ticket.truncation
                turn.append(ticket)
                for text in ticket.texts:
                    characters += len(text) if isinstance(text, str) else len(text[0]) + len(text[1])
            self._waiting.popleft()
        return turn

    def _tokenize(self, turn: List[Ticket]) -> Dict[Ticket, BaseException]:
        """Fills in the tickets' batches; those that could not be tokenized come back with why."""
        if not turn:
            return {}
        began = time.perf_counter()
        texts = [text for ticket in turn for text in ticket.texts]
        try:
            predictor = self.predictor
            encoded = predictor.tokenizer.encode(
                texts, predictor.max_length, turn[0].truncation or predictor.truncation
            )
        except Exception as error:
            if len(turn) == 1:
                return {turn[0]: error}
            # One caller's text must not fail the others'.
            failed: Dict[Ticket, BaseException] = {}
            for ticket in turn:
                failed.update(self._tokenize([ticket]))
            return failed
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
        return {}

    # Stage 2

    def _engine_loop(self) -> None:
        while True:
            with self._mutex:
                while True:
                    due = self._ready.due_in(time.perf_counter())
                    if due is None:
                        if self._closing and not self._waiting and not self._tokenizing:
                            return
                        self._to_run.wait()
                    elif due > 0 and not self._closing:
                        self._to_run.wait(due)
                    else:
                        break
                slices = self._ready.take(time.perf_counter())
                self._queued_texts -= sum(end - first for _, first, end in slices)
            if slices:
                self._run(slices)

    def _run(self, slices: List[Slice]) -> None:
        error: Optional[BaseException] = None
        values: Optional[np.ndarray] = None
        batch = join(slices)
        began = time.perf_counter()
        try:
            values = self._values(batch, slices[0][0].want)
        except Exception as raised:
            error = raised
        seconds = time.perf_counter() - began
        done: List[Ticket] = []
        with self._mutex:  # several workers may hold rows of one call
            self.failed_batches = self.failed_batches + 1 if isinstance(error, EngineError) else 0
            row = 0
            for ticket, first, end in slices:
                if ticket.abandoned:
                    pass
                elif values is None:
                    assert error is not None
                    self._queued_texts -= len(ticket.texts) - ticket.next_row
                    self._ready.remove(ticket)
                    ticket.fail(error)
                    done.append(ticket)
                elif ticket.deliver(first, end, values[row : row + end - first], seconds):
                    done.append(ticket)
                row += end - first
            if values is not None and seconds > 0:
                rate = batch.num_rows / seconds
                old = self._texts_per_second
                self._texts_per_second = 0.9 * old + 0.1 * rate if old else rate
        if error is None:
            self._observer.ran(batch.num_rows, batch.num_tokens, seconds)
            for ticket in done:
                self._observer.waited(ticket.queue_seconds)
        wake(done)

    def _values(self, batch: PackedBatch, want: str, again: bool = False) -> np.ndarray:
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
        except EngineError as error:
            if again or len(self.predictor.devices) == 1:
                raise
            # The predictor leaves a device that failed alone: no caller notices as long as another works.
            _log.error("%s. The batch runs again on another device.", error)
            return self._values(batch, want, again=True)
