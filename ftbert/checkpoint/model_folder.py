"""A model folder, read: google-research/bert's, run_classifier's output, Hugging Face's, or ours.

Whatever the source, the caller sees one thing: a configuration, labels, and weights under google-research/bert's names,
each checked by name and shape before the first is read.
"""

import os
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import numpy as np

from ftbert._ops import PRECISIONS, Weight
from ftbert.checkpoint.names import (
    HUGGING_FACE_PREFIX,
    Source,
    find_old_name,
    huggingface_names,
    is_ignored_google,
    is_ignored_huggingface,
    weight_shapes,
)
from ftbert.checkpoint.readers import CheckpointReader, open_checkpoint
from ftbert.config import BertConfig
from ftbert.errors import CheckpointError
from ftbert.json_files import read_json_object
from ftbert.paths import PathLike, as_path, hint_for

__all__ = ["FORMAT_VERSION", "ModelFolder", "load_model_folder"]

FORMAT_VERSION = 1

_SHOWN = 12  # names of one kind in an error message

_PROBLEM_TYPES = {
    None: "single_label",
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
}


class _Place(NamedTuple):
    """Where a weight stands in its checkpoint."""

    name: str
    shape: Tuple[int, ...]  # as stored
    transposed: bool


class ModelFolder:
    """What a model folder holds. The weights stay on disk until `weights` is walked.

    Attributes:
        path: the folder.
        kind: "google", "huggingface" or "ftbert".
        config: the encoder's sizes.
        labels: C names, [] for an encoder without a classifier.
        problem_type: "single_label" (softmax) or "multi_label" (sigmoid).
        has_pooler: whether bert/pooler/dense is there.
        max_length: the longest row the folder recommends, special tokens included, or None.
        truncation: what the folder recommends for longer texts, or None.
        precision_checked: device ("cpu", "cuda") -> the precision lower than the default that was checked on real
            texts.
        reader: the checkpoint.
        settings: ftbert.json as it stands, {} elsewhere.
    """

    def __init__(
        self,
        path: str,
        kind: str,
        config: BertConfig,
        reader: CheckpointReader,
        places: Dict[str, _Place],
        labels: List[str],
        problem_type: str,
        settings: Dict[str, Any],
    ) -> None:
        self.path = path
        self.kind = kind
        self.config = config
        self.reader = reader
        self.labels = labels
        self.problem_type = problem_type
        self.has_pooler = "bert/pooler/dense/kernel" in places
        self.max_length = settings.get("max_length")
        self.truncation = settings.get("truncation")
        self.precision_checked: Dict[str, str] = dict(settings.get("precision_checked") or {})
        self.settings = settings
        self._places = places

    @property
    def num_labels(self) -> int:
        """C; 0 without a classifier."""
        return len(self.labels)

    def dtype(self, name: str) -> str:
        """How a weight is stored: "float32", "float16", "bfloat16" ..."""
        return self.reader.dtype(self._places[name].name)

    def place(self, name: str) -> Tuple[str, bool]:
        """Where a weight stands in the checkpoint: its name there, and whether it is a kernel stored (out, in)."""
        place = self._places[name]
        return place.name, place.transposed

    def weights(self) -> Iterator[Weight]:
        """Every weight, read and verified when its turn comes; drop each before taking the next to hold only one."""
        for name, place in self._places.items():
            yield self._read(name, place)

    def _read(self, name: str, place: _Place) -> Weight:
        array = self.reader.read(place.name)
        bfloat16 = self.reader.dtype(place.name) == "bfloat16"
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        return Weight(name, array, place.transposed, bfloat16)

    def summary(self) -> List[Tuple[str, str]]:
        """(what, value) rows for people."""
        config = self.config
        types = sorted({self.dtype(name) for name in self._places})
        count = sum(int(np.prod(place.shape, dtype=np.int64)) for place in self._places.values())
        shown = ", ".join(self.labels[:8]) + (", ..." if self.num_labels > 8 else "")
        return [
            ("folder", self.path),
            ("kind", self.kind),
            ("checkpoint", "%s (%s)" % (self.reader.path, self.reader.format)),
            ("encoder", "%d layers, hidden %d, %d heads of %d, feed-forward %d"
             % (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.head_size,
                config.intermediate_size)),
            ("activation", config.hidden_act),
            ("vocabulary", str(config.vocab_size)),
            ("positions", str(config.max_position_embeddings)),
            ("weights", "%s numbers, %s" % (format(count, ","), " and ".join(types))),
            ("labels", "%d: %s" % (self.num_labels, shown) if self.labels else "none: an encoder without a classifier"),
            ("problem type", self.problem_type),
            ("max length", str(self.max_length or config.max_position_embeddings)),
            ("truncation", self.truncation or "head"),
            ("checked precision", ", ".join(map(": ".join, sorted(self.precision_checked.items()))) or "none"),
        ]  # fmt: skip


