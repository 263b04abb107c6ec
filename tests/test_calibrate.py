"""calibrate: what it measures, what it records, what `precision="auto"` then does."""

import json
import os

import numpy as np
import pytest

from ftbert import _ops
from ftbert import calibrate as module
from ftbert.calibrate import CalibrationReport, PrecisionResult, calibrate
from ftbert.checkpoint import load_model_folder, save_model_folder
from ftbert.config import BertConfig
from ftbert.errors import ConfigError, InputError, UnavailableError
from ftbert.predictor import FastBertClassifier
from ftbert.tokenization import Tokenizer

WORDS = ["refund", "card", "lost", "where", "is", "my", "money", "please", "help", "account", "closed", "order", "late"]
LABELS = ["card", "money", "order"]


def library_is_built():
    try:
        return bool(_ops.describe_machine())
    except UnavailableError:
        return False


pytestmark = pytest.mark.skipif(not library_is_built(), reason="the native library is not built")


def make_model(folder, problem_type="single_label"):
    """Two layers of hidden 64, whose classifier leans clearly, so that rounding turns no answer."""
    from ftbert.checkpoint.names import weight_shapes

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + WORDS
    os.makedirs(str(folder / "source"))
    (folder / "source" / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    tokenizer = Tokenizer.from_vocab(str(folder / "source" / "vocab.txt"), True)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=32,
    )
    random = np.random.RandomState(3)
    weights = []
    for name, shape in weight_shapes(config, len(LABELS), True).items():
        scale = 1.0 if "word_embeddings" in name or name == "output_weights" else 0.05
        array = (random.standard_normal(shape) * scale).astype(np.float32)
        if name.endswith("gamma"):
            array += 1
        weights.append(_ops.Weight(name, array, False, False))
    path = str(folder / "model")
    save_model_folder(path, config, weights, tokenizer, LABELS, problem_type, extra={"origin": "a test"})
    return path


@pytest.fixture(autouse=True)
def short_timing(monkeypatch):
    monkeypatch.setattr(module, "_TIMED_SECONDS", 0.05)


@pytest.fixture
def model(tmp_path):
    return make_model(tmp_path)


def some_texts(count):
    random = np.random.RandomState(0)
    return [" ".join(random.choice(WORDS, random.randint(2, 12))) for _ in range(count)]


def settings_of(path):
    with open(os.path.join(path, "ftbert.json"), encoding="utf-8") as file:
        return json.load(file)


def test_measures_every_precision_and_records_the_fastest(model):
    texts = some_texts(200)
    report = calibrate(model, texts, device="cpu", threads=1, tolerance=0.05)
    assert isinstance(report, CalibrationReport) and report.recorded and report.device == "cpu" and report.texts == 200
    by_name = {result.precision: result for result in report.results}
    assert [result.precision for result in report.results] == ["fp32", "bf16", "int8"]
    fp32 = by_name["fp32"]
    assert (fp32.agreement, fp32.largest_difference, fp32.speed, fp32.passed) == (1.0, 0.0, 1.0, True)
    with FastBertClassifier.load(model, device="cpu", precision="fp32", runtime="direct") as classifier:
        expected = classifier.predict_proba(texts)
    for name in ("bf16", "int8"):
        with FastBertClassifier.load(model, device="cpu", precision=name, runtime="direct") as classifier:
            scores = classifier.predict_proba(texts)
        result = by_name[name]
        assert name in result.engine and result.texts_per_second > 0 and 0 < result.weight_bytes < fp32.weight_bytes
        assert result.largest_difference == pytest.approx(np.abs(scores - expected).max(), abs=1e-7)
        assert 0 < result.largest_difference < 0.1
        assert result.agreement == pytest.approx((scores.argmax(1) == expected.argmax(1)).mean())
        assert result.passed == (result.agreement >= 0.95) and result.accuracy is None
    fastest = max((result for result in report.results if result.passed), key=lambda result: result.speed)
    assert report.chosen == fastest.precision

    settings = settings_of(model)
    assert settings["precision_checked"] == ({} if report.chosen == "fp32" else {"cpu": report.chosen})
    assert settings["calibration"]["cpu"]["chosen"] == report.chosen
    assert settings["calibration"]["cpu"]["texts"] == 200
    assert settings["origin"] == "a test"  # what was there stays
    assert [name for name in os.listdir(model) if name.startswith(".")] == []
    with FastBertClassifier.load(model, device="cpu", runtime="direct") as classifier:
        assert classifier.precision == report.chosen


