"""What runs a packed batch: the native engine in a TensorFlow session, the native engine alone, or plain TensorFlow.

All three have the same members: `run(batch, want)`, `tune(token_counts)`, `warm(most_tokens, at_once)`, `describe()`
and `close()`.
"""

import re
import threading
import warnings
from typing import Any, Callable, Dict, List, Sequence, Tuple, Union

import numpy as np

from ftbert._ops import OUTPUTS, Engine, describe_machine
from ftbert.batching import PackedBatch
from ftbert.checkpoint import ModelFolder
from ftbert.errors import CheckpointError, ConfigError, EngineError, InputError, OutOfMemoryError, UnavailableError
from ftbert.guards import Gate

__all__ = [
    "RUNTIMES",
    "DirectRuntime",
    "SessionRuntime",
    "TensorFlowRuntime",
    "build_runtimes",
    "choose_devices",
    "device_kind",
    "guarded",
]


class DirectRuntime:
    """The native engine through its C ABI. TensorFlow is not imported."""

    def __init__(self, folder: ModelFolder, device: str, precision: str, threads: int) -> None:
        self.engine = Engine.build(
            folder.config, folder.weights(), folder.num_labels, folder.has_pooler, device, precision, threads
        )

    def run(self, batch: PackedBatch, want: str) -> np.ndarray:
        """One output, a name of `ftbert._ops.OUTPUTS`, of a batch. Thread-safe."""
        return self.engine.run(batch, (want,))[want]

    def tune(self, token_counts: Sequence[int]) -> None:
        """Searches the fastest kernels for batches of these token counts."""
        self.engine.tune(token_counts)

    def warm(self, most_tokens: int, at_once: int) -> None:
        """`Engine.warm`: what the first batches of each size would do on a card."""
        self.engine.warm(most_tokens, at_once)

    def describe(self) -> Dict[str, Any]:
        """The engine's description, with the runtime's name."""
        return dict(self.engine.describe(), runtime="direct")

    def close(self) -> None:
        """Frees the model."""
        self.engine.close()


class SessionRuntime:
    """The native engine as an op: one graph, one session, one prepared call for each output, for the object's life."""

    def __init__(self, folder: ModelFolder, device: str, precision: str, threads: int) -> None:
        from ftbert._ops.tensorflow_op import load_tensorflow_op

        self._op = load_tensorflow_op().ftbert_run
        self.engine = Engine.build(
            folder.config, folder.weights(), folder.num_labels, folder.has_pooler, device, precision, threads
        )
        self._lock = threading.Lock()
        self._calls: Dict[str, Callable[..., List[np.ndarray]]] = {}
        self._graph, self._session, self._inputs = _open_session()
        self._outputs = self._make_outputs()
        self._graph.finalize()

    def _make_outputs(self) -> Dict[str, Any]:
        config = self.engine.config
        have = {"logits": self.engine.num_labels > 0, "pooled": self.engine.has_pooler}
        outputs = {}
        with self._graph.as_default():
            for name in OUTPUTS:
                if have.get(name, True):
                    wanted = {"want_" + other: other == name for other in OUTPUTS}
                    result = self._op(*self._inputs, engine=self.engine.id, name=name, **wanted)
                    outputs[name] = getattr(result, name)
                    width = self.engine.num_labels if name == "logits" else config.hidden_size
                    outputs[name].set_shape([None, width])
        return outputs

    def run(self, batch: PackedBatch, want: str) -> np.ndarray:
        """One output, a name of `ftbert._ops.OUTPUTS`, of a batch. Thread-safe."""
        call = self._calls.get(want) or self._prepare(want)
        try:
            return call(batch.token_ids, batch.segment_ids, batch.row_splits)[0]
        except Exception as error:
            raise _translate(error) from error

    def _prepare(self, want: str) -> Callable[..., List[np.ndarray]]:
        with self._lock:
            if want not in self._calls:
                self._calls[want] = _prepare_call(self._session, self._inputs, self._outputs[want])
            return self._calls[want]

    def tune(self, token_counts: Sequence[int]) -> None:
        """Searches the fastest kernels for batches of these token counts."""
        self.engine.tune(token_counts)

    def warm(self, most_tokens: int, at_once: int) -> None:
        """`Engine.warm`: what the first batches of each size would do on a card."""
        self.engine.warm(most_tokens, at_once)

    def describe(self) -> Dict[str, Any]:
        """The engine's description, with the runtime's name."""
        return dict(self.engine.describe(), runtime="session")

    def close(self) -> None:
        """Closes the session and frees the model."""
        self._calls.clear()
        self._session.close()
        self.engine.close()


