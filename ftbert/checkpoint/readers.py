"""What every checkpoint reader offers, and how a path becomes one. No TensorFlow, no torch."""

import os
import re
from typing import Dict, List, Tuple

import numpy as np

from ftbert.errors import CheckpointError
from ftbert.paths import PathLike, as_path, hint_for

__all__ = ["CheckpointReader", "as_float32", "find_checkpoint", "open_checkpoint", "view_file"]

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


class CheckpointReader:
    """Named tensors of one checkpoint, read one by one.

    `dtype` is a numpy name ("float32", "float16", "int64" ...) or "bfloat16", or "string". A bfloat16 tensor is read
    as its uint16 bits, because numpy has no such type; `as_float32` widens it.

    Attributes:
        path: what was opened, for messages: a prefix, a file or a folder.
        format: "tensorflow" or "safetensors".
    """

    path = ""
    format = ""

    def names(self) -> List[str]:
        """All tensor names, sorted."""
        raise NotImplementedError

    def shape(self, name: str) -> Tuple[int, ...]:
        """The tensor's shape as stored."""
        raise NotImplementedError

    def dtype(self, name: str) -> str:
        """The tensor's type as stored."""
        raise NotImplementedError

    def read(self, name: str) -> np.ndarray:
        """The tensor, read-only, a view of the file if large; its checksum is verified where the format has one."""
        raise NotImplementedError

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __enter__(self) -> "CheckpointReader":
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing is held open: each view of a file lives as long as its array."""

    def _unknown(self, name: str) -> CheckpointError:
        names = self.names()
        return CheckpointError(
            "%s: no tensor %r among its %d: %s%s"
            % (self.path, name, len(names), ", ".join(names[:8]), ", ..." if len(names) > 8 else "")
        )


def as_float32(array: np.ndarray, bfloat16: bool = False) -> np.ndarray:
    """The array as float32; `bfloat16` says that it is uint16 bits of that type. A float32 array comes back itself."""
    if bfloat16:
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.asarray(array, np.float32)


def view_file(path: str, offset: int, dtype: "np.dtype", shape: Tuple[int, ...]) -> np.ndarray:
    """An array of a file's bytes. Large ones are mapped, each by itself, so that dropping one drops its pages."""
    count = int(np.prod(shape, dtype=np.int64))
    size = count * dtype.itemsize
    if size < 1 << 16 or offset % dtype.itemsize:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) != size:
            raise CheckpointError(
                "%s: expected %d bytes at %d, the file ends after %d: it is truncated."
                % (path, size, offset, len(data))
            )
        return np.frombuffer(data, dtype, count).reshape(shape)
    return np.memmap(path, dtype, "r", offset, shape).view(np.ndarray)


def _state_file_prefix(folder: str) -> str:
    """What the folder's `checkpoint` file names, or ''. A folder that was moved is found by the base name."""
    path = os.path.join(folder, "checkpoint")
    try:
        with open(path, "r", encoding="utf-8") as file:
            text = file.read()
    except OSError:
        return ""
    except UnicodeDecodeError as error:
        raise CheckpointError("%s: expected the text file that tf.train.Saver writes: %s" % (path, error)) from error
    match = re.search(r'^\s*model_checkpoint_path:\s*"((?:[^"\\]|\\.)*)"', text, re.MULTILINE)
    if not match:
        raise CheckpointError('%s: expected a line `model_checkpoint_path: "..."`, found none.' % path)
    named = re.sub(r"\\(.)", r"\1", match.group(1))
    for candidate in (os.path.join(folder, os.path.basename(named)), os.path.join(folder, named)):
        if os.path.exists(candidate + ".index"):
            return candidate
    raise CheckpointError(
        "%s names %s, but there is no %s.index in the folder. Copy that checkpoint here, or remove the `checkpoint` "
        "file to use the newest model.ckpt-* (here: %s)."
        % (path, named, os.path.basename(named), ", ".join(sorted(_prefixes(folder))) or "none")
    )


