"""Masked-language-model pretraining: what is hidden, what is written, and that runs repeat and resume bit by bit."""

import json
import os
import signal

import numpy as np
import pytest

import ftbert
from ftbert.checkpoint import convert, load_model_folder, open_checkpoint
from ftbert.errors import CheckpointError, ConfigError, InputError
from ftbert.tokenization import Tokenizer
from ftbert.training.corpus import hold_out, read_corpus, rows_of
from ftbert.training.masking import Masker

tf = pytest.importorskip("tensorflow.compat.v1")

import training_runs as finetuning  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TEXTS = [text for text, _ in finetuning.TRAIN]
HEAD = {
    "cls/predictions/output_bias",
    "cls/predictions/transform/LayerNorm/beta",
    "cls/predictions/transform/LayerNorm/gamma",
    "cls/predictions/transform/dense/bias",
    "cls/predictions/transform/dense/kernel",
}
# What pretraining takes of it, too.
OPTIONS = "config epochs batch_size learning_rate max_length threads device progress tensorboard vocab_size".split()
TINY = dict({name: finetuning.TINY[name] for name in OPTIONS}, dev_fraction=0.1)


def run(output, text=TEXTS, **changes):
    options = dict(TINY, **changes)
    if "pretrained" in changes:
        options.pop("config")
    return ftbert.pretrain(text, str(output), **options)


def tokenizer():
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + list("abcdefgh") + ["##" + char for char in "xyz"]
    return Tokenizer(pieces, True)


def padded(texts):
    encoded = tokenizer().encode(texts).batch
    lengths = np.diff(encoded.row_splits)
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int32)
    ids = np.zeros(mask.shape, np.int32)
    ids[mask > 0] = encoded.token_ids
    return ids, mask


# ------------------------------------------------------------------------------------------------- what is hidden


def test_the_share_is_hidden_and_most_of_it_behind_the_mask():
    ids, mask = padded(["a b c d e f g h a b c d e f g h a b c d"] * 500 + ["a"])
    seen, targets = Masker(tokenizer(), 0.15, False)(ids, mask, [1, 2, 3])
    asked = targets >= 0
    assert (asked[:-1].sum(axis=1) == 3).all()  # 15% of 20 pieces, in every row
    assert asked[-1].sum() == 1  # and at least one
    assert np.array_equal(targets[asked], ids[asked]) and (targets[~asked] == -1).all()
    assert np.array_equal(seen[~asked], ids[~asked])
    special = np.isin(ids, [0, 2, 3])
    assert not (asked & special).any() and not np.isin(seen[asked], [0, 1, 2, 3]).any()
    masked, kept = (seen[asked] == 4).mean(), (seen[asked] == ids[asked]).mean()
    # 1,501 draws: three standard deviations; a replacement is the old piece by chance once in eleven.
    assert abs(masked - 0.8) < 0.031 and abs(kept - 0.1 - 0.1 / 11) < 0.025
    # Every place is as likely: 75 of 500 rows.
    assert (np.abs(asked[:-1, 1:-1].sum(axis=0) - 75) < 40).all()


def test_masks_depend_on_the_seed_alone():
    ids, mask = padded(["a b c d e f g h"] * 50)
    masker = Masker(tokenizer(), 0.3, False)
    first, again, other = (masker(ids, mask, seed) for seed in ([0, 1, 2], [0, 1, 2], [0, 1, 3]))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])


def test_whole_words_are_hidden_whole():
    ids, mask = padded(["axyz b cx dyz e f"] * 400)
    whole = Masker(tokenizer(), 0.3, True)(ids, mask, [5])[1] >= 0
    pieces = Masker(tokenizer(), 0.3, False)(ids, mask, [5])[1] >= 0
    goes_on = np.isin(ids, range(13, 16))
    for row in range(len(ids)):
        places = np.flatnonzero(goes_on[row])
        assert (whole[row, places] == whole[row, places - 1]).all()
    before = np.roll(pieces, 1, axis=1)
    assert (pieces[goes_on] != before[goes_on]).any()
    assert abs(whole.sum() / 400 - 4) < 0.5  # 30% of 12 pieces, words whole


