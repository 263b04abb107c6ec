"""Exports run without ftbert, in the programs they are for, and compute what the model computes."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from numpy_bert import run_batch
from test_checkpoint_convert import CONFIG, PIECES, make, read_all

from ftbert.batching import pack
from ftbert.checkpoint import load_model_folder, to_fp16
from ftbert.config import BertConfig
from ftbert.errors import CheckpointError, UnavailableError
from ftbert.export import export_onnx, export_saved_model

ACTS = ["gelu_tanh", "gelu_erf", "relu"]


def with_act(act):
    return BertConfig.from_dict(dict(CONFIG.to_dict(), hidden_act=act), "ftbert")


def padded_rows(seed=0):
    """Three rows of different lengths: padded ids, mask and segments (B, S), and the rows."""
    draw = np.random.RandomState(seed)
    lengths = [3, 20, 7]
    ids, mask, segments = (np.zeros((3, 20), np.int32) for _ in range(3))
    rows = []
    for row, length in enumerate(lengths):
        ids[row, :length] = draw.randint(5, len(PIECES), length)
        mask[row, :length] = 1
        segments[row, length // 2 : length] = 1
        rows.append((ids[row, :length], segments[row, :length]))
    return ids, mask, segments, rows


def oracle(folder, rows, want):
    model = load_model_folder(folder)
    weights = {}
    for weight in model.weights():
        weights[weight.name] = np.asarray(weight.array, np.float32)
    batch = pack([ids for ids, _ in rows], [segments for _, segments in rows])
    return run_batch(model.config, weights, batch, want)


def softmax(logits):
    grown = np.exp(logits - logits.max(-1, keepdims=True))
    return grown / grown.sum(-1, keepdims=True)


# ------------------------------------------------------------------------------------------------------------- ONNX


@pytest.mark.parametrize("act", ACTS)
def test_onnxruntime_computes_the_models_logits(tmp_path, act):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    source = make(tmp_path / "source", with_act(act))
    path = export_onnx(source, str(tmp_path / "new" / "model.onnx"))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids, mask, segments, rows = padded_rows()
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
    (logits,) = session.run(["logits"], {name: array.astype(np.int64) for name, array in inputs.items()})
    expected = oracle(source, rows, ("logits",))["logits"]
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["labels"]) == ["card_lost", "退款", "other"]
    assert json.loads(metadata["tokenizer"])["lower_case"] is True
    assert os.listdir(str(tmp_path / "new")) == ["model.onnx"]


def test_onnx_of_an_encoder_and_of_half_precision(tmp_path):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    to_fp16(make(tmp_path / "source", labels=()), str(tmp_path / "half"))
    path = export_onnx(str(tmp_path / "half"), str(tmp_path / "model.onnx"))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids, mask, segments, rows = padded_rows()
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
    outputs = session.run(
        ["last_hidden_state", "pooler_output"], {name: array.astype(np.int64) for name, array in inputs.items()}
    )
    expected = oracle(str(tmp_path / "half"), rows, ("token_states", "pooled"))
    np.testing.assert_allclose(outputs[0][mask.astype(bool)], expected["token_states"], atol=1e-4)
    np.testing.assert_allclose(outputs[1], expected["pooled"], atol=1e-4)


def test_onnx_refusals_leave_the_destination(tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    source = make(tmp_path / "source")
    (tmp_path / "model.onnx").write_text("old")
    monkeypatch.setattr("ftbert.export.onnx_model._LARGEST", 1000)
    with pytest.raises(CheckpointError, match="do not fit into an ONNX file"):
        export_onnx(source, str(tmp_path / "model.onnx"))
    with pytest.raises(CheckpointError, match="no such folder"):
        export_onnx(str(tmp_path / "nothing"), str(tmp_path / "model.onnx"))
    assert (tmp_path / "model.onnx").read_text() == "old"
    assert sorted(os.listdir(str(tmp_path))) == ["model.onnx", "source"]


def test_without_onnx_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UnavailableError, match="pip install onnx"):
        export_onnx(make(tmp_path / "source"), str(tmp_path / "model.onnx"))


# -------------------------------------------------------------------------------------------------------- SavedModel

# A reader that knows nothing of ftbert. The v1 way runs on every TensorFlow, the v2 way where there is one.
READER = """
    import json, sys
    import numpy as np
    import tensorflow
    from tensorflow.compat import v1 as tf

    folder, inputs = sys.argv[1:3]
    inputs = {name: np.array(value, np.int32) for name, value in json.loads(inputs).items()}
    for way in sys.argv[3:]:
        if way == "v1":
            with tf.Session(graph=tf.Graph()) as session:
                signature = tf.saved_model.load(session, ["serve"], folder).signature_def["serving_default"]
                outputs = session.run(
                    {name: info.name for name, info in signature.outputs.items()},
                    {signature.inputs[name].name: value for name, value in inputs.items()},
                )
        else:
            function = tensorflow.saved_model.load(folder).signatures["serving_default"]
            outputs = function(**{name: tensorflow.constant(value) for name, value in inputs.items()})
            outputs = {name: value.numpy() for name, value in outputs.items()}
        np.savez(way + ".npz", **outputs)
    assert not any(name.split(".")[0] == "ftbert" for name in sys.modules)
