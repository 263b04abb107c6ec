"""FastBertModel against the plain TensorFlow twin on the same variables."""

import threading

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow.compat.v1")

from ftbert import fast_modeling, modeling  # noqa: E402
from ftbert.config import BertConfig  # noqa: E402
from ftbert.errors import ConfigError  # noqa: E402

# Both sides compute in float32; the sums run in another order.
TOLERANCE = 2e-5

CONFIG = BertConfig(
    vocab_size=97,
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=129,
    max_position_embeddings=40,
    initializer_range=0.1,
)


def random_batch(lengths, longest, seed=0):
    random = np.random.RandomState(seed)
    ids = random.randint(0, CONFIG.vocab_size, (len(lengths), longest)).astype(np.int32)
    types = random.randint(0, 2, ids.shape).astype(np.int32)
    mask = (np.arange(longest)[None, :] < np.asarray(lengths)[:, None]).astype(np.int32)
    return ids, mask, types


class Pair:
    """The twin and the op over one set of variables, in one graph and session."""

    def __init__(self, config=CONFIG, seed=1, **options):
        self.graph = tf.Graph()
        with self.graph.as_default():
            tf.set_random_seed(seed)
            self.ids = tf.placeholder(tf.int32, [None, None])
            self.mask = tf.placeholder(tf.int32, [None, None])
            self.types = tf.placeholder(tf.int32, [None, None])
            self.twin = modeling.BertModel(config, False, self.ids, self.mask, self.types)
            with tf.variable_scope(tf.get_variable_scope(), reuse=True):
                self.fast = fast_modeling.FastBertModel(config, False, self.ids, self.mask, self.types, **options)
            self.session = tf.Session()
            self.session.run(tf.global_variables_initializer())

    def run(self, outputs, batch):
        return self.session.run(outputs, dict(zip((self.ids, self.mask, self.types), batch)))

    def check(self, batch, tolerance=TOLERANCE):
        """Both outputs of both sides; states of padding are nobody's business and 0 in ours."""
        pairs = [(model.get_sequence_output(), model.get_pooled_output()) for model in (self.twin, self.fast)]
        (sequence, pooled), (fast_sequence, fast_pooled) = self.run(pairs, batch)
        mask = batch[1].astype(bool)
        mask[~mask.any(axis=1)] = True
        assert np.abs(sequence).max() > 0.5
        assert np.abs(fast_sequence - sequence)[mask].max() <= tolerance
        assert np.abs(fast_pooled - pooled).max() <= tolerance
        assert not fast_sequence[~mask].any()


@pytest.fixture
def pair():
    made = Pair()
    yield made
    made.session.close()


@pytest.mark.parametrize(
    "lengths, longest",
    [([1], 1), ([7], 7), ([5, 1, 9, 3], 9), ([1, 1], 40), ([40] * 3, 40), (list(range(1, 38)), 37)],
)
def test_equals_the_twin(pair, lengths, longest):
    pair.check(random_batch(lengths, longest))


def test_a_row_without_a_one_attends_to_all(pair):
    # The twin adds -10000 to every score of such a row, which rounds them to multiples of 2**-10.
    pair.check(random_batch([0, 3, 0], 6), tolerance=2e-3)


@pytest.mark.parametrize("activation", ["gelu_erf", "gelu_tanh", "relu"])
def test_equals_the_twin_with_every_activation(activation):
    config = BertConfig.from_dict(dict(CONFIG.to_dict(), hidden_act=activation), "ftbert")
    made = Pair(config)
    made.check(random_batch([5, 2], 6))


def test_has_the_variables_of_googles_model():
    with tf.Graph().as_default():
        ids = tf.placeholder(tf.int32, [None, 8])
        model = fast_modeling.FastBertModel(CONFIG, False, ids)
        names = [variable.op.name for variable in tf.trainable_variables()]
        assert sorted(names) == sorted(modeling.variable_specs(CONFIG))
        assert model.get_embedding_table().op.name == "bert/embeddings/word_embeddings"
        assert model.get_sequence_output().shape.as_list() == [None, 8, 48]
        assert model.get_pooled_output().shape.as_list() == [None, 48]
    with tf.Graph().as_default(), tf.variable_scope("tower"):
        fast_modeling.FastBertModel(CONFIG, False, tf.placeholder(tf.int32, [2, 8]), scope="other")
        names = [variable.op.name for variable in tf.global_variables()]
        assert "tower/other/encoder/layer_2/output/LayerNorm/gamma" in names


def test_pooled_output_alone_equals_the_one_beside_the_sequence(pair):
    batch = random_batch([5, 1, 9], 9)
    alone = pair.fast.get_pooled_output()
    first = pair.run(alone, batch)
    assert pair.fast.get_pooled_output() is alone
    pair.check(batch)
    assert np.abs(pair.run(pair.twin.get_pooled_output(), batch) - first).max() <= TOLERANCE


