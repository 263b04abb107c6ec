"""The OpenAPI document: what every route takes and every answer it may give, limits included."""

from typing import Any, Dict, List, Optional

from ftbert import __version__
from ftbert.serving.infer import OUTPUTS
from ftbert.serving.options import ServeOptions
from ftbert.serving.problems import ERROR_TYPES

__all__ = ["document"]

_STATUSES = {
    400: "The body is not JSON, or its parts do not fit together",
    401: "The bearer token is missing or wrong",
    404: "No such model or version",
    408: "The request did not arrive in time",
    413: "Too many bytes, texts, characters or tokens",
    415: "Another content type or encoding",
    422: "JSON of the wrong form",
    424: "The model or the engine failed",
    429: "The queue is full",
    431: "Headers too large",
    503: "Shutting down, or too many connections",
    504: "The answer took too long and was dropped",
}


def document(names: List[str], options: ServeOptions) -> Dict[str, Any]:
    """The document for a server of these models.

    Args:
        names: the served models, the default one first.
        options: whose limits stand in the schemas.
    """
    paths: Dict[str, Any] = {
        "/predict": _post("predict", "Labels and scores of texts", "PredictRequest", "PredictResponse", timed=True),
        "/embed": _post("embed", "Vectors of texts", "EmbedRequest", "EmbedResponse", timed=True),
        "/info": _get("info", "What is served, and its limits", "Info"),
        "/models/{name}/predict": _post(
            "model_predict", "/predict of one model", "PredictRequest", "PredictResponse", names, timed=True
        ),
        "/models/{name}/embed": _post(
            "model_embed", "/embed of one model", "EmbedRequest", "EmbedResponse", names, timed=True
        ),
        "/models/{name}/info": _get("model_info", "/info of one model", "Info", names),
        "/health": _get("health", "The process is alive", "Status", open_to_all=True),
        "/ready": _get(
            "ready", "Models are loaded and warm, and the server is not shutting down", "Status", open_to_all=True
        ),
        "/metrics": _plain("metrics", "Prometheus metrics", "text/plain"),
        "/openapi.json": _get("openapi", "This document", None),
        "/": _plain("page", "A page to try the model by hand", "text/html", open_to_all=True),
        "/v2": _get("v2", "Server metadata (Open Inference Protocol)", "V2Server", flat=True),
        "/v2/health/live": _get("v2_live", "The process is alive", "Status", open_to_all=True, flat=True),
        "/v2/health/ready": _get("v2_ready", "The server is ready", "Status", open_to_all=True, flat=True),
    }
    for prefix, suffix, versioned in (("", "", False), ("/versions/{version}", "_version", True)):
        base = "/v2/models/{name}" + prefix
        paths[base] = _get("v2_model" + suffix, "Model metadata", "V2Model", names, versioned, flat=True)
        paths[base + "/ready"] = _get(
            "v2_model_ready" + suffix, "The model is ready", "V2Ready", names, versioned, flat=True
        )
        paths[base + "/infer"] = _post(
            "v2_infer" + suffix,
            "Inference; binary tensors follow the JSON as in Triton's extension",
            "InferRequest",
            "InferResponse",
            names,
            versioned,
            flat=True,
            timed=True,
        )
    result: Dict[str, Any] = {
        "openapi": "3.0.3",
        "info": {
            "title": "ftbert",
            "version": __version__,
            "description": "BERT text classifiers. /predict and /embed have the form of Hugging Face "
            "text-embeddings-inference; /v2 is the Open Inference Protocol.",
        },
        "paths": paths,
        "components": {"schemas": _schemas(options)},
    }
    if options.token is not None:
        result["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path in paths.values():
            for operation in path.values():
                if not operation.pop("x-open"):
                    operation["security"] = [{"token": []}]
    else:
        for path in paths.values():
            for operation in path.values():
                del operation["x-open"]
                operation["responses"].pop("401", None)
    return result


def _operation(
    name: str,
    summary: str,
    good: Dict[str, Any],
    failures: List[int],
    names: Optional[List[str]],
    versioned: bool,
    flat: bool,
    open_to_all: bool,
) -> Dict[str, Any]:
    failures = failures + [408, 431, 503] + ([] if open_to_all else [401])
    parameters = []
    if names is not None:
        failures.append(404)
        parameters.append(
            {
                "name": "name",
                "in": "path",
                "required": True,
                "schema": {"type": "string", "enum": names},
                "example": names[0],
            }
        )
    if versioned:
        parameters.append(
            {"name": "version", "in": "path", "required": True, "schema": {"type": "string", "enum": ["1"]}}
        )
    responses = {"200": good}
    for status in sorted(failures):
        # What fails before a route is known has the same form on every route.
        schema = "V2Error" if flat and status not in (408, 431) else "Error"
        responses[str(status)] = {
            "description": _STATUSES[status],
            "content": {"application/json": {"schema": _ref(schema)}},
        }
        if status in (429, 503):
            responses[str(status)]["headers"] = {
                "Retry-After": {
                    "description": "Seconds to wait",
                    "required": True,
                    "schema": {"type": "integer", "minimum": 1},
                }
            }
    operation: Dict[str, Any] = {"operationId": name, "summary": summary, "responses": responses, "x-open": open_to_all}
    if parameters:
        operation["parameters"] = parameters
    return operation


def _get(
    name: str,
    summary: str,
    schema: Optional[str],
    names: Optional[List[str]] = None,
    versioned: bool = False,
    flat: bool = False,
    open_to_all: bool = False,
) -> Dict[str, Any]:
    content = {"application/json": {"schema": _ref(schema) if schema else {"type": "object"}}}
    good = {"description": "Done", "content": content}
    return {"get": _operation(name, summary, good, [], names, versioned, flat, open_to_all)}


def _plain(name: str, summary: str, kind: str, open_to_all: bool = False) -> Dict[str, Any]:
    good = {"description": "Done", "content": {kind: {"schema": {"type": "string"}}}}
    return {"get": _operation(name, summary, good, [], None, False, False, open_to_all)}


def _post(
    name: str,
    summary: str,
    request: str,
    response: str,
    names: Optional[List[str]] = None,
    versioned: bool = False,
    flat: bool = False,
    timed: bool = False,
) -> Dict[str, Any]:
    content = {"application/json": {"schema": _ref(response)}}
    good: Dict[str, Any] = {"description": "Done", "content": content}
    if timed:
        good["headers"] = {header: _number(text) for header, text in _TIMINGS.items()}
    failures = [400, 413, 415, 422, 424, 429, 504]
    operation = _operation(name, summary, good, failures, names, versioned, flat, False)
    operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(request)}}}
    if flat:
        # A binary answer comes only to a request that asked for binary outputs.
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
        good["headers"]["Inference-Header-Content-Length"] = {
            "description": "Bytes of JSON before the binary tensors, when there are any",
            "schema": {"type": "integer"},
        }
    return {"post": operation}


