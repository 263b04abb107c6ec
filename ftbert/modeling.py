"""BERT in plain TensorFlow: the readable twin of the native engine, and the graph that training runs.

Everything here is `tensorflow.compat.v1` graph code, the one dialect that TensorFlow 1.14 to 2.21 share. Variables
carry google-research/bert's names, so its checkpoints, its Saver and its model functions fit.

Shapes: B rows, T tokens in all, S longest row, H hidden, N heads, D = H / N, F feed-forward, L layers, V vocabulary,
C labels. Inside, token states are always (T, H): a padded batch is the case T = B * S, and only attention looks at
rows.
"""

import collections
import math
from typing import Any, Callable, Dict, List, Optional

from tensorflow.compat import v1 as tf

from ftbert.config import BertConfig
from ftbert.errors import ConfigError
from ftbert.variables import VariableSpec, assign_weights, create_variables, layer_prefix, variable_specs

__all__ = [
    "BertConfig",
    "BertModel",
    "VariableSpec",
    "apply_classifier",
    "assign_weights",
    "classification_loss",
    "create_variables",
    "layer_prefix",
    "masked_lm_logits",
    "model_fn",
    "variable_specs",
]

# Added to the attention score of a padding token, as google-research/bert does; e**-10000 is 0 in every precision.
_MASKED_SCORE = -10000.0


class _Dropout:
    """Dropout of one model: calls are numbered, so that a stateless mask depends on (seed, step, call) alone."""

    def __init__(self, is_training: bool, seed: Optional[Any]) -> None:
        self._is_training = is_training
        self._seed = seed
        self._calls = 0

    def __call__(self, inputs: Any, rate: float) -> Any:
        if not self._is_training or rate == 0.0:
            return inputs
        if self._seed is None:
            return tf.nn.dropout(inputs, rate=rate)
        self._calls += 1
        seed = self._seed + tf.constant([self._calls * 1000003, 0], self._seed.dtype)
        draw = tf.random.stateless_uniform(tf.shape(inputs), seed=seed, dtype=tf.float32)
        keep = tf.cast(draw >= rate, inputs.dtype)
        return inputs * keep * (1.0 / (1.0 - rate))


class _PaddedRows:
    """Rows of a (B, S) batch; (T, ...) arrays have T = B * S."""

    def __init__(self, input_ids: Any, input_mask: Optional[Any]) -> None:
        shape = tf.shape(input_ids)
        self.rows, self.longest = shape[0], shape[1]
        self.mask = tf.ones_like(input_ids) if input_mask is None else input_mask
        self.positions = tf.tile(tf.range(self.longest), [self.rows])
        self._first = tf.range(self.rows) * self.longest

    def pad(self, states: Any, width: int) -> Any:
        """(T, width) -> (B, S, width)."""
        return tf.reshape(states, [self.rows, self.longest, width])

    def unpad(self, states: Any, width: int) -> Any:
        """(B, S, width) -> (T, width)."""
        return tf.reshape(states, [-1, width])

    def first(self, states: Any) -> Any:
        """(T, width) -> (B, width): each row's first token."""
        return tf.gather(states, self._first)


class _PackedRows:
    """Rows end to end in (T,); row b is row_splits[b] : row_splits[b + 1]. Padding exists inside attention only."""

    def __init__(self, row_splits: Any) -> None:
        splits = tf.cast(row_splits, tf.int32)
        lengths = splits[1:] - splits[:-1]
        self.rows, self.longest = tf.shape(lengths)[0], tf.reduce_max(lengths)
        self.mask = tf.sequence_mask(lengths, self.longest, dtype=tf.int32)
        self._slots = tf.cast(tf.where(tf.reshape(self.mask > 0, [-1])), tf.int32)
        self.positions = tf.reshape(self._slots, [-1]) % self.longest
        self._first = splits[:-1]

    def pad(self, states: Any, width: int) -> Any:
        """(T, width) -> (B, S, width), zeros in the padding."""
        flat = tf.scatter_nd(self._slots, states, [self.rows * self.longest, width])
        return tf.reshape(flat, [self.rows, self.longest, width])

    def unpad(self, states: Any, width: int) -> Any:
        """(B, S, width) -> (T, width)."""
        return tf.gather(tf.reshape(states, [-1, width]), tf.reshape(self._slots, [-1]))

    def first(self, states: Any) -> Any:
        """(T, width) -> (B, width): each row's first token."""
        return tf.gather(states, self._first)


