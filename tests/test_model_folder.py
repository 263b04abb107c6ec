"""Model folders of every origin: what is found in them, what is refused, and how ours are written."""

import json
import shutil

import models
import numpy as np
import pytest
from models import same, values

from ftbert import FastBertClassifier
from ftbert.checkpoint import CheckpointWriter, load_model_folder
from ftbert.errors import CheckpointError, ConfigError

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
