"""`ftbert finetune` and `ftbert pretrain`."""

import json
from typing import Any, Dict, List, Optional, Sequence

import typer

from ftbert.errors import ConfigError

__all__ = ["register"]

# What both commands have.
_ACCUMULATION = typer.Option(1, help="Micro-batches to an update, for less memory.")
_WARMUP = typer.Option(0.1, help="Share of the updates in which the rate rises.")
_SEED = typer.Option(0, help="Two runs on a CPU with equal settings end bitwise equal.")
_DEVICE = typer.Option("auto", help="auto, cpu or gpu.")
_DEVICES = typer.Option(0, help="How many GPUs share every batch; 0: all that TensorFlow sees.")
_THREADS = typer.Option(0, help="CPU threads; 0: one per core.")
_MIXED = typer.Option(None, help="bfloat16 or float16 (GPU).")
_XLA = typer.Option(False, help="Compile the graph (GPU).")
_PRECISION = typer.Option("fp32", help="Of the saved weights: fp32 or fp16.")
_RESUME = typer.Option(True, help="Go on with a run of the same settings that was cut off.")


def register(app: typer.Typer) -> None:
    """Adds the commands of this module."""
    app.command()(finetune)
    app.command()(pretrain)


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
    epochs: Optional[int] = typer.Option(None, help="Passes over the rows; left out: 3, from scratch 20."),
    batch_size: int = typer.Option(32, help="Rows to an update."),
    accumulation: int = _ACCUMULATION,
    learning_rate: Optional[float] = typer.Option(None, help="Peak of the rate; left out: 5e-5, from scratch 5e-4."),
    warmup: float = _WARMUP,
    max_length: int = typer.Option(128, help="Longest row in tokens."),
    truncation: str = typer.Option("head", help="error, head, tail or head+tail."),
    class_weights: Optional[str] = typer.Option(None, help="balanced, or left out."),
    label_smoothing: Optional[float] = typer.Option(
        None, help="Share of each target spread evenly; left out: 0, from scratch 0.1."
    ),
    layer_decay: float = typer.Option(1.0, help="Learning rate of a layer over the next one's above."),
    freeze: Optional[str] = typer.Option(None, help="encoder, or how many layers from below."),
    metric: str = typer.Option("accuracy", help="accuracy, macro_f1 or loss: what decides which epoch is kept."),
    patience: Optional[int] = typer.Option(None, help="Epochs without a better one after which training stops."),
    seed: int = _SEED,
    device: str = _DEVICE,
    devices: int = _DEVICES,
    threads: int = _THREADS,
    mixed_precision: Optional[str] = _MIXED,
    xla: bool = _XLA,
    precision: str = _PRECISION,
    config: Optional[str] = typer.Option(None, help="From scratch: JSON of sizes, or a file of it."),
    vocab_size: int = typer.Option(8000, help="From scratch: pieces in the vocabulary."),
    lower_case: bool = typer.Option(True, help="From scratch: whether texts are lower-cased."),
    resume: bool = _RESUME,
    option: Optional[List[str]] = typer.Option(None, help="Any other option of ftbert.finetune as name=JSON."),
) -> None:
    """Train a classifier on labelled rows and write its model folder. A run cut off goes on when called again."""
    options = _options(locals(), ("train", "output", "dev", "pretrained"))
    options["freeze"] = int(freeze) if freeze is not None and freeze.isdigit() else freeze
    for name in ("epochs", "learning_rate", "label_smoothing"):
        if options[name] is None:  # the default depends on whether there is a pretrained model
            del options[name]
    options.update(_further(option))
    from ftbert.finetune import finetune as train_model

    result = train_model(train=train, dev=dev, pretrained=pretrained, output=output, **options)
    typer.echo(
        "%s: epoch %d, accuracy %.2f%%, macro-F1 %.2f%% on the dev rows."
        % (result.output, result.best_epoch, 100 * result.metrics["accuracy"], 100 * result.metrics["macro_f1"])
    )
    _say_whether_interrupted(result.interrupted, "the best epoch so far")


