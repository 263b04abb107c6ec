"""FastBertClassifier.load's options: what is refused, what is chosen, what a folder says of itself."""


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
