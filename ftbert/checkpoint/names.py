"""Names of a BERT model's tensors, as data: google-research/bert's, Hugging Face's, and how one becomes the other."""

import collections
import re
from typing import Dict, Iterable, Optional, Set, Tuple

from ftbert.config import BertConfig

__all__ = [
    "HUGGING_FACE_PREFIX",
    "Source",
    "huggingface_names",
    "is_ignored_google",
    "is_ignored_huggingface",
    "pretraining_shapes",
    "weight_shapes",
]

HUGGING_FACE_PREFIX = "bert."

# google-research/bert's name <-> Hugging Face's, without its "bert." prefix. "{i}" stands for the layer. Kernels are
# stored (in, out) by the one and (out, in) by the other; all else has the same shape.
_OUTSIDE = (
    ("bert/embeddings/position_embeddings", "embeddings.position_embeddings.weight"),
    ("bert/embeddings/token_type_embeddings", "embeddings.token_type_embeddings.weight"),
    ("bert/embeddings/word_embeddings", "embeddings.word_embeddings.weight"),
    ("bert/embeddings/LayerNorm/gamma", "embeddings.LayerNorm.weight"),
    ("bert/embeddings/LayerNorm/beta", "embeddings.LayerNorm.bias"),
)
_LAYER = (
    ("attention/self/query/kernel", "attention.self.query.weight"),
    ("attention/self/query/bias", "attention.self.query.bias"),
    ("attention/self/key/kernel", "attention.self.key.weight"),
    ("attention/self/key/bias", "attention.self.key.bias"),
    ("attention/self/value/kernel", "attention.self.value.weight"),
    ("attention/self/value/bias", "attention.self.value.bias"),
    ("attention/output/dense/kernel", "attention.output.dense.weight"),
    ("attention/output/dense/bias", "attention.output.dense.bias"),
    ("attention/output/LayerNorm/gamma", "attention.output.LayerNorm.weight"),
    ("attention/output/LayerNorm/beta", "attention.output.LayerNorm.bias"),
    ("intermediate/dense/kernel", "intermediate.dense.weight"),
    ("intermediate/dense/bias", "intermediate.dense.bias"),
    ("output/dense/kernel", "output.dense.weight"),
    ("output/dense/bias", "output.dense.bias"),
    ("output/LayerNorm/gamma", "output.LayerNorm.weight"),
    ("output/LayerNorm/beta", "output.LayerNorm.bias"),
)
_POOLER = (
    ("bert/pooler/dense/kernel", "pooler.dense.weight"),
    ("bert/pooler/dense/bias", "pooler.dense.bias"),
)
_CLASSIFIER = (
    ("output_weights", "classifier.weight"),
    ("output_bias", "classifier.bias"),
)

# Layer norm's names before 2019, still found in converted checkpoints.
OLD_HUGGING_FACE_ENDINGS = ((".LayerNorm.weight", ".LayerNorm.gamma"), (".LayerNorm.bias", ".LayerNorm.beta"))

# Heads of pretraining, and buffers that are no weights.
_IGNORED_HUGGING_FACE = re.compile(r"(bert\.)?embeddings\.(position_ids|token_type_ids)$|cls\.")
_IGNORED_GOOGLE = re.compile(r"cls/(predictions|seq_relationship)/")

# Scalars of training loops. A slot of an optimizer is called <weight>/<slot>, see is_ignored_google.
_TRAINING_SCALARS = re.compile(
    r"(.*/)?(global_step|beta1_power|beta2_power|learning_rate|loss_scale|current_loss_scale|good_steps|"
    r"num_good_steps|step|save_counter|_CHECKPOINTABLE_OBJECT_GRAPH)(:0)?$"
)


class Source(collections.namedtuple("Source", ["name", "transposed"])):
    """Where a weight stands in a Hugging Face checkpoint: its name, and whether it is a kernel stored (out, in)."""


def _google_names(num_layers: int) -> Iterable[Tuple[str, str]]:
    """(google's name, Hugging Face's without prefix) of the encoder's weights."""
    for pair in _OUTSIDE:
        yield pair
    for layer in range(num_layers):
        for google, hugging_face in _LAYER:
            yield "bert/encoder/layer_%d/%s" % (layer, google), "encoder.layer.%d.%s" % (layer, hugging_face)


