"""FastBertClassifier.load: options that are refused or chosen, models without a classifier, models saved and loaded."""

import json

import models
import numpy as np
import pytest
from models import load

from ftbert import FastBertClassifier, runtimes
from ftbert.errors import CheckpointError, ConfigError, InputError, UnavailableError


@pytest.mark.parametrize(
    "options, message",
    [
        ({"runtime": ["direct"]}, "runtime: expected one of direct, session, tensorflow, got"),
        ({"runtime": "fast"}, "runtime: expected one of direct, session, tensorflow"),
        ({"precision": "fp12"}, "precision: expected one of auto, fp32, "),
        ({"precision": ["fp32"]}, "precision: expected"),
        ({"max_length": 41}, "at most 40"),
        ({"max_length": 2}, "max_length: expected an integer of at least 3"),
        ({"max_length": "8"}, "max_length"),
        ({"truncation": "middle"}, "truncation: expected one of"),
        ({"truncation": ""}, "truncation: expected one of"),
        ({"lower_case": "no"}, "lower_case: expected True, False or None, got 'no'"),
        ({"threads": 0}, "threads: expected"),
        ({"threads": 1 << 20}, "threads: expected at most"),
        ({"device": ""}, "device: expected .* got ''"),
        ({"device": "gpu"}, "device: expected .* got 'gpu'"),
        ({"device": "cuda:x"}, "device: expected .* got 'cuda:x'"),
        ({"batch_tokens": 0}, "batch_tokens: expected"),
        ({"devices": []}, "devices: expected"),
        ({"devices": "cuda:0"}, "devices: expected"),
        ({"devices": 2}, "devices: expected"),
        ({"devices": ["cpu", "gpu"]}, "device: expected .* got 'gpu'"),
    ],
)
def test_wrong_options(google, options, message):
    with pytest.raises(ConfigError, match=message):
        FastBertClassifier.load(str(google[0]), **dict({"device": "cpu", "runtime": "direct"}, **options))


CARDS = [{"index": 0, "name": "old", "usable": False}, {"index": 1, "usable": True}, {"index": 2, "usable": True}]


@pytest.mark.parametrize(
    "cuda, automatic, everything",
    [
        ({"devices": [], "problem": "no driver"}, ["cpu"], ["cpu"]),
        ({"devices": CARDS, "problem": None}, ["cuda:1"], ["cuda:1", "cuda:2"]),
        ({"devices": CARDS, "problem": "no cuBLASLt"}, ["cpu"], ["cpu"]),
        ({"devices": CARDS[:1], "problem": None}, ["cpu"], ["cpu"]),
    ],
)
def test_auto_takes_a_card_that_can_be_used(monkeypatch, cuda, automatic, everything):
    monkeypatch.setattr(runtimes, "describe_machine", lambda: {"cpu": {}, "cuda": cuda})
    assert runtimes.choose_devices("auto", None) == automatic
    assert runtimes.choose_devices("auto", "all") == everything
    assert runtimes.choose_devices("cuda:7", None) == ["cuda:7"]  # named: never replaced


def test_a_device_that_is_not_here(google):
    with pytest.raises((UnavailableError, InputError), match="."):
        FastBertClassifier.load(str(google[0]), device="cuda:97", runtime="direct")


def test_threads_are_used_and_reported(google):
    texts = models.texts(50)
    with load(google[0], threads=1) as one, load(google[0], threads=2) as two:
        assert one.describe()[0]["threads"] == 1 and two.describe()[0]["threads"] == 2
        assert np.array_equal(one.predict_proba(texts), two.predict_proba(texts))


def test_several_devices_share_the_work(google):
    texts = models.texts(3000, seed=4)
    with load(google[0]) as one, FastBertClassifier.load(
        str(google[0]), devices=["cpu", "cpu"], threads=1, runtime="direct"
    ) as two:
        assert two.engine.count("cpu") == 2 and len(two.describe()) == 2
        assert np.array_equal(one.predict_proba(texts), two.predict_proba(texts))
        assert np.array_equal(one.predict_proba(["a"]), two.predict_proba(["a"]))


