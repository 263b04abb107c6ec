"""Checkpoint tools: what they keep, what they report, what they refuse, and that a failure leaves no trace."""

import json
import os
import struct

import numpy as np
import pytest
from checkpoint_samples import fingerprint, hold_text, read_all, trained, write, write_safetensors

from ftbert.checkpoint import (
    average,
    inspect,
    open_checkpoint,
    strip_optimizer,
    to_bf16,
    to_fp16,
    to_fp32,
)
from ftbert.checkpoint.optimizer_names import optimizer_tensors
from ftbert.checkpoint.rounding import measure_rounding, round_to_bfloat16
from ftbert.errors import CheckpointError

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


# ------------------------------------------------------------------------------------------------------------ strip


def test_strip_keeps_every_bit_and_removes_what_training_needs(tmp_path):
    weights, rest = trained()
    source = write(tmp_path / "run.ckpt-1234", dict(weights, **rest))
    report = strip_optimizer(source, str(tmp_path / "out" / "model.ckpt"))
    kept = read_all(tmp_path / "out" / "model.ckpt")
    assert set(kept) == set(weights) == set(report.kept)
    assert set(report.removed) == set(rest)
    for name, array in weights.items():
        assert kept[name].tobytes() == array.tobytes() and kept[name].shape == array.shape
    assert report.bytes_kept == sum(array.nbytes for array in weights.values())
    assert report.bytes_removed == sum(np.asarray(array).nbytes for array in rest.values())
    assert "removed %d" % len(rest) in str(report) and "4 adam_m" in str(report)
    assert set(os.listdir(str(tmp_path / "out"))) == {"model.ckpt.index", "model.ckpt.data-00000-of-00001"}


def test_strip_the_real_checkpoint_as_a_folder(tmp_path, shared_data):
    source = str(shared_data("tiny_tf1_checkpoint"))
    report = strip_optimizer(source, str(tmp_path / "stripped"))
    before, after = read_all(source), read_all(tmp_path / "stripped")
    assert len(before) == 139 and len(after) == 46
    assert set(before) - set(after) == set(report.removed)
    assert all(name.endswith(("/adam_m", "/adam_v")) or name == "global_step" for name in report.removed)
    for name, array in after.items():
        assert array.tobytes() == before[name].tobytes()
    assert {"bert_config.json", "vocab.txt"} <= set(os.listdir(str(tmp_path / "stripped")))


@pytest.mark.parametrize("scalar", [np.float32(1.5), np.zeros((0, 4), np.float32), np.arange(70000, dtype=np.float32)])
def test_shapes_survive(tmp_path, scalar):
    source = write(tmp_path / "a.ckpt", {"w": scalar, "global_step": np.int64(1)})
    strip_optimizer(source, str(tmp_path / "b.ckpt"))
    kept = read_all(tmp_path / "b.ckpt")["w"]
    assert kept.shape == np.asarray(scalar).shape and kept.tobytes() == np.asarray(scalar).tobytes()


def test_half_precision_and_integers_are_copied(tmp_path):
    tensors = {
        "half": np.array([1, 2], np.float16),
        "brain": np.array([0x3F80, 0x7FC0], np.uint16),
        "count": np.arange(3, dtype=np.int32),
    }
    strip_optimizer(write(tmp_path / "a.ckpt", tensors), str(tmp_path / "b.safetensors"))
    reader = open_checkpoint(str(tmp_path / "b.safetensors"))
    assert {name: reader.dtype(name) for name in reader.names()} == {
        "half": "float16",
        "brain": "bfloat16",
        "count": "int32",
    }
    for name, array in tensors.items():
        assert reader.read(name).tobytes() == array.tobytes()


def test_slots_are_slots_only_beside_their_variable():
    names = [
        "a/Adam",
        "a/Adam_1",
        "b",
        "b/Momentum",
        "scope/b/RMSProp",
        "c/Momentum",
        "b/kernel",
        "global_step_embedding",
    ]
    assert optimizer_tensors(names) == ["b/Momentum", "scope/b/RMSProp"]
    assert optimizer_tensors(["x", "x/Adam", "x/Adam/Adam_1"]) == ["x/Adam", "x/Adam/Adam_1"]


def test_strip_refuses_a_checkpoint_without_weights(tmp_path):
    source = write(tmp_path / "a.ckpt", {"global_step": np.int64(1)})
    with pytest.raises(CheckpointError, match="no tensor to keep"):
        strip_optimizer(source, str(tmp_path / "b.ckpt"))


