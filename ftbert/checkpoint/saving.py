"""A model folder, written: beside its place, then put there in one step."""

import ctypes
import json
import os
import shutil
from typing import Any, Dict, Iterable, Optional, Sequence

import numpy as np

from ftbert._ops import Weight
from ftbert.checkpoint.model_folder import FORMAT_VERSION
from ftbert.checkpoint.names import pretraining_shapes, weight_shapes
from ftbert.checkpoint.tf_bundle import CheckpointWriter
from ftbert.config import BertConfig
from ftbert.errors import CheckpointError, ConfigError
from ftbert.paths import PathLike

__all__ = ["replace_folder", "save_model_folder"]

CHECKPOINT_NAME = "model.ckpt"

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def _exchange(first: str, second: str) -> bool:
    """Swaps two folders in one step, where the system can (Linux 3.15, glibc 2.28)."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0


def replace_folder(finished: str, target: str) -> None:
    """Gives a finished folder its name; what had that name is removed after, so that a crash never leaves none."""
    if not os.path.lexists(target):
        os.rename(finished, target)
        return
    if not _exchange(finished, target):
        old = finished + ".old"
        os.rename(target, old)
        os.rename(finished, target)
        finished = old
    shutil.rmtree(finished)


def _write_json(path: str, values: Dict[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(values, file, ensure_ascii=False, indent=2)
        file.write("\n")


def _check_target(path: str) -> None:
    if not os.path.lexists(path):
        return
    if not os.path.isdir(path) or (os.listdir(path) and not os.path.exists(os.path.join(path, "ftbert.json"))):
        raise CheckpointError(
            "%s exists and is no folder that ftbert saved: it would be replaced as a whole. Choose another path." % path
        )


def save_model_folder(
    path: PathLike,
    config: BertConfig,
    weights: Iterable[Weight],
    tokenizer: Any,
    labels: Sequence[str] = (),
    problem_type: str = "single_label",
    max_length: Optional[int] = None,
    truncation: Optional[str] = None,
    precision_checked: Optional[Dict[str, str]] = None,
    extra: Optional[Dict[str, Any]] = None,
    has_pooler: bool = True,
    pretraining_head: bool = False,
) -> None:
    """Writes our model folder: bert_config.json, vocab.txt, labels.txt, model.ckpt.*, ftbert.json.

    Args:
        path: the folder, or a link to it; one that ftbert saved before is replaced in one step, any other non-empty one
            is refused.
        config: the encoder's sizes.
        weights: all of them, in any order and any of fp32, fp16, bf16; taken one at a time and kept in their type.
        tokenizer: has `save(folder)` and `settings()`, as `ftbert.tokenization.Tokenizer`.
        labels: C names; none for an encoder without a classifier.
        problem_type: "single_label" or "multi_label".
        max_length: the longest row to use by default; None: as many as there are positions.
        truncation: what to do with longer texts by default.
        precision_checked: device ("cpu", "cuda") -> a lower precision whose answers were checked.
        extra: further keys of ftbert.json (where the model comes from, its measures).
        has_pooler: whether bert/pooler/dense comes.
        pretraining_head: whether cls/predictions/... come, with which pretraining can go on.

    Raises:
        CheckpointError: the path is taken, a weight is missing, unknown or misshapen, or a label cannot be a line.
    """
    # Through links: a link to a folder goes on naming it.
    path = os.path.realpath(os.fspath(path))
    _check_target(path)
    if problem_type not in ("single_label", "multi_label"):
        raise ConfigError("problem_type: expected 'single_label' or 'multi_label', got %r." % (problem_type,))
    for label in labels:
        if not isinstance(label, str) or len(label.splitlines()) != 1 or list(labels).count(label) > 1:
            raise CheckpointError("labels: expected different, non-empty strings of one line, got %r." % (label,))
    settings = {
        "format": FORMAT_VERSION,
        "problem_type": problem_type,
        "max_length": max_length,
        "truncation": truncation,
        "precision_checked": dict(precision_checked or {}),
        "tokenizer": tokenizer.settings(),
    }
    for key, value in (extra or {}).items():
        if key in settings:
            raise ConfigError("extra: %r is a key of ftbert.json's own." % key)
        settings[key] = value
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    except OSError as error:
        raise CheckpointError("%s: expected a place to write to: %s" % (path, error)) from error
    temporary = os.path.join(os.path.dirname(path), ".%s.writing-%d" % (os.path.basename(path), os.getpid()))
    shutil.rmtree(temporary, ignore_errors=True)
    os.mkdir(temporary)
    try:
        _write_json(os.path.join(temporary, "bert_config.json"), config.to_dict("ftbert"))
        tokenizer.save(temporary)
        if labels:
            with open(os.path.join(temporary, "labels.txt"), "w", encoding="utf-8", newline="\n") as file:
                file.write("".join(label + "\n" for label in labels))
        shapes = weight_shapes(config, len(labels), has_pooler)
        if pretraining_head:
            shapes.update(pretraining_shapes(config))
        _write_weights(os.path.join(temporary, CHECKPOINT_NAME), shapes, weights)
        _write_json(os.path.join(temporary, "ftbert.json"), settings)
        replace_folder(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_weights(prefix: str, expected: Dict[str, Any], weights: Iterable[Weight]) -> None:
    missing = dict(expected)
    with CheckpointWriter(prefix) as writer:
        for weight in weights:
            array = weight.array.T if weight.transposed and weight.name.endswith("/kernel") else weight.array
            if missing.pop(weight.name, None) is None:
                raise CheckpointError("%s: not expected, or given twice." % weight.name)
            if tuple(array.shape) != expected[weight.name]:
                raise CheckpointError(
                    "%s: expected shape %s, got %s." % (weight.name, list(expected[weight.name]), list(array.shape))
                )
            writer.add(weight.name, np.ascontiguousarray(array), bfloat16=weight.bfloat16)
        if missing:
            raise CheckpointError("Expected also the weights %s." % ", ".join(sorted(missing)[:12]))