class TensorFlowRuntime:
    """The readable twin, `ftbert.modeling`, on the CPU: for comparison."""

    engine = None

    def __init__(self, folder: ModelFolder, device: str, precision: str, threads: int) -> None:
        if device != "cpu":
            raise ConfigError("runtime='tensorflow': expected device='cpu', got %r." % device)
        types = {"fp32": None, "fp16": "float16", "bf16": "bfloat16"}
        if precision not in types:
            raise ConfigError("runtime='tensorflow': expected precision fp32, fp16 or bf16, got %r." % precision)
        try:
            from tensorflow.compat import v1 as tf
        except ImportError as error:
            raise UnavailableError(
                "Expected TensorFlow 1.14 or newer: %s. Run `pip install tensorflow-cpu`." % error
            ) from error
        from ftbert import modeling

        self._description = {
            "name": "tensorflow %s cpu %s" % (tf.__version__, precision),
            "device": "cpu",
            "precision": precision,
            "runtime": "tensorflow",
        }
        self._graph, self._session, self._inputs = _open_session(threads)
        dtype = getattr(tf, str(types[precision])) if types[precision] else None
        with self._graph.as_default():
            token_ids, segment_ids, row_splits = self._inputs
            model = modeling.BertModel(
                folder.config, False, token_ids, token_type_ids=segment_ids, row_splits=row_splits, compute_dtype=dtype
            )
            states = model.get_sequence_output()
            self._outputs = {"token_states": states, "first_states": tf.gather(states, row_splits[:-1])}
            if folder.has_pooler:
                self._outputs["pooled"] = model.get_pooled_output()
            if folder.num_labels:
                self._outputs["logits"] = modeling.apply_classifier(model, folder.num_labels)
            missing = modeling.assign_weights(self._session, model.variables, folder.weights())
        if [name for name in missing if folder.has_pooler or not name.startswith("bert/pooler/")]:
            raise CheckpointError("%s has no value for %s." % (folder.path, ", ".join(missing)))
        self._graph.finalize()
        self._calls = {
            name: _prepare_call(self._session, self._inputs, tensor) for name, tensor in self._outputs.items()
        }

    def run(self, batch: PackedBatch, want: str) -> np.ndarray:
        """One output, a name of `ftbert._ops.OUTPUTS`, of a batch. Thread-safe."""
        try:
            return self._calls[want](batch.token_ids, batch.segment_ids, batch.row_splits)[0]
        except Exception as error:
            raise _translate(error) from error

    def tune(self, token_counts: Sequence[int]) -> None:
        """Nothing to choose here."""

    def warm(self, most_tokens: int, at_once: int) -> None:
        """Nothing to prepare here."""

    def describe(self) -> Dict[str, Any]:
        """name, device, precision, runtime."""
        return dict(self._description)

    def close(self) -> None:
        """Closes the session."""
        self._calls.clear()
        self._session.close()


RUNTIMES = {"session": SessionRuntime, "direct": DirectRuntime, "tensorflow": TensorFlowRuntime}


def _open_session(threads: int = 0) -> Any:
    """A graph with the three inputs, and a session on it that runs in the caller's thread and sees no GPU.

    `threads` are for TensorFlow's own operations, 0: its choice; the native engine has threads of its own.
    """
    from tensorflow.compat import v1 as tf

    graph = tf.Graph()
    with graph.as_default():
        inputs = (
            tf.placeholder(tf.int32, [None], "token_ids"),
            tf.placeholder(tf.int32, [None], "segment_ids"),
            tf.placeholder(tf.int32, [None], "row_splits"),
        )
    config = tf.ConfigProto(
        # -1: no pool; the one op runs where the call was made, which takes microseconds instead of a hand-over.
        inter_op_parallelism_threads=-1,
        intra_op_parallelism_threads=threads,
        # The engine owns the card; TensorFlow would claim all of its memory.
        device_count={"GPU": 0},
    )
    return graph, tf.Session(graph=graph, config=config), inputs


