"""Texts in, rows of an output out, in order: tokenization in one thread, the engine in others, neither waiting.

texts -> chunks -> [tokenizer thread] -> packed batches by token budget -> [engine threads] -> chunks of rows

At most one chunk more than there are engines is tokenized ahead, and as many are in the engines.
"""

import collections
import concurrent.futures
import itertools
import math
import queue
import threading
from typing import Any, Callable, Deque, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ftbert.batching import PackedBatch, plan, spread
from ftbert.errors import ClosedError, EngineError, OutOfMemoryError
from ftbert.texts import Text
from ftbert.tokenization import Encoded

__all__ = ["Answered", "EnginePool", "answer_batch", "answer_chunks", "answer_stream"]

class Answered(NamedTuple):
    """One chunk: `values` (n, width), and its texts as they were encoded."""

    values: np.ndarray
    encoded: Encoded


class EnginePool:
    """Runs batches on one or more engines. Each engine has `workers` threads, so that one batch's copies overlap
    another's computation; the engine with the least under way takes the next batch, so a faster device takes more.

    An engine that failed (anything but a lack of memory) is left alone as long as another works.

    Args:
        runs: a function for each engine, from a batch and the name of an output to its rows.
        names: the engines' names, for messages.
        workers: threads for each engine.
        row_tile: tokens of the tiles that the engines fill with whole rows; 0: they have none, or not all of them.
    """

    def __init__(
        self,
        runs: Sequence[Callable[[PackedBatch, str], np.ndarray]],
        names: Sequence[str],
        workers: int,
        row_tile: int = 0,
    ) -> None:
        self.row_tile = row_tile
        self._runs = list(runs)
        self._names = list(names)
        self._busy = [0] * len(self._runs)
        self._failures: List[Optional[str]] = [None] * len(self._runs)
        self._turn = 0
        self._threads = len(self._runs) * workers
        self._executor: Optional[concurrent.futures.ThreadPoolExecutor] = None
        self._closed = False
        self._lock = threading.Lock()

    @property
    def engines(self) -> int:
        """How many there are."""
        return len(self._runs)

    @property
    def failures(self) -> List[Optional[str]]:
        """For each engine, what it raised last if it has not worked since."""
        return list(self._failures)

    def run(self, batch: PackedBatch, want: str) -> np.ndarray:
        """One batch, in the caller's thread.

        Raises:
            EngineError: it failed; of several engines the message names the one.
        """
        if len(self._runs) == 1:
            return self._runs[0](batch, want)
        with self._lock:
            count = len(self._runs)
            index = min(
                range(count),
                key=lambda i: (self._failures[i] is not None, self._busy[i], (i - self._turn) % count),
            )
            self._turn = index + 1
            self._busy[index] += 1
        failure = self._failures[index]
        try:
            values = self._runs[index](batch, want)
            failure = None
            return values
        except EngineError as error:
            if not isinstance(error, OutOfMemoryError):
                failure = str(error)
            raise type(error)("%s: %s" % (self._names[index], error)) from error
        finally:
            with self._lock:
                self._busy[index] -= 1
                self._failures[index] = failure

    def submit(self, batch: PackedBatch, want: str) -> "concurrent.futures.Future[np.ndarray]":
        """One batch, in a thread of the pool."""
        with self._lock:
            if self._closed:
                raise ClosedError("This classifier was closed. Load the model again.")
            if self._executor is None:
                self._executor = concurrent.futures.ThreadPoolExecutor(self._threads, "ftbert-engine")
            return self._executor.submit(self.run, batch, want)

    def close(self) -> None:
        """Ends the threads, after what they run."""
        with self._lock:
            self._closed = True
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()


class _Pending(NamedTuple):
    encoded: Encoded
    groups: List[np.ndarray]
    futures: List[Any]


def _finish(pending: _Pending) -> Answered:
    values = None
    for group, future in zip(pending.groups, pending.futures):
        part = future.result()
        if values is None:
            values = np.empty((pending.encoded.batch.num_rows,) + part.shape[1:], np.float32)
        values[group] = part
    assert values is not None
    return Answered(values, pending.encoded)


