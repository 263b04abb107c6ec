"""An Estimator that answers again and again from one session (TensorFlow 1.14 to 2.15).

`Estimator.predict` builds a graph, opens a session and restores the checkpoint each time it is called. Here it is
called once, on an input that never ends: a generator that waits for the next request.
"""

import atexit
import os
import queue
import threading
import weakref
from typing import Any, Dict, Iterable, Iterator, List, Optional

import numpy as np

from ftbert.errors import ClosedError, ConfigError, FtbertError, InputError, UnavailableError

__all__ = ["PersistentEstimator"]

_END = object()  # on the request queue: no more requests

Features = Dict[str, np.ndarray]


class _Failure:
    """On the answer queue: why the predicting thread ended."""

    def __init__(self, error: Optional[BaseException]) -> None:
        self.error = error


class PersistentEstimator:
    """Predictions of any `tf.estimator.Estimator`, its checkpoint restored once.

        with PersistentEstimator(estimator) as persistent:
            for answer in persistent.predict([{"input_ids": ids, "input_mask": mask, "segment_ids": segments}]):
                answer["probabilities"]

    Many threads may call `predict`; their batches are answered one after the other.

    Args:
        estimator: a tf.estimator.Estimator.
        checkpoint_path, predict_keys, hooks: as in its `predict`.

    Raises:
        UnavailableError: this TensorFlow has no Estimator.
        ConfigError: `estimator` is none.
    """

    def __init__(
        self,
        estimator: Any,
        checkpoint_path: Optional[str] = None,
        predict_keys: Optional[List[str]] = None,
        hooks: Optional[List[Any]] = None,
    ) -> None:
        from tensorflow.compat import v1 as tf

        if not hasattr(tf, "estimator"):
            raise UnavailableError(
                "TensorFlow %s has no Estimator (2.15 was the last with one). FastBertClassifier.load(<the Estimator's "
                "model_dir, with bert_config.json and vocab.txt>) serves the same checkpoint from one session."
                % tf.__version__
            )
        if not callable(getattr(estimator, "predict", None)) or not hasattr(estimator, "model_dir"):
            raise ConfigError("estimator: expected a tf.estimator.Estimator, got %s." % type(estimator).__name__)
        self._tf = tf
        self._estimator = estimator
        self._arguments = {"checkpoint_path": checkpoint_path, "predict_keys": predict_keys, "hooks": hooks}
        self._requests: "queue.Queue[Any]" = queue.Queue()
        self._answers: "queue.Queue[Any]" = queue.Queue()
        self._lock = threading.Lock()
        self._thread: Optional[threading.Thread] = None
        self._layout: Dict[str, Any] = {}
        self._closed = False
        self._process = os.getpid()
        # At exit the session must end before TensorFlow does; a reference here would keep this object alive for ever.
        reference = weakref.ref(self)
        atexit.register(lambda: _close_if_there(reference))

    def predict(self, features_iterable: Iterable[Features]) -> Iterator[Dict[str, np.ndarray]]:
        """Answers one batch after the other.

        Args:
            features_iterable: batches as the model function sees them: name -> array. All have the names, types and
                numbers of axes of the first batch that this object ever saw; lengths may change.

        Returns:
            An iterator of the model function's predictions for each batch, name -> array, in order. Each batch is
            computed when its answer is asked for.

        Raises:
            InputError: a batch is not like the first.
            ClosedError: after `close`, or in a forked child.
            FtbertError: the model failed; its own error is the cause. This object is then closed.
        """
        self._check_open()
        if isinstance(features_iterable, dict):
            raise InputError("features_iterable: expected batches, got one dict. Write predict([features]).")
        return (self._predict_one(features) for features in features_iterable)

    def _check_open(self) -> None:
        if os.getpid() != self._process:
            raise ClosedError("This PersistentEstimator was made before a fork; make one in each process.")
        if self._closed:
            raise ClosedError("This PersistentEstimator is closed.")

    def _predict_one(self, features: Features) -> Dict[str, np.ndarray]:
        if not isinstance(features, dict):
            raise InputError("Expected a dict of arrays, got %s." % type(features).__name__)
        arrays = {name: np.asarray(value) for name, value in features.items()}
        with self._lock:
            self._check_open()
            if self._thread is None:
                self._start(arrays)
            self._check_layout(arrays)
            self._requests.put(arrays)
            answer = self._answers.get()
        if isinstance(answer, _Failure):
            self._closed = True
            raise FtbertError(
                "The Estimator's model ended%s. Make a new PersistentEstimator."
                % (": %s" % answer.error if answer.error is not None else " after the first batches (a hook?)")
            ) from answer.error
        return answer

    def _check_layout(self, arrays: Features) -> None:
        got = {name: (array.dtype, array.ndim) for name, array in arrays.items()}
        if got != self._layout:
            raise InputError(
                "Expected features of the names, types and axes of the first batch, %s, got %s."
                % (_described(self._layout), _described(got))
            )

    def _start(self, first: Features) -> None:
        self._layout = {name: (array.dtype, array.ndim) for name, array in first.items()}
        self._thread = threading.Thread(target=self._serve, name="ftbert-estimator", daemon=True)
        self._thread.start()

    def _input_fn(self, params: Any = None) -> Any:
        # `params` is asked for by TPUEstimator, which google-research/bert's run_classifier.py makes on any machine.
        tf = self._tf
        types = {name: tf.as_dtype(dtype) for name, (dtype, _) in self._layout.items()}
        shapes = {name: tf.TensorShape([None] * axes) for name, (_, axes) in self._layout.items()}
        data = tf.data.Dataset.from_generator(lambda: iter(self._requests.get, _END), types, shapes)
        options = tf.data.Options()
        # A prefetch would wait for the next request while a failing run wants to end, and neither would.
        if hasattr(getattr(options, "experimental_optimization", None), "inject_prefetch"):
            options.experimental_optimization.inject_prefetch = False
        return data.with_options(options)

    def _serve(self) -> None:
        error: Optional[BaseException] = None
        try:
            answers = self._estimator.predict(self._input_fn, yield_single_examples=False, **self._arguments)
            for answer in answers:
                self._answers.put(answer)
        except Exception as caught:
            error = caught
        self._answers.put(_Failure(error))

    def close(self) -> None:
        """Ends the session after the batch it is at."""
        if self._closed or os.getpid() != self._process:
            return
        with self._lock:
            self._closed = True
            if self._thread is not None:
                self._requests.put(_END)
                self._thread.join()

    def __enter__(self) -> "PersistentEstimator":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _described(layout: Dict[str, Any]) -> str:
    return "{%s}" % ", ".join("%s: %s, %d axes" % (name, dtype, axes) for name, (dtype, axes) in sorted(layout.items()))


def _close_if_there(reference: Any) -> None:
    persistent = reference()
    if persistent is not None:
        persistent.close()
