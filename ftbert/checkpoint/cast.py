"""Checkpoints in half precision, with an account of what rounding cost."""

import os
from typing import Callable, List, NamedTuple, Tuple

import numpy as np

from ftbert.checkpoint.optimizer_names import optimizer_tensors
from ftbert.checkpoint.readers import CheckpointReader, find_checkpoint
from ftbert.checkpoint.rounding import RoundedTensor, measure_rounding, worst
from ftbert.checkpoint.safetensors_writer import TensorSpec
from ftbert.checkpoint.streams import format_bytes, rewrite, tensor_specs, update_dtype
from ftbert.errors import CheckpointError

__all__ = ["CastReport", "to_bf16", "to_fp16"]


class CastReport(NamedTuple):
    """What `to_fp16` or `to_bf16` did; as text, a summary with the tensors that lost most.

    Attributes:
        source, destination: the checkpoint read, and `dst` as given.
        dtype: "float16" or "bfloat16".
        tensors: one record per converted tensor: overflows, underflows, largest relative error.
        unchanged: names of tensors that were not float32 and were copied.
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
        for tensor in worst(list(self.tensors), 5):
            lines.append(
                "  %s: %d overflowed, %d vanished, largest relative error %.3g"
                % (tensor.name, tensor.overflows, tensor.underflows, tensor.largest_error)
            )
        if self.optimizer:
            lines.append(
                "%d of them only training needs, and half precision spoils them: strip_optimizer first."
                % len(self.optimizer)
            )
        return "\n".join(lines)


def to_fp16(src: str, dst: str, allow_overflow: bool = False) -> CastReport:
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


def to_bf16(src: str, dst: str, allow_overflow: bool = False) -> CastReport:
    """`to_fp16` for bfloat16: float32's range with 8 bits of precision, a type that TensorFlow and safetensors have."""
    return _cast(src, dst, "bfloat16", allow_overflow)


def _cast(src: str, dst: str, dtype: str, allow_overflow: bool) -> CastReport:
    tensors: List[RoundedTensor] = []

    def choose(reader: CheckpointReader) -> List[str]:
        names = reader.names()
        if names and not any(reader.dtype(name) == "float32" for name in names):
            found = sorted({reader.dtype(name) for name in names})
            raise CheckpointError(
                "%s: expected float32 tensors to convert, found only %s." % (reader.path, ", ".join(found))
            )
        return names

    def specs(before: List[TensorSpec]) -> List[TensorSpec]:
        return [spec._replace(dtype=dtype) if spec.dtype == "float32" else spec for spec in before]

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

    reader, names = rewrite(src, dst, choose, specs, change, _dtype_updater(dtype))
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
        sum(spec.nbytes for spec in specs(before)),
    )


def _dtype_updater(dtype: str) -> Callable[[str], None]:
    return lambda folder: update_dtype(folder, dtype)
