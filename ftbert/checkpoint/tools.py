"""Checkpoint tools: look inside, drop what only training needs, average."""

import os
from typing import Dict, List, NamedTuple, Sequence, Tuple

import numpy as np

from ftbert.checkpoint.optimizer_names import optimizer_tensors
from ftbert.checkpoint.readers import CheckpointReader, as_float32, open_checkpoint
from ftbert.checkpoint.rounding import round_to_bfloat16
from ftbert.checkpoint.safetensors_reader import SafetensorsReader
from ftbert.checkpoint.safetensors_writer import TensorSpec
from ftbert.checkpoint.streams import check_readable, destination, format_bytes, open_writer, rewrite, tensor_specs
from ftbert.checkpoint.tf_bundle import BundleReader
from ftbert.errors import CheckpointError
from ftbert.paths import PathLike

__all__ = ["AverageReport", "Inspection", "StripReport", "TensorInfo", "average", "inspect", "strip_optimizer"]

_FLOATS = ("float64", "float32", "float16", "bfloat16")

# Values of one tensor that `average` sums at a time, in float64: 32 MB.
_PART = 1 << 22


class TensorInfo(NamedTuple):
    """One line of an inspection."""

    name: str
    shape: Tuple[int, ...]
    dtype: str
    nbytes: int
    is_optimizer: bool


