"""The TensorFlow twin against plain numpy written from the paper's formulas, padded against packed, and its loss."""

import collections
import math

import numpy as np
import pytest

from ftbert.config import BertConfig
from ftbert.errors import CheckpointError, ConfigError

tf = pytest.importorskip("tensorflow.compat.v1")

from ftbert import modeling  # noqa: E402

LENGTHS = [5, 9, 1, 7]
Weight = collections.namedtuple("Weight", "name array transposed bfloat16")


def make_config(**changes):
    values = dict(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=16,
    )
    values.update(changes)
    return BertConfig(**values)


def make_weights(config, num_labels=None, seed=0):
    draw = np.random.RandomState(seed)
    specs = modeling.variable_specs(config, num_labels)
    return collections.OrderedDict(
        (name, (draw.normal(size=spec.shape) * 0.3).astype(np.float32)) for name, spec in specs.items()
    )


def make_batch(config, seed=1):
    """Padded ids, mask and segments (4, 9); the ids under the padding are other words on purpose."""
    draw = np.random.RandomState(seed)
    ids = draw.randint(0, config.vocab_size, (len(LENGTHS), max(LENGTHS))).astype(np.int32)
    segments = draw.randint(0, 2, ids.shape).astype(np.int32)
    mask = (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]).astype(np.int32)
    return ids, mask, segments


def numpy_row(config, weights, ids, segments):
    """One row in double precision, by loops: (S, H) states after the last layer, and the pooled (H,)."""

    def norm(states, prefix):
        mean, variance = states.mean(-1, keepdims=True), states.var(-1, keepdims=True)
        scaled = (states - mean) / np.sqrt(variance + config.norm_epsilon)
        return scaled * weights[prefix + "/LayerNorm/gamma"] + weights[prefix + "/LayerNorm/beta"]

    def dense(states, prefix):
        return states @ weights[prefix + "/kernel"].astype(np.float64) + weights[prefix + "/bias"]

    def activate(value):
        if config.hidden_act == "relu":
            return max(value, 0.0)
        if config.hidden_act == "gelu_erf":
            return 0.5 * value * (1 + math.erf(value / math.sqrt(2)))
        return 0.5 * value * (1 + math.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))

    base = "bert/embeddings"
    states = weights[base + "/word_embeddings"][ids].astype(np.float64)
    states = states + weights[base + "/token_type_embeddings"][segments]
    states = norm(states + weights[base + "/position_embeddings"][: len(ids)], base)
    for layer in range(config.num_hidden_layers):
        prefix = "bert/encoder/layer_%d/" % layer
        query, key, value = (dense(states, prefix + "attention/self/" + part) for part in ("query", "key", "value"))
        context = np.zeros_like(states)
        for head in range(config.num_attention_heads):
            part = slice(head * config.head_size, (head + 1) * config.head_size)
            scores = query[:, part] @ key[:, part].T / math.sqrt(config.head_size)
            odds = np.exp(scores - scores.max(-1, keepdims=True))
            context[:, part] = odds / odds.sum(-1, keepdims=True) @ value[:, part]
        attended = norm(states + dense(context, prefix + "attention/output/dense"), prefix + "attention/output")
        inner = np.vectorize(activate)(dense(attended, prefix + "intermediate/dense"))
        states = norm(attended + dense(inner, prefix + "output/dense"), prefix + "output")
    return states, np.tanh(dense(states[:1], "bert/pooler/dense")[0])


class Graph:
    """A graph with one model over (B, S) or packed placeholders, weights assigned."""

    def __init__(self, config, packed, weights, is_training=False, num_labels=None, **options):
        self.packed = packed
        self.graph = tf.Graph()
        with self.graph.as_default():
            shape = [None] if packed else [None, None]
            self.ids, self.segments = tf.placeholder(tf.int32, shape), tf.placeholder(tf.int32, shape)
            self.rows = tf.placeholder(tf.int32, [None] if packed else [None, None])
            rows = dict(row_splits=self.rows) if packed else dict(input_mask=self.rows)
            self.model = modeling.BertModel(
                config, is_training, self.ids, token_type_ids=self.segments, **rows, **options
            )
            self.logits = None
            if num_labels:
                self.logits = modeling.apply_classifier(self.model, num_labels, is_training)
        self.session = tf.Session(graph=self.graph)
        given = [Weight(name, array, False, False) for name, array in weights.items()]
        assert modeling.assign_weights(self.session, self.model.variables, given) == []

    def run(self, fetches, ids, mask, segments):
        if not self.packed:
            return self.session.run(fetches, {self.ids: ids, self.rows: mask, self.segments: segments})
        splits = np.cumsum([0] + list(mask.sum(-1)))
        return self.session.run(
            fetches, {self.ids: ids[mask > 0], self.rows: splits, self.segments: segments[mask > 0]}
        )


