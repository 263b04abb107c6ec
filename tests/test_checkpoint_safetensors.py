"""safetensors checkpoints: what is read, what is refused."""

import struct

import models
import numpy as np
import pytest

from ftbert.checkpoint import as_float32, open_checkpoint
from ftbert.errors import CheckpointError

SAFE = {
    "w": np.random.RandomState(0).standard_normal((300, 90)).astype(np.float32),
    "h": np.arange(6, dtype=np.float16).reshape(2, 3),
    "ids": np.arange(5)[np.newaxis],
    "b": np.array([0x3F80, 0x4000, 0xC040, 0x7F80], np.uint16),
}


@pytest.fixture
def safe(tmp_path):
    models.write_safetensors(tmp_path / "model.safetensors", SAFE)
    return tmp_path / "model.safetensors"


def test_safetensors_are_read(safe):
    reader = open_checkpoint(str(safe.parent))
    assert reader.format == "safetensors" and reader.names() == sorted(SAFE)
    for name, array in SAFE.items():
        assert reader.shape(name) == array.shape and np.array_equal(reader.read(name), array)
    assert reader.dtype("b") == "bfloat16" and as_float32(reader.read("b"), True).tolist() == [1, 2, -3, np.inf]


def test_the_safetensors_package_agrees(tmp_path):
    package = pytest.importorskip("safetensors.numpy")
    tensors = {name: array for name, array in SAFE.items() if name != "b"}
    package.save_file(tensors, str(tmp_path / "model.safetensors"), metadata={"format": "pt"})
    reader = open_checkpoint(str(tmp_path))
    assert reader.names() == sorted(tensors)
    assert all(np.array_equal(reader.read(name), array) for name, array in tensors.items())


def test_sharded_safetensors(tmp_path):
    models.write_safetensors(tmp_path / "model-00001-of-00002.safetensors", {"w": SAFE["w"]})
    models.write_safetensors(tmp_path / "model-00002-of-00002.safetensors", {"h": SAFE["h"]})
    index = tmp_path / "model.safetensors.index.json"
    names = {"w": "model-00001-of-00002.safetensors", "h": "model-00002-of-00002.safetensors"}
    index.write_text(str({"weight_map": names}).replace("'", '"'))
    reader = open_checkpoint(str(tmp_path))
    assert reader.names() == ["h", "w"] and np.array_equal(reader.read("w"), SAFE["w"])
    index.write_text(str({"weight_map": dict(names, x=names["h"])}).replace("'", '"'))
    with pytest.raises(CheckpointError, match="no shard holds x"):
        open_checkpoint(str(tmp_path))
    index.write_text(str({"weight_map": dict(names, x="../elsewhere.safetensors")}).replace("'", '"'))
    with pytest.raises(CheckpointError, match="expected file names in this folder"):
        open_checkpoint(str(tmp_path))
    index.write_text(str({"weight_map": names}).replace("'", '"'))
    (tmp_path / names["h"]).unlink()
    with pytest.raises(CheckpointError, match="00002-of-00002.safetensors: this shard.*is missing"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "does not fit into its 0 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "download pointer"),
        (struct.pack("<Q", 4) + b"nope", "expected JSON"),
        (struct.pack("<Q", 2) + b"[]", "expected a JSON object"),
        (struct.pack("<Q", 10) + b'{"a": {} }', "record of 'a' is damaged"),
    ],
)
def test_damaged_safetensors(tmp_path, content, message):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(tmp_path))


def test_truncated_safetensors(safe):
    safe.write_bytes(safe.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="it is truncated"):
        open_checkpoint(str(safe))
