"""`ftbert info`, `doctor`, `tune`, `calibrate`, `download`, `export` and the `checkpoint` group."""

from typing import List, Optional

import typer

from ftbert.commands.predicting import DEVICE, MODEL, PRECISION, THREADS
from ftbert.console import make_console

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command()(info)
    app.command()(doctor)
    app.command()(tune)
    app.command()(calibrate)
    app.command()(download)
    app.command()(export)
    group = typer.Typer(help="Tools for checkpoints: what is in them, smaller ones, other forms.", no_args_is_help=True)
    for name, function in (
        ("inspect", checkpoint_inspect),
        ("strip", checkpoint_strip),
        ("to-fp16", checkpoint_to_fp16),
        ("to-bf16", checkpoint_to_bf16),
        ("to-fp32", checkpoint_to_fp32),
        ("convert", checkpoint_convert),
        ("average", checkpoint_average),
    ):
        group.command(name)(function)
    app.add_typer(group, name="checkpoint")


def info(model: str = MODEL) -> None:
    """What a model folder holds: sizes, labels, tokenizer, weights. Loads nothing."""
    from rich.table import Table

    from ftbert.checkpoint import load_model_folder

    folder = load_model_folder(model)
    table = Table(title=str(model), show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in folder.summary():
        table.add_row(key, str(value))
    make_console().print(table)


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
    from ftbert.predictor import FastBertClassifier

    with FastBertClassifier.load(
        model, device=device, precision=precision, threads=threads, runtime="direct"
    ) as classifier:
        classifier.tune(list(tokens) if tokens else None)
        make_console().print("Tuned %s." % classifier.engine)


def calibrate(
    model: str = MODEL,
    file: str = typer.Argument(
        ..., help="Your texts: TSV, CSV or JSON lines (with a label column or without) or lines."
    ),
    text_column: str = typer.Option("text", help="The column or key that holds the text."),
    label_column: Optional[str] = typer.Option(
        None, help="The column or key that holds the true label, if there is one."
    ),
    pair_column: Optional[str] = typer.Option(None, help="The second text's, for sentence pairs."),
    precision: Optional[List[str]] = typer.Option(None, help="A precision to try; may be given again. Left out: all."),
    device: str = DEVICE,
    threads: Optional[int] = THREADS,
    record: bool = typer.Option(True, help="Record in the model folder what precision=auto may use."),
) -> None:
    """Measure each precision's agreement, accuracy and speed on your own texts, and record what passed."""
    from ftbert.calibrate import calibrate as calibrate_model
    from ftbert.errors import InputError
    from ftbert.rows import check_rows, read_rows

    check_rows(file, None, text_column, pair_column)
    rows = list(read_rows(file, None, text_column, pair_column))
    labels = None
    if label_column is not None:
        without = [str(row.line) for row in rows if label_column not in row.record]
        if without:
            raise InputError("%s: no %r in line %s." % (file, label_column, ", ".join(without[:20])))
        labels = [str(row.record[label_column]) for row in rows]
    report = calibrate_model(
        model,
        [row.text for row in rows],
        labels=labels,
        precisions=list(precision) if precision else None,
        device=device,
        threads=threads,
        record=record,
    )
    make_console().print(report.table())


def download(
    name: str = typer.Argument(..., help="bert-base-chinese, one of google-research/bert's names, or user/model."),
    folder: str = typer.Argument(..., help="Where to put it."),
) -> None:
    """Fetch a pretrained model (needs ftbert[download])."""
    from ftbert.download import download as fetch

    typer.echo(fetch(name, folder))


def export(
    model: str = MODEL,
    destination: str = typer.Argument(..., help="A new folder (saved-model) or file (onnx)."),
    format: str = typer.Option("saved-model", help="saved-model (plain TensorFlow, without our op) or onnx."),
) -> None:
    """Write the model in a form that needs no ftbert."""
    from ftbert.errors import ConfigError
    from ftbert.export import export_onnx, export_saved_model

    if format == "saved-model":
        export_saved_model(model, destination)
    elif format == "onnx":
        export_onnx(model, destination)
    else:
        raise ConfigError("--format: expected saved-model or onnx, got %r." % format)
    typer.echo("Wrote %s." % destination)


SOURCE = typer.Argument(..., help="A TensorFlow prefix or folder, a .safetensors file or its folder.")
DESTINATION = typer.Argument(..., help="Where the new one goes; written whole or not at all.")
OVERFLOW = typer.Option(False, "--allow-overflow", help="Write even if values become infinite.")


def checkpoint_inspect(source: str = SOURCE) -> None:
    """Names, shapes, types and sizes, and what only training needs."""
    from ftbert import checkpoint

    typer.echo(str(checkpoint.inspect(source)))


def checkpoint_strip(source: str = SOURCE, destination: str = DESTINATION) -> None:
    """Leave out the optimizer's variables: a fine-tuned checkpoint becomes a third of its size."""
    from ftbert import checkpoint

    typer.echo(str(checkpoint.strip_optimizer(source, destination)))


def checkpoint_to_fp16(source: str = SOURCE, destination: str = DESTINATION, allow_overflow: bool = OVERFLOW) -> None:
    """Convert fp32 tensors to fp16, and say what that loses."""
    from ftbert import checkpoint

    typer.echo(str(checkpoint.to_fp16(source, destination, allow_overflow)))


def checkpoint_to_bf16(source: str = SOURCE, destination: str = DESTINATION, allow_overflow: bool = OVERFLOW) -> None:
    """Convert fp32 tensors to bf16, and say what that loses."""
    from ftbert import checkpoint

    typer.echo(str(checkpoint.to_bf16(source, destination, allow_overflow)))


def checkpoint_to_fp32(source: str = SOURCE, destination: str = DESTINATION) -> None:
    """Widen fp16 and bf16 tensors to fp32, for graphs and tools that read nothing else."""
    from ftbert import checkpoint

    typer.echo(str(checkpoint.to_fp32(source, destination)))


def checkpoint_convert(
    source: str = SOURCE,
    destination: str = DESTINATION,
    format: str = typer.Option("ftbert", help="tf1, huggingface or ftbert."),
    accept_changes: bool = typer.Option(False, "--accept-changes", help="Go on where tf1 cannot say all."),
) -> None:
    """Turn a model folder into another form without loss."""
    from ftbert import checkpoint

    typer.echo(str(checkpoint.convert(source, destination, format, strict=not accept_changes)))


def checkpoint_average(
    sources: List[str] = typer.Argument(..., help="Two or more checkpoints of one model."),
    destination: str = typer.Option(..., "--output", "-o", help="Where the average goes."),
) -> None:
    """Average the weights of several checkpoints."""
    from ftbert import checkpoint

    typer.echo(str(checkpoint.average(list(sources), destination)))
