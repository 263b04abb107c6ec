"""From labelled texts and a pretrained checkpoint (or none) to a model folder that `FastBertClassifier.load` serves."""

import dataclasses
import hashlib
import json
import os
import sys
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ftbert._ops import Weight
from ftbert.callable_module import make_callable
from ftbert.checkpoint import ModelFolder, load_model_folder, save_model_folder
from ftbert.config import BertConfig
from ftbert.errors import CheckpointError, ConfigError
from ftbert.tokenization import Tokenizer
from ftbert.training.data import (
    Columns,
    Dataset,
    label_matrix,
    load_dataset,
    order_labels,
    processor_datasets,
    split_dev,
)
from ftbert.training.examine import Examination, examine
from ftbert.training.options import Options, make_options
from ftbert.training.run_folder import RunFolder, write_text

__all__ = ["FinetuneResult", "Plan", "finetune", "prepare"]

# A model from scratch, where `config` does not say otherwise: about 1.2 million weights beside the embeddings.
_SMALL = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 128,
    "type_vocab_size": 2,
}


class FinetuneResult(NamedTuple):
    """What training came to.

    Attributes:
        output: the model folder.
        labels: in the model's order.
        metrics: of the epoch that was kept, on the dev rows: accuracy, macro_f1, micro_f1, loss.
        best_epoch: which one that was, from 1.
        history: one record per epoch.
        examination: what was found in the data.
        notices: what was decided about the pretrained model's head and the like.
        interrupted: by Ctrl-C; the best epoch before it was kept.
        stopped_early: by patience.
        examples_per_second: rows trained on per second, 0 if all epochs were there already.
        report: the HTML report, or None.
        run_folder: metrics.jsonl, TensorBoard's files and the report.
    """

    output: str
    labels: List[str]
    metrics: Dict[str, float]
    best_epoch: int
    history: List[Dict[str, Any]]
    examination: Examination
    notices: List[str]
    interrupted: bool
    stopped_early: bool
    examples_per_second: float
    report: Optional[str]
    run_folder: str


class Plan(NamedTuple):
    """Everything decided before the first step.

    Attributes:
        options: checked.
        train, dev: rows; labels: in the model's order; tokenizer; config: sizes, with the dropout the model came with.
        pretrained: the folder, or None from scratch; keeps_head: whether its classifier goes on.
        examination, notices: see `FinetuneResult`.
    """

    options: Options
    train: Dataset
    dev: Dataset
    labels: List[str]
    tokenizer: Tokenizer
    config: BertConfig
    pretrained: Optional[ModelFolder]
    keeps_head: bool
    examination: Examination
    notices: List[str]


def _datasets(
    train: Any, dev: Any, processor: Any, data_dir: Optional[str], options: Options
) -> Tuple[Dataset, Dataset, List[str]]:
    columns = Columns(
        options.text_column,
        options.pair_column,
        options.label_column,
        options.label_separator,
        options.multi_label,
        options.format,
    )
    if processor is not None:
        if train is not None or dev is not None:
            raise ConfigError("processor: expected without train and dev, since it gives both.")
        train_rows, dev_rows, labels = processor_datasets(processor, data_dir, columns)
        return train_rows, dev_rows, order_labels(train_rows, options.labels or labels)
    if train is None:
        raise ConfigError("train: expected a path, a list of rows or a pandas frame, got None.")
    train_rows = load_dataset(train, columns, options.labels, "train")
    labels = order_labels(train_rows, options.labels)
    if dev is None:
        train_rows, dev_rows = split_dev(train_rows, options.dev_fraction, options.seed)
    else:
        dev_rows = load_dataset(dev, columns, options.labels, "dev")
    pairs = {name: not all(isinstance(text, str) for text in data.texts)
             for name, data in (("train", train_rows), ("dev", dev_rows))}  # fmt: skip
    if pairs["train"] != pairs["dev"]:
        raise ConfigError("Expected pairs in both train and dev or in neither, found them in %s alone."
                          % ("train" if pairs["train"] else "dev"))  # fmt: skip
    return train_rows, dev_rows, labels


