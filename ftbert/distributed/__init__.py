"""The predictor on a Ray cluster: `predict` for data at rest, `deployment` for requests. Needs the extra `ray`."""

from ftbert.distributed.offline import predict
from ftbert.distributed.online import deployment

__all__ = ["deployment", "predict"]