def _prepare_call(session: Any, inputs: Sequence[Any], output: Any) -> Callable[..., List[np.ndarray]]:
    """A function of the inputs' arrays that runs `output`, prepared once where this TensorFlow can."""
    make = getattr(session, "_make_callable_from_options", None)
    if make is None:
        return lambda *arrays: [session.run(output, dict(zip(inputs, arrays)))]
    from tensorflow.core.protobuf import config_pb2

    options = config_pb2.CallableOptions(feed=[tensor.name for tensor in inputs], fetch=[output.name])
    return make(options)


def _translate(error: Exception) -> Exception:
    """What the engine or TensorFlow raised inside a session, as an error of ours."""
    from tensorflow.compat import v1 as tf

    message = getattr(error, "message", None) or str(error)
    kinds = (
        (tf.errors.InvalidArgumentError, InputError),
        (tf.errors.ResourceExhaustedError, OutOfMemoryError),
        (tf.errors.OpError, EngineError),
    )
    for kind, ours in kinds:
        if isinstance(error, kind):
            return ours(str(message))
    return error


def device_kind(device: str) -> str:
    """ "cpu" or "cuda" (or "reference") of a device's name."""
    return device.split(":")[0]


def _cuda_devices() -> List[str]:
    """The usable cards, as device names."""
    cuda = describe_machine().get("cuda", {})
    if cuda.get("problem"):
        return []
    return ["cuda:%d" % card["index"] for card in cuda.get("devices", []) if card.get("usable")]


_DEVICE = re.compile(r"(cpu|cuda(:\d+)?|reference)\Z")


def choose_devices(device: str, devices: Union[str, Sequence[str], None]) -> List[str]:
    """The device names that `FastBertClassifier.load`'s two arguments mean.

    Raises:
        ConfigError: they mean none. Whether a named device is here shows when a model is built on it.
    """
    if devices == "all":
        return _cuda_devices() or ["cpu"]
    if devices is not None:
        names = list(devices) if isinstance(devices, (list, tuple)) else []
        if not names or not all(isinstance(name, str) for name in names):
            raise ConfigError("devices: expected 'all' or a list such as ['cuda:0', 'cuda:1'], got %r." % (devices,))
    elif device == "auto":
        return _cuda_devices()[:1] or ["cpu"]
    else:
        names = [device]
    for name in names:
        if not isinstance(name, str) or not _DEVICE.match(name):
            raise ConfigError("device: expected 'auto', 'cpu', 'cuda' or 'cuda:<index>', got %r." % (name,))
    return names


def build_runtimes(
    folder: ModelFolder, runtime: str, devices: List[str], precision: str, threads: int
) -> Tuple[List[Any], str]:
    """The model on each device, and the precision that it runs in.

    "auto" is the precision that the folder records as checked for this kind of device, else fp16 on a card and fp32 on
    a CPU. A checked precision that this machine lacks is replaced by that default with a warning; one asked for by name
    is never replaced.
    """
    kind = device_kind(devices[0])
    default = "fp16" if kind == "cuda" else "fp32"
    checked = folder.precision_checked.get(kind) if runtime != "tensorflow" else None
    used = precision if precision != "auto" else (checked or default)
    runtimes: List[Any] = []
    try:
        for device in devices:
            runtimes.append(RUNTIMES[runtime](folder, device, used, threads))
    except BaseException as error:
        for built in runtimes:
            built.close()
        if not isinstance(error, UnavailableError) or precision != "auto" or used == default:
            raise
        warnings.warn(
            "%s was checked in %s, which this machine does not have (%s): running in %s."
            % (folder.path, used, error, default),
            stacklevel=4,
        )
        return build_runtimes(folder, runtime, devices, default, threads)
    return runtimes, used

def guarded(gate: Gate, runtime: Any) -> Callable[[PackedBatch, str], np.ndarray]:
    """The runtime's `run`, which `close` waits for; token states come back as each row's mean."""

    def run(batch: PackedBatch, want: str) -> np.ndarray:
        with gate:
            values = runtime.run(batch, want)
        if want != "token_states":
            return values
        lengths = np.diff(batch.row_splits).astype(np.float32)
        return np.add.reduceat(values, batch.row_splits[:-1], axis=0) / lengths[:, np.newaxis]

    return run
