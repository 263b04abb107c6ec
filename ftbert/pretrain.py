"""From plain text to a pretrained encoder that `ftbert.finetune` starts from: masked-language-model pretraining."""

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np

from ftbert._ops import Weight
from ftbert.callable_module import make_callable
from ftbert.checkpoint import ModelFolder, save_model_folder
from ftbert.checkpoint.convert import PRETRAINING_HEADS
from ftbert.config import BertConfig
from ftbert.errors import CheckpointError, ConfigError
from ftbert.tokenization import Tokenizer
from ftbert.training.corpus import hold_out, read_corpus, rows_of
from ftbert.training.masking import Masker
from ftbert.training.plan import (
    add_pretrained,
    check_max_length,
    check_output,
    load_pretrained,
    scratch_config,
    without_precision,
)
from ftbert.training.pretraining_options import PretrainingOptions, make_pretraining_options
from ftbert.training.run_folder import RunFolder, write_text

__all__ = ["PretrainResult", "pretrain"]

_MOST_HELD_OUT = 2000
_UNKNOWN_RATE = 0.02


class PretrainResult(NamedTuple):
    """What pretraining came to.

    Attributes:
        output: the model folder, for `ftbert.finetune(pretrained=...)`.
        metrics: loss, accuracy and perplexity of the hidden pieces of the held-out texts; {} where none were held out.
        history: one record for each time that the state was kept.
        notices: what was found and decided.
        interrupted: by Ctrl-C; what was kept before it was saved.
        tokens_per_second: trained on, 0 if nothing was left to do.
        run_folder: metrics.jsonl and TensorBoard's files.
    """

    output: str
    metrics: Dict[str, float]
    history: List[Dict[str, Any]]
    notices: List[str]
    interrupted: bool
    tokens_per_second: float
    run_folder: str


class _Plan(NamedTuple):
    options: PretrainingOptions
    train: List[str]
    dev: List[str]
    tokenizer: Tokenizer
    config: BertConfig
    pretrained: Optional[ModelFolder]
    notices: List[str]


def _prepare(text: Any, pretrained: Optional[str], vocab: Optional[str], options: PretrainingOptions) -> _Plan:
    """Reads and checks everything; no TensorFlow is needed."""
    corpus = read_corpus(text, options.format, options.text_column)
    train, dev = hold_out(corpus.texts, options.dev_fraction, _MOST_HELD_OUT, options.seed)
    notices = ["%s: %d texts to train on, %d held out." % (corpus.source, len(train), len(dev))]
    if corpus.empty:
        notices.append("%d empty lines were passed over." % corpus.empty)
    folder = None
    if pretrained is not None:
        if vocab is not None or options.config is not None:
            raise ConfigError("vocab, config: expected without pretrained, whose folder has both.")
        folder, tokenizer = load_pretrained(pretrained)
        config = folder.config
    else:
        if vocab is not None:
            tokenizer = Tokenizer.from_vocab(vocab, options.lower_case)
        else:
            from ftbert.training.vocabulary import build_tokenizer

            tokenizer = build_tokenizer(train, options.vocab_size, options.lower_case)
            notices.append("A vocabulary of %d pieces was built from the text." % tokenizer.vocab_size)
        config = scratch_config(options.config, options.max_length, tokenizer.vocab_size)
    check_max_length(options.max_length, config)
    return _Plan(options, train, dev, tokenizer, config, folder, notices)


def _fingerprint(plan: _Plan, version: str, devices: int) -> str:
    digest = hashlib.sha256()
    parts: List[Any] = ["pretrain", without_precision(plan.options.recipe()), plan.config.to_dict(), version, devices]
    parts += [plan.tokenizer.settings(), plan.tokenizer.vocab, plan.train, plan.dev]
    if plan.pretrained is not None:
        add_pretrained(plan.pretrained, parts, digest)
    digest.update(json.dumps(parts, ensure_ascii=True, sort_keys=True).encode("ascii"))
    return digest.hexdigest()


