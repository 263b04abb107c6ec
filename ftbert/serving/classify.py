"""`POST /predict` and `POST /embed` in the form of Hugging Face text-embeddings-inference's routes.

https://huggingface.github.io/text-embeddings-inference: inputs are a string, a pair of strings, or a list whose
members are lists of one string or two; one input gives one array of {score, label}, best first, a list gives an array
of such arrays.
"""

import functools
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import orjson

from ftbert.serving.options import ServeOptions
from ftbert.serving.problems import Problem, reject
from ftbert.texts import Text

__all__ = [
    "EmbedRequest",
    "PredictRequest",
    "check_text",
    "finite",
    "parse_embed",
    "parse_json",
    "parse_predict",
    "render_embeddings",
    "render_predictions",
    "truncation_of",
]

_FEW_ROWS = 2  # up to here building dicts is quicker

_DIRECTIONS = {"right": "head", "left": "tail"}  # which end is cut off -> which end is kept


class PredictRequest(NamedTuple):
    """A checked body of `POST /predict`."""

    texts: List[Text]
    single: bool
    truncate: Optional[bool]
    truncation: Optional[str]
    raw_scores: bool


class EmbedRequest(NamedTuple):
    """A checked body of `POST /embed`."""

    texts: List[Text]
    truncate: Optional[bool]
    truncation: Optional[str]
    normalize: bool
    pooling: str


def parse_json(body: bytes) -> Dict[str, Any]:
    """A JSON object from a request's body.

    orjson refuses invalid UTF-8, NaN and Infinity, lone surrogates and nesting deeper than 1,024.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem(
            400,
            "Validation",
            "Expected a JSON object in UTF-8: %s (line %d, column %d)." % (error.msg, error.lineno, error.colno),
        ) from None
    if not isinstance(value, dict):
        reject("Expected a JSON object, got %s." % _kind(value))
    return value


def parse_predict(body: bytes, options: ServeOptions) -> PredictRequest:
    """Checks a body of `POST /predict`."""
    value = parse_json(body)
    _known(value, ("inputs", "truncate", "raw_scores", "truncation_direction"))
    inputs = value.get("inputs")
    truncate = _boolean(value, "truncate", None)
    raw_scores = _boolean(value, "raw_scores", False)
    single = True
    texts: List[Text]
    if isinstance(inputs, str):
        texts = [inputs]
    elif not isinstance(inputs, list):
        reject("inputs: expected a string, a pair of strings or a list of lists of strings, got %s." % _kind(inputs))
    elif inputs and isinstance(inputs[0], str):
        texts = [_sequence(inputs, "inputs")]
    else:
        single = False
        _count(inputs, options)
        texts = [_sequence(member, "inputs[%d]" % index) for index, member in enumerate(inputs)]
    for index, text in enumerate(texts):
        check_text(text, "inputs" if single else "inputs[%d]" % index, options)
    return PredictRequest(texts, single, truncate, _direction(value), bool(raw_scores))


def parse_embed(body: bytes, options: ServeOptions) -> EmbedRequest:
    """Checks a body of `POST /embed`."""
    value = parse_json(body)
    _known(value, ("inputs", "truncate", "truncation_direction", "normalize", "pooling"))
    inputs = value.get("inputs")
    if isinstance(inputs, str):
        inputs = [inputs]
    elif not isinstance(inputs, list):
        reject("inputs: expected a string or a list of strings, got %s." % _kind(inputs))
    _count(inputs, options)
    for index, text in enumerate(inputs):
        if not isinstance(text, str):
            reject("inputs[%d]: expected a string, got %s." % (index, _kind(text)))
        check_text(text, "inputs[%d]" % index, options)
    pooling = value.get("pooling", options.pooling)
    if pooling not in ("pooled", "first", "mean"):
        reject("pooling: expected 'pooled', 'first' or 'mean'.")
    truncate = _boolean(value, "truncate", None)
    return EmbedRequest(inputs, truncate, _direction(value), bool(_boolean(value, "normalize", True)), pooling)


def truncation_of(truncate: Optional[bool], direction: Optional[str], policy: str) -> Optional[str]:
    """The truncation to ask of the queue; None is the model's own `policy`."""
    if truncate is False:
        return "error"
    if direction is not None and (truncate or policy != "error"):
        return direction
    if truncate and policy == "error":
        return "head"
    return None


