"""The ASGI application: routes around a table of models."""

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, AsyncIterator, Callable, Dict, List, Mapping, Optional, Tuple, Union

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route

from ftbert import __version__
from ftbert.errors import FtbertError
from ftbert.prediction import scores_from_logits
from ftbert.serving import classify, infer, openapi, page
from ftbert.serving.http import JSON, Bodies, Endpoint, Reply, Request, json_reply, problem_reply, send_reply
from ftbert.serving.metrics import Metrics
from ftbert.serving.options import ServeOptions
from ftbert.serving.problems import Problem
from ftbert.serving.queue import LOGITS
from ftbert.serving.table import ModelTable, ServedModel
from ftbert.serving.ticket import Answer

if TYPE_CHECKING:
    from ftbert.predictor import FastBertClassifier

__all__ = ["create_app"]

_OCTETS = "application/octet-stream"

_PROBE_SECONDS = 5.0

_BODIES = 128  # of the largest size that may be in memory at a time; most are a thousandth of that


def create_app(
    models: Union[str, "FastBertClassifier", Mapping[str, Union[str, "FastBertClassifier"]]],
    options: Optional[ServeOptions] = None,
    load: Optional[Callable[[str], "FastBertClassifier"]] = None,
) -> Starlette:
    """Loads the models and puts HTTP in front of them.

    Args:
        models: a model folder's path, a loaded predictor, or name -> one of these; the first name is the default.
        options: limits and loading; their network part is used by `run` only.
        load: replaces `FastBertClassifier.load` for paths.

    Returns:
        A starlette application; `app.state.table` is its ModelTable. Its lifespan closes the models. The limits on slow
        clients are uvicorn protocol code and come with `run`.
    """
    options = options or ServeOptions()
    if not isinstance(models, Mapping):
        models = {"default": models}
    metrics = Metrics()
    table = ModelTable(models, options, metrics, load)
    handlers = _Handlers(table, options, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.get_running_loop().run_in_executor(None, table.close)

    app = _App(
        routes=handlers.routes(),
        lifespan=lifespan,
        exception_handlers={HTTPException: _HttpErrors(metrics)},
    )
    app.router.redirect_slashes = False
    app.state.table = table
    app.state.metrics = metrics
    app.state.direct = {
        (method, route.path): route.endpoint
        for route in app.routes
        if isinstance(route, Route) and "{" not in route.path
        for method in route.methods or ()
    }
    return app


class _App(Starlette):
    """Takes the short way to a route whose path and method are as they stand in the table: starlette's own way through
    its middleware and router takes longer than parsing the request and writing the answer."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and not self.user_middleware and not scope.get("root_path"):
            endpoint = self.state.direct.get((scope["method"], scope["path"]))
            if endpoint is not None:
                await endpoint(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


class _HttpErrors:
    """starlette's own refusals (no such path, wrong method) in this server's error form."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def __call__(self, request: Any, error: Any) -> Any:
        allowed = (error.headers or {}).get("Allow", "")
        kind, message = {
            404: ("NotFound", "There is nothing at this path; /openapi.json lists what there is."),
            405: ("Validation", "Expected one of the methods %s at this path." % allowed),
        }.get(error.status_code, ("Validation", str(error.detail)))
        self._metrics.requests.labels("other", str(error.status_code)).inc()
        self._metrics.errors.labels(kind).inc()
        reply = problem_reply(Problem(error.status_code, kind, message, dict(error.headers or {}), close=True))

        async def respond(scope: Any, receive: Any, send: Any) -> None:
            await send_reply(reply, send, scope["method"], close=True)

        return respond


class _Handlers:
    def __init__(self, table: ModelTable, options: ServeOptions, metrics: Metrics) -> None:
        self._table = table
        self._options = options
        self._metrics = metrics

    def routes(self) -> List[BaseRoute]:
        made: List[BaseRoute] = []
        bodies = Bodies(_BODIES * self._options.max_body_bytes)

        def add(path: str, name: str, handler: Any, methods: Tuple[str, ...] = ("GET",), **settings: Any) -> None:
            endpoint = Endpoint(name, handler, self._options, self._metrics, bodies, **settings)
            made.append(Route(path, endpoint, methods=list(methods)))

        takes_json = {"methods": ("POST",), "content_types": (JSON,), "needs_type": True}
        takes_tensors = {"methods": ("POST",), "content_types": (JSON, _OCTETS), "flat_errors": True}
        add("/predict", "predict", self.predict, **takes_json)  # type: ignore[arg-type]
        add("/embed", "embed", self.embed, **takes_json)  # type: ignore[arg-type]
        for path in ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"):
            add(path, "v2_infer", self.v2_infer, **takes_tensors)  # type: ignore[arg-type]
        add("/models/{name}/predict", "predict", self.predict, **takes_json)  # type: ignore[arg-type]
        add("/models/{name}/embed", "embed", self.embed, **takes_json)  # type: ignore[arg-type]
        add("/health", "health", self.health, guarded=False)
        add("/ready", "ready", self.ready, guarded=False)
        add("/info", "info", self.info)
        add("/models/{name}/info", "info", self.info)
        add("/metrics", "metrics", self.metrics)
        add("/openapi.json", "openapi", self.openapi)
        add("/v2", "v2", self.v2, flat_errors=True)
        add("/v2/health/live", "v2_live", self.health, guarded=False, flat_errors=True)
        add("/v2/health/ready", "v2_ready", self.ready, guarded=False, flat_errors=True)
        for prefix in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            add(prefix, "v2_model", self.v2_model, flat_errors=True)
            add(prefix + "/ready", "v2_model_ready", self.v2_model_ready, flat_errors=True)
        add("/", "page", self.page, guarded=False)
        return made

    # text-embeddings-inference's routes

    async def predict(self, request: Request) -> Reply:
        model = self._model(request)
        parsed = classify.parse_predict(request.body, self._options)
        truncation = classify.truncation_of(parsed.truncate, parsed.truncation, model.truncation)
        model, ticket = self._table.submit(model, parsed.texts, LOGITS, truncation)
        answer = await request.answer(ticket)
        scores = answer.values
        if not parsed.raw_scores:
            classify.finite(scores)
            scores = scores_from_logits(scores, model.problem_type)
        body = classify.render_predictions(scores, model.labels, parsed.single)
        return Reply(body, headers=_timings(request, answer, parsed.texts))

    async def embed(self, request: Request) -> Reply:
        model = self._model(request)
        parsed = classify.parse_embed(request.body, self._options)
        truncation = classify.truncation_of(parsed.truncate, parsed.truncation, model.truncation)
        _, ticket = self._table.submit(model, parsed.texts, parsed.pooling, truncation)
        answer = await request.answer(ticket)
        return Reply(
            classify.render_embeddings(answer.values, parsed.normalize), headers=_timings(request, answer, parsed.texts)
        )

    async def info(self, request: Request) -> Reply:
        return json_reply(describe(self._model(request), self._table, self._options))

    # The Open Inference Protocol

    async def v2_infer(self, request: Request) -> Reply:
        model = self._model(request)
        parsed = infer.parse_infer(request.body, request.header(b"inference-header-content-length"), self._options)
        model, ticket = self._table.submit(model, parsed.texts, LOGITS, None)
        answer = await request.answer(ticket)
        body, json_length = infer.render_infer(model, parsed, answer)
        timings = _timings(request, answer, parsed.texts)
        if json_length is None:
            return Reply(body, headers=timings)
        return Reply(body, _OCTETS, headers=timings + (("Inference-Header-Content-Length", str(json_length)),))

    async def v2(self, request: Request) -> Reply:
        return json_reply({"name": "ftbert", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def v2_model(self, request: Request) -> Reply:
        return json_reply(infer.metadata(self._model(request)))

    async def v2_model_ready(self, request: Request) -> Reply:
        model = self._model(request)
        await self._check_ready(model)
        return json_reply({"name": model.name, "ready": True})

    # The server itself

    async def health(self, request: Request) -> Reply:
        return json_reply({"status": "alive", "live": True})

    async def ready(self, request: Request) -> Reply:
        for name in self._table.names:
            model = self._table.get(name)
            assert model is not None
            await self._check_ready(model)
        return json_reply({"status": "ready", "ready": True})

    async def _check_ready(self, model: ServedModel) -> None:
        """An engine that failed last is asked again: nobody else asks once a balancer has taken the server out."""
        if self._table.draining:
            raise Problem(503, "Unhealthy", "The server is shutting down.", {"Retry-After": "1"})
        if model.queue.failed_batches:
            try:
                await self._table.probe(model).result_async(_PROBE_SECONDS)
            except FtbertError as error:
                raise Problem(503, "Unhealthy", "The engine of model %s fails." % model.name) from error

    async def metrics(self, request: Request) -> Reply:
        return Reply(self._metrics.render(), "text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: Request) -> Reply:
        return json_reply(openapi.document(self._table.names, self._options))

    async def page(self, request: Request) -> Reply:
        return Reply(page.HTML, "text/html; charset=utf-8", headers=page.HEADERS)

    def _model(self, request: Request) -> ServedModel:
        version = request.path_params.get("version", "1")
        model = self._table.get(request.path_params.get("name"))
        if model is None or version != "1":
            raise Problem(
                404, "NotFound", "There is no such model or version; served are %s." % ", ".join(self._table.names)
            )
        return model


def describe(model: ServedModel, table: ModelTable, options: ServeOptions) -> Dict[str, Any]:
    """The answer of `GET /info`: text-embeddings-inference's keys, then this server's own."""
    id2label = {str(index): label for index, label in enumerate(model.labels)}
    return {
        "model_id": model.name,
        "model_sha": None,
        "model_dtype": model.precision,
        "model_type": {
            "classifier": {"id2label": id2label, "label2id": {text: int(i) for i, text in id2label.items()}}
        },
        "max_concurrent_requests": options.max_queue_texts,
        "max_input_length": model.max_length,
        "max_batch_tokens": model.queue.batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": options.max_texts,
        "auto_truncate": model.truncation != "error",
        "tokenization_workers": 1,
        "version": __version__,
        "sha": None,
        "docker_label": None,
        "engine": model.engine,
        "problem_type": model.problem_type,
        "truncation": model.truncation,
        "models": table.names,
    }


def _timings(request: Request, answer: Answer, texts: List[Any]) -> Tuple[Tuple[str, str], ...]:
    """text-embeddings-inference's headers (times in ms), and the number of texts that were cut."""
    characters = sum(len(text) if isinstance(text, str) else len(text[0]) + len(text[1]) for text in texts)
    return (
        ("x-compute-characters", str(characters)),
        ("x-compute-tokens", str(answer.tokens)),
        ("x-total-time", "%.3f" % ((time.perf_counter() - request.started) * 1000)),
        ("x-tokenization-time", "%.3f" % (answer.tokenization_seconds * 1000)),
        ("x-queue-time", "%.3f" % (answer.queue_seconds * 1000)),
        ("x-inference-time", "%.3f" % (answer.engine_seconds * 1000)),
        ("x-truncated-texts", str(int(np.count_nonzero(answer.truncated)))),
    )