def test_sees_changed_weights(pair):
    batch = random_batch([5, 1, 9], 9)
    pair.check(batch)
    before = pair.run(pair.fast.get_pooled_output(), batch)
    with pair.graph.as_default():
        loss = tf.reduce_sum(pair.twin.get_pooled_output()[:, :5])
        gradients = tf.gradients(loss, tf.trainable_variables())
        step = [
            tf.assign_sub(variable, 0.01 * tf.convert_to_tensor(gradient))
            for variable, gradient in zip(tf.trainable_variables(), gradients)
        ]
        again = tf.global_variables_initializer()
    for _ in range(3):
        pair.run(step, batch)
        pair.check(batch)
    assert np.abs(pair.run(pair.fast.get_pooled_output(), batch) - before).max() > 0.01
    pair.session.run(again)
    pair.check(batch)


def test_refresh_takes_over_a_single_number(pair):
    batch = random_batch([5], 5)
    pair.check(batch)
    with pair.graph.as_default():
        table = pair.twin.get_embedding_table()
        change = tf.scatter_update(table, [int(batch[0][0, 1])], tf.fill([1, CONFIG.hidden_size], 0.7))
    pair.session.run(change)
    fast_modeling.refresh()
    pair.check(batch)


def test_a_saver_restores_it(tmp_path, pair):
    batch = random_batch([4, 8], 8)
    expected = pair.run(pair.twin.get_sequence_output(), batch)
    with pair.graph.as_default():
        path = tf.train.Saver().save(pair.session, str(tmp_path / "model.ckpt"))
    with tf.Graph().as_default(), tf.Session() as session:
        ids, mask, types = batch
        model = fast_modeling.FastBertModel(CONFIG, False, tf.constant(ids), tf.constant(mask), tf.constant(types))
        output = model.get_sequence_output()
        tf.train.Saver().restore(session, path)
        got = session.run(output)
        assert np.abs(got - expected)[mask.astype(bool)].max() <= TOLERANCE


def test_a_real_checkpoint(shared_data):
    folder = shared_data("tiny_tf1_checkpoint")
    config = BertConfig.from_json_file(str(folder / "bert_config.json"), "google")
    made = Pair(config)
    with made.graph.as_default():
        tf.train.Saver(made.twin.variables).restore(made.session, str(folder / "bert_model.ckpt"))
    ids, mask, types = random_batch([3, 7, 5], 7)
    made.check((ids % config.vocab_size, mask, types))


def test_a_config_object_of_googles_code():
    class GoogleConfig:
        def to_dict(self):
            return CONFIG.to_dict("google")

    with tf.Graph().as_default():
        model = fast_modeling.FastBertModel(GoogleConfig(), False, tf.zeros([1, 4], tf.int64))
        assert model.get_pooled_output().shape.as_list() == [1, 48]


@pytest.mark.parametrize(
    "row, part", [([1, 0, 1, 1], "a 1 after a 0"), ([0, 1, 1, 1], "a 1 after a 0"), ([1, 2, 0, 0], "another number")]
)
def test_refuses_masks_with_holes(pair, row, part):
    ids, mask, types = random_batch([4, 4], 4)
    mask[1] = row
    with pytest.raises(tf.errors.InvalidArgumentError, match="ones and then zeros.*%s.* in row 1" % part):
        pair.run(pair.fast.get_sequence_output(), (ids, mask, types))


def test_refuses_bad_batches(pair):
    ids, mask, types = random_batch([4, 4], 4)
    output = pair.fast.get_pooled_output()
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected input_ids' shape"):
        pair.run(output, (ids, mask[:, :3], types))
    for bad in (CONFIG.vocab_size, -1):
        wrong = ids.copy()
        wrong[1, 2] = bad
        with pytest.raises(tf.errors.InvalidArgumentError, match=str(bad)):
            pair.run(output, (wrong, mask, types))
    long = random_batch([41], 41)
    with pytest.raises(tf.errors.InvalidArgumentError, match="40"):
        pair.run(output, long)
    pair.check((ids, mask, types))


def test_an_empty_batch(pair):
    batch = tuple(np.zeros((0, 5), np.int32) for _ in range(3))
    outputs = (pair.fast.get_sequence_output(), pair.fast.get_pooled_output())
    sequence, pooled = pair.run(outputs, batch)
    assert sequence.shape == (0, 5, 48) and pooled.shape == (0, 48)


def test_many_threads_share_one_session(pair):
    batches = [random_batch([length, 1 + seed], 16, seed) for seed, length in enumerate((3, 16, 9, 1, 12, 7))]
    output = pair.fast.get_pooled_output()
    expected = [pair.run(output, batch) for batch in batches]
    wrong = []

    def work(index):
        for _ in range(20):
            if not np.array_equal(pair.run(output, batches[index]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_says_what_it_cannot_do(pair):
    with pair.graph.as_default(), tf.variable_scope("unused"):
        with pytest.raises(ConfigError, match="is_training.*modeling.BertModel"):
            fast_modeling.FastBertModel(CONFIG, True, pair.ids)
        with pytest.raises(ConfigError, match="precision"):
            fast_modeling.FastBertModel(CONFIG, False, pair.ids, precision="fp33")
    for getter in (pair.fast.get_all_encoder_layers, pair.fast.get_embedding_output):
        with pytest.raises(ConfigError, match="modeling.BertModel"):
            getter()


def test_an_unknown_device_is_an_error_of_the_run():
    made = Pair(device="npu")
    with pytest.raises((tf.errors.InvalidArgumentError, tf.errors.FailedPreconditionError), match="npu"):
        made.run(made.fast.get_pooled_output(), random_batch([3], 3))
