"""From labelled texts and a pretrained checkpoint (or none) to a model folder that `FastBertClassifier.load` serves."""

import contextlib
import dataclasses
import os
import sys
from typing import Any, Dict, List, NamedTuple, Optional

from ftbert.callable_module import make_callable
from ftbert.checkpoint import save_model_folder
from ftbert.errors import CheckpointError
from ftbert.tokenization import Tokenizer
from ftbert.training.data import Dataset, label_matrix
from ftbert.training.examine import Examination
from ftbert.training.plan import Plan, check_output, class_weights, fingerprint, prepare
from ftbert.training.run_folder import RunFolder, write_text

__all__ = ["FinetuneResult", "Plan", "finetune", "prepare"]


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

        result = ftbert.finetune("train.tsv", "dev.tsv", pretrained="models/bert-base-chinese", output="models/intents")

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
    output = check_output(output)
    plan = prepare(train, dev, pretrained, processor, data_dir, **options)
    # TensorFlow is imported only when all that can be checked without it was checked.
    from ftbert.training.machine import find_machine, tensorflow_version

    wish = plan.options
    machine = find_machine(wish.device, wish.threads, wish.mixed_precision, wish.xla, wish.devices)
    if machine.notice:
        plan.notices.append(machine.notice)
    version = tensorflow_version()
    run = RunFolder(output + ".training", fingerprint(plan, version, len(machine.devices)), wish.resume)
    with contextlib.closing(run):
        if wish.progress:
            print("\n".join(plan.examination.lines() + plan.notices), file=sys.stderr)
        return _run(plan, machine, version, run, output)


def _encoded(plan: Plan, data: Dataset) -> Any:
    from ftbert.training.batches import EncodedSet

    rows = plan.tokenizer.encode(data.texts, plan.options.max_length, plan.options.truncation).batch
    return EncodedSet(rows, label_matrix(data, plan.labels, plan.options.multi_label))


def _hidden_piece(tokenizer: Tokenizer) -> int:
    return tokenizer.vocab.index("[MASK]") if "[MASK]" in tokenizer.vocab else tokenizer.unk_id


def _build_graph(plan: Plan, machine: Any, run: RunFolder, rows: int) -> Any:
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
        class_weights(plan),
        options.label_smoothing,
        options.classifier_dropout,
        options.accumulation,
        options.word_dropout,
        _hidden_piece(plan.tokenizer),
        (plan.tokenizer.cls_id, plan.tokenizer.sep_id),
    )
    if run.progress["state"] is not None:
        missing = graph.restore(run.weights("state"))
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
        run.final_weights("best_folder", plan.options.precision),
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
