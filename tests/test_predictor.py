"""FastBertClassifier: answers against the numpy oracle on every runtime, in the caller's order, and what it refuses."""

import json
import pickle
import threading
import time

import models
import numpy as np
import pytest
from models import load
from tolerances import RUNTIME_TOLERANCE

from ftbert import Prediction
from ftbert.batching import pack
from ftbert.errors import ClosedError, ConfigError, InputError
from ftbert.prediction import predictions_from_scores, scores_from_logits


@pytest.fixture(scope="module")
def classifier(google):
    with load(google[0]) as loaded:
        yield loaded


def test_logits_and_vectors_match_the_oracle(google, runtime):
    folder, arrays = google
    texts = models.texts(40)
    tolerance = RUNTIME_TOLERANCE[runtime]
    with load(folder, runtime) as loaded:
        batch = loaded.tokenize(texts).batch
        logits = models.oracle(arrays, batch, "logits")
        assert np.abs(loaded.predict_ids(batch) - logits).max() <= tolerance
        proba = loaded.predict_proba(texts)
        assert proba.dtype == np.float32
        assert np.abs(proba - scores_from_logits(logits, "single_label")).max() <= tolerance
        labels = [prediction.label for prediction in loaded.predict(texts)]
        assert labels == [loaded.labels[index] for index in logits.argmax(-1)]
        states = models.oracle(arrays, batch, "token_states")
        mean = np.stack([states[a:b].mean(0) for a, b in zip(batch.row_splits, batch.row_splits[1:])])
        for pooling, expected in (
            ("pooled", models.oracle(arrays, batch, "pooled")),
            ("first", models.oracle(arrays, batch, "first_states")),
            ("mean", mean),
        ):
            got = loaded.encode(texts, pooling=pooling)
            assert got.dtype == np.float32 and np.abs(got - expected).max() <= tolerance
            assert np.array_equal(loaded.encode_ids(batch, pooling), got)


def test_session_and_direct_agree_bitwise(google):
    pytest.importorskip("tensorflow")
    texts = models.texts(300, seed=1)
    with load(google[0], "direct") as direct, load(google[0], "session") as session:
        assert np.array_equal(direct.predict_proba(texts), session.predict_proba(texts))
        for pooling in ("pooled", "first", "mean"):
            assert np.array_equal(direct.encode(texts, pooling), session.encode(texts, pooling))


def test_results_come_in_the_callers_order_whatever_the_batches(classifier):
    texts = models.texts(3000, seed=2)
    whole = classifier.predict_proba(texts)
    assert whole.shape == (3000, 3)
    alone = np.concatenate([classifier.predict_proba([text]) for text in texts[::60]])
    assert np.array_equal(alone, whole[::60])  # a row alone is the same row in any batch
    for batch_tokens in (1, 50, 700, 1 << 20):
        some = texts if batch_tokens > 100 else texts[:200]
        assert np.array_equal(classifier.predict_proba(some, batch_tokens=batch_tokens), whole[: len(some)])
    streamed = list(classifier.predict_stream(iter(texts)))
    assert streamed == classifier.predict(texts)
    assert [prediction.score for prediction in streamed] == whole.max(-1).tolist()


def test_prediction_record(classifier):
    (plain,) = classifier.predict(["卡丢了"])
    (full,) = classifier.predict(["卡丢了"], top_k=3)
    (more,) = classifier.predict(["卡丢了"], top_k=99)
    assert plain == full and plain.top == full.top[:1] and full.top == more.top and len(full.top) == 3
    assert list(plain.scores) == classifier.labels and sum(plain.scores.values()) == pytest.approx(1, abs=1e-6)
    assert [label for label, _ in full.top] == sorted(plain.scores, key=plain.scores.get, reverse=True)
    assert plain.label == full.top[0][0] and plain.score == plain.scores[plain.label] and not plain.truncated
    assert repr(plain) == "Prediction(label=%r, score=%.4f)" % (plain.label, plain.score)
    assert plain.label in repr(full) and "then" in repr(full)
    again = pickle.loads(pickle.dumps(classifier.predict(models.texts(20))[5]))
    assert isinstance(again, Prediction) and again == classifier.predict(models.texts(20))[5]
    assert plain != classifier.predict(["?"])[0] and plain != "卡丢了"
    (every,) = classifier.predict(["卡丢了"], top_k=None)
    assert every.top == full.top == classifier.predict(["卡丢了"], top_k=np.int64(3))[0].top
    assert json.loads(json.dumps(plain.to_dict())) == {
        "label": plain.label, "score": plain.score, "truncated": False, "scores": plain.scores,
    }  # fmt: skip


