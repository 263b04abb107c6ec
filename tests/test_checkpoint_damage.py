"""Checkpoint tools on damaged and large checkpoints: what is refused, that a failure leaves no trace, and memory."""

import os
import shutil
import struct
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from checkpoint_samples import fingerprint, hold_text, read_all, trained, write, write_safetensors

from ftbert.checkpoint import CheckpointWriter, average, strip_optimizer, to_bf16, to_fp16
from ftbert.checkpoint.safetensors_writer import SafetensorsWriter, TensorSpec
from ftbert.checkpoint.sorted_table import read_table, write_table
from ftbert.checkpoint.streams import transposed
from ftbert.errors import CheckpointError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


# ----------------------------------------------------------------------------------------------------------- errors


def damage_data(folder):
    path = folder / "a.ckpt.data-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def truncate_data(folder):
    path = folder / "a.ckpt.data-00000-of-00001"
    path.write_bytes(path.read_bytes()[:-5])


def truncate_index(folder):
    path = folder / "a.ckpt.index"
    path.write_bytes(path.read_bytes()[:-30])


def damage_index(folder):
    path = folder / "a.ckpt.index"
    content = bytearray(path.read_bytes())
    content[20] ^= 0x40
    path.write_bytes(bytes(content))


def remove_shard(folder):
    os.remove(str(folder / "a.ckpt.data-00000-of-00001"))


def remove_all(folder):
    remove_shard(folder)
    os.remove(str(folder / "a.ckpt.index"))


def replace_by_text(folder):
    (folder / "a.ckpt.index").write_text("hello\n" * 100)


def partition(folder):
    """Marks a tensor as kept in slices, as a partitioned variable's entry is."""
    entries = dict(read_table(str(folder / "a.ckpt.index")))
    entries[b"output_bias"] += b"\x3a\x04\x0a\x02\x08\x00"
    (folder / "a.ckpt.index").write_bytes(write_table(sorted(entries.items())))


DAMAGES = [
    (damage_data, "checksum of .* does not match"),
    (truncate_data, "truncated"),
    (truncate_index, "truncated, or something else"),
    (damage_index, "damaged|checksum"),
    (remove_shard, "missing"),
    (remove_all, "no checkpoint there"),
    (replace_by_text, "expected a TensorFlow checkpoint index"),
    (partition, "output_bias is a partitioned variable"),
    (hold_text, "output_bias hold text.*tf.train.Checkpoint"),
]

TOOLS = [
    strip_optimizer,
    lambda src, dst: to_fp16(src, dst, allow_overflow=True),
    to_bf16,
    lambda src, dst: average([src, src], dst),
]


@pytest.mark.parametrize("tool", TOOLS, ids=["strip", "fp16", "bf16", "average"])
@pytest.mark.parametrize("damage, message", DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_a_bad_source_is_named_and_the_destination_untouched(tmp_path, tool, damage, message):
    weights, _ = trained()
    source = write(tmp_path / "a.ckpt", weights)
    write(tmp_path / "b.ckpt", {"old": np.ones(3, np.float32)})
    damage(tmp_path)
    before = fingerprint(tmp_path)
    for target in ("b.ckpt", "new/folder/c.ckpt"):
        with pytest.raises(CheckpointError, match=message):
            tool(source, str(tmp_path / target))
        assert fingerprint(tmp_path) == before


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_truncated_safetensors_file_is_named(tmp_path, cut):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, trained()[0])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match="truncated"):
        strip_optimizer(str(path), str(tmp_path / "b.safetensors"))
    assert os.listdir(str(tmp_path)) == ["a.safetensors"]


