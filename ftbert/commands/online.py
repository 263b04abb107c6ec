"""`ftbert serve`."""

from typing import Dict, List, Optional, Union

import typer

from ftbert.commands.predicting import DEVICES, PRECISION, THREADS, devices_of
from ftbert.errors import ConfigError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command()(serve)


def serve(
    models: List[str] = typer.Argument(..., help="A model folder, or several as name=folder."),
    host: str = typer.Option(
        "127.0.0.1", help="Address to listen on; the default is reachable from this machine alone."
    ),
    port: int = typer.Option(8000, help="TCP port; 0 takes a free one."),
    device: str = DEVICES,
    precision: str = PRECISION,
    threads: Optional[int] = THREADS,
    runtime: str = typer.Option("direct", help="direct (no TensorFlow), session or tensorflow."),
    max_length: Optional[int] = typer.Option(None, help="Longest row in tokens; left out: the model's."),
    truncation: Optional[str] = typer.Option(None, help="error, head, tail or head+tail; left out: the model's."),
    batch_tokens: Optional[int] = typer.Option(None, help="Tokens in one batch; left out: what suits the device."),
    max_wait_ms: float = typer.Option(1.0, help="How long a text may wait for company."),
    max_queue_texts: int = typer.Option(8192, help="Texts waiting at most; past that 429 with Retry-After."),
    max_body_bytes: int = typer.Option(2 * 1024 * 1024, help="Bytes of one request's body."),
    max_texts: int = typer.Option(256, help="Texts in one request."),
    max_characters: int = typer.Option(20000, help="Characters in one text."),
    max_connections: int = typer.Option(16384, help="Connections open at a time."),
    timeout_s: float = typer.Option(30.0, help="Seconds from a request to its answer."),
    drain_s: float = typer.Option(30.0, help="Seconds that requests under way get after SIGTERM."),
    token: Optional[str] = typer.Option(None, envvar="FTBERT_TOKEN", help="Clients must send it as a bearer token."),
    log_requests: bool = typer.Option(False, help="One line in the log for each request."),
    log_texts: bool = typer.Option(False, help="With --log-requests: the texts too."),
    ssl_certfile: Optional[str] = typer.Option(None, help="Certificate for TLS."),
    ssl_keyfile: Optional[str] = typer.Option(None, help="Its key."),
) -> None:
    """Serve models over HTTP until SIGTERM; SIGHUP loads them again without losing a request."""
    several = len(models) > 1 or "=" in models[0]
    served: Union[str, Dict[str, str]] = named_models(models) if several else models[0]
    from ftbert.serving import ServeOptions, run

    options = ServeOptions(
        host=host,
        port=port,
        **devices_of(device),
        precision=precision,
        threads=threads,
        runtime=runtime,
        max_length=max_length,
        truncation=truncation,
        batch_tokens=batch_tokens,
        max_wait_ms=max_wait_ms,
        max_queue_texts=max_queue_texts,
        max_body_bytes=max_body_bytes,
        max_texts=max_texts,
        max_characters=max_characters,
        max_connections=max_connections,
        timeout_s=timeout_s,
        drain_s=drain_s,
        token=token,
        log_requests=log_requests,
        log_texts=log_texts,
        ssl_certfile=ssl_certfile,
        ssl_keyfile=ssl_keyfile,
    )
    run(served, options)


def named_models(arguments: List[str]) -> Dict[str, str]:
    """["a=path", "b=path"] -> {"a": "path", "b": "path"}.

    Raises:
        ConfigError: a name is missing or stands twice.
    """
    models: Dict[str, str] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not (name and equals and path):
            raise ConfigError("Several models: expected name=folder for each, got %r." % argument)
        if name in models:
            raise ConfigError("Several models: the name %r stands twice." % name)
        models[name] = path
    return models