def _gelu_erf(inputs: Any) -> Any:
    return 0.5 * inputs * (1.0 + tf.erf(inputs * math.sqrt(0.5)))


def _gelu_tanh(inputs: Any) -> Any:
    # Hendrycks and Gimpel, "Gaussian Error Linear Units", the tanh approximation.
    return 0.5 * inputs * (1.0 + tf.tanh(math.sqrt(2.0 / math.pi) * (inputs + 0.044715 * inputs * inputs * inputs)))


_ACTIVATIONS: Dict[str, Callable[[Any], Any]] = {"gelu_erf": _gelu_erf, "gelu_tanh": _gelu_tanh, "relu": tf.nn.relu}


def _layer_norm(inputs: Any, beta: Any, gamma: Any, epsilon: float) -> Any:
    """Layer norm over the last axis, in float32 whatever the inputs are: 1e-12 is 0 in half precision."""
    states = tf.cast(inputs, tf.float32)
    mean = tf.reduce_mean(states, axis=-1, keepdims=True)
    centred = states - mean
    variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
    return centred * (tf.rsqrt(variance + epsilon) * gamma) + beta


class BertModel:
    """BERT's encoder and pooler, with the constructor and getters of google-research/bert's class of this name.

    Args:
        config: `ftbert.config.BertConfig`, or google-research/bert's own object; `hidden_act` says which activation.
        is_training: whether dropout is on.
        input_ids: int32 (B, S), or (T,) when `row_splits` is given.
        input_mask: int32 (B, S), 1 for tokens and 0 for padding; None means no padding. Not with `row_splits`.
        token_type_ids: int32, shape of `input_ids`; None means all 0.
        use_one_hot_embeddings: look words up by a matrix product.
        scope: variable scope, "bert" unless told. Its reuse policy is the caller's.
        row_splits: int32 (B + 1,) for rows packed end to end without padding.
        first_token_only: the last layer computes each row's first token alone; the pooled output is the same, the
            sequence output is not there. It saves most of one layer, in training too.
        compute_dtype: tf.float16 or tf.bfloat16 for matrix products; None for float32. Layer norm, softmax and the
            variables stay float32.
        dropout_seed: integer tensor (2,); dropout masks depend on it alone. None: on the graph's seed and history.
        variables: name -> variable, used instead of new ones; without bert/pooler/dense nothing is pooled.
    """

    def __init__(
        self,
        config: Any,
        is_training: bool,
        input_ids: Any,
        input_mask: Optional[Any] = None,
        token_type_ids: Optional[Any] = None,
        use_one_hot_embeddings: bool = False,
        scope: Optional[str] = None,
        row_splits: Optional[Any] = None,
        first_token_only: bool = False,
        compute_dtype: Optional[Any] = None,
        dropout_seed: Optional[Any] = None,
        variables: Optional[Dict[str, Any]] = None,
    ) -> None:
        if row_splits is not None and input_mask is not None:
            raise ConfigError("input_mask: expected None with row_splits, since packed rows have no padding.")
        config = BertConfig.of(config)
        self._config = config
        self._dtype = compute_dtype or tf.float32
        self._dropout = _Dropout(is_training, dropout_seed)
        self._first_token_only = first_token_only
        self._packed = row_splits is not None
        self._rows = _PackedRows(row_splits) if self._packed else _PaddedRows(input_ids, input_mask)
        self._score_bias = (1.0 - tf.cast(self._rows.mask, tf.float32))[:, tf.newaxis, tf.newaxis, :] * _MASKED_SCORE
        if variables is None:
            variables = create_variables(variable_specs(config), config.initializer_range, scope=scope)
        self.variables = variables
        with tf.name_scope("bert_twin"):
            embedded = self._embed(input_ids, token_type_ids, use_one_hot_embeddings)
            layers = self._encode(embedded)
            first = layers[-1] if first_token_only else self._rows.first(layers[-1])
            # Every tensor a getter returns is made here, so that getters work outside the graph's context.
            self._outputs = [] if first_token_only else [self._outer(states) for states in layers]
            self._embedding_output = self._outer(embedded)
            self._pooled_output = self._pool(first) if "bert/pooler/dense/kernel" in variables else None

    def get_pooled_output(self) -> Any:
        """(B, H): the first token's state through the pooler."""
        if self._pooled_output is None:
            raise ConfigError("get_pooled_output: the variables that this model was made of have no bert/pooler/dense.")
        return self._pooled_output

    def get_sequence_output(self) -> Any:
        """The last layer's states: (B, S, H), or (T, H) for packed rows."""
        if self._first_token_only:
            raise ConfigError("get_sequence_output: build the model with first_token_only=False to have every token.")
        return self._outputs[-1]

    def get_all_encoder_layers(self) -> List[Any]:
        """Every layer's states from the first to the last, shaped as `get_sequence_output`."""
        if self._first_token_only:
            raise ConfigError(
                "get_all_encoder_layers: build the model with first_token_only=False to have every token."
            )
        return list(self._outputs)

    def get_embedding_output(self) -> Any:
        """What the first layer reads, shaped as `get_sequence_output`."""
        return self._embedding_output

    def get_embedding_table(self) -> Any:
        """(V, H): the word embeddings."""
        return self.variables["bert/embeddings/word_embeddings"]

    def _outer(self, states: Any) -> Any:
        return states if self._packed else self._rows.pad(states, self._config.hidden_size)

    def _dense(self, inputs: Any, name: str) -> Any:
        kernel = tf.cast(self.variables[name + "/kernel"], self._dtype)
        bias = tf.cast(self.variables[name + "/bias"], self._dtype)
        return tf.nn.bias_add(tf.matmul(tf.cast(inputs, self._dtype), kernel), bias)

    def _pool(self, first: Any) -> Any:
        return tf.tanh(tf.cast(self._dense(first, "bert/pooler/dense"), tf.float32))

    def _norm(self, inputs: Any, name: str) -> Any:
        beta, gamma = self.variables[name + "/LayerNorm/beta"], self.variables[name + "/LayerNorm/gamma"]
        return _layer_norm(inputs, beta, gamma, self._config.norm_epsilon)

    def _embed(self, input_ids: Any, token_type_ids: Optional[Any], use_one_hot: bool) -> Any:
        """(T, H) from the three embeddings."""
        word_table = self.get_embedding_table()
        ids = tf.reshape(input_ids, [-1])
        if use_one_hot:
            words = tf.matmul(tf.one_hot(ids, self._config.vocab_size), word_table)
        else:
            words = tf.gather(word_table, ids)
        type_table = self.variables["bert/embeddings/token_type_embeddings"]
        types = tf.zeros_like(ids) if token_type_ids is None else tf.reshape(token_type_ids, [-1])
        # Two rows: a product with one-hot vectors has a dense gradient, where gather's would be scattered.
        typed = tf.matmul(tf.one_hot(types, self._config.type_vocab_size), type_table)
        placed = tf.gather(self.variables["bert/embeddings/position_embeddings"], self._rows.positions)
        states = self._norm(words + typed + placed, "bert/embeddings")
        return self._dropout(states, self._config.hidden_dropout_prob)

    def _encode(self, states: Any) -> List[Any]:
        outputs = []
        for layer in range(self._config.num_hidden_layers):
            only_first = self._first_token_only and layer == self._config.num_hidden_layers - 1
            states = self._layer(states, layer_prefix(layer), only_first)
            outputs.append(states)
        return outputs

    def _layer(self, states: Any, prefix: str, only_first: bool) -> Any:
        """(T, H) -> (T, H), or (B, H) with `only_first`. `states` are float32: the residual stream is."""
        rate = self._config.hidden_dropout_prob
        asking = self._rows.first(states) if only_first else states
        context = self._attend(asking, states, prefix + "attention/self/", only_first)
        attended = self._dropout(self._dense(context, prefix + "attention/output/dense"), rate)
        attended = self._norm(tf.cast(attended, tf.float32) + asking, prefix + "attention/output")
        inner = _ACTIVATIONS[self._config.hidden_act](self._dense(attended, prefix + "intermediate/dense"))
        output = self._dropout(self._dense(inner, prefix + "output/dense"), rate)
        return self._norm(tf.cast(output, tf.float32) + attended, prefix + "output")

    def _attend(self, asking: Any, states: Any, prefix: str, only_first: bool) -> Any:
        """Multi-head attention: (T, H) asks (T, H) -> (T, H), or (B, H) asks (T, H) -> (B, H) with `only_first`."""
        config, rows = self._config, self._rows
        heads, size, hidden = config.num_attention_heads, config.head_size, config.hidden_size
        query, key, value = (
            self._dense(inputs, prefix + part)
            for inputs, part in ((asking, "query"), (states, "key"), (states, "value"))
        )

        def split(padded: Any, length: Any) -> Any:
            return tf.transpose(tf.reshape(padded, [rows.rows, length, heads, size]), [0, 2, 1, 3])

        keys = split(rows.pad(key, hidden), rows.longest)
        values = split(rows.pad(value, hidden), rows.longest)
        length = 1 if only_first else rows.longest
        queries = split(query if only_first else rows.pad(query, hidden), length)
        scores = tf.matmul(queries * (1.0 / math.sqrt(size)), keys, transpose_b=True)
        weights = tf.nn.softmax(tf.cast(scores, tf.float32) + self._score_bias)
        weights = self._dropout(weights, config.attention_probs_dropout_prob)
        context = tf.transpose(tf.matmul(tf.cast(weights, self._dtype), values), [0, 2, 1, 3])
        context = tf.reshape(context, [rows.rows, length, hidden])
        return tf.reshape(context, [-1, hidden]) if only_first else rows.unpad(context, hidden)