@pytest.mark.parametrize("act", ["gelu_erf", "gelu_tanh", "relu"])
@pytest.mark.parametrize("packed", [False, True])
def test_matches_numpy(act, packed):
    config = make_config(hidden_act=act)
    weights = make_weights(config)
    graph = Graph(config, packed, weights)
    ids, mask, segments = make_batch(config)
    states, pooled = graph.run(
        [graph.model.get_sequence_output(), graph.model.get_pooled_output()], ids, mask, segments
    )
    begin = 0
    for row, length in enumerate(LENGTHS):
        expected, expected_pooled = numpy_row(config, weights, ids[row, :length], segments[row, :length])
        got = states[begin : begin + length] if packed else states[row, :length]
        begin += length
        assert np.abs(got - expected).max() < 2e-5
        assert np.abs(pooled[row] - expected_pooled).max() < 2e-5


@pytest.mark.parametrize("packed", [False, True])
def test_first_token_only_pools_the_same(packed):
    config = make_config()
    weights = make_weights(config)
    batch = make_batch(config)
    whole = Graph(config, packed, weights)
    short = Graph(config, packed, weights, first_token_only=True)
    expected = whole.run(whole.model.get_pooled_output(), *batch)
    assert np.abs(short.run(short.model.get_pooled_output(), *batch) - expected).max() < 1e-5
    for getter in (short.model.get_sequence_output, short.model.get_all_encoder_layers):
        with pytest.raises(ConfigError, match="first_token_only"):
            getter()


def test_getters_are_googles():
    config = make_config()
    graph = Graph(config, False, make_weights(config))
    batch = make_batch(config)
    layers = graph.run(graph.model.get_all_encoder_layers(), *batch)
    last, embedded = graph.run([graph.model.get_sequence_output(), graph.model.get_embedding_output()], *batch)
    assert len(layers) == 3 and np.array_equal(layers[-1], last)
    assert embedded.shape == last.shape == (4, 9, 24)
    assert graph.model.get_embedding_table().shape.as_list() == [50, 24]
    names = {variable.name for variable in graph.graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES)}
    assert "bert/encoder/layer_2/attention/output/LayerNorm/gamma:0" in names
    assert "bert/embeddings/token_type_embeddings:0" in names


def test_no_mask_and_one_hot_mean_what_google_means():
    config = make_config()
    weights = make_weights(config)
    ids, mask, segments = make_batch(config)
    expected = Graph(config, False, weights)
    full = expected.run(expected.model.get_pooled_output(), ids, np.ones_like(mask), segments)
    graph = tf.Graph()
    with graph.as_default():
        model = modeling.BertModel(
            config, False, tf.constant(ids), token_type_ids=tf.constant(segments), use_one_hot_embeddings=True
        )
        with tf.Session() as session:
            given = [Weight(name, array, False, False) for name, array in weights.items()]
            assert modeling.assign_weights(session, model.variables, given) == []
            assert np.abs(session.run(model.get_pooled_output()) - full).max() < 1e-5


def test_names_and_shapes_are_those_of_checkpoints():
    from ftbert.checkpoint.names import weight_shapes

    config = make_config()
    for count, pooler in ((3, True), (0, True), (0, False)):
        specs = modeling.variable_specs(config, count or None, pooler)
        assert {name: spec.shape for name, spec in specs.items()} == dict(weight_shapes(config, count, pooler))


def test_packed_and_masked_together_is_refused():
    with tf.Graph().as_default(), pytest.raises(ConfigError, match="input_mask"):
        modeling.BertModel(
            make_config(), False, tf.constant([1, 2]), tf.constant([1, 1]), row_splits=tf.constant([0, 2])
        )


def test_scope_renames_the_encoder_alone():
    with tf.Graph().as_default():
        model = modeling.BertModel(make_config(), False, tf.constant([[1, 2]]), scope="teacher")
        modeling.apply_classifier(model, 3)
        assert model.variables["bert/pooler/dense/kernel"].name == "teacher/pooler/dense/kernel:0"
        assert model.variables["output_weights"].name == "output_weights:0"


@pytest.mark.parametrize("packed", [False, True])
def test_dropout_depends_on_its_seed_alone(packed):
    config = make_config()
    weights = make_weights(config, 3)
    batch = make_batch(config)

    def logits(seed):
        graph = Graph(config, packed, weights, True, 3, dropout_seed=np.array(seed, np.int32))
        return graph.run(graph.logits, *batch), graph.run(graph.logits, *batch)

    first, again = logits([7, 1])
    other, _ = logits([7, 2])
    assert np.array_equal(first, again) and np.array_equal(first, logits([7, 1])[0])
    assert np.abs(first - other).max() > 1e-3


