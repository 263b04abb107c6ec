"""Everything that can be set on the server, with the defaults and their limits in one place."""

import dataclasses
import os
from typing import TYPE_CHECKING, Optional, Sequence, Union

from ftbert.errors import ConfigError

if TYPE_CHECKING:
    from ftbert.predictor import FastBertClassifier

__all__ = ["ServeOptions"]

_AT_LEAST = {
    "port": 0,
    "batch_tokens": 1,
    "max_wait_ms": 0,
    "max_queue_texts": 1,
    "max_body_bytes": 1024,
    "max_texts": 1,
    "max_characters": 1,
    "max_connections": 1,
    "timeout_s": 0.001,
    "receive_timeout_s": 0.001,
    "keep_alive_s": 0,
    "drain_s": 0,
    "threads": 1,
    "max_length": 3,
}


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    """Options of `create_app` and `run`.

    Attributes:
        host: address to listen on. The default is reachable from this machine alone.
        port: TCP port; 0 takes a free one.
        device, devices, precision, threads, max_length, truncation, runtime: as `FastBertClassifier.load`. The default
            runtime never imports TensorFlow.
        batch_tokens, max_wait_ms, max_queue_texts: as `BatchingPredictor`.
        pooling: what `/embed` returns unless the request says otherwise: "pooled", "first" or "mean".
        max_body_bytes: bytes of a request's body.
        max_texts: texts in a request.
        max_characters: characters in one text, and in each of a pair.
        max_connections: connections open at a time; the next is answered 503 and closed.
        timeout_s: seconds from a request's arrival to its answer; past that 504, and its work is dropped.
        receive_timeout_s: seconds a client has to send a whole request, or to take a whole answer.
        keep_alive_s: seconds an idle connection stays open after an answer.
        drain_s: seconds that requests under way get after SIGTERM.
        token: clients must send `Authorization: Bearer <token>`; None asks for nothing.
        log_requests: one line to the log for each request: method, path, status, time.
        log_texts: with `log_requests`, the request's body too. Off, no text ever reaches a log.
        ssl_certfile, ssl_keyfile, ssl_keyfile_password, ssl_ca_certs: TLS, as uvicorn's options of these names.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    device: str = "auto"
    devices: Union[str, Sequence[str], None] = None
    precision: str = "auto"
    threads: Optional[int] = None
    max_length: Optional[int] = None
    truncation: Optional[str] = None
    runtime: str = "direct"
    batch_tokens: Optional[int] = None
    max_wait_ms: float = 1.0
    max_queue_texts: int = 8192
    pooling: str = "mean"
    max_body_bytes: int = 2 * 1024 * 1024
    max_texts: int = 256
    max_characters: int = 20000
    max_connections: int = 16384
    timeout_s: float = 30.0
    receive_timeout_s: float = 10.0
    keep_alive_s: float = 30.0
    drain_s: float = 30.0
    token: Optional[str] = None
    log_requests: bool = False
    log_texts: bool = False
    ssl_certfile: Optional[str] = None
    ssl_keyfile: Optional[str] = None
    ssl_keyfile_password: Optional[str] = None
    ssl_ca_certs: Optional[str] = None

    def __post_init__(self) -> None:
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
                raise ConfigError("%s: expected a number of at least %g, got %r." % (name, least, value))
        if self.port > 65535:
            raise ConfigError("port: expected at most 65535, got %r." % self.port)
        if self.pooling not in ("pooled", "first", "mean"):
            raise ConfigError("pooling: expected 'pooled', 'first' or 'mean', got %r." % (self.pooling,))
        if self.max_texts > self.max_queue_texts:
            raise ConfigError(
                "max_texts: expected at most max_queue_texts (%d), got %d; such a request could never be queued."
                % (self.max_queue_texts, self.max_texts)
            )
        if self.token is not None and (not self.token or not self.token.isascii() or " " in self.token):
            raise ConfigError("token: expected ASCII characters without spaces.")
        if self.ssl_keyfile and not self.ssl_certfile:
            raise ConfigError("ssl_keyfile: expected ssl_certfile with it.")
        for name in ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs"):
            path = getattr(self, name)
            if path is not None and not os.path.isfile(path):
                raise ConfigError("%s: expected a file, found none at %s." % (name, path))
        if self.log_texts and not self.log_requests:
            raise ConfigError("log_texts: expected log_requests with it.")

    def load(self, path: str) -> "FastBertClassifier":
        """Loads a model with these options. Raises as `FastBertClassifier.load`."""
        from ftbert.predictor import FastBertClassifier

        return FastBertClassifier.load(
            path,
            device=self.device,
            devices=self.devices,
            precision=self.precision,
            max_length=self.max_length,
            truncation=self.truncation,
            threads=self.threads,
            runtime=self.runtime,
        )
