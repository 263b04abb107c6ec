"""The Open Inference Protocol, version 2, over HTTP, with the binary tensor extension that Triton's clients use.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
A model takes one BYTES tensor `text` of shape (B,), or (B, 2) for pairs, and gives
`label` BYTES (B,), `score` FP32 (B,), `scores` FP32 (B, C) in the order of the model's labels, `logits` FP32 (B, C),
`truncated` BOOL (B,).
"""

import struct
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import orjson

from ftbert.prediction import scores_from_logits
from ftbert.serving.classify import check_text, finite, parse_json
from ftbert.serving.options import ServeOptions
from ftbert.serving.problems import Problem, reject
from ftbert.serving.table import ServedModel
from ftbert.serving.ticket import Answer
from ftbert.texts import Text

__all__ = ["InferRequest", "OUTPUTS", "metadata", "parse_infer", "render_infer"]

OUTPUTS = (("label", "BYTES"), ("score", "FP32"), ("scores", "FP32"), ("logits", "FP32"), ("truncated", "BOOL"))
_DATATYPES = dict(OUTPUTS)


class InferRequest(NamedTuple):
    """A checked request: texts, and (name, binary) for every output wanted."""

    texts: List[Text]
    outputs: List[Tuple[str, bool]]
    request_id: Optional[str]


def metadata(model: ServedModel) -> Dict[str, Any]:
    """The answer of `GET /v2/models/{name}`."""
    count = len(model.labels)
    shapes = {"scores": [-1, count], "logits": [-1, count]}
    return {
        "name": model.name,
        "versions": ["1"],
        "platform": "ftbert",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": name, "datatype": kind, "shape": shapes.get(name, [-1])} for name, kind in OUTPUTS],
    }


def parse_infer(body: bytes, json_length: Optional[str], options: ServeOptions) -> InferRequest:
    """Checks a body of `POST /v2/models/{name}/infer`.

    Args:
        json_length: the header `Inference-Header-Content-Length`: bytes of JSON before the binary tensors.
    """
    tail = b""
    if json_length is not None:
        # Python refuses to read numbers of thousands of digits: first the length.
        digits = json_length.isascii() and json_length.isdigit() and len(json_length) <= 18
        if not digits or int(json_length) > len(body):
            reject("Inference-Header-Content-Length: expected a number of bytes within the body's %d." % len(body), 400)
        body, tail = body[: int(json_length)], body[int(json_length) :]
    value = parse_json(body)
    request_id = value.get("id")
    if "id" in value and not isinstance(request_id, str):
        reject("id: expected a string.")
    parameters = _parameters(value, "parameters")
    inputs = value.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        reject("inputs: expected a list of exactly one tensor object, named 'text'.")
    texts = _texts(inputs[0], tail, options)
    for index, text in enumerate(texts):
        check_text(text, "text[%d]" % index, options)
    binary_default = _flag(parameters, "binary_data_output", "parameters")
    outputs = value.get("outputs")
    if "outputs" not in value:
        return InferRequest(texts, [(name, binary_default) for name, _ in OUTPUTS], request_id)
    if not isinstance(outputs, list) or not 1 <= len(outputs) <= len(OUTPUTS):
        reject("outputs: expected a list of one to %d output objects, or no such key." % len(OUTPUTS))
    wanted: List[Tuple[str, bool]] = []
    for index, output in enumerate(outputs):
        where = "outputs[%d]" % index
        if not isinstance(output, dict) or output.get("name") not in list(_DATATYPES):
            reject("%s.name: expected one of %s." % (where, ", ".join(_DATATYPES)))
        own = _parameters(output, where + ".parameters")
        if "classification" in own:
            reject("%s.parameters.classification: not offered; ask for the outputs 'label' and 'scores'." % where)
        wanted.append((output["name"], _flag(own, "binary_data", where) if "binary_data" in own else binary_default))
    return InferRequest(texts, wanted, request_id)