def _old_head(folder: ModelFolder) -> Iterator[Weight]:
    """The masked-language-model head that a pretrained checkpoint of google's or Hugging Face's form may hold."""
    names = set(folder.reader.names())
    for google, other, turned in PRETRAINING_HEADS:
        stored = other if folder.kind == "huggingface" else google
        if google.startswith("cls/predictions/") and stored in names:
            is_brain = folder.reader.dtype(stored) == "bfloat16"
            array = folder.reader.read(stored)
            yield Weight(google, array, turned and folder.kind == "huggingface", is_brain)


def _start(graph: Any, plan: _Plan, run: RunFolder) -> None:
    """Gives the graph the weights to begin with, or to go on with."""
    if run.progress["state"] is not None:
        missing = graph.restore(run.weights("state"))
        if missing:
            raise CheckpointError("%s: the state lacks %s." % (run.path, ", ".join(missing[:8])))
    elif plan.pretrained is not None:
        graph.assign(plan.pretrained.weights())
        missing = [name for name in graph.assign(_old_head(plan.pretrained)) if name.startswith("cls/")]
        plan.notices.append(
            "The pretrained model has no whole head of pretraining: what is missing was made new."
            if missing
            else "The pretrained model's head of pretraining is trained on."
        )


def pretrain(
    text: Any = None,
    output: Optional[str] = None,
    pretrained: Optional[str] = None,
    vocab: Optional[str] = None,
    **options: Any,
) -> PretrainResult:
    """Trains an encoder to say hidden pieces of plain text, and writes it for `ftbert.finetune(pretrained=...)`.

        ftbert.pretrain("sentences.txt", output="models/base")
        ftbert.finetune("train.tsv", "dev.tsv", pretrained="models/base", output="models/intents")

    The task is google-research/bert's masked language model (Devlin et al. 2018) without next-sentence prediction, so
    nothing trains a pooler: the folder has none unless `pretrained` had one, which then is copied as it was. The
    variables are google's, cls/predictions/... among them. Masks are drawn anew in every epoch.

    The folder `<output>.training` keeps the state and metrics.jsonl; a run killed at any moment goes on when called
    again and ends with the same weights. Ctrl-C saves what was kept last. All of the text is held in memory, about 4
    bytes a piece.

    Args:
        text: a file of one document or sentence a line, a table with a text column (.tsv, .csv, .jsonl), or a list.
        output: where the model folder goes; one that ftbert wrote is replaced.
        pretrained: a model folder to go on from; None: a new model.
        vocab: a vocab.txt for a new model; None: one is built from the text.
        **options: see `ftbert.training.pretraining_options.PretrainingOptions`.

    Raises:
        ConfigError: an option is unknown or out of range, or an unfinished run of other settings stands in the way.
        InputError: the text cannot be read, or there is none.
        CheckpointError: the pretrained folder is not one, or does not fit.
        UnavailableError: the device or precision asked for is not there.
        FtbertError: the loss became infinite or not a number.
    """
    output = check_output(output)
    checked = make_pretraining_options(options)
    if text is None:
        raise ConfigError("text: expected a path or a list of strings, got None.")
    plan = _prepare(text, pretrained, vocab, checked)
    masker = Masker(plan.tokenizer, checked.masked_share, checked.whole_word)
    # TensorFlow is imported only when all that can be checked without it was checked.
    from ftbert.training.machine import find_machine, tensorflow_version

    machine = find_machine(checked.device, checked.threads, checked.mixed_precision, checked.xla, checked.devices)
    if machine.notice:
        plan.notices.append(machine.notice)
    version = tensorflow_version()
    run = RunFolder(
        output + ".training", _fingerprint(plan, version, len(machine.devices)), checked.resume, counter="step"
    )
    with contextlib.closing(run):
        return _run(plan, masker, machine, version, run, output)


def _encoded(plan: _Plan, texts: List[str]) -> Tuple[Any, float]:
    from ftbert.training.batches import EncodedSet

    rows, unknown = rows_of(plan.tokenizer, texts, plan.options.max_length)
    return EncodedSet(rows, np.zeros(len(rows.row_splits) - 1, np.int32)), unknown


