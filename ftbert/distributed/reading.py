"""The input of `predict`: which files, of which kind, and which of them cannot be read."""

import contextlib
import inspect
import json
import os
from typing import Any, Dict, Iterator, List, Optional, Tuple

from ftbert.distributed.output import READER_CPUS
from ftbert.errors import InputError

__all__ = ["KINDS", "format_of", "read", "unreadable"]

KINDS = ("parquet", "csv", "jsonl")

_SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}


def _files(path: str) -> List[str]:
    """The data files of a path: itself, or what a folder holds besides hidden files, at any depth."""
    if not os.path.isdir(path):
        return [path]
    found = []
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if name[0] not in "._")
        found += [os.path.join(folder, name) for name in sorted(files) if name[0] not in "._"]
    return found


def format_of(path: str) -> str:
    """The one kind of files that a path holds: "parquet", "csv" or "jsonl".

    Raises:
        InputError: there is nothing, or files of another kind or of several.
    """
    if not os.path.exists(path):
        raise InputError("%s: expected a file or folder of Parquet, CSV or JSON lines, found nothing." % path)
    files = _files(path)
    formats = {_SUFFIXES.get(os.path.splitext(name)[1].lower()) for name in files}
    if len(formats) != 1 or None in formats:
        raise InputError(
            "%s: expected files of one kind (%s), found %s."
            % (path, ", ".join(_SUFFIXES), sorted({os.path.splitext(name)[1] or name for name in files}) or "none")
        )
    return str(formats.pop())


def read(path: str, kind: str) -> Any:
    """A file or a folder as a Ray dataset; columns of CSV are strings.

    Raises:
        InputError: there are no rows, or a Parquet file is empty.
    """
    import ray.data

    # Ray 2.5x takes the readers' resources as arguments of their own, older ones in ray_remote_args alone.
    named = "num_cpus" in inspect.signature(ray.data.read_parquet).parameters
    light: Dict[str, Any] = {"num_cpus": READER_CPUS} if named else {"ray_remote_args": {"num_cpus": READER_CPUS}}
    files = _files(path)
    full = [name for name in files if os.path.getsize(name)]
    if kind == "parquet":
        if len(full) < len(files):
            empty = next(name for name in files if name not in full)
            raise InputError("%s: expected Parquet, found a file of 0 bytes. Copy it again." % empty)
        with _few_footer_readers(len(files)):
            return ray.data.read_parquet(files, **light)
    if not full:
        raise InputError("%s: expected a dataset with columns, got files of 0 bytes." % path)
    if kind == "jsonl":
        return ray.data.read_json(full, file_extensions=None, **light)
    parse, convert = _csv_options(full[0])
    return ray.data.read_csv(full, parse_options=parse, convert_options=convert, file_extensions=None, **light)


@contextlib.contextmanager
def _few_footer_readers(files: int) -> Iterator[None]:
    """Ray 2.60 starts 32 processes for the footers of Parquet files, of which one reads ten: no more than have work."""
    name = "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(min(32, -(-files // 10)))
    try:
        yield
    finally:
        os.environ.pop(name, None)


def unreadable(path: str, kind: str) -> Optional[str]:
    """Reads one file after the other until one fails: its name and what is wrong. None: all can be read."""
    import pyarrow
    from pyarrow import csv, parquet
    from pyarrow import json as arrow_json

    for name in _files(path):
        try:
            if kind == "parquet":
                with open(name, "rb") as file:
                    for _ in parquet.ParquetFile(file).iter_batches():
                        pass
            elif not os.path.getsize(name):
                continue
            elif kind == "csv":
                parse, convert = _csv_options(name)
                with csv.open_csv(name, parse_options=parse, convert_options=convert) as reader:
                    for _ in reader:
                        pass
            else:
                _check_lines(name)
                arrow_json.read_json(name)  # columns that change their type
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            return "%s: cannot be read as %s: %s" % (name, kind, str(error).partition("\n")[0])
    return None


def _csv_options(path: str) -> Tuple[Any, Any]:
    """Quoted fields may hold line ends. Without types given, "007" would become 7, and a block of numbers a column of
    another type than the next block's."""
    import pyarrow
    from pyarrow import csv

    parse = csv.ParseOptions(newlines_in_values=True)
    with csv.open_csv(path, parse_options=parse) as reader:
        names = reader.schema.names
    return parse, csv.ConvertOptions(column_types={name: pyarrow.string() for name in names})


def _check_lines(path: str) -> None:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                if line.strip() and not isinstance(json.loads(line), dict):
                    raise ValueError("expected an object")
            except ValueError as error:
                raise ValueError("line %d: %s" % (number, error)) from None
