"""Running the application on uvicorn: signals, TLS, limits of the process."""

import contextlib
import gc
import logging
import resource
import signal
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any, Iterator, Mapping, Optional, Union

import uvicorn

from ftbert.errors import ConfigError, UnavailableError
from ftbert.serving.app import create_app
from ftbert.serving.options import ServeOptions
from ftbert.serving.protocol import make_protocol
from ftbert.serving.table import ModelTable

if TYPE_CHECKING:
    from ftbert.predictor import FastBertClassifier

__all__ = ["run"]

_log = logging.getLogger("ftbert.serving")


class _Server(uvicorn.Server):
    """uvicorn's server with this one's signals: TERM and INT drain and return, HUP loads the models again."""

    def __init__(self, config: uvicorn.Config, table: ModelTable) -> None:
        super().__init__(config)
        self._table = table

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn raises the signal again after the drain, which would end the process with 143 instead of 0.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {signal.SIGTERM: self.handle_exit, signal.SIGINT: self.handle_exit, signal.SIGHUP: self._reload}
        old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._table.draining = True
        super().handle_exit(sig, frame)

    def _reload(self, _signal: int, _frame: Any) -> None:
        threading.Thread(target=self._reload_now, name="ftbert-reload", daemon=True).start()

    def _reload_now(self) -> None:
        try:
            self._table.reload()
        finally:
            _settle()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        for server in getattr(self, "servers", ()):
            for listening in server.sockets:
                host, port = listening.getsockname()[:2]
                scheme = "https" if self.config.is_ssl else "http"
                host = "[%s]" % host if ":" in host else host
                _log.info("Serving %s at %s://%s:%d", ", ".join(self._table.names), scheme, host, port)


def run(
    models: Union[str, Mapping[str, Union[str, "FastBertClassifier"]]],
    options: Optional[ServeOptions] = None,
    **settings: Any,
) -> None:
    """Serves models until SIGTERM or SIGINT, then answers what is under way and returns.

    Args:
        models: one model folder, or name -> model folder.
        options: a ServeOptions; or give its fields as keyword arguments.

    Raises:
        ConfigError, CheckpointError, UnavailableError: before anything listens; a port that is taken is among these.
    """
    options = options or ServeOptions(**settings)
    _check_certificate(options)
    _raise_file_limit(options.max_connections)
    _log_to_stderr()
    listening = _bind(options.host, options.port)
    try:
        app = create_app(models, options)
    except BaseException:
        listening.close()
        raise
    table: ModelTable = app.state.table
    _settle()
    if options.token is None and options.host not in ("127.0.0.1", "localhost", "::1"):
        _log.warning("Listening on %s without a token: everybody who reaches it may use the models.", options.host)
    config = uvicorn.Config(
        app,
        http=make_protocol(options, app.state.metrics),
        ws="none",
        loop="auto",
        lifespan="on",
        backlog=4096,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=options.keep_alive_s,  # type: ignore[arg-type]
        timeout_graceful_shutdown=max(1, int(options.drain_s + 0.999)),
        ssl_certfile=options.ssl_certfile,
        ssl_keyfile=options.ssl_keyfile,
        ssl_keyfile_password=options.ssl_keyfile_password,
        ssl_ca_certs=options.ssl_ca_certs,
    )
    try:
        _Server(config, table).run(sockets=[listening])
    finally:
        listening.close()
        table.close()


def _check_certificate(options: ServeOptions) -> None:
    """Before any model is loaded; without a password for a key that has one OpenSSL would ask the terminal and wait."""
    if options.ssl_certfile is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.ssl_certfile, options.ssl_keyfile, lambda: options.ssl_keyfile_password or "")
        if options.ssl_ca_certs is not None:
            context.load_verify_locations(options.ssl_ca_certs)
    except (OSError, ValueError) as error:  # ssl.SSLError among them
        raise ConfigError(
            "ssl_certfile, ssl_keyfile, ssl_ca_certs: expected a certificate and its key in PEM that can be read and "
            "belong together (and ssl_keyfile_password where the key has one), got: %s." % error
        ) from error


def _settle() -> None:
    """Takes what is loaded out of the garbage collector's sight: a full collection would stop every request for
    milliseconds, and find nothing in it."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _bind(host: str, port: int) -> socket.socket:
    """A socket of that address, not listening yet: a port that is taken is found before any model is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UnavailableError("host: expected an address of this machine, got %r: %s." % (host, error)) from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise UnavailableError("Expected to listen on %s:%d, but: %s." % (host, port, error.strerror)) from error
    return bound


def _raise_file_limit(connections: int) -> None:
    """Each connection is an open file; the usual soft limit of 1,024 would be met first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + 512
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft != resource.RLIM_INFINITY and soft < connections + 512:
        _log.warning(
            "The process may open %d files; max_connections=%d will not be reached (ulimit -n).", soft, connections
        )


def _log_to_stderr() -> None:
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("ftbert.serving").setLevel(logging.INFO)
