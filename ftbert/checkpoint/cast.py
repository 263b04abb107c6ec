"""Checkpoints in half precision, with an account of what rounding cost, and back."""

import os
from typing import Callable, List, NamedTuple, Sequence, Tuple

import numpy as np

from ftbert.checkpoint.optimizer_names import optimizer_tensors
from ftbert.checkpoint.readers import CheckpointReader, as_float32, find_checkpoint
from ftbert.checkpoint.rounding import RoundedTensor, measure_rounding, worst
from ftbert.checkpoint.safetensors_writer import TensorSpec
from ftbert.checkpoint.streams import format_bytes, rewrite, tensor_specs, update_dtype
from ftbert.errors import CheckpointError
from ftbert.paths import PathLike

__all__ = ["CastReport", "to_bf16", "to_fp16", "to_fp32"]

_HALVES = ("bfloat16", "float16")


class CastReport(NamedTuple):
    """What `to_fp16`, `to_bf16` or `to_fp32` did; as text, a summary with the tensors that lost most.

    Attributes:
        source, destination: the checkpoint read, and `dst` as given.
        dtype: "float16", "bfloat16" or "float32".
        tensors: one record per converted tensor: overflows, underflows, largest relative error.
        unchanged: names of tensors of other types, which were copied.
        optimizer: names among the converted that only training needs.
        bytes_before, bytes_after: sizes of all values.
    """

    source: str
    destination: str
    dtype: str
    tensors: Tuple[RoundedTensor, ...]
    unchanged: Tuple[str, ...]
    optimizer: Tuple[str, ...]
    bytes_before: int
    bytes_after: int

    @property
    def overflows(self) -> int:
        """Finite values that became infinite, in all tensors."""
        return sum(tensor.overflows for tensor in self.tensors)

    @property
    def underflows(self) -> int:
        """Values other than zero that became zero, in all tensors."""
        return sum(tensor.underflows for tensor in self.tensors)

    @property
    def largest_error(self) -> float:
        """The largest relative error of a value that neither overflowed nor vanished."""
        return max(tensor.largest_error for tensor in self.tensors)

    def __str__(self) -> str:
        lines = [
            "%s -> %s: %d tensors to %s, %d copied, %s -> %s"
            % (
                self.source,
                self.destination,
                len(self.tensors),
                self.dtype,
                len(self.unchanged),
                format_bytes(self.bytes_before),
                format_bytes(self.bytes_after),
            ),
            "%d values overflowed to infinity, %d vanished to zero, of %d; largest relative error of the others %.3g"
            % (self.overflows, self.underflows, sum(tensor.size for tensor in self.tensors), self.largest_error),
        ]
        for tensor in worst(list(self.tensors), 5) if self.dtype != "float32" else ():
            lines.append(
                "  %s: %d overflowed, %d vanished, largest relative error %.3g"
                % (tensor.name, tensor.overflows, tensor.underflows, tensor.largest_error)
            )
        if self.optimizer and self.dtype != "float32":
            lines.append(
                "%d of them only training needs, and half precision spoils them: strip_optimizer first."
                % len(self.optimizer)
            )
        return "\n".join(lines)


def to_fp16(src: PathLike, dst: PathLike, allow_overflow: bool = False) -> CastReport:
    """Writes a checkpoint whose float32 tensors are float16; others are copied.

    Args:
        src: a TensorFlow prefix, a .safetensors file, or a folder with one of them. The source is not changed.
        dst: a new checkpoint, or a new folder when `src` is one. Written whole, or left as it was on any failure.
        allow_overflow: write values beyond 65,519 as infinity, instead of refusing.

    Returns:
        The losses of every tensor.

    Raises:
        CheckpointError: `src` cannot be read or holds no float32, a value overflows, or `dst` cannot be written.
    """
    return _cast(src, dst, "float16", allow_overflow)


def to_bf16(src: PathLike, dst: PathLike, allow_overflow: bool = False) -> CastReport:
    """`to_fp16` for bfloat16: float32's range with 8 bits of precision, a type that TensorFlow and safetensors have."""
    return _cast(src, dst, "bfloat16", allow_overflow)