def test_a_classifier_says_why_it_cannot_be_pickled(classifier):
    with pytest.raises(TypeError, match="Load the model in each process"):
        pickle.dumps(classifier)


@pytest.mark.parametrize("top_k", [0, -1, True, 1.5, "all"])
def test_top_k_is_checked_before_anything_runs(classifier, top_k, monkeypatch):
    monkeypatch.setattr(classifier._pool, "run", None)
    for call in (classifier.predict, classifier.predict_stream):
        with pytest.raises(InputError, match="top_k: expected an integer"):
            call(["a"], top_k=top_k)


def test_equal_scores_keep_the_order_of_the_labels():
    scores = np.full((1, 4), 0.25, np.float32)
    (prediction,) = predictions_from_scores(scores, np.array([False]), list("wxyz"), 3)
    assert [label for label, _ in prediction.top] == ["w", "x", "y"] and prediction.label == "w"


def test_scores_of_large_logits_stay_finite():
    logits = np.array([[1e30, -1e30, 0.0], [-200.0, -200.0, -201.0]], np.float32)
    soft = scores_from_logits(logits, "single_label")
    assert np.isfinite(soft).all() and soft[0].tolist() == [1, 0, 0] and soft.sum(-1) == pytest.approx([1, 1])
    sigmoid = scores_from_logits(logits, "multi_label")
    assert np.isfinite(sigmoid).all() and sigmoid[0].tolist() == [1, 0, 0.5] and sigmoid.dtype == np.float32


def test_multi_label_scores_are_sigmoids(tmp_path):
    arrays = models.huggingface_folder(tmp_path, problem_type="multi_label_classification")
    texts = models.texts(10)
    with load(tmp_path) as loaded:
        assert loaded.problem_type == "multi_label"
        logits = models.oracle(arrays, loaded.tokenize(texts).batch, "logits", models.ERF_CONFIG)
        proba = loaded.predict_proba(texts)
        assert np.abs(proba - 1 / (1 + np.exp(-logits))).max() <= 1e-5
        for prediction, row in zip(loaded.predict(texts), proba):
            assert prediction.score == row.max() and "sigmoid" in loaded._repr_html_()


# What comes in


def test_no_texts(classifier):
    assert classifier.predict([]) == [] and list(classifier.predict_stream([])) == []
    assert classifier.predict_proba([]).shape == (0, 3) and classifier.encode([]).shape == (0, 48)


@pytest.mark.parametrize(
    "texts, message",
    [
        ("a text", r"single string.*predict\(\[text\]\)"),
        (None, "NoneType"),
        (5, "int"),
        (["a", None], r"texts\[1\].*NoneType"),
        (["a", 1], r"texts\[1\].*int 1"),
        ([b"a"], r"texts\[0\].*bytes"),
        ([("a", "b", "c")], r"texts\[0\].*pair"),
        (["a"] * 3000 + [None], r"texts\[3000\]"),
    ],
)
@pytest.mark.parametrize("method", ["predict", "predict_proba", "encode", "predict_stream", "tokenize"])
def test_what_is_no_text_is_refused(classifier, method, texts, message):
    with pytest.raises(InputError, match=message):
        result = getattr(classifier, method)(texts)
        if method == "predict_stream":
            list(result)


