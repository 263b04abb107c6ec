"""BERT's variables in plain TensorFlow: their names and shapes, how they are made, how a checkpoint fills them."""

import collections
import zlib
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Tuple

import numpy as np
from tensorflow.compat import v1 as tf

from ftbert.config import BertConfig
from ftbert.errors import CheckpointError

__all__ = [
    "VariableSpec",
    "assign_weights",
    "create_variables",
    "layer_prefix",
    "masked_lm_specs",
    "variable_specs",
]

# Weights are fed in lots of this size: a run per variable costs seconds, all in one costs the model's size again.
_FEED_BYTES = 256 << 20


class VariableSpec(NamedTuple):
    """One variable of the model: its shape and "normal" | "zeros" | "ones" for how a new one starts."""

    shape: Tuple[int, ...]
    initializer: str


def layer_prefix(layer: int) -> str:
    """How the names of the variables of encoder layer `layer` (from 0) begin."""
    return "bert/encoder/layer_%d/" % layer


def _dense_specs(prefix: str, inputs: int, outputs: int) -> List[Tuple[str, VariableSpec]]:
    return [
        (prefix + "/kernel", VariableSpec((inputs, outputs), "normal")),
        (prefix + "/bias", VariableSpec((outputs,), "zeros")),
    ]


def _norm_specs(prefix: str, size: int) -> List[Tuple[str, VariableSpec]]:
    return [
        (prefix + "/LayerNorm/beta", VariableSpec((size,), "zeros")),
        (prefix + "/LayerNorm/gamma", VariableSpec((size,), "ones")),
    ]


def variable_specs(
    config: BertConfig, num_labels: Optional[int] = None, has_pooler: bool = True
) -> "collections.OrderedDict[str, VariableSpec]":
    """Every variable of the model by google-research/bert's name, in the order of the computation.

    Args:
        config: the encoder's sizes.
        num_labels: C for a classifier; None leaves output_weights (C, H) and output_bias (C,) out.
        has_pooler: whether bert/pooler/dense is there.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    base = "bert/embeddings"
    specs = [
        (base + "/word_embeddings", VariableSpec((config.vocab_size, hidden), "normal")),
        (base + "/token_type_embeddings", VariableSpec((config.type_vocab_size, hidden), "normal")),
        (base + "/position_embeddings", VariableSpec((config.max_position_embeddings, hidden), "normal")),
    ]
    specs += _norm_specs(base, hidden)
    for layer in range(config.num_hidden_layers):
        prefix = layer_prefix(layer)
        for part in ("query", "key", "value"):
            specs += _dense_specs(prefix + "attention/self/" + part, hidden, hidden)
        specs += _dense_specs(prefix + "attention/output/dense", hidden, hidden)
        specs += _norm_specs(prefix + "attention/output", hidden)
        specs += _dense_specs(prefix + "intermediate/dense", hidden, inner)
        specs += _dense_specs(prefix + "output/dense", inner, hidden)
        specs += _norm_specs(prefix + "output", hidden)
    if has_pooler:
        specs += _dense_specs("bert/pooler/dense", hidden, hidden)
    if num_labels is not None:
        specs.append(("output_weights", VariableSpec((num_labels, hidden), "normal")))
        specs.append(("output_bias", VariableSpec((num_labels,), "zeros")))
    return collections.OrderedDict(specs)


def masked_lm_specs(config: BertConfig) -> "collections.OrderedDict[str, VariableSpec]":
    """The variables of google-research/bert's masked-language-model head; its output table is the word embeddings."""
    hidden, base = config.hidden_size, "cls/predictions"
    specs = [(base + "/output_bias", VariableSpec((config.vocab_size,), "zeros"))]
    specs += _dense_specs(base + "/transform/dense", hidden, hidden)
    specs += _norm_specs(base + "/transform", hidden)
    return collections.OrderedDict(specs)


def create_variables(
    specs: "collections.OrderedDict[str, VariableSpec]",
    initializer_range: float = 0.02,
    trainable: bool = True,
    scope: Optional[str] = None,
    seed: Optional[int] = None,
) -> "collections.OrderedDict[str, Any]":
    """The float32 variables of `specs` in the current graph and variable scope (whose reuse policy holds).

    Args:
        specs: as `variable_specs` gives them.
        initializer_range: standard deviation of the "normal" ones.
        trainable: whether optimizers see them.
        scope: takes the place of "bert" in the graph's names.
        seed: with it a variable's first values depend on (seed, name) and the graph's seed alone, not on what else the
            graph holds.

    Returns:
        name in `specs` -> variable.
    """

    def initializer(name: str, kind: str) -> Any:
        if kind == "normal":
            own = None if seed is None else (seed + zlib.crc32(name.encode("utf-8"))) % (1 << 31)
            return tf.truncated_normal_initializer(stddev=initializer_range, seed=own)
        return tf.zeros_initializer() if kind == "zeros" else tf.ones_initializer()

    return collections.OrderedDict(
        (
            name,
            tf.get_variable(
                (scope + name[len("bert") :]) if scope and name.startswith("bert/") else name,
                list(spec.shape),
                tf.float32,
                initializer=initializer(name, spec.initializer),
                trainable=trainable,
                use_resource=True,
            ),
        )
        for name, spec in specs.items()
    )


def assign_weights(session: Any, variables: Dict[str, Any], weights: Iterable[Any]) -> List[str]:
    """Gives variables their values from a checkpoint reader, at most `_FEED_BYTES` and one tensor in memory at a time.

    Args:
        session: a session on the variables' graph.
        variables: name -> variable, as `create_variables` returns them.
        weights: records with .name, .array, .transposed (a kernel stored as (out, in)) and .bfloat16 (uint16 bits).
            float16 and bfloat16 are widened; names that `variables` lacks are passed over.

    Returns:
        The names that got no value, in the order of `variables`; they are not initialized.

    Raises:
        CheckpointError: a shape is not the variable's.
    """
    missing = list(variables)
    feeds: Dict[Any, np.ndarray] = {}
    initializers: List[Any] = []

    def flush() -> None:
        if initializers:
            session.run(initializers, feeds)
        feeds.clear()
        del initializers[:]

    for weight in weights:
        if weight.name not in variables:
            continue
        array = np.asarray(weight.array)
        if weight.bfloat16:
            array = (array.astype(np.uint32) << 16).view(np.float32)
        if weight.transposed and weight.name.endswith("/kernel"):
            array = array.T
        variable = variables[weight.name]
        expected = tuple(variable.shape.as_list())
        if array.shape != expected:
            raise CheckpointError(
                "%s: expected shape %s, got %s. The checkpoint and its configuration disagree."
                % (weight.name, expected, array.shape)
            )
        # Feeding the initial value needs no new operation in the graph, and the random one is never computed.
        feeds[variable.initializer.inputs[1]] = array.astype(np.float32)
        initializers.append(variable.initializer)
        missing.remove(weight.name)
        if sum(value.nbytes for value in feeds.values()) > _FEED_BYTES:
            flush()
    flush()
    return missing
