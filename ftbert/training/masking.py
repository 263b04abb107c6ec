"""What masked-language-model pretraining hides: drawn anew for every batch of every epoch, by numpy alone."""

from typing import NamedTuple, Sequence, Tuple

import numpy as np

from ftbert.errors import ConfigError
from ftbert.tokenization import Tokenizer

__all__ = ["Masker"]

# Of the pieces chosen, these shares become [MASK] and another piece; the rest stays (Devlin et al. 2018, section 3.1).
_MASKED, _REPLACED = 0.8, 0.1


class _Chosen(NamedTuple):
    rows: np.ndarray
    columns: np.ndarray


class Masker:
    """Chooses pieces to be predicted and hides most of them.

    Args:
        tokenizer: its vocabulary says what is special and which pieces go on with a word ("##...").
        share: of each row's pieces that are chosen; at least one.
        whole_word: all pieces of a word or none. In Chinese, where each character is a word, it makes no difference.
    """

    def __init__(self, tokenizer: Tokenizer, share: float, whole_word: bool) -> None:
        if "[MASK]" not in tokenizer.vocab:
            raise ConfigError("The vocabulary has no [MASK]: pretraining hides pieces behind it. Add it to vocab.txt.")
        pieces = tokenizer.vocab
        self._share = share
        self._mask_id = pieces.index("[MASK]")
        self._special = np.array([piece.startswith("[") and piece.endswith("]") and len(piece) > 2 for piece in pieces])
        self._goes_on = np.array([whole_word and piece.startswith("##") for piece in pieces])
        self._ordinary = np.flatnonzero(~self._special).astype(np.int32)

    def __call__(self, ids: np.ndarray, mask: np.ndarray, seed: Sequence[int]) -> Tuple[np.ndarray, np.ndarray]:
        """Hides pieces of padded rows.

        Args:
            ids, mask: int32 (B, S).
            seed: what the draws depend on.

        Returns:
            The ids that the model sees, and the pieces it shall say, -1 where nothing is asked: int32 (B, S) both.
        """
        draw = np.random.RandomState([int(part) % (1 << 32) for part in seed])
        chosen = self._choose(ids, (mask > 0) & ~self._special[ids], draw)
        targets = np.full(ids.shape, -1, np.int32)
        targets[chosen.rows, chosen.columns] = ids[chosen.rows, chosen.columns]
        fate = draw.random_sample(len(chosen.rows))
        other = self._ordinary[draw.randint(len(self._ordinary), size=len(chosen.rows))]
        kept = ids[chosen.rows, chosen.columns]
        shown = np.where(fate < _MASKED, self._mask_id, np.where(fate < _MASKED + _REPLACED, other, kept))
        seen = ids.copy()
        seen[chosen.rows, chosen.columns] = shown
        return seen, targets

    def _choose(self, ids: np.ndarray, candidates: np.ndarray, draw: np.random.RandomState) -> _Chosen:
        rows, columns = np.nonzero(candidates)
        if not len(rows):
            return _Chosen(rows, columns)
        before = np.zeros_like(candidates)
        before[:, 1:] = candidates[:, :-1]
        begins = ~(self._goes_on[ids] & before)[rows, columns]
        word = np.cumsum(begins) - 1  # of each candidate
        sizes, word_rows = np.bincount(word), rows[begins]
        # Each row's words in a drawn order, taken until the share is reached.
        order = np.lexsort((draw.random_sample(len(sizes)), word_rows))
        ends = np.cumsum(sizes[order])
        first = np.flatnonzero(np.diff(word_rows[order], prepend=-1) != 0)
        behind = np.repeat((ends - sizes[order])[first], np.diff(np.append(first, len(order))))
        wanted = np.maximum(1, np.rint(self._share * candidates.sum(axis=1)))[word_rows[order]]
        taken = ends - behind - sizes[order] // 2 <= wanted
        taken[first] = True
        is_taken = np.zeros(len(sizes), bool)
        is_taken[order[taken]] = True
        kept = is_taken[word]
        return _Chosen(rows[kept], columns[kept])