_TIMINGS = {
    "x-compute-characters": "Characters of all texts",
    "x-compute-tokens": "Tokens of all texts",
    "x-total-time": "Milliseconds in all",
    "x-tokenization-time": "Milliseconds in the tokenizer",
    "x-queue-time": "Milliseconds in queues",
    "x-inference-time": "Milliseconds in the engine",
    "x-truncated-texts": "Texts that were cut to the model's maximum",
}


def _number(description: str) -> Dict[str, Any]:
    return {"description": description, "required": True, "schema": {"type": "number", "minimum": 0}}


def _ref(name: str) -> Dict[str, str]:
    return {"$ref": "#/components/schemas/" + name}


def _object(
    required: Dict[str, Any], optional: Optional[Dict[str, Any]] = None, closed: bool = False
) -> Dict[str, Any]:
    schema: Dict[str, Any] = {
        "type": "object",
        "required": list(required),
        "properties": dict(required, **(optional or {})),
    }
    if closed:
        schema["additionalProperties"] = False
    return schema


def _array(items: Dict[str, Any], least: Optional[int] = None, most: Optional[int] = None) -> Dict[str, Any]:
    schema: Dict[str, Any] = {"type": "array", "items": items}
    if least is not None:
        schema["minItems"] = least
    if most is not None:
        schema["maxItems"] = most
    return schema


