"""Training on several devices, tried on TensorFlow's virtual CPUs: the same mathematics as on one."""

import os

import numpy as np
import pytest

from ftbert.config import BertConfig
from ftbert.errors import ConfigError, UnavailableError

tf = pytest.importorskip("tensorflow.compat.v1")

import training_runs as finetuning  # noqa: E402

from ftbert.training.batches import Batch, epoch_plan  # noqa: E402
from ftbert.training.graph import Schedule, TrainingGraph  # noqa: E402
from ftbert.training.machine import find_machine  # noqa: E402

CONFIG = BertConfig(30, 16, 1, 2, 32, 12, 2, "gelu_tanh", 0.0, 0.0, 0.2)


class Value:
    """What `assign` and `restore` take."""

    transposed = bfloat16 = False

    def __init__(self, name, array):
        self.name, self.array = name, array


def batch(rows, seed=0):
    draw = np.random.RandomState(seed)
    lengths = draw.randint(2, 10, rows)
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int32)
    ids = draw.randint(5, 30, mask.shape).astype(np.int32) * mask
    return Batch(ids, mask, np.zeros_like(ids), draw.randint(0, 3, rows).astype(np.int32))


def build(devices, weights=None, config=CONFIG, **options):
    schedule = Schedule(1e-2, 50, 0, clip_norm=None, weight_decay=0.0)
    options.setdefault("classifier_dropout", 0.0)
    graph = TrainingGraph(config, 3, False, schedule, find_machine("cpu", 1, devices=devices), 1, **options)
    if weights is not None:
        assert graph.assign(Value(name, array) for name, array in weights.items()) == []
    return graph


def weights_of(graph):
    return dict(graph.read(graph.variables))


def gradients_of(graph):
    """Adam's first moments after one step: a tenth of the gradients."""
    return {name: 10 * value for name, value in graph.read(graph.slots) if name.endswith("adam_m")}


@pytest.fixture(scope="module")
def start():
    graph = build(1)
    weights = weights_of(graph)
    graph.close()
    return weights


WEIGHTED = {"class_weights": np.array([1.0, 2.0, 0.5]), "label_smoothing": 0.1}


@pytest.mark.parametrize("devices, rows, options", [(2, 8, {}), (2, 7, WEIGHTED), (2, 1, {}), (3, 5, {})])
def test_loss_and_gradients_are_those_of_one_device(start, devices, rows, options):
    one, several = build(1, start, **options), build(devices, start, **options)
    first, second = one.train_step([batch(rows)]), several.train_step([batch(rows)])
    assert abs(first.loss - second.loss) <= 1e-6 * abs(first.loss)
    assert abs(first.gradient_norm - second.gradient_norm) <= 1e-5 * first.gradient_norm
    expected, found = gradients_of(one), gradients_of(several)
    largest = max(np.abs(value).max() for value in expected.values())
    assert largest > 1e-3
    for name, value in expected.items():
        assert np.abs(value - found[name]).max() <= 2e-6 * largest, name
    assert np.array_equal(one.logits(batch(5, 9)).shape, (5, 3))
    one.close()
    several.close()


def test_new_weights_depend_on_the_seed_and_not_on_the_devices(start):
    several = build(3)
    for name, value in several.read(several.variables):
        assert np.array_equal(value, start[name]), name
    several.close()


def test_micro_batches_add_up_on_several_devices(start):
    whole, parts = build(1, start), build(2, start, accumulation=2)
    rows = batch(8)
    halves = [Batch(*(array[begin : begin + 4] for array in rows)) for begin in (0, 4)]
    for _ in range(2):  # the second shows that the sums begin at zero again
        first, second = whole.train_step([rows]), parts.train_step(halves)
        assert abs(first.loss - second.loss) <= 1e-4 * first.loss
        assert abs(first.gradient_norm - second.gradient_norm) <= 1e-4 * first.gradient_norm
    whole.close()
    parts.close()


def copies_of(graph, name):
    with graph.session.graph.as_default():
        return graph.session.run([copy[name].value() for copy in graph._copies])


