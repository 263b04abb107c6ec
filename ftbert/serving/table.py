"""The models of a server: loaded, warmed up, swapped for fresh ones without a gap."""

import ctypes
import gc
import logging
import threading
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

from ftbert.errors import ClosedError, ConfigError
from ftbert.serving.metrics import Metrics, ModelObserver
from ftbert.serving.options import ServeOptions
from ftbert.serving.queue import LOGITS, BatchingPredictor
from ftbert.serving.ticket import Ticket
from ftbert.texts import Text

if TYPE_CHECKING:
    from ftbert.predictor import FastBertClassifier

__all__ = ["ModelTable", "ServedModel"]

_log = logging.getLogger("ftbert.serving")

_WARM_UP = "warm-up 预热"


class ServedModel:
    """One loaded model and its queue."""

    def __init__(self, name: str, path: str, queue: BatchingPredictor) -> None:
        self.name = name
        self.path = path
        self.queue = queue
        self.predictor = queue.predictor
        self.labels: List[str] = list(self.predictor.labels)
        self.problem_type: str = self.predictor.problem_type
        self.truncation: str = self.predictor.truncation
        self.max_length: int = self.predictor.max_length
        self.engine: str = str(self.predictor.engine)
        self.precision: str = self.predictor.precision
        self.want = LOGITS if self.labels else "mean"


class ModelTable:
    """Names to models. The first is the one that routes without a name use.

    Args:
        models: name -> path of a model folder, or a loaded FastBertClassifier (which cannot be reloaded).
        options: how to load and to queue.
        load: what loads a path; `options.load` unless a test says otherwise.

    Raises:
        ConfigError: no model, or a name that cannot stand in a URL.
        CheckpointError, UnavailableError: from loading; nothing stays loaded.
    """

    def __init__(
        self,
        models: Mapping[str, Union[str, "FastBertClassifier"]],
        options: ServeOptions,
        metrics: Metrics,
        load: Optional[Callable[[str], "FastBertClassifier"]] = None,
    ) -> None:
        if not models:
            raise ConfigError("models: expected at least one, got none.")
        self.options = options
        self.metrics = metrics
        self.draining = False
        self._load = load or options.load
        self._reloading = threading.Lock()
        self._models: Dict[str, ServedModel] = {}
        for name in models:
            if not name or not all(letter.isalnum() or letter in "-_." for letter in name) or not name.isascii():
                raise ConfigError("models: expected names of ASCII letters, digits, '-', '_' and '.', got %r." % name)
        self.default = next(iter(models))
        try:
            for name, source in models.items():
                self._models[name] = self._open(name, source)
        except BaseException:
            self.close()
            raise
        for name in models:
            metrics.watch_queue(name, lambda name=name: self._models[name].queue.queued_texts)  # type: ignore[misc]

    @property
    def names(self) -> List[str]:
        """The served names, the default one first."""
        return list(self._models)

    def get(self, name: Optional[str] = None) -> Optional[ServedModel]:
        """The model of that name now; None where there is none."""
        return self._models.get(self.default if name is None else name)

    def submit(
        self, model: ServedModel, texts: List[Text], want: str, truncation: Optional[str]
    ) -> Tuple[ServedModel, Ticket]:
        """Queues texts on `model`, or on what replaced it a moment ago; the one returned, whose labels may differ, has
        them."""
        try:
            return model, model.queue.submit_async(texts, want, truncation)
        except ClosedError:
            fresh = self._models[model.name]
            if fresh is model:
                raise
            return fresh, fresh.queue.submit_async(texts, want, truncation)

    def probe(self, model: ServedModel) -> Ticket:
        """Queues the warm-up text: does the engine answer?"""
        return self.submit(model, [_WARM_UP], model.want, "head")[1]

    def reload(self) -> bool:
        """Loads every model again from its path; each takes over as soon as it has answered a warm-up text.

        Returns:
            True when all were replaced. A model that cannot be loaded leaves the old one at work.
        """
        with self._reloading:
            good = True
            for name, old in list(self._models.items()):
                if not old.path:
                    continue
                try:
                    fresh = self._open(name, old.path)
                except Exception as error:  # whatever it was, the loaded model goes on
                    good = False
                    self.metrics.reloads.labels("failed").inc()
                    _log.error(
                        "Model %s was not reloaded; the loaded one goes on: %s: %s", name, type(error).__name__, error
                    )
                    continue
                self._models[name] = fresh
                self.metrics.reloads.labels("done").inc()
                _log.info("Model %s was reloaded from %s.", name, old.path)
                old.queue.close()  # answers what it still holds
                del old, fresh
                _give_back_memory()
            return good

    def close(self) -> None:
        """Answers what is queued and closes every model."""
        for model in self._models.values():
            model.queue.close(timeout=self.options.drain_s)

    def _open(self, name: str, source: Any) -> ServedModel:
        path = source if isinstance(source, str) else ""
        predictor = self._load(path) if path else source
        queue = BatchingPredictor(
            predictor,
            batch_tokens=self.options.batch_tokens,
            max_wait_ms=self.options.max_wait_ms,
            max_queue_texts=self.options.max_queue_texts,
            observer=ModelObserver(self.metrics, name),
        )
        model = ServedModel(name, path, queue)
        try:
            queue.submit([_WARM_UP], model.want, truncation="head").result()
        except BaseException:
            queue.close()
            raise
        return model


def _give_back_memory() -> None:
    """Returns to the system what a closed model held: glibc keeps freed memory, and reload after reload would grow."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
