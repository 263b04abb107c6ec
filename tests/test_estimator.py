"""An Estimator over the twin: trained, then served from one session."""

import os
import threading

import numpy as np
import pytest

from ftbert.config import BertConfig
from ftbert.errors import ClosedError, ConfigError, FtbertError, InputError, UnavailableError

tf = pytest.importorskip("tensorflow.compat.v1")

from ftbert import modeling  # noqa: E402
from ftbert.estimator import PersistentEstimator  # noqa: E402

HAS_ESTIMATOR = hasattr(tf, "estimator")
needs_estimator = pytest.mark.skipif(not HAS_ESTIMATOR, reason="this TensorFlow has no Estimator")

CONFIG = BertConfig(
    vocab_size=30,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=12,
    initializer_range=0.1,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def make_features(seed, rows=3, length=5):
    draw = np.random.RandomState(seed)
    ids = draw.randint(1, 30, (rows, length)).astype(np.int32)
    return {"input_ids": ids, "input_mask": np.ones_like(ids), "segment_ids": np.zeros_like(ids)}


@pytest.fixture(scope="module")
def estimator(tmp_path_factory):
    """Trained until it tells rows whose first word is below 15 from the rest."""
    from ftbert.training.optimization import create_train_op

    def input_fn():
        draw = np.random.RandomState(0)
        ids = draw.randint(1, 30, (64, 5)).astype(np.int32)
        features = {"input_ids": ids, "input_mask": np.ones_like(ids), "segment_ids": np.zeros_like(ids)}
        return tf.data.Dataset.from_tensor_slices((features, (ids[:, 0] < 15).astype(np.int32))).repeat().batch(16)

    params = {"config": CONFIG, "num_labels": 2, "train_op": create_train_op(3e-3, 200, 20)}
    run = tf.estimator.RunConfig(tf_random_seed=1)
    made = tf.estimator.Estimator(modeling.model_fn, str(tmp_path_factory.mktemp("estimator")), run, params)
    made.train(input_fn, steps=200)
    assert made.evaluate(input_fn, steps=4)["eval_accuracy"] > 0.9
    return made


@pytest.fixture
def restores(monkeypatch):
    """Counts how often a Saver restores a checkpoint."""
    counted = []
    restore = tf.train.Saver.restore

    def counting(self, session, path):
        counted.append(path)
        return restore(self, session, path)

    monkeypatch.setattr(tf.train.Saver, "restore", counting)
    return counted


@needs_estimator
def test_the_estimator_of_run_classifier(estimator):
    tpu = tf.estimator.tpu
    params = {"config": CONFIG, "num_labels": 2}
    run = tpu.RunConfig(model_dir=estimator.model_dir)
    made = tpu.TPUEstimator(
        modeling.model_fn, config=run, params=params, use_tpu=False, train_batch_size=8, predict_batch_size=3
    )
    with PersistentEstimator(made) as persistent, PersistentEstimator(estimator) as plain:
        for seed in range(3):
            (answer,), (expected,) = (one.predict([make_features(seed)]) for one in (persistent, plain))
            assert np.array_equal(answer["probabilities"], expected["probabilities"])


@needs_estimator
def test_hundred_predicts_restore_once(estimator, restores):
    expected = list(
        estimator.predict(lambda: tf.data.Dataset.from_tensors(make_features(7)), yield_single_examples=False)
    )[0]["probabilities"]
    del restores[:]
    with PersistentEstimator(estimator) as persistent:
        for seed in range(100):
            answers = list(persistent.predict([make_features(seed, rows=1 + seed % 4, length=3 + seed % 7)]))
            assert len(answers) == 1 and answers[0]["logits"].shape == (1 + seed % 4, 2)
        again = list(persistent.predict([make_features(7)]))[0]["probabilities"]
    assert len(restores) == 1
    assert np.abs(again - expected).max() < 1e-6


@needs_estimator
def test_threads_get_their_own_answers(estimator, restores):
    with PersistentEstimator(estimator) as persistent:
        expected = {seed: next(persistent.predict([make_features(seed)]))["logits"] for seed in range(8)}
        wrong = []

        def ask(seed):
            for answer in persistent.predict(make_features(seed) for _ in range(20)):
                if not np.array_equal(answer["logits"], expected[seed]):
                    wrong.append(seed)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
    assert len(restores) == 1


@needs_estimator
def test_packed_rows_predict_the_same(estimator):
    features = make_features(3)
    packed = {
        "input_ids": features["input_ids"].reshape(-1),
        "segment_ids": features["segment_ids"].reshape(-1),
        "row_splits": np.array([0, 5, 10, 15], np.int32),
    }
    with PersistentEstimator(estimator) as padded_one, PersistentEstimator(
        estimator, predict_keys=["logits"]
    ) as packed_one:
        expected = next(padded_one.predict([features]))
        got = next(packed_one.predict([packed]))
    assert set(expected) == {"logits", "probabilities"} and set(got) == {"logits"}
    assert np.abs(expected["logits"] - got["logits"]).max() < 1e-5


@needs_estimator
def test_unlike_batches_and_closed_ones_are_refused(estimator):
    persistent = PersistentEstimator(estimator)
    next(persistent.predict([make_features(1)]))
    with pytest.raises(InputError, match="input_mask"):
        next(persistent.predict([{"input_ids": make_features(1)["input_ids"]}]))
    with pytest.raises(InputError, match="one dict"):
        persistent.predict(make_features(1))
    assert next(persistent.predict([make_features(1)]))["logits"].shape == (3, 2)
    persistent.close()
    persistent.close()
    with pytest.raises(ClosedError):
        persistent.predict([make_features(1)])


@needs_estimator
def test_a_failing_model_says_why(estimator):
    persistent = PersistentEstimator(estimator)
    bad = make_features(1)
    bad["input_ids"] = bad["input_ids"] + 1000
    with pytest.raises(FtbertError, match="The Estimator's model ended: "):
        next(persistent.predict([bad]))
    with pytest.raises(ClosedError):
        persistent.predict([make_features(1)])


@needs_estimator
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_told(estimator):
    persistent = PersistentEstimator(estimator)
    next(persistent.predict([make_features(1)]))
    child = os.fork()
    if child == 0:
        try:
            persistent.predict([make_features(1)])
        except ClosedError:
            os._exit(7)
        os._exit(1)
    assert os.waitpid(child, 0)[1] >> 8 == 7
    persistent.close()


@needs_estimator
def test_only_an_estimator_will_do():
    with pytest.raises(ConfigError, match="expected a tf.estimator.Estimator"):
        PersistentEstimator(object())


@needs_estimator
def test_model_fn_names_what_it_lacks():
    with pytest.raises(ConfigError, match="num_labels"):
        modeling.model_fn({}, None, tf.estimator.ModeKeys.PREDICT, {"config": CONFIG})
    with pytest.raises(ConfigError, match="train_op"):
        modeling.model_fn({}, None, tf.estimator.ModeKeys.TRAIN, {"config": CONFIG, "num_labels": 2})


@pytest.mark.skipif(HAS_ESTIMATOR, reason="this TensorFlow has an Estimator")
def test_newer_tensorflow_is_told_the_alternative():
    with pytest.raises(UnavailableError, match="FastBertClassifier.load"):
        PersistentEstimator(object())