def apply_classifier(model: BertModel, num_labels: int, is_training: bool = False, dropout_rate: float = 0.1) -> Any:
    """google-research/bert's head: dropout on the pooled output, then output_weights (C, H) and output_bias (C,).

    Returns:
        logits, float32 (B, C). The two variables join `model.variables`, unless it was made with them.
    """
    config, variables = model._config, model.variables
    if "output_weights" not in variables:
        specs = variable_specs(config, num_labels)
        head = collections.OrderedDict((name, specs[name]) for name in ("output_weights", "output_bias"))
        variables.update(create_variables(head, config.initializer_range))
    pooled = model.get_pooled_output()
    if is_training:
        pooled = model._dropout(pooled, dropout_rate)
    return tf.nn.bias_add(tf.matmul(pooled, variables["output_weights"], transpose_b=True), variables["output_bias"])


def masked_lm_logits(model: BertModel, states: Any) -> Any:
    """google-research/bert's head of pretraining: states (M, H) of hidden pieces -> logits, float32 (M, V).

    `model` was made of variables that hold `ftbert.variables.masked_lm_specs`.
    """
    base = "cls/predictions/"
    inner = _ACTIVATIONS[model._config.hidden_act](model._dense(states, base + "transform/dense"))
    normed = tf.cast(model._norm(inner, base + "transform"), model._dtype)
    table = tf.cast(model.get_embedding_table(), model._dtype)
    logits = tf.cast(tf.matmul(normed, table, transpose_b=True), tf.float32)
    return tf.nn.bias_add(logits, model.variables[base + "output_bias"])


