"""Where training runs: devices, threads, precision, XLA. What is not there is refused, never replaced."""

from typing import Any, List, NamedTuple, Optional, Tuple

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
        devices: "/cpu:0", or "/gpu:0" and so on; several hold a copy of the model each and share every batch.
        threads: of the CPU; 0: one per core.
        mixed_precision: None, "float16" or "bfloat16": the type of the matrix products.
        xla: whether TensorFlow compiles clusters of operations.
        notice: what the user should know about the choice, or None.
    """

    devices: Tuple[str, ...]
    threads: int
    mixed_precision: Optional[str]
    xla: bool
    notice: Optional[str] = None

    def session_config(self) -> Any:
        """ConfigProto: a GPU's memory is taken as needed, not whole."""
        config = tf.ConfigProto(
            intra_op_parallelism_threads=self.threads,
            inter_op_parallelism_threads=self.threads,
            allow_soft_placement=True,
        )
        if self.devices[0].startswith("/cpu"):
            config.device_count["CPU"] = len(self.devices)
        config.gpu_options.allow_growth = True
        if self.xla:
            config.graph_options.optimizer_options.global_jit_level = tf.OptimizerOptions.ON_1
        return config


def find_machine(
    device: str = "auto",
    threads: int = 0,
    mixed_precision: Optional[str] = None,
    xla: bool = False,
    devices: int = 0,
) -> Machine:
    """Checks a wish against this TensorFlow.

    Args:
        device: "auto" (a GPU where TensorFlow sees one), "cpu" or "gpu".
        threads: of the CPU; 0: one per core.
        mixed_precision: None, "float16" (GPU) or "bfloat16".
        xla: compile with XLA (GPU).
        devices: how many; 0: all the GPUs that TensorFlow sees, or the CPU. Several on a CPU are TensorFlow's virtual
            ones: no faster, but the way to try on any machine what several GPUs do.

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
    if gpus and devices > len(gpus):
        raise UnavailableError(
            "devices=%d: TensorFlow %s sees %d GPUs here. Ask for as many at most, or look at CUDA_VISIBLE_DEVICES."
            % (devices, tf.__version__, len(gpus))
        )
    chosen = gpus[: devices or len(gpus)] if gpus else ["/cpu:%d" % index for index in range(max(devices, 1))]
    notice = None
    if len(chosen) > 1:
        notice = (
            "Training on %d %s: each holds the model and takes a share of every batch, the gradients are summed "
            "(tf.distribute.MirroredStrategy). devices=1 takes one." % (len(chosen), "GPUs" if gpus else "virtual CPUs")
        )
    elif len(gpus) > 1:
        notice = "Training on the first of the %d GPUs that TensorFlow sees." % len(gpus)
    return Machine(tuple(chosen), threads, mixed_precision, xla, notice)


def tensorflow_version() -> str:
    """Of the TensorFlow that trains."""
    return str(tf.__version__)
