"""Model folders of one kind become another kind and return: every bit, and what other programs make of them."""

import json
import os
import shutil

import numpy as np
import pytest
from numpy_bert import run_batch

from ftbert._ops import Weight
from ftbert.checkpoint import (
    CheckpointWriter,
    convert,
    load_model_folder,
    open_checkpoint,
    save_model_folder,
    strip_optimizer,
    to_bf16,
    to_fp16,
)
from ftbert.checkpoint.names import weight_shapes
from ftbert.checkpoint.safetensors_writer import SafetensorsWriter, TensorSpec
from ftbert.config import BertConfig
from ftbert.errors import CheckpointError, ConfigError
from ftbert.tokenization import Tokenizer

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "卡", "丢", "了", "i", "lost", "my", "card", "##s", "?", "é"]
CONFIG = BertConfig(
    vocab_size=len(PIECES),
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=20,
)


def random_weights(config, labels, dtype="float32", seed=0):
    draw = np.random.RandomState(seed)
    for name, shape in weight_shapes(config, labels).items():
        yield Weight(name, (draw.randn(*shape) * 0.3).astype(dtype), False, False)


def make(path, config=CONFIG, labels=("card_lost", "退款", "other"), dtype="float32", **settings):
    tokenizer = Tokenizer(PIECES, lower_case=True)
    save_model_folder(
        str(path), config, random_weights(config, len(labels), dtype), tokenizer, labels=labels, **settings
    )
    return str(path)


def read_all(path):
    reader = open_checkpoint(str(path))
    return {name: (reader.dtype(name), np.array(reader.read(name))) for name in reader.names()}


def assert_same_tensors(first, second):
    assert set(first) == set(second)
    for name, (dtype, array) in first.items():
        assert second[name][0] == dtype and second[name][1].shape == array.shape
        assert second[name][1].tobytes() == array.tobytes(), name


@pytest.mark.parametrize(
    "path", [("huggingface",), ("tf1",), ("huggingface", "tf1"), ("tf1", "huggingface")], ids="-".join
)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_round_trips_are_bit_equal(tmp_path, path, dtype):
    source = make(tmp_path / "source", max_length=12)
    if dtype == "float16":
        to_fp16(source, str(tmp_path / "half"))
        source = str(tmp_path / "half")
    elif dtype == "bfloat16":
        to_bf16(source, str(tmp_path / "half"))
        source = str(tmp_path / "half")
    current = source
    for step, format in enumerate(path + ("ftbert",)):
        target = str(tmp_path / ("%d_%s" % (step, format)))
        report = convert(current, target, format)
        assert report.changed == () and "bit-equal" in str(report)
        current = target
    assert_same_tensors(read_all(source), read_all(current))
    before, after = load_model_folder(source), load_model_folder(current)
    assert after.config == before.config and after.labels == before.labels == ["card_lost", "退款", "other"]
    assert after.problem_type == before.problem_type
    tokenizers = [Tokenizer.from_folder(folder) for folder in (source, current)]
    assert tokenizers[0].vocab == tokenizers[1].vocab and tokenizers[0].settings() == tokenizers[1].settings()
    assert after.max_length == (12 if "tf1" not in path else after.max_length)


def test_the_real_checkpoint_keeps_its_pretraining_heads(tmp_path, shared_data):
    source = str(shared_data("tiny_tf1_checkpoint"))
    report = convert(source, str(tmp_path / "hf"), "huggingface")
    assert (report.source_format, report.tensors, len(report.left_out)) == ("tf1", 46, 93)
    assert json.load(open(str(tmp_path / "hf" / "config.json")))["architectures"] == ["BertForPreTraining"]
    assert "cls.predictions.transform.dense.weight" in open_checkpoint(str(tmp_path / "hf"))
    convert(str(tmp_path / "hf"), str(tmp_path / "tf1"), "tf1")
    strip_optimizer(source, str(tmp_path / "stripped"))
    assert_same_tensors(read_all(tmp_path / "stripped"), read_all(tmp_path / "tf1"))


def hugging_face_folder(path, config, tensors, **values):
    os.mkdir(str(path))
    with SafetensorsWriter(
        os.path.join(str(path), "model.safetensors"),
        [TensorSpec(name, array.dtype.name, array.shape) for name, array in tensors.items()],
    ) as writer:
        for name, array in tensors.items():
            writer.add(name, array)
    with open(os.path.join(str(path), "config.json"), "w") as file:
        json.dump(dict(config.to_dict("huggingface"), **values), file)
    Tokenizer(PIECES, lower_case=True).save(str(path))
    return str(path)


def hugging_face_tensors(tmp_path):
    convert(make(tmp_path / "ours", labels=()), str(tmp_path / "hf"), "huggingface")
    return {name: array for name, (_, array) in read_all(tmp_path / "hf").items()}


