"""Fine-tuning on small data: what is refused, what is learned, and that runs repeat and resume bit by bit."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ftbert.checkpoint import load_model_folder, open_checkpoint
from ftbert.errors import ConfigError, FtbertError, InputError, UnavailableError
from ftbert.finetune import finetune, prepare
from ftbert.training import metrics as measures
from ftbert.training.batches import EncodedSet, epoch_plan
from ftbert.training.data import Columns, load_dataset, order_labels, split_dev
from ftbert.training.vocabulary import build_tokenizer

tf = pytest.importorskip("tensorflow.compat.v1")

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

WORDS = {
    "fruit": ["apple", "pear", "plum", "苹果", "梨子"],
    "animal": ["horse", "cat", "mouse", "马儿", "猫咪"],
    "colour": ["red", "green", "blue", "红色", "绿色"],
}
FILLERS = ["the", "a", "is", "here", "now", "我", "有", "一个"]

TINY = {
    "config": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 16,
        "initializer_range": 0.1,
    },
    "epochs": 2,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "dropout": 0.1,
    "classifier_dropout": 0.1,
    "word_dropout": 0.0,
    "label_smoothing": 0.0,
    "max_length": 16,
    "threads": 1,
    "device": "cpu",
    "progress": False,
    "tensorboard": False,
    "vocab_size": 200,
}


def make_rows(count, seed, pairs=False):
    """(text, label) rows whose label is that of the one telling word."""
    draw = np.random.RandomState(seed)
    names = sorted(WORDS)
    rows = []
    for _ in range(count):
        label = names[draw.randint(3)]
        words = [FILLERS[draw.randint(len(FILLERS))] for _ in range(draw.randint(1, 6))]
        words.insert(draw.randint(len(words) + 1), WORDS[label][draw.randint(5)])
        text = " ".join(words)
        rows.append((text, "and then", label) if pairs else (text, label))
    return rows


TRAIN, DEV = make_rows(240, 0), make_rows(60, 1)


def run(output, train=TRAIN, dev=DEV, pretrained=None, **changes):
    options = dict(TINY, **changes)
    if pretrained is not None:
        options.pop("config")
    return finetune(train, dev, pretrained, str(output), **options)


def read_weights(folder):
    reader = open_checkpoint(str(folder))
    return {name: np.array(reader.read(name)) for name in reader.names()}


def assert_same(first, second):
    first, second = read_weights(first), read_weights(second)
    assert sorted(first) == sorted(second)
    for name in first:
        assert np.array_equal(first[name], second[name]), name


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of four epochs, which learns the task."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    return run(folder, epochs=4, tensorboard=True)


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


APART = """
import json, sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
module = __import__(sys.argv[3])
result = module.run(sys.argv[4], **json.loads(sys.argv[5]))
print(json.dumps(result.history))
"""


def start_apart(module, output, changes):
    """Starts `module.run` in an interpreter of its own; it prints the run's history.

    TensorFlow's pool of threads is the process's, made by its first session: runs are equal bit by bit where their
    pools are, and this process's pool is whatever the tests before asked for.
    """
    command = [sys.executable, "-c", APART, ROOT, os.path.join(ROOT, "tests"), module, str(output), json.dumps(changes)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE)


def run_apart(module, output, changes):
    """The history of a whole run in an interpreter of its own."""
    process = start_apart(module, output, changes)
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0
    return json.loads(printed.decode().splitlines()[-1])


def kill_apart(module, output, changes, counter, wanted, delay):
    """Kills a run `delay` seconds after its kept state says that `counter` has come to `wanted`."""
    process = start_apart(module, output, changes)
    progress_path = str(output) + ".training/progress.json"

    def counted():
        with open(progress_path, encoding="utf-8") as file:
            return json.load(file)[counter]

    deadline = time.time() + 120
    while process.poll() is None and time.time() < deadline:
        if os.path.exists(progress_path) and counted() >= wanted:
            break
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and counted() >= wanted


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
def test_a_killed_run_resumes_and_ends_the_same(tmp_path):
    changes = {"epochs": 4, "metric": "loss", "seed": 5}
    straight = run_apart("test_finetune", tmp_path / "straight", changes)
    output = tmp_path / "killed"
    # Killed twice: in the second epoch (at once after the first was kept), and a moment into the next ones.
    for wanted, delay in ((1, 0.0), (2, 0.15)):
        kill_apart("test_finetune", output, changes, "epoch", wanted, delay)
    resumed = run_apart("test_finetune", output, changes)
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


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_files_by_column_name(tmp_path):
    table = write(tmp_path / "t.tsv", 'id\tsentence\tkind\n1\t你好 "there\tx\n2\tbye\ty\n')
    data = load_dataset(table, Columns("sentence", None, "kind"))
    assert data.texts == ['你好 "there', "bye"] and data.labels == ["x", "y"] and data.lines == [2, 3]
    commas = write(tmp_path / "t.csv", 'text,second,label\n"a, b",c,1\nd,e,0\n')
    data = load_dataset(commas, Columns(pair="second"))
    assert data.texts == [("a, b", "c"), ("d", "e")] and order_labels(data, None) == ["0", "1"]
    lines = write(tmp_path / "t.jsonl", '{"text": "a", "label": ["x", "y"]}\n{"text": "b", "label": []}\n')
    assert load_dataset(lines, Columns(multi_label=True)).labels == [("x", "y"), ()]


def test_frames(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": ["a", "b"], "label": [3, 10]})
    data = load_dataset(frame, Columns())
    assert data.labels == ["3", "10"] and order_labels(data, None) == ["3", "10"]
    with pytest.raises(InputError, match="lacks the columns"):
        load_dataset(frame, Columns(text="words"))


def test_bad_rows_are_all_named_and_nothing_is_trained(tmp_path):
    path = write(tmp_path / "bad.tsv", "text\tlabel\ngood\tx\n\tx\nno label\nempty label\t \ngood too\ty\n")
    with pytest.raises(InputError) as caught:
        run(tmp_path / "model", path, DEV)
    message = str(caught.value)
    assert "3 of 5 rows cannot be used; nothing was trained" in message
    assert "line 3: text: the text is empty" in message
    assert "line 4: expected 2 columns, got 1" in message and "line 5" in message
    assert os.listdir(str(tmp_path)) == ["bad.tsv"]
    with pytest.raises(InputError, match="row 1: text: expected a string, got float"):
        load_dataset([("a", "x"), (float("nan"), "y")], Columns())
    with pytest.raises(InputError, match="'z' is none of the labels"):
        load_dataset([("a", "z")], Columns(), ["x"])


def test_labels_only_in_dev_are_refused(tmp_path):
    with pytest.raises(InputError, match="'mineral' are in no train row"):
        run(tmp_path / "model", TRAIN, DEV + [("a stone", "mineral")])


def test_the_examination_remarks_on_traps():
    rows = [("one text %d" % index, "common") for index in range(60)] + [("rare thing", "rare"), ("one text 3", "rare")]
    rows.append(("one text 4", "common"))
    found = prepare(rows, [("one text 5", "common"), ("new", "rare")], max_length=5, vocab_size=100).examination
    remarks = "\n".join(found.remarks)
    for what in ("with another label (61)", "in train too (0)", "class_weights='balanced'", "fewer than 8 rows"):
        assert what in remarks, remarks
    assert found.facts["repeated rows"] == 2 and found.facts["dev rows also in train"] == 1
    assert found.label_counts == {"common": 61, "rare": 2}
    long_rows = [("a b c d e f g h", "x"), ("a b", "y")] * 4
    assert "lose text" in "\n".join(prepare(long_rows, long_rows[:2], max_length=5, vocab_size=60).examination.remarks)
    with pytest.raises(InputError, match="longer than max_length 5"):
        prepare(long_rows, long_rows[:2], max_length=5, truncation="error", vocab_size=60)
    ordered = [("w%d" % index, "x" if index < 20 else "y") for index in range(40)]
    assert "label by label" in "\n".join(
        prepare(ordered, ordered[15:25], max_length=5, vocab_size=60).examination.remarks
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"learning_rat": 1}, "Did you mean learning_rate"),
        ({"epochs": 0}, "epochs: expected an integer"),
        ({"epochs": True}, "epochs: expected an integer"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"truncation": "middle"}, "truncation: expected one of"),
        ({"class_weights": "even"}, "class_weights"),
        ({"class_weights": {"fruit": 0}}, "positive numbers"),
        ({"class_weights": {"stone": 2.0}}, "'stone' is none of the labels"),
        ({"freeze": 9}, "the model has 2 layers"),
        ({"freeze": -1}, "freeze"),
        ({"labels": ["fruit", "fruit", "animal", "colour"]}, "named twice"),
        ({"accumulation": 17}, "accumulation"),
        ({"config": {"vocab_size": 7}}, "leave vocab_size out"),
    ],
)
def test_bad_options_are_refused_first(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "model", **changes)
    assert os.listdir(str(tmp_path)) == []


def test_a_model_from_scratch_has_defaults_of_its_own(tmp_path):
    options = prepare(TRAIN, DEV, vocab_size=200).options
    assert (options.epochs, options.learning_rate, options.dropout, options.label_smoothing) == (20, 5e-4, 0.3, 0.1)
    options = prepare(TRAIN, DEV, vocab_size=200, epochs=2, dropout=None).options
    assert (options.epochs, options.dropout, options.word_dropout) == (2, None, 0.2)


def test_a_foreign_folder_is_not_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine" / "thesis.txt", "precious")
    with pytest.raises(ConfigError, match="no folder that ftbert wrote"):
        run(tmp_path / "mine")
    write(tmp_path / "file", "precious")
    with pytest.raises(ConfigError, match="there is a file"):
        run(tmp_path / "file")
    with pytest.raises(ConfigError, match="expected a place to write to"):
        run(tmp_path / "file" / "model")
    assert sorted(os.listdir(str(tmp_path))) == ["file", "mine"]


@pytest.mark.skipif(bool(tf.test.is_built_with_cuda()), reason="this TensorFlow may have a GPU")
@pytest.mark.parametrize("wish", [{"device": "gpu"}, {"mixed_precision": "float16"}, {"xla": True}])
def test_what_is_not_there_is_refused(tmp_path, wish):
    with pytest.raises(UnavailableError, match="TensorFlow"):
        run(tmp_path / "model", **wish)


def test_bfloat16_trains(tmp_path):
    result = run(tmp_path / "model", mixed_precision="bfloat16", epochs=4)
    assert result.metrics["accuracy"] > 0.8


def test_a_diverging_loss_is_an_error(tmp_path):
    with pytest.raises(FtbertError, match="Lower learning_rate"):
        run(tmp_path / "model", class_weights={name: 3e38 for name in WORDS})


def test_epochs_are_permutations_of_like_lengths():
    lengths = np.random.RandomState(0).randint(3, 60, 1003)
    plans = [epoch_plan(lengths, 8, 1, epoch) for epoch in (0, 1, 0)]
    for plan in plans:
        assert sorted(np.concatenate(plan)) == list(range(1003))
        padded = sum(len(rows) * lengths[rows].max() for rows in plan)
        assert padded < 1.15 * lengths.sum()
    assert not np.array_equal(np.concatenate(plans[0]), np.concatenate(plans[1]))
    assert np.array_equal(np.concatenate(plans[0]), np.concatenate(plans[2]))


def test_batches_hold_their_rows():
    from ftbert.batching import pack

    packed = pack([[1, 2, 3], [4], [5, 6]], [[0, 0, 1], [0], [0, 1]])
    batch = EncodedSet(packed, np.array([7, 8, 9])).batch(np.array([2, 0]))
    assert batch.token_ids.tolist() == [[5, 6, 0], [1, 2, 3]] and batch.mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.segment_ids.tolist() == [[0, 1, 0], [0, 0, 1]] and batch.labels.tolist() == [9, 7]


def test_held_out_rows_are_of_every_label_and_nowhere_else():
    data = load_dataset(make_rows(300, 0), Columns())
    train, dev = split_dev(data, 0.2, 0)
    assert sorted(train.texts + dev.texts) == sorted(data.texts)
    assert not set(train.texts) & set(dev.texts)
    assert set(dev.labels) == set(WORDS)


def test_measures_against_by_hand():
    logits = np.array([[3, 1, 0], [0, 2, 1], [0, 1, 2], [5, 0, 1]], float)
    found = measures.measure(logits, np.array([0, 1, 1, 2]), ["a", "b", "c"])
    assert found.accuracy == 0.5 and found.confusion.tolist() == [[1, 0, 0], [0, 1, 1], [1, 0, 0]]
    assert np.allclose([score.f1 for score in found.per_label], [2 / 3, 2 / 3, 0])
    assert abs(found.macro_f1 - 4 / 9) < 1e-12 and found.micro_f1 == 0.5
    mistakes = measures.most_confident_mistakes(logits, np.array([0, 1, 1, 2]), ["a", "b", "c"])
    assert [(mistake.row, mistake.predicted, mistake.expected) for mistake in mistakes] == [
        (3, "a", "c"),
        (2, "c", "b"),
    ]
    many = measures.measure(np.array([[1.0, -1], [1, 1]]), np.array([[1, 0], [0, 1]]), ["a", "b"], True)
    assert many.accuracy == 0.5 and many.confusion.tolist() == [[[0, 1], [0, 1]], [[1, 0], [0, 1]]]


def test_the_vocabulary_repeats_and_covers():
    texts = [text for text, _ in TRAIN]
    first, second = build_tokenizer(texts, 120), build_tokenizer(list(reversed(texts)), 120)
    assert first.vocab == second.vocab and len(first.vocab) <= 120
    assert first.encode(texts).unknown_rate == 0
    small = build_tokenizer(texts, 20)
    assert len(small.vocab) <= 20 and small.encode(texts).unknown_rate > 0
    with pytest.raises(ConfigError, match="vocab_size"):
        build_tokenizer(texts, 5)
