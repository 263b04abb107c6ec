"""`ftbert finetune`."""

import json
from typing import Any, Dict, List, Optional

import typer

from ftbert.errors import ConfigError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command()(finetune)


def finetune(
    train: str = typer.Option(..., help="Labelled rows: TSV, CSV or JSON lines, by ending."),
    output: str = typer.Option(..., "--output", "-o", help="The model folder to write."),
    dev: Optional[str] = typer.Option(None, help="Rows to measure on; left out: a tenth of train is held out."),
    pretrained: Optional[str] = typer.Option(None, help="A model folder to start from; left out: from scratch."),
    text_column: str = typer.Option("text", help="The column or key that holds the text."),
    label_column: str = typer.Option("label", help="The column or key that holds the label."),
    pair_column: Optional[str] = typer.Option(None, help="The second text's, for sentence pairs."),
    multi_label: bool = typer.Option(False, help="A row has a set of labels, separated by --label-separator."),
    label_separator: str = typer.Option(",", help="Between the labels in one cell."),
    epochs: int = typer.Option(3, help="Passes over the rows."),
    batch_size: int = typer.Option(32, help="Rows to an update."),
    accumulation: int = typer.Option(1, help="Micro-batches to an update, for less memory."),
    learning_rate: float = typer.Option(5e-5, help="Peak of the rate; 5e-4 suits a small model from scratch."),
    warmup: float = typer.Option(0.1, help="Share of the updates in which the rate rises."),
    max_length: int = typer.Option(128, help="Longest row in tokens."),
    truncation: str = typer.Option("head", help="error, head, tail or head+tail."),
    class_weights: Optional[str] = typer.Option(None, help="balanced, or left out."),
    label_smoothing: float = typer.Option(0.0, help="Share of each target spread evenly."),
    layer_decay: float = typer.Option(1.0, help="Learning rate of a layer over the next one's above."),
    freeze: Optional[str] = typer.Option(None, help="encoder, or how many layers from below."),
    metric: str = typer.Option("accuracy", help="accuracy, macro_f1 or loss: what decides which epoch is kept."),
    patience: Optional[int] = typer.Option(None, help="Epochs without a better one after which training stops."),
    seed: int = typer.Option(0, help="Two runs on a CPU with equal settings end bitwise equal."),
    device: str = typer.Option("auto", help="auto, cpu or gpu."),
    threads: int = typer.Option(0, help="CPU threads; 0: one per core."),
    mixed_precision: Optional[str] = typer.Option(None, help="bfloat16 or float16 (GPU)."),
    xla: bool = typer.Option(False, help="Compile the graph (GPU)."),
    precision: str = typer.Option("fp32", help="Of the saved weights: fp32 or fp16."),
    config: Optional[str] = typer.Option(None, help="From scratch: JSON of sizes, or a file of it."),
    vocab_size: int = typer.Option(8000, help="From scratch: pieces in the vocabulary."),
    lower_case: bool = typer.Option(True, help="From scratch: whether texts are lower-cased."),
    resume: bool = typer.Option(True, help="Go on with a run of the same settings that was cut off."),
    option: Optional[List[str]] = typer.Option(None, help="Any other option of ftbert.finetune as name=JSON."),
) -> None:
    """Train a classifier on labelled rows and write its model folder. A run cut off goes on when called again."""
    from ftbert.finetune import finetune as train_model

    options: Dict[str, Any] = {
        "text_column": text_column,
        "label_column": label_column,
        "pair_column": pair_column,
        "multi_label": multi_label,
        "label_separator": label_separator,
        "epochs": epochs,
        "batch_size": batch_size,
        "accumulation": accumulation,
        "learning_rate": learning_rate,
        "warmup": warmup,
        "max_length": max_length,
        "truncation": truncation,
        "class_weights": class_weights,
        "label_smoothing": label_smoothing,
        "layer_decay": layer_decay,
        "freeze": int(freeze) if freeze is not None and freeze.isdigit() else freeze,
        "metric": metric,
        "patience": patience,
        "seed": seed,
        "device": device,
        "threads": threads,
        "mixed_precision": mixed_precision,
        "xla": xla,
        "precision": precision,
        "config": None if config is None else _json("--config", config),
        "vocab_size": vocab_size,
        "lower_case": lower_case,
        "resume": resume,
    }
    for item in option or []:
        name, equals, value = item.partition("=")
        if not equals:
            raise ConfigError("--option: expected name=value, got %r." % item)
        options[name] = _json("--option " + name, value)
    result = train_model(train=train, dev=dev, pretrained=pretrained, output=output, **options)
    typer.echo(
        "%s: epoch %d, accuracy %.2f%%, macro-F1 %.2f%% on the dev rows."
        % (result.output, result.best_epoch, 100 * result.metrics["accuracy"], 100 * result.metrics["macro_f1"])
    )


def _json(what: str, text: str) -> Any:
    """A JSON value, or the contents of the file of that name."""
    try:
        if text.endswith(".json"):
            with open(text, "r", encoding="utf-8") as file:
                return json.load(file)
        return json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError("%s: expected JSON, got %r: %s" % (what, text, error)) from error
