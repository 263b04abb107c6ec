"""The training report: one HTML file with its charts inside (SVG), readable without a network."""

import html
import json
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

import ftbert.training.metrics as measures
from ftbert.training.run_folder import RunFolder, write_text

__all__ = ["write_report"]

_WIDTH, _HEIGHT, _MARGIN = 640, 260, 48
_COLOURS = ("#2563eb", "#dc2626", "#059669", "#9333ea")
_MOST_CONFUSION = 120  # labels; a larger matrix cannot be read

_STYLE = """
body { font: 15px/1.5 system-ui, "Noto Sans", "Noto Sans CJK SC", sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; color: #1f2937; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .2rem .7rem; border-bottom: 1px solid #e5e7eb;
  text-align: left; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
.remark { background: #fef3c7; padding: .3rem .7rem; margin: .3rem 0; } svg { max-width: 100%; height: auto; }
"""


def _text(value: Any) -> str:
    return html.escape(str(value))


def _line_chart(title: str, series: Dict[str, List[Tuple[float, float]]], x_name: str) -> str:
    """Lines through (x, y) points, one per name."""
    points = [point for values in series.values() for point in values]
    if not points:
        return ""
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    low_x, high_x = min(xs), max(xs)
    low_y, high_y = min(ys + [0.0]) if min(ys) < 0.3 * max(ys) else min(ys), max(ys)
    low_name, high_name = ("%g" % x for x in (low_x, high_x))
    span_x, span_y = (high_x - low_x) or 1.0, (high_y - low_y) or 1.0

    def place(x: float, y: float) -> str:
        across = _MARGIN + (x - low_x) / span_x * (_WIDTH - _MARGIN - 12)
        down = _HEIGHT - _MARGIN + 12 - (y - low_y) / span_y * (_HEIGHT - _MARGIN - 24)
        return "%.1f,%.1f" % (across, down)

    parts = ['<svg viewBox="0 0 %d %d" width="%d" role="img">' % (_WIDTH, _HEIGHT + 16, _WIDTH)]
    parts.append('<text x="%d" y="14" font-weight="bold">%s</text>' % (_MARGIN, _text(title)))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = low_y + share * span_y
        left, down = place(low_x, y).split(",")
        right = place(low_x + span_x, y).split(",")[0]
        parts.append('<line x1="%s" x2="%s" y1="%s" y2="%s" stroke="#e5e7eb"/>' % (left, right, down, down))
        parts.append('<text x="4" y="%s" font-size="11">%.3g</text>' % (down, y))
    for number, (name, values) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        dots = " ".join(place(*value) for value in values)
        parts.append('<polyline fill="none" stroke="%s" stroke-width="2" points="%s"/>' % (colour, dots))
        if len(values) < 40:
            for value in values:
                parts.append(
                    '<circle r="3" fill="%s" cx="%s" cy="%s"/>' % ((colour,) + tuple(place(*value).split(",")))
                )
        parts.append(
            '<text x="%d" y="14" text-anchor="end" fill="%s">%s</text>'
            % (_WIDTH - 8 - 130 * number, colour, _text(name))
        )
    for x, anchor, text in (
        (_MARGIN, "start", low_name),
        (_WIDTH // 2, "middle", x_name),
        (_WIDTH - 12, "end", high_name),
    ):
        parts.append(
            '<text x="%d" y="%d" font-size="11" text-anchor="%s">%s</text>' % (x, _HEIGHT - 14, anchor, _text(text))
        )
    return "".join(parts) + "</svg>"


def _confusion_chart(confusion: np.ndarray, labels: Sequence[str]) -> str:
    """A square per (true, predicted); its shade is the share of the true label's rows."""
    count = len(labels)
    is_named = count <= 30
    # A square holds its number: 6 pixels a digit and some.
    cell = max(26, 10 + 6 * len(str(int(confusion.max())))) if is_named else 9
    left, top = (170, 130) if is_named else (8, 8)
    side = left + cell * count + (80 if is_named else 8)
    parts = ["<p>Rows are true labels; columns are predictions, in the same order.</p>"]
    parts.append('<svg viewBox="0 0 %d %d" width="%d" role="img">' % (side, top + cell * count + 8, side))
    for row in range(count):
        total = max(int(confusion[row].sum()), 1)
        if is_named:
            name = _text(labels[row][:24])
            parts.append(
                '<text x="%d" y="%d" font-size="11" text-anchor="end">%s</text>'
                % (left - 4, top + cell * row + 17, name)
            )
            parts.append(
                '<text font-size="11" transform="translate(%d %d) rotate(-50)">%s</text>'
                % (left + cell * row + 15, top - 4, name)
            )
        for column in np.flatnonzero(confusion[row]):
            number = int(confusion[row, column])
            colour = "#2563eb" if row == column else "#dc2626"
            x, y = left + cell * column, top + cell * row
            parts.append(
                '<rect x="%d" y="%d" width="%d" height="%d" fill="%s" fill-opacity="%.2f">'
                "<title>%s, predicted %s: %d</title></rect>"
                % (
                    *(x, y, cell - 1, cell - 1, colour, 0.12 + 0.88 * number / total),
                    *(_text(labels[row]), _text(labels[int(column)]), number),
                )
            )
            if is_named:
                parts.append('<text x="%d" y="%d" font-size="10">%d</text>' % (x + 4, y + 16, number))
    return "".join(parts) + "</svg>"


def _table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    parts = ["<table><tr>", "".join("<th>%s</th>" % _text(heading) for heading in headings), "</tr>"]
    for row in rows:
        cells = "".join(
            '<td class="%s">%s</td>' % ("" if isinstance(cell, str) else "n", _text(_shown(cell))) for cell in row
        )
        parts.append("<tr>%s</tr>" % cells)
    return "".join(parts) + "</table>"


def _shown(cell: Any) -> str:
    return "%.4f" % cell if isinstance(cell, float) else str(cell)


def _worst_confusions(confusion: np.ndarray, labels: Sequence[str], most: int = 20) -> List[Tuple[str, str, int]]:
    off = confusion.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:most]
    places = [np.unravel_index(index, off.shape) for index in order]
    return [(labels[row], labels[column], int(off[row, column])) for row, column in places if off[row, column]]


