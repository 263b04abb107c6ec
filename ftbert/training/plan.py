"""What a training run will do: rows, labels, tokenizer and sizes, all read and checked before TensorFlow is touched."""

import dataclasses
import hashlib
import json
import os
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from ftbert.checkpoint import ModelFolder, load_model_folder
from ftbert.config import BertConfig
from ftbert.errors import CheckpointError, ConfigError
from ftbert.tokenization import Tokenizer
from ftbert.training.data import Columns, Dataset, load_dataset, order_labels, processor_datasets, split_dev
from ftbert.training.examine import Examination, examine
from ftbert.training.options import Options, make_options

__all__ = [
    "Plan",
    "add_pretrained",
    "check_max_length",
    "check_output",
    "class_weights",
    "fingerprint",
    "load_pretrained",
    "prepare",
    "scratch_config",
    "without_precision",
]

# A model from scratch, where `config` does not say otherwise: about 1.6 million weights beside the embeddings. With
# BERT's own initializer_range of 0.02 so small a model takes many epochs to start learning.
_SMALL = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "max_position_embeddings": 128,
    "type_vocab_size": 2,
    "initializer_range": 0.05,
}


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


def scratch_config(wish: Union[None, BertConfig, Mapping[str, Any]], max_length: int, vocab_size: int) -> BertConfig:
    """The sizes of a new model: as wished, the rest as of a small one.

    Raises:
        ConfigError: they cannot be, or name another vocab_size.
    """
    if isinstance(wish, BertConfig):
        return dataclasses.replace(wish, vocab_size=vocab_size)
    sizes = dict(_SMALL, vocab_size=vocab_size)
    sizes.update(wish or {})
    if sizes["vocab_size"] != vocab_size:
        raise ConfigError(
            "config: leave vocab_size out; it follows from the vocabulary. Bound it with the option vocab_size."
        )
    sizes["max_position_embeddings"] = max(int(sizes["max_position_embeddings"]), max_length)
    return BertConfig.from_dict(sizes, "ftbert")


def load_pretrained(path: str) -> Tuple[ModelFolder, Tokenizer]:
    """A model to start from, and its tokenizer.

    Raises:
        CheckpointError: there is none, it cannot be read, or its vocabulary is another's.
    """
    if not os.path.exists(path) and not os.path.exists(path + ".index"):
        raise CheckpointError(
            "%s: there is no such folder. `ftbert download` fetches pretrained models: ftbert download "
            "bert-base-chinese models/bert-base-chinese." % path
        )
    folder = load_model_folder(path)
    tokenizer = Tokenizer.from_folder(folder.path)
    if tokenizer.vocab_size > folder.config.vocab_size:
        raise CheckpointError(
            "%s: the vocabulary has %d pieces, the model embeds %d: they do not belong together."
            % (folder.path, tokenizer.vocab_size, folder.config.vocab_size)
        )
    return folder, tokenizer


def check_max_length(max_length: int, config: BertConfig) -> None:
    """Refuses rows longer than the model has positions for."""
    if max_length > config.max_position_embeddings:
        raise ConfigError(
            "max_length: the model has %d positions, got %d." % (config.max_position_embeddings, max_length)
        )


def check_output(output: Any) -> str:
    """The absolute path of the model folder to write.

    Raises:
        ConfigError: there is none, or something stands there that ftbert did not write.
    """
    if output is None:
        raise ConfigError("output: expected a path for the model folder, got None.")
    output = os.path.abspath(os.fspath(output))
    if os.path.exists(output) and not os.path.isdir(output):
        raise ConfigError("%s: expected a place for a model folder, there is a file. Choose another." % output)
    if os.path.isdir(output) and os.listdir(output) and not os.path.exists(os.path.join(output, "ftbert.json")):
        raise ConfigError(
            "%s exists and is no folder that ftbert wrote: it would be replaced. Choose another." % output
        )
    return str(output)


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
    checked = make_options(options, from_scratch=pretrained is None)
    train_rows, dev_rows, labels = _datasets(train, dev, processor, data_dir, checked)
    problem_type = "multi_label" if checked.multi_label else "single_label"
    notices: List[str] = []
    folder, keeps_head = None, False
    if pretrained is None:
        from ftbert.training.vocabulary import build_tokenizer

        tokenizer = build_tokenizer(train_rows.texts, checked.vocab_size, checked.lower_case)
        config = scratch_config(checked.config, checked.max_length, tokenizer.vocab_size)
        notices.append("From scratch: a vocabulary of %d pieces was built from the train rows." % tokenizer.vocab_size)
    else:
        if checked.config is not None:
            raise ConfigError("config: expected without pretrained, whose folder has one.")
        folder, tokenizer = load_pretrained(pretrained)
        config = folder.config
        keeps_head, notice = _head_notice(folder, labels, problem_type)
        notices.append(notice)
        if not folder.has_pooler:
            notices.append("The pretrained model has no pooler: a new one was made.")
    check_max_length(checked.max_length, config)
    if isinstance(checked.freeze, int) and checked.freeze > config.num_hidden_layers:
        raise ConfigError("freeze: the model has %d layers, got %d." % (config.num_hidden_layers, checked.freeze))
    if isinstance(checked.class_weights, Mapping):
        unknown = sorted(set(checked.class_weights) - set(labels))
        if unknown:
            raise ConfigError("class_weights: %s is none of the labels." % ", ".join(map(repr, unknown)))
    examination = examine(train_rows, dev_rows, labels, tokenizer, checked.max_length, checked.truncation)
    return Plan(checked, train_rows, dev_rows, labels, tokenizer, config, folder, keeps_head, examination, notices)


def class_weights(plan: Plan) -> Optional[np.ndarray]:
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


def fingerprint(plan: Plan, version: str, devices: int = 1) -> str:
    """Of all that decides the weights: a run is taken up again only where it would end the same."""
    digest = hashlib.sha256()
    recipe = without_precision(plan.options.recipe())
    parts: List[Any] = [recipe, plan.config.to_dict(), plan.labels, version, plan.tokenizer.settings()]
    if devices > 1:  # they draw dropout each for itself, and sum in another order
        parts.append(devices)
    if plan.pretrained is not None:
        add_pretrained(plan.pretrained, parts, digest)
    for data in (plan.train, plan.dev):
        parts.append([data.texts, data.labels])
    parts.append(plan.tokenizer.vocab)
    digest.update(json.dumps(parts, ensure_ascii=True, sort_keys=True).encode("ascii"))
    return digest.hexdigest()


def without_precision(recipe: Dict[str, Any]) -> Dict[str, Any]:
    """What of a recipe decides the weights that training ends with: all but how they are saved at last."""
    return {name: value for name, value in recipe.items() if name != "precision"}


def add_pretrained(folder: ModelFolder, parts: List[Any], digest: Any) -> None:
    """Adds to a fingerprint what tells a model's weights apart: a part of them that every training changes."""
    reader = folder.reader
    parts.append([folder.kind, reader.names()])
    for name in reader.names():
        if int(np.prod(reader.shape(name))) <= 1 << 16:
            digest.update(np.ascontiguousarray(reader.read(name)).tobytes())
