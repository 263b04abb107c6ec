"""One request: read within limits, answered, counted. The ASGI side of every route."""

import asyncio
import hmac
import json
import logging
import time
import urllib.parse
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Dict, List, NamedTuple, Optional, Tuple

import orjson

from ftbert.errors import DeadlineError, FtbertError
from ftbert.serving.options import ServeOptions
from ftbert.serving.problems import Disconnected, Problem, problem_from
from ftbert.serving.ticket import Answer, Ticket

if TYPE_CHECKING:
    from ftbert.serving.metrics import Metrics

__all__ = ["WATCHED", "Bodies", "Endpoint", "Reply", "Request", "json_reply", "problem_reply", "send_reply"]

_log = logging.getLogger("ftbert.serving")

JSON = "application/json"

# A key of the ASGI scope: there, a server promises to call what stands under it when the client goes away.
WATCHED = "ftbert.watched"


class Reply(NamedTuple):
    """A whole answer."""

    body: bytes
    content_type: str = JSON
    status: int = 200
    headers: Tuple[Tuple[str, str], ...] = ()


def json_reply(value: Any, status: int = 200) -> Reply:
    """A Reply of a JSON value."""
    return Reply(orjson.dumps(value), status=status)


class Bodies:
    """Bytes of bodies that requests under way hold: thousands of clients could each send the largest one allowed."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0


class Request:
    """What a handler sees of one HTTP request."""

    __slots__ = ("_bodies", "_held", "_receive", "body", "headers", "options", "path_params", "scope", "started")

    def __init__(
        self, scope: Dict[str, Any], receive: Callable[[], Awaitable[Any]], options: ServeOptions, bodies: Bodies
    ) -> None:
        self._bodies = bodies
        self._held = 0
        self.scope = scope
        self.headers: Dict[bytes, bytes] = dict(scope["headers"])
        self.path_params: Dict[str, Any] = scope.get("path_params", {})
        self.options = options
        self.body = b""
        self.started = time.perf_counter()
        self._receive = receive

    def header(self, name: bytes) -> Optional[str]:
        """A header's value; the name in lower case."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    async def read(self, content_types: Tuple[str, ...], required: bool) -> None:
        """Takes the body in, refusing what is too large or of another content type before it is held in memory."""
        limit = self.options.max_body_bytes
        given = self.header(b"content-type")
        kind = given.partition(";")[0].strip().lower() if given else None
        if (kind is None and required) or (kind is not None and kind not in content_types):
            raise Problem(415, "Validation", "Content-Type: expected %s." % " or ".join(content_types), close=True)
        if self.headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Problem(415, "Validation", "Content-Encoding: expected none; send the body uncompressed.", close=True)
        declared = self.headers.get(b"content-length", b"0")
        if not declared.isdigit() or len(declared) > 18 or int(declared) > limit:
            shown = declared[:20].decode("latin-1")
            raise Problem(
                413, "Validation", "Expected a body of at most %d bytes, got %s." % (limit, shown), close=True
            )
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        self.body = message.get("body", b"")
        self._hold(len(self.body))
        if message.get("more_body"):
            chunks = bytearray(self.body)
            while message.get("more_body"):
                if len(chunks) > limit:
                    break
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise Disconnected
                chunk = message.get("body", b"")
                self._hold(len(chunk))
                chunks += chunk
            self.body = bytes(chunks)
        if len(self.body) > limit:
            raise Problem(413, "Validation", "Expected a body of at most %d bytes." % limit, close=True)

    def _hold(self, size: int) -> None:
        self._held += size
        self._bodies.held += size
        if self._bodies.held > self._bodies.limit:
            raise Problem(
                429, "Overloaded", "Requests under way hold %d bytes already. Try again later." % self._bodies.limit,
                {"Retry-After": "1"}, close=True,
            )  # fmt: skip

    def let_go(self) -> None:
        """Gives back what the body held."""
        self._bodies.held -= self._held
        self._held = 0

    async def answer(self, ticket: Ticket) -> Answer:
        """Waits for the queue's answer, the request's deadline or the client's going away, whichever comes first."""
        left = max(0.0, self.options.timeout_s - (time.perf_counter() - self.started))
        future = ticket.future
        if WATCHED in self.scope:
            # The protocol tells of a lost connection itself; a task that waits for it would cost more than the queue.
            self.scope[WATCHED] = lambda: _end(future, Disconnected())
            timer = asyncio.get_running_loop().call_later(left, _end, future, self._late())
            try:
                await future
                return ticket.result(0)
            finally:
                timer.cancel()
                self.scope[WATCHED] = None
                ticket.abandon()
        gone = asyncio.ensure_future(self._receive())
        try:
            await asyncio.wait({future, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if future.done():
                return ticket.result(0)
            raise Disconnected if gone.done() else self._late()
        finally:
            gone.cancel()
            ticket.abandon()

    def _late(self) -> DeadlineError:
        return DeadlineError(
            "Expected an answer within %g s, got none; the request was dropped. Send fewer texts."
            % self.options.timeout_s
        )


def _end(future: "asyncio.Future[None]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


class Endpoint:
    """An ASGI application for one route.

    Args:
        name: the route in metrics.
        handler: Request -> Reply; FtbertErrors and Problems that it raises are answered as such.
        bodies: shared by all routes.
        guarded: needs the bearer token when there is one.
        content_types: what a body may be; empty: no body is read.
        needs_type: a body without Content-Type is refused.
        flat_errors: errors are {"error": message} alone, as the Open Inference Protocol has them.
    """

    def __init__(
        self,
        name: str,
        handler: Callable[[Request], Awaitable[Reply]],
        options: ServeOptions,
        metrics: "Metrics",
        bodies: Bodies,
        guarded: bool = True,
        content_types: Tuple[str, ...] = (),
        needs_type: bool = False,
        flat_errors: bool = False,
    ) -> None:
        self._name = name
        self._handler = handler
        self._options = options
        self._metrics = metrics
        self._bodies = bodies
        self._token = options.token.encode("ascii") if options.token and guarded else None
        self._content_types = content_types
        self._needs_type = needs_type
        self._flat_errors = flat_errors
        self._seconds = metrics.seconds.labels(name)
        self._good = metrics.requests.labels(name, "200")

    async def __call__(self, scope: Dict[str, Any], receive: Any, send: Any) -> None:
        request = Request(scope, receive, self._options, self._bodies)
        try:
            await self._answer(request, send)
        finally:
            request.let_go()

    async def _answer(self, request: Request, send: Any) -> None:
        close = False
        try:
            if self._token is not None:
                _check_token(request, self._token)
            if self._content_types:
                await request.read(self._content_types, self._needs_type)
            reply = await self._handler(request)
        except Disconnected:
            self._metrics.disconnects.inc()
            return
        except (Problem, FtbertError) as error:
            problem = error if isinstance(error, Problem) else problem_from(error)
            if problem.status == 424:
                _log.error("%s: %s", self._name, error)  # what the engine said, which holds no text
            close = problem.close
            self._metrics.errors.labels(problem.kind).inc()
            reply = problem_reply(problem, self._flat_errors)
        except Exception as error:
            # The traceback names code, not texts; the exception's own message might hold a text.
            _log.error("%s: unexpected %s", self._name, type(error).__name__, exc_info=self._options.log_texts)
            self._metrics.errors.labels("Internal").inc()
            reply = problem_reply(Problem(500, "Internal", "Unexpected %s." % type(error).__name__), self._flat_errors)
        seconds = time.perf_counter() - request.started
        self._seconds.observe(seconds)
        if reply.status == 200:
            self._good.inc()
        else:
            self._metrics.requests.labels(self._name, str(reply.status)).inc()
        if self._options.log_requests:
            self._write_log(request, reply.status, seconds)
        await send_reply(reply, send, request.scope["method"], close)

    def _write_log(self, request: Request, status: int, seconds: float) -> None:
        # What a client sends must not make lines of its own in the log: the path is quoted, the body a JSON string.
        path = urllib.parse.quote(request.scope["path"])
        line = "%s %s %d %.1f ms" % (request.scope["method"], path, status, seconds * 1000)
        if self._options.log_texts:
            line += " %s" % json.dumps(request.body.decode("utf-8", "replace"), ensure_ascii=False)
        _log.info("%s", line)


def _check_token(request: Request, expected: bytes) -> None:
    given = request.headers.get(b"authorization", b"")
    scheme, _, token = given.partition(b" ")
    # compare_digest takes the same time wherever the first difference is.
    if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), expected):
        raise Problem(
            401, "Unauthorized", "Expected the header 'Authorization: Bearer <token>' with this server's token.",
            {"WWW-Authenticate": "Bearer"}, close=True,
        )  # fmt: skip


def problem_reply(problem: Problem, flat: bool = False) -> Reply:
    """The error body: {"error", "error_type"}, or {"error"} alone."""
    value = {"error": problem.message}
    if not flat:
        value["error_type"] = problem.kind
    return Reply(orjson.dumps(value), JSON, problem.status, tuple(problem.headers.items()))


async def send_reply(reply: Reply, send: Any, method: str = "GET", close: bool = False) -> None:
    """Sends a Reply; the body of an answer to HEAD stays away, its length does not."""
    headers: List[Tuple[bytes, bytes]] = [
        (b"content-type", reply.content_type.encode("ascii")),
        (b"content-length", b"%d" % len(reply.body)),
    ]
    headers.extend((name.lower().encode("ascii"), value.encode("latin-1")) for name, value in reply.headers)
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else reply.body})
