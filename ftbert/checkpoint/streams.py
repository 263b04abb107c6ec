"""How every checkpoint tool reads and writes: tensor by tensor, to a destination that appears whole or not at all."""

import contextlib
import json
import os
import shutil
from typing import IO, Any, Callable, Dict, Iterator, List, Sequence, Tuple, Union

import numpy as np

from ftbert.checkpoint.disk import sync_and_close, writing
from ftbert.checkpoint.readers import CheckpointReader, find_checkpoint, open_checkpoint
from ftbert.checkpoint.safetensors_writer import SafetensorsWriter, TensorSpec
from ftbert.checkpoint.tf_bundle import CheckpointWriter
from ftbert.errors import CheckpointError
from ftbert.paths import PathLike

__all__ = [
    "COMPANIONS",
    "SIZE_UNITS",
    "check_readable",
    "chunks",
    "destination",
    "format_bytes",
    "new_folder",
    "open_writer",
    "replaced_file",
    "rewrite",
    "tensor_specs",
    "transposed",
    "update_dtype",
]

Writer = Union[CheckpointWriter, SafetensorsWriter]

# What stands beside a checkpoint in a model folder and goes with it into the next one.
COMPANIONS = (
    "LICENSE",
    "README.md",
    "added_tokens.json",
    "bert_config.json",
    "config.json",
    "ftbert.json",
    "labels.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)

SIZE_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))

# Values handled at once by the loops over one tensor: 256 Ki float32 with their intermediates stay in a core's cache.
CHUNK = 1 << 18

# Rows transposed at once: a cache line's worth of each column and some.
_BLOCK_ROWS = 32


def format_bytes(count: int) -> str:
    """A size for people: "1.2 GiB"."""
    for unit, name in SIZE_UNITS:
        if count >= unit:
            return "%.1f %s" % (count / unit, name)
    return "%d B" % count


def chunks(count: int) -> Iterator[slice]:
    """Slices that cover `count` values, each small enough for the cache."""
    for begin in range(0, count, CHUNK):
        yield slice(begin, min(begin + CHUNK, count))


def check_readable(reader: CheckpointReader, names: Sequence[str]) -> None:
    """Says before any work which tensors no tool can copy.

    Raises:
        CheckpointError: there is none, or some hold text, as the object checkpoints of TensorFlow 2 do.
    """
    if not names:
        raise CheckpointError("%s: expected a checkpoint with weights, found no tensor to keep." % reader.path)
    strings = [name for name in names if reader.dtype(name) == "string"]
    if strings:
        raise CheckpointError(
            "%s: %s hold text, as tf.train.Checkpoint and Keras write it. Load the model in TensorFlow and save it by "
            "name: tf.compat.v1.train.Saver(variables).save(session, path)." % (reader.path, ", ".join(strings[:4]))
        )


def tensor_specs(reader: CheckpointReader, names: Sequence[str]) -> List[TensorSpec]:
    """What the reader holds under `names`."""
    return [TensorSpec(name, reader.dtype(name), reader.shape(name)) for name in names]


def transposed(array: np.ndarray) -> np.ndarray:
    """The transpose of a matrix, contiguous: by blocks, twice as fast as numpy's own copy."""
    out = np.empty(array.shape[::-1], array.dtype)
    for begin in range(0, len(array), _BLOCK_ROWS):
        out[:, begin : begin + _BLOCK_ROWS] = array[begin : begin + _BLOCK_ROWS].T
    return out


def open_writer(path: str, specs: Sequence[TensorSpec]) -> Writer:
    """A writer of `path`: safetensors by its ending, else a TensorFlow checkpoint with that prefix."""
    if path.endswith(".safetensors"):
        return SafetensorsWriter(path, specs)
    return CheckpointWriter(path)


def _names_a_file(path: str) -> bool:
    base = os.path.basename(path)
    return ".ckpt" in base or base.endswith(".safetensors")


@contextlib.contextmanager
def new_folder(dst: PathLike) -> Iterator[str]:
    """A folder to fill; it becomes `dst` when the block ends well, and is removed when it does not.

    Raises:
        CheckpointError: `dst` is a file or a folder that holds something.
    """
    dst = os.path.abspath(dst)
    if os.path.lexists(dst) and not (os.path.isdir(dst) and not os.listdir(dst)):
        raise CheckpointError(
            "%s: expected a new or empty folder, there is something already. Name another, or remove it." % dst
        )
    temporary = "%s.writing-%d" % (dst, os.getpid())
    made = _make_parents(dst)
    shutil.rmtree(temporary, ignore_errors=True)  # of a process of this number that was killed
    try:
        os.mkdir(temporary)
        yield temporary
        # mkdir makes what the user's umask allows, and rename replaces an empty folder.
        os.rename(temporary, dst)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(made)
        raise


