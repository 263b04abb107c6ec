"""Model folders of every origin: what is found in them, what is refused, and how ours are written."""

import json
import os
import shutil

import models
import numpy as np
import pytest

from ftbert import FastBertClassifier
from ftbert._ops import Weight
from ftbert.checkpoint import CheckpointWriter, load_model_folder, save_model_folder, saving
from ftbert.errors import CheckpointError, ConfigError
from ftbert.tokenization import Tokenizer


def values(folder):
    """Every weight by name, kernels as (in, out), fp32."""
    return {
        weight.name: weight.array.T if weight.transposed and weight.name.endswith("/kernel") else weight.array
        for weight in load_model_folder(str(folder)).weights()
    }


def same(got, expected):
    return set(got) == set(expected) and all(np.array_equal(got[name], array) for name, array in expected.items())


# google-research/bert


def test_run_classifiers_output(tmp_path):
    arrays = models.google_folder(tmp_path)
    folder = load_model_folder(str(tmp_path))
    assert folder.kind == "google" and folder.config == models.CONFIG and folder.num_labels == 3
    assert folder.labels == ["LABEL_0", "LABEL_1", "LABEL_2"] and folder.problem_type == "single_label"
    assert folder.has_pooler and folder.max_length is None and same(values(tmp_path), arrays)
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    assert load_model_folder(str(tmp_path)).labels == ["a", "b", "c"]
    assert same(values(tmp_path / "model.ckpt-7"), arrays)
    (tmp_path / "labels.txt").write_text("a\nb\n")
    with pytest.raises(CheckpointError, match="expected 3 different labels, .*got 2"):
        load_model_folder(str(tmp_path))


def test_pretraining_heads_and_training_scalars_are_passed_over(tmp_path):
    arrays = models.google_folder(tmp_path, num_labels=0)
    shutil.rmtree(str(tmp_path))
    tmp_path.mkdir()
    models.google_folder(tmp_path, num_labels=0)
    for path in tmp_path.glob("model.ckpt*"):
        path.unlink()
    with CheckpointWriter(str(tmp_path / "model.ckpt-7")) as writer:
        for name, array in arrays.items():
            writer.add(name, array)
        heads = ["cls/predictions/output_bias", "cls/seq_relationship/output_weights"]
        for name in [*heads, "beta1_power", "learning_rate"]:
            writer.add(name, np.zeros(3, np.float32))
        writer.add("bert/pooler/dense/bias/ExponentialMovingAverage", np.zeros(48, np.float32))
    assert same(values(tmp_path), arrays)


def test_google_gelu_is_tanh_and_hugging_face_gelu_is_erf(tmp_path):
    models.google_folder(tmp_path / "google")
    models.huggingface_folder(tmp_path / "hf")
    assert load_model_folder(str(tmp_path / "google")).config.hidden_act == "gelu_tanh"
    assert load_model_folder(str(tmp_path / "hf")).config.hidden_act == "gelu_erf"


def test_a_folder_without_config(tmp_path):
    models.google_folder(tmp_path)
    (tmp_path / "bert_config.json").unlink()
    with pytest.raises(CheckpointError, match="run_classifier does not copy it: copy bert_config.json and vocab.txt"):
        load_model_folder(str(tmp_path))


def test_half_a_classifier(tmp_path):
    arrays = models.google_folder(tmp_path)
    with CheckpointWriter(str(tmp_path / "model.ckpt-7")) as writer:
        for name, array in arrays.items():
            if name != "output_weights":
                writer.add(name, array)
    with pytest.raises(CheckpointError, match="half a classifier"):
        load_model_folder(str(tmp_path))


def test_everything_that_does_not_fit_is_listed(tmp_path):
    arrays = models.google_folder(tmp_path)
    with CheckpointWriter(str(tmp_path / "model.ckpt-7")) as writer:
        for name, array in arrays.items():
            if name.startswith("bert/encoder/layer_1/output"):
                continue
            if name == "output_bias":
                array = np.zeros(4, np.float32)
            if name == "bert/embeddings/LayerNorm/beta":
                array = np.zeros(48, np.int64)
            writer.add(name, array)
        writer.add("crf/transitions", np.zeros((3, 3), np.float32))
    with pytest.raises(CheckpointError) as raised:
        FastBertClassifier.load(str(tmp_path), device="cpu", runtime="direct")
    text = str(raised.value)
    assert "missing (4):" in text and "bert/encoder/layer_1/output/dense/kernel [96, 48]" in text
    assert "misshapen (2):" in text and "output_bias: expected [3], got [4]" in text
    assert "beta: expected floating point values, got int64" in text
    assert "unexpected (1):" in text and "crf/transitions [3, 3]" in text