def _schemas(options: ServeOptions) -> Dict[str, Any]:
    text = {"type": "string", "maxLength": options.max_characters}
    string = {"type": "string"}
    number = {"type": "number", "format": "float"}
    flag = {"type": "boolean"}
    count = {"type": "integer", "minimum": 0}
    nothing = {"type": "string", "nullable": True}
    single = dict(_array(text, 1, 1), description="A text")
    pair = dict(_array(text, 2, 2), description="A pair of texts")
    truncation = {
        "truncate": {
            "type": "boolean",
            "nullable": True,
            "description": "Cut texts that are too long (true), refuse them (false), or as the model is set (null)",
        },
        "truncation_direction": {
            "type": "string",
            "enum": ["right", "left", "Right", "Left"],
            "description": "The end that is cut off",
        },
    }
    tensor_shape = _array({"type": "integer", "minimum": 1, "maximum": options.max_texts}, 1, 2)
    outputs = {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": string,
            "datatype": string,
            "shape": _array({"type": "integer"}),
            "data": _array({}),
            "parameters": {"type": "object"},
        },
    }
    return {
        "PredictRequest": _object(
            {
                "inputs": {
                    "description": "A text, a pair, or a list of lists of one text or two",
                    "oneOf": [text, single, pair, _array({"oneOf": [single, pair]}, 1, options.max_texts)],
                }
            },
            dict(truncation, raw_scores={"type": "boolean", "description": "Logits in place of probabilities"}),
            closed=True,
        ),
        "Prediction": _object({"score": number, "label": string}),
        "PredictResponse": {
            "oneOf": [_array(_ref("Prediction"), 1), _array(_array(_ref("Prediction"), 1), 1)],
            "description": "Every label, best first; an array of these for a list",
        },
        "EmbedRequest": _object(
            {"inputs": {"oneOf": [text, _array(text, 1, options.max_texts)]}},
            dict(
                truncation,
                normalize={"type": "boolean", "description": "Scale vectors to length 1; true unless given"},
                pooling={"type": "string", "enum": ["pooled", "first", "mean"]},
            ),
            closed=True,
        ),
        "EmbedResponse": _array(_array(number, 1), 1),
        "Error": _object({"error": string, "error_type": {"type": "string", "enum": list(ERROR_TYPES)}}),
        "Status": _object({"status": string}, {"live": flag, "ready": flag}),
        "Info": _object(
            {
                "model_id": string,
                "model_dtype": string,
                "model_type": {"type": "object"},
                "max_concurrent_requests": count,
                "max_input_length": count,
                "max_batch_tokens": count,
                "max_client_batch_size": count,
                "auto_truncate": flag,
                "tokenization_workers": count,
                "version": string,
                "engine": string,
                "problem_type": string,
                "truncation": string,
                "models": _array(string, 1),
            },
            {
                "model_sha": nothing,
                "sha": nothing,
                "docker_label": nothing,
                "max_batch_requests": {"type": "integer", "nullable": True},
            },
        ),
        "V2Error": _object({"error": string}),
        "V2Server": _object({"name": string, "version": string, "extensions": _array(string)}),
        "V2Ready": _object({"name": string, "ready": flag}),
        "V2Model": _object(
            {
                "name": string,
                "versions": _array(string),
                "platform": string,
                "inputs": _array(_ref("V2Tensor")),
                "outputs": _array(_ref("V2Tensor")),
            }
        ),
        "V2Tensor": _object({"name": string, "datatype": string, "shape": _array({"type": "integer"})}),
        "InferRequest": _object(
            {
                "inputs": _array(
                    _object(
                        {
                            "name": {"type": "string", "enum": ["text"]},
                            "datatype": {"type": "string", "enum": ["BYTES"]},
                            "shape": tensor_shape,
                            "data": _array({"oneOf": [text, _array(text, 1, 2)]}, 1),
                        },
                        {"parameters": {"type": "object"}},
                    ),
                    1,
                    1,
                )
            },
            {
                "id": string,
                "parameters": _object({}, {"binary_data_output": flag}),
                "outputs": _array(
                    _object(
                        {"name": {"type": "string", "enum": [name for name, _ in OUTPUTS]}},
                        {"parameters": _object({}, {"binary_data": flag})},
                    ),
                    1,
                    len(OUTPUTS),
                ),
            },
        ),
        "InferResponse": _object(
            {"model_name": string, "model_version": string, "outputs": _array(outputs, 1)}, {"id": string}
        ),
    }