def answer_batch(batch: PackedBatch, pool: EnginePool, want: str, batch_tokens: int) -> np.ndarray:
    """A batch of any size, cut by the budget and spread over the engines: its rows' values, in its order."""
    lengths = np.diff(batch.row_splits)
    # As many parts on each engine, of as many tokens each, so that all end at once.
    room = max(batch_tokens - int(lengths.max()), 1)
    parts = math.ceil(batch.num_tokens / (room * pool.engines)) * pool.engines
    if parts > batch.num_rows:
        groups = plan(lengths, batch_tokens, pool.row_tile)
    else:
        groups = spread(lengths, parts, pool.row_tile)
    futures: List[Any] = []
    values: Optional[np.ndarray] = None
    try:
        for group in groups:
            futures.append(pool.submit(batch.take(group), want))
        for group, future in zip(groups, futures):
            part = future.result()
            if values is None:
                values = np.empty((batch.num_rows,) + part.shape[1:], np.float32)
            values[group] = part
    finally:
        for future in futures:
            future.cancel()
    assert values is not None
    return values


def answer_chunks(encoded: Iterable[Encoded], pool: EnginePool, want: str, batch_tokens: int) -> Iterator[Answered]:
    """Runs chunks of encoded texts. Results come in order; the next chunk is in the engine before one is returned."""
    pending: Deque[_Pending] = collections.deque()
    try:
        for chunk in encoded:
            batch = chunk.batch
            groups = plan(np.diff(batch.row_splits), batch_tokens, pool.row_tile)
            if len(groups) == 1:
                groups = [np.arange(batch.num_rows)]
                futures = [pool.submit(batch, want)]
            else:
                futures = [pool.submit(batch.take(group), want) for group in groups]
            pending.append(_Pending(chunk, groups, futures))
            if len(pending) > pool.engines:
                yield _finish(pending.popleft())
        while pending:
            yield _finish(pending.popleft())
    finally:
        for chunk_left in pending:
            for future in chunk_left.futures:
                future.cancel()


class _Ended(NamedTuple):
    error: Optional[BaseException]


def _ahead(make: Callable[[], Iterator[Encoded]], most: int) -> Iterator[Encoded]:
    """Walks an iterator in another thread, at most `most` items before the caller; its error is raised here."""
    items: queue.Queue[Any] = queue.Queue(most)
    stopped = threading.Event()

    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                items.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        error: Optional[BaseException] = None
        try:
            for item in make():
                if not put(item):
                    return
        except BaseException as raised:  # noqa: B036 - handed over to the caller's thread
            error = raised
        put(_Ended(error))

    thread = threading.Thread(target=work, name="ftbert-tokenizer", daemon=True)
    thread.start()
    try:
        while True:
            item = items.get()
            if isinstance(item, _Ended):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stopped.set()


def _chunks(texts: Iterable[Text], size: int) -> Iterator[Tuple[int, List[Text]]]:
    """(index of the first, texts) of chunks. The first one is small, so that the engine starts soon; each is at most
    twice the one before it, so that it is tokenized before the engine has done with that one."""
    iterator = iter(texts)
    first, count = 0, max(1, size // 16)
    while True:
        chunk = list(itertools.islice(iterator, count))
        if not chunk:
            return
        yield first, chunk
        first += len(chunk)
        count = min(2 * count, size)


def answer_stream(
    texts: Iterable[Text],
    encode: Callable[[List[Text], int], Encoded],
    pool: EnginePool,
    want: str,
    batch_tokens: int,
    chunk_texts: int,
) -> Iterator[Answered]:
    """Any number of texts, of which only a few chunks are in memory at a time.

    Args:
        texts: strings and pairs; walked in another thread.
        encode: from texts and the index of the first to their ids.
        pool: the engines.
        want: the output.
        batch_tokens: the budget of one batch.
        chunk_texts: how many texts are tokenized and sorted together.
    """
    chunks = _ahead(lambda: (encode(chunk, first) for first, chunk in _chunks(texts, chunk_texts)), pool.engines + 1)
    try:
        for answered in answer_chunks(chunks, pool, want, batch_tokens):
            yield answered
    finally:
        chunks.close()  # type: ignore[attr-defined]