def _head_notice(folder: ModelFolder, labels: Sequence[str], problem_type: str) -> Tuple[bool, str]:
    """(whether the pretrained classifier goes on, what to say about it)."""
    if not folder.num_labels:
        return False, "The pretrained model has no classifier: a new one with %d labels was made." % len(labels)
    if folder.problem_type != problem_type:
        why = "it is %s, and this training %s" % (folder.problem_type, problem_type)
    elif folder.labels == list(labels):
        return True, "The pretrained model has a classifier with the same %d labels: it is trained on." % len(labels)
    elif folder.num_labels != len(labels):
        why = "it has %d labels, and the data %d" % (folder.num_labels, len(labels))
    elif sorted(folder.labels) == sorted(labels):
        why = "its labels are the same in another order (pass labels=%r to train it on)" % (folder.labels,)
    else:
        other = next((mine, theirs) for mine, theirs in zip(labels, folder.labels) if mine != theirs)
        why = "its labels are others (%r where the data has %r)" % (other[1], other[0])
    return False, "The pretrained model's classifier is replaced by a new one: %s." % why


def _scratch_config(options: Options, vocab_size: int) -> BertConfig:
    if isinstance(options.config, BertConfig):
        return dataclasses.replace(options.config, vocab_size=vocab_size)
    sizes = dict(_SMALL, vocab_size=vocab_size)
    sizes.update(options.config or {})
    if sizes["vocab_size"] != vocab_size:
        raise ConfigError(
            "config: leave vocab_size out; it follows from the vocabulary. Bound it with the option vocab_size."
        )
    sizes["max_position_embeddings"] = max(int(sizes["max_position_embeddings"]), options.max_length)
    return BertConfig.from_dict(sizes, "ftbert")


def prepare(
    train: Any = None,
    dev: Any = None,
    pretrained: Optional[str] = None,
    processor: Any = None,
    data_dir: Optional[str] = None,
    **options: Any,
) -> Plan:
    """Reads and examines everything and trains nothing; arguments as `finetune`. No TensorFlow is needed.

    Raises:
        ConfigError, InputError, CheckpointError: as `finetune`.
    """
    checked = make_options(options)
    train_rows, dev_rows, labels = _datasets(train, dev, processor, data_dir, checked)
    problem_type = "multi_label" if checked.multi_label else "single_label"
    notices: List[str] = []
    folder, keeps_head = None, False
    if pretrained is None:
        from ftbert.training.vocabulary import build_tokenizer

        tokenizer = build_tokenizer(train_rows.texts, checked.vocab_size, checked.lower_case)
        config = _scratch_config(checked, tokenizer.vocab_size)
        notices.append("From scratch: a vocabulary of %d pieces was built from the train rows." % tokenizer.vocab_size)
    else:
        if checked.config is not None:
            raise ConfigError("config: expected without pretrained, whose folder has one.")
        folder = load_model_folder(pretrained)
        config = folder.config
        tokenizer = Tokenizer.from_folder(folder.path)
        if tokenizer.vocab_size > config.vocab_size:
            raise CheckpointError(
                "%s: the vocabulary has %d pieces, the model embeds %d: they do not belong together."
                % (folder.path, tokenizer.vocab_size, config.vocab_size)
            )
        keeps_head, notice = _head_notice(folder, labels, problem_type)
        notices.append(notice)
        if not folder.has_pooler:
            notices.append("The pretrained model has no pooler: a new one was made.")
    if checked.max_length > config.max_position_embeddings:
        raise ConfigError(
            "max_length: the model has %d positions, got %d." % (config.max_position_embeddings, checked.max_length)
        )
    if isinstance(checked.freeze, int) and checked.freeze > config.num_hidden_layers:
        raise ConfigError("freeze: the model has %d layers, got %d." % (config.num_hidden_layers, checked.freeze))
    if isinstance(checked.class_weights, Mapping):
        unknown = sorted(set(checked.class_weights) - set(labels))
        if unknown:
            raise ConfigError("class_weights: %s is none of the labels." % ", ".join(map(repr, unknown)))
    examination = examine(train_rows, dev_rows, labels, tokenizer, checked.max_length, checked.truncation)
    return Plan(checked, train_rows, dev_rows, labels, tokenizer, config, folder, keeps_head, examination, notices)


def _class_weights(plan: Plan) -> Optional[np.ndarray]:
    wish, counts = plan.options.class_weights, plan.examination.label_counts
    if wish is None:
        return None
    if isinstance(wish, Mapping):
        return np.array([float(wish.get(label, 1.0)) for label in plan.labels], np.float32)
    rows, present = len(plan.train.texts), sum(1 for label in plan.labels if counts[label])
    if plan.options.multi_label:
        # Positives of a label weigh as much as its negatives.
        return np.array([(rows - counts[name]) / max(counts[name], 1) or 1.0 for name in plan.labels], np.float32)
    return np.array([rows / (present * counts[name]) if counts[name] else 1.0 for name in plan.labels], np.float32)


