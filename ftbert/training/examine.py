"""A look at the data before anything is trained: what is there, and what tends to go wrong with it."""

import collections
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import numpy as np

from ftbert.errors import InputError
from ftbert.tokenization import Encoded, Tokenizer
from ftbert.training.data import Dataset

__all__ = ["Examination", "examine"]

_SHOWN = 5  # rows that one remark names
_RARE = 8  # a label with fewer rows than this is remarked on
_IMBALANCE = 10.0
_UNKNOWN_RATE = 0.02
_MANY_TRUNCATED = 0.05


class Examination(NamedTuple):
    """What was found.

    Attributes:
        facts: name -> number or text, for the report and for people.
        remarks: sentences on what may hurt; training goes on.
        label_counts: label -> rows in train.
        lengths: (B,) tokens of the train rows before truncation, special tokens included.
    """

    facts: Dict[str, Any]
    remarks: List[str]
    label_counts: Dict[str, int]
    lengths: np.ndarray

    def lines(self) -> List[str]:
        """For a terminal."""
        width = max(len(name) for name in self.facts)
        return ["%-*s  %s" % (width, name, value) for name, value in self.facts.items()] + [
            "! " + remark for remark in self.remarks
        ]


def _places(data: Dataset, rows: Sequence[int]) -> str:
    shown = ", ".join(str(data.lines[row]) for row in rows[:_SHOWN])
    return shown + (", ..." if len(rows) > _SHOWN else "")


def _repeats(data: Dataset) -> List[int]:
    """Rows whose text came before."""
    seen = set()  # type: set
    repeated = []
    for row, text in enumerate(data.texts):
        if text in seen:
            repeated.append(row)
        seen.add(text)
    return repeated


def _contradictions(data: Dataset) -> List[int]:
    """Rows whose text came before with another label."""
    labels: Dict[Any, Any] = {}
    return [row for row, text in enumerate(data.texts) if labels.setdefault(text, data.labels[row]) != data.labels[row]]


def _is_sorted(data: Dataset) -> bool:
    """Whether the rows stand label by label."""
    changes = sum(1 for first, second in zip(data.labels, data.labels[1:]) if first != second)
    return 0 < changes < 2 * len(set(data.labels)) and len(data.labels) > 4 * len(set(data.labels))


def _count(data: Dataset) -> Dict[str, int]:
    counts = collections.Counter()  # type: collections.Counter
    for label in data.labels:
        counts.update([label] if isinstance(label, str) else label)
    return dict(counts)


def examine(
    train: Dataset,
    dev: Optional[Dataset],
    labels: Sequence[str],
    tokenizer: Tokenizer,
    max_length: int,
    truncation: str,
) -> Examination:
    """Examines data that was read without errors.

    Args:
        train, dev: the rows.
        labels: the model's, in its order.
        tokenizer: the model's.
        max_length: of a row, special tokens included.
        truncation: what happens to longer ones.

    Raises:
        InputError: dev has labels that train has not, or, with truncation "error", rows are too long.
    """
    counts = _count(train)
    encoded = tokenizer.encode(train.texts, max_length=1 << 20)
    lengths = np.diff(encoded.batch.row_splits)
    over = np.flatnonzero(lengths > max_length)
    facts: Dict[str, Any] = collections.OrderedDict()
    facts["train rows"] = len(train.texts)
    facts["labels"] = len(labels)
    facts["rows per label"] = "%d to %d" % (min(counts.get(label, 0) for label in labels), max(counts.values()))
    facts["tokens per row"] = "mean %.1f, median %d, 99%% %d, longest %d" % (
        lengths.mean(),
        np.median(lengths),
        np.percentile(lengths, 99),
        lengths.max(),
    )
    facts["rows over max_length %d" % max_length] = len(over)
    facts["[UNK] pieces"] = "%.2f%%" % (100 * encoded.unknown_rate)
    remarks: List[str] = []
    _remark_on_length(train, over, max_length, truncation, remarks)
    _remark_on_words(train, encoded, remarks)
    _remark_on_quotes(train, remarks)
    _remark_on_labels(train, labels, counts, remarks)
    repeated, contradicting = _repeats(train), _contradictions(train)
    facts["repeated rows"] = len(repeated)
    if repeated:
        remarks.append("%d rows repeat an earlier text (%s)." % (len(repeated), _places(train, repeated)))
    if contradicting:
        remarks.append(
            "%d rows repeat an earlier text with another label (%s): no model can learn both."
            % (len(contradicting), _places(train, contradicting))
        )
    if dev is not None:
        _compare(train, dev, counts, facts, remarks)
    return Examination(facts, remarks, {label: counts.get(label, 0) for label in labels}, lengths)