def _listed(title: str, lines: List[str]) -> str:
    if not lines:
        return ""
    more = "\n    ... and %d more" % (len(lines) - _SHOWN) if len(lines) > _SHOWN else ""
    return "\n  %s (%d):\n    %s%s" % (title, len(lines), "\n    ".join(lines[:_SHOWN]), more)


def _check(
    reader: CheckpointReader,
    expected: Dict[str, Tuple[int, ...]],
    sources: Dict[str, Source],
    ignored: Any,
    remedy: str,
) -> Dict[str, _Place]:
    """Finds every expected weight; raises one error that lists all that is missing, unexpected or misshapen."""
    present: Dict[str, object] = dict.fromkeys(reader.names())
    places, missing, misshapen = {}, [], []
    used = set()
    for name, shape in expected.items():
        source = sources[name]
        stored = source.name if source.name in present else find_old_name(source.name, present)
        if stored is None:
            missing.append("%s %s" % (source.name, list(shape[::-1] if source.transposed else shape)))
            continue
        used.add(stored)
        wanted = shape[::-1] if source.transposed else shape
        got, dtype = reader.shape(stored), reader.dtype(stored)
        if got != wanted:
            misshapen.append("%s: expected %s, got %s" % (stored, list(wanted), list(got)))
        elif dtype not in ("float32", "float16", "bfloat16", "float64"):
            misshapen.append("%s: expected floating point values, got %s" % (stored, dtype))
        places[name] = _Place(stored, wanted, source.transposed)
    unexpected = [
        "%s %s" % (name, list(reader.shape(name))) for name in sorted(present) if name not in used and not ignored(name)
    ]
    if missing or misshapen or unexpected:
        raise CheckpointError(
            "%s does not fit its configuration.%s%s%s\n  %s"
            % (
                reader.path,
                _listed("missing", missing),
                _listed("misshapen", misshapen),
                _listed("unexpected", unexpected),
                remedy,
            )
        )
    return places


def _default_labels(count: int) -> List[str]:
    return ["LABEL_%d" % index for index in range(count)]


def _read_labels(path: str, count: int) -> List[str]:
    """labels.txt: one label a line."""
    if not os.path.exists(path):
        return _default_labels(count)
    try:
        with open(path, "r", encoding="utf-8-sig") as file:
            labels = file.read().rstrip("\r\n").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError("%s: expected readable UTF-8, one label a line: %s" % (path, error)) from error
    if len(labels) != count or len(set(labels)) != count:
        raise CheckpointError(
            "%s: expected %d different labels, one a line, as output_weights has rows; got %d (%d different)."
            % (path, count, len(labels), len(set(labels)))
        )
    return labels


def _check_precision(path: str, checked: Any) -> None:
    if not isinstance(checked, dict) or not all(precision in PRECISIONS for precision in checked.values()):
        raise CheckpointError(
            '%s: precision_checked: expected as `ftbert calibrate` writes it, {"cpu": <one of %s>}, got %r.'
            % (path, ", ".join(PRECISIONS), checked)
        )


def _load_google(folder: str, reader: CheckpointReader, settings: Dict[str, Any], kind: str) -> ModelFolder:
    config_path = os.path.join(folder, "bert_config.json")
    if not os.path.exists(config_path):
        raise CheckpointError(
            "%s: expected bert_config.json beside the checkpoint. run_classifier does not copy it: copy "
            "bert_config.json and vocab.txt from the folder of the pretrained model." % folder
        )
    config = BertConfig.from_json_file(config_path, kind)
    weights = set(reader.names())
    count = 0
    if "output_weights" in weights:
        shape = reader.shape("output_weights")
        count = shape[0] if len(shape) == 2 else 1
    elif "output_bias" in weights:
        raise CheckpointError("%s: has output_bias, but no output_weights: half a classifier." % reader.path)
    has_pooler = bool(count) or any(name.startswith("bert/pooler/") for name in weights)
    expected = weight_shapes(config, count, has_pooler)
    places = _check(
        reader,
        expected,
        {name: Source(name, False) for name in expected},
        lambda name: is_ignored_google(name, weights),
        "Expected google-research/bert's variables for %s." % config_path,
    )
    problem_type = settings.get("problem_type", "single_label")
    if problem_type not in ("single_label", "multi_label"):
        raise CheckpointError(
            "%s: problem_type: expected single_label or multi_label, got %r." % (folder, problem_type)
        )
    labels = _read_labels(os.path.join(folder, "labels.txt"), count) if count else []
    return ModelFolder(folder, kind, config, reader, places, labels, problem_type, settings)