def render_predictions(scores: np.ndarray, labels: Sequence[str], single: bool) -> bytes:
    """The response body: for each text every label, best first.

    Args:
        scores: (B, C) float32.
    """
    finite(scores)
    order = np.argsort(-scores, axis=1, kind="stable")
    if len(scores) > _FEW_ROWS:
        return _render_many(scores, order, _label_ends(tuple(labels)))
    rows = [
        [{"score": row[index], "label": labels[index]} for index in indices]
        for row, indices in zip(scores, order.tolist())
    ]
    return orjson.dumps(rows[0] if single else rows, option=orjson.OPT_SERIALIZE_NUMPY)


_NEXT, _NEXT_ROW = b',{"score":', b',[{"score":'


@functools.lru_cache(maxsize=64)
def _label_ends(labels: Tuple[str, ...]) -> List[bytes]:
    """What stands between a score and the next: for each label, and again for each as the last of its row."""
    ends = [b',"label":' + orjson.dumps(label) + b"}" for label in labels]
    return [end + _NEXT for end in ends] + [end + b"]" + _NEXT_ROW for end in ends]


def _render_many(scores: np.ndarray, order: np.ndarray, ends: List[bytes]) -> bytes:
    """The same bytes as from dicts, put together from the scores as one array: half the time for many rows."""
    numbers = orjson.dumps(np.take_along_axis(scores, order, 1).ravel(), option=orjson.OPT_SERIALIZE_NUMPY)
    order[:, -1] += scores.shape[1]
    parts = [b""] * (2 * order.size)
    parts[0::2] = numbers[1:-1].split(b",")
    parts[1::2] = map(ends.__getitem__, order.ravel().tolist())
    return b"[" + _NEXT_ROW[1:] + b"".join(parts)[: -len(_NEXT_ROW)] + b"]"


def render_embeddings(values: np.ndarray, normalize: bool) -> bytes:
    """The response body: B arrays of H numbers, of length 1 where `normalize` is on."""
    finite(values)
    if normalize:
        norms = np.sqrt(np.sum(np.square(values, dtype=np.float64), axis=1, keepdims=True))
        values = (values / np.maximum(norms, 1e-12)).astype(np.float32)
    return orjson.dumps(np.ascontiguousarray(values, np.float32), option=orjson.OPT_SERIALIZE_NUMPY)


def finite(values: np.ndarray) -> None:
    """Refuses to answer with numbers that JSON has no form for."""
    if not np.isfinite(values).all():
        raise Problem(
            424, "Backend", "The model computed a number that is not finite; check its weights and precision."
        )


def check_text(text: Text, where: str, options: ServeOptions) -> None:
    """Refuses a text with too many characters."""
    for part in (text,) if isinstance(text, str) else text:
        if len(part) > options.max_characters:
            reject("%s: expected at most %d characters, got %d." % (where, options.max_characters, len(part)), 413)


def _sequence(member: Any, where: str) -> Text:
    if not isinstance(member, list) or not 1 <= len(member) <= 2 or not all(isinstance(part, str) for part in member):
        got = _kind(member)
        if isinstance(member, list):
            others = [part for part in member if not isinstance(part, str)]
            got = "one that holds %s" % _kind(others[0]) if others else "%d" % len(member)
        reject(
            "%s: expected a list of one string (a text) or two (a pair), got %s. Several texts: a list of such lists."
            % (where, got)
        )
    return member[0] if len(member) == 1 else (member[0], member[1])


def _count(inputs: List[Any], options: ServeOptions) -> None:
    if not inputs:
        reject("inputs: expected at least one text, got none.", 422, "Empty")
    if len(inputs) > options.max_texts:
        reject(
            "inputs: expected at most %d texts, got %d. Send several requests." % (options.max_texts, len(inputs)), 413
        )


def _known(value: Dict[str, Any], names: Sequence[str]) -> None:
    for name in value:
        if name not in names:
            reject("Expected no other keys than %s." % ", ".join(names))
    if "inputs" not in value:
        reject("inputs: expected this key in the request.")


def _boolean(value: Dict[str, Any], name: str, default: Optional[bool]) -> Optional[bool]:
    got = value.get(name, default)
    if got is None and default is None:
        return None
    if not isinstance(got, bool):
        reject("%s: expected true or false, got %s." % (name, _kind(got)))
    return got


def _direction(value: Dict[str, Any]) -> Optional[str]:
    got = value.get("truncation_direction")
    if "truncation_direction" not in value:
        return None
    if not isinstance(got, str) or got.lower() not in _DIRECTIONS:
        reject("truncation_direction: expected 'right' or 'left'.")
    return _DIRECTIONS[got.lower()]


def _kind(value: Any) -> str:
    """A value's type in JSON's words."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null or nothing"}
    return names.get(type(value), "a number")
