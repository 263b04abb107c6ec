import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftbert.errors import InputError
from ftbert.rows import RowWriter, check_rows, detect_format, read_rows


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8"))
    return str(path)


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.tsv", "label\ttext\nx\t卡丢了\ny\t\"quoted\" stays\n"),
        ("a.csv", 'label,text\nx,卡丢了\ny,"""quoted"" stays"\n'),
        ("a.jsonl", '{"label": "x", "text": "卡丢了"}\n{"label": "y", "text": "\\"quoted\\" stays"}\n'),
        ("bom.tsv", "\ufefflabel\ttext\r\nx\t卡丢了\r\ny\t\"quoted\" stays\r\n"),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, content):
    path = write(tmp_path / name, content)
    rows = list(read_rows(path))
    assert [row.text for row in rows] == ["卡丢了", '"quoted" stays']
    assert [row.record for row in rows] == [{"label": "x"}, {"label": "y"}]
    assert check_rows(path) == 2


def test_plain_lines_keep_every_line(tmp_path):
    path = write(tmp_path / "a.txt", "one\n\n  three \r\nfour")
    assert [(row.line, row.text) for row in read_rows(path)] == [(1, "one"), (2, ""), (3, "  three "), (4, "four")]


def test_pairs_and_column_names(tmp_path):
    path = write(tmp_path / "a.csv", "q,a,id\nhow,so,1\n")
    (row,) = read_rows(path, text_column="q", pair_column="a")
    assert row.text == ("how", "so") and row.record == {"id": "1"}
    with pytest.raises(InputError, match="a pair needs"):
        list(read_rows(write(tmp_path / "a.txt", "x"), pair_column="b"))


def test_a_quoted_line_break_counts_lines_of_the_file(tmp_path):
    path = write(tmp_path / "a.csv", 'text\n"two\nlines"\nthird\n')
    assert [(row.line, row.text) for row in read_rows(path)] == [(3, "two\nlines"), (4, "third")]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.tsv", "label\ttext\nx\ta\textra\n", "line 2: expected 2 columns, got 3"),
        ("a.tsv", "label\ttext\n\n", "line 2: the line is empty|expected 2 columns"),
        ("a.tsv", "label\tsentence\nx\ta\n", r"column 'text' in the header, found \['label', 'sentence'\]"),
        ("a.tsv", "text\ttext\nx\ta\n", "names 'text' twice"),
        ("a.tsv", "", "the file is empty"),
        ("a.csv", 'text\n"never closed\n', "line 2: not readable as csv"),
        ("a.jsonl", '{"text": "a"}\n{"text": 5}\n', "line 2: field 'text': expected a string, got int"),
        ("a.jsonl", '{"text": "a"}\n[1]\n', "line 2: expected an object, got list"),
        ("a.jsonl", "{\n", "line 1: not JSON"),
        ("a.jsonl", '{"other": "a"}\n', r"line 1: expected a field 'text', found \['other'\]"),
        ("a.txt", b"fine\n\xbf\xa8\n", "expected UTF-8, found the byte 0xbf"),
    ],
)
def test_bad_rows_are_named(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    for read in (lambda: list(read_rows(path)), lambda: check_rows(path)):
        with pytest.raises(InputError, match=message):
            read()


def test_every_bad_row_is_named_at_once(tmp_path):
    path = write(tmp_path / "a.tsv", "text\n" + "a\tb\n" * 30 + "good\n")
    with pytest.raises(InputError) as caught:
        check_rows(path)
    message = str(caught.value)
    assert (
        "30 of 31 rows" in message and "line 21:" in message and "line 22:" not in message and "and 10 more" in message
    )


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        list(read_rows(str(tmp_path / "none.tsv")))
    with pytest.raises(InputError, match="format"):
        detect_format("a.tsv", "xlsx")


TEXTS = st.lists(
    st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\x00")), min_size=1, max_size=5
)


@given(TEXTS)
def test_csv_and_jsonl_come_back_as_written(texts):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for format in ("csv", "jsonl"):
            path = os.path.join(folder, "out." + format)
            with RowWriter(path, ["id", "text"], format) as writer:
                for i, text in enumerate(texts):
                    writer.write({"text": text, "id": str(i)})
            assert [row.text for row in read_rows(path)] == texts
            assert [row.record for row in read_rows(path)] == [{"id": str(i)} for i in range(len(texts))]


def test_output_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "out.tsv"
    path.write_text("old")
    with pytest.raises(RuntimeError):
        with RowWriter(str(path), ["text"], "tsv") as writer:
            writer.write({"text": "new"})
            raise RuntimeError
    assert path.read_text() == "old" and os.listdir(str(tmp_path)) == ["out.tsv"]
    with pytest.raises(InputError, match="tab or a line break"):
        with RowWriter(str(path), ["text"], "tsv") as writer:
            writer.write({"text": "a\tb"})
    assert path.read_text() == "old"
    with RowWriter(str(path), ["text", "n"], "tsv") as writer:
        writer.write({"text": "a", "n": 1})
    assert path.read_text() == "text\tn\na\t1\n"
    with pytest.raises(InputError, match="cannot be written"):
        with RowWriter(str(tmp_path / "no" / "out.tsv"), ["text"], "tsv"):
            pass


def test_jsonl_keeps_types(tmp_path):
    path = tmp_path / "out.jsonl"
    with RowWriter(str(path), ["a"], "jsonl") as writer:
        writer.write({"a": {"x": 1.5}, "b": 2})
    assert json.loads(path.read_text()) == {"a": {"x": 1.5}}
