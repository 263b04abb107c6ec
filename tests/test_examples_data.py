"""The sentences of the shipped demo: enough of them, distinct, in both languages, and none in both parts."""

import collections
import os
import re
import unicodedata

import pytest

pytestmark = pytest.mark.once

FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "examples", "data")


def read(part):
    """(label, text) rows of one part; asserts the form of the file on the way."""
    with open(os.path.join(FOLDER, "intents_%s.tsv" % part), encoding="utf-8", newline="") as file:
        lines = file.read().split("\n")
    assert lines[0] == "label\ttext" and lines[-1] == ""
    rows = [tuple(line.split("\t")) for line in lines[1:-1]]
    for number, row in enumerate(rows, 2):
        assert len(row) == 2, "line %d: %r" % (number, row)
        assert re.match("^[a-z]+(_[a-z]+)*$", row[0]) and row[1].strip() == row[1] != "", "line %d: %r" % (number, row)
        assert not row[1].startswith('"'), "line %d: a CSV reader would take the quote for quoting" % number
    return rows


def is_chinese(text):
    return any("\u4e00" <= character <= "\u9fff" for character in text)


def normal_form(text):
    """The text without case, width, spaces and punctuation."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).lower())


def pieces(text):
    """Overlapping character pairs (Chinese) or triples (English)."""
    form = normal_form(text)
    size = 2 if is_chinese(text) else 3
    return frozenset(form[i : i + size] for i in range(max(1, len(form) - size + 1)))


@pytest.fixture(scope="module")
def parts():
    return {part: read(part) for part in ("train", "test")}


def test_there_are_enough_sentences_of_every_label_and_language(parts):
    everything = parts["train"] + parts["test"]
    assert len(everything) >= 1200
    assert 0.1 <= len(parts["test"]) / len(everything) <= 0.22
    labels = {label for label, _ in everything}
    assert len(labels) >= 12
    for part, least in (("train", 50), ("test", 12)):
        counts = collections.Counter((label, is_chinese(text)) for label, text in parts[part])
        assert set(counts) == {(label, chinese) for label in labels for chinese in (True, False)}
        assert min(counts.values()) >= least


def test_no_sentence_occurs_twice(parts):
    forms = collections.Counter(normal_form(text) for part in parts.values() for _, text in part)
    assert [form for form, count in forms.items() if count > 1] == []


def test_no_held_out_sentence_is_nearly_a_training_sentence(parts):
    training = [(text, pieces(text)) for _, text in parts["train"]]
    near = []
    for _, text in parts["test"]:
        own = pieces(text)
        near += [(text, other) for other, its in training if len(own & its) >= 0.6 * len(own | its)]
    assert near == []


def test_lengths_vary(parts):
    for chinese, low, high in ((True, 5, 16), (False, 20, 60)):
        lengths = sorted(len(text) for part in parts.values() for _, text in part if is_chinese(text) == chinese)
        assert lengths[len(lengths) // 20] <= low and lengths[-len(lengths) // 20] >= high