def weight_shapes(
    config: BertConfig, num_labels: int = 0, has_pooler: bool = True
) -> "collections.OrderedDict[str, Tuple[int, ...]]":
    """google-research/bert's name -> shape, kernels (in, out), of every weight of a model.

    Args:
        config: the encoder's sizes.
        num_labels: C; 0: no classifier.
        has_pooler: whether bert/pooler/dense is there.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    special = {
        "bert/embeddings/word_embeddings": (config.vocab_size, hidden),
        "bert/embeddings/position_embeddings": (config.max_position_embeddings, hidden),
        "bert/embeddings/token_type_embeddings": (config.type_vocab_size, hidden),
    }
    shapes: collections.OrderedDict[str, Tuple[int, ...]] = collections.OrderedDict()
    for name, _ in _google_names(config.num_hidden_layers):
        if name in special:
            shapes[name] = special[name]
        elif name.endswith("intermediate/dense/kernel"):
            shapes[name] = (hidden, inner)
        elif name.endswith("intermediate/dense/bias"):
            shapes[name] = (inner,)
        elif name.endswith("/kernel"):
            shapes[name] = (hidden, hidden) if "/attention/" in name else (inner, hidden)
        else:
            shapes[name] = (hidden,)
    if has_pooler:
        shapes["bert/pooler/dense/kernel"] = (hidden, hidden)
        shapes["bert/pooler/dense/bias"] = (hidden,)
    if num_labels:
        shapes["output_weights"] = (num_labels, hidden)
        shapes["output_bias"] = (num_labels,)
    return shapes


def pretraining_shapes(config: BertConfig) -> "collections.OrderedDict[str, Tuple[int, ...]]":
    """Name -> shape of google-research/bert's masked-language-model head; its output table is the word embeddings."""
    hidden, base = config.hidden_size, "cls/predictions/"
    shapes: collections.OrderedDict[str, Tuple[int, ...]] = collections.OrderedDict()
    shapes[base + "output_bias"] = (config.vocab_size,)
    shapes[base + "transform/dense/kernel"] = (hidden, hidden)
    for name in ("dense/bias", "LayerNorm/beta", "LayerNorm/gamma"):
        shapes[base + "transform/" + name] = (hidden,)
    return shapes


def huggingface_names(
    num_layers: int, prefix: str = HUGGING_FACE_PREFIX, classifier_prefix: str = ""
) -> "collections.OrderedDict[str, Source]":
    """google-research/bert's name -> where the weight stands in a Hugging Face checkpoint.

    Args:
        num_layers: L.
        prefix: before the encoder's and the pooler's names: "bert." in a classifier, "" in a bare encoder.
        classifier_prefix: before the classifier's.
    """
    names: collections.OrderedDict[str, Source] = collections.OrderedDict()
    for google, other in list(_google_names(num_layers)) + list(_POOLER):
        names[google] = Source(prefix + other, google.endswith("/kernel"))
    for google, other in _CLASSIFIER:
        names[google] = Source(classifier_prefix + other, False)
    return names


def is_ignored_huggingface(name: str) -> bool:
    """Whether a tensor of a Hugging Face checkpoint is no part of a classifier and may be passed over."""
    return bool(_IGNORED_HUGGING_FACE.match(name))


def is_ignored_google(name: str, weights: Set[str]) -> bool:
    """Whether a TensorFlow checkpoint's variable is a pretraining head or a training loop's own: to be passed over.

    Args:
        name: the variable.
        weights: names of the checkpoint's variables; <weight>/adam_m and the like are the optimizer's slots.
    """
    if _IGNORED_GOOGLE.match(name) or _TRAINING_SCALARS.match(name):
        return True
    return "/" in name and name.rsplit("/", 1)[0] in weights


def find_old_name(name: str, present: Dict[str, object]) -> Optional[str]:
    """The name of a layer norm's weight as older Hugging Face checkpoints spell it, if that one is present."""
    for new, old in OLD_HUGGING_FACE_ENDINGS:
        if name.endswith(new) and name[: -len(new)] + old in present:
            return name[: -len(new)] + old
    return None
