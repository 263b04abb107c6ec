"""From one model folder to another kind: google-research/bert's, Hugging Face's, ours. Every number stays as it is."""

import json
import os
import shutil
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import numpy as np

from ftbert.checkpoint.model_folder import FORMAT_VERSION, ModelFolder, load_model_folder
from ftbert.checkpoint.names import HUGGING_FACE_PREFIX, huggingface_names, weight_shapes
from ftbert.checkpoint.optimizer_names import optimizer_tensors
from ftbert.checkpoint.safetensors_writer import SafetensorsWriter, TensorSpec
from ftbert.checkpoint.streams import new_folder, transposed
from ftbert.checkpoint.tf_bundle import CheckpointWriter
from ftbert.errors import CheckpointError, ConfigError
from ftbert.paths import PathLike
from ftbert.tokenization import Tokenizer

__all__ = ["FORMATS", "ConvertReport", "convert"]

FORMATS = ("ftbert", "huggingface", "tf1")

# The heads of pretraining: google-research/bert's name, Hugging Face's, whether the one is the other's transpose.
PRETRAINING_HEADS = (
    ("cls/predictions/output_bias", "cls.predictions.bias", False),
    ("cls/predictions/transform/dense/kernel", "cls.predictions.transform.dense.weight", True),
    ("cls/predictions/transform/dense/bias", "cls.predictions.transform.dense.bias", False),
    ("cls/predictions/transform/LayerNorm/gamma", "cls.predictions.transform.LayerNorm.weight", False),
    ("cls/predictions/transform/LayerNorm/beta", "cls.predictions.transform.LayerNorm.bias", False),
    ("cls/seq_relationship/output_weights", "cls.seq_relationship.weight", False),
    ("cls/seq_relationship/output_bias", "cls.seq_relationship.bias", False),
)

# Copies that some Hugging Face checkpoints hold of a tensor they share: the copy, and what it is a copy of.
_SHARED = (
    ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    ("cls.predictions.decoder.bias", "cls.predictions.bias"),
)

# 0, 1, 2 ... as buffers; Hugging Face's code makes them anew.
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")

# What google-research/bert's code has built in and its configuration cannot say.
_GOOGLE_EPSILON = 1e-12

_SPECIAL_TOKENS = (
    ("pad_token", "[PAD]"),
    ("unk_token", "[UNK]"),
    ("cls_token", "[CLS]"),
    ("sep_token", "[SEP]"),
    ("mask_token", "[MASK]"),
)


class _Tensor(NamedTuple):
    """One tensor on its way: its name and shape in google-research/bert's form, and where it stands in the source."""

    name: str
    shape: Tuple[int, ...]
    dtype: str
    stored: str
    transposed: bool


class ConvertReport(NamedTuple):
    """What `convert` did.

    Attributes:
        source, destination: the folders.
        source_format, format: "ftbert", "huggingface" or "tf1".
        tensors: how many were written.
        left_out: tensors of the source that are no weights: optimizer slots, counters, buffers, copies of shared ones.
        changed: what the new format cannot say, so that the model may behave otherwise there; only with strict=False.
        notes: settings of the source that only ftbert has a place for.
    """

    source: str
    destination: str
    source_format: str
    format: str
    tensors: int
    left_out: Tuple[str, ...]
    changed: Tuple[str, ...]
    notes: Tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            "%s (%s) -> %s (%s): %d tensors, bit-equal"
            % (self.source, self.source_format, self.destination, self.format, self.tensors)
        ]
        if self.left_out:
            more = ", ..." if len(self.left_out) > 4 else ""
            lines.append("left out: %d tensors (%s%s)" % (len(self.left_out), ", ".join(self.left_out[:4]), more))
        lines += ["changed: %s" % change for change in self.changed]
        lines += ["not carried over: %s" % note for note in self.notes]
        return "\n".join(lines)


def convert(src: PathLike, dst: PathLike, format: str, strict: bool = True) -> ConvertReport:
    """Writes a model as a folder of another kind. Tensors keep their type and every bit; pretraining heads come along.

    Args:
        src: a model folder (google-research/bert's, run_classifier's output, Hugging Face's or ours).
        dst: a new or empty folder; written whole, or left as it was on any failure.
        format: "tf1" (bert_config.json, vocab.txt, bert_model.ckpt.*: for google-research/bert's code, tf.train.Saver),
            "huggingface" (config.json, model.safetensors, tokenizer files, for transformers) or "ftbert".
        strict: refuse when the new format cannot say what the model needs (only "tf1": the erf form of GELU, another
            norm epsilon, several labels at once). With False the report says what changed.

    Raises:
        CheckpointError: `src` is no whole model, holds tensors that have no place in the new format, or `dst` is taken.
        ConfigError: an unknown format, or `strict` and something that the format cannot say.
    """
    if format not in FORMATS:
        raise ConfigError("format: expected one of %s, got %r." % (", ".join(FORMATS), format))
    model = load_model_folder(src)
    changed = _google_changes(model) if format == "tf1" else []
    if changed and strict:
        raise ConfigError(
            "%s: google-research/bert's format cannot say this: %s. Convert to 'ftbert' or 'huggingface', or pass "
            "strict=False to accept the change." % (src, "; ".join(changed))
        )
    tensors, left_out = _tensors(model)
    tokenizer = Tokenizer.from_folder(model.path)
    with new_folder(dst) as folder:
        if os.path.isfile(os.path.join(model.path, "LICENSE")):
            shutil.copyfile(os.path.join(model.path, "LICENSE"), os.path.join(folder, "LICENSE"))
        tokenizer.save(folder)
        if format == "huggingface":
            _write_huggingface(folder, model, tokenizer, tensors)
        else:
            _write_google(folder, model, tokenizer, tensors, format)
    source_format = "tf1" if model.kind == "google" else model.kind
    notes = [] if format == "ftbert" else _notes(model, format)
    return ConvertReport(
        model.path,
        os.fspath(dst),
        source_format,
        format,
        len(tensors),
        tuple(left_out),
        tuple(changed),
        tuple(notes),
    )