def test_dropout_keeps_the_mean():
    with tf.Graph().as_default(), tf.Session() as session:
        dropout = modeling._Dropout(True, tf.constant([3, 4]))
        drawn = session.run([dropout(tf.ones([200, 200]), 0.25), dropout(tf.ones([200, 200]), 0.25)])
    for values in drawn:
        assert np.allclose(np.unique(values), [0.0, 4 / 3])
        assert abs(values.mean() - 1.0) < 0.02
    assert not np.array_equal(drawn[0], drawn[1])


@pytest.mark.parametrize("packed", [False, True])
def test_every_variable_has_a_gradient(packed):
    config = make_config()
    graph = Graph(config, packed, make_weights(config, 3), True, 3, first_token_only=True)
    with graph.graph.as_default():
        loss = tf.reduce_mean(modeling.classification_loss(graph.logits, tf.constant([0, 1, 2, 0])))
        gradients = tf.gradients(loss, list(graph.model.variables.values()))
        assert None not in gradients
        norms = graph.run([tf.norm(tf.convert_to_tensor(gradient)) for gradient in gradients], *make_batch(config))
    without = {name for name, norm in zip(graph.model.variables, norms) if not norm > 0}
    # The softmax does not see a bias that moves all keys alike; what is left there is rounding.
    assert all(name.endswith("key/bias") for name in without)


def test_assign_weights_reads_every_form():
    config = make_config(num_hidden_layers=1)
    weights = make_weights(config)
    name = "bert/encoder/layer_0/intermediate/dense/kernel"
    with tf.Graph().as_default(), tf.Session() as session:
        variables = modeling.create_variables(modeling.variable_specs(config))
        bits = (weights[name].view(np.uint32) >> 16).astype(np.uint16)
        rest = [Weight(key, array, False, False) for key, array in weights.items() if key != "bert/pooler/dense/bias"]
        missing = modeling.assign_weights(session, variables, rest + [Weight("cls/unknown", np.zeros(2), False, False)])
        assert missing == ["bert/pooler/dense/bias"]
        modeling.assign_weights(session, variables, [Weight(name, weights[name].T, True, False)])
        assert np.array_equal(session.run(variables[name]), weights[name])
        modeling.assign_weights(session, variables, [Weight(name, bits, False, True)])
        assert np.abs(session.run(variables[name]) / weights[name] - 1).max() < 2**-7
        modeling.assign_weights(session, variables, [Weight(name, weights[name].astype(np.float16), False, False)])
        assert np.array_equal(session.run(variables[name]), weights[name].astype(np.float16).astype(np.float32))
        with pytest.raises(CheckpointError, match="expected shape"):
            modeling.assign_weights(session, variables, [Weight(name, weights[name].T, False, False)])


def test_loss_single_label():
    logits = np.array([[2.0, -1.0, 0.5], [0.0, 0.0, 3.0]], np.float32)
    odds = np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    with tf.Graph().as_default(), tf.Session() as session:
        plain = session.run(modeling.classification_loss(tf.constant(logits), tf.constant([0, 1])))
        smooth = session.run(
            modeling.classification_loss(
                tf.constant(logits),
                tf.constant([0, 1]),
                class_weights=tf.constant([1.0, 3.0, 1.0]),
                label_smoothing=0.3,
            )
        )
    assert np.allclose(plain, [-odds[0, 0], -odds[1, 1]], atol=1e-6)
    spread = -0.3 * odds.mean(-1) - 0.7 * odds[[0, 1], [0, 1]]
    assert np.allclose(smooth, spread * [1.0, 3.0], atol=1e-5)


def test_loss_multi_label():
    logits = np.array([[2.0, -1.0], [0.0, 3.0]], np.float32)
    targets = np.array([[1.0, 0.0], [1.0, 1.0]], np.float32)
    chance = 1 / (1 + np.exp(-logits))
    expected = -(targets * np.log(chance) + (1 - targets) * np.log(1 - chance))
    with tf.Graph().as_default(), tf.Session() as session:
        plain = session.run(modeling.classification_loss(tf.constant(logits), tf.constant(targets), True))
        weighted = session.run(
            modeling.classification_loss(tf.constant(logits), tf.constant(targets), True, tf.constant([2.0, 1.0]))
        )
    assert np.allclose(plain, expected.mean(-1), atol=1e-6)
    assert np.allclose(weighted, (expected * np.where(targets > 0, [2.0, 1.0], 1.0)).mean(-1), atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_products_stay_near(dtype):
    config = make_config()
    weights = make_weights(config)
    batch = make_batch(config)
    full = Graph(config, False, weights)
    half = Graph(config, False, weights, compute_dtype=tf.as_dtype(dtype))
    expected = full.run(full.model.get_pooled_output(), *batch)
    got = half.run(half.model.get_pooled_output(), *batch)
    error = np.abs(got - expected).max()
    assert 0 < error < 0.25