def _make_parents(path: str) -> List[str]:
    """Makes the folders above `path`; returns those that were not there, deepest first."""
    parent = os.path.dirname(os.path.abspath(path))
    made = []
    while not os.path.isdir(parent):
        made.append(parent)
        parent = os.path.dirname(parent)
    try:
        for folder in reversed(made):
            os.mkdir(folder)
    except OSError as error:
        raise CheckpointError("%s: expected a place to write to: %s" % (path, error)) from error
    return made


def _remove_empty(folders: Sequence[str]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            os.rmdir(folder)


@contextlib.contextmanager
def replaced_file(path: PathLike) -> Iterator[IO[bytes]]:
    """A file to write; it becomes `path` when the block ends well, and is removed when it does not."""
    path = os.fspath(path)
    temporary = "%s.writing-%d" % (path, os.getpid())
    made = _make_parents(path)
    try:
        with writing(path), open(temporary, "wb") as file:
            yield file
            sync_and_close(file)
            os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.remove(temporary)
        _remove_empty(made)
        raise


@contextlib.contextmanager
def destination(src: PathLike, dst: PathLike) -> Iterator[str]:
    """Where to write the checkpoint that replaces the one at `src`, so that `dst` appears whole or stays as it was.

    Args:
        src: a checkpoint, or a folder with one.
        dst: a folder when `src` is one (new or empty; configuration, vocabulary and labels go along), else a prefix
            ("out/model.ckpt") or a .safetensors file. A name with ".ckpt" or ".safetensors" is always a file.

    Yields:
        The path for `open_writer`.
    """
    src, dst = os.fspath(src), os.fspath(dst)
    found = find_checkpoint(src)
    if os.path.isdir(src) and not _names_a_file(dst):
        with new_folder(dst) as folder:
            for name in COMPANIONS:
                if os.path.isfile(os.path.join(src, name)):
                    shutil.copyfile(os.path.join(src, name), os.path.join(folder, name))
            safetensors = found.endswith((".safetensors", ".safetensors.index.json"))
            yield os.path.join(folder, "model.safetensors" if safetensors else "model.ckpt")
        return
    if os.path.isdir(dst) or dst.endswith(os.sep):
        raise CheckpointError(
            "%s is a folder, and %s is one checkpoint. Name the new checkpoint in it: %s"
            % (dst, src, os.path.join(dst, os.path.basename(found)))
        )
    if os.path.realpath(dst) == os.path.realpath(found):
        raise CheckpointError("%s: expected another name than the source's: it is read while it is written." % dst)
    made = _make_parents(dst)
    try:
        yield dst
    except BaseException:
        _remove_empty(made)
        raise


def update_dtype(folder: str, dtype: str) -> None:
    """Makes the type named in a Hugging Face config.json, where one is, that of the new checkpoint beside it."""
    path = os.path.join(folder, "config.json")
    if not os.path.isfile(path):
        return
    with open(path, encoding="utf-8") as file:
        values: Dict[str, Any] = json.load(file)
    for key in ("torch_dtype", "dtype"):
        if key in values:
            values[key] = dtype
    with open(path, "w", encoding="utf-8") as file:
        json.dump(values, file, indent=2, ensure_ascii=False, sort_keys=True)
        file.write("\n")


def rewrite(
    src: PathLike,
    dst: PathLike,
    choose: Callable[[CheckpointReader], List[str]],
    specs: Callable[[List[TensorSpec]], List[TensorSpec]],
    change: Callable[[str, np.ndarray, str], Tuple[np.ndarray, bool]],
    finish: Callable[[str], None] = lambda folder: None,
) -> Tuple[CheckpointReader, List[str]]:
    """Copies a checkpoint tensor by tensor, changed on the way.

    Args:
        src: a checkpoint or a folder with one.
        dst: as in `destination`.
        choose: reader -> the names to keep.
        specs: what is kept -> what is written, for formats whose header comes first.
        change: (name, array, dtype as stored) -> (array to write, whether it is uint16 bits of bfloat16).
        finish: called with the new folder, where the destination is one, before it gets its name.

    Returns:
        The reader and the names that were kept.
    """
    reader = open_checkpoint(src)
    names = choose(reader)
    check_readable(reader, names)
    with destination(src, dst) as path:
        with open_writer(path, specs(tensor_specs(reader, names))) as writer:
            for name in names:
                array, bfloat16 = change(name, reader.read(name), reader.dtype(name))
                writer.add(name, array, bfloat16=bfloat16)
                # The mapped pages of this tensor must go before those of the next one come.
                del array
        if path != os.fspath(dst):
            finish(os.path.dirname(path))
    return reader, names
