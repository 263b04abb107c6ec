"""Texts in, rows of an output out, in order: tokenization in one thread, the engine in others, neither waiting.

texts -> chunks -> [tokenizer thread] -> packed batches by token budget -> [engine threads] -> chunks of rows
"""

import collections
import concurrent.futures
import itertools
import queue
import threading
from typing import Any, Callable, Deque, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ftbert.batching import PackedBatch, plan
from ftbert.errors import ClosedError
from ftbert.tokenization import Encoded, Text

__all__ = ["Answered", "EnginePool", "answer_chunks", "answer_stream"]

_AHEAD = 2  # chunks tokenized, and chunks in the engine, at most


class Answered(NamedTuple):
    """One chunk: `values` (n, width), and its texts as they were encoded."""

    values: np.ndarray
    encoded: Encoded


class EnginePool:
    """Runs batches on one or more engines. Each engine has `workers` threads, so that one batch's copies overlap
    another's computation; a free thread takes the next batch, so a faster device takes more of them.

    Args:
        runs: a function for each engine, from a batch and the name of an output to its rows.
        workers: threads for each engine.
    """

    def __init__(self, runs: Sequence[Callable[[PackedBatch, str], np.ndarray]], workers: int) -> None:
        self._runs = list(runs)
        self._free: queue.Queue[Callable[[PackedBatch, str], np.ndarray]] = queue.Queue()
        for run in self._runs * workers:
            self._free.put(run)
        self._threads = len(self._runs) * workers
        self._executor: Optional[concurrent.futures.ThreadPoolExecutor] = None
        self._turn = itertools.count()
        self._closed = False
        self._lock = threading.Lock()

    def run(self, batch: PackedBatch, want: str) -> np.ndarray:
        """One batch, in the caller's thread; engines take turns."""
        if len(self._runs) == 1:
            return self._runs[0](batch, want)
        return self._runs[next(self._turn) % len(self._runs)](batch, want)

    def submit(self, batch: PackedBatch, want: str) -> "concurrent.futures.Future[np.ndarray]":
        """One batch, in a thread of the pool."""
        with self._lock:
            if self._closed:
                raise ClosedError("This classifier was closed. Load the model again.")
            if self._executor is None:
                self._executor = concurrent.futures.ThreadPoolExecutor(self._threads, "ftbert-engine")
            return self._executor.submit(self._run_on_free, batch, want)

    def _run_on_free(self, batch: PackedBatch, want: str) -> np.ndarray:
        run = self._free.get()
        try:
            return run(batch, want)
        finally:
            self._free.put(run)

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


def answer_chunks(encoded: Iterable[Encoded], pool: EnginePool, want: str, batch_tokens: int) -> Iterator[Answered]:
    """Runs chunks of encoded texts. Results come in order; the next chunk is in the engine before one is returned."""
    pending: Deque[_Pending] = collections.deque()
    try:
        for chunk in encoded:
            batch = chunk.batch
            groups = plan(np.diff(batch.row_splits), batch_tokens)
            if len(groups) == 1:
                groups = [np.arange(batch.num_rows)]
                futures = [pool.submit(batch, want)]
            else:
                futures = [pool.submit(batch.take(group), want) for group in groups]
            pending.append(_Pending(chunk, groups, futures))
            if len(pending) >= _AHEAD:
                yield _finish(pending.popleft())
        while pending:
            yield _finish(pending.popleft())
    finally:
        for chunk_left in pending:
            for future in chunk_left.futures:
                future.cancel()


class _Ended(NamedTuple):
    error: Optional[BaseException]


def _ahead(make: Callable[[], Iterator[Encoded]]) -> Iterator[Encoded]:
    """Walks an iterator in another thread, at most `_AHEAD` items before the caller; its error is raised here."""
    items: queue.Queue[Any] = queue.Queue(_AHEAD)
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
    """(index of the first, texts) of chunks; the first one is small, so that the engine starts soon."""
    iterator = iter(texts)
    first, count = 0, max(1, size // 8)
    while True:
        chunk = list(itertools.islice(iterator, count))
        if not chunk:
            return
        yield first, chunk
        first += len(chunk)
        count = size


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
    chunks = _ahead(lambda: (encode(chunk, first) for first, chunk in _chunks(texts, chunk_texts)))
    try:
        for answered in answer_chunks(chunks, pool, want, batch_tokens):
            yield answered
    finally:
        chunks.close()  # type: ignore[attr-defined]
