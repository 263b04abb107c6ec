"""Reader and writer of TensorFlow checkpoints (the "tensor bundle") without TensorFlow.

<prefix>.index is a sorted table: the empty key holds a BundleHeaderProto, every other key is a tensor's name with a
BundleEntryProto (type, shape, shard, offset, size, masked CRC-32C). <prefix>.data-0000i-of-0000n holds the bytes.
The protos are few and fixed, so their wire format is read and written here.
"""

import contextlib
import os
import struct
from typing import Dict, Iterator, List, NamedTuple, Sequence, Tuple, Union

import numpy as np

from ftbert.checkpoint.crc32c import crc32c, mask, unmask
from ftbert.checkpoint.disk import WholeFile, sync_and_close, writing
from ftbert.checkpoint.readers import CheckpointReader, view_file
from ftbert.checkpoint.sorted_table import append_varint, read_table, read_varint, write_table
from ftbert.errors import CheckpointError

__all__ = ["BundleReader", "CheckpointWriter"]

# Numbers of TensorFlow's types.proto.
_TYPES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    7: "string",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    19: "float16",
    22: "uint32",
    23: "uint64",
}
_NUMBERS = {name: number for number, name in _TYPES.items()}


class _Entry(NamedTuple):
    dtype: str
    shape: Tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    partitioned: bool


def _fields(data: bytes) -> Iterator[Tuple[int, Union[int, bytes]]]:
    """(field number, value) pairs of a protocol buffer message."""
    position = 0
    while position < len(data):
        tag, position = read_varint(data, position)
        kind = tag & 7
        if kind == 0:
            value, position = read_varint(data, position)
            yield tag >> 3, value
        elif kind == 2:
            size, position = read_varint(data, position)
            if position + size > len(data):
                raise ValueError("a field reaches past its message")
            yield tag >> 3, data[position : position + size]
            position += size
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            yield tag >> 3, int.from_bytes(data[position : position + size], "little")
            position += size
        else:
            raise ValueError("wire type %d" % kind)


def _parse_entry(data: bytes) -> _Entry:
    values: Dict[int, int] = {1: 0, 3: 0, 4: 0, 5: 0, 6: 0}
    shape = []
    partitioned = False
    for number, value in _fields(data):
        if number == 2:
            assert isinstance(value, bytes)
            for dim_number, dim in _fields(value):
                if dim_number == 2:
                    assert isinstance(dim, bytes)
                    shape.append(dict(_fields(dim)).get(1, 0))
        elif number == 7:
            partitioned = True
        else:
            assert isinstance(value, int)
            values[number] = value
    name = _TYPES.get(values[1], "type %d" % values[1])
    return _Entry(name, tuple(int(size) for size in shape), values[3], values[4], values[5], values[6], partitioned)


class BundleReader(CheckpointReader):
    """A TensorFlow checkpoint: `prefix`.index and its data shards. `verify=False` skips the tensors' checksums."""

    format = "tensorflow"

    def __init__(self, prefix: str, verify: bool = True) -> None:
        self.path = os.fspath(prefix)
        self._verify = verify
        entries = read_table(self.path + ".index")
        if not entries or entries[0][0] != b"":
            raise CheckpointError(
                "%s.index: expected a checkpoint's header first: this is another sorted table." % self.path
            )
        try:
            header = dict(_fields(entries[0][1]))
            self._entries = {
                key.decode("utf-8"): _parse_entry(value)
                for key, value in entries[1:]
                if not key.startswith(b"\0")  # the slices of a partitioned variable
            }
        except (IndexError, ValueError, AssertionError) as error:
            raise CheckpointError("%s.index: a record of the index is damaged (%s)." % (self.path, error)) from error
        if header.get(2, 0) != 0:
            raise CheckpointError("%s: written on a big-endian machine, which ftbert does not read." % self.path)
        self._shards = int(header.get(1, 1))
        self._check_shards()

    def _shard(self, number: int) -> str:
        return "%s.data-%05d-of-%05d" % (self.path, number, self._shards)

    def _check_shards(self) -> None:
        needed: Dict[int, int] = {}
        for entry in self._entries.values():
            if entry.size:
                needed[entry.shard] = max(needed.get(entry.shard, 0), entry.offset + entry.size)
        for number, size in sorted(needed.items()):
            path = self._shard(number)
            if not os.path.isfile(path):
                raise CheckpointError(
                    "%s: the checkpoint has %d data file(s) and this one is missing. Copy all of %s.* together."
                    % (path, self._shards, os.path.basename(self.path))
                )
            found = os.path.getsize(path)
            if found < size:
                raise CheckpointError(
                    "%s: expected at least %d bytes, got %d: the file is truncated. Copy it again."
                    % (path, size, found)
                )

    def names(self) -> List[str]:
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise self._unknown(name)
        return self._entries[name]

    def shape(self, name: str) -> Tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        return self._entry(name).dtype

    def read(self, name: str) -> np.ndarray:
        entry = self._entry(name)
        if entry.partitioned:
            raise CheckpointError(
                "%s: %s is a partitioned variable, kept in slices. Load it in TensorFlow without a partitioner and "
                "save it whole." % (self.path, name)
            )
        if entry.dtype not in _NUMBERS or entry.dtype == "string":
            raise CheckpointError(
                "%s: %s holds %s values, which no model weight does." % (self.path, name, entry.dtype)
            )
        dtype = np.dtype("uint16" if entry.dtype == "bfloat16" else entry.dtype)
        count = int(np.prod(entry.shape, dtype=np.int64))
        if count * dtype.itemsize != entry.size:
            raise CheckpointError(
                "%s: %s %s %s needs %d bytes, but the index says %d: it is damaged."
                % (self.path, name, entry.dtype, list(entry.shape), count * dtype.itemsize, entry.size)
            )
        array = view_file(self._shard(entry.shard), entry.offset, dtype, entry.shape)
        if self._verify and crc32c(array) != unmask(entry.checksum):
            raise CheckpointError(
                "%s: the checksum of %s does not match: %s is damaged. Copy it again."
                % (self.path, name, os.path.basename(self._shard(entry.shard)))
            )
        return array