def _huggingface_labels(values: Dict[str, Any], count: int, path: str) -> List[str]:
    id2label = values.get("id2label")
    if not id2label:
        return _default_labels(count)
    try:
        labels = [str(id2label[str(index)]) for index in range(len(id2label))]
    except (KeyError, TypeError) as error:
        raise CheckpointError("%s: id2label: expected the keys 0 to C - 1, got %s." % (path, id2label)) from error
    if len(labels) != count or len(set(labels)) != count:
        raise CheckpointError(
            "%s: id2label: expected %d different labels, as classifier.weight has rows; got %d (%d different)."
            % (path, count, len(labels), len(set(labels)))
        )
    return labels


def _huggingface_problem(values: Dict[str, Any], count: int, path: str) -> str:
    problem = values.get("problem_type")
    if count and (problem == "regression" or (problem is None and count == 1)):
        raise CheckpointError(
            "%s: this model predicts a number, not a label (problem_type %r, %d label). For a score between 0 and 1 "
            'set "problem_type": "multi_label_classification" in it.' % (path, problem, count)
        )
    if problem not in _PROBLEM_TYPES:
        raise CheckpointError(
            "%s: problem_type: expected one of %s, got %r."
            % (path, ", ".join(str(key) for key in _PROBLEM_TYPES if key), problem)
        )
    return _PROBLEM_TYPES[problem]


def _load_huggingface(folder: str, reader: CheckpointReader) -> ModelFolder:
    path = os.path.join(folder, "config.json")
    if not os.path.exists(path):
        raise CheckpointError("%s: expected config.json beside %s." % (folder, os.path.basename(reader.path)))
    values = read_json_object(path)
    try:
        config = BertConfig.from_dict(values, "huggingface")
    except ValueError as error:
        raise CheckpointError("%s: %s" % (path, error)) from error
    for architecture in values.get("architectures") or []:
        if architecture in ("BertForTokenClassification", "BertForQuestionAnswering", "BertForMultipleChoice"):
            raise CheckpointError(
                "%s: %s does not classify texts. Expected BertForSequenceClassification or an encoder."
                % (path, architecture)
            )
    names = set(reader.names())
    embeddings = "embeddings.word_embeddings.weight"
    prefix = "" if embeddings in names else HUGGING_FACE_PREFIX
    shape = reader.shape("classifier.weight") if "classifier.weight" in names else ()
    count = (shape[0] if len(shape) == 2 else 1) if shape else 0
    has_pooler = bool(count) or any(name.startswith(prefix + "pooler.") for name in names)
    expected = weight_shapes(config, count, has_pooler)
    places = _check(
        reader,
        expected,
        huggingface_names(config.num_hidden_layers, prefix),
        is_ignored_huggingface,
        "Expected the tensors of BertForSequenceClassification or BertModel for %s." % path,
    )
    labels = _huggingface_labels(values, count, path) if count else []
    tokenizer = os.path.join(folder, "tokenizer_config.json")
    limit = read_json_object(tokenizer).get("model_max_length") if os.path.exists(tokenizer) else None
    # transformers writes 1e30 for "no limit".
    settings = {"max_length": int(limit)} if limit and limit < config.max_position_embeddings else {}
    return ModelFolder(
        folder, "huggingface", config, reader, places, labels, _huggingface_problem(values, count, path), dict(settings)
    )


def load_model_folder(path: PathLike) -> ModelFolder:
    """Reads a model's folder and checks every weight's name and shape; reads no weight yet.

    Args:
        path: a folder (ours, google-research/bert's or run_classifier's output, Hugging Face's), or a checkpoint in it.

    Raises:
        CheckpointError: not such a folder, or its checkpoint does not fit its configuration; the message lists every
            weight that is missing, unexpected or misshapen.
        ConfigError: the configuration is not that of a BERT that this engine can run.
    """
    path = as_path(path)
    if not os.path.exists(path) and not os.path.exists(path + ".index"):
        raise CheckpointError("%s: there is no such folder or checkpoint.%s" % (path, hint_for(path)))
    folder = path if os.path.isdir(path) else (os.path.dirname(path) or ".")
    ours = os.path.join(folder, "ftbert.json")
    settings = read_json_object(ours) if os.path.exists(ours) else None
    if settings is not None and settings.get("format") != FORMAT_VERSION:
        raise CheckpointError(
            "%s: expected format %d, got %r. This model was saved by another version of ftbert: update."
            % (ours, FORMAT_VERSION, settings.get("format"))
        )
    reader = open_checkpoint(path)
    if settings is not None:
        _check_precision(ours, settings.get("precision_checked") or {})
        return _load_google(folder, reader, settings, "ftbert")
    if reader.format == "safetensors":
        return _load_huggingface(folder, reader)
    return _load_google(folder, reader, {}, "google")
