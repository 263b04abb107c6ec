"""Every knob of fine-tuning in one checked record."""

import dataclasses
import difflib
from typing import Any, Dict, Mapping, Optional, Sequence, Union

from ftbert.config import BertConfig
from ftbert.errors import ConfigError
from ftbert.training.data import check_labels

__all__ = ["CHOICES", "FROM_SCRATCH", "RANGES", "Options", "check_options", "make_options", "recipe_of"]

# What a model without pretraining wants where its user says nothing: it has all to learn from a few thousand rows.
# Chosen on held-out training rows of thucnews and banking77 (docs/finetuning.md, "From scratch").
FROM_SCRATCH: Mapping[str, Any] = {
    "epochs": 20,
    "learning_rate": 5e-4,
    "dropout": 0.3,
    "classifier_dropout": 0.3,
    "word_dropout": 0.2,
    "label_smoothing": 0.1,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """How `ftbert.finetune` trains. The defaults suit a pretrained BERT-base and a few thousand short texts; without a
    pretrained model those of `FROM_SCRATCH` stand in their place.

    Attributes:
        text_column, pair_column, label_column: names in files, dicts and frames.
        format: "tsv", "csv" or "jsonl"; None: by the file's ending.
        multi_label: a row has a set of labels.
        label_separator: between them in one cell.
        labels: the labels in the model's order; None: sorted.
        dev_fraction: held out of train when no dev rows are given.
        epochs: passes over the rows.
        batch_size: rows to an update, over all micro-batches.
        accumulation: micro-batches to an update: memory is that of batch_size / accumulation rows.
        learning_rate: the peak.
        warmup: share of the updates in which the rate rises from 0.
        weight_decay: decoupled, none on biases and layer norms.
        bias_correction: of Adam's moments, as torch and Keras have it; False: as google-research/bert.
        clip_norm: largest global norm of the gradients, None: any.
        dropout: of the encoder; None: as its configuration says.
        classifier_dropout: on the pooled output.
        word_dropout: share of the word pieces hidden from each training step; helps small data from scratch.
        class_weights: None, "balanced" (rows / (C * the label's rows)), or label -> weight.
        label_smoothing: share of each target spread evenly.
        layer_decay: learning rate of a layer over that of the next one above.
        head_factor: learning rate of the new head over `learning_rate`.
        freeze: None; "encoder" (only head and pooler learn); or this many layers from below, embeddings included.
        max_length: longest row in tokens, special ones included.
        truncation: of longer rows: "head", "tail", "head+tail" or "error".
        metric: which one decides what is best: "accuracy", "macro_f1" or "loss".
        patience: epochs without a better one after which training stops; None: never.
        seed: of new weights, order and dropout; two runs on a CPU with equal settings end bitwise equal
            where TensorFlow's pool, made by the process's first session, has as many threads.
        device: "auto", "cpu" or "gpu"; threads: of the CPU, 0: one per core.
        devices: how many share every batch; 0: all the GPUs that TensorFlow sees, or one CPU.
        mixed_precision: None, "bfloat16" or "float16" (GPU).
        xla: compile (GPU).
        precision: of the saved weights, "fp32" or "fp16".
        config: sizes of a model from scratch: a BertConfig, or a dict of its fields without vocab_size.
        vocab_size, lower_case: of the vocabulary built for it.
        resume: go on with a run of the same settings that was cut off; False: begin anew.
        tensorboard, report: whether to write them; progress: a bar on standard error.
    """

    text_column: str = "text"
    pair_column: Optional[str] = None
    label_column: str = "label"
    format: Optional[str] = None
    multi_label: bool = False
    label_separator: str = ","
    labels: Optional[Sequence[str]] = None
    dev_fraction: float = 0.1
    epochs: int = 3
    batch_size: int = 32
    accumulation: int = 1
    learning_rate: float = 5e-5
    warmup: float = 0.1
    weight_decay: float = 0.01
    bias_correction: bool = False
    clip_norm: Optional[float] = 1.0
    dropout: Optional[float] = None
    classifier_dropout: float = 0.1
    word_dropout: float = 0.0
    class_weights: Union[None, str, Mapping[str, float]] = None
    label_smoothing: float = 0.0
    layer_decay: float = 1.0
    head_factor: float = 1.0
    freeze: Union[None, str, int] = None
    max_length: int = 128
    truncation: str = "head"
    metric: str = "accuracy"
    patience: Optional[int] = None
    seed: int = 0
    device: str = "auto"
    devices: int = 0
    threads: int = 0
    mixed_precision: Optional[str] = None
    xla: bool = False
    precision: str = "fp32"
    config: Union[None, BertConfig, Mapping[str, Any]] = None
    vocab_size: int = 8000
    lower_case: bool = True
    resume: bool = True
    tensorboard: bool = True
    report: bool = True
    progress: bool = True

    def recipe(self) -> Dict[str, Any]:
        """What decides the trained weights, for JSON: all but where reports go and which files are read."""
        silent = ("resume", "tensorboard", "report", "progress", "text_column", "label_column", "pair_column", "format")
        return recipe_of(self, silent)


def recipe_of(options: Any, silent: Sequence[str]) -> Dict[str, Any]:
    """The fields of a record of options but those named, with the configuration as a dict."""
    values = {
        field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.name not in silent
    }
    config = options.config
    if config is not None:
        values["config"] = config.to_dict() if isinstance(config, BertConfig) else dict(config)
    return values


# name -> (type, lowest, highest, whether None is allowed); the bounds are part of the range.
RANGES: Dict[str, Any] = {
    "dev_fraction": (float, 0.0, 0.9, False),
    "epochs": (int, 1, 100000, False),
    "batch_size": (int, 1, 1 << 20, False),
    "accumulation": (int, 1, 1 << 20, False),
    "learning_rate": (float, 1e-12, 10.0, False),
    "warmup": (float, 0.0, 1.0, False),
    "weight_decay": (float, 0.0, 10.0, False),
    "clip_norm": (float, 1e-12, 1e12, True),
    "dropout": (float, 0.0, 0.95, True),
    "classifier_dropout": (float, 0.0, 0.95, False),
    "word_dropout": (float, 0.0, 0.95, False),
    "label_smoothing": (float, 0.0, 0.95, False),
    "layer_decay": (float, 1e-3, 1.0, False),
    "head_factor": (float, 1e-3, 1e3, False),
    "max_length": (int, 3, 1 << 20, False),
    "patience": (int, 1, 100000, True),
    "seed": (int, 0, (1 << 31) - 1, False),
    "devices": (int, 0, 64, False),
    "threads": (int, 0, 4096, False),
    "vocab_size": (int, 15, 1 << 24, False),
}

CHOICES: Dict[str, Any] = {
    "truncation": ("head", "tail", "head+tail", "error"),
    "metric": ("accuracy", "macro_f1", "loss"),
    "precision": ("fp32", "fp16"),
    "device": ("auto", "cpu", "gpu"),
    "mixed_precision": (None, "bfloat16", "float16"),
}

_SWITCHES = ("multi_label", "bias_correction", "xla", "lower_case", "resume", "tensorboard", "report", "progress")


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def check_options(
    kind: Any,
    values: Mapping[str, Any],
    ranges: Mapping[str, Any],
    choices: Mapping[str, Any],
    switches: Sequence[str],
) -> Any:
    """A record of `kind`, a dataclass, with these values; what the tables say of other fields is passed over.

    Raises:
        ConfigError: an unknown name (with the nearest known one), a value out of its range, or more micro-batches than
            a batch has rows.
    """
    known = [field.name for field in dataclasses.fields(kind)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ConfigError(
                "%s: no such option.%s Options: %s."
                % (name, " Did you mean %s?" % near[0] if near else "", ", ".join(known))
            )
    options = kind(**values)
    for name, (number, lowest, highest, optional) in ranges.items():
        if name not in known:
            continue
        value = getattr(options, name)
        if value is None and optional:
            continue
        fits = isinstance(value, int) if number is int else isinstance(value, (int, float))
        if isinstance(value, bool) or not fits or not lowest <= value <= highest:
            what = "an integer" if number is int else "a number"
            raise ConfigError("%s: expected %s from %g to %g, got %r." % (name, what, lowest, highest, value))
    for name, allowed in choices.items():
        if name in known and getattr(options, name) not in allowed:
            raise ConfigError("%s: expected one of %s, got %r." % (name, list(allowed), getattr(options, name)))
    for name in switches:
        if not isinstance(getattr(options, name), bool):
            raise ConfigError("%s: expected True or False, got %r." % (name, getattr(options, name)))
    if options.accumulation > options.batch_size:
        raise ConfigError(
            "accumulation: expected at most batch_size (%d) micro-batches, got %d."
            % (options.batch_size, options.accumulation)
        )
    return options


def make_options(values: Mapping[str, Any], from_scratch: bool = False) -> Options:
    """Checks every value; those that are missing are the defaults, of a model from scratch where it is one.

    Raises:
        ConfigError: as `check_options`.
    """
    values = dict(FROM_SCRATCH, **values) if from_scratch else values
    options: Options = check_options(Options, values, RANGES, CHOICES, _SWITCHES)
    weights = options.class_weights
    if weights is not None and weights != "balanced" and not isinstance(weights, Mapping):
        raise ConfigError("class_weights: expected None, 'balanced' or a dict of label to weight, got %r." % (weights,))
    if isinstance(weights, Mapping):
        if not all(_is_positive(value) for value in weights.values()):
            raise ConfigError("class_weights: expected positive numbers, got %r." % (dict(weights),))
        weights = dict(zip(check_labels(weights, "class_weights"), weights.values()))
    labels = None if options.labels is None else check_labels(options.labels)
    freeze = options.freeze
    whole = isinstance(freeze, int) and not isinstance(freeze, bool) and freeze >= 0
    if freeze is not None and freeze != "encoder" and not whole:
        raise ConfigError("freeze: expected None, 'encoder' or a number of layers, got %r." % (freeze,))
    return dataclasses.replace(options, labels=labels, class_weights=weights)