class CheckpointWriter(WholeFile):
    """Writes a TensorFlow checkpoint, one tensor at a time, readable by every tf.train.Saver since 1.0.

    Nothing appears under the final names before `close`; leaving the `with` block by an exception removes what was
    begun.

        with CheckpointWriter("out/model.ckpt") as writer:
            writer.add("output_bias", bias)
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = os.fspath(prefix)
        self._entries: Dict[str, bytes] = {}
        self._offset = 0
        self._temporary = "%s.writing-%d" % (self.prefix, os.getpid())
        with writing(self.prefix):
            self._data = open(self._temporary + ".data", "wb")  # noqa: SIM115 - closed in close() or abort()

    def add(self, name: str, array: np.ndarray, bfloat16: bool = False) -> None:
        """Appends one tensor. `bfloat16` says that the array is uint16 bits of that type."""
        array = np.asarray(array)
        shape = array.shape  # ascontiguousarray would turn a scalar into (1,)
        array = np.ascontiguousarray(array)
        dtype = "bfloat16" if bfloat16 else array.dtype.name
        if bfloat16 and array.dtype != np.uint16:
            raise CheckpointError("%s: expected bfloat16 as uint16 bits, got %s." % (name, array.dtype))
        if dtype not in _NUMBERS or dtype == "string" or not array.dtype.isnative:
            raise CheckpointError("%s: a checkpoint has no type for %s values." % (name, array.dtype))
        if not name or name.startswith("\0") or name in self._entries:
            raise CheckpointError("%r: expected a new, non-empty tensor name." % name)
        content = array.reshape(-1).view(np.uint8)
        with writing(self.prefix):
            content.tofile(self._data)
        self._entries[name] = _entry_proto(dtype, shape, self._offset, content.nbytes, mask(crc32c(content)))
        self._offset += content.nbytes

    def close(self) -> None:
        """Completes the checkpoint and names it, the data first, so that an index never stands without its data."""
        if self._data.closed:
            return
        header = b"\x08\x01\x1a\x02\x08\x01"  # num_shards: 1, version { producer: 1 }
        rows = [(b"", header)] + sorted((name.encode("utf-8"), entry) for name, entry in self._entries.items())
        with writing(self.prefix):
            sync_and_close(self._data)
            with open(self._temporary + ".index", "wb") as index:
                index.write(write_table(rows))
                sync_and_close(index)
            os.replace(self._temporary + ".data", self.prefix + ".data-00000-of-00001")
            os.replace(self._temporary + ".index", self.prefix + ".index")

    def abort(self) -> None:
        """Removes what was written."""
        with contextlib.suppress(OSError):  # a full disk refuses what is left to write once more
            self._data.close()
        for suffix in (".data", ".index"):
            if os.path.exists(self._temporary + suffix):
                os.remove(self._temporary + suffix)

    def __enter__(self) -> "CheckpointWriter":
        return self


def _entry_proto(dtype: str, shape: Sequence[int], offset: int, size: int, checksum: int) -> bytes:
    dims = bytearray()
    for length in shape:
        dim = bytearray()
        if length:
            dim.append(0x08)
            append_varint(dim, length)
        dims += b"\x12"
        append_varint(dims, len(dim))
        dims += dim
    out = bytearray(b"\x08")
    append_varint(out, _NUMBERS[dtype])
    out.append(0x12)
    append_varint(out, len(dims))
    out += dims
    for tag, value in ((0x20, offset), (0x28, size)):
        if value:
            out.append(tag)
            append_varint(out, value)
    return bytes(out) + b"\x35" + struct.pack("<I", checksum)
