"""Labelled texts from files, lists, frames or a processor object, every row checked before anything is trained."""

import collections
import os
import re
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from ftbert.errors import ConfigError, InputError
from ftbert.rows import detect_format, scan_rows
from ftbert.texts import Text

__all__ = [
    "Columns",
    "Dataset",
    "Label",
    "check_labels",
    "label_matrix",
    "load_dataset",
    "order_labels",
    "processor_datasets",
    "split_dev",
]

# A label, or the labels of a row that may have none, one or several.
Label = Union[str, Tuple[str, ...]]

_MOST_NAMED = 20

_INTEGER = re.compile(r"-?[0-9]+$")


class Columns(NamedTuple):
    """Which columns hold what.

    Attributes:
        text, pair, label: names; `pair` is None for single texts.
        separator: between several labels in one cell.
        multi_label: whether a row has a set of labels.
        format: of files, as in `ftbert.rows`; None: by the file's ending.
    """

    text: str = "text"
    pair: Optional[str] = None
    label: str = "label"
    separator: str = ","
    multi_label: bool = False
    format: Optional[str] = None


class Dataset(NamedTuple):
    """Rows that are fit for training.

    Attributes:
        source: where they came from, for messages.
        texts: strings or pairs.
        labels: a string each, or a tuple of strings for multi-label.
        lines: where each row stands in its source, from 1 (an index from 0 for lists and frames).
    """

    source: str
    texts: List[Text]
    labels: List[Label]
    lines: List[int]

    def take(self, rows: Sequence[int]) -> "Dataset":
        """The rows named, in that order."""
        return Dataset(
            self.source,
            [self.texts[row] for row in rows],
            [self.labels[row] for row in rows],
            [self.lines[row] for row in rows],
        )


class _Bad(Exception):
    """What is wrong with a row."""


def _check_text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _Bad("%s: expected a string, got %s %.60r" % (name, type(value).__name__, value))
    if not value.strip():
        raise _Bad("%s: the text is empty" % name)
    return value


def _one_label(value: Any, name: str) -> str:
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        value = int(value)  # what a frame makes of integers where one of them is missing
    if isinstance(value, (bool, np.bool_, int, np.integer)):
        value = str(value)
    if not isinstance(value, str):
        raise _Bad("%s: expected a label, got %s %.60r" % (name, type(value).__name__, value))
    label = value.strip()
    if not label or len(label.splitlines()) != 1:
        raise _Bad("%s: expected a label of one line, got %.60r" % (name, value))
    return label


def _check_label(value: Any, columns: Columns, name: str) -> Label:
    if not columns.multi_label:
        return _one_label(value, name)
    if isinstance(value, str):
        value = [part for part in value.split(columns.separator) if part.strip()]
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise _Bad("%s: expected labels, got %s %.60r" % (name, type(value).__name__, value))
    return tuple(sorted({_one_label(part, name) for part in value}))


def _from_file(path: str, columns: Columns) -> Iterator[Tuple[int, Any]]:
    if detect_format(path, columns.format) == "lines":
        raise InputError(
            "%s: expected TSV, CSV or JSON lines, since a row for training has a text and a label. Rename the file, or "
            "say format='tsv'." % path
        )
    for line, row in scan_rows(path, columns.format, columns.text, columns.pair, [columns.label]):
        if isinstance(row, str):
            yield line, _Bad(row)
        elif columns.label not in row.record:
            yield line, _Bad("expected a field %r, found %s" % (columns.label, sorted(row.record)))
        else:
            yield line, (row.text, row.record[columns.label])


def _from_frame(frame: Any, columns: Columns) -> Iterator[Tuple[int, Any]]:
    wanted = [name for name in (columns.text, columns.pair, columns.label) if name]
    missing = [name for name in wanted if name not in frame.columns]
    if missing:
        raise InputError(
            "The frame lacks the columns %s; it has %s." % (missing, [str(name) for name in frame.columns])
        )
    lists = [list(frame[name]) for name in wanted]
    for index, values in enumerate(zip(*lists)):
        yield index, (values[0] if columns.pair is None else (values[0], values[1]), values[-1])