def to_fp32(src: PathLike, dst: PathLike) -> CastReport:
    """Writes a checkpoint whose float16 and bfloat16 tensors are float32, each number the same; others are copied.

    tf.train.Saver wants a checkpoint of the graph's own types: this brings one in half precision to a float32 graph.

    Args:
        src: a TensorFlow prefix, a .safetensors file, or a folder with one of them. The source is not changed.
        dst: a new checkpoint, or a new folder when `src` is one. Written whole, or left as it was on any failure.

    Raises:
        CheckpointError: `src` cannot be read or holds no half precision, or `dst` cannot be written.
    """
    widened: List[str] = []

    def change(name: str, array: np.ndarray, stored: str) -> Tuple[np.ndarray, bool]:
        if stored not in _HALVES:
            return array, False
        widened.append(name)
        return as_float32(array, stored == "bfloat16"), False

    reader, names = rewrite(src, dst, _having(_HALVES), _retyped(_HALVES, "float32"), change, _dtype_updater("float32"))
    tensors = [RoundedTensor(name, int(np.prod(reader.shape(name), dtype=np.int64)), 0, 0, 0.0, 0) for name in widened]
    return _report(src, dst, "float32", reader, names, tensors, _HALVES)


def _having(dtypes: Sequence[str]) -> Callable[[CheckpointReader], List[str]]:
    """Keeps every tensor of a checkpoint that holds at least one of these types."""

    def choose(reader: CheckpointReader) -> List[str]:
        names = reader.names()
        found = sorted({reader.dtype(name) for name in names})
        if found and not set(found) & set(dtypes):
            raise CheckpointError(
                "%s: expected %s tensors to convert, found only %s."
                % (reader.path, " or ".join(dtypes), ", ".join(found))
            )
        return names

    return choose


def _retyped(dtypes: Sequence[str], dtype: str) -> Callable[[List[TensorSpec]], List[TensorSpec]]:
    return lambda specs: [spec._replace(dtype=dtype) if spec.dtype in dtypes else spec for spec in specs]


def _report(
    src: PathLike,
    dst: PathLike,
    dtype: str,
    reader: CheckpointReader,
    names: List[str],
    tensors: List[RoundedTensor],
    dtypes: Sequence[str],
) -> CastReport:
    before = tensor_specs(reader, names)
    converted = frozenset(tensor.name for tensor in tensors)
    return CastReport(
        find_checkpoint(src),
        os.fspath(dst),
        dtype,
        tuple(tensors),
        tuple(name for name in names if name not in converted),
        tuple(name for name in optimizer_tensors(names) if name in converted),
        sum(spec.nbytes for spec in before),
        sum(spec.nbytes for spec in _retyped(dtypes, dtype)(before)),
    )


def _cast(src: PathLike, dst: PathLike, dtype: str, allow_overflow: bool) -> CastReport:
    tensors: List[RoundedTensor] = []

    def change(name: str, array: np.ndarray, stored: str) -> Tuple[np.ndarray, bool]:
        if stored != "float32":
            return array, stored == "bfloat16"
        rounded, tensor = measure_rounding(name, array, dtype)
        if tensor.overflows and not allow_overflow:
            raise CheckpointError(
                "%s: %s: %d of %d values are too large for %s (the largest finite magnitude is %.6g) and would become "
                "infinite. %s, or pass allow_overflow=True."
                % (
                    src,
                    name,
                    tensor.overflows,
                    tensor.size,
                    dtype,
                    float(np.abs(array[np.isfinite(array)]).max()),
                    "Use to_bf16, which has float32's range" if dtype == "float16" else "Keep float32",
                )
            )
        tensors.append(tensor)
        return rounded, dtype == "bfloat16"

    reader, names = rewrite(
        src, dst, _having(("float32",)), _retyped(("float32",), dtype), change, _dtype_updater(dtype)
    )
    return _report(src, dst, dtype, reader, names, tensors, ("float32",))


def _dtype_updater(dtype: str) -> Callable[[str], None]:
    return lambda folder: update_dtype(folder, dtype)
