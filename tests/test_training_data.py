"""Rows for training as people have them: out of spreadsheets, frames and tools that write half of a format."""

import json

import numpy as np
import pytest

from ftbert.errors import CheckpointError, ConfigError, InputError
from ftbert.finetune import prepare
from ftbert.training.data import Columns, load_dataset, order_labels

ROWS = [("card %d lost" % index, "lost") if index % 2 else ("退款 %d" % index, "refund") for index in range(40)]


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return str(path)


def table(mark, rows=ROWS, header=("text", "label"), end="\r\n"):
    return "".join(mark.join(row) + end for row in [header, *rows])


def plan(rows, **options):
    return prepare(rows, vocab_size=200, **options)


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_csv_of_any_country(tmp_path, mark):
    path = write(tmp_path / "a.csv", "\ufeff" + table(mark, ROWS + [('"a%s b;, ""c""\nd"' % mark, "lost")]))
    data = load_dataset(path, Columns())
    assert data.texts[:2] == ["退款 0", "card 1 lost"] and data.texts[-1] == 'a%s b;, "c"\nd' % mark
    assert data.lines[:2] == [2, 3]


def test_a_semicolon_in_the_name_of_a_column(tmp_path):
    path = write(tmp_path / "a.csv", table(",", header=("text", "label;x")))
    assert load_dataset(path, Columns(label="label;x")).labels[:2] == ["refund", "lost"]


def test_mixed_line_ends(tmp_path):
    text = "text,label\r\n" + "".join(",".join(row) + ["\n", "\r\n", "\r"][i % 3] for i, row in enumerate(ROWS))
    assert load_dataset(write(tmp_path / "a.csv", text), Columns()).texts == [row[0] for row in ROWS]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named(tmp_path, name, encoding):
    path = write(tmp_path / name, table("\t" if name.endswith("tsv") else ","), encoding)
    with pytest.raises(InputError, match="-f UTF-16 -t UTF-8|not JSON"):
        load_dataset(path, Columns())


def test_utf_16_of_ascii_alone_is_named(tmp_path):
    path = write(tmp_path / "a.csv", table(",", ROWS[1::2]), "utf-16-le")
    with pytest.raises(InputError, match="line 1: .*zero byte.*-f UTF-16"):
        load_dataset(path, Columns())


def test_the_line_of_another_encoding_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(table(",", ROWS * 30).encode("utf-8") + "卡丢了,lost\r\n".encode("gb18030"))
    with pytest.raises(InputError, match="line 1202: .*GB18030"):
        load_dataset(str(path), Columns())


def test_a_header_without_the_label_is_one_error(tmp_path):
    path = write(tmp_path / "a.csv", table(",", header=("text", "intent")))
    with pytest.raises(InputError, match=r"line 1: expected the column 'label' in the header, found") as caught:
        load_dataset(path, Columns())
    assert str(caught.value).count("\n") == 0


def test_empty_lines_and_cells_are_named(tmp_path):
    path = write(tmp_path / "a.csv", table(",", [("  ", "lost"), ("\u3000", "lost"), ("fine", " "), ("", "")]) + "\r\n")
    with pytest.raises(InputError, match="5 of 5 rows") as caught:
        load_dataset(path, Columns())
    assert "line 6: the line is empty" in str(caught.value) and "line 4: label: " in str(caught.value)
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "a", "label": "b"}) + "\n\n")
    with pytest.raises(InputError, match="line 2: the line is empty"):
        load_dataset(path, Columns())


def test_whole_floats_are_labels_and_others_are_not():
    """A frame of integers with one missing holds floats: the missing one is bad, not all of them."""
    data = load_dataset([("a", 1.0), ("b", np.float64(0)), ("c", np.int64(10)), ("d", True)], Columns())
    assert data.labels == ["1", "0", "10", "True"]
    with pytest.raises(InputError) as caught:
        load_dataset([("a", 1.0), ("b", float("nan")), ("c", 2.5), ("d", None), ("e", float("inf"))], Columns())
    assert "4 of 5 rows" in str(caught.value) and "row 0" not in str(caught.value)


def test_frames_of_every_kind():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(ROWS, columns=["text", "label"])
    for kind in ({"label": "category"}, "string"):
        assert load_dataset(frame.astype(kind), Columns()).labels == [row[1] for row in ROWS]
    frame["label"] = range(40)
    frame.loc[3, "label"] = None
    with pytest.raises(InputError, match="1 of 40 rows .*\n  row 3: label"):
        load_dataset(frame, Columns())


@pytest.mark.parametrize(
    "labels, order",
    [(["10", "9", "-1"], ["-1", "9", "10"]), (["²", "3"], ["3", "²"]), (["--1", "3"], ["--1", "3"])],
)
def test_labels_that_look_like_numbers(labels, order):
    assert order_labels(load_dataset([("a", label) for label in labels], Columns()), None) == order


def test_labels_given_are_read_as_those_of_the_rows():
    rows = [(text, int(label == "lost")) for text, label in ROWS]
    assert plan(rows, labels=[1, 0]).labels == ["1", "0"]
    assert plan(ROWS, labels=["refund ", "lost"]).labels == ["refund", "lost"]
    assert plan(rows, class_weights={1: 2.0}).options.class_weights == {"1": 2.0}
    for wrong in ("lost", 3, [None, "lost"]):
        with pytest.raises(ConfigError, match="labels: expected"):
            plan(ROWS, labels=wrong)
    with pytest.raises(ConfigError, match="'1', 'x' is none of the labels"):
        plan(ROWS, class_weights={1: 2.0, "x": 1.0})


def test_too_few_labels():
    with pytest.raises(ConfigError, match="at least two labels to tell apart"):
        plan([(text, "one") for text, _ in ROWS])
    with pytest.raises(ConfigError, match="at least one label, found"):
        plan([(text, ()) for text, _ in ROWS], multi_label=True)
    assert plan([(text, ("one",)) for text, _ in ROWS], multi_label=True).labels == ["one"]


def test_quotes_that_a_tsv_takes_as_they_are(tmp_path):
    quoted = [('"card ""%d"""' % index, label) for index, (_, label) in enumerate(ROWS)]
    found = plan(write(tmp_path / "a.tsv", table("\t", quoted))).examination.remarks
    assert any("stand in double quotes" in remark for remark in found), found
    found = plan(write(tmp_path / "a.csv", table(",", quoted))).examination.remarks
    assert not any("double quotes" in remark for remark in found), found


def test_a_name_of_the_hub_in_place_of_a_folder():
    with pytest.raises(CheckpointError, match="no such folder. `ftbert download`"):
        plan(ROWS, pretrained="bert-base-chinese")