def test_a_bare_encoder_stays_bare_and_its_buffer_goes(tmp_path):
    tensors = hugging_face_tensors(tmp_path)
    assert "embeddings.word_embeddings.weight" in tensors  # no "bert." before it, as BertModel has it
    tensors["embeddings.position_ids"] = np.arange(20).reshape(1, 20)
    source = hugging_face_folder(tmp_path / "bare", CONFIG, tensors)
    report = convert(source, str(tmp_path / "tf1"), "tf1")
    assert report.left_out == ("embeddings.position_ids",)
    convert(str(tmp_path / "tf1"), str(tmp_path / "back"), "huggingface")
    tensors.pop("embeddings.position_ids")
    back = read_all(tmp_path / "back")
    assert set(back) == set(tensors)
    for name, array in tensors.items():
        assert back[name][1].tobytes() == array.tobytes()


def test_old_layer_norm_names_and_shared_tensors(tmp_path):
    """As converted checkpoints of 2019 have them: gamma and beta, and a decoder that repeats the word embeddings."""
    tensors = {"bert." + name: array for name, array in hugging_face_tensors(tmp_path).items()}
    for name in list(tensors):
        if "LayerNorm" in name:
            tensors[name.replace(".weight", ".gamma").replace(".bias", ".beta")] = tensors.pop(name)
    draw = np.random.RandomState(5)
    tensors["cls.predictions.bias"] = draw.randn(len(PIECES)).astype(np.float32)
    tensors["cls.predictions.transform.dense.weight"] = draw.randn(16, 16).astype(np.float32)
    tensors["cls.predictions.transform.dense.bias"] = draw.randn(16).astype(np.float32)
    tensors["cls.predictions.transform.LayerNorm.gamma"] = draw.randn(16).astype(np.float32)
    tensors["cls.predictions.transform.LayerNorm.beta"] = draw.randn(16).astype(np.float32)
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    source = hugging_face_folder(tmp_path / "old", CONFIG, tensors)
    report = convert(source, str(tmp_path / "tf1"), "tf1")
    assert report.left_out == ("cls.predictions.decoder.weight",)
    converted = read_all(tmp_path / "tf1")
    kernel = converted["cls/predictions/transform/dense/kernel"][1]
    np.testing.assert_array_equal(kernel, tensors["cls.predictions.transform.dense.weight"].T)
    gamma = converted["cls/predictions/transform/LayerNorm/gamma"][1]
    np.testing.assert_array_equal(gamma, tensors["cls.predictions.transform.LayerNorm.gamma"])
    tensors["cls.predictions.decoder.weight"] = tensors["cls.predictions.decoder.weight"] + 1
    source = hugging_face_folder(tmp_path / "untied", CONFIG, tensors)
    with pytest.raises(CheckpointError, match="cls.predictions.decoder.weight to equal"):
        convert(source, str(tmp_path / "never"), "tf1")
    assert not os.path.exists(str(tmp_path / "never"))


def test_what_google_cannot_say_is_refused_unless_accepted(tmp_path):
    config = BertConfig.from_dict(dict(CONFIG.to_dict(), hidden_act="gelu_erf", norm_epsilon=1e-6), "ftbert")
    source = make(tmp_path / "source", config, problem_type="multi_label", truncation="tail", max_length=9)
    with pytest.raises(ConfigError, match="gelu_erf.*norm_epsilon 1e-06.*multi_label.*strict=False"):
        convert(source, str(tmp_path / "tf1"), "tf1")
    assert not os.path.exists(str(tmp_path / "tf1"))
    report = convert(source, str(tmp_path / "tf1"), "tf1", strict=False)
    assert len(report.changed) == 3 and any("truncation" in note for note in report.notes)
    assert json.load(open(str(tmp_path / "tf1" / "bert_config.json")))["hidden_act"] == "gelu"
    assert_same_tensors(read_all(source), read_all(tmp_path / "tf1"))
    # Hugging Face's format says all three.
    assert convert(source, str(tmp_path / "hf"), "huggingface").changed == ()
    values = json.load(open(str(tmp_path / "hf" / "config.json")))
    assert values["hidden_act"] == "gelu" and values["layer_norm_eps"] == 1e-6
    assert values["problem_type"] == "multi_label_classification"
    convert(str(tmp_path / "hf"), str(tmp_path / "back"), "ftbert")
    assert load_model_folder(str(tmp_path / "back")).config == config


def test_refusals(tmp_path):
    source = make(tmp_path / "source")
    with pytest.raises(ConfigError, match="format: expected one of ftbert, huggingface, tf1, got 'onnx'"):
        convert(source, str(tmp_path / "x"), "onnx")
    with pytest.raises(CheckpointError, match="expected a new or empty folder"):
        convert(source, source, "huggingface")
    with pytest.raises(CheckpointError, match="no such folder"):
        convert(str(tmp_path / "nothing"), str(tmp_path / "x"), "huggingface")
    os.remove(os.path.join(source, "vocab.txt"))
    with pytest.raises(CheckpointError, match="vocab"):
        convert(source, str(tmp_path / "x"), "huggingface")
    assert sorted(os.listdir(str(tmp_path))) == ["source"]


