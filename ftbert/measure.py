"""How fast a loaded model answers here: latency of one text, throughput of many. Numbers of one machine and moment."""

import functools
import statistics
import time
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Sequence

import numpy as np

from ftbert.batching import PackedBatch, plan

if TYPE_CHECKING:
    from ftbert.predictor import FastBertClassifier

__all__ = ["Latency", "fixed_batch", "lognormal_batch", "measure_model", "time_calls"]


class Latency(NamedTuple):
    """Wall-clock times of one call, in milliseconds."""

    median: float
    least: float
    p95: float
    calls: int


def time_calls(call: Callable[[], Any], seconds: float = 1.0, least_calls: int = 5) -> Latency:
    """Times a call again and again, after one that is not counted.

    Args:
        call: what to time.
        seconds: how long to go on.
        least_calls: at least so many, however long they take.
    """
    call()
    times = []  # type: List[float]
    end = time.perf_counter() + seconds
    while len(times) < least_calls or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    times.sort()
    return Latency(statistics.median(times), times[0], times[min(len(times) - 1, int(len(times) * 0.95))], len(times))


def _batch(lengths: Sequence[int], vocab_size: int, seed: int) -> PackedBatch:
    splits = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=splits[1:])
    ids = np.random.RandomState(seed).randint(0, vocab_size, splits[-1]).astype(np.int32)
    return PackedBatch(ids, np.zeros(splits[-1], np.int32), splits)


def fixed_batch(rows: int, length: int, vocab_size: int, seed: int = 0) -> PackedBatch:
    """B rows of `length` random tokens each."""
    return _batch([length] * rows, vocab_size, seed)


def lognormal_batch(rows: int, vocab_size: int, longest: int = 128, seed: int = 0) -> PackedBatch:
    """Rows as long as short real texts are: lognormal, median 40, sigma 0.6, clipped to 8 .. `longest` tokens."""
    lengths = np.random.RandomState(seed).lognormal(np.log(40.0), 0.6, rows)
    return _batch(np.clip(np.rint(lengths), 8, longest).astype(np.int64).tolist(), vocab_size, seed + 1)


def measure_model(
    classifier: "FastBertClassifier", seconds: float = 1.0, rows: int = 256, batch_tokens: int = 4096
) -> List[Dict[str, Any]]:
    """Measures the engine call with token ids at the shapes a service meets; of an encoder without a classifier, first
    states.

    Returns:
        One record for each shape: work, rows, tokens, milliseconds (median), least, p95, texts_per_second.
    """
    config = classifier.config
    answer = classifier.predict_ids if classifier.labels else functools.partial(classifier.encode_ids, pooling="first")
    longest = min(128, config.max_position_embeddings)
    work = [
        ("1 x %d" % min(32, longest), fixed_batch(1, min(32, longest), config.vocab_size)),
        ("1 x %d" % longest, fixed_batch(1, longest, config.vocab_size)),
        ("8 x %d" % longest, fixed_batch(8, longest, config.vocab_size)),
        ("32 x %d" % longest, fixed_batch(32, longest, config.vocab_size)),
    ]
    mixed = lognormal_batch(rows, config.vocab_size, longest)
    records = []
    for name, batch in work + [("%d texts of 8 to %d tokens" % (rows, longest), mixed)]:
        groups = plan(np.diff(batch.row_splits), batch_tokens, classifier.row_tile)
        parts = [batch.take(group) for group in groups]

        def run(parts: List[PackedBatch] = parts) -> None:
            for part in parts:
                answer(part)

        latency = time_calls(run, seconds)
        records.append(
            {
                "work": name,
                "rows": batch.num_rows,
                "tokens": batch.num_tokens,
                "milliseconds": latency.median,
                "least": latency.least,
                "p95": latency.p95,
                "calls": latency.calls,
                "texts_per_second": batch.num_rows / latency.median * 1e3,
            }
        )
    return records
