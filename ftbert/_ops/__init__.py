"""The only loader of the native library, and its engine as a Python object. TensorFlow is never imported here."""

import ctypes
import json
import os
import threading
from typing import Any, Dict, Iterable, NamedTuple, Optional, Sequence

import numpy as np

from ftbert.batching import PackedBatch
from ftbert.config import BertConfig
from ftbert.errors import ClosedError, ConfigError, EngineError, InputError, OutOfMemoryError, UnavailableError

__all__ = ["OUTPUTS", "PRECISIONS", "Engine", "Weight", "describe_machine", "library", "library_path"]

ABI_VERSION = 1

# Precision names as users write them -> ftbert::Precision.
PRECISIONS = {"fp32": 0, "bf16": 1, "fp16": 2, "int8": 3, "fp8": 4}

OUTPUTS = ("logits", "pooled", "first_states", "token_states")

_ACTIVATIONS = {"gelu_erf": 0, "gelu_tanh": 1, "relu": 2}

_ERROR_SIZE = 4096

# ftbert::Code -> what is raised.
_ERRORS = {1: InputError, 2: UnavailableError, 3: OutOfMemoryError, 4: EngineError}


class _Config(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "intermediate_size",
            "max_positions",
            "type_vocab_size",
            "num_labels",
            "has_pooler",
            "activation",
        )
    ] + [("norm_epsilon", ctypes.c_float)]


class _Outputs(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in OUTPUTS]


_library = None
_lock = threading.Lock()


def library_path(name: str = "ftbert") -> str:
    """Where lib<name>.so of this installation is.

    Raises:
        UnavailableError: it is not there.
    """
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib", "lib%s.so" % name)
    if not os.path.exists(path):
        raise UnavailableError(
            "Expected the native library %s, which does not exist. Install the package (`pip install .`), or build it "
            "in place (`python setup.py build_ext --inplace`)." % path
        )
    return path


def library() -> ctypes.CDLL:
    """The native library, opened once."""
    global _library
    if _library is not None:
        return _library
    with _lock:
        if _library is None:
            _point_to_cublas()
            _library = _open(library_path())
        return _library


def _point_to_cublas() -> None:
    """Tells the CUDA library where PyPI's nvidia-cublas is, if it is installed; a toolkit is found without help."""
    if "FTBERT_CUBLAS_DIR" in os.environ:
        return
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    for relative in (("nvidia", "cu13", "lib"), ("nvidia", "cublas", "lib")):
        folder = os.path.join(here, *relative)
        if os.path.isdir(folder):
            os.environ["FTBERT_CUBLAS_DIR"] = folder
            return