def _google_changes(model: ModelFolder) -> List[str]:
    changes = []
    if model.config.hidden_act == "gelu_erf":
        changes.append("hidden_act 'gelu_erf' becomes 'gelu', which its code computes by the tanh formula")
    if model.config.norm_epsilon != _GOOGLE_EPSILON:
        changes.append("norm_epsilon %g becomes %g" % (model.config.norm_epsilon, _GOOGLE_EPSILON))
    if model.problem_type == "multi_label":
        changes.append("problem_type 'multi_label' becomes one label a text")
    return changes


def _notes(model: ModelFolder, format: str) -> List[str]:
    keys = (
        ("truncation", "precision_checked")
        if format == "huggingface"
        else ("max_length", "truncation", "precision_checked")
    )
    return ["%s = %r" % (key, model.settings[key]) for key in keys if model.settings.get(key)]


def _tensors(model: ModelFolder) -> Tuple[List[_Tensor], List[str]]:
    """Every tensor to write, and the names of those to leave out.

    Raises:
        CheckpointError: a tensor is neither a weight nor known to be none.
    """
    reader = model.reader
    names = reader.names()
    hugging_face = model.kind == "huggingface"
    prefix = "" if "embeddings.word_embeddings.weight" in names else HUGGING_FACE_PREFIX
    tensors = []
    for name, shape in weight_shapes(model.config, model.num_labels, model.has_pooler).items():
        stored, turned = model.place(name)
        tensors.append(_Tensor(name, shape, reader.dtype(stored), stored, turned))
    for google, other, turned in PRETRAINING_HEADS:
        stored = other if hugging_face else google
        old = stored.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        stored = old if stored not in names and old in names else stored
        if stored in names:
            shape = reader.shape(stored)
            turned = turned and hugging_face
            tensors.append(_Tensor(google, shape[::-1] if turned else shape, reader.dtype(stored), stored, turned))
    used = {tensor.stored for tensor in tensors}
    left_out = set(optimizer_tensors(names)) | {
        name for name in names if name in (prefix + buffer for buffer in _BUFFERS)
    }
    for copy, original in _SHARED:
        if copy in names and original in names:
            if not np.array_equal(reader.read(copy), reader.read(original)):
                raise CheckpointError(
                    "%s: expected %s to equal %s, as BERT shares them." % (reader.path, copy, original)
                )
            left_out.add(copy)
    unknown = [name for name in names if name not in used and name not in left_out]
    if unknown:
        raise CheckpointError(
            "%s: no format has a place for %s. Remove what is no weight of BERT first."
            % (reader.path, ", ".join(unknown[:12]) + (", ..." if len(unknown) > 12 else ""))
        )
    wide = [tensor.stored for tensor in tensors if tensor.dtype == "float64"]
    if wide:
        raise CheckpointError(
            "%s: expected float32 or half precision, got float64 in %s." % (reader.path, ", ".join(wide[:8]))
        )
    return tensors, sorted(left_out - used)


def _arrays(
    model: ModelFolder, tensors: List[_Tensor], transpose: Dict[str, bool]
) -> Iterator[Tuple[_Tensor, np.ndarray]]:
    """Each tensor with its values, transposed where it stands otherwise than `transpose` says it should."""
    for tensor in tensors:
        array = model.reader.read(tensor.stored)
        yield tensor, transposed(array) if tensor.transposed != transpose.get(tensor.name, False) else array


