"""Prometheus metrics of one server, in a registry of its own."""

from typing import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from ftbert.serving.ticket import QueueObserver

__all__ = ["Metrics", "ModelObserver"]

_SECONDS = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2,
    5, 10, 30,
)  # fmt: skip
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


class Metrics:
    """Counters, gauges and histograms under the prefix `ftbert_`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "ftbert_requests",
            "Requests answered, by route and HTTP status.",
            ["route", "status"],
            registry=self.registry,
        )
        self.errors = Counter(
            "ftbert_errors", "Requests answered with an error, by type.", ["type"], registry=self.registry
        )
        self.disconnects = Counter(
            "ftbert_disconnects", "Requests whose client went away before the answer.", registry=self.registry
        )
        self.seconds = Histogram(
            "ftbert_request_seconds",
            "From a request's headers to its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.texts = Counter("ftbert_texts", "Texts tokenized.", ["model"], registry=self.registry)
        self.truncated = Counter(
            "ftbert_truncated_texts", "Texts longer than the model's maximum.", ["model"], registry=self.registry
        )
        self.tokenization = Histogram(
            "ftbert_tokenization_seconds",
            "One turn of the tokenizer.",
            ["model"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.queue = Histogram(
            "ftbert_queue_seconds", "A call's wait in queues.", ["model"], buckets=_SECONDS, registry=self.registry
        )
        self.engine = Histogram(
            "ftbert_engine_seconds", "One batch in the engine.", ["model"], buckets=_SECONDS, registry=self.registry
        )
        self.batch_tokens = Histogram(
            "ftbert_batch_tokens", "Tokens in a batch.", ["model"], buckets=_TOKENS, registry=self.registry
        )
        self.batch_texts = Histogram(
            "ftbert_batch_texts", "Texts in a batch.", ["model"], buckets=_SIZES, registry=self.registry
        )
        self.reloads = Counter("ftbert_reloads", "Reloads of models.", ["outcome"], registry=self.registry)
        self.queued = Gauge(
            "ftbert_queue_texts", "Texts that wait for the tokenizer or the engine.", ["model"], registry=self.registry
        )
        self.connections = Gauge("ftbert_connections", "Open connections.", registry=self.registry)

    def watch_queue(self, model: str, depth: Callable[[], float]) -> None:
        """Reads a model's queue depth whenever the metrics are asked for."""
        self.queued.labels(model).set_function(depth)

    def render(self) -> bytes:
        """The text exposition format, version 0.0.4."""
        return generate_latest(self.registry)


class ModelObserver(QueueObserver):
    """Reports one model's queue to `Metrics`."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._texts = metrics.texts.labels(model)
        self._truncated = metrics.truncated.labels(model)
        self._tokenization = metrics.tokenization.labels(model)
        self._queue = metrics.queue.labels(model)
        self._engine = metrics.engine.labels(model)
        self._batch_tokens = metrics.batch_tokens.labels(model)
        self._batch_texts = metrics.batch_texts.labels(model)

    def tokenized(self, texts: int, truncated: int, seconds: float) -> None:
        self._texts.inc(texts)
        self._truncated.inc(truncated)
        self._tokenization.observe(seconds)

    def ran(self, rows: int, tokens: int, seconds: float) -> None:
        self._engine.observe(seconds)
        self._batch_tokens.observe(tokens)
        self._batch_texts.observe(rows)

    def waited(self, seconds: float) -> None:
        self._queue.observe(seconds)