@pytest.mark.parametrize("extra", ["bert/pooler/dense/kernel/extra", "cls/odd/head"])
def test_unknown_tensors_are_not_dropped_silently(tmp_path, extra):
    source = make(tmp_path / "source")
    tensors = read_all(source)
    tensors[extra] = ("float32", np.ones(3, np.float32))
    with CheckpointWriter(os.path.join(source, "model.ckpt")) as writer:
        for name, (_, array) in tensors.items():
            writer.add(name, array)
    with pytest.raises(CheckpointError, match=extra):
        convert(source, str(tmp_path / "x"), "huggingface")
    assert not os.path.exists(str(tmp_path / "x"))


def test_transformers_computes_the_same_from_the_converted_folder(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = make(tmp_path / "source", max_length=12)
    convert(source, str(tmp_path / "hf"), "huggingface")
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        str(tmp_path / "hf"), output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    weights = {weight.name: weight.array for weight in load_model_folder(source).weights()}
    state = model.state_dict()
    layer = "bert.encoder.layer.1."
    np.testing.assert_array_equal(
        state[layer + "intermediate.dense.weight"].numpy().T, weights["bert/encoder/layer_1/intermediate/dense/kernel"]
    )
    np.testing.assert_array_equal(state["classifier.weight"].numpy(), weights["output_weights"])
    assert model.config.id2label == {0: "card_lost", 1: "退款", 2: "other"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "hf"))
    texts = ["I lost my CARDS?", "卡丢了", "É xyz"]
    ours = Tokenizer.from_folder(source).encode(texts, max_length=12).batch
    rows = np.split(ours.token_ids, ours.row_splits[1:-1])
    assert [row.tolist() for row in rows] == tokenizer(texts)["input_ids"]
    # Back and forth once more: the same numbers give the same logits.
    convert(str(tmp_path / "hf"), str(tmp_path / "again_tf1"), "tf1")
    convert(str(tmp_path / "again_tf1"), str(tmp_path / "again"), "huggingface")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "again"))
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        first, second = model.eval()(**inputs).logits, again.eval()(**inputs).logits
    assert torch.equal(first, second)
    oracle = run_batch(CONFIG, weights, ours, ("logits",))["logits"]
    np.testing.assert_allclose(first.numpy(), oracle, atol=1e-5)
    assert np.abs(oracle).max() > 1e-2


def test_tensorflow_restores_what_the_tools_wrote(tmp_path):
    """tf.train.Saver of the TensorFlow that is here, on the graph of google-research/bert's variables."""
    pytest.importorskip("tensorflow")
    from tensorflow.compat import v1 as tf

    from ftbert.modeling import create_variables, variable_specs

    source = make(tmp_path / "source")
    convert(source, str(tmp_path / "hf"), "huggingface")
    convert(str(tmp_path / "hf"), str(tmp_path / "tf1"), "tf1")
    expected = read_all(source)
    with tf.Graph().as_default(), tf.Session() as session:
        variables = create_variables(variable_specs(CONFIG, 3))
        tf.train.Saver(variables).restore(session, str(tmp_path / "tf1" / "bert_model.ckpt"))
        for name, value in session.run(dict(variables)).items():
            assert value.tobytes() == expected[name][1].tobytes(), name


def test_tensorflow_reads_half_precision_and_our_loader_widens_it(tmp_path):
    """An fp16 checkpoint in an fp32 graph: the Saver refuses by type, our loader converts; and the other way round."""
    pytest.importorskip("tensorflow")
    from tensorflow.compat import v1 as tf

    from ftbert.modeling import assign_weights, create_variables, variable_specs

    source = make(tmp_path / "source")
    to_fp16(source, str(tmp_path / "half"))
    to_bf16(source, str(tmp_path / "brain"))
    reader = tf.train.NewCheckpointReader(str(tmp_path / "half" / "model.ckpt"))
    kernel = "bert/pooler/dense/kernel"
    assert reader.get_tensor(kernel).dtype == np.float16
    single = read_all(source)[kernel][1]
    for folder in ("half", "brain"):
        with tf.Graph().as_default(), tf.Session() as session:
            variables = create_variables(variable_specs(CONFIG, 3))
            assert assign_weights(session, variables, load_model_folder(str(tmp_path / folder)).weights()) == []
            value = session.run(variables[kernel])
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, single, rtol=2.0**-8 if folder == "brain" else 2.0**-11, atol=1e-7)
    with tf.Graph().as_default(), tf.Session() as session:
        half = tf.get_variable(kernel, single.shape, tf.float16)
        session.run(half.initializer, {half.initializer.inputs[1]: single.astype(np.float16)})
        tf.train.Saver().restore(session, str(tmp_path / "half" / "model.ckpt"))
        np.testing.assert_array_equal(session.run(half), single.astype(np.float16))


def test_a_licence_goes_along(tmp_path):
    source = make(tmp_path / "source")
    shutil.copy(os.path.join(source, "labels.txt"), os.path.join(source, "LICENSE"))
    convert(source, str(tmp_path / "hf"), "huggingface")
    assert (tmp_path / "hf" / "LICENSE").exists()