def test_long_lists_are_cut(tmp_path):
    models.google_folder(tmp_path)
    config = dict(models.CONFIG.to_dict("google"), num_hidden_layers=9)
    (tmp_path / "bert_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"missing \(112\)(.|\n)*and 100 more"):
        load_model_folder(str(tmp_path))


# Hugging Face


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_hugging_face_folders(tmp_path, prefix):
    arrays = models.huggingface_folder(tmp_path, prefix=prefix)
    folder = load_model_folder(str(tmp_path))
    assert folder.kind == "huggingface" and folder.labels == models.LABELS and folder.config == models.ERF_CONFIG
    assert folder.max_length == 32 and folder.problem_type == "single_label" and same(values(tmp_path), arrays)


def test_hugging_face_on_its_runtime_matches_the_oracle(tmp_path, runtime):
    arrays = models.huggingface_folder(tmp_path)
    texts = models.texts(20)
    with FastBertClassifier.load(str(tmp_path), device="cpu", runtime=runtime) as loaded:
        batch = loaded.tokenize(texts).batch
        expected = models.oracle(arrays, batch, "logits", models.ERF_CONFIG)
        assert np.abs(loaded.predict_ids(batch) - expected).max() <= 1e-5
        assert loaded.max_length == 32 and loaded.tokenizer.max_word_chars == 100


def test_old_names_of_layer_norm(tmp_path):
    arrays = models.huggingface_folder(tmp_path)
    tensors = models.huggingface_tensors(arrays, models.ERF_CONFIG)
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
        for name, array in tensors.items()
    }
    assert set(old) != set(tensors)
    models.write_safetensors(tmp_path / "model.safetensors", old)
    assert same(values(tmp_path), arrays)


def test_half_precision_tensors(tmp_path):
    arrays = models.huggingface_folder(tmp_path)
    tensors = models.huggingface_tensors(arrays, models.ERF_CONFIG)
    # bfloat16 is the upper half of fp32; the lower half is cut off here.
    halves = {name: (array.view(np.uint32) >> 16).astype(np.uint16) for name, array in tensors.items()}
    models.write_safetensors(tmp_path / "model.safetensors", halves)
    folder = load_model_folder(str(tmp_path))
    weights = list(folder.weights())
    assert all(weight.bfloat16 and weight.array.dtype == np.uint16 for weight in weights)
    assert folder.dtype("output_bias") == "bfloat16" and ("weights", "bfloat16") in [
        (key, value.split(", ")[-1]) for key, value in folder.summary()
    ]
    wide = {
        name: (array.astype(np.uint32) << 16).view(np.float32)
        for name, array in ((name, halves[name]) for name in halves)
    }
    texts = models.texts(20)
    with FastBertClassifier.load(str(tmp_path), device="cpu", runtime="direct") as first:
        expected = first.predict_proba(texts)
    models.write_safetensors(tmp_path / "model.safetensors", wide)
    with FastBertClassifier.load(str(tmp_path), device="cpu", runtime="direct") as second:
        assert np.array_equal(second.predict_proba(texts), expected)


def test_a_pretrained_encoder_with_language_model_heads(tmp_path):
    arrays = models.huggingface_folder(tmp_path, labels=[])
    tensors = models.huggingface_tensors(arrays, models.ERF_CONFIG)
    tensors["cls.predictions.bias"] = np.zeros(5, np.float32)
    tensors["cls.seq_relationship.weight"] = np.zeros((2, 48), np.float32)
    models.write_safetensors(tmp_path / "model.safetensors", tensors)
    folder = load_model_folder(str(tmp_path))
    assert folder.labels == [] and folder.has_pooler and same(values(tmp_path), arrays)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "roberta"}, "model_type: expected 'bert', got 'roberta'"),
        ({"hidden_act": "silu"}, "hidden_act: expected one of"),
        ({"problem_type": "regression"}, "predicts a number, not a label"),
        ({"problem_type": "ranking"}, "problem_type: expected one of"),
        ({"architectures": ["BertForTokenClassification"]}, "does not classify texts"),
        ({"id2label": {"0": "a", "1": "b"}}, "expected 3 different labels, .*got 2"),
        ({"id2label": {"0": "a", "1": "a", "2": "b"}}, r"got 3 \(2 different\)"),
        ({"id2label": {"1": "a", "2": "b", "3": "c"}}, "expected the keys 0 to C - 1"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ],
)
def test_hugging_face_models_that_cannot_be_run(tmp_path, change, message):
    models.huggingface_folder(tmp_path, **change)
    with pytest.raises((CheckpointError, ConfigError), match=message) as raised:
        load_model_folder(str(tmp_path))
    assert "config.json" in str(raised.value)


def test_one_label_without_a_problem_type_is_a_regression(tmp_path):
    models.huggingface_folder(tmp_path / "a", labels=["score"])
    with pytest.raises(CheckpointError, match="predicts a number"):
        load_model_folder(str(tmp_path / "a"))
    models.huggingface_folder(tmp_path / "b", labels=["score"], problem_type="multi_label_classification")
    assert load_model_folder(str(tmp_path / "b")).labels == ["score"]


def test_misshapen_names_are_the_files_own(tmp_path):
    arrays = models.huggingface_folder(tmp_path)
    tensors = models.huggingface_tensors(arrays, models.ERF_CONFIG)
    tensors["bert.encoder.layer.0.intermediate.dense.weight"] = np.zeros((48, 96), np.float32)
    del tensors["bert.pooler.dense.weight"]
    models.write_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(CheckpointError) as raised:
        load_model_folder(str(tmp_path))
    assert "bert.encoder.layer.0.intermediate.dense.weight: expected [96, 48], got [48, 96]" in str(raised.value)
    assert "bert.pooler.dense.weight [48, 48]" in str(raised.value)


def test_safetensors_without_config(tmp_path):
    models.huggingface_folder(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="expected config.json beside model.safetensors"):
        load_model_folder(str(tmp_path))


# Ours


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