def _run(plan: _Plan, masker: Masker, machine: Any, version: str, run: RunFolder, output: str) -> PretrainResult:
    from ftbert.training.pretraining import PretrainingGraph, PretrainingOutcome, pretrain_loop
    from ftbert.training.trainer import updates_per_epoch
    from ftbert.training.updates import Schedule

    options, config = plan.options, plan.config
    train_set, unknown = _encoded(plan, plan.train)
    dev_set = _encoded(plan, plan.dev)[0] if plan.dev else None
    plan.notices.append(
        "%d rows, %d tokens, %.2f%% of the pieces [UNK]."
        % (len(train_set.lengths), train_set.lengths.sum(), 100 * unknown)
    )
    if unknown > _UNKNOWN_RATE:
        plan.notices.append("Much of it is [UNK]: the vocabulary does not fit this text, or lower_case is wrong.")
    trained_config = config
    if options.dropout is not None:
        trained_config = dataclasses.replace(
            config, hidden_dropout_prob=options.dropout, attention_probs_dropout_prob=options.dropout
        )
    total = updates_per_epoch(len(train_set.lengths), options.batch_size) * options.epochs
    schedule = Schedule(
        options.learning_rate,
        total,
        int(round(total * options.warmup)),
        options.weight_decay,
        options.clip_norm,
        bias_correction=options.bias_correction,
    )
    outcome = PretrainingOutcome(False, 0.0)
    if run.progress["step"] < total:
        graph = PretrainingGraph(trained_config, schedule, machine, options.seed, options.accumulation)
        try:
            _start(graph, plan, run)
            if options.progress:
                print("\n".join(plan.notices), file=sys.stderr)
            outcome = pretrain_loop(graph, train_set, dev_set, masker, options, run)
        finally:
            graph.close()
    last = run.progress["history"][-1]
    metrics = {key: last[key] for key in ("loss", "accuracy", "perplexity") if key in last}
    training = {
        "task": "masked language model",
        "metrics": metrics,
        "steps": run.progress["step"],
        "texts": len(plan.train),
        "tokens": int(train_set.lengths.sum()),
        "from": "scratch" if plan.pretrained is None else os.path.basename(os.path.abspath(plan.pretrained.path)),
        "tensorflow": version,
        "recipe": options.recipe(),
    }
    has_pooler = plan.pretrained is not None and plan.pretrained.has_pooler
    save_model_folder(
        output,
        config,
        _weights(plan, run),
        plan.tokenizer,
        max_length=options.max_length,
        extra={"training": training},
        has_pooler=has_pooler,
        pretraining_head=True,
    )
    write_text(os.path.join(output, "README.md"), _card(plan, training))
    return PretrainResult(
        output,
        metrics,
        run.progress["history"],
        plan.notices,
        outcome.interrupted,
        outcome.tokens_per_second,
        run.path,
    )


def _weights(plan: _Plan, run: RunFolder) -> Iterator[Weight]:
    for weight in run.final_weights("state", plan.options.precision):
        yield weight
    if plan.pretrained is not None and plan.pretrained.has_pooler:
        for weight in plan.pretrained.weights():
            if weight.name.startswith("bert/pooler/"):
                yield weight


def _card(plan: _Plan, training: Dict[str, Any]) -> str:
    lines = [
        "# A pretrained BERT encoder",
        "",
        "Trained with ftbert on the masked-language-model task; from %s. Start a classifier from it:"
        % training["from"],
        "",
        '    ftbert.finetune(train, dev, pretrained="<this folder>", output="...")',
        "",
    ]
    if training["metrics"]:
        lines += ["On the held-out texts:", ""]
        lines += ["- %s: %.4f" % item for item in sorted(training["metrics"].items())]
        lines.append("")
    lines += ["- " + notice for notice in plan.notices]
    lines += ["", "## Recipe", "", "- steps: %d" % training["steps"]]
    lines += ["- %s: %s" % (name, value) for name, value in sorted(training["recipe"].items()) if value is not None]
    lines += ["", "TensorFlow %s, Python %s." % (training["tensorflow"], sys.version.split()[0])]
    return "\n".join(lines) + "\n"


make_callable(__name__)