def test_a_checked_precision_is_what_auto_takes(tmp_path):
    models.our_folder(tmp_path / "m", precision_checked={"cpu": "int8"})
    with load(tmp_path / "m") as loaded:
        assert loaded.precision == "int8" and "int8" in loaded.engine
    with load(tmp_path / "m", precision="fp32") as loaded:
        assert loaded.precision == "fp32" and "fp32" in loaded.engine


def test_a_checked_precision_that_is_not_here_is_replaced_with_a_warning(tmp_path):
    models.our_folder(tmp_path / "m", precision_checked={"cpu": "fp8"})
    with pytest.warns(UserWarning, match="was checked in fp8.*running in fp32"):
        loaded = load(tmp_path / "m")
    with loaded:
        assert loaded.precision == "fp32"
    with pytest.raises(UnavailableError):
        load(tmp_path / "m", precision="fp8")


def test_the_folders_options_are_the_defaults(tmp_path):
    models.our_folder(tmp_path / "m", max_length=9, truncation="tail")
    with load(tmp_path / "m") as loaded:
        assert (loaded.max_length, loaded.truncation) == (9, "tail")
    with load(tmp_path / "m", max_length=20, truncation="head") as loaded:
        assert (loaded.max_length, loaded.truncation) == (20, "head")


def test_a_vocabulary_larger_than_the_model(tmp_path):
    models.google_folder(tmp_path)
    models.write_vocab(tmp_path, [*models.VOCAB, "extra"])
    with pytest.raises(CheckpointError, match="vocabulary has .* pieces, but the model embeds"):
        load(tmp_path)


# Models without a classifier


def test_an_encoder_encodes_and_says_what_it_lacks(tmp_path):
    arrays = models.google_folder(tmp_path, num_labels=0)
    texts = models.texts(9)
    with load(tmp_path) as loaded:
        expected = models.oracle(arrays, loaded.tokenize(texts).batch, "pooled")
        assert np.abs(loaded.encode(texts) - expected).max() <= 1e-5
        for call in (loaded.predict, loaded.predict_proba, loaded.predict_stream):
            with pytest.raises(UnavailableError, match=r"no classifier.*encode\(\).*Fine-tune"):
                call(texts)
        with pytest.raises(ConfigError, match="pooling: expected one of pooled, first, mean"):
            loaded.encode(texts, pooling="max")
        assert "encode() only" in loaded._repr_html_() and "0 labels" in repr(loaded)


def test_an_encoder_without_a_pooler(tmp_path, runtime):
    models.our_folder(tmp_path / "m", labels=[], has_pooler=False)
    with load(tmp_path / "m", runtime) as loaded:
        assert loaded.encode(["a"], "mean").shape == (1, 48) and loaded.encode(["a"], "first").shape == (1, 48)
        with pytest.raises(UnavailableError, match="no pooler: choose"):
            loaded.encode(["a"])


# Saving


@pytest.mark.parametrize("kind", ["google", "google fp16", "huggingface", "ours"])
def test_saved_and_loaded_predicts_bitwise_the_same(tmp_path, kind):
    source, saved = tmp_path / "source", tmp_path / "saved"
    if kind == "huggingface":
        models.huggingface_folder(source)
    elif kind == "ours":
        models.our_folder(source, max_length=20, truncation="tail", extra={"accuracy": 0.93})
    else:
        models.google_folder(source, dtype=np.float16 if "fp16" in kind else np.float32)
    texts = models.texts(200, longest=30)
    with load(source) as first:
        first.save(str(saved))
        with load(saved) as second:
            assert second.folder.kind == "ftbert" and second.labels == first.labels
            assert second.tokenizer.settings() == first.tokenizer.settings()
            assert (second.max_length, second.truncation) == (first.max_length, first.truncation)
            assert np.array_equal(first.predict_proba(texts), second.predict_proba(texts))
            assert np.array_equal(first.encode(texts), second.encode(texts))
        first.save(str(saved))  # again, over what is there
    if kind == "ours":
        assert json.loads((saved / "ftbert.json").read_text())["accuracy"] == 0.93
        with load(saved) as again:
            again.save(str(saved))  # over its own source
            assert again.predict(texts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved", "source"]
