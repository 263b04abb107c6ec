"""TensorFlow checkpoints without TensorFlow, and what a path names: what is read, written and refused."""

import os
import shutil
import struct

import numpy as np
import pytest

from ftbert.checkpoint import CheckpointWriter, as_float32, find_checkpoint, open_checkpoint
from ftbert.checkpoint.crc32c import crc32c, mask, unmask
from ftbert.checkpoint.sorted_table import append_varint, read_table, read_varint, write_table
from ftbert.checkpoint.tf_bundle import BundleReader
from ftbert.errors import CheckpointError


def plain_crc32c(data):
    """The definition, a bit at a time."""
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


# Checksums


def test_published_checksums():
    # RFC 3720, appendix B.4.
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 7, 1023, 1024, 1025, 45479, 90960, 90961, 90967, 91000, 200003])
def test_checksums_of_every_length(size):
    data = np.random.RandomState(size).randint(0, 256, size).astype(np.uint8)
    expected = plain_crc32c(data.tobytes())
    assert crc32c(data) == expected
    assert crc32c(data[: size // 3], data[size // 3 :].tobytes()) == expected
    assert unmask(mask(expected)) == expected


def test_checksums_across_rounds_of_folding():
    # 1 MB is folded at a time; a change in any round must show.
    data = np.random.RandomState(1).randint(0, 256, (1 << 20) * 2 + 4567).astype(np.uint8)
    whole = crc32c(data)
    # Checksums are affine: a ^ b ^ c has the checksum crc(a) ^ crc(b) ^ crc(c).
    other = np.random.RandomState(2).randint(0, 256, len(data)).astype(np.uint8)
    third = np.random.RandomState(3).randint(0, 256, len(data)).astype(np.uint8)
    assert crc32c(data ^ other ^ third) == whole ^ crc32c(other) ^ crc32c(third)
    for place in (0, 3, 4, 8, 1 << 20, (1 << 20) + 8, len(data) - 1):
        changed = data.copy()
        changed[place] ^= 1
        assert crc32c(changed) != whole
    assert crc32c(data[:300000]) == plain_crc32c(data[:300000].tobytes())


# Tables


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 1 << 32, (1 << 63) - 1])
def test_varints(value):
    out = bytearray(b"x")
    append_varint(out, value)
    assert read_varint(bytes(out), 1) == (value, len(out))


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 20000])
def test_tables_of_one_block_and_of_many(tmp_path, count):
    rows = [(b"", b"header")] + [(b"layer/%06d/kernel" % index, bytes(index % 50)) for index in range(count)]
    path = tmp_path / "table"
    path.write_bytes(write_table(rows))
    assert read_table(str(path)) == rows


# TensorFlow checkpoints


TENSORS = {
    "a/kernel": np.random.RandomState(0).standard_normal((300, 257)).astype(np.float32),
    "b/half": np.arange(40, dtype=np.float16).reshape(2, 4, 5),
    "c/double": np.array([1.5, -2.5]),
    "global_step": np.int64(7),
    "empty": np.zeros((0, 3), np.float32),
    "flags": np.array([True, False, True]),
    "bytes": np.arange(3, dtype=np.uint8),
    "odd/after": np.arange(70000, dtype=np.float32),  # large and not aligned: three bytes came before
}
BFLOAT16 = np.array([0x3F80, 0x4000, 0xC040, 0x7F80], np.uint16)


@pytest.fixture
def written(tmp_path):
    with CheckpointWriter(str(tmp_path / "model.ckpt")) as writer:
        for name, array in TENSORS.items():
            writer.add(name, array)
        writer.add("bf", BFLOAT16, bfloat16=True)
    return tmp_path / "model.ckpt"


def test_written_is_read(written):
    with open_checkpoint(str(written)) as reader:
        assert reader.format == "tensorflow" and reader.names() == sorted([*TENSORS, "bf"])
        for name, array in TENSORS.items():
            got = reader.read(name)
            assert got.dtype == np.asarray(array).dtype == np.dtype(reader.dtype(name))
            assert got.shape == np.shape(array) == reader.shape(name) and np.array_equal(got, array)
            assert not got.flags.writeable
        assert reader.dtype("bf") == "bfloat16" and np.array_equal(reader.read("bf"), BFLOAT16)
        assert as_float32(reader.read("bf"), True).tolist() == [1, 2, -3, np.inf]
        assert "bf" in reader and "x" not in reader
        with pytest.raises(CheckpointError, match="no tensor 'x' among its 9: a/kernel"):
            reader.read("x")