def test_auto_stays_fp32_until_something_passed(model):
    with FastBertClassifier.load(model, device="cpu", runtime="direct") as classifier:
        assert classifier.precision == "fp32"
    calibrate(model, some_texts(100), device="cpu", precisions=["int8"], tolerance=1.0)
    recorded = settings_of(model)["precision_checked"]
    # Labels that int8 cannot get right as often as fp32: a record of before goes away with the check that fails.
    with FastBertClassifier.load(model, device="cpu", precision="fp32", runtime="direct") as classifier:
        truth = [prediction.label for prediction in classifier.predict(some_texts(150))]
    report = calibrate(model, some_texts(150), labels=truth, device="cpu", precisions=["int8"], tolerance=0.0)
    int8 = report.results[1]
    assert int8.accuracy == int8.agreement  # fp32's own answers are the truth here
    if int8.accuracy < 1.0:
        assert not int8.passed and "less accurate" in int8.note and report.chosen == "fp32"
        assert settings_of(model)["precision_checked"] == {}
    else:
        assert int8.passed
    assert recorded in ({}, {"cpu": "int8"})


def test_the_record_survives_save(model, tmp_path):
    settings = settings_of(model)
    settings["precision_checked"] = {"cpu": "int8"}
    with open(os.path.join(model, "ftbert.json"), "w", encoding="utf-8") as file:
        json.dump(settings, file)
    with FastBertClassifier.load(model, device="cpu", runtime="direct") as classifier:
        assert classifier.precision == "int8" and "int8" in classifier.engine
        classifier.save(str(tmp_path / "copy"))
    assert load_model_folder(str(tmp_path / "copy")).precision_checked == {"cpu": "int8"}


def test_looking_only_changes_nothing(model):
    before = settings_of(model)
    report = calibrate(model, some_texts(7), precisions=["bf16"], device="cpu", record=False)
    assert not report.recorded and settings_of(model) == before and len(report.results) == 2


def test_multi_label_models_agree_in_every_label(tmp_path):
    model = make_model(tmp_path, "multi_label")
    texts = some_texts(40)
    with FastBertClassifier.load(model, device="cpu", precision="fp32", runtime="direct") as classifier:
        scores = classifier.predict_proba(texts)
    truth = [[LABELS[i] for i in np.flatnonzero(row >= 0.5)] for row in scores]
    report = calibrate(model, texts, labels=truth, precisions=["bf16"], device="cpu", record=False)
    assert report.results[0].accuracy == 1.0
    with pytest.raises(InputError, match=r"labels\[0\].*list of names"):
        calibrate(model, texts, labels=["card"] * 40, device="cpu", record=False)


def test_the_table_names_what_was_chosen(model):
    report = calibrate(model, some_texts(5), precisions=["int8"], device="cpu", record=False)
    text = str(report)
    assert "int8" in text and "agreement" in text and "chosen: %s (not recorded)" % report.chosen in text
    absent = PrecisionResult("fp8", note="not available here: no card")
    shown = CalibrationReport(model, "cpu", 5, 0.01, [absent], "fp32", False)
    assert "no card" in str(shown)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"texts": "one text"}, InputError, "a list of texts, got a single string"),
        ({"texts": []}, InputError, "at least one"),
        ({"texts": ["card"] * 99}, InputError, "at least 100 to record a choice, got 99"),
        ({"labels": ["card"]}, InputError, "labels: expected 100, one for each text, got 1"),
        ({"labels": ["cart"] * 100}, InputError, "'cart' is no label of this model"),
        ({"tolerance": 2.0}, ConfigError, "between 0 and 1, got 2.0"),
        ({"precisions": ["int4"]}, ConfigError, "precisions: expected any of"),
    ],
)
def test_wrong_arguments(model, change, error, message):
    before = settings_of(model)
    arguments = dict({"texts": ["card"] * 100, "device": "cpu"}, **change)
    with pytest.raises(error, match=message):
        calibrate(model, arguments.pop("texts"), **arguments)
    assert settings_of(model) == before


def test_a_folder_without_ftbert_json_keeps_no_record(model):
    os.unlink(os.path.join(model, "ftbert.json"))
    config = os.path.join(model, "bert_config.json")
    with open(config, encoding="utf-8") as file:
        values = dict(json.load(file), hidden_act="gelu")
    with open(config, "w", encoding="utf-8") as file:
        json.dump(values, file)
    with pytest.raises(ConfigError, match="record the choice in, got one of kind 'google'"):
        calibrate(model, some_texts(100), device="cpu")
    assert calibrate(model, some_texts(10), device="cpu", precisions=["bf16"], record=False).chosen in ("fp32", "bf16")