def _fingerprint(plan: Plan, version: str) -> str:
    """Of all that decides the weights: a run is taken up again only where it would end the same."""
    digest = hashlib.sha256()
    parts: List[Any] = [plan.options.recipe(), plan.config.to_dict(), plan.labels, version, plan.tokenizer.settings()]
    if plan.pretrained is not None:
        # Weights are told apart by a part that every training changes.
        reader = plan.pretrained.reader
        parts.append([plan.pretrained.kind, reader.names()])
        small = [name for name in reader.names() if int(np.prod(reader.shape(name))) <= 1 << 16]
        for name in small:
            digest.update(np.ascontiguousarray(reader.read(name)).tobytes())
    for data in (plan.train, plan.dev):
        parts.append([data.texts, data.labels])
    parts.append(plan.tokenizer.vocab)
    digest.update(json.dumps(parts, ensure_ascii=True, sort_keys=True).encode("ascii"))
    return digest.hexdigest()


def _final_weights(run: RunFolder, precision: str) -> Iterator[Weight]:
    for weight in run.weights("best_folder"):
        if precision == "fp32":
            yield weight
            continue
        with np.errstate(over="ignore"):
            half = weight.array.astype(np.float16)
        if not np.isfinite(half).all():
            raise CheckpointError(
                "%s: a value of %g does not fit float16. Save with precision='fp32': the trained epochs "
                "are kept, nothing is trained again." % (weight.name, float(np.abs(weight.array).max()))
            )
        yield weight._replace(array=half)


def finetune(
    train: Any = None,
    dev: Any = None,
    pretrained: Optional[str] = None,
    output: Optional[str] = None,
    processor: Any = None,
    data_dir: Optional[str] = None,
    **options: Any,
) -> FinetuneResult:
    """Trains a classifier and writes its model folder.

        result = ftbert.finetune("train.tsv", "dev.tsv", pretrained="bert-base-chinese", output="models/intents")

    The folder `<output>.training` beside the output keeps each finished epoch, metrics.jsonl, TensorBoard's files and
    the report. A run killed at any moment goes on from the last finished epoch when called again, and ends with the
    same weights. Ctrl-C keeps the best epoch so far.

    Args:
        train: a path (.tsv, .csv, .jsonl), a list of (text, label), (text, pair, label) or dicts, or a pandas frame.
        dev: likewise, to measure on; None: `dev_fraction` of train is held out.
        pretrained: a model folder (google-research/bert's, Hugging Face's or ours); None: from scratch.
        output: where the model folder goes; one that ftbert wrote is replaced.
        processor: instead of train and dev, an object like google-research/bert's DataProcessor.
        data_dir: handed to it.
        **options: see `ftbert.training.options.Options`.

    Raises:
        ConfigError: an option is unknown or out of range, or an unfinished run of other settings stands in the way.
        InputError: rows cannot be used; all are named by line, nothing was trained.
        CheckpointError: the pretrained folder is not one, or does not fit.
        UnavailableError: the device or precision asked for is not there.
        FtbertError: the loss became infinite or not a number.
    """
    if output is None:
        raise ConfigError("output: expected a path for the model folder, got None.")
    output = os.path.abspath(os.fspath(output))
    if os.path.isdir(output) and os.listdir(output) and not os.path.exists(os.path.join(output, "ftbert.json")):
        raise ConfigError(
            "%s exists and is no folder that ftbert wrote: it would be replaced. Choose another." % output
        )
    plan = prepare(train, dev, pretrained, processor, data_dir, **options)
    # TensorFlow is imported only when all that can be checked without it was checked.
    from ftbert.training.machine import find_machine, tensorflow_version

    machine = find_machine(plan.options.device, plan.options.threads, plan.options.mixed_precision, plan.options.xla)
    if machine.notice:
        plan.notices.append(machine.notice)
    version = tensorflow_version()
    run = RunFolder(output + ".training", _fingerprint(plan, version), plan.options.resume)
    if plan.options.progress:
        print("\n".join(plan.examination.lines() + plan.notices), file=sys.stderr)
    return _run(plan, machine, version, run, output)


def _encoded(plan: Plan, data: Dataset) -> Any:
    from ftbert.training.batches import EncodedSet

    rows = plan.tokenizer.encode(data.texts, plan.options.max_length, plan.options.truncation).batch
    return EncodedSet(rows, label_matrix(data, plan.labels, plan.options.multi_label))