def classification_loss(
    logits: Any,
    labels: Any,
    multi_label: bool = False,
    class_weights: Optional[Any] = None,
    label_smoothing: float = 0.0,
) -> Any:
    """Each row's loss.

    Args:
        logits: (B, C).
        labels: int (B,), or float (B, C) of zeros and ones for `multi_label`.
        multi_label: sigmoid cross-entropy averaged over labels, instead of softmax cross-entropy.
        class_weights: (C,), a factor for rows (single label) or for positives (multi-label) of each label.
        label_smoothing: the share of each target spread evenly (towards 0.5 for `multi_label`).

    Returns:
        float32 (B,).
    """
    if multi_label:
        targets = tf.cast(labels, tf.float32) * (1.0 - label_smoothing) + 0.5 * label_smoothing
        losses = tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=logits)
        if class_weights is not None:
            losses *= 1.0 + tf.cast(labels, tf.float32) * (class_weights - 1.0)
        return tf.reduce_mean(losses, axis=-1)
    count = logits.shape.as_list()[-1]
    targets = tf.one_hot(labels, count) * (1.0 - label_smoothing) + label_smoothing / count
    losses = -tf.reduce_sum(targets * tf.nn.log_softmax(logits), axis=-1)
    if class_weights is not None:
        losses *= tf.gather(class_weights, labels)
    return losses


