"""`deployment`: a model behind Ray Serve, each replica with its own queue, as many replicas as the load needs."""

from typing import Any, Dict, List, Optional

from ftbert.errors import FtbertError, UnavailableError

__all__ = ["deployment"]


def deployment(
    model: str,
    name: str = "ftbert",
    min_replicas: int = 1,
    max_replicas: int = 8,
    target_requests: float = 32,
    upscale_delay_s: float = 10,
    num_cpus: float = 1,
    num_gpus: float = 0,
    max_requests: int = 256,
    ray_options: Optional[Dict[str, Any]] = None,
    **options: Any,
) -> Any:
    """A Ray Serve application for a model: `ray.serve.run(deployment("models/intents"))`.

    It answers `POST` with text-embeddings-inference's classifier form, and handles by `handle.predict.remote(texts)`
    with a list of (label, score, truncated).

    Args:
        model: the model folder's path on every node.
        name: the deployment's name.
        min_replicas, max_replicas: bounds of the autoscaling.
        target_requests: requests under way at a replica that the autoscaling aims at. A replica batches what it has,
            so this is also the batch size that it works with under load.
        upscale_delay_s: how long the load must last before a replica is added.
        num_cpus, num_gpus: of one replica. On CPUs it uses `num_cpus` threads; with several cards it holds a copy of
            the model on each.
        max_requests: requests that a replica may have under way; more wait at the caller.
        ray_options: further arguments of `ray.serve.deployment`.
        options: fields of `ServeOptions` (limits, precision, batching).

    Raises:
        UnavailableError: Ray Serve is not installed.
        ConfigError: an option is unknown or out of range.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise UnavailableError("Expected Ray Serve, which is not installed: pip install 'ftbert[ray]'.") from error
    from ftbert.serving.options import ServeOptions

    if num_gpus == 0:
        options.setdefault("device", "cpu")
        options.setdefault("threads", max(1, int(num_cpus)))
    elif num_gpus > 1:
        options.setdefault("devices", "all")  # Ray shows a replica its own cards alone
    elif "devices" not in options:
        options.setdefault("device", "cuda")  # never the CPU in silence, on a node whose card cannot be used
    settings = ServeOptions(**options)
    scaling = {
        "min_replicas": min_replicas,
        "max_replicas": max_replicas,
        "target_ongoing_requests": target_requests,
        "upscale_delay_s": upscale_delay_s,
    }
    made = serve.deployment(
        _Replica,
        name=name,
        autoscaling_config=scaling,
        max_ongoing_requests=max_requests,
        ray_actor_options={"num_cpus": num_cpus, "num_gpus": num_gpus},
        **(ray_options or {}),
    )
    return made.bind(model, settings)


class _Replica:
    """One loaded model and its queue."""

    def __init__(self, model: str, options: Any) -> None:
        from ftbert.serving.queue import BatchingPredictor

        self._options = options
        predictor = options.load(model)
        if not predictor.labels:
            raise UnavailableError("%s: expected a model with a classifier, got an encoder alone." % model)
        self._queue = BatchingPredictor(
            predictor,
            batch_tokens=options.batch_tokens,
            max_wait_ms=options.max_wait_ms,
            max_queue_texts=options.max_queue_texts,
        )

    async def predict(self, texts: List[Any]) -> List[Any]:
        """(label, score, truncated) for each text."""
        predictions = await self._queue.predict_async(texts, timeout=self._options.timeout_s)
        return [(item.label, item.score, item.truncated) for item in predictions]

    async def __call__(self, request: Any) -> Any:
        """A starlette request -> a starlette response."""
        from starlette.responses import Response

        from ftbert.prediction import scores_from_logits
        from ftbert.serving import classify
        from ftbert.serving.http import problem_reply
        from ftbert.serving.problems import Problem, problem_from

        predictor = self._queue.predictor
        try:
            body = await request.body()
            if len(body) > self._options.max_body_bytes:
                raise Problem(413, "Validation", "Expected a body of at most %d bytes." % self._options.max_body_bytes)
            parsed = classify.parse_predict(body, self._options)
            truncation = classify.truncation_of(parsed.truncate, parsed.truncation, predictor.truncation)
            ticket = self._queue.submit_async(parsed.texts, truncation=truncation)
            answer = await ticket.result_async(self._options.timeout_s)
            classify.finite(answer.values)
            values = answer.values if parsed.raw_scores else scores_from_logits(answer.values, predictor.problem_type)
            reply = classify.render_predictions(values, predictor.labels, parsed.single)
        except (Problem, FtbertError) as error:
            problem = error if isinstance(error, Problem) else problem_from(error)
            failed = problem_reply(problem)
            return Response(failed.body, failed.status, dict(failed.headers), failed.content_type)
        return Response(reply, media_type="application/json")

    def check_health(self) -> None:
        """Ray Serve replaces a replica that raises here.

        One that is at work is asked nothing: under load the question would wait as long as the requests do, and a busy
        replica would be taken for a dead one.
        """
        if self._queue.failed_batches or not self._queue.queued_texts:
            self._queue.submit(["."], truncation="head").result(30)
