"""Accuracy, F1 and confusion of predictions against labels. numpy only."""

from typing import Any, Dict, List, NamedTuple, Sequence

import numpy as np

__all__ = ["LabelScore", "Metrics", "Mistake", "measure", "most_confident_mistakes", "probabilities"]


class LabelScore(NamedTuple):
    """One label's measures; `support` is how many rows have it."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


class Metrics(NamedTuple):
    """Of one evaluation.

    Attributes:
        accuracy: share of rows predicted right; for multi-label, of rows whose whole set is right.
        macro_f1: mean F1 of the labels that occur in the rows or the predictions.
        micro_f1: F1 over all decisions; equals accuracy for single label.
        loss: mean cross-entropy, without smoothing or class weights.
        per_label: by label.
        confusion: int (C, C), rows are true labels, columns predictions; (C, 2, 2) for multi-label, each [[TN, FP],
            [FN, TP]].
    """

    accuracy: float
    macro_f1: float
    micro_f1: float
    loss: float
    per_label: List[LabelScore]
    confusion: np.ndarray

    def summary(self) -> Dict[str, float]:
        """The four numbers."""
        return {"accuracy": self.accuracy, "macro_f1": self.macro_f1, "micro_f1": self.micro_f1, "loss": self.loss}

    def to_dict(self) -> Dict[str, Any]:
        """For JSON."""
        values: Dict[str, Any] = dict(self.summary())
        values["per_label"] = [score._asdict() for score in self.per_label]
        values["confusion"] = self.confusion.tolist()
        return values


class Mistake(NamedTuple):
    """A row predicted wrong."""

    row: int
    predicted: str
    expected: str
    score: float


def probabilities(logits: np.ndarray, multi_label: bool) -> np.ndarray:
    """float64 (B, C): softmax, or sigmoid for multi-label."""
    logits = np.asarray(logits, np.float64)
    if multi_label:
        return 1.0 / (1.0 + np.exp(-np.clip(logits, -500, 500)))
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), 0.0)


def measure(logits: np.ndarray, truth: np.ndarray, labels: Sequence[str], multi_label: bool = False) -> Metrics:
    """Compares logits (B, C) with the truth: int (B,), or 0 and 1 (B, C) for multi-label (predicted where p > 0.5)."""
    count = len(labels)
    chances = probabilities(logits, multi_label)
    tiny = 1e-12
    if multi_label:
        predicted, actual = chances > 0.5, np.asarray(truth) > 0.5
        accuracy = float((predicted == actual).all(-1).mean())
        loss = float(-np.where(actual, np.log(chances + tiny), np.log(1 - chances + tiny)).mean())
    else:
        best = chances.argmax(-1)
        predicted, actual = np.eye(count, dtype=bool)[best], np.eye(count, dtype=bool)[truth]
        accuracy = float((best == truth).mean())
        loss = float(-np.log(chances[np.arange(len(truth)), truth] + tiny).mean())
    hits = (predicted & actual).sum(0)
    guessed, support = predicted.sum(0), actual.sum(0)
    precision, recall = _share(hits, guessed), _share(hits, support)
    f1 = _share(2.0 * hits, (guessed + support).astype(float))
    if multi_label:
        confusion = np.stack(
            [len(actual) - guessed - support + hits, guessed - hits, support - hits, hits], -1
        ).reshape(count, 2, 2)
    else:
        confusion = np.zeros((count, count), np.int64)
        np.add.at(confusion, (truth, best), 1)
    present = (guessed + support) > 0
    per_label = [
        LabelScore(label, float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]))
        for i, label in enumerate(labels)
    ]
    micro = float(2.0 * hits.sum() / max(int((guessed + support).sum()), 1))
    return Metrics(accuracy, float(f1[present].mean()) if present.any() else 0.0, micro, loss, per_label, confusion)


def most_confident_mistakes(
    logits: np.ndarray, truth: np.ndarray, labels: Sequence[str], multi_label: bool = False, most: int = 30
) -> List[Mistake]:
    """The wrong rows whose wrong answer had the highest score, first the surest."""
    chances = probabilities(logits, multi_label)
    if not multi_label:
        best = chances.argmax(-1)
        sure = np.where(best == truth, -1.0, chances.max(-1))
        rows = [row for row in np.argsort(-sure, kind="stable")[:most] if sure[row] >= 0]
        return [Mistake(int(row), labels[best[row]], labels[truth[row]], float(sure[row])) for row in rows]
    actual = np.asarray(truth) > 0.5
    wrongness = np.where(actual, 1 - chances, chances)
    wrongness[(chances > 0.5) == actual] = -1.0
    sure = wrongness.max(-1)
    mistakes = []
    for row in np.argsort(-sure, kind="stable")[:most]:
        if sure[row] >= 0:
            guess = ", ".join(labels[int(i)] for i in np.flatnonzero(chances[row] > 0.5))
            expected = ", ".join(labels[int(i)] for i in np.flatnonzero(actual[row]))
            mistakes.append(Mistake(int(row), guess, expected, float(sure[row])))
    return mistakes
