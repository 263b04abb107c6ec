"""Logits to answers: scores, labels and the record that a caller gets."""

from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from ftbert.errors import InputError

__all__ = ["Prediction", "predictions_from_scores", "scores_from_logits"]


class Prediction:
    """The answer for one text. Equal to another with the same scores and the same `truncated`.

    Attributes:
        label: the best label.
        score: its score, in [0, 1].
        truncated: whether the text lost pieces to max_length.
        top: the best `top_k` labels with their scores, best first.
    """

    __slots__ = ("label", "score", "top", "truncated", "_labels", "_row")

    def __init__(
        self, labels: Sequence[str], row: np.ndarray, truncated: bool, top: Tuple[Tuple[str, float], ...]
    ) -> None:
        self.label, self.score = top[0]
        self.top = top
        self.truncated = truncated
        self._labels = labels
        self._row = row

    @property
    def scores(self) -> Dict[str, float]:
        """Every label's score, in the order of the model's labels; made when it is asked for."""
        return dict(zip(self._labels, self._row.tolist()))

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
        # A row is a view of the whole batch's scores: a pickle must not carry the others'.
        return Prediction, (list(self._labels), self._row.copy(), self.truncated, self.top)


def scores_from_logits(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """Softmax over each row's labels for "single_label", else a sigmoid of each: float32 (B, C) -> float32 (B, C)."""
    if problem_type == "multi_label":
        # Two forms of one function, each without overflow where it is used.
        exponentials = np.exp(-np.abs(logits))
        return np.where(logits >= 0, np.float32(1), exponentials) / (np.float32(1) + exponentials)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def predictions_from_scores(
    scores: np.ndarray, truncated: np.ndarray, labels: Sequence[str], top_k: int = 1
) -> List[Prediction]:
    """One Prediction for each row.

    Args:
        scores: float32 (B, C).
        truncated: bool (B,).
        labels: C names.
        top_k: how many labels `top` names; more than C means C.
    """
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise InputError("top_k: expected an integer of at least 1, got %r." % (top_k,))
    if top_k == 1:
        best = scores.argmax(axis=-1)[:, np.newaxis]
    else:
        # A stable sort of the negatives: equal scores stand in the labels' order, as with argmax.
        best = np.argsort(-scores, axis=-1, kind="stable")[:, :top_k]
    values = np.take_along_axis(scores, best, axis=-1).tolist()
    return [
        Prediction(labels, row, cut, tuple([(labels[index], score) for index, score in zip(indices, row_values)]))
        for row, cut, indices, row_values in zip(scores, truncated.tolist(), best.tolist(), values)
    ]
