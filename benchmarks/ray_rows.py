"""The rows that ray_cards.py sends through a cluster, and what must become of them."""

import glob
import json
import os

import numpy as np

MARK = 'a,"b"\n我'  # what a careless reader or writer would change


class Expected:
    """What must come out: row number n holds text n * 7919 modulo the number of texts."""

    def __init__(self, texts, scores, labels, tolerance):
        self.texts = texts
        self.scores = scores
        self.number = {label: index for index, label in enumerate(labels)}
        self.tolerance = tolerance

    def index(self, rows):
        return np.asarray(rows) * 7919 % len(self.texts)

    def wrong(self, indices, labels, scores):
        """How many answers are not those of the texts: another label (unless the two are as good as level), or a score
        that is off."""
        indices, got = np.asarray(indices), np.array([self.number[label] for label in labels])
        theirs = self.scores[indices]
        best = theirs.max(axis=1)
        off = best - theirs[np.arange(len(got)), got] > 2 * self.tolerance
        return int((off | (np.abs(best - np.asarray(scores, np.float64)) > self.tolerance)).sum())


def tables(kind, folder):
    import pyarrow
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    for path in sorted(glob.glob(os.path.join(folder, "*." + kind))):
        if kind == "parquet":
            yield pyarrow.parquet.read_table(path)
        elif kind == "csv":
            types = {name: pyarrow.string() for name in ("id", "text", "note", "label", "score", "truncated")}
            yield pyarrow.csv.read_csv(
                path,
                parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
                convert_options=pyarrow.csv.ConvertOptions(column_types=types),
            )
        else:
            yield pyarrow.json.read_json(path)


def write_input(kind, folder, rows, files, expected):
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    os.makedirs(folder)
    for number, part in enumerate(np.array_split(np.arange(rows), files)):
        table = pyarrow.table({
            "id": ["%08d" % row for row in part],
            "text": [expected.texts[index] for index in expected.index(part)],
            "note": [MARK if row % 7 == 0 else "" for row in part],
        })  # fmt: skip
        path = os.path.join(folder, "part-%03d.%s" % (number, kind))
        if kind == "parquet":
            pyarrow.parquet.write_table(table, path)
        elif kind == "csv":
            pyarrow.csv.write_csv(table, path)
        else:
            with open(path, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())


def check_output(kind, folder, rows, expected):
    """Counts what is lost, repeated, changed and wrong; all zero is what is wanted."""
    seen, changed, wrong = [], 0, 0
    for table in tables(kind, folder):
        columns = {name: table.column(name).to_pylist() for name in ("id", "text", "note", "label", "score")}
        part = np.array([int(value) for value in columns["id"]])
        indices = expected.index(part)
        changed += sum(
            text != expected.texts[index] or (note or "") != (MARK if row % 7 == 0 else "")
            for row, index, text, note in zip(part, indices, columns["text"], columns["note"])
        )
        wrong += expected.wrong(indices, columns["label"], [float(score) for score in columns["score"]])
        seen.append(part)
    counts = np.bincount(np.concatenate(seen), minlength=rows) if seen else np.zeros(rows, int)
    return {
        "rows_out": int(counts.sum()), "lost": int((counts == 0).sum()), "repeated": int((counts > 1).sum()),
        "changed": int(changed), "wrong_answers": wrong,
    }  # fmt: skip