def _from_items(items: Iterable[Any], columns: Columns) -> Iterator[Tuple[int, Any]]:
    for index, item in enumerate(items):
        if isinstance(item, dict):
            wanted = [name for name in (columns.text, columns.pair, columns.label) if name]
            missing = [name for name in wanted if name not in item]
            if missing:
                yield index, _Bad("expected the keys %s, found %s" % (missing, sorted(map(str, item))))
                continue
            yield (
                index,
                (
                    item[columns.text] if columns.pair is None else (item[columns.text], item[columns.pair]),
                    item[columns.label],
                ),
            )
        elif hasattr(item, "text_a") and hasattr(item, "label"):
            # google-research/bert's InputExample.
            second = getattr(item, "text_b", None)
            yield index, (item.text_a if second is None else (item.text_a, second), item.label)
        elif isinstance(item, (tuple, list)) and len(item) in (2, 3):
            yield index, (item[0] if len(item) == 2 else (item[0], item[1]), item[-1])
        else:
            yield index, _Bad("expected (text, label), (text, pair, label) or a dict, got %.60r" % (item,))


def load_dataset(source: Any, columns: Columns, labels: Optional[Sequence[str]] = None, name: str = "train") -> Dataset:
    """Reads all rows.

    Args:
        source: a path (.tsv, .csv, .jsonl), a pandas frame, or a list of (text, label), (text, pair, label), dicts, or
            google-research/bert's InputExample.
        columns: which columns hold what.
        labels: the labels allowed; None: any.
        name: for messages, where the source has no name of its own.

    Raises:
        InputError: rows cannot be used; the message names their lines.
    """
    if isinstance(source, Dataset):
        return source
    if isinstance(source, (str, os.PathLike)):
        name, rows, place = os.fspath(source), _from_file(os.fspath(source), columns), "line"
    elif hasattr(source, "columns") and hasattr(source, "iloc"):
        rows, place = _from_frame(source, columns), "row"
    elif hasattr(source, "__iter__"):
        rows, place = _from_items(source, columns), "row"
    else:
        raise ConfigError(
            "%s: expected a path, a list of rows or a pandas frame, got %s." % (name, type(source).__name__)
        )
    allowed = None if labels is None else set(labels)
    data = Dataset(name, [], [], [])
    bad: List[str] = []
    for line, row in rows:
        try:
            if isinstance(row, _Bad):
                raise row
            text, label = _checked(row, columns, allowed)
        except _Bad as problem:
            bad.append("%s %d: %s" % (place, line, problem))
            continue
        data.texts.append(text)
        data.labels.append(label)
        data.lines.append(line)
    if bad:
        more = "\n  and %d more" % (len(bad) - _MOST_NAMED) if len(bad) > _MOST_NAMED else ""
        raise InputError(
            "%s: %d of %d rows cannot be used; nothing was trained.\n  %s%s"
            % (name, len(bad), len(bad) + len(data.texts), "\n  ".join(bad[:_MOST_NAMED]), more)
        )
    if not data.texts:
        raise InputError("%s: expected labelled rows, found none." % name)
    return data


def _checked(row: Tuple[Any, Any], columns: Columns, allowed: Optional[set]) -> Tuple[Text, Label]:
    text, label = row
    if isinstance(text, (tuple, list)):
        text = (_check_text(text[0], columns.text), _check_text(text[1], columns.pair or "text_b"))
    else:
        text = _check_text(text, columns.text)
    label = _check_label(label, columns, columns.label)
    unknown = set() if allowed is None else set(label if columns.multi_label else [label]) - allowed
    if unknown:
        raise _Bad("%s: %s is none of the labels given" % (columns.label, ", ".join(map(repr, sorted(unknown)))))
    return text, label


def processor_datasets(processor: Any, data_dir: Optional[str], columns: Columns) -> Tuple[Dataset, Dataset, List[str]]:
    """(train, dev, labels) of an object with the methods of google-research/bert's DataProcessor.

    Args:
        processor: has get_train_examples(data_dir), get_dev_examples(data_dir) and get_labels().
        data_dir: handed to it.
        columns: `multi_label` and `separator` count.
    """
    names = ("get_train_examples", "get_dev_examples", "get_labels")
    missing = [name for name in names if not callable(getattr(processor, name, None))]
    if missing:
        raise ConfigError(
            "processor: expected an object with %s; it lacks %s." % (", ".join(names), ", ".join(missing))
        )
    labels = check_labels(processor.get_labels(), "processor.get_labels()")
    train = load_dataset(processor.get_train_examples(data_dir), columns, labels, "processor.get_train_examples")
    dev = load_dataset(processor.get_dev_examples(data_dir), columns, labels, "processor.get_dev_examples")
    return train, dev, labels