def test_nothing_runs_before_all_texts_are_checked(classifier, monkeypatch):
    calls = []
    monkeypatch.setattr(classifier._pool, "run", lambda *a: calls.append(a))
    monkeypatch.setattr(classifier._pool, "submit", lambda *a: calls.append(a))
    with pytest.raises(InputError):
        classifier.predict(["a"] * 3000 + [None])
    assert not calls


def test_a_million_characters(classifier):
    (prediction,) = classifier.predict(["ab " * 333333 + "c"])
    (short,) = classifier.predict(["ab " * 19])
    assert prediction.truncated and not short.truncated
    assert prediction.scores == short.scores  # the head of the one is the other


def test_strange_texts_have_answers(classifier):
    strange = ["", " \n\t", "\x00", "\ud800", "\U0001f600" * 50, "x" * 5000, ("", ""), "\u202e\u200f"]
    predictions = classifier.predict(strange)
    assert len(predictions) == len(strange) and predictions[0].scores == predictions[1].scores == predictions[2].scores
    assert all(np.isfinite(prediction.score) for prediction in predictions)


@pytest.mark.parametrize("truncation", ["head", "tail", "head+tail"])
def test_truncation_policies(google, truncation):
    text = " ".join(models.LETTERS * 3)
    with load(google[0], truncation=truncation, max_length=12) as loaded:
        long, short = loaded.predict([text, "a b"])
        assert long.truncated and not short.truncated and "truncated=True" in repr(long)
        head = {"head": 10, "tail": 0, "head+tail": 2}[truncation]
        letters = text.split()
        kept = letters[:head] + letters[len(letters) - 10 + head :]
        assert long.scores == loaded.predict([" ".join(kept)])[0].scores


def test_truncation_error_runs_nothing(google, monkeypatch):
    with load(google[0], truncation="error", max_length=6) as loaded:
        assert not loaded.predict(["a b c d"])[0].truncated
        monkeypatch.setattr(loaded._pool, "submit", None)
        with pytest.raises(InputError, match=r"texts\[2500\]: expected at most 6 tokens, got 7"):
            loaded.predict(["a"] * 2500 + ["a b c d e"])
        monkeypatch.undo()
        assert len(loaded.predict(["a"] * 2500)) == 2500
        stream = loaded.predict_stream(["a"] * 2500 + ["a b c d e"])
        with pytest.raises(InputError, match=r"texts\[2500\]"):
            list(stream)


def test_pairs_differ_from_their_halves(classifier):
    pair, joined, swapped = classifier.predict_proba([("a b", "c"), "a b c", ("c", "a b")])
    assert not np.allclose(pair, joined) and not np.allclose(pair, swapped)


def test_progress(classifier, capsys):
    seen = []
    texts = models.texts(2500)
    classifier.predict(texts, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2500, 2500) and len(seen) > 2 and seen == sorted(seen)
    seen.clear()
    classifier.encode(["a"], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 1)]
    pytest.importorskip("tqdm")
    classifier.predict(texts, progress=True)
    assert "2500/2500" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="progress"):
        classifier.predict(texts, progress="yes")


def test_stream_reads_little_ahead(classifier):
    taken = [0]

    def endless():
        while True:
            taken[0] += 1
            yield "a b c"

    stream = classifier.predict_stream(endless())
    first = next(stream)
    assert first.label in classifier.labels and taken[0] <= 8000
    stream.close()
    before = taken[0]
    assert len(classifier.predict(["a"])) == 1
    assert taken[0] <= before + 1024  # the reader stops soon after the stream is closed


def test_stream_passes_the_readers_error_on(classifier):
    def broken():
        for index in range(5000):
            yield "a"
        raise OSError("the disk is gone")

    got = []
    with pytest.raises(OSError, match="the disk is gone"):
        for prediction in classifier.predict_stream(broken()):
            got.append(prediction)
    assert len(classifier.predict(["a"])) == 1  # still usable


