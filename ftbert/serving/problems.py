"""Every way a request can fail, as a status and the error body that text-embeddings-inference's clients know."""

from typing import Dict, NoReturn, Optional

from ftbert.errors import (
    ClosedError,
    DeadlineError,
    FtbertError,
    InputError,
    OverloadedError,
    UnavailableError,
)

__all__ = ["ERROR_TYPES", "Disconnected", "Problem", "problem_from", "reject"]

# The first six are text-embeddings-inference's.
ERROR_TYPES = (
    "Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty",
    "Unauthorized", "NotFound", "Timeout", "Internal",
)  # fmt: skip


class Problem(Exception):
    """A request that is answered with an error.

    Attributes:
        status: HTTP status.
        kind: one of ERROR_TYPES.
        message: expected, got, remedy.
        headers: further response headers.
        close: the connection is closed after the answer, because the rest of the request was not read.
    """

    def __init__(
        self, status: int, kind: str, message: str, headers: Optional[Dict[str, str]] = None, close: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.headers = headers or {}
        self.close = close


class Disconnected(Exception):
    """The client went away; there is nobody to answer."""


def reject(message: str, status: int = 422, kind: str = "Validation") -> NoReturn:
    """Raises the Problem of a request that is not what it must be."""
    raise Problem(status, kind, message)


def problem_from(error: FtbertError) -> Problem:
    """What the queue or the predictor raised, as an answer."""
    if isinstance(error, OverloadedError):
        seconds = max(1, int(error.retry_after + 0.999))
        return Problem(429, "Overloaded", str(error), {"Retry-After": str(seconds)})
    if isinstance(error, DeadlineError):
        return Problem(504, "Timeout", str(error))
    if isinstance(error, InputError):
        # Types and sizes were checked before: what the tokenizer still refuses is a text longer than the model takes.
        return Problem(413, "Validation", str(error))
    if isinstance(error, ClosedError):
        return Problem(503, "Unhealthy", "The server is shutting down.", {"Retry-After": "1"})
    if isinstance(error, UnavailableError):
        return Problem(424, "Backend", str(error))
    return Problem(424, "Backend", "The engine could not run this batch: %s" % type(error).__name__)