def _open(path: str) -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL(path)
    except OSError as error:
        raise UnavailableError("%s could not be opened: %s. Install the package again." % (path, error)) from error
    lib.ftbert_abi_version.restype = ctypes.c_int32
    found = lib.ftbert_abi_version()
    if found != ABI_VERSION:
        raise UnavailableError(
            "%s: expected interface version %d, got %d: Python code and native library are of different versions. "
            "Install the package again." % (path, ABI_VERSION, found)
        )
    char_p, void_p, size_t = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t
    i32, i64 = ctypes.c_int32, ctypes.c_int64
    errors = [void_p, size_t]
    signatures = {
        "ftbert_builder_create": (ctypes.c_int, [void_p, char_p, i32, i32, void_p] + errors),
        "ftbert_builder_add": (ctypes.c_int, [void_p, char_p, i32, i32, void_p, void_p, i32] + errors),
        "ftbert_builder_finish": (ctypes.c_int, [void_p, void_p] + errors),
        "ftbert_builder_free": (None, [void_p]),
        "ftbert_engine_release": (ctypes.c_int, [i64] + errors),
        "ftbert_run": (ctypes.c_int, [i64, void_p, void_p, void_p, i32, void_p] + errors),
        "ftbert_tune": (ctypes.c_int, [i64, void_p, i32] + errors),
        "ftbert_describe": (i64, [i64, void_p, size_t]),
        "ftbert_describe_machine": (i64, [void_p, size_t]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype = result
        function.argtypes = arguments
    return lib


class _Error(threading.local):
    """Each thread's place for what a native function reports: made once, as a call of 0.3 ms feels it."""

    def __init__(self) -> None:
        self.text = ctypes.create_string_buffer(_ERROR_SIZE)


_error = _Error()


def _call(function: Any, *arguments: Any) -> None:
    """Calls a function that ends in (error, error_size) and raises what it reports."""
    error = _error.text
    code = function(*arguments, error, _ERROR_SIZE)
    if code != 0:
        raise _ERRORS.get(code, EngineError)(error.value.decode("utf-8", "replace"))


def _address(array: Any) -> int:
    """Where an ndarray's values are: `array.ctypes.data` at a fifth of its cost, which a call of 0.3 ms feels."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))
    except (TypeError, ValueError):  # read-only, or empty
        return array.ctypes.data


def _read_json(function: Any, *arguments: Any) -> Dict[str, Any]:
    size = 1 << 14
    while True:
        text = ctypes.create_string_buffer(size)
        length = function(*(arguments + (text, size)))
        if length < 0:
            raise ClosedError("The engine was closed. Load the model again.")
        if length < size:
            return json.loads(text.value.decode("utf-8"))
        size = length + 1


def describe_machine() -> Dict[str, Any]:
    """What the native library finds here.

    Returns:
        {"cpu": {"isa", "levels", "threads"}, "cuda": {"devices", "driver", "runtime", "problem"}}
    """
    return _read_json(library().ftbert_describe_machine)


class Weight(NamedTuple):
    """One array of a model, under google-research/bert's variable name.

    Attributes:
        name: such as "bert/encoder/layer_0/output/dense/kernel".
        array: C-contiguous fp32 or fp16; with `bfloat16`, uint16 holding bfloat16 bits.
        transposed: a kernel stored (out, in), as torch does.
        bfloat16: see `array`.
    """

    name: str
    array: np.ndarray
    transposed: bool = False
    bfloat16: bool = False


def _type_code(weight: Weight) -> int:
    if weight.bfloat16 and weight.array.dtype == np.uint16:
        return 2
    if weight.array.dtype == np.float32 and not weight.bfloat16:
        return 0
    if weight.array.dtype == np.float16 and not weight.bfloat16:
        return 1
    raise ConfigError(
        "Weight %s: expected float32, float16 or bfloat16 bits, got %s." % (weight.name, weight.array.dtype)
    )


class Engine:
    """One loaded model. `run` is thread-safe and lets go of the GIL."""

    def __init__(self, engine_id: int, config: BertConfig, num_labels: int, has_pooler: bool) -> None:
        self.id = engine_id
        self.config = config
        self.num_labels = num_labels
        self.has_pooler = has_pooler
        self._closed = False
        self._lock = threading.Lock()
        hidden = config.hidden_size
        self._widths = {"logits": num_labels, "pooled": hidden, "first_states": hidden, "token_states": hidden}

    @classmethod
    def build(
        cls,
        config: BertConfig,
        weights: Iterable[Weight],
        num_labels: int,
        has_pooler: bool = True,
        device: str = "cpu",
        precision: str = "fp32",
        threads: Optional[int] = None,
    ) -> "Engine":
        """Loads a model. Each array is converted and packed as it comes; none is kept.

        Args:
            config: the encoder's sizes.
            weights: every array of the model, in any order; position and segment embeddings before the word embeddings
                spare a copy.
            num_labels: C; 0 for an encoder without a classifier.
            has_pooler: whether the pooler's weights come.
            device: "cpu", "cuda", "cuda:1", or "reference" in tests.
            precision: a key of `PRECISIONS`.
            threads: CPU threads; None: what the process may use.

        Raises:
            InputError, UnavailableError, OutOfMemoryError: as the engine says.
        """
        if precision not in PRECISIONS:
            raise ConfigError("precision: expected one of %s, got %r." % (sorted(PRECISIONS), precision))
        lib = library()
        native = _Config(
            config.vocab_size,
            config.hidden_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.intermediate_size,
            config.max_position_embeddings,
            config.type_vocab_size,
            num_labels,
            int(has_pooler),
            _ACTIVATIONS[config.hidden_act],
            config.norm_epsilon,
        )
        builder = ctypes.c_void_p()
        _call(
            lib.ftbert_builder_create,
            ctypes.byref(native),
            device.encode("utf-8"),
            PRECISIONS[precision],
            threads or 0,
            ctypes.byref(builder),
        )
        try:
            for weight in weights:
                array = np.ascontiguousarray(weight.array)
                shape = (ctypes.c_int64 * array.ndim)(*array.shape)
                _call(
                    lib.ftbert_builder_add,
                    builder,
                    weight.name.encode("utf-8"),
                    _type_code(weight),
                    array.ndim,
                    shape,
                    array.ctypes.data,
                    int(weight.transposed),
                )
        except BaseException:
            lib.ftbert_builder_free(builder)
            raise
        engine_id = ctypes.c_int64()
        _call(lib.ftbert_builder_finish, builder, ctypes.byref(engine_id))
        return cls(engine_id.value, config, num_labels, has_pooler)

    def run(self, batch: PackedBatch, want: Sequence[str] = ("logits",)) -> Dict[str, np.ndarray]:
        """Runs one packed batch.

        Args:
            batch: B rows, T tokens.
            want: of "logits" (B, C), "pooled" (B, H), "first_states" (B, H), "token_states" (T, H).

        Returns:
            One float32 array for each name wanted.

        Raises:
            InputError: an id, a row length or an output does not fit the model. Nothing was run.
            ClosedError: the engine was closed.
        """
        if self._closed:
            raise ClosedError("The engine was closed. Load the model again.")
        tokens = np.ascontiguousarray(batch.token_ids, np.int32)
        segments = np.ascontiguousarray(batch.segment_ids, np.int32)
        splits = np.ascontiguousarray(batch.row_splits, np.int32)
        if tokens.ndim != 1 or tokens.shape != segments.shape or splits.ndim != 1 or len(splits) < 2:
            raise InputError("Expected token_ids (T,), segment_ids (T,) and row_splits (B + 1,) with B of at least 1.")
        if splits[-1] != len(tokens):
            raise InputError("row_splits: expected to end at T = %d, got %d." % (len(tokens), splits[-1]))
        rows = len(splits) - 1
        results = {}
        pointers = _Outputs()
        for name in want:
            if name not in self._widths:
                raise InputError("want: expected some of %s, got %r." % (list(OUTPUTS), name))
            count = len(tokens) if name == "token_states" else rows
            results[name] = array = np.empty((count, self._widths[name]), np.float32)
            setattr(pointers, name, _address(array))
        _call(
            library().ftbert_run,
            self.id,
            _address(tokens),
            _address(segments),
            _address(splits),
            rows,
            ctypes.byref(pointers),
        )
        return results

    def tune(self, token_counts: Sequence[int]) -> None:
        """Searches the fastest kernels for batches of these token counts and remembers them."""
        counts = (ctypes.c_int32 * len(token_counts))(*token_counts)
        _call(library().ftbert_tune, self.id, counts, len(token_counts))

    def warm(self, most_tokens: int, at_once: int = 1) -> None:
        """Does what the first runs of every size up to `most_tokens` tokens would do (on a card: records graphs), for
        `at_once` runs at a time. A no-op on a CPU. Other runs may wait meanwhile."""
        warm = library().ftbert_warm
        warm.argtypes = [ctypes.c_int64, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p, ctypes.c_size_t]
        _call(warm, self.id, most_tokens, at_once)

    def describe(self) -> Dict[str, Any]:
        """name, device, precision, isa, threads, weight_bytes and what else the backend says."""
        return _read_json(library().ftbert_describe, self.id)

    def close(self) -> None:
        """Frees the model once the runs in flight have ended. Closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        _call(library().ftbert_engine_release, self.id)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()