def render_infer(model: ServedModel, request: InferRequest, answer: Answer) -> Tuple[bytes, Optional[int]]:
    """The response body, and the length of its JSON part when binary tensors follow it."""
    finite(answer.values)
    scores = scores_from_logits(answer.values, model.problem_type)
    best = scores.argmax(axis=1)
    tensors = {
        "label": [model.labels[index] for index in best],
        "score": scores[np.arange(len(best)), best],
        "scores": scores,
        "logits": np.ascontiguousarray(answer.values, np.float32),
        "truncated": np.asarray(answer.truncated, np.bool_),
    }
    outputs = []
    blobs = []
    for name, binary in request.outputs:
        tensor = tensors[name]
        shape = [len(tensor)] if isinstance(tensor, list) else list(tensor.shape)
        output: Dict[str, Any] = {"name": name, "datatype": _DATATYPES[name], "shape": shape}
        if binary:
            blob = _bytes_blob(tensor) if isinstance(tensor, list) else tensor.tobytes()
            output["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            output["data"] = tensor if isinstance(tensor, list) else np.ascontiguousarray(tensor.ravel())
        outputs.append(output)
    result: Dict[str, Any] = {"model_name": model.name, "model_version": "1", "outputs": outputs}
    if request.request_id is not None:
        result["id"] = request.request_id
    head = orjson.dumps(result, option=orjson.OPT_SERIALIZE_NUMPY)
    return (head + b"".join(blobs), len(head)) if blobs else (head, None)


def _texts(tensor: Dict[str, Any], tail: bytes, options: ServeOptions) -> List[Text]:
    if tensor.get("name") != "text" or tensor.get("datatype") != "BYTES":
        reject("inputs[0]: expected the tensor 'text' of datatype 'BYTES'.")
    shape = tensor.get("shape")
    if (
        not isinstance(shape, list)
        or not all(isinstance(size, int) and not isinstance(size, bool) for size in shape)
        or not (len(shape) == 1 or (len(shape) == 2 and shape[1] in (1, 2)))
        or not 1 <= shape[0]
    ):
        reject("inputs[0].shape: expected [B], [B, 1] or, for pairs, [B, 2], with B at least 1.")
    rows, columns = shape[0], shape[1] if len(shape) == 2 else 1
    if rows > options.max_texts:
        reject(
            "inputs[0].shape: expected at most %d texts, got %d. Send several requests." % (options.max_texts, rows),
            413,
        )
    size = _parameters(tensor, "inputs[0].parameters").get("binary_data_size")
    if size is not None:
        if isinstance(size, bool) or not isinstance(size, int) or size != len(tail):
            reject("inputs[0].parameters.binary_data_size: expected %d, the bytes after the JSON." % len(tail), 400)
        if "data" in tensor:
            reject("inputs[0]: expected data or binary_data_size, got both.")
        parts = _strings(tail)
    else:
        if tail:
            reject("inputs[0]: expected binary_data_size with the %d bytes after the JSON." % len(tail), 400)
        parts = _flat(tensor.get("data"), columns)
    if len(parts) != rows * columns:
        reject("inputs[0]: expected %d elements for shape %s, got %d." % (rows * columns, shape, len(parts)))
    if columns == 2:
        return list(zip(parts[::2], parts[1::2]))
    return list(parts)


def _flat(data: Any, columns: int) -> List[str]:
    """JSON data: flat, or nested as the shape is."""
    if not isinstance(data, list):
        reject("inputs[0].data: expected a list of strings.")
    parts: List[str] = []
    for item in data:
        members = item if isinstance(item, list) and len(item) == columns else [item]
        for member in members:
            if not isinstance(member, str):
                reject("inputs[0].data: expected strings only.")
            parts.append(member)
    return parts


def _strings(blob: bytes) -> List[str]:
    """BYTES elements: each a little-endian uint32 length and that many bytes."""
    parts = []
    at = 0
    while at < len(blob):
        if at + 4 > len(blob):
            raise Problem(400, "Validation", "Expected a four-byte length at byte %d of the binary tensor." % at)
        (length,) = struct.unpack_from("<I", blob, at)
        at += 4
        if at + length > len(blob):
            raise Problem(
                400,
                "Validation",
                "Expected %d bytes at byte %d of the binary tensor, got %d." % (length, at, len(blob) - at),
            )
        try:
            parts.append(blob[at : at + length].decode("utf-8"))
        except UnicodeDecodeError:
            raise Problem(400, "Validation", "Expected UTF-8 at byte %d of the binary tensor." % at) from None
        at += length
    return parts


def _bytes_blob(strings: List[str]) -> bytes:
    pieces = []
    for text in strings:
        data = text.encode("utf-8")
        pieces.append(struct.pack("<I", len(data)))
        pieces.append(data)
    return b"".join(pieces)


def _parameters(value: Dict[str, Any], where: str) -> Dict[str, Any]:
    got = value.get("parameters", {})
    if not isinstance(got, dict):
        reject("%s: expected an object." % where)
    return got


def _flag(parameters: Dict[str, Any], name: str, where: str) -> bool:
    got = parameters.get(name, False)
    if not isinstance(got, bool):
        reject("%s.%s: expected true or false." % (where, name))
    return got