def test_tensorflow_reads_what_is_written(written):
    tf = pytest.importorskip("tensorflow").compat.v1
    reader = tf.train.NewCheckpointReader(str(written))
    shapes = reader.get_variable_to_shape_map()
    assert set(shapes) == set(TENSORS) | {"bf"}
    for name, array in TENSORS.items():
        got = reader.get_tensor(name)
        assert tuple(shapes[name]) == np.shape(array) and np.array_equal(got, array)
        assert np.asarray(got).dtype == np.asarray(array).dtype
    assert reader.get_tensor("bf").astype(np.float32).tolist() == [1, 2, -3, np.inf]
    with tf.Graph().as_default(), tf.Session() as session:
        kernel = tf.get_variable("a/kernel", [300, 257])
        tf.train.Saver().restore(session, str(written))
        assert np.array_equal(session.run(kernel), TENSORS["a/kernel"])


def test_tensorflow_s_own_checkpoints_are_read(tmp_path):
    tf = pytest.importorskip("tensorflow").compat.v1
    with tf.Graph().as_default(), tf.Session() as session:
        kernel = tf.get_variable("kernel", [300, 40])
        half = tf.get_variable("half", [4], tf.float16, tf.ones_initializer())
        tf.get_variable("parts", [10, 4], partitioner=tf.fixed_size_partitioner(2))
        tf.get_variable("words", initializer=tf.constant(["x", "yy"]))
        session.run(tf.global_variables_initializer())
        prefix = tf.train.Saver().save(session, str(tmp_path / "model.ckpt"), global_step=3)
        expected = session.run([kernel, half])
    with open_checkpoint(str(tmp_path)) as reader:
        assert reader.path == prefix
        assert np.array_equal(reader.read("kernel"), expected[0]) and np.array_equal(reader.read("half"), expected[1])
        with pytest.raises(CheckpointError, match="parts is a partitioned variable"):
            reader.read("parts")
        with pytest.raises(CheckpointError, match="words holds string values"):
            reader.read("words")


def merged(tmp_path):
    """Two checkpoints made one of two shards, by TensorFlow."""
    tf = pytest.importorskip("tensorflow").compat.v1
    for name, value in (("one", 1.0), ("two", 2.0)):
        with CheckpointWriter(str(tmp_path / ("part_" + name))) as writer:
            writer.add(name, np.full(50000, value, np.float32))
    with tf.Graph().as_default(), tf.Session() as session:
        parts = tf.constant([str(tmp_path / "part_one"), str(tmp_path / "part_two")])
        target = str(tmp_path / "m.ckpt")
        session.run(tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=target))
    return tmp_path / "m.ckpt"


def test_several_shards(tmp_path):
    prefix = merged(tmp_path)
    reader = BundleReader(str(prefix))
    assert reader.names() == ["one", "two"]
    assert (reader.read("one") == 1).all() and (reader.read("two") == 2).all()
    os.remove(str(prefix) + ".data-00001-of-00002")
    with pytest.raises(CheckpointError, match=r"data-00001-of-00002: the checkpoint has 2 data file\(s\).*missing"):
        BundleReader(str(prefix))


def test_the_real_tiny_checkpoint(shared_data):
    folder = shared_data("tiny_tf1_checkpoint")
    with open_checkpoint(str(folder)) as reader:
        assert len(reader.names()) == 139
        for name in reader.names():
            assert reader.read(name).shape == reader.shape(name)  # every checksum is verified
        assert reader.read("bert/embeddings/word_embeddings").shape == (15, 4)
        try:
            import tensorflow.compat.v1 as tf
        except ImportError:
            return
        theirs = tf.train.NewCheckpointReader(str(folder / "bert_model.ckpt"))
        for name in reader.names():
            assert np.array_equal(theirs.get_tensor(name), reader.read(name))


# Damage


def change(path, place, how=1):
    data = bytearray(path.read_bytes())
    data[place] ^= how
    path.write_bytes(bytes(data))


def test_every_damaged_byte_of_an_index_is_noticed(written):
    index = written.with_name("model.ckpt.index")
    good = index.read_bytes()
    expected = {name: BundleReader(str(written)).read(name) for name in TENSORS}
    for place in range(len(good)):
        change(index, place, 0x55)
        try:
            reader = BundleReader(str(written))
            # The footer's unused bytes may be anything.
            assert all(np.array_equal(reader.read(name), array) for name, array in expected.items()), place
        except CheckpointError:
            pass
        index.write_bytes(good)


@pytest.mark.parametrize("keep", [0, 7, 47, 48, 100, -1])
def test_a_truncated_index(written, keep):
    index = written.with_name("model.ckpt.index")
    index.write_bytes(index.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="index.*(truncated|damaged|does not match)"):
        open_checkpoint(str(written))


def test_damaged_and_truncated_data(written):
    data = written.with_name("model.ckpt.data-00000-of-00001")
    good = data.read_bytes()
    change(data, 1000)
    reader = open_checkpoint(str(written))
    with pytest.raises(CheckpointError, match="checksum of a/kernel does not match.*Copy it again"):
        reader.read("a/kernel")
    assert np.array_equal(reader.read("b/half"), TENSORS["b/half"])
    assert BundleReader(str(written), verify=False).read("a/kernel").shape == (300, 257)
    data.write_bytes(good[:-1])
    with pytest.raises(CheckpointError, match="expected at least %d bytes, got %d" % (len(good), len(good) - 1)):
        open_checkpoint(str(written))
    data.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        open_checkpoint(str(written))