def check_labels(given: Any, name: str = "labels") -> List[str]:
    """The labels that someone lists, as the rows' labels are read: numbers as text, without spaces around.

    Raises:
        ConfigError: they are no list of labels, or one is named twice.
    """
    if isinstance(given, (str, bytes)) or not hasattr(given, "__iter__"):
        raise ConfigError("%s: expected a list of labels, got %r." % (name, given))
    try:
        labels = [_one_label(label, name) for label in given]
    except _Bad as problem:
        raise ConfigError("%s." % problem) from problem
    counts = collections.Counter(labels)
    twice = sorted(label for label in counts if counts[label] > 1)
    if twice:
        raise ConfigError("%s: %s is named twice." % (name, ", ".join(map(repr, twice))))
    return labels


def _each(data: Dataset) -> Iterator[str]:
    for label in data.labels:
        if isinstance(label, str):
            yield label
        else:
            for part in label:
                yield part


def order_labels(train: Dataset, given: Optional[Sequence[str]]) -> List[str]:
    """The labels in the model's order: as given, or sorted; integers by value.

    Raises:
        ConfigError: there are fewer than two (one, for multi-label).
    """
    labels = list(given) if given is not None else sorted(set(_each(train)))
    if given is None and all(_INTEGER.match(label) for label in labels):
        labels.sort(key=int)
    fewest = 2 if isinstance(train.labels[0], str) else 1
    if len(labels) < fewest:
        raise ConfigError(
            "%s: expected at least %s, found %s."
            % (train.source, "two labels to tell apart" if fewest == 2 else "one label", labels)
        )
    return labels


def label_matrix(data: Dataset, labels: Sequence[str], multi_label: bool) -> np.ndarray:
    """int32 (B,) indices, or float32 (B, C) of 0 and 1 for multi-label. A label that is not among `labels` is an error.

    Raises:
        InputError: naming the rows.
    """
    index: Dict[str, int] = {label: place for place, label in enumerate(labels)}
    unknown = [line for line, label in zip(data.lines, data.labels) if not set(_names(label)) <= set(index)]
    if unknown:
        raise InputError(
            "%s: rows %s%s have labels that the training rows have not: %s. Give them to training, or take them out."
            % (
                data.source,
                unknown[:_MOST_NAMED],
                "..." if len(unknown) > _MOST_NAMED else "",
                sorted(set(_each(data)) - set(index))[:_MOST_NAMED],
            )
        )
    if not multi_label:
        return np.array([index[str(label)] for label in data.labels], np.int32)
    matrix = np.zeros((len(data.labels), len(labels)), np.float32)
    for row, names in enumerate(data.labels):
        matrix[row, [index[name] for name in names]] = 1.0
    return matrix


def _names(label: Label) -> Tuple[str, ...]:
    return (label,) if isinstance(label, str) else label


def split_dev(data: Dataset, fraction: float, seed: int) -> Tuple[Dataset, Dataset]:
    """(train, dev): a share of every label's rows goes to dev; texts that occur more than once stay together in train.

    Raises:
        ConfigError: no row would be left for dev.
    """
    draw = np.random.RandomState(seed % (1 << 32))
    seen: Dict[Text, int] = {}
    for text in data.texts:
        seen[text] = seen.get(text, 0) + 1
    groups: Dict[Label, List[int]] = {}
    for row, label in enumerate(data.labels):
        if seen[data.texts[row]] == 1:
            groups.setdefault(label, []).append(row)
    held: List[int] = []
    for label in sorted(groups, key=str):
        rows = groups[label]
        held += [rows[place] for place in draw.permutation(len(rows))[: int(round(len(rows) * fraction))]]
    if not held:
        raise ConfigError(
            "dev_fraction=%g of %d rows leaves no row to measure on. Give dev rows, or raise it."
            % (fraction, len(data.texts))
        )
    chosen = set(held)
    rest = [row for row in range(len(data.texts)) if row not in chosen]
    dev = data.take(sorted(held))
    return data.take(rest), dev._replace(source="%s (%d%% held out)" % (data.source, round(fraction * 100)))
