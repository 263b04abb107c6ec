"""Loads the TensorFlow ops FtbertRun and FtbertEncoder. Importing this module imports nothing of TensorFlow yet."""

import ctypes
import threading
from typing import Any, Optional

from ftbert._ops import library, library_path
from ftbert.errors import UnavailableError

__all__ = ["load_tensorflow_op", "refresh_encoders", "tensorflow_adapter"]

_REBUILD = (
    "That op is compiled against the TensorFlow that is installed: with TensorFlow %s in place, run "
    "`pip install --force-reinstall --no-deps .` in ftbert's source folder."
)

_ops: Optional[Any] = None
_lock = threading.Lock()


def tensorflow_adapter(version: str) -> str:
    """The path of the op library for TensorFlow `version`.

    Raises:
        UnavailableError: this installation has none for it.
    """
    if version.split(".")[0] != "1":
        return library_path("ftbert_tf2")
    try:
        return library_path("ftbert_tf1")
    except UnavailableError as error:
        raise UnavailableError("ftbert was built without an op for TensorFlow 1.x. " + _REBUILD % version) from error


def load_tensorflow_op() -> Any:
    """The module of op functions (`ftbert_run`, `ftbert_encoder`), loaded once in a process.

    Raises:
        UnavailableError: there is no TensorFlow, or no op library that fits it.
    """
    global _ops
    with _lock:
        if _ops is None:
            _ops = _load()
        return _ops


def _load() -> Any:
    try:
        from tensorflow.compat import v1 as tf
    except ImportError as error:
        raise UnavailableError(
            "Expected TensorFlow 1.14 or newer, but importing it failed: %s. Run `pip install tensorflow-cpu`, or use "
            'runtime="direct", which needs none.' % error
        ) from error
    library()  # its version is checked before anything binds to it
    path = tensorflow_adapter(tf.__version__)
    try:
        ops = tf.load_op_library(path)
    except (tf.errors.OpError, OSError) as error:
        raise UnavailableError(
            "TensorFlow %s could not load %s: %s. Install ftbert again here." % (tf.__version__, path, error)
        ) from error
    adapter = ctypes.CDLL(path)
    if not hasattr(ops, "ftbert_run"):
        problem = _text(adapter.ftbert_tf_problem) or "It was opened before TensorFlow was."
        raise UnavailableError("%s registered no op in TensorFlow %s. %s" % (path, tf.__version__, problem))
    if tf.__version__.startswith("1."):
        built_for = _text(adapter.ftbert_tf_version)
        if built_for.split(".")[:2] != tf.__version__.split(".")[:2]:
            raise UnavailableError(
                "%s was compiled against TensorFlow %s. %s" % (path, built_for, _REBUILD % tf.__version__)
            )
    return ops


def _text(function: Any) -> str:
    function.restype = ctypes.c_char_p
    return function().decode("utf-8")


def refresh_encoders() -> None:
    """Makes every FtbertEncoder of this process read its variables anew at its next run."""
    from tensorflow.compat import v1 as tf

    load_tensorflow_op()
    ctypes.CDLL(tensorflow_adapter(tf.__version__)).ftbert_encoder_refresh()
