"""Model folders of our own: what is kept, what replaces what, what is refused, and how paths are named."""

import json
import os

import models
import numpy as np
import pytest
from models import same, values

from ftbert import FastBertClassifier
from ftbert._ops import Weight
from ftbert.checkpoint import load_model_folder, save_model_folder, saving
from ftbert.errors import CheckpointError, ConfigError
from ftbert.tokenization import Tokenizer


def test_ours_keeps_everything(tmp_path):
    path = tmp_path / "deep" / "m"
    arrays = models.our_folder(
        path, problem_type="multi_label", max_length=20, truncation="tail", precision_checked={"cpu": "int8"}
    )
    folder = load_model_folder(str(path))
    assert folder.kind == "ftbert" and folder.labels == models.LABELS and folder.problem_type == "multi_label"
    assert (folder.max_length, folder.truncation, folder.precision_checked) == (20, "tail", {"cpu": "int8"})
    assert folder.config == models.CONFIG and same(values(path), arrays)
    assert sorted(os.listdir(str(path))) == [
        "bert_config.json",
        "ftbert.json",
        "labels.txt",
        "model.ckpt.data-00000-of-00001",
        "model.ckpt.index",
        "vocab.txt",
    ]
    assert dict(folder.summary())["labels"] == "3: lost card, 退款, password"


def test_another_format_version(tmp_path):
    models.our_folder(tmp_path / "m")
    path = tmp_path / "m" / "ftbert.json"
    path.write_text(json.dumps(dict(json.loads(path.read_text()), format=2)))
    with pytest.raises(CheckpointError, match="expected format 1, got 2"):
        load_model_folder(str(tmp_path / "m"))
    path.write_text("{")
    with pytest.raises(CheckpointError, match="expected readable JSON"):
        load_model_folder(str(tmp_path / "m"))


@pytest.mark.parametrize("exchange", [True, False])
def test_a_save_that_fails_keeps_the_old_model(tmp_path, monkeypatch, exchange):
    path = tmp_path / "m"
    arrays = models.our_folder(path)
    if not exchange:
        monkeypatch.setattr(saving, "_exchange", lambda first, second: False)

    def broken():
        yield from (Weight(name, array) for name, array in list(arrays.items())[:5])
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        save_model_folder(str(path), models.CONFIG, broken(), Tokenizer(models.VOCAB, True), models.LABELS)
    assert same(values(path), arrays) and os.listdir(str(tmp_path)) == ["m"]
    newer = models.our_folder(path, seed=1)
    assert same(values(path), newer) and not same(newer, arrays) and os.listdir(str(tmp_path)) == ["m"]


def save(path, **changes):
    arrays = models.random_weights(models.CONFIG, 3)
    arguments = {
        "config": models.CONFIG,
        "weights": [Weight(name, array) for name, array in arrays.items()],
        "tokenizer": Tokenizer(models.VOCAB, True),
        "labels": models.LABELS,
    }
    arguments.update(changes)
    save_model_folder(str(path), **arguments)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"labels": ["a", "b", "a"]}, "labels: expected different"),
        ({"labels": ["a", "b\nc", "d"]}, "of one line, got 'b"),
        ({"labels": ["a", "", "d"]}, "non-empty"),
        ({"labels": ["a", "b"]}, r"output_weights: expected shape \[2, 48\], got \[3, 48\]"),
        ({"weights": []}, "Expected also the weights"),
        ({"weights": [Weight("x", np.zeros(1, np.float32))]}, "x: not expected"),
        ({"problem_type": "ranking"}, "problem_type: expected"),
        ({"extra": {"format": 3}}, "'format' is a key of ftbert.json's own"),
    ],
)
def test_what_cannot_be_saved(tmp_path, changes, message):
    with pytest.raises((CheckpointError, ConfigError), match=message):
        save(tmp_path / "m", **changes)
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize("exchange", [True, False])
def test_a_link_goes_on_naming_its_folder(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(saving, "_exchange", lambda first, second: False)
    models.our_folder(tmp_path / "v1")
    os.symlink("v1", str(tmp_path / "current"))
    models.our_folder(tmp_path / "current", labels=["other", "names", "now"])
    assert os.path.islink(str(tmp_path / "current")) and sorted(os.listdir(str(tmp_path))) == ["current", "v1"]
    assert load_model_folder(str(tmp_path / "v1")).labels == ["other", "names", "now"]


def test_a_place_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="expected a place to write to"):
        models.our_folder(tmp_path / "file" / "model")