def write_report(path: str, plan: Any, run: RunFolder, logits: np.ndarray, truth: np.ndarray, name: str) -> None:
    """Writes the report.

    Args:
        path: the HTML file.
        plan: `ftbert.training.plan.Plan`.
        run: history and metrics.jsonl.
        logits, truth: (B, C) of the epoch kept, and the labels, of the dev rows.
        name: of the model.
    """
    multi_label = plan.options.multi_label
    metrics = measures.measure(logits, truth, plan.labels, multi_label)
    history = run.progress["history"]
    with open(run.file("metrics.jsonl"), "r", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    losses = [(record["step"], record["loss"]) for record in records if record["kind"] == "train"]
    parts = ["<!doctype html><html><head><meta charset='utf-8'><title>%s</title><style>%s</style></head><body>"
             % (_text(name), _STYLE)]  # fmt: skip
    parts.append("<h1>%s</h1>" % _text(name))
    parts.append("<p>Epoch %d of %d was kept: accuracy <b>%.2f%%</b>, macro-F1 <b>%.2f%%</b> on %d dev rows.</p>" % (
        run.progress["best"]["epoch"], run.progress["epoch"], 100 * metrics.accuracy, 100 * metrics.macro_f1, len(truth)
    ))  # fmt: skip
    parts.append(
        "<h2>Data</h2>" + _table(("", ""), [(key, str(value)) for key, value in plan.examination.facts.items()])
    )
    parts += ["<p class='remark'>%s</p>" % _text(remark) for remark in plan.examination.remarks + plan.notices]
    parts.append("<h2>Training</h2>" + _line_chart("loss of the training steps", {"loss": losses}, "step"))
    by_epoch = {key: [(record["epoch"], record[key]) for record in history] for key in ("accuracy", "macro_f1")}
    parts.append(_line_chart("dev rows", by_epoch, "epoch"))
    loss_by_epoch = {
        "train": [(record["epoch"], record["train_loss"]) for record in history],
        "dev": [(record["epoch"], record["loss"]) for record in history],
    }
    parts.append(_line_chart("mean loss", loss_by_epoch, "epoch"))
    columns = ("epoch", "train_loss", "loss", "accuracy", "macro_f1", "seconds")
    parts.append(_table(columns, [[record[column] for column in columns] for record in history]))
    if not multi_label:
        parts.append("<h2>Confusion</h2>")
        if len(plan.labels) <= _MOST_CONFUSION:
            parts.append(_confusion_chart(metrics.confusion, plan.labels))
        parts.append(_table(("true", "predicted", "rows"), _worst_confusions(metrics.confusion, plan.labels)))
    parts.append("<h2>Labels</h2>")
    parts.append(
        _table(("label", "precision", "recall", "F1", "dev rows"), [tuple(score) for score in metrics.per_label])
    )
    parts.append("<h2>Most confident mistakes</h2>")
    mistakes = measures.most_confident_mistakes(logits, truth, plan.labels, multi_label)
    texts = plan.dev.texts
    parts.append(
        _table(
            ("row", "text", "predicted", "true", "score"),
            [
                (
                    plan.dev.lines[mistake.row],
                    _joined(texts[mistake.row]),
                    mistake.predicted,
                    mistake.expected,
                    mistake.score,
                )
                for mistake in mistakes
            ],
        )
    )
    write_text(path, "".join(parts) + "</body></html>\n")


def _joined(text: Any) -> str:
    return text if isinstance(text, str) else " / ".join(text)
