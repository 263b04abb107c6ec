"""BERT in numpy, fp64, one row at a time: an oracle that shares no line with the engine."""

import math

import numpy as np

from ftbert._ops import Weight

_erf = np.vectorize(math.erf)


def random_weights(config, num_labels=0, has_pooler=True, seed=0, scale=0.05):
    """Weights of a model by google-research/bert's names, fp32."""
    random = np.random.RandomState(seed)
    hidden, inner = config.hidden_size, config.intermediate_size
    weights = {}

    def add(name, *shape, **options):
        values = random.standard_normal(shape) * options.get("scale", scale) + options.get("mean", 0.0)
        weights[name] = values.astype(np.float32)

    def dense(name, inputs, outputs):
        add(name + "/kernel", inputs, outputs)
        add(name + "/bias", outputs)

    def norm(name):
        add(name + "/LayerNorm/gamma", hidden, mean=1.0, scale=0.1)
        add(name + "/LayerNorm/beta", hidden)

    add("bert/embeddings/position_embeddings", config.max_position_embeddings, hidden)
    add("bert/embeddings/token_type_embeddings", config.type_vocab_size, hidden)
    add("bert/embeddings/word_embeddings", config.vocab_size, hidden, scale=0.2)
    norm("bert/embeddings")
    for i in range(config.num_hidden_layers):
        layer = "bert/encoder/layer_%d/" % i
        for part in ("query", "key", "value"):
            dense(layer + "attention/self/" + part, hidden, hidden)
        dense(layer + "attention/output/dense", hidden, hidden)
        norm(layer + "attention/output")
        dense(layer + "intermediate/dense", hidden, inner)
        dense(layer + "output/dense", inner, hidden)
        norm(layer + "output")
    if has_pooler:
        dense("bert/pooler/dense", hidden, hidden)
    if num_labels:
        add("output_weights", num_labels, hidden)
        add("output_bias", num_labels)
    return weights


def as_weights(arrays):
    """What `Engine.build` takes."""
    return [Weight(name, array) for name, array in arrays.items()]


def _norm(x, weights, name, epsilon):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * weights[name + "/LayerNorm/gamma"] + weights[
        name + "/LayerNorm/beta"
    ]


def _activate(x, act):
    if act == "relu":
        return np.maximum(x, 0)
    if act == "gelu_erf":
        return 0.5 * x * (1 + _erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def run_row(config, weights, token_ids, segment_ids):
    """One row of S tokens -> {"token_states" (S, H), "first_states" (H,), "pooled" (H,), "logits" (C,)}, fp64."""
    weights = {name: array.astype(np.float64) for name, array in weights.items()}
    heads, size, length = config.num_attention_heads, config.head_size, len(token_ids)

    def dense(x, name):
        return x @ weights[name + "/kernel"] + weights[name + "/bias"]

    x = (
        weights["bert/embeddings/word_embeddings"][token_ids]
        + weights["bert/embeddings/position_embeddings"][:length]
        + weights["bert/embeddings/token_type_embeddings"][segment_ids]
    )
    x = _norm(x, weights, "bert/embeddings", config.norm_epsilon)
    for i in range(config.num_hidden_layers):
        layer = "bert/encoder/layer_%d/" % i
        q, k, v = (
            dense(x, layer + "attention/self/" + part).reshape(length, heads, size).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(size)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        context = (scores / scores.sum(-1, keepdims=True)) @ v
        context = context.transpose(1, 0, 2).reshape(length, heads * size)
        x = _norm(
            x + dense(context, layer + "attention/output/dense"),
            weights,
            layer + "attention/output",
            config.norm_epsilon,
        )
        inner = _activate(dense(x, layer + "intermediate/dense"), config.hidden_act)
        x = _norm(x + dense(inner, layer + "output/dense"), weights, layer + "output", config.norm_epsilon)
    result = {"token_states": x, "first_states": x[0]}
    if "bert/pooler/dense/kernel" in weights:
        result["pooled"] = np.tanh(dense(x[0], "bert/pooler/dense"))
        if "output_weights" in weights:
            result["logits"] = result["pooled"] @ weights["output_weights"].T + weights["output_bias"]
    return result


def run_batch(config, weights, batch, want):
    """The same for a packed batch, in the engine's shapes."""
    rows = [
        run_row(config, weights, batch.token_ids[a:b], batch.segment_ids[a:b])
        for a, b in zip(batch.row_splits, batch.row_splits[1:])
    ]
    return {
        name: np.concatenate([row[name] for row in rows])
        if name == "token_states"
        else np.stack([row[name] for row in rows])
        for name in want
    }