def test_copies_stay_equal_and_restore_fills_them_all(start):
    dropped = BertConfig(30, 16, 1, 2, 32, 12, 2, "gelu_tanh", 0.1, 0.1, 0.2)
    graph = build(2, start, dropped, classifier_dropout=0.1)
    for index in range(3):
        graph.train_step([batch(8, index)])
    state = dict(graph.read(graph.state()))
    expected = [graph.train_step([batch(8, index)]) for index in (3, 4)]
    for name in ("output_weights", "bert/encoder/layer_0/output/dense/kernel", "bert/embeddings/word_embeddings"):
        first, second = copies_of(graph, name)
        assert np.array_equal(first, second) and not np.array_equal(first, start[name]), name
    other = build(2, config=dropped, classifier_dropout=0.1)
    assert other.restore(Value(name, array) for name, array in state.items()) == []
    assert [other.train_step([batch(8, index)]) for index in (3, 4)] == expected  # to the last bit
    for name, value in graph.read(graph.variables):
        assert np.array_equal(value, dict(other.read([name]))[name]), name
    graph.close()
    other.close()


def test_devices_draw_dropout_each_for_itself(start):
    """Were the draws the same, rows 0 and 1 of equal text would be dropped alike on two devices."""
    dropped = BertConfig(30, 16, 1, 2, 32, 12, 2, "gelu_tanh", 0.5, 0.0, 0.2)
    graph = build(2, start, dropped)
    twice = Batch(*(np.concatenate([array, array]) for array in batch(1)))
    losses = graph.session.run(graph._losses, graph._feed(twice, labels=True))
    assert losses[0] != losses[1]
    graph.close()


def test_a_whole_run_repeats_bit_by_bit_and_says_what_it_used(tmp_path):
    results = [finetuning.run(tmp_path / name, epochs=2, devices=2) for name in ("first", "second")]
    finetuning.assert_same(results[0].output, results[1].output)
    assert any("Training on 2 virtual CPUs" in notice for notice in results[0].notices)
    one = finetuning.run(tmp_path / "one", epochs=1)
    assert not any("Training on" in notice for notice in one.notices)


def test_a_killed_run_on_two_devices_ends_the_same(tmp_path, monkeypatch):
    options = {"epochs": 3}
    straight = finetuning.run(tmp_path / "straight", devices=2, **options)
    from ftbert.training import trainer

    def dying(lengths, batch_size, seed, epoch):
        if epoch == 2:
            raise RuntimeError("killed")
        return epoch_plan(lengths, batch_size, seed, epoch)

    monkeypatch.setattr(trainer, "epoch_plan", dying)
    with pytest.raises(RuntimeError, match="killed"):
        finetuning.run(tmp_path / "killed", devices=2, **options)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="resume=False"):
        finetuning.run(tmp_path / "killed", devices=1, **options)
    assert os.path.exists(str(tmp_path / "killed.training" / "progress.json"))
    finetuning.assert_same(straight.output, finetuning.run(tmp_path / "killed", devices=2, **options).output)


def test_what_is_used_is_said(monkeypatch):
    from ftbert.training import machine

    monkeypatch.setattr(machine, "visible_gpus", lambda: ["/gpu:0", "/gpu:1"])
    both = find_machine()
    assert both.devices == ("/gpu:0", "/gpu:1") and "Training on 2 GPUs" in both.notice
    one = find_machine("gpu", devices=1)
    assert one.devices == ("/gpu:0",) and "first of the 2 GPUs" in one.notice
    with pytest.raises(UnavailableError, match="sees 2 GPUs"):
        find_machine(devices=3)
    assert find_machine("cpu").devices == ("/cpu:0",) and find_machine("cpu").notice is None
    monkeypatch.setattr(machine, "visible_gpus", lambda: ["/gpu:0"])
    assert find_machine().notice is None
    # What only GPUs have is granted where there are some, and refused where the CPU was asked for.
    assert find_machine(mixed_precision="float16", xla=True).xla
    for wish in ({"mixed_precision": "float16"}, {"xla": True}):
        with pytest.raises(UnavailableError, match="Leave it out"):
            find_machine("cpu", **wish)