class Inspection(NamedTuple):
    """What a checkpoint holds; as text, a table.

    Attributes:
        path: which checkpoint was found.
        format: "tensorflow" or "safetensors".
        tensors: its tensors, sorted by name.
    """

    path: str
    format: str
    tensors: Tuple[TensorInfo, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def optimizer_nbytes(self) -> int:
        """Bytes that only training needs."""
        return sum(tensor.nbytes for tensor in self.tensors if tensor.is_optimizer)

    def __str__(self) -> str:
        rows = [("name", "shape", "dtype", "bytes", "")]
        for tensor in self.tensors:
            shape = " x ".join(str(length) for length in tensor.shape) or "scalar"
            rows.append(
                (
                    tensor.name,
                    shape,
                    tensor.dtype,
                    "{:,}".format(tensor.nbytes),
                    "optimizer" if tensor.is_optimizer else "",
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = ["%s (%s)" % (self.path, self.format)]
        for name, shape, dtype, nbytes, note in rows:
            cells = (
                name.ljust(widths[0]),
                shape.ljust(widths[1]),
                dtype.ljust(widths[2]),
                nbytes.rjust(widths[3]),
                note,
            )
            lines.append("  ".join(cells).rstrip())
        share = 100.0 * self.optimizer_nbytes / self.nbytes if self.nbytes else 0.0
        lines.append(
            "%d tensors, %s, of which %s (%.0f%%) only training needs"
            % (len(self.tensors), format_bytes(self.nbytes), format_bytes(self.optimizer_nbytes), share)
        )
        return "\n".join(lines)


def inspect(src: PathLike) -> Inspection:
    """Names, shapes, types and sizes, and which tensors only training needs. No tensor is read.

    Args:
        src: a TensorFlow prefix, a .safetensors file, or a folder with one of them.

    Raises:
        CheckpointError: absent, ambiguous, truncated, damaged, or of another kind.
    """
    reader = open_checkpoint(src)
    names = reader.names()
    training = frozenset(optimizer_tensors(names))
    tensors = []
    for name in names:
        shape, dtype = reader.shape(name), reader.dtype(name)
        tensors.append(TensorInfo(name, shape, dtype, TensorSpec(name, dtype, shape).nbytes, name in training))
    return Inspection(reader.path, reader.format, tuple(tensors))


class StripReport(NamedTuple):
    """What `strip_optimizer` did.

    Attributes:
        source, destination: the checkpoint read, and `dst` as given.
        kept, removed: tensor names, sorted.
        bytes_kept, bytes_removed: sizes of their values.
    """

    source: str
    destination: str
    kept: Tuple[str, ...]
    removed: Tuple[str, ...]
    bytes_kept: int
    bytes_removed: int

    def __str__(self) -> str:
        kinds: Dict[str, int] = {}
        for name in self.removed:
            kind = name.rsplit("/", 1)[-1]
            kinds[kind] = kinds.get(kind, 0) + 1
        gone = ", ".join("%d %s" % (count, kind) for kind, count in sorted(kinds.items())) or "nothing"
        return "%s -> %s: kept %d tensors (%s), removed %d (%s): %s" % (
            self.source,
            self.destination,
            len(self.kept),
            format_bytes(self.bytes_kept),
            len(self.removed),
            format_bytes(self.bytes_removed),
            gone,
        )


def strip_optimizer(src: PathLike, dst: PathLike) -> StripReport:
    """Writes a checkpoint without optimizer slots, step counters and loss scales; weights stay bit-equal.

    Args:
        src: a TensorFlow prefix, a .safetensors file, or a folder with one of them. The source is not changed.
        dst: a new checkpoint, or a new folder when `src` is one. Written whole, or left as it was on any failure.

    Raises:
        CheckpointError: `src` cannot be read, holds nothing else, or `dst` cannot be written.
    """
    reader, kept = rewrite(
        src, dst, _weights, lambda specs: specs, lambda name, array, dtype: (array, dtype == "bfloat16")
    )
    removed = optimizer_tensors(reader.names())
    return StripReport(
        reader.path, os.fspath(dst), tuple(kept), tuple(removed), _nbytes(reader, kept), _nbytes(reader, removed)
    )


def _weights(reader: CheckpointReader) -> List[str]:
    training = frozenset(optimizer_tensors(reader.names()))
    return [name for name in reader.names() if name not in training]


def _nbytes(reader: CheckpointReader, names: Sequence[str]) -> int:
    return sum(spec.nbytes for spec in tensor_specs(reader, names))


class AverageReport(NamedTuple):
    """What `average` did.

    Attributes:
        sources, destination: the checkpoints read, and `dst` as given.
        averaged: names of the tensors.
        left_out: optimizer tensors of the sources; an average of them means nothing.
    """

    sources: Tuple[str, ...]
    destination: str
    averaged: Tuple[str, ...]
    left_out: Tuple[str, ...]

    def __str__(self) -> str:
        return "%d checkpoints -> %s: averaged %d tensors, left out %d optimizer tensors" % (
            len(self.sources),
            self.destination,
            len(self.averaged),
            len(self.left_out),
        )


def average(sources: Sequence[PathLike], dst: PathLike) -> AverageReport:
    """Writes the mean of several checkpoints of one model, such as the last few of a training.

    Sums are float64, then rounded to the type that the tensor has. Integer tensors must agree.
    Optimizer tensors stay out.

    Args:
        sources: two or more, each a TensorFlow prefix, a .safetensors file, or a folder with one of them.
        dst: a new checkpoint, or a new folder when the first source is one (the files beside the first go along).

    Raises:
        CheckpointError: a source cannot be read, or names, shapes or types differ.
    """
    sources = sources if isinstance(sources, (str, bytes)) else list(sources)
    if isinstance(sources, (str, bytes)) or len(sources) < 2:
        raise CheckpointError("average: expected a list of two or more checkpoints, got %r." % (sources,))
    readers = [open_checkpoint(source) for source in sources]
    names = _weights(readers[0])
    check_readable(readers[0], names)
    for reader in readers[1:]:
        _check_same_model(readers[0], reader, names)
    unverified = [
        reader if isinstance(reader, SafetensorsReader) else BundleReader(reader.path, verify=False)
        for reader in readers
    ]
    left_out = optimizer_tensors(readers[0].names())
    with destination(sources[0], dst) as path, open_writer(path, tensor_specs(readers[0], names)) as writer:
        for name in names:
            for reader in readers:
                reader.read(name)  # verifies the checksum; the pages go with the array
            dtype = readers[0].dtype(name)
            writer.add(name, _mean(unverified, name, dtype), bfloat16=dtype == "bfloat16")
    return AverageReport(tuple(reader.path for reader in readers), os.fspath(dst), tuple(names), tuple(left_out))


def _check_same_model(first: CheckpointReader, other: CheckpointReader, names: Sequence[str]) -> None:
    found = _weights(other)
    differing = sorted(set(names) ^ set(found))
    if differing:
        raise CheckpointError(
            "average: expected the same tensors everywhere; %d are not both in %s and in %s: %s"
            % (len(differing), first.path, other.path, ", ".join(differing[:8]))
        )
    for name in names:
        here, there = ((reader.dtype(name), list(reader.shape(name))) for reader in (first, other))
        if here != there:
            raise CheckpointError(
                "average: %s: expected %s %s as in %s, got %s %s in %s."
                % ((name,) + here + (first.path,) + there + (other.path,))
            )


def _mean(readers: Sequence[CheckpointReader], name: str, dtype: str) -> np.ndarray:
    """The mean of one tensor in its own type; at most `_PART` values of each source are in memory at a time."""
    if dtype not in _FLOATS:
        first = readers[0].read(name)
        for reader in readers[1:]:
            if not np.array_equal(first, reader.read(name)):
                raise CheckpointError(
                    "average: %s holds integers that differ between %s and %s." % (name, readers[0].path, reader.path)
                )
        return first
    bfloat16 = dtype == "bfloat16"
    shape = readers[0].shape(name)
    out = np.empty(int(np.prod(shape, dtype=np.int64)), np.uint16 if bfloat16 else dtype)
    for begin in range(0, len(out), _PART):
        part = slice(begin, min(begin + _PART, len(out)))
        total = np.zeros(part.stop - part.start, np.float64)
        for reader in readers:
            values = reader.read(name).reshape(-1)[part]
            total += as_float32(values, True) if bfloat16 else values
        total /= len(readers)
        out[part] = round_to_bfloat16(total.astype(np.float32)) if bfloat16 else total
    return out.reshape(shape)
