"""Disks that fill up and files under two names: what the checkpoint tools say, and that they leave no trace."""

import contextlib
import os

import numpy as np
import pytest
from checkpoint_samples import fingerprint, trained, write

from ftbert.checkpoint import strip_optimizer
from ftbert.checkpoint.streams import replaced_file
from ftbert.errors import CheckpointError


@contextlib.contextmanager
def files_of_at_most(size):
    """The system refuses to write further, as a full disk does."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("ending", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("size", [0, 1000, 100000])
def test_a_full_disk_is_named_and_leaves_no_trace(tmp_path, ending, size):
    source = write(tmp_path / "a.ckpt", {name: np.ones((100, 200), np.float32) for name in "abc"})
    before = fingerprint(tmp_path)
    with files_of_at_most(size), pytest.raises(CheckpointError, match="could not be written: .*room on the disk"):
        strip_optimizer(source, str(tmp_path / ("b" + ending)))
    assert fingerprint(tmp_path) == before


@pytest.mark.parametrize("size", [0, 1000])
def test_a_single_file_is_replaced_whole_or_not_at_all(tmp_path, size):
    (tmp_path / "m.onnx").write_text("the old one")
    with files_of_at_most(size), pytest.raises(CheckpointError, match="m.onnx: could not be written"):
        with replaced_file(str(tmp_path / "m.onnx")) as file:
            file.write(b"x" * 2000)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the old one"]
    with replaced_file(str(tmp_path / "m.onnx")) as file:
        file.write(b"the new one")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the new one"]


def test_a_disk_that_fills_up_at_the_index_leaves_no_trace(tmp_path, monkeypatch):
    source = write(tmp_path / "a.ckpt", trained()[0])
    before = fingerprint(tmp_path)

    def refuse(rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ftbert.checkpoint.tf_bundle.write_table", refuse)
    with pytest.raises(CheckpointError, match="b.ckpt: could not be written"):
        strip_optimizer(source, str(tmp_path / "b.ckpt"))
    assert fingerprint(tmp_path) == before


def test_the_source_by_another_name_is_not_written(tmp_path):
    (tmp_path / "real").mkdir()
    source = write(tmp_path / "real" / "a.ckpt", trained()[0])
    os.symlink("real", str(tmp_path / "link"))
    before = fingerprint(tmp_path)
    with pytest.raises(CheckpointError, match="another name than the source"):
        strip_optimizer(source, str(tmp_path / "link" / "a.ckpt"))
    assert fingerprint(tmp_path) == before
