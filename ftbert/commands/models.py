"""`ftbert info`, `doctor`, `tune`, `calibrate`, `download`, `export` and the `checkpoint` group."""

from typing import Any, List, Optional

import typer

from ftbert.commands.predicting import DEVICE, MODEL, PRECISION, THREADS

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command()(info)
    app.command()(doctor)
    app.command()(tune)


def info(model: str = MODEL) -> None:
    """What a model folder holds: sizes, labels, tokenizer, weights. Loads nothing."""
    from rich.console import Console
    from rich.table import Table

    from ftbert.checkpoint import load_model_folder

    folder = load_model_folder(model)
    table = Table(title=str(model), show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in folder.summary():
        table.add_row(key, str(value))
    Console().print(table)


def doctor() -> None:
    """Check this installation; exits with 1 and a remedy when something is broken."""
    from ftbert import doctor as module

    raise typer.Exit(module.main())


def tune(
    model: str = MODEL,
    device: str = DEVICE,
    precision: str = PRECISION,
    threads: Optional[int] = THREADS,
    tokens: Optional[List[int]] = typer.Option(None, help="Token counts of the batches to expect; may be given again."),
) -> None:
    """Search the fastest kernels for this model on this card and remember them in your cache folder."""
    from rich.console import Console

    from ftbert.predictor import FastBertClassifier

    with FastBertClassifier.load(model, device=device, precision=precision, threads=threads, runtime="direct") as classifier:
        classifier.tune(list(tokens) if tokens else None)  # type: Any
        Console().print("Tuned %s." % classifier.engine)
