"""Fine-tuning on small data: what is refused, what is learned, and that runs repeat and resume bit by bit."""

import json
import os
import re
import signal

import numpy as np
import pytest

from ftbert.checkpoint import load_model_folder
from ftbert.errors import ConfigError, FtbertError
from ftbert.finetune import finetune, prepare
from ftbert.training.batches import epoch_plan

tf = pytest.importorskip("tensorflow.compat.v1")

from training_runs import (  # noqa: E402
    DEV,
    TINY,
    TRAIN,
    TWO_LAYERS,
    WORDS,
    assert_same,
    kill_apart,
    make_rows,
    read_weights,
    run,
    run_apart,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of four epochs, which learns the task."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    return run(folder, epochs=4, tensorboard=True, config=TWO_LAYERS)


def test_it_learns_and_writes_a_servable_folder(trained):
    assert trained.metrics["accuracy"] > 0.9 and trained.metrics["macro_f1"] > 0.9
    assert trained.labels == ["animal", "colour", "fruit"]
    assert len(trained.history) == 4 and trained.history[-1]["train_loss"] < trained.history[0]["train_loss"]
    folder = load_model_folder(trained.output)
    assert folder.labels == trained.labels and folder.max_length == 16 and folder.truncation == "head"
    assert sorted(os.listdir(trained.output)) == [
        "README.md",
        "bert_config.json",
        "ftbert.json",
        "labels.txt",
        "model.ckpt.data-00000-of-00001",
        "model.ckpt.index",
        "report.html",
        "vocab.txt",
    ]
    # Stripped: the weights alone.
    assert not [name for name in read_weights(trained.output) if "adam" in name or "step" in name]
    with open(os.path.join(trained.output, "ftbert.json"), encoding="utf-8") as file:
        settings = json.load(file)
    assert settings["training"]["metrics"] == trained.metrics
    assert settings["training"]["tensorflow"] == tf.__version__


def test_the_served_model_measures_what_training_measured(trained, runtime):
    from ftbert import FastBertClassifier

    with FastBertClassifier.load(trained.output, device="cpu", precision="fp32", runtime=runtime) as classifier:
        assert classifier.labels == trained.labels
        chances = classifier.predict_proba([text for text, _ in DEV])
    truth = np.array([trained.labels.index(label) for _, label in DEV])
    assert (chances.argmax(-1) == truth).mean() == trained.metrics["accuracy"]
    loss = -np.log(chances[np.arange(len(truth)), truth]).mean()
    assert abs(loss - trained.metrics["loss"]) < 1e-4


def test_the_report_and_card_say_what_happened(trained):
    with open(trained.report, encoding="utf-8") as file:
        report = file.read()
    assert report.count("<svg") == 4 and "http" not in report
    assert "%.2f%%" % (100 * trained.metrics["accuracy"]) in report
    with open(os.path.join(trained.output, "README.md"), encoding="utf-8") as file:
        card = file.read()
    assert "%.2f%%" % (100 * trained.metrics["accuracy"]) in card and "train rows: 240" in card
    records = [json.loads(line) for line in open(os.path.join(trained.run_folder, "metrics.jsonl"), encoding="utf-8")]
    assert [record["epoch"] for record in records if record["kind"] == "dev"] == [1, 2, 3, 4]
    assert {"loss", "learning_rate", "gradient_norm"} <= set(records[0])


def test_the_charts_name_their_axes(trained):
    with open(trained.report, encoding="utf-8") as file:
        charts = re.findall("<svg.*?</svg>", file.read())
    for chart, first, last in ((charts[0], "0", "55"), (charts[1], "1", "4"), (charts[2], "1", "4")):
        assert ">%s</text>" % first in chart and ">%s</text>" % last in chart
    for label in WORDS:
        assert charts[3].count(">%s</text>" % label) == 2  # its row and its column


def test_tensorboards_files_hold_the_measures(trained):
    folder = os.path.join(trained.run_folder, "tensorboard")
    found = []
    for name in os.listdir(folder):
        for event in tf.train.summary_iterator(os.path.join(folder, name)):
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    measured = sorted((step, value) for tag, step, value in found if tag == "dev/accuracy")
    assert [step for step, _ in measured] == [15, 30, 45, 60]
    expected = [record["accuracy"] for record in trained.history]
    np.testing.assert_allclose([value for _, value in measured], expected, 1e-6)
    assert {tag for tag, _, _ in found} >= {"train/loss", "train/learning_rate", "dev/loss", "dev/macro_f1"}


def test_the_kept_epoch_is_the_best(trained):
    accuracies = [record["accuracy"] for record in trained.history]
    assert trained.best_epoch == accuracies.index(max(accuracies)) + 1
    assert trained.metrics["accuracy"] == max(accuracies)


def test_two_runs_are_bitwise_equal_and_seeds_differ(tmp_path):
    first = run(tmp_path / "first", seed=3)
    second = run(tmp_path / "second", seed=3)
    assert_same(first.output, second.output)
    other = run(tmp_path / "other", seed=4)
    name = "bert/encoder/layer_0/output/dense/kernel"
    assert not np.array_equal(read_weights(first.output)[name], read_weights(other.output)[name])


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
def test_a_killed_run_resumes_and_ends_the_same(tmp_path):
    changes = {"epochs": 4, "metric": "loss", "seed": 5}
    output = tmp_path / "killed"
    # Killed twice: in the second epoch (at once after the first was kept), and half way through the third.
    for wanted, more in ((1, 0), (2, 7)):
        kill_apart("test_finetune", output, changes, "epoch", wanted, more)
    straight, resumed = run_apart("test_finetune", [tmp_path / "straight", output], changes)
    assert_same(tmp_path / "straight", output)
    assert [dict(record, seconds=0) for record in straight] == [dict(record, seconds=0) for record in resumed]
    # And once more: nothing is trained, the folder is written again.
    again = run(output, **changes)
    assert again.examples_per_second == 0
    assert_same(tmp_path / "straight", output)
    with open(os.path.join(again.run_folder, "metrics.jsonl"), encoding="utf-8") as file:
        steps = [record["step"] for record in map(json.loads, file) if record["kind"] == "train"]
    assert steps == [0, 10, 15, 25, 30, 40, 45, 55]


def test_other_settings_do_not_take_up_the_run(trained, tmp_path):
    first = run(tmp_path / "model", epochs=1)
    with pytest.raises(ConfigError, match="resume=False"):
        run(tmp_path / "model", epochs=1, learning_rate=2e-3)
    assert run(tmp_path / "model", epochs=1, learning_rate=2e-3, resume=False).output == first.output


def test_another_precision_is_saved_without_training_again(tmp_path):
    """What the error of an overflow advises."""
    first = run(tmp_path / "model", epochs=1, precision="fp16")
    assert {array.dtype.name for array in read_weights(first.output).values()} == {"float16"}
    second = run(tmp_path / "model", epochs=1, precision="fp32")
    assert second.examples_per_second == 0 and second.history == first.history
    assert {array.dtype.name for array in read_weights(second.output).values()} == {"float32"}


def test_ctrl_c_keeps_the_best_so_far(tmp_path, monkeypatch):
    from ftbert.training import trainer

    plans = []

    def interrupting(lengths, batch_size, seed, epoch):
        plan = epoch_plan(lengths, batch_size, seed, epoch)
        plans.append(epoch)
        if epoch == 2:

            def rows():
                yield plan[0]
                raise KeyboardInterrupt

            return rows()
        return plan

    monkeypatch.setattr(trainer, "epoch_plan", interrupting)
    result = run(tmp_path / "model", epochs=5, tensorboard=True)
    assert result.interrupted and len(result.history) == 2 and plans == [0, 1, 2]
    assert load_model_folder(result.output).num_labels == 3
    monkeypatch.setattr(trainer, "epoch_plan", epoch_plan)
    # Called again, it goes on to the end.
    assert not run(tmp_path / "model", epochs=5, tensorboard=True).interrupted
    # TensorBoard is told to forget the step of the third epoch that was cut off.
    files = [tf.train.summary_iterator(entry.path) for entry in os.scandir(result.run_folder + "/tensorboard")]
    starts = [event.step for file in files for event in file if event.session_log.status == tf.SessionLog.START]
    assert starts == [31]
    assert_same(result.output, run(tmp_path / "model", epochs=5).output) if result.best_epoch > 2 else None


def test_patience_stops_early(tmp_path):
    result = run(tmp_path / "model", epochs=6, learning_rate=1e-9, patience=2)
    assert result.stopped_early and len(result.history) == 3 and result.best_epoch == 1


def test_accumulated_micro_batches_equal_one_batch(tmp_path):
    # Dropout draws differ between the two ways, so it is off.
    whole = run(tmp_path / "whole", epochs=1, dropout=0.0, classifier_dropout=0.0)
    parts = run(tmp_path / "parts", epochs=1, dropout=0.0, classifier_dropout=0.0, accumulation=4)
    first, second = read_weights(whole.output), read_weights(parts.output)
    for name in first:
        # Adam divides by the gradient's size: where that is rounding alone (key biases), any step may come.
        if not name.endswith("key/bias"):
            assert np.abs(first[name] - second[name]).max() < 2e-3, name
    assert abs(whole.history[0]["loss"] - parts.history[0]["loss"]) < 2e-3


def test_going_on_from_a_trained_model(trained, tmp_path):
    same = run(tmp_path / "same", pretrained=trained.output, epochs=1, learning_rate=1e-6)
    assert same.metrics["accuracy"] > 0.9
    assert any("same 3 labels: it is trained on" in notice for notice in same.notices)
    turned = prepare(TRAIN, DEV, trained.output, labels=["fruit", "colour", "animal"], max_length=16)
    assert not turned.keeps_head and "another order" in turned.notices[0]
    fewer = [row for row in TRAIN if row[1] != "fruit"], [row for row in DEV if row[1] != "fruit"]
    two = run(tmp_path / "two", *fewer, pretrained=trained.output, epochs=1)
    assert any("it has 3 labels, and the data 2" in notice for notice in two.notices)
    assert read_weights(two.output)["output_weights"].shape == (2, 32)


def test_frozen_layers_stay(trained, tmp_path):
    before = read_weights(trained.output)
    part = read_weights(run(tmp_path / "part", pretrained=trained.output, epochs=1, freeze=1).output)
    head = read_weights(run(tmp_path / "head", pretrained=trained.output, epochs=1, freeze="encoder").output)
    for name, values in before.items():
        below = "/embeddings/" in name or "/layer_0/" in name
        assert np.array_equal(values, part[name]) == below or name.endswith("key/bias"), name
        learns = "encoder" not in name and "embeddings" not in name
        assert np.array_equal(values, head[name]) != learns, name


def test_layer_decay_and_head_factor_scale_the_steps(trained, tmp_path):
    """Without decay, warm-up and clipping, Adam's first step is as long as the rate."""
    before = read_weights(trained.output)
    options = dict(
        epochs=1, batch_size=240, warmup=0.0, weight_decay=0.0, learning_rate=1e-4, clip_norm=None, dropout=0.0
    )
    after = read_weights(
        run(tmp_path / "m", pretrained=trained.output, layer_decay=0.5, bias_correction=True, **options).output
    )

    def step(name):
        # The longest: where a gradient is as small as Adam's epsilon, the step is shorter.
        return float(np.abs(after[name] - before[name]).max())

    assert abs(step("output_weights") / 1e-4 - 1) < 0.1
    assert abs(step("bert/encoder/layer_1/output/dense/kernel") / 5e-5 - 1) < 0.1
    assert abs(step("bert/encoder/layer_0/output/dense/kernel") / 2.5e-5 - 1) < 0.1


def test_multi_label(tmp_path):
    draw = np.random.RandomState(0)
    names = sorted(WORDS)

    def rows(count):
        made = []
        for _ in range(count):
            chosen = [name for name in names if draw.rand() < 0.5]
            words = [WORDS[name][draw.randint(5)] for name in chosen] + ["here"]
            made.append({"text": " ".join(words), "label": chosen})
        return made

    result = run(tmp_path / "model", rows(240), rows(60), multi_label=True, epochs=6, class_weights="balanced")
    assert result.metrics["micro_f1"] > 0.85
    assert load_model_folder(result.output).problem_type == "multi_label"


def test_pairs_and_class_weights_and_smoothing(tmp_path):
    result = run(
        tmp_path / "model",
        make_rows(120, 0, pairs=True),
        make_rows(40, 1, pairs=True),
        class_weights={"fruit": 2.0},
        label_smoothing=0.1,
        truncation="tail",
        precision="fp16",
    )
    assert read_weights(result.output)["output_weights"].dtype == np.float16
    with pytest.raises(ConfigError, match="pairs in both"):
        run(tmp_path / "other", make_rows(40, 0, pairs=True), DEV)


def test_balanced_weights():
    from ftbert.training.plan import class_weights

    rows = [("text %d" % index, "a" if index < 30 else "b") for index in range(40)]
    plan = prepare(rows, rows[25:35], class_weights="balanced", max_length=16)
    assert np.allclose(class_weights(plan), [40 / (2 * 30), 40 / (2 * 10)])


def test_a_processor_like_googles(tmp_path):
    class Example:
        def __init__(self, text, label):
            self.guid, self.text_a, self.text_b, self.label = "x", text, None, label

    class Processor:
        def get_train_examples(self, data_dir):
            assert data_dir == "somewhere"
            return [Example(*row) for row in TRAIN]

        def get_dev_examples(self, data_dir):
            return [Example(*row) for row in DEV]

        def get_labels(self):
            return ["fruit", "animal", "colour"]

    result = finetune(processor=Processor(), data_dir="somewhere", output=str(tmp_path / "m"), **dict(TINY, epochs=1))
    assert result.labels == ["fruit", "animal", "colour"]
    with pytest.raises(ConfigError, match="get_labels"):
        prepare(processor=object())


def test_bfloat16_trains(tmp_path):
    result = run(tmp_path / "model", mixed_precision="bfloat16", epochs=4, config=TWO_LAYERS)
    assert result.metrics["accuracy"] > 0.8


def test_a_diverging_loss_is_an_error(tmp_path):
    with pytest.raises(FtbertError, match="Lower learning_rate"):
        run(tmp_path / "model", class_weights={name: 3e38 for name in WORDS})