def _write_json(path: str, values: Dict[str, Any]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        json.dump(values, file, ensure_ascii=False, indent=2)
        file.write("\n")


def _write_google(folder: str, model: ModelFolder, tokenizer: Tokenizer, tensors: List[_Tensor], format: str) -> None:
    values = model.config.to_dict("ftbert")
    if format == "ftbert":
        settings = {"problem_type": model.problem_type, "max_length": model.max_length, "truncation": model.truncation}
        settings.update(model.settings)
        settings.update({"format": FORMAT_VERSION, "tokenizer": tokenizer.settings()})
        settings.setdefault("precision_checked", {})
        _write_json(os.path.join(folder, "ftbert.json"), settings)
    else:
        values["hidden_act"] = "relu" if model.config.hidden_act == "relu" else "gelu"
        del values["norm_epsilon"]  # its code has none to set
        # Its own code takes this as the flag do_lower_case; here the next reader finds it.
        _write_json(os.path.join(folder, "tokenizer_config.json"), _tokenizer_config(model, tokenizer))
    _write_json(os.path.join(folder, "bert_config.json"), values)
    if model.labels:
        with open(os.path.join(folder, "labels.txt"), "w", encoding="utf-8", newline="\n") as file:
            file.write("".join(label + "\n" for label in model.labels))
    with CheckpointWriter(os.path.join(folder, "model.ckpt" if format == "ftbert" else "bert_model.ckpt")) as writer:
        for tensor, array in _arrays(model, tensors, {}):
            writer.add(tensor.name, array, bfloat16=tensor.dtype == "bfloat16")
            del array


def _architecture(model: ModelFolder, tensors: List[_Tensor]) -> str:
    if model.num_labels:
        return "BertForSequenceClassification"
    heads = {tensor.name.split("/")[1] for tensor in tensors if tensor.name.startswith("cls/")}
    if "seq_relationship" in heads:
        return "BertForPreTraining" if "predictions" in heads else "BertForNextSentencePrediction"
    return "BertForMaskedLM" if heads else "BertModel"


def _write_huggingface(folder: str, model: ModelFolder, tokenizer: Tokenizer, tensors: List[_Tensor]) -> None:
    architecture = _architecture(model, tensors)
    places = huggingface_names(
        model.config.num_hidden_layers, "" if architecture == "BertModel" else HUGGING_FACE_PREFIX
    )
    names = {google: place.name for google, place in places.items()}
    transpose = {google: place.transposed for google, place in places.items()}
    for google, other, is_transpose in PRETRAINING_HEADS:
        names[google], transpose[google] = other, is_transpose
    values = model.config.to_dict("huggingface")
    types = {tensor.dtype for tensor in tensors}
    values.update(
        architectures=[architecture], torch_dtype=types.pop() if len(types) == 1 else "float32", pad_token_id=0
    )
    if model.num_labels:
        values["id2label"] = {str(index): label for index, label in enumerate(model.labels)}
        values["label2id"] = {label: index for index, label in enumerate(model.labels)}
        values["problem_type"] = model.problem_type + "_classification"
    _write_json(os.path.join(folder, "config.json"), values)
    _write_json(os.path.join(folder, "tokenizer_config.json"), _tokenizer_config(model, tokenizer))
    _write_json(os.path.join(folder, "tokenizer.json"), _tokenizer_json(tokenizer))
    specs = [
        TensorSpec(names[tensor.name], tensor.dtype, tensor.shape[::-1] if transpose[tensor.name] else tensor.shape)
        for tensor in tensors
    ]
    with SafetensorsWriter(os.path.join(folder, "model.safetensors"), specs) as writer:
        for tensor, array in _arrays(model, tensors, transpose):
            writer.add(names[tensor.name], array, bfloat16=tensor.dtype == "bfloat16")
            del array


def _tokenizer_config(model: ModelFolder, tokenizer: Tokenizer) -> Dict[str, Any]:
    values: Dict[str, Any] = dict(_SPECIAL_TOKENS)
    values.update(
        tokenizer_class="BertTokenizer",
        do_lower_case=tokenizer.lower_case,
        strip_accents=tokenizer.strip_accents,
        tokenize_chinese_chars=tokenizer.chinese_chars,
        model_max_length=model.max_length or model.config.max_position_embeddings,
    )
    return values


def _tokenizer_json(tokenizer: Tokenizer) -> Dict[str, Any]:
    """The file of the `tokenizers` library; it alone can say how long a word may be."""
    ids = {piece: index for index, piece in enumerate(tokenizer.vocab)}
    special = [token for _, token in _SPECIAL_TOKENS if token in ids]
    first, last = ({"id": token, "ids": [ids[token]], "tokens": [token]} for token in ("[CLS]", "[SEP]"))

    def piece(kind: str, name: str, segment: int) -> Dict[str, Any]:
        return {kind: {"id": name, "type_id": segment}}

    single = [piece("SpecialToken", "[CLS]", 0), piece("Sequence", "A", 0), piece("SpecialToken", "[SEP]", 0)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": ids[token],
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token in special
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": tokenizer.chinese_chars,
            "strip_accents": tokenizer.strip_accents,
            "lowercase": tokenizer.lower_case,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": single + [piece("Sequence", "B", 1), piece("SpecialToken", "[SEP]", 1)],
            "special_tokens": {"[CLS]": first, "[SEP]": last},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": tokenizer.max_word_chars,
            "vocab": ids,
        },
    }