def _remark_on_length(train: Dataset, over: np.ndarray, max_length: int, truncation: str, remarks: List[str]) -> None:
    if not len(over):
        return
    if truncation == "error":
        raise InputError(
            "%s: %d rows are longer than max_length %d (%s); nothing was trained. Raise max_length, or choose "
            "truncation='head', 'tail' or 'head+tail'."
            % (train.source, len(over), max_length, _places(train, list(over)))
        )
    if len(over) > _MANY_TRUNCATED * len(train.texts):
        remarks.append(
            "%.1f%% of the rows are longer than max_length %d and lose text (truncation='%s')."
            % (100.0 * len(over) / len(train.texts), max_length, truncation)
        )


def _remark_on_words(train: Dataset, encoded: Encoded, remarks: List[str]) -> None:
    if encoded.unknown_rate > _UNKNOWN_RATE:
        worst = list(np.argsort(-encoded.unknown, kind="stable")[:_SHOWN])
        remarks.append(
            "%.1f%% of the word pieces are [UNK] (most in %s): the vocabulary does not fit this language, or "
            "lower_case is wrong." % (100 * encoded.unknown_rate, _places(train, worst))
        )
    empty = np.flatnonzero(encoded.pieces == 0).tolist()
    if empty:
        remarks.append("%d rows have no word piece left after cleaning (%s)." % (len(empty), _places(train, empty)))


def _remark_on_quotes(train: Dataset, remarks: List[str]) -> None:
    if not train.source.lower().endswith(".tsv"):
        return
    quoted = [
        row
        for row, text in enumerate(train.texts)
        if any(len(part) > 2 and part[0] == part[-1] == '"' for part in ((text,) if isinstance(text, str) else text))
    ]
    if quoted:
        remarks.append(
            "%d rows stand in double quotes (%s), which are part of the text: a TSV has no quoting. If a spreadsheet "
            "or pandas put them there, save the rows as CSV." % (len(quoted), _places(train, quoted))
        )


def _remark_on_labels(train: Dataset, labels: Sequence[str], counts: Dict[str, int], remarks: List[str]) -> None:
    absent = [label for label in labels if not counts.get(label)]
    if absent:
        remarks.append("No train row has the labels %s." % ", ".join(map(repr, absent[:_SHOWN])))
    rare = [label for label in labels if 0 < counts.get(label, 0) < _RARE]
    if rare:
        remarks.append(
            "%d labels have fewer than %d rows: %s." % (len(rare), _RARE, ", ".join(map(repr, rare[:_SHOWN])))
        )
    present = [count for count in counts.values() if count]
    if max(present) > _IMBALANCE * min(present):
        remarks.append(
            "The most frequent label has %.0f times the rows of the rarest: consider "
            "class_weights='balanced' and watch macro-F1." % (float(max(present)) / min(present))
        )
    if _is_sorted(train):
        remarks.append(
            "The rows stand label by label. That does no harm here: each epoch is a permutation of all rows."
        )


def _compare(train: Dataset, dev: Dataset, counts: Dict[str, int], facts: Dict[str, Any], remarks: List[str]) -> None:
    facts["dev rows"] = len(dev.texts)
    only_dev = sorted(set(_count(dev)) - set(counts))
    if only_dev:
        rows = [
            row
            for row, label in enumerate(dev.labels)
            if set([label] if isinstance(label, str) else label) & set(only_dev)
        ]
        raise InputError(
            "%s: the labels %s are in no train row (rows %s); nothing was trained. A model cannot learn what "
            "it never sees." % (dev.source, ", ".join(map(repr, only_dev[:_SHOWN])), _places(dev, rows))
        )
    known = set(train.texts)
    shared = [row for row, text in enumerate(dev.texts) if text in known]
    facts["dev rows also in train"] = len(shared)
    if shared:
        remarks.append(
            "%d dev rows are in train too (%s): the measures come out too good." % (len(shared), _places(dev, shared))
        )
