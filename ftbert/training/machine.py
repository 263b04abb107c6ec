"""Where training runs: devices, threads, precision, XLA. What is not there is refused, never replaced."""

import contextlib
from typing import Any, Iterator, List, NamedTuple, Optional

from tensorflow.compat import v1 as tf

from ftbert.errors import ConfigError, UnavailableError

__all__ = ["Machine", "find_machine", "tensorflow_version", "visible_gpus"]

PRECISIONS = (None, "float16", "bfloat16")


def visible_gpus() -> List[str]:
    """The GPUs that this TensorFlow can use, as "/gpu:0" and so on; starts none of them up."""
    if not tf.test.is_built_with_cuda():
        return []
    count = len(tf.config.experimental.list_physical_devices("GPU"))
    return ["/gpu:%d" % index for index in range(count)]


class Machine(NamedTuple):
    """A checked choice.

    Attributes:
        device: "/cpu:0" or "/gpu:0".
        threads: of the CPU; 0: one per core.
        mixed_precision: None, "float16" or "bfloat16": the type of the matrix products.
        xla: whether TensorFlow compiles clusters of operations.
        notice: what the user should know about the choice, or None.
    """

    device: str
    threads: int
    mixed_precision: Optional[str]
    xla: bool
    notice: Optional[str] = None

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Operations made inside run on the device."""
        with tf.device(self.device):
            yield

    def session_config(self) -> Any:
        """ConfigProto: a GPU's memory is taken as needed, not whole."""
        config = tf.ConfigProto(
            intra_op_parallelism_threads=self.threads,
            inter_op_parallelism_threads=self.threads,
            allow_soft_placement=True,
        )
        config.gpu_options.allow_growth = True
        if self.xla:
            config.graph_options.optimizer_options.global_jit_level = tf.OptimizerOptions.ON_1
        return config


def find_machine(
    device: str = "auto", threads: int = 0, mixed_precision: Optional[str] = None, xla: bool = False
) -> Machine:
    """Checks a wish against this TensorFlow.

    Args:
        device: "auto" (a GPU where TensorFlow sees one), "cpu" or "gpu".
        threads: of the CPU; 0: one per core.
        mixed_precision: None, "float16" (GPU) or "bfloat16".
        xla: compile with XLA (GPU).

    Raises:
        UnavailableError: TensorFlow has no such device, precision or compiler; the message says what would help.
    """
    if device not in ("auto", "cpu", "gpu"):
        raise ConfigError("device: expected 'auto', 'cpu' or 'gpu', got %r." % (device,))
    if mixed_precision not in PRECISIONS:
        raise ConfigError("mixed_precision: expected one of %s, got %r." % (list(PRECISIONS), mixed_precision))
    gpus = visible_gpus() if device != "cpu" else []
    if device == "gpu" and not gpus:
        raise UnavailableError(
            "device='gpu': TensorFlow %s sees no GPU. Install a TensorFlow built with CUDA (pip install "
            "tensorflow[and-cuda]) and check nvidia-smi, or train with device='cpu'." % tf.__version__
        )
    if mixed_precision == "float16" and not gpus:
        raise UnavailableError(
            "mixed_precision='float16' needs a GPU, and TensorFlow %s uses none here. Leave it out, or use 'bfloat16', "
            "which runs on CPUs too (faster only where they have bfloat16 instructions)." % tf.__version__
        )
    if xla and not gpus:
        raise UnavailableError(
            "xla=True compiles for GPUs, and TensorFlow %s uses none here. Leave it out: on a CPU each batch length "
            "would be compiled anew for no gain." % tf.__version__
        )
    notice = None
    if len(gpus) > 1:
        notice = (
            "TensorFlow sees %d GPUs, and trains a model on one, the first. CUDA_VISIBLE_DEVICES chooses another; "
            "several runs can share the machine that way." % len(gpus)
        )
    return Machine("/gpu:0" if gpus else "/cpu:0", threads, mixed_precision, xla, notice)


def tensorflow_version() -> str:
    """Of the TensorFlow that trains."""
    return str(tf.__version__)
