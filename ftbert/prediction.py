"""Logits to answers: scores, labels and the record that a caller gets."""

from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ftbert.errors import InputError

__all__ = ["Prediction", "check_top_k", "predictions_from_scores", "scores_from_logits"]


class Prediction:
    """The answer for one text. Equal to another with the same scores and the same `truncated`.

    Attributes:
        label: the best label.
        score: its score, in [0, 1].
        truncated: whether the text lost pieces to max_length.
    """

    __slots__ = ("label", "score", "truncated", "_labels", "_scores", "_row", "_top_k")

    def __init__(
        self,
        label: str,
        score: float,
        truncated: bool,
        labels: Sequence[str],
        scores: np.ndarray,
        row: int,
        top_k: Optional[int],
    ) -> None:
        """Row `row` of `scores` (B, C) belongs to this text. What is seldom asked for is made when it is."""
        self.label = label
        self.score = score
        self.truncated = truncated
        self._labels = labels
        self._scores = scores
        self._row = row
        self._top_k = top_k

    @property
    def scores(self) -> Dict[str, float]:
        """Every label's score, in the order of the model's labels."""
        return dict(zip(self._labels, self._scores[self._row].tolist()))

    @property
    def top(self) -> List[Tuple[str, float]]:
        """The best `top_k` labels with their scores, best first; with top_k=None all of them."""
        if self._top_k == 1:
            return [(self.label, self.score)]
        scores = self._scores[self._row]
        # A stable sort of the negatives: equal scores stand in the labels' order, as with argmax.
        best = np.argsort(-scores, kind="stable")[: self._top_k]
        return [(self._labels[index], score) for index, score in zip(best.tolist(), scores[best].tolist())]

    def to_dict(self) -> Dict[str, Any]:
        """label, score, truncated and scores as what `json` and tables take."""
        return {"label": self.label, "score": self.score, "truncated": self.truncated, "scores": self.scores}

    def __repr__(self) -> str:
        more = "".join(", %s=%.4f" % item for item in self.top[1:])
        return "Prediction(label=%r, score=%.4f%s%s)" % (
            self.label,
            self.score,
            more and ", then" + more[1:],
            ", truncated=True" if self.truncated else "",
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Prediction):
            return NotImplemented
        return self.truncated == other.truncated and self.scores == other.scores

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        # The scores are the whole batch's: a pickle must not carry those of other texts.
        row = self._scores[self._row][np.newaxis].copy()
        return Prediction, (self.label, self.score, self.truncated, list(self._labels), row, 0, self._top_k)


def scores_from_logits(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """Softmax over each row's labels for "single_label", else a sigmoid of each: float32 (B, C) -> float32 (B, C)."""
    if problem_type == "multi_label":
        # Two forms of one function, each without overflow where it is used.
        exponentials = np.exp(-np.abs(logits))
        return np.where(logits >= 0, np.float32(1), exponentials) / (np.float32(1) + exponentials)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def check_top_k(top_k: Optional[int]) -> None:
    """Raises InputError unless `top_k` is None or an integer of at least 1."""
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, (int, np.integer)) or top_k < 1):
        raise InputError("top_k: expected an integer of at least 1, or None for all labels, got %r." % (top_k,))


def predictions_from_scores(
    scores: np.ndarray, truncated: np.ndarray, labels: Sequence[str], top_k: Optional[int] = 1
) -> List[Prediction]:
    """One Prediction for each row.

    Args:
        scores: float32 (B, C).
        truncated: bool (B,).
        labels: C names.
        top_k: how many labels `top` names; None, or more than C: all of them.
    """
    check_top_k(top_k)
    best = scores.argmax(axis=-1)
    values = scores[np.arange(len(scores)), best].tolist()
    return [
        Prediction(labels[index], score, cut, labels, scores, row, top_k)
        for row, (index, score, cut) in enumerate(zip(best.tolist(), values, truncated.tolist()))
    ]
