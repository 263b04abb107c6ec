"""What may be classified: strings, and (first, second) pairs of strings; everything else is refused by name."""

from typing import Any, List, Optional, Tuple, Union

import numpy as np

from ftbert.errors import InputError

__all__ = ["Text", "check_collection", "check_texts"]

Text = Union[str, Tuple[str, str]]

_SHOWN = 60  # characters of a wrong item in a message


def check_collection(texts: Any) -> None:
    """Raises InputError unless walking `texts` gives one text after the other, in an order that means something."""
    kind = type(texts).__name__
    if isinstance(texts, (str, bytes)) or not hasattr(texts, "__iter__") or getattr(texts, "ndim", 1) == 0:
        raise InputError(
            "Expected a list of texts, got %s. For one text write predict([text])."
            % ("a single string" if isinstance(texts, str) else kind)
        )
    # A table is walked by the names of its columns, a dict by its keys: answers to those help nobody.
    if isinstance(texts, dict) or hasattr(texts, "columns"):
        raise InputError("Expected a list of texts, got %s. Pass one column: predict(table['text'])." % kind)
    if isinstance(texts, (set, frozenset)):
        raise InputError("Expected a list of texts, got %s, which has no order. Pass a list." % kind)


def check_texts(texts: Any, first_index: int = 0) -> List[Text]:
    """The texts as a list of strings and (first, second) pairs.

    Args:
        texts: a list, an array, a column of a table, an iterator ... of them.
        first_index: the number of the first text, for messages.

    Raises:
        InputError: not a sequence of them; the message names the first wrong item.
    """
    check_collection(texts)
    texts = list(texts)
    if set(map(type, texts)) <= {str}:
        return texts
    for index, text in enumerate(texts):
        if isinstance(text, str):
            continue
        pair = _as_pair(text)
        if pair is None:
            shown = repr(text)
            raise InputError(
                "texts[%d]: expected a string or a pair of strings, got %s %s. %s"
                % (
                    first_index + index,
                    type(text).__name__,
                    shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "...",
                    _remedy(text),
                )
            )
        texts[index] = pair
    return texts


def _as_pair(text: Any) -> Optional[Tuple[str, str]]:
    if isinstance(text, np.ndarray):
        text = text.tolist()
    if isinstance(text, (tuple, list)) and len(text) == 2 and all(isinstance(part, str) for part in text):
        return text[0], text[1]
    return None


def _remedy(text: Any) -> str:
    if isinstance(text, bytes):
        return "Decode it first."
    if isinstance(text, (tuple, list, np.ndarray)):
        return "A pair has two strings."
    if isinstance(text, dict):
        return "Pass its text alone, or (text, text_pair) for a pair."
    if isinstance(text, (int, np.integer)):
        return "Pass str() of it."
    return "Remove it, or put '' in its place."