def test_a_wrong_item_in_a_stream_is_numbered(classifier):
    with pytest.raises(InputError, match=r"texts\[4000\]"):
        list(classifier.predict_stream("a" if index != 4000 else None for index in range(4500)))


def test_wrong_ids_are_the_callers_error(google, runtime):
    if runtime == "tensorflow":
        pytest.skip("TensorFlow's own check of ids depends on its version")
    with load(google[0], runtime) as loaded:
        for ids in ([[2, len(models.VOCAB), 3]], [[2, -1, 3]], [[2] * 41]):
            with pytest.raises(InputError, match="expected|Expected"):
                loaded.predict_ids(pack(ids))
        assert loaded.predict_ids(pack([[2, 3]])).shape == (1, 3)
        for wrong in ([[2, 3]], loaded.tokenize(["a"])):
            for call in (loaded.predict_ids, loaded.encode_ids):
                with pytest.raises(InputError, match="Expected a PackedBatch"):
                    call(wrong)


def test_words_about_it(classifier, google):
    assert repr(classifier).startswith("FastBertClassifier(%r, 3 labels, cpu " % str(google[0]))
    html = classifier._repr_html_()
    assert html.startswith("<table>") and classifier.engine in html and "softmax" in html
    (facts,) = classifier.describe()
    assert facts["runtime"] == "direct" and facts["precision"] == "fp32" and facts["weight_bytes"] > 0
    assert classifier.tune([8, 16]) >= 0
    with pytest.raises(ConfigError, match="token_counts"):
        classifier.tune([0])
    classifier.warm(64, at_once=2)  # nothing to prepare on a CPU


def test_many_threads_at_once(google, runtime):
    texts = models.texts(120, seed=5)
    with load(google[0], runtime) as loaded:
        expected = loaded.predict_proba(texts)
        wrong = []

        def work(index):
            for turn in range(6):
                part = slice((index * 7 + turn) % 60, (index * 7 + turn) % 60 + 40)
                if runtime == "tensorflow":  # its sums depend on the rows beside
                    same = np.abs(loaded.predict_proba(texts[part]) - expected[part]).max() <= 1e-5
                else:
                    same = np.array_equal(loaded.predict_proba(texts[part]), expected[part])
                if not same:
                    wrong.append((index, turn))

        threads = [threading.Thread(target=work, args=(index,)) for index in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not wrong and not any(thread.is_alive() for thread in threads)


def test_closed(google, runtime):
    loaded = load(google[0], runtime)
    stream = loaded.predict_stream(["a"] * 20000)
    next(stream)
    loaded.close()
    loaded.close()
    assert "closed" in repr(loaded)
    with pytest.raises(ClosedError, match="Load the model again"):
        list(stream)
    for call in (loaded.predict, loaded.predict_proba, loaded.encode, loaded.predict_stream):
        with pytest.raises(ClosedError, match="was closed"):
            list(call(["a"]))
    with pytest.raises(ClosedError):
        loaded.predict([])
    with pytest.raises(ClosedError):
        loaded.predict_ids(pack([[2, 3]]))
    with pytest.raises(ClosedError):
        loaded.describe()


def test_close_waits_for_calls_that_run(google, monkeypatch):
    loaded = load(google[0])
    inside, order = threading.Event(), []
    run = loaded._runtimes[0].run

    def slow(batch, want):
        inside.set()
        time.sleep(0.3)
        values = run(batch, want)
        order.append("answered")
        return values

    monkeypatch.setattr(loaded._runtimes[0], "run", slow)
    thread = threading.Thread(target=lambda: order.append(len(loaded.predict(["a"]))))
    thread.start()
    assert inside.wait(30)
    loaded.close()
    order.append("closed")
    thread.join(30)
    assert order[0] == "answered" and sorted(map(str, order)) == ["1", "answered", "closed"]