def test_a_vocabulary_without_a_mask_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nb\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"no \[MASK\]"):
        run(tmp_path / "model", vocab=str(tmp_path / "vocab.txt"))
    assert os.listdir(str(tmp_path)) == ["vocab.txt"]


# ------------------------------------------------------------------------------------------------------- the text


def test_long_texts_become_several_rows_and_nothing_is_lost():
    long = " ".join("abcdefgh"[index % 8] for index in range(23))
    rows, unknown = rows_of(tokenizer(), ["a b", long, "q"], 10)
    lengths = np.diff(rows.row_splits)
    assert lengths.tolist() == [4, 10, 10, 9, 3] and abs(unknown - 1 / 26) < 1e-9
    content = np.concatenate(
        [rows.token_ids[a + 1 : b - 1] for a, b in zip(rows.row_splits[1:4], rows.row_splits[2:5])]
    )
    assert content.tolist() == tokenizer().encode([long]).batch.token_ids[1:-1].tolist()
    assert (rows.token_ids[rows.row_splits[:-1]] == 2).all() and (rows.token_ids[rows.row_splits[1:] - 1] == 3).all()


def test_texts_from_lines_tables_and_lists(tmp_path):
    lines = tmp_path / "t.txt"
    lines.write_text("你好\n\n  \nbye \tnow\n", encoding="utf-8")
    corpus = read_corpus(str(lines))
    assert corpus.texts == ["你好", "bye \tnow"] and corpus.empty == 2
    table = tmp_path / "t.tsv"
    table.write_text("label\ttext\nx\tone\ny\ttwo\n", encoding="utf-8")
    assert read_corpus(str(table)).texts == ["one", "two"]
    with pytest.raises(InputError, match="1: expected a string"):
        read_corpus(["a", 3, "b"])
    with pytest.raises(InputError, match="found 1"):
        read_corpus(["a", ""])
    with pytest.raises(InputError, match="readable UTF-8"):
        read_corpus(str(tmp_path / "nothing.txt"))
    train, dev = hold_out([str(index) for index in range(100)], 0.2, 15, 0)
    assert len(dev) == 15 and sorted(train + dev, key=int) == [str(index) for index in range(100)]
    assert hold_out(["a", "b"], 0.0, 15, 0) == (["a", "b"], [])


