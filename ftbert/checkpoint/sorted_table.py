"""The sorted table that a TensorFlow checkpoint's .index file is: LevelDB's format, read and written in Python.

File: data blocks, a metaindex block, an index block, a footer of 48 bytes. A block is a run of entries (shared key
bytes, unshared key bytes, value bytes: varints; then the key's rest and the value), the offsets of its restart points,
and their number; after it come one byte of compression type and the masked CRC-32C of both.
"""

import struct
from typing import Iterable, List, Tuple

from ftbert.checkpoint.crc32c import crc32c, mask, unmask
from ftbert.errors import CheckpointError

__all__ = ["append_varint", "read_table", "read_varint", "write_table"]

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_RESTART_INTERVAL = 16
_BLOCK_BYTES = 1 << 18


def read_varint(data: bytes, position: int) -> Tuple[int, int]:
    """The base-128 number at `position` and the position after it. IndexError: the data ends inside it."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("a varint of more than ten bytes")


def append_varint(out: bytearray, value: int) -> None:
    """Appends `value` (0 or more) as a base-128 number."""
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _read_block(data: bytes, offset: int, size: int, path: str) -> List[Tuple[bytes, bytes]]:
    end = offset + size
    if end + 5 > len(data):
        raise CheckpointError(
            "%s: expected a block at bytes %d to %d, but the file has %d bytes: it is truncated. Copy it again."
            % (path, offset, end + 5, len(data))
        )
    (stored,) = struct.unpack_from("<I", data, end + 1)
    if crc32c(data[offset : end + 1]) != unmask(stored):
        raise CheckpointError(
            "%s: the checksum of the block at byte %d does not match: the file is damaged." % (path, offset)
        )
    if data[end] != 0:
        raise CheckpointError(
            "%s: expected an uncompressed index (as TensorFlow writes it), got compression type %d. Save the "
            "checkpoint again with tf.train.Saver." % (path, data[end])
        )
    block = data[offset:end]
    (restarts,) = struct.unpack_from("<I", block, len(block) - 4)
    limit = len(block) - 4 - 4 * restarts
    entries = []
    key = b""
    position = 0
    while position < limit:
        shared, position = read_varint(block, position)
        rest, position = read_varint(block, position)
        length, position = read_varint(block, position)
        key = key[:shared] + block[position : position + rest]
        position += rest
        entries.append((key, block[position : position + length]))
        position += length
    return entries


def read_table(path: str) -> List[Tuple[bytes, bytes]]:
    """All (key, value) pairs of the table file, in order, every block's checksum verified.

    Raises:
        CheckpointError: the file is absent, truncated, damaged, or no such table.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise CheckpointError("%s: expected a readable checkpoint index: %s" % (path, error)) from error
    if len(data) < _FOOTER or struct.unpack_from("<Q", data, len(data) - 8)[0] != _MAGIC:
        raise CheckpointError(
            "%s: expected a TensorFlow checkpoint index (a sorted table), got %d bytes that do not end like one: the "
            "file is truncated, or something else." % (path, len(data))
        )
    try:
        position = len(data) - _FOOTER
        _, position = read_varint(data, position)
        _, position = read_varint(data, position)
        offset, position = read_varint(data, position)
        size, position = read_varint(data, position)
        entries = []
        for _, handle in _read_block(data, offset, size, path):
            block_offset, after = read_varint(handle, 0)
            block_size, _ = read_varint(handle, after)
            entries.extend(_read_block(data, block_offset, block_size, path))
        return entries
    except (IndexError, ValueError, struct.error) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError("%s: the checkpoint index is damaged (%s)." % (path, error)) from error


class _Block:
    def __init__(self) -> None:
        self.data = bytearray()
        self._restarts = [0]
        self._count = 0
        self.last_key = b""

    def add(self, key: bytes, value: bytes) -> None:
        shared = 0
        if self._count == _RESTART_INTERVAL:
            self._restarts.append(len(self.data))
            self._count = 0
        elif self._count:
            limit = min(len(key), len(self.last_key))
            while shared < limit and key[shared] == self.last_key[shared]:
                shared += 1
        for number in (shared, len(key) - shared, len(value)):
            append_varint(self.data, number)
        self.data += key[shared:] + value
        self.last_key = key
        self._count += 1

    def finish(self) -> bytes:
        return bytes(self.data) + struct.pack("<%dI" % (len(self._restarts) + 1), *self._restarts, len(self._restarts))


def write_table(entries: Iterable[Tuple[bytes, bytes]]) -> bytes:
    """The table file's bytes for (key, value) pairs whose keys ascend strictly."""
    out = bytearray()

    def place(block: _Block) -> bytes:
        content = block.finish() + b"\0"
        handle = bytearray()
        append_varint(handle, len(out))
        append_varint(handle, len(content) - 1)
        out.extend(content + struct.pack("<I", mask(crc32c(content))))
        return bytes(handle)

    index = _Block()
    block = _Block()
    for key, value in entries:
        if len(block.data) >= _BLOCK_BYTES:
            index.add(block.last_key, place(block))
            block = _Block()
        block.add(key, value)
    index.add(block.last_key, place(block))
    footer = place(_Block()) + place(index)
    out.extend(footer.ljust(_FOOTER - 8, b"\0") + struct.pack("<Q", _MAGIC))
    return bytes(out)