# -------------------------------------------------------------------------------------------------- half precision


def test_to_fp16_counts_what_is_lost(tmp_path):
    weights = {
        "fine": np.array([1.0, -2.5, 0.0, 1.0 + 2.0**-11], np.float32),
        "small": np.array([1e-9, -1e-9, 3e-8, 0.0, 6e-8], np.float32),
        "steps": np.arange(3),
    }
    report = to_fp16(write(tmp_path / "a.ckpt", weights), str(tmp_path / "b.ckpt"))
    fine, small = report.tensors
    assert (fine.name, fine.size, fine.overflows, fine.underflows) == ("fine", 4, 0, 0)
    assert fine.largest_error == pytest.approx(2.0**-11 / (1 + 2.0**-11))
    assert (small.underflows, small.overflows) == (2, 0)
    # 3e-8 becomes the smallest subnormal, 2**-24.
    assert small.largest_error == pytest.approx((2.0**-24 - 3e-8) / 3e-8, rel=1e-5)
    assert report.unchanged == ("steps",) and report.underflows == 2
    after = read_all(tmp_path / "b.ckpt")
    assert after["fine"].dtype == np.float16 and after["steps"].dtype == np.int64
    assert after["small"].tobytes() == weights["small"].astype(np.float16).tobytes()
    assert "2 vanished" in str(report)


def test_overflow_is_refused_unless_allowed(tmp_path):
    values = np.array([65519.0, 65520.0, -1e9, np.inf, np.nan], np.float32)
    source = write(tmp_path / "a.ckpt", {"w": values, "v": np.ones(2, np.float32)})
    before = fingerprint(tmp_path)
    with pytest.raises(CheckpointError, match="w: 2 of 5 values are too large for float16.*to_bf16.*allow_overflow"):
        to_fp16(source, str(tmp_path / "b.ckpt"))
    assert fingerprint(tmp_path) == before
    report = to_fp16(source, str(tmp_path / "b.ckpt"), allow_overflow=True)
    (tensor,) = [tensor for tensor in report.tensors if tensor.name == "w"]
    assert (tensor.overflows, tensor.not_finite) == (2, 2)
    np.testing.assert_array_equal(read_all(tmp_path / "b.ckpt")["w"], [65504, np.inf, -np.inf, np.inf, np.nan])
    assert to_bf16(source, str(tmp_path / "c.ckpt")).overflows == 0