def test_an_index_of_something_else(tmp_path):
    (tmp_path / "m.ckpt.index").write_bytes(write_table([(b"key", b"value")]))
    with pytest.raises(CheckpointError, match="expected a checkpoint's header first"):
        open_checkpoint(str(tmp_path))
    (tmp_path / "m.ckpt.index").write_bytes(b"not a table at all" * 10)
    with pytest.raises(CheckpointError, match="expected a TensorFlow checkpoint index"):
        open_checkpoint(str(tmp_path))


def test_a_compressed_index_is_refused(written):
    index = written.with_name("model.ckpt.index")
    data = bytearray(index.read_bytes())
    footer = len(data) - 48
    _, position = read_varint(bytes(data), footer)
    _, position = read_varint(bytes(data), position)
    offset, position = read_varint(bytes(data), position)
    size, position = read_varint(bytes(data), position)
    offset_of_type = offset + size
    data[offset_of_type] = 1  # snappy
    checksum = mask(crc32c(bytes(data[offset : offset_of_type + 1])))
    data[offset_of_type + 1 : offset_of_type + 5] = struct.pack("<I", checksum)
    index.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="expected an uncompressed index.*compression type 1"):
        open_checkpoint(str(written))


# The writer


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), CheckpointWriter(str(tmp_path / "m.ckpt")) as writer:
        writer.add("a", np.zeros(5, np.float32))
        raise KeyError("while writing")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name, array, message",
    [
        ("a", np.zeros(2, np.complex64), "no type for complex64"),
        ("a", np.array(["x"]), "no type"),
        ("a", np.zeros(2, ">f4"), "no type"),
        ("", np.zeros(2, np.float32), "non-empty"),
        ("there", np.zeros(2, np.float32), "new, non-empty"),
    ],
)
def test_what_cannot_be_written(tmp_path, name, array, message):
    with pytest.raises(CheckpointError, match=message), CheckpointWriter(str(tmp_path / "m.ckpt")) as writer:
        writer.add("there", np.zeros(2, np.float32))
        writer.add(name, array)


# Which checkpoint a path means


def touch(folder, *prefixes):
    for prefix in prefixes:
        with CheckpointWriter(str(folder / prefix)) as writer:
            writer.add("a", np.zeros(1, np.float32))


def found(path):
    return os.path.basename(find_checkpoint(str(path)))


def test_the_state_file_decides(tmp_path):
    touch(tmp_path, "model.ckpt-9", "model.ckpt-100", "model.ckpt-20")
    assert found(tmp_path) == "model.ckpt-100"  # the highest number, not the last in the alphabet
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-20"\nall_model_checkpoint_paths: "x"\n')
    assert found(tmp_path) == "model.ckpt-20"
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/the/machine/of/training/model.ckpt-9"\n')
    assert found(tmp_path) == "model.ckpt-9"
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-5"\n')
    with pytest.raises(CheckpointError, match="model.ckpt-5, but .*: model.ckpt-100, model.ckpt-20, model.ckpt-9"):
        find_checkpoint(str(tmp_path))
    (tmp_path / "checkpoint").write_text("nonsense")
    with pytest.raises(CheckpointError, match="model_checkpoint_path"):
        find_checkpoint(str(tmp_path))


def test_files_and_prefixes(tmp_path):
    touch(tmp_path, "model.ckpt-9", "bert_model.ckpt")
    for ending in ("", ".index", ".data-00000-of-00001"):
        assert found(str(tmp_path / "model.ckpt-9") + ending) == "model.ckpt-9"
    with pytest.raises(CheckpointError, match="expected one checkpoint, found bert_model.ckpt, model.ckpt-9"):
        find_checkpoint(str(tmp_path))


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="found nothing"):
        find_checkpoint(str(tmp_path))
    with pytest.raises(CheckpointError, match="neither a folder nor"):
        find_checkpoint(str(tmp_path / "nowhere"))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match="got another file"):
        find_checkpoint(str(tmp_path / "notes.txt"))
    with pytest.raises(CheckpointError, match="found notes.txt"):
        find_checkpoint(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(CheckpointError, match="is a pickle.*safe_serialization=True"):
            find_checkpoint(str(path))
    with pytest.raises(CheckpointError, match="no such file"):
        find_checkpoint(str(tmp_path / "x.safetensors"))


def test_a_copy_elsewhere_still_reads(written, tmp_path):
    target = tmp_path / "copy"
    target.mkdir()
    for path in tmp_path.glob("model.ckpt.*"):
        shutil.copy(str(path), str(target))
    assert np.array_equal(open_checkpoint(str(target)).read("c/double"), [1.5, -2.5])
