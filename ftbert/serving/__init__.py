"""Serving a classifier to many callers: `BatchingPredictor` in a process, `create_app` and `run` over HTTP.

`BatchingPredictor` needs nothing beyond ftbert itself. The HTTP server needs Python 3.9 or newer and the extra `serve`
(starlette, uvicorn, httptools, orjson, prometheus_client); it is imported when first asked for.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from ftbert.errors import UnavailableError
from ftbert.serving.options import ServeOptions
from ftbert.serving.queue import BatchingPredictor

if TYPE_CHECKING:
    from ftbert.serving.app import create_app
    from ftbert.serving.server import run

__all__ = ["BatchingPredictor", "ServeOptions", "create_app", "run"]

_LAZY = {"create_app": "ftbert.serving.app", "run": "ftbert.serving.server"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError("module %r has no attribute %r" % (__name__, name))
    if sys.version_info < (3, 9):
        raise UnavailableError(
            "ftbert.serving.%s: expected Python 3.9 or newer, got %d.%d. BatchingPredictor works here too."
            % ((name,) + sys.version_info[:2])
        )
    try:
        module = importlib.import_module(_LAZY[name])
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "ftbert":
            raise
        raise UnavailableError(
            "ftbert.serving.%s: expected the package %r, which is not installed: pip install 'ftbert[serve]'."
            % (name, error.name)
        ) from error
    return getattr(module, name)
