"""Reader of safetensors files, one or sharded, in numpy; bfloat16 needs no torch."""

import json
import os
import struct
from typing import Any, Dict, List, NamedTuple, Tuple

import numpy as np

from ftbert.checkpoint.readers import CheckpointReader, view_file
from ftbert.errors import CheckpointError

__all__ = ["SafetensorsReader"]

_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_MAX_HEADER = 100 << 20


class _Tensor(NamedTuple):
    file: str
    dtype: str
    shape: Tuple[int, ...]
    offset: int


def _json(path: str, text: bytes) -> Dict[str, Any]:
    try:
        value = json.loads(text.decode("utf-8"))
    except ValueError as error:
        raise CheckpointError("%s: expected JSON: %s" % (path, error)) from error
    if not isinstance(value, dict):
        raise CheckpointError("%s: expected a JSON object, got %s." % (path, type(value).__name__))
    return value


def _read_header(path: str) -> Dict[str, _Tensor]:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else _MAX_HEADER
            if length >= _MAX_HEADER or 8 + length > size:
                raise CheckpointError(
                    "%s: expected a safetensors file, but its header does not fit into its %d bytes: it is truncated, "
                    "a download pointer, or something else." % (path, size)
                )
            header = _json(path, file.read(length))
    except OSError as error:
        raise CheckpointError("%s: expected a readable safetensors file: %s" % (path, error)) from error
    header.pop("__metadata__", None)
    tensors = {}
    for name, record in header.items():
        try:
            dtype = _TYPES.get(record["dtype"], record["dtype"])
            shape = tuple(int(length) for length in record["shape"])
            begin, end = (int(offset) for offset in record["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError("%s: the header's record of %r is damaged (%r)." % (path, name, error)) from error
        if 8 + length + end > size or begin < 0 or begin > end:
            raise CheckpointError(
                "%s: %s ends at byte %d, the file has %d: it is truncated. Copy it again."
                % (path, name, 8 + length + end, size)
            )
        if dtype in _TYPES.values():
            width = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
            if int(np.prod(shape, dtype=np.int64)) * width != end - begin:
                raise CheckpointError(
                    "%s: %s %s %s does not fill its %d bytes: the header is damaged."
                    % (path, name, dtype, list(shape), end - begin)
                )
        tensors[name] = _Tensor(path, dtype, shape, 8 + length + begin)
    return tensors


class SafetensorsReader(CheckpointReader):
    """A .safetensors file, or the .safetensors.index.json of a sharded one. The format has no checksums."""

    format = "safetensors"

    def __init__(self, path: str) -> None:
        self.path = os.fspath(path)
        if not self.path.endswith(".json"):
            self._tensors = _read_header(self.path)
            return
        with open(self.path, "rb") as file:
            weight_map = _json(self.path, file.read()).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError("%s: expected a 'weight_map' of tensor names to files." % self.path)
        self._tensors = {}
        for name in sorted(set(weight_map.values())):
            if os.path.basename(name) != name:
                raise CheckpointError("%s: expected file names in this folder, got %r." % (self.path, name))
            shard = os.path.join(os.path.dirname(self.path), name)
            if not os.path.isfile(shard):
                raise CheckpointError("%s: this shard, named in %s, is missing." % (shard, os.path.basename(self.path)))
            self._tensors.update(_read_header(shard))
        missing = sorted(set(weight_map) - set(self._tensors))
        if missing:
            raise CheckpointError("%s: no shard holds %s." % (self.path, ", ".join(missing[:8])))

    def names(self) -> List[str]:
        return sorted(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def _tensor(self, name: str) -> _Tensor:
        if name not in self._tensors:
            raise self._unknown(name)
        return self._tensors[name]

    def shape(self, name: str) -> Tuple[int, ...]:
        return self._tensor(name).shape

    def dtype(self, name: str) -> str:
        return self._tensor(name).dtype

    def read(self, name: str) -> np.ndarray:
        tensor = self._tensor(name)
        if tensor.dtype not in _TYPES.values():
            raise CheckpointError(
                "%s: %s is stored as %s, which ftbert does not read." % (self.path, name, tensor.dtype)
            )
        dtype = np.dtype("uint16" if tensor.dtype == "bfloat16" else tensor.dtype)
        return view_file(tensor.file, tensor.offset, dtype, tensor.shape)
