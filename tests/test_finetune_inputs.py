"""What fine-tuning is given, before anything is trained: rows, files, options, batches, measures, vocabularies."""

import os

import numpy as np
import pytest

from ftbert.errors import ConfigError, InputError, UnavailableError
from ftbert.finetune import prepare
from ftbert.training import metrics as measures
from ftbert.training.batches import EncodedSet, epoch_plan
from ftbert.training.data import Columns, load_dataset, order_labels, split_dev
from ftbert.training.vocabulary import build_tokenizer

tf = pytest.importorskip("tensorflow.compat.v1")

from training_runs import DEV, TRAIN, TWO_LAYERS, WORDS, make_rows, run  # noqa: E402


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
        ({"freeze": 9, "config": TWO_LAYERS}, "the model has 2 layers"),
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