def test_only_our_folders_are_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("important")
    with pytest.raises(CheckpointError, match="is no folder that ftbert saved"):
        save(tmp_path)
    with pytest.raises(CheckpointError, match="is no folder that ftbert saved"):
        save(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "important"
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty")
    assert load_model_folder(str(tmp_path / "empty")).num_labels == 3


@pytest.mark.parametrize(
    "path, message",
    [
        ("file:" + "//" + "/models/intents", "without file://"),
        ("s3://bucket/intents", "not an address"),
        ("~/models/intents", "expanduser"),
        ("google-bert/bert-base-chinese", "Looked for in .*ftbert download google-bert/bert-base-chinese <folder>"),
        ("models/intents/v2", "Looked for in "),
        (None, "got None"),
        ("", "got ''"),
        (["models"], "Expected the path"),
    ],
)
def test_a_path_where_nothing_is_gets_a_hint(path, message):
    with pytest.raises(CheckpointError, match=message):
        FastBertClassifier.load(path)


def test_every_kind_of_path(tmp_path):
    folder = tmp_path / "意图 a"
    models.our_folder(folder)
    (tmp_path / "link").symlink_to(folder)
    for path in (folder, str(folder), os.fsencode(str(folder)), tmp_path / "link", str(folder) + os.sep):
        assert load_model_folder(path).labels == models.LABELS
    with FastBertClassifier.load(tmp_path / "link", device="cpu", runtime="direct") as loaded:
        loaded.save(tmp_path / "copy")
    assert load_model_folder(tmp_path / "copy").labels == models.LABELS


def test_byte_order_marks_and_line_ends_of_windows(tmp_path):
    models.our_folder(tmp_path / "m")
    for name in ("labels.txt", "vocab.txt", "bert_config.json", "ftbert.json"):
        path = tmp_path / "m" / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n" * (name == "labels.txt"))
    with FastBertClassifier.load(tmp_path / "m", device="cpu", runtime="direct") as loaded:
        assert loaded.labels == models.LABELS and loaded.tokenizer.vocab == models.VOCAB


TOKENIZER = {"lower_case": True, "strip_accents": True, "chinese_chars": True, "max_word_chars": 9}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"precision_checked": ["cpu"]}, "ftbert.json: precision_checked: expected"),
        ({"precision_checked": {"cpu": "fp7"}}, "ftbert.json: precision_checked: expected .* got {'cpu': 'fp7'}"),
        ({"max_length": 4000}, "m: max_length: expected at most"),
        ({"max_length": "64"}, "m: max_length: expected an integer"),
        ({"tokenizer": dict(TOKENIZER, lower_case="yes")}, "expected true, false and a whole number"),
        ({"tokenizer": dict(TOKENIZER, max_word_chars="9")}, "expected true, false and a whole number"),
    ],
)
def test_settings_changed_by_hand_are_checked(tmp_path, changes, message):
    models.our_folder(tmp_path / "m")
    path = tmp_path / "m" / "ftbert.json"
    path.write_text(json.dumps(dict(json.loads(path.read_text()), **changes)))
    with pytest.raises((CheckpointError, ConfigError), match=message):
        FastBertClassifier.load(tmp_path / "m", device="cpu", runtime="direct")


def test_a_folder_without_its_settings(tmp_path):
    models.our_folder(tmp_path / "m")
    (tmp_path / "m" / "ftbert.json").unlink()
    with pytest.raises(ConfigError, match="is ftbert.json missing"):
        load_model_folder(tmp_path / "m")


def test_no_such_folder(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such folder or checkpoint"):
        FastBertClassifier.load(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="expected a checkpoint in this folder"):
        FastBertClassifier.load(str(tmp_path))
