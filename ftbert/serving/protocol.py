"""uvicorn's HTTP protocol, with an end to every wait for a client.

uvicorn bounds only the idle time after an answer. Here also: a whole request must arrive within `receive_timeout_s`
of its first byte (of the connection, for the first one), headers may take 64 KiB, an answer must be taken within
`receive_timeout_s`, and connections past `max_connections` are answered 503 at once.
"""

import asyncio
from typing import Any, Optional, Type, cast

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ftbert.serving.http import WATCHED
from ftbert.serving.metrics import Metrics
from ftbert.serving.options import ServeOptions

__all__ = ["make_protocol"]

_MAX_HEAD_BYTES = 65536

_SMALL = 65536  # bytes that are copied sooner than sent by themselves

_REASONS = {408: b"Request Timeout", 431: b"Request Header Fields Too Large", 503: b"Service Unavailable"}


def make_protocol(options: ServeOptions, metrics: Metrics) -> Type[HttpToolsProtocol]:
    """The protocol class for uvicorn's option `http`."""

    class BoundedProtocol(HttpToolsProtocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._receiving: Optional[asyncio.TimerHandle] = None  # runs while a request is incomplete
            self._sending: Optional[asyncio.TimerHandle] = None  # runs while the client does not take our bytes
            self._head_bytes = 0  # received before the headers' end was seen
            self._headers_bytes = 0  # of the headers read
            self._head_done = False
            self._refused = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.transport = cast(asyncio.Transport, _Joined(transport, self.loop))
            metrics.connections.set(len(self.connections))
            if len(self.connections) > options.max_connections:
                self._refuse(503, "Expected at most %d open connections. Try again later." % options.max_connections)
                return
            self._start_receiving()

        def connection_lost(self, exc: Optional[Exception]) -> None:
            super().connection_lost(exc)
            for cycle in [self.cycle] + [cycle for cycle, _ in self.pipeline]:
                scope: Any = {} if cycle is None else cycle.scope
                if scope.get(WATCHED) is not None:
                    scope[WATCHED]()
            metrics.connections.set(len(self.connections))
            self._unset_keepalive_if_required()
            for timer in (self._receiving, self._sending):
                if timer is not None:
                    timer.cancel()
            self._receiving = self._sending = None

        def data_received(self, data: bytes) -> None:
            if self.transport.is_closing():
                return
            if self._receiving is None:
                self._start_receiving()
            if not self._head_done:
                self._head_bytes += len(data)
            super().data_received(data)
            if not self._head_done and self._head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse_head()

        def on_header(self, name: bytes, value: bytes) -> None:
            self._headers_bytes += len(name) + len(value) + 4
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._head_done = True
            large, self._headers_bytes = self._headers_bytes > _MAX_HEAD_BYTES, 0
            if large and not self._refused:
                self._refuse_head()
            if self._refused:
                return
            cast(Any, self.scope)[WATCHED] = None
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            if not self._refused:
                super().on_body(body)

        def on_message_complete(self) -> None:
            if not self._refused:
                super().on_message_complete()
            self._head_done = False
            self._head_bytes = 0
            if self._receiving is not None:
                self._receiving.cancel()
                self._receiving = None

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._sending is None:
                self._sending = self.loop.call_later(options.receive_timeout_s, self.transport.abort)

        def resume_writing(self) -> None:
            if self._sending is not None:
                self._sending.cancel()
                self._sending = None
            super().resume_writing()

        def _start_receiving(self) -> None:
            self._receiving = self.loop.call_later(options.receive_timeout_s, self._receiving_ended)

        def _receiving_ended(self) -> None:
            self._receiving = None
            answered = self.cycle is not None and self.cycle.response_started
            if self._head_bytes == 0 or answered:
                self.transport.close()
            else:
                self._refuse(408, "Expected a whole request within %g s." % options.receive_timeout_s)

        def _refuse_head(self) -> None:
            self._refuse(431, "Expected a request line and headers of at most %d bytes." % _MAX_HEAD_BYTES)

        def _refuse(self, status: int, message: str) -> None:
            self._refused = True
            kind = "Overloaded" if status == 503 else "Timeout" if status == 408 else "Validation"
            metrics.errors.labels(kind).inc()
            metrics.requests.labels("other", str(status)).inc()
            body = orjson.dumps({"error": message, "error_type": kind})
            self.transport.write(
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n"
                % (status, _REASONS[status], len(body))
                + (b"retry-after: 1\r\n\r\n" if status == 503 else b"\r\n")
                + body
            )
            self.transport.close()

    return BoundedProtocol


class _Joined:
    """A transport that sends what one turn of the loop writes in one go: an answer's head and its body are one packet
    and one call of the system instead of two."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""
        self.is_closing = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._held:
            held, self._held = self._held, b""
            if len(data) < _SMALL:
                self._transport.write(held + data)
            else:
                self._transport.write(held)
                self._transport.write(data)
        elif data:
            self._held = data
            self._loop.call_soon(self._flush)  # for an answer whose body comes later

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held)
