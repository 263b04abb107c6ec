"""Writer of safetensors files, one tensor at a time: the sizes come first, so the header is written before the data."""

import contextlib
import json
import os
import struct
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ftbert.checkpoint.disk import WholeFile, sync_and_close, writing
from ftbert.errors import CheckpointError

__all__ = ["SafetensorsWriter", "TensorSpec"]

_TYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def _width(dtype: str) -> int:
    if dtype == "bfloat16":
        return 2
    try:
        return 0 if dtype == "string" else np.dtype(dtype).itemsize
    except TypeError:
        return 0


class TensorSpec(NamedTuple):
    """What a tensor will be: its name, its type ("float32", "bfloat16" ...) and its shape."""

    name: str
    dtype: str
    shape: Tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The size of its values; 0 for text and types that numpy does not know."""
        return int(np.prod(self.shape, dtype=np.int64)) * _width(self.dtype)


class SafetensorsWriter(WholeFile):
    """Writes a .safetensors file whose tensors are known beforehand; nothing stands under `path` before `close`.

    Args:
        path: the file.
        specs: every tensor that will be added, in any order.
        metadata: strings for the header; transformers wants {"format": "pt"}.
    """

    def __init__(self, path: str, specs: Sequence[TensorSpec], metadata: Optional[Dict[str, str]] = None) -> None:
        self.path = os.fspath(path)
        for spec in specs:
            if spec.dtype not in _TYPES:
                raise CheckpointError("%s: safetensors has no type for %s values." % (spec.name, spec.dtype))
        # Wide types first, as the format's own library orders them: each tensor then starts at a multiple of its width.
        ordered = sorted(specs, key=lambda spec: (-_width(spec.dtype), spec.name))
        header: Dict[str, object] = {"__metadata__": metadata or {"format": "pt"}}
        self._offsets: Dict[str, int] = {}
        self._specs: Dict[str, TensorSpec] = {}
        offset = 0
        for spec in ordered:
            if spec.name in self._specs:
                raise CheckpointError("%r: two tensors of one name." % spec.name)
            header[spec.name] = {
                "dtype": _TYPES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [offset, offset + spec.nbytes],
            }
            self._offsets[spec.name], self._specs[spec.name] = offset, spec
            offset += spec.nbytes
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        self._waiting = set(self._specs)
        self._temporary = "%s.writing-%d" % (self.path, os.getpid())
        with writing(self.path):
            self._file = open(self._temporary, "wb")  # noqa: SIM115 - closed in close() or abort()
            self._file.write(struct.pack("<Q", len(text)) + text)

    def add(self, name: str, array: np.ndarray, bfloat16: bool = False) -> None:
        """Writes one tensor's values. `bfloat16` says that the array is uint16 bits of that type."""
        array = np.asarray(array)
        spec = self._specs.get(name)
        dtype = "bfloat16" if bfloat16 else array.dtype.name
        if spec is None or name not in self._waiting or (spec.dtype, spec.shape) != (dtype, array.shape):
            raise CheckpointError(
                "%s: expected %s, got %s %s." % (name, spec or "no such tensor", dtype, list(array.shape))
            )
        with writing(self.path):
            self._file.seek(self._start + self._offsets[name])
            np.ascontiguousarray(array).tofile(self._file)
        self._waiting.discard(name)

    def close(self) -> None:
        """Completes the file and gives it its name."""
        if self._file.closed:
            return
        if self._waiting:
            waiting: List[str] = sorted(self._waiting)
            raise CheckpointError(
                "%s: %d tensors were announced and not added: %s" % (self.path, len(waiting), waiting[:8])
            )
        with writing(self.path):
            sync_and_close(self._file)
            os.replace(self._temporary, self.path)

    def abort(self) -> None:
        """Removes what was written."""
        with contextlib.suppress(OSError):  # a full disk refuses what is left to write once more
            self._file.close()
        if os.path.exists(self._temporary):
            os.remove(self._temporary)

    def __enter__(self) -> "SafetensorsWriter":
        return self