@pytest.mark.parametrize("ending", [".ckpt", ".safetensors"])
def test_a_failure_half_way_leaves_no_trace(tmp_path, monkeypatch, ending):
    """A disk that fills up at the third tensor."""
    source = write(tmp_path / "a.ckpt", trained()[0])
    kind = CheckpointWriter if ending == ".ckpt" else SafetensorsWriter
    whole = kind.add
    calls = []

    def add(self, name, *args, **kwargs):
        calls.append(name)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        whole(self, name, *args, **kwargs)

    monkeypatch.setattr(kind, "add", add)
    before = fingerprint(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        strip_optimizer(source, str(tmp_path / "deep" / ("b" + ending)))
    assert fingerprint(tmp_path) == before and len(calls) == 3


def test_destinations_that_cannot_be_meant(tmp_path):
    weights, _ = trained()
    source = write(tmp_path / "a.ckpt", weights)
    with pytest.raises(CheckpointError, match="another name than the source"):
        strip_optimizer(source, source)
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="is a folder.*Name the new checkpoint in it"):
        strip_optimizer(source, str(tmp_path / "folder"))
    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(source + ".index", str(model / "a.ckpt.index"))
    shutil.copy(source + ".data-00000-of-00001", str(model / "a.ckpt.data-00000-of-00001"))
    (tmp_path / "folder" / "precious.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="expected a new or empty folder"):
        strip_optimizer(str(model), str(tmp_path / "folder"))
    assert (tmp_path / "folder" / "precious.txt").read_text() == "mine"
    strip_optimizer(str(model), str(tmp_path / "other.ckpt"))  # a folder's checkpoint alone, under a file's name
    assert set(read_all(tmp_path / "other.ckpt")) == set(weights)


# ------------------------------------------------------------------------------------------------------- safetensors


def test_safetensors_are_read_by_the_formats_own_library(tmp_path):
    numpy_io = pytest.importorskip("safetensors.numpy")
    tensors = {
        "b": np.arange(5, dtype=np.int64),
        "a": np.random.RandomState(0).randn(3, 4).astype(np.float32),
        "c": np.array([True, False]),
        "数": np.float16([1.5, 2.5]),
        "empty": np.zeros((0, 3), np.float32),
    }
    path = write_safetensors(tmp_path / "x.safetensors", tensors)
    read = numpy_io.load_file(path)
    assert set(read) == set(tensors)
    for name, array in tensors.items():
        assert read[name].tobytes() == array.tobytes() and read[name].shape == array.shape
    header_size = struct.unpack("<Q", open(path, "rb").read(8))[0]
    assert (8 + header_size) % 8 == 0


def test_safetensors_writer_holds_to_its_announcement(tmp_path):
    path = str(tmp_path / "x.safetensors")
    specs = [TensorSpec("a", "float32", (2,)), TensorSpec("b", "float32", (2,))]
    for name, array in (("c", np.ones(2, np.float32)), ("a", np.ones(2)), ("a", np.ones(3, np.float32))):
        with pytest.raises(CheckpointError, match="expected"), SafetensorsWriter(path, specs) as writer:
            writer.add(name, array)
    with pytest.raises(CheckpointError, match="announced and not added"), SafetensorsWriter(path, specs) as writer:
        writer.add("a", np.ones(2, np.float32))
    with pytest.raises(CheckpointError, match="two tensors of one name"):
        SafetensorsWriter(path, specs + specs)
    assert os.listdir(str(tmp_path)) == []


# ------------------------------------------------------------------------------------------------------------ memory


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A checkpoint of 12 tensors of 40 MB."""
    each = np.random.RandomState(0).randn(10 << 20).astype(np.float32)
    return write(tmp_path_factory.mktemp("large") / "a.ckpt", {"w%02d" % index: each for index in range(12)})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("tool", ["strip_optimizer", "to_fp16", "to_bf16", "average"])
def test_memory_is_that_of_one_tensor(large, tmp_path, tool):
    """500 MB, in at most 2.5 tensors and 200 MB above the import."""
    script = """
        import sys
        from ftbert import checkpoint

        def peak():  # getrusage would count what the parent had when it forked
            with open("/proc/self/status") as file:
                return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024

        base = peak()
        source, target, tool = sys.argv[1:]
        getattr(checkpoint, tool)([source, source] if tool == "average" else source, target)
        print(peak() - base)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), large, str(tmp_path / "b.ckpt"), tool]
    output = subprocess.check_output(command, env=dict(os.environ, PYTHONPATH=ROOT))
    assert 0.5 * (40 << 20) < int(output) <= 2.5 * (40 << 20) + 200e6


@pytest.mark.parametrize("shape", [(0, 3), (1, 7), (31, 33), (32, 1), (33, 2), (100, 97), (768, 130)])
def test_transposes_of_every_size(shape):
    array = np.random.RandomState(0).randn(*shape).astype(np.float16)
    turned = transposed(array)
    assert turned.flags["C_CONTIGUOUS"] and turned.dtype == np.float16
    np.testing.assert_array_equal(turned, array.T)