"""


def run_reader(folder, ways, out, python=sys.executable):
    """The outputs that a program in the folder `out` reads in each way, and the rows that they are of."""
    ids, mask, segments, rows = padded_rows()
    inputs = json.dumps({"input_ids": ids.tolist(), "input_mask": mask.tolist(), "segment_ids": segments.tolist()})
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [python, "-c", textwrap.dedent(READER), folder, inputs, *ways]
    subprocess.run(command, check=True, env=environment, cwd=out)
    for way in ways:
        with np.load(os.path.join(out, way + ".npz")) as read:
            yield {name: read[name] for name in read.files}, rows


@pytest.mark.parametrize("act", ACTS)
def test_plain_tensorflow_serves_the_saved_model(tmp_path, act):
    tensorflow = pytest.importorskip("tensorflow")
    source = make(tmp_path / "source", with_act(act), problem_type="multi_label" if act == "relu" else "single_label")
    folder = export_saved_model(source, str(tmp_path / "exported"))
    ways = ["v1"] if tensorflow.__version__.startswith("1.") else ["v1", "v2"]
    for outputs, rows in run_reader(folder, ways, str(tmp_path)):
        expected = oracle(source, rows, ("logits",))["logits"]
        assert set(outputs) == {"logits", "probabilities"}
        np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)
        shares = 1 / (1 + np.exp(-expected)) if act == "relu" else softmax(expected)
        np.testing.assert_allclose(outputs["probabilities"], shares, atol=1e-5)
    extras = os.path.join(folder, "assets.extra")
    assert sorted(os.listdir(extras)) == ["labels.txt", "settings.json", "vocab.txt"]
    assert json.load(open(os.path.join(extras, "settings.json"), encoding="utf-8"))["labels"][1] == "退款"
    with open(os.path.join(folder, "saved_model.pb"), "rb") as file:
        assert b"VarHandleOp" not in file.read()  # TensorFlow 1.14 refuses the one that TensorFlow 2.21 writes
    variables = [name for name in read_all(os.path.join(folder, "variables", "variables"))]
    assert "output_weights" in variables and not any("adam" in name for name in variables)


def test_saved_model_of_an_encoder(tmp_path):
    pytest.importorskip("tensorflow")
    source = make(tmp_path / "source", labels=())
    folder = export_saved_model(source, str(tmp_path / "exported"))
    ((outputs, rows),) = run_reader(folder, ["v1"], str(tmp_path))
    expected = oracle(source, rows, ("token_states", "pooled"))
    states = np.concatenate([row[: len(ids)] for row, (ids, _) in zip(outputs["sequence_output"], rows)])
    np.testing.assert_allclose(states, expected["token_states"], atol=1e-5)
    np.testing.assert_allclose(outputs["pooled_output"], expected["pooled"], atol=1e-5)


def test_saved_model_refusals_leave_the_destination(tmp_path):
    pytest.importorskip("tensorflow")
    source = make(tmp_path / "source")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="expected a new or empty folder"):
        export_saved_model(source, str(tmp_path / "taken"))
    os.remove(os.path.join(source, "vocab.txt"))
    with pytest.raises(CheckpointError, match="vocab"):
        export_saved_model(source, str(tmp_path / "new"))
    assert sorted(os.listdir(str(tmp_path))) == ["source", "taken"]


def test_without_tensorflow_the_message_names_the_ways_out(tmp_path, monkeypatch):
    for name in ("tensorflow", "tensorflow.compat"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnavailableError, match="pip install tensorflow-cpu, or use export_onnx"):
        export_saved_model(make(tmp_path / "source"), str(tmp_path / "x"))
