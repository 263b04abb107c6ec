"""The command line's checkpoint tools, exports and download: thin, so each is run once for real."""

import os

import numpy as np
import pytest
from test_checkpoint_convert import make, read_all

from ftbert import cli
from ftbert.checkpoint import CheckpointWriter, open_checkpoint


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def test_a_chain_of_tools(tmp_path, capsys):
    source = make(tmp_path / "trained")
    tensors = read_all(source)
    with CheckpointWriter(os.path.join(source, "model.ckpt")) as writer:
        for name, (_, array) in tensors.items():
            writer.add(name, array)
            writer.add(name + "/adam_m", array)
    kernel = "bert/pooler/dense/kernel"
    assert run("checkpoint", "inspect", source) == 0
    assert "optimizer" in capsys.readouterr().out
    assert run("checkpoint", "strip", source, tmp_path / "stripped") == 0
    assert "removed 41" in capsys.readouterr().out
    assert set(read_all(tmp_path / "stripped")) == set(tensors)
    assert run("checkpoint", "to-fp16", tmp_path / "stripped", tmp_path / "half") == 0
    assert run("checkpoint", "to-bf16", tmp_path / "stripped", tmp_path / "brain") == 0
    assert run("checkpoint", "to-fp32", tmp_path / "half", tmp_path / "wide") == 0
    for folder, dtype in (("half", "float16"), ("brain", "bfloat16"), ("wide", "float32")):
        assert open_checkpoint(str(tmp_path / folder)).dtype(kernel) == dtype
    assert run("checkpoint", "average", source, tmp_path / "stripped", "-o", tmp_path / "mean.ckpt") == 0
    np.testing.assert_array_equal(read_all(tmp_path / "mean.ckpt")[kernel][1], tensors[kernel][1])
    assert run("checkpoint", "convert", tmp_path / "stripped", tmp_path / "hf", "--format", "huggingface") == 0
    assert run("checkpoint", "convert", tmp_path / "hf", tmp_path / "back") == 0
    assert read_all(tmp_path / "back")[kernel][1].tobytes() == tensors[kernel][1].tobytes()


def test_refusals_are_one_message_and_status_1(tmp_path, capsys):
    source = make(tmp_path / "source", problem_type="multi_label")
    assert run("checkpoint", "convert", source, tmp_path / "tf1", "--format", "tf1") == 1
    message = capsys.readouterr().err
    assert "strict=False" in message and "Traceback" not in message and not (tmp_path / "tf1").exists()
    assert run("checkpoint", "convert", source, tmp_path / "tf1", "--format", "tf1", "--accept-changes") == 0
    assert "changed: problem_type" in capsys.readouterr().out
    assert run("export", source, tmp_path / "x", "--format", "pickle") == 1
    assert run("download", "no-such-name", tmp_path / "y") == 1
    assert "bert-base-chinese" in capsys.readouterr().err
    assert sorted(os.listdir(str(tmp_path))) == ["source", "tf1"]


def test_exports(tmp_path):
    source = make(tmp_path / "source")
    pytest.importorskip("onnx")
    assert run("export", source, tmp_path / "model.onnx", "--format", "onnx") == 0
    assert (tmp_path / "model.onnx").stat().st_size > 10000


def test_export_of_a_saved_model(tmp_path):
    pytest.importorskip("tensorflow")
    assert run("export", make(tmp_path / "source"), tmp_path / "exported") == 0
    assert (tmp_path / "exported" / "saved_model.pb").exists()