def _prefixes(folder: str) -> Dict[str, int]:
    """Checkpoint prefixes in the folder -> training step (-1 where the name has none)."""
    found = {}
    for name in os.listdir(folder):
        if name.endswith(".index"):
            prefix = name[: -len(".index")]
            step = re.search(r"-(\d+)$", prefix)
            found[prefix] = int(step.group(1)) if step else -1
    return found


def find_checkpoint(path: PathLike) -> str:
    """Which checkpoint a path means.

    Args:
        path: a TensorFlow prefix (".../model.ckpt-100"), one of its files, a .safetensors file or its .index.json, or a
            folder: there the `checkpoint` file decides, else the highest step of the one name that is there
            (model.ckpt-*, bert_model.ckpt), else model.safetensors or its sharded index.

    Returns:
        A TensorFlow prefix or the path of a .safetensors or .safetensors.index.json file.

    Raises:
        CheckpointError: nothing there, or more than one possible meaning, or a pickle.
    """
    path = as_path(path)
    if os.path.basename(path) in _PICKLES:
        raise _pickle_error(path)
    if path.endswith(".safetensors") or path.endswith(".safetensors.index.json"):
        if not os.path.isfile(path):
            raise CheckpointError("%s: no such file." % path)
        return path
    shard = re.match(r"(.+)\.data-\d{5}-of-\d{5}$", path)
    if path.endswith(".index"):
        path = path[: -len(".index")]
    elif shard:
        path = shard.group(1)
    if os.path.exists(path + ".index"):
        return path
    if not os.path.isdir(path):
        if os.path.isfile(path):
            raise CheckpointError(
                "%s: expected a checkpoint (prefix with .index and .data files, .safetensors, or a folder), got "
                "another file." % path
            )
        raise CheckpointError(
            "%s: no checkpoint there: neither a folder nor %s.index exists.%s"
            % (path, os.path.basename(path), hint_for(path))
        )
    prefix = _state_file_prefix(path)
    if prefix:
        return prefix
    found = _prefixes(path)
    if found:
        stems = {re.sub(r"-\d+$", "", name) for name in found}
        if len(stems) > 1:
            raise CheckpointError(
                "%s: expected one checkpoint, found %s. Name one: load(%r)."
                % (path, ", ".join(sorted(found)), os.path.join(path, sorted(found)[0]))
            )
        return os.path.join(path, max(found, key=lambda name: found[name]))
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if os.path.exists(os.path.join(path, name)):
            return os.path.join(path, name)
    for name in _PICKLES:
        if os.path.exists(os.path.join(path, name)):
            raise _pickle_error(os.path.join(path, name))
    raise CheckpointError(
        "%s: expected a checkpoint in this folder (*.ckpt*.index with its .data, or model.safetensors), found %s."
        % (path, ", ".join(sorted(os.listdir(path))[:12]) or "nothing")
    )


def _pickle_error(path: str) -> CheckpointError:
    return CheckpointError(
        "%s is a pickle, which can run any code when it is opened: ftbert reads safetensors only. Convert it once, "
        'where torch is: python -c "from transformers import AutoModelForSequenceClassification as M; '
        "M.from_pretrained('%s').save_pretrained('%s', safe_serialization=True)\""
        % (path, os.path.dirname(path) or ".", os.path.dirname(path) or ".")
    )


def open_checkpoint(path: PathLike) -> CheckpointReader:
    """A reader of whatever checkpoint `path` means (`find_checkpoint`).

    Raises:
        CheckpointError: absent, ambiguous, truncated, damaged, or of another kind.
    """
    from ftbert.checkpoint.safetensors_reader import SafetensorsReader
    from ftbert.checkpoint.tf_bundle import BundleReader

    found = find_checkpoint(path)
    if found.endswith(".safetensors") or found.endswith(".safetensors.index.json"):
        return SafetensorsReader(found)
    return BundleReader(found)
