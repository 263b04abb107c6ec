"""Text files of rows: TSV, CSV, JSON lines or plain lines, read with line numbers; results written whole or not."""

import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import os
import sys
import tempfile
import zlib
from typing import IO, Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from ftbert.errors import InputError

__all__ = ["FORMATS", "Row", "RowWriter", "check_rows", "detect_format", "read_rows", "scan_rows"]

FORMATS = ("tsv", "csv", "jsonl", "lines")

_SUFFIXES = {".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "lines"}

# What nobody means as plain lines.
_OTHERS = (".json", ".parquet", ".arrow", ".feather", ".xlsx", ".xls", ".ods", ".zip", ".bz2", ".xz", ".zst", ".pkl")

# How many bad rows one message names.
_MOST_NAMED = 20

Text = Union[str, Tuple[str, str]]


class Row(NamedTuple):
    """One row of a file.

    Attributes:
        line: where it ends in the file, from 1.
        text: a string, or a pair where a second column was named.
        record: the other columns, by name.
    """

    line: int
    text: Text
    record: Dict[str, Any]


def detect_format(path: str, format: Optional[str] = None) -> str:
    """The format named, or the one that the ending before .gz means; standard input and unknown endings: plain lines.

    Raises:
        InputError: there is no such format, or the ending is known to mean another.
    """
    if format is not None:
        if format not in FORMATS:
            raise InputError("format: expected one of %s, got %r." % (list(FORMATS), format))
        return format
    name = str(path).lower()
    ending = os.path.splitext(name[:-3] if name.endswith(".gz") else name)[1]
    if ending in _OTHERS:
        raise InputError(
            "%s: expected .tsv, .csv, .jsonl or .txt, got %s. Convert it; or name the format, if it is one of %s."
            % (path, ending, ", ".join(FORMATS))
        )
    return _SUFFIXES.get(ending, "lines")


class _Bad(Exception):
    """What is wrong with one row; becomes an InputError with the file's name and the line."""


def _column(record: Dict[str, Any], name: str) -> str:
    if name not in record:
        raise _Bad("expected a field %r, found %s" % (name, sorted(record)))
    value = record[name]
    if not isinstance(value, str):
        raise _Bad("field %r: expected a string, got %s" % (name, type(value).__name__))
    return value


def _header(names: Sequence[str], path: str, wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in names]
    if missing:
        raise InputError(
            "%s, line 1: expected the column%s %s in the header, found %s. Say which columns hold what: text_column "
            "(--text-column) and so on." % (path, "s" if len(missing) > 1 else "", ", ".join(map(repr, missing)), names)
        )
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise InputError("%s, line 1: the header names %s twice." % (path, ", ".join(map(repr, twice))))


def _delimiter(header: str, format: str, wanted: Sequence[str]) -> str:
    """Between a table's columns. Spreadsheets of many countries write a CSV with semicolons or tabs: those count where
    they find all the columns wanted and commas do not."""
    if format == "tsv":
        return "\t"
    for mark in (",", ";", "\t"):
        if set(wanted) <= set(next(csv.reader([header], delimiter=mark), [])):
            return mark
    return ","


def _table(file: IO[str], path: str, format: str, wanted: Sequence[str]) -> Iterator[Tuple[int, Any]]:
    # A TSV has no quoting: google-research/bert and most tools write the text as it is.
    quoting: Any = csv.QUOTE_NONE if format == "tsv" else csv.QUOTE_MINIMAL
    csv.field_size_limit(sys.maxsize)
    header = file.readline()
    if "\0" in header:
        raise InputError("%s, line 1: expected UTF-8, found a zero byte. %s" % (path, _remedy("UTF-16")))
    lines = itertools.chain([header], file) if header else file
    reader = csv.reader(lines, delimiter=_delimiter(header, format, wanted), quoting=quoting, strict=True)
    names: Optional[List[str]] = None
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield reader.line_num, _Bad("not readable as %s: %s" % (format, error))
            continue
        if names is None:
            names = fields
            _header(names, path, wanted)
        elif not fields:
            yield reader.line_num, _Bad("the line is empty")
        elif len(fields) != len(names):
            yield reader.line_num, _Bad("expected %d columns, got %d" % (len(names), len(fields)))
        else:
            yield reader.line_num, dict(zip(names, fields))
    if names is None:
        raise InputError("%s: expected a header line, but the file is empty." % path)


def _json_lines(file: IO[str]) -> Iterator[Tuple[int, Any]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            yield number, _Bad("the line is empty")
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            yield number, _Bad("not JSON: %s" % error)
            continue
        yield number, value if isinstance(value, dict) else _Bad("expected an object, got %s" % type(value).__name__)


def _records(file: IO[str], path: str, format: str, wanted: Sequence[str]) -> Iterator[Tuple[int, Any]]:
    if format == "jsonl":
        return _json_lines(file)
    if format == "lines":
        return ((number, {"text": line.rstrip("\r\n")}) for number, line in enumerate(file, 1))
    return _table(file, path, format, wanted)


@contextlib.contextmanager
def _open_text(path: str) -> Iterator[IO[str]]:
    if path == "-":
        yield io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8-sig", newline="")
        return
    try:
        with io.TextIOWrapper(_open_bytes(path), encoding="utf-8-sig", newline="") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise InputError("%s: %s" % (path, getattr(error, "strerror", None) or error)) from error


def _open_bytes(path: str) -> Any:
    return gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb")


def _parsed(
    path: str, format: str, text_column: str, pair_column: Optional[str], further: Sequence[str] = ()
) -> Iterator[Tuple[int, Any]]:
    if format == "lines" and pair_column is not None:
        raise InputError("Plain lines have no columns: a pair needs TSV, CSV or JSON lines.")
    text_column = "text" if format == "lines" else text_column
    wanted = [text_column] + ([pair_column] if pair_column else [])
    line = 0
    with _open_text(path) as file:
        try:
            for line, record in _records(file, path, format, wanted + list(further)):
                if isinstance(record, _Bad):
                    yield line, record
                    continue
                try:
                    text: Text = _column(record, text_column)
                    if pair_column:
                        text = (_column(record, text_column), _column(record, pair_column))
                except _Bad as bad:
                    yield line, bad
                    continue
                rest = {key: value for key, value in record.items() if key not in wanted}
                yield line, Row(line, text, rest)
        except UnicodeDecodeError as error:
            wide = b"\0" in error.object or error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            raise InputError(
                "%s, %s: expected UTF-8, found the byte 0x%02x. %s"
                % (
                    path,
                    "after line %d" % line if path == "-" else "line %d" % _first_bad_line(path),
                    error.object[error.start],
                    _remedy("UTF-16" if wide else "GB18030"),
                )
            ) from error


def _remedy(encoding: str) -> str:
    return "Convert it first (`iconv -f %s -t UTF-8`)." % encoding


def _first_bad_line(path: str) -> int:
    """The line that is not UTF-8: text is decoded in chunks, so that the error itself does not know."""
    number = 1
    with _open_bytes(path) as file:
        for line in file:
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                break
            number += 1
    return number


def scan_rows(
    path: str,
    format: Optional[str] = None,
    text_column: str = "text",
    pair_column: Optional[str] = None,
    further: Sequence[str] = (),
) -> Iterator[Tuple[int, Union[Row, str]]]:
    """Every row with its line number; for one that cannot be read, a string that says why. Arguments as `read_rows`;
    `further` are columns that a table's header must name too."""
    for line, row in _parsed(str(path), detect_format(path, format), text_column, pair_column, further):
        yield line, str(row) if isinstance(row, _Bad) else row


def read_rows(
    path: str, format: Optional[str] = None, text_column: str = "text", pair_column: Optional[str] = None
) -> Iterator[Row]:
    """Reads a file row by row.

    Args:
        path: a file, or "-" for standard input. UTF-8, with or without a byte order mark; .gz is unpacked.
        format: one of `FORMATS`; None: by the file's ending.
        text_column: the text's column, or key in JSON lines; plain lines have none.
        pair_column: the second text's, for sentence pairs.

    Raises:
        InputError: at the first bad row, with its line number and what is wrong.
    """
    for line, row in _parsed(str(path), detect_format(path, format), text_column, pair_column):
        if isinstance(row, _Bad):
            raise InputError("%s, line %d: %s." % (path, line, row))
        yield row


def check_rows(
    path: str,
    format: Optional[str] = None,
    text_column: str = "text",
    pair_column: Optional[str] = None,
    forbidden: str = "",
) -> int:
    """Reads the whole file once and counts its rows, so that a bad one is known before any work starts.

    Args:
        path, format, text_column, pair_column: as `read_rows`.
        forbidden: characters that no text may have, because the output could not hold them.

    Raises:
        InputError: naming the bad rows (the first 20 of them) with their line numbers.
    """
    count = 0
    bad: List[str] = []
    for line, row in _parsed(str(path), detect_format(path, format), text_column, pair_column):
        count += 1
        if isinstance(row, _Bad):
            bad.append("line %d: %s" % (line, row))
            continue
        texts = (row.text,) if isinstance(row.text, str) else row.text
        if any(mark in text for mark in forbidden for text in texts):
            bad.append(
                "line %d: the text has a tab or a line break, which a TSV cannot hold; write csv or jsonl" % line
            )
    if bad:
        more = "\n  and %d more" % (len(bad) - _MOST_NAMED) if len(bad) > _MOST_NAMED else ""
        raise InputError(
            "%s: %d of %d rows cannot be used; nothing was predicted.\n  %s%s"
            % (path, len(bad), count, "\n  ".join(bad[:_MOST_NAMED]), more)
        )
    return count


class RowWriter:
    """Writes rows as TSV, CSV or JSON lines to a file beside the one named, and renames it when all is written.

    Use as a context manager: an exception leaves the old file, if any, as it was. "-" is standard output.
    """

    def __init__(self, path: str, columns: Sequence[str], format: str) -> None:
        if format not in ("tsv", "csv", "jsonl"):
            raise InputError("Output format: expected tsv, csv or jsonl, got %r." % (format,))
        self._path = str(path)
        self._columns = list(columns)
        self._format = format
        self._temporary = None  # type: Optional[str]

    def __enter__(self) -> "RowWriter":
        if self._path == "-":
            self._file = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", newline="")  # type: IO[str]
        else:
            folder, name = os.path.split(os.path.abspath(self._path))
            if os.path.isdir(self._path):
                raise InputError("%s cannot be written: it is a folder. Name a file in it." % self._path)
            try:
                handle, self._temporary = tempfile.mkstemp(prefix=".%s." % name, dir=folder)
            except OSError as error:
                raise InputError("%s cannot be written: %s" % (self._path, error.strerror or error)) from error
            os.chmod(self._temporary, 0o666 & ~_umask())
            self._file = io.open(handle, "w", encoding="utf-8", newline="")
        if self._format == "csv":
            # Every text is quoted: csv's minimal quoting overlooks a lone carriage return on older Pythons.
            self._csv = csv.writer(self._file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        self._write_fields(self._columns)
        return self

    def _write_fields(self, fields: Sequence[Any]) -> None:
        if self._format == "csv":
            self._csv.writerow(fields)
        elif self._format == "tsv":
            texts = [str(field) for field in fields]
            for text in texts:
                if any(mark in text for mark in "\t\r\n"):
                    raise InputError(
                        "A text with a tab or a line break cannot stand in a TSV: %r. Write csv or jsonl." % text[:80]
                    )
            self._file.write("\t".join(texts) + "\n")

    def write(self, values: Dict[str, Any]) -> None:
        """Writes one row; `values` has every column."""
        if self._format == "jsonl":
            self._file.write(json.dumps({key: values[key] for key in self._columns}, ensure_ascii=False) + "\n")
        else:
            self._write_fields([values[column] for column in self._columns])

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if self._path == "-":
            self._file.flush()
            self._file.detach()  # type: ignore[attr-defined]
            return
        assert self._temporary is not None
        if kind is None:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        if kind is None:
            os.replace(self._temporary, self._path)
        else:
            os.unlink(self._temporary)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