def _hidden_piece(tokenizer: Tokenizer) -> int:
    return tokenizer.vocab.index("[MASK]") if "[MASK]" in tokenizer.vocab else tokenizer.unk_id


def _build_graph(plan: Plan, machine: Any, run: RunFolder, rows: int) -> Any:
    from ftbert.modeling import assign_weights
    from ftbert.training.graph import Schedule, TrainingGraph
    from ftbert.training.trainer import updates_per_epoch

    options, config = plan.options, plan.config
    if options.dropout is not None:
        config = dataclasses.replace(
            config, hidden_dropout_prob=options.dropout, attention_probs_dropout_prob=options.dropout
        )
    total = updates_per_epoch(rows, options.batch_size) * options.epochs
    frozen = config.num_hidden_layers if options.freeze == "encoder" else options.freeze
    graph = TrainingGraph(
        config,
        len(plan.labels),
        options.multi_label,
        Schedule(
            options.learning_rate,
            total,
            int(round(total * options.warmup)),
            options.weight_decay,
            options.clip_norm,
            options.layer_decay,
            1.0 if plan.keeps_head else options.head_factor,
            -1 if frozen is None else int(frozen),
            options.bias_correction,
        ),
        machine,
        options.seed,
        _class_weights(plan),
        options.label_smoothing,
        options.classifier_dropout,
        options.accumulation,
        options.word_dropout,
        _hidden_piece(plan.tokenizer),
        (plan.tokenizer.cls_id, plan.tokenizer.sep_id),
    )
    if run.progress["state"] is not None:
        missing = assign_weights(graph.session, graph.state(), run.weights("state"))
        if missing:
            raise CheckpointError("%s: the state lacks %s." % (run.path, ", ".join(missing[:8])))
    elif plan.pretrained is not None:
        head = ("output_weights", "output_bias")
        graph.assign(weight for weight in plan.pretrained.weights() if plan.keeps_head or weight.name not in head)
    return graph


def _run(plan: Plan, machine: Any, version: str, run: RunFolder, output: str) -> FinetuneResult:
    from ftbert.training.model_card import write_model_card
    from ftbert.training.report import write_report
    from ftbert.training.trainer import Outcome, evaluate, train

    train_set, dev_set = _encoded(plan, plan.train), _encoded(plan, plan.dev)
    graph = _build_graph(plan, machine, run, len(plan.train.texts))
    try:
        outcome = Outcome(False, False, 0.0, 0.0)
        if not run.progress.get("over"):
            outcome = train(graph, train_set, dev_set, plan.labels, plan.options, run)
        graph.assign(run.weights("best_folder"))
        logits = evaluate(graph, dev_set)
    finally:
        graph.close()
    best = run.progress["best"]["epoch"]
    metrics = {key: run.progress["history"][best - 1][key] for key in ("accuracy", "macro_f1", "micro_f1", "loss")}
    report = run.file("report.html") if plan.options.report else None
    if report is not None:
        write_report(report, plan, run, logits, dev_set.labels, os.path.basename(output))
    training = {
        "metrics": metrics,
        "best_epoch": best,
        "epochs": run.progress["epoch"],
        "train_rows": len(plan.train.texts),
        "dev_rows": len(plan.dev.texts),
        "from": "scratch" if plan.pretrained is None else os.path.basename(os.path.abspath(plan.pretrained.path)),
        "tensorflow": version,
        "recipe": plan.options.recipe(),
    }
    save_model_folder(
        output,
        plan.config,
        _final_weights(run, plan.options.precision),
        plan.tokenizer,
        plan.labels,
        "multi_label" if plan.options.multi_label else "single_label",
        plan.options.max_length,
        plan.options.truncation,
        extra={"training": training},
    )
    write_model_card(os.path.join(output, "README.md"), plan, training, logits, dev_set.labels)
    if report is not None:
        with open(report, "r", encoding="utf-8") as file:
            write_text(os.path.join(output, "report.html"), file.read())
    if not outcome.interrupted:
        run.finish()
    return FinetuneResult(
        output,
        plan.labels,
        metrics,
        best,
        run.progress["history"],
        plan.examination,
        plan.notices,
        outcome.interrupted,
        outcome.stopped_early,
        outcome.examples_per_second,
        report,
        run.path,
    )


make_callable(__name__)