def pretrain(
    text: str = typer.Option(..., help="One document or sentence a line; or TSV, CSV, JSON lines with a text column."),
    output: str = typer.Option(..., "--output", "-o", help="The model folder to write, for finetune --pretrained."),
    pretrained: Optional[str] = typer.Option(None, help="A model folder to go on from; left out: a new model."),
    vocab: Optional[str] = typer.Option(None, help="A vocab.txt for a new model; left out: built from the text."),
    text_column: str = typer.Option("text", help="Of a table: the column or key that holds the text."),
    epochs: int = typer.Option(10, help="Passes over the text."),
    batch_size: int = typer.Option(64, help="Rows to an update."),
    accumulation: int = _ACCUMULATION,
    learning_rate: float = typer.Option(5e-4, help="Peak of the rate; 1e-4 suits a BERT-base."),
    warmup: float = _WARMUP,
    masked_share: float = typer.Option(0.15, help="Share of the pieces that are asked for."),
    whole_word: bool = typer.Option(False, help="All pieces of a word are asked for, or none."),
    max_length: int = typer.Option(128, help="Longest row in tokens; longer texts become several rows."),
    dev_fraction: float = typer.Option(0.02, help="Share of the texts held out to measure on."),
    save_steps: int = typer.Option(1000, help="Updates after which the state is kept, besides every epoch's end."),
    seed: int = _SEED,
    device: str = _DEVICE,
    devices: int = _DEVICES,
    threads: int = _THREADS,
    mixed_precision: Optional[str] = _MIXED,
    xla: bool = _XLA,
    precision: str = _PRECISION,
    config: Optional[str] = typer.Option(None, help="Of a new model: JSON of sizes, or a file of it."),
    vocab_size: int = typer.Option(8000, help="Pieces in a vocabulary that is built."),
    lower_case: bool = typer.Option(True, help="Of a new model: whether texts are lower-cased."),
    resume: bool = _RESUME,
    option: Optional[List[str]] = typer.Option(None, help="Any other option of ftbert.pretrain as name=JSON."),
) -> None:
    """Train an encoder on plain text, to fine-tune it after. A run cut off goes on when called again."""
    options = _options(locals(), ("text", "output", "pretrained", "vocab"))
    options.update(_further(option))
    from ftbert.pretrain import pretrain as train_encoder

    result = train_encoder(text=text, output=output, pretrained=pretrained, vocab=vocab, **options)
    measured = "nothing was held out"
    if result.metrics:
        measured = "loss %.4f, %.2f%% of the hidden pieces of the held-out texts right" % (
            result.metrics["loss"],
            100 * result.metrics["accuracy"],
        )
    typer.echo("%s: %d updates; %s." % (result.output, result.history[-1]["step"], measured))
    _say_whether_interrupted(result.interrupted, "what was kept last")


def _say_whether_interrupted(interrupted: bool, saved: str) -> None:
    if interrupted:
        typer.echo("Interrupted: this is %s. The same command goes on from there." % saved, err=True)


def _options(given: Dict[str, Any], others: Sequence[str]) -> Dict[str, Any]:
    """A command's parameters but for `others` and --option, as the function of the same name takes them."""
    options = {name: value for name, value in given.items() if name not in others and name != "option"}
    if options["config"] is not None:
        options["config"] = _json("--config", options["config"])
    return options


def _further(items: Optional[List[str]]) -> Dict[str, Any]:
    """What --option gave."""
    options: Dict[str, Any] = {}
    for item in items or []:
        name, equals, value = item.partition("=")
        if not equals:
            raise ConfigError("--option: expected name=value, got %r." % item)
        options[name] = _json("--option " + name, value)
    return options


def _json(what: str, text: str) -> Any:
    """A JSON value, or the contents of the file of that name."""
    try:
        if text.endswith(".json"):
            with open(text, "r", encoding="utf-8") as file:
                return json.load(file)
        return json.loads(text)
    except (OSError, ValueError) as error:
        raise ConfigError("%s: expected JSON, got %r: %s" % (what, text, error)) from error