def test_float16_is_numpys_bit_for_bit():
    """Every upper half of a float32, with lower halves around each tie and some drawn ones."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    lower = [0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF, 0x2FFF, 0x3000, 0x3001, 0xEFFF, 0xF000, 0xF001, 0xFFFF]
    for low in lower + np.random.RandomState(0).randint(0, 1 << 16, 20).tolist():
        values = (upper | np.uint32(low)).view(np.float32)
        with np.errstate(all="ignore"):
            expected = values.astype(np.float16)
        # Parts with and without values that are infinite or not numbers go different ways.
        for part in (slice(None), np.abs(values) < 65520):
            rounded, tensor = measure_rounding("w", values[part], "float16")
            assert rounded.tobytes() == expected[part].tobytes(), hex(low)
            assert tensor.largest_error < 1


def test_bfloat16_rounds_to_nearest_even():
    draw = np.random.RandomState(0)
    bits = draw.randint(0, 1 << 32, 200000, dtype=np.uint64).astype(np.uint32)
    upper = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    edges = np.concatenate([upper + np.uint32(low) for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    values = np.concatenate([bits, edges]).view(np.float32)
    rounded = round_to_bfloat16(values)
    wide = (rounded.astype(np.uint32) << np.uint32(16)).view(np.float32)
    np.testing.assert_array_equal(np.isnan(wide), np.isnan(values))
    finite = np.isfinite(values)
    below = values[finite].view(np.uint32) & np.uint32(0xFFFF0000)
    above = below + np.uint32(0x10000)
    exact = values[finite].astype(np.float64)
    low = below.view(np.float32).astype(np.float64)
    high = above.view(np.float32).astype(np.float64)
    # Beyond the largest number, the next one would be 2**128.
    high[np.isinf(high)] = np.copysign(2.0**128, high[np.isinf(high)])
    even = (below >> np.uint32(16)) & np.uint32(1) == 0
    down = (np.abs(exact - low) < np.abs(high - exact)) | ((np.abs(exact - low) == np.abs(high - exact)) & even)
    expected = np.where(down, below, above).astype(np.uint32) >> np.uint32(16)
    np.testing.assert_array_equal(rounded[finite], expected.astype(np.uint16))
    assert (rounded[np.isinf(values)] & 0x7FFF == 0x7F80).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("size", [0, 1, (1 << 18) - 1, (1 << 18) + 1, 700001])
def test_rounding_is_measured_over_every_part(dtype, size):
    values = np.random.RandomState(1).randn(size).astype(np.float32)
    if size > 1 << 18:
        values[[0, -1]] = 1e-42, 3e38  # in the first part and in the last
    rounded, tensor = measure_rounding("w", values, dtype)
    wide = rounded.astype(np.float32) if dtype == "float16" else (rounded.astype(np.uint32) << 16).view(np.float32)
    plain = values[1:-1] if size > 1 << 18 else values
    error = np.abs(wide[1:-1] if size > 1 << 18 else wide, dtype=np.float64) - np.abs(plain, dtype=np.float64)
    expected = float((np.abs(error) / np.abs(plain.astype(np.float64))).max()) if plain.size else 0.0
    assert tensor.size == size and tensor.not_finite == 0
    if dtype == "float16":
        assert (tensor.overflows, tensor.underflows) == ((1, 1) if size > 1 << 18 else (0, 0))
        assert tensor.largest_error == pytest.approx(expected, rel=1e-3)
    else:
        # bfloat16 reaches 3e38, but not down to float32's smallest subnormals.
        assert (tensor.overflows, tensor.underflows) == ((0, 1) if size > 1 << 18 else (0, 0))
        assert tensor.largest_error == pytest.approx(expected, rel=1e-3)


def test_casting_is_refused_where_there_is_nothing_to_cast(tmp_path):
    source = write(tmp_path / "a.ckpt", {"w": np.ones(2, np.float16)})
    with pytest.raises(CheckpointError, match="expected float32 tensors to convert, found only float16"):
        to_fp16(source, str(tmp_path / "b.ckpt"))


def test_to_fp32_widens_exactly(tmp_path):
    patterns = np.arange(1 << 16, dtype=np.uint16)
    finite = patterns[np.isfinite(patterns.view(np.float16))]
    brain = patterns[(patterns & 0x7F80) != 0x7F80]
    tensors = {"half": finite.view(np.float16), "brain": brain, "single": np.ones(3, np.float32), "n": np.arange(2)}
    report = to_fp32(write(tmp_path / "a.ckpt", tensors), str(tmp_path / "b.ckpt"))
    assert {tensor.name for tensor in report.tensors} == {"half", "brain"} and report.unchanged == ("n", "single")
    assert report.largest_error == 0.0 and "to float32" in str(report)
    wide = read_all(tmp_path / "b.ckpt")
    assert {name: array.dtype.name for name, array in wide.items()} == {
        "half": "float32",
        "brain": "float32",
        "single": "float32",
        "n": "int64",
    }
    np.testing.assert_array_equal(wide["half"].astype(np.float16).view(np.uint16), finite)
    np.testing.assert_array_equal(round_to_bfloat16(wide["brain"]), brain)
    with pytest.raises(CheckpointError, match="expected bfloat16 or float16 tensors to convert, found only float32"):
        to_fp32(write(tmp_path / "c.ckpt", {"w": np.ones(2, np.float32)}), str(tmp_path / "d.ckpt"))


def test_casting_a_folder_updates_its_type(tmp_path):
    (tmp_path / "hf").mkdir()
    write_safetensors(tmp_path / "hf" / "model.safetensors", {"w": np.ones((2, 3), np.float32)})
    (tmp_path / "hf" / "config.json").write_text('{"torch_dtype": "float32", "model_type": "bert"}')
    to_bf16(str(tmp_path / "hf"), str(tmp_path / "half"))
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert open_checkpoint(str(tmp_path / "half")).dtype("w") == "bfloat16"
    assert read_all(tmp_path / "half")["w"].shape == (2, 3)


def test_optimizer_slots_in_half_precision_are_pointed_out(tmp_path):
    weights, rest = trained()
    report = to_fp16(write(tmp_path / "a.ckpt", dict(weights, **rest)), str(tmp_path / "b.ckpt"))
    assert "strip_optimizer first" in str(report) and "global_step" in report.unchanged


# -------------------------------------------------------------------------------------------------- average, inspect


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_average_is_the_mean(tmp_path, dtype):
    draw = np.random.RandomState(0)
    count = 3
    arrays = [draw.randn(50, 7) for _ in range(count)]
    if dtype == "bfloat16":
        stored = [round_to_bfloat16(array.astype(np.float32)) for array in arrays]
        values = [(bits.astype(np.uint32) << 16).view(np.float32) for bits in stored]
    else:
        stored = values = [array.astype(dtype) for array in arrays]
    sources = [
        write(tmp_path / ("run.ckpt-%d" % index), {"w": array, "w/Adam": array, "table": np.arange(4)})
        for index, array in enumerate(stored)
    ]
    report = average(sources, str(tmp_path / "mean.ckpt"))
    assert report.averaged == ("table", "w") and report.left_out == ("w/Adam",)
    mean = np.mean([array.astype(np.float64) for array in values], axis=0)
    got = read_all(tmp_path / "mean.ckpt")
    expected = round_to_bfloat16(mean.astype(np.float32)) if dtype == "bfloat16" else mean.astype(dtype)
    np.testing.assert_array_equal(got["w"], expected)
    np.testing.assert_array_equal(got["table"], np.arange(4))


def test_average_of_a_tensor_larger_than_one_part(tmp_path):
    arrays = [np.random.RandomState(seed).randn((1 << 22) + 5).astype(np.float32) for seed in (0, 1)]
    sources = [write(tmp_path / ("%d.ckpt" % index), {"w": array}) for index, array in enumerate(arrays)]
    average(sources, str(tmp_path / "mean.safetensors"))
    expected = ((arrays[0].astype(np.float64) + arrays[1]) / 2).astype(np.float32)
    np.testing.assert_array_equal(read_all(tmp_path / "mean.safetensors")["w"], expected)


@pytest.mark.parametrize(
    "other, message",
    [
        ({"v": np.ones(2, np.float32)}, "same tensors"),
        ({"w": np.ones(3, np.float32)}, r"expected float32 \[2\].*got float32 \[3\]"),
        ({"w": np.ones(2, np.float16)}, "got float16"),
    ],
)
def test_average_refuses_different_models(tmp_path, other, message):
    first = write(tmp_path / "a.ckpt", {"w": np.ones(2, np.float32)})
    second = write(tmp_path / "b.ckpt", other)
    with pytest.raises(CheckpointError, match=message):
        average([first, second], str(tmp_path / "c.ckpt"))
    assert not os.path.exists(str(tmp_path / "c.ckpt.index"))


def test_average_takes_any_iterable(tmp_path):
    sources = [write(tmp_path / name, {"w": np.full(3, value, np.float32)}) for name, value in (("a", 1), ("b", 2))]
    average((source for source in sources), str(tmp_path / "mean.ckpt"))
    assert read_all(tmp_path / "mean.ckpt")["w"].tolist() == [1.5] * 3


def test_average_wants_a_list(tmp_path):
    for sources in ("a.ckpt", ["a.ckpt"], []):
        with pytest.raises(CheckpointError, match="two or more"):
            average(sources, str(tmp_path / "c.ckpt"))


def test_inspect_says_what_is_there(tmp_path, shared_data):
    weights, rest = trained()
    report = inspect(write(tmp_path / "a.ckpt", dict(weights, **rest)))
    assert {tensor.name for tensor in report.tensors if tensor.is_optimizer} == set(rest)
    assert report.nbytes == sum(np.asarray(array).nbytes for array in dict(weights, **rest).values())
    text = str(report)
    assert "11 x 6" in text and "scalar" in text and "int64" in text and "optimizer" in text
    real = inspect(str(shared_data("tiny_tf1_checkpoint")))
    assert len(real.tensors) == 139 and 0.6 < real.optimizer_nbytes / real.nbytes < 0.7


def test_inspect_shows_types_that_no_tool_writes(tmp_path):
    content = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [2, 2], "data_offsets": [0, 4]}}).encode("utf-8")
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(content)) + content + b"1234")
    assert "F8_E4M3" in str(inspect(str(tmp_path / "a.safetensors")))
    for target in ("b.safetensors", "b.ckpt"):
        with pytest.raises(CheckpointError, match="F8_E4M3"):
            strip_optimizer(str(tmp_path / "a.safetensors"), str(tmp_path / target))
    write(tmp_path / "t.ckpt", trained()[0])
    hold_text(tmp_path, "t.ckpt")
    assert "string" in str(inspect(str(tmp_path / "t.ckpt")))