def model_fn(features: Dict[str, Any], labels: Optional[Any], mode: str, params: Dict[str, Any]) -> Any:
    """A classifier for `tf.estimator.Estimator` (TensorFlow 1.14 to 2.15).

    Args:
        features: "input_ids" with "input_mask" and "segment_ids" (B, S) as google-research/bert names them, or packed:
            "input_ids" and "segment_ids" (T,) with "row_splits" (B + 1,).
        labels: "label_ids" in `features` does as well. int (B,), or (B, C) of 0 and 1 for multi-label.
        mode: of tf.estimator.ModeKeys.
        params: "config" (BertConfig) and "num_labels"; optional "multi_label"; "train_op", a function of the loss,
            for training (`ftbert.training.create_train_op` makes one).

    Returns:
        tf.estimator.EstimatorSpec; predictions are "logits" and "probabilities" (B, C).
    """
    for key in ("config", "num_labels"):
        if key not in params:
            raise ConfigError("params: expected %r, got %s." % (key, sorted(params)))
    multi_label = bool(params.get("multi_label", False))
    training = mode == tf.estimator.ModeKeys.TRAIN
    if training and "train_op" not in params:
        raise ConfigError("params: training expects 'train_op', a function that makes the training op of a loss.")
    model = BertModel(
        params["config"],
        training,
        features["input_ids"],
        features.get("input_mask"),
        features.get("segment_ids"),
        row_splits=features.get("row_splits"),
        first_token_only=True,
    )
    logits = apply_classifier(model, params["num_labels"], training)
    probabilities = tf.sigmoid(logits) if multi_label else tf.nn.softmax(logits)
    if mode == tf.estimator.ModeKeys.PREDICT:
        return tf.estimator.EstimatorSpec(mode, predictions={"logits": logits, "probabilities": probabilities})
    labels = features["label_ids"] if labels is None else labels
    loss = tf.reduce_mean(classification_loss(logits, labels, multi_label))
    if training:
        return tf.estimator.EstimatorSpec(mode, loss=loss, train_op=params["train_op"](loss))
    hits = (
        tf.equal(logits > 0, tf.cast(labels, tf.bool))
        if multi_label
        else tf.equal(tf.argmax(logits, -1), tf.cast(labels, tf.int64))
    )
    metrics = {"eval_accuracy": tf.metrics.mean(tf.cast(hits, tf.float32))}
    return tf.estimator.EstimatorSpec(mode, loss=loss, eval_metric_ops=metrics)