# ---------------------------------------------------------------------------------------------------- the training


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A run long enough to learn something: a word tells others of its row."""
    options = {"epochs": 25, "whole_word": True, "tensorboard": True, "config": finetuning.TWO_LAYERS}
    return run(tmp_path_factory.mktemp("pretrained") / "base", **options)


def test_it_learns_and_fine_tuning_starts_from_it(pretrained, tmp_path):
    first, last = pretrained.history[0], pretrained.history[-1]
    assert last["loss"] < first["loss"] - 0.5 and last["train_loss"] < first["train_loss"] - 0.5
    assert pretrained.metrics["perplexity"] == pytest.approx(np.exp(last["loss"]))
    folder = load_model_folder(pretrained.output)
    assert not folder.labels and not folder.has_pooler and folder.max_length == 16
    names = set(open_checkpoint(pretrained.output).names())
    assert HEAD < names and not [name for name in names if "adam" in name or "step" in name or "pooler" in name]
    with open(os.path.join(pretrained.output, "README.md"), encoding="utf-8") as file:
        assert "masked-language-model" in file.read()
    records = [
        json.loads(line) for line in open(os.path.join(pretrained.run_folder, "metrics.jsonl"), encoding="utf-8")
    ]
    assert {"train", "dev"} == {record["kind"] for record in records}
    assert os.listdir(os.path.join(pretrained.run_folder, "tensorboard"))
    tuned = finetuning.run(tmp_path / "tuned", pretrained=pretrained.output, epochs=1, learning_rate=1e-9, freeze=2)
    assert any("no pooler: a new one was made" in notice for notice in tuned.notices)
    before, after = finetuning.read_weights(pretrained.output), finetuning.read_weights(tuned.output)
    kept = "bert/encoder/layer_0/output/dense/kernel"
    assert np.array_equal(before[kept], after[kept])


def test_the_served_encoder_is_the_trained_one(pretrained):
    with ftbert.FastBertClassifier.load(pretrained.output, device="cpu", runtime="direct", precision="fp32") as loaded:
        assert loaded.encode(["apple is here"], "mean").shape == (1, 32)


def test_the_head_is_googles(pretrained):
    """The loss by numpy, from the saved tensors: transform, GELU, layer norm, the embedding table, the bias."""
    from numpy_bert import _activate, _norm, run_row

    folder = load_model_folder(pretrained.output)
    weights = {name: array.astype(np.float64) for name, array in finetuning.read_weights(pretrained.output).items()}
    ids = Tokenizer.from_folder(pretrained.output).encode(["apple is here now", "the red cat"]).batch
    from ftbert.training.batches import EncodedSet
    from ftbert.training.machine import find_machine
    from ftbert.training.pretraining import PretrainingGraph
    from ftbert.training.updates import Schedule

    rows = EncodedSet(ids, np.zeros(2, np.int32)).batch(np.array([0, 1]))
    targets = np.full(rows.token_ids.shape, -1, np.int32)
    targets[0, 2], targets[1, 1], targets[1, 3] = 7, 9, 11
    loss = 0.0
    for row in (0, 1):
        length = int(rows.mask[row].sum())
        shapes = folder.config
        states = run_row(shapes, weights, rows.token_ids[row, :length], np.zeros(length, int))["token_states"]
        base = "cls/predictions/transform"
        inner = _activate(states @ weights[base + "/dense/kernel"] + weights[base + "/dense/bias"], shapes.hidden_act)
        logits = _norm(inner, weights, base, shapes.norm_epsilon) @ weights["bert/embeddings/word_embeddings"].T
        logits += weights["cls/predictions/output_bias"]
        for place in np.flatnonzero(targets[row] >= 0):
            loss += np.log(np.exp(logits[place]).sum()) - logits[place, targets[row, place]]
    graph = PretrainingGraph(folder.config, Schedule(1e-3, 10, 0), find_machine("cpu", 1), 0)
    reader = open_checkpoint(pretrained.output)

    class Value:
        transposed = bfloat16 = False

        def __init__(self, name):
            self.name, self.array = name, reader.read(name)

    assert graph.assign(Value(name) for name in reader.names()) == []
    assert abs(graph.measure(rows._replace(labels=targets))[0] - loss) < 1e-4
    graph.close()


def test_two_runs_are_bitwise_equal_and_seeds_differ(tmp_path):
    first, second = (run(tmp_path / name, seed=3) for name in ("first", "second"))
    finetuning.assert_same(first.output, second.output)
    other = run(tmp_path / "other", seed=4)
    name = "bert/embeddings/word_embeddings"
    assert not np.array_equal(finetuning.read_weights(first.output)[name], finetuning.read_weights(other.output)[name])


def test_several_devices_and_micro_batches(tmp_path):
    options = {"epochs": 1, "dropout": 0.0}
    one = run(tmp_path / "one", **options)
    two, again = (run(tmp_path / name, devices=2, **options) for name in ("two", "again"))
    finetuning.assert_same(two.output, again.output)
    # Masks are drawn on the host, so they are the same; the sums are not in the same order.
    assert abs(one.history[0]["train_loss"] - two.history[0]["train_loss"]) < 1e-4
    assert abs(one.metrics["loss"] - two.metrics["loss"]) < 1e-3
    assert run(tmp_path / "parts", accumulation=4, devices=2, **options).metrics["loss"] < 6


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
def test_a_killed_run_resumes_and_ends_the_same(tmp_path):
    changes = {"epochs": 4, "save_steps": 5, "seed": 5}
    output = str(tmp_path / "killed")
    # Killed twice, in the middle of epochs: at once after a state was kept, and three steps later.
    for wanted, more in ((5, 0), (20, 3)):
        finetuning.kill_apart("test_pretrain", output, changes, "step", wanted, more)
    straight, resumed = finetuning.run_apart("test_pretrain", [tmp_path / "straight", output], changes)
    kept = [5, 10, 14, 15, 20, 25, 28, 30, 35, 40, 42, 45, 50, 55, 56]
    assert [record["step"] for record in straight] == kept
    finetuning.assert_same(tmp_path / "straight", output)
    # The mean since the last record is of fewer updates where the run was cut off.
    assert [dict(record, train_loss=0) for record in straight] == [dict(record, train_loss=0) for record in resumed]
    # And once more: nothing is trained, the folder is written again.
    again = run(output, **changes)
    assert again.tokens_per_second == 0
    finetuning.assert_same(tmp_path / "straight", output)
    with open(os.path.join(again.run_folder, "metrics.jsonl"), encoding="utf-8") as file:
        steps = [record["step"] for record in map(json.loads, file) if record["kind"] == "train"]
    assert steps == [1, 11, 15, 25, 29, 39, 43, 53]
    with pytest.raises(ConfigError, match="56 steps done"):
        run(output, epochs=5, save_steps=5, seed=5)


def test_ctrl_c_saves_what_was_kept_last(tmp_path, monkeypatch):
    from ftbert.training import pretraining

    steps = []
    step = pretraining.PretrainingGraph.train_step

    def interrupting(self, parts):
        steps.append(1)
        if len(steps) == 18:
            raise KeyboardInterrupt
        return step(self, parts)

    monkeypatch.setattr(pretraining.PretrainingGraph, "train_step", interrupting)
    result = run(tmp_path / "model")
    assert result.interrupted and result.history[-1]["step"] == 14
    assert load_model_folder(result.output).config.hidden_size == 32
    monkeypatch.undo()
    assert not run(tmp_path / "model").interrupted
    finetuning.assert_same(tmp_path / "model", run(tmp_path / "straight").output)


def test_going_on_from_a_pretrained_model_of_each_form(pretrained, tmp_path):
    for form in ("tf1", "huggingface", "ftbert"):
        convert(pretrained.output, str(tmp_path / form), form)
    results = [
        run(tmp_path / ("from " + form), pretrained=str(tmp_path / form), epochs=1, learning_rate=1e-12)
        for form in ("tf1", "huggingface", "ftbert")
    ]
    for result in results:
        assert any("head of pretraining is trained on" in notice for notice in result.notices)
        assert abs(result.metrics["loss"] - pretrained.metrics["loss"]) < 0.8  # other rows are held out
    classifier = finetuning.run(tmp_path / "classifier", epochs=1)
    result = run(tmp_path / "adapted", pretrained=classifier.output, epochs=1)
    assert any("made new" in notice for notice in result.notices)
    before, after = finetuning.read_weights(classifier.output), finetuning.read_weights(result.output)
    assert np.array_equal(before["bert/pooler/dense/kernel"], after["bert/pooler/dense/kernel"])
    assert "output_weights" not in after and HEAD < set(after)
    with pytest.raises(ConfigError, match="without pretrained"):
        run(tmp_path / "x", pretrained=classifier.output, vocab="vocab.txt")


def test_half_precision_output(tmp_path):
    weights = finetuning.read_weights(run(tmp_path / "model", epochs=1, precision="fp16", dev_fraction=0.0).output)
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float16)}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"masked_shar": 1}, "Did you mean masked_share"),
        ({"masked_share": 0.0}, "masked_share: expected a number"),
        ({"save_steps": -1}, "save_steps"),
        ({"whole_word": 1}, "whole_word: expected True or False"),
        ({"accumulation": 17}, "accumulation"),
        ({"config": {"vocab_size": 7}}, "leave vocab_size out"),
        ({"text": None}, "text: expected a path"),
    ],
)
def test_bad_options_are_refused_first(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "model", **changes)
    assert os.listdir(str(tmp_path)) == []


def test_a_pretrained_folder_that_is_none(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        run(tmp_path / "model", pretrained=str(tmp_path / "nothing"))


def test_the_command(tmp_path, capsys):
    from ftbert import cli

    (tmp_path / "t.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    arguments = ["pretrain", "--text", tmp_path / "t.txt", "-o", tmp_path / "model", "--epochs", 1, "--max-length", 16]
    arguments += ["--config", json.dumps(TINY["config"]), "--device", "cpu", "--threads", 1, "--whole-word"]
    arguments += ["--option", "progress=false", "--option", "tensorboard=false", "--vocab-size", 200]
    assert cli.main([str(argument) for argument in arguments]) == 0
    printed = capsys.readouterr().out
    assert "4 updates" in printed and "of the hidden pieces" in printed
    assert load_model_folder(str(tmp_path / "model")).kind == "ftbert"
