"""README.md of a trained model: data, measures, versions."""

import sys
from typing import Any, Dict

import numpy as np

import ftbert.training.metrics as measures
from ftbert.training.run_folder import write_text

__all__ = ["write_model_card"]

_MOST_LABELS = 100


def write_model_card(path: str, plan: Any, training: Dict[str, Any], logits: np.ndarray, truth: np.ndarray) -> None:
    """Writes the card.

    Args:
        path: README.md in the model folder.
        plan: `ftbert.training.plan.Plan`.
        training: the record of the same name in ftbert.json.
        logits, truth: (B, C) and labels of the dev rows, for the per-label table.
    """
    options = plan.options
    metrics = measures.measure(logits, truth, plan.labels, options.multi_label)
    kind = "multi-label" if options.multi_label else "single-label"
    lines = [
        "# A BERT text classifier",
        "",
        "Trained with ftbert; %s, %d labels; from %s." % (kind, len(plan.labels), training["from"]),
        "",
        "    from ftbert import FastBertClassifier",
        '    clf = FastBertClassifier.load("<this folder>")',
        '    clf.predict(["..."])',
        "",
        "## Measures on the dev rows",
        "",
        "| accuracy | macro-F1 | micro-F1 | loss | epoch kept |",
        "| --- | --- | --- | --- | --- |",
        "| %.2f%% | %.2f%% | %.2f%% | %.4f | %d of %d |"
        % (
            100 * metrics.accuracy,
            100 * metrics.macro_f1,
            100 * metrics.micro_f1,
            metrics.loss,
            training["best_epoch"],
            training["epochs"],
        ),
        "",
        "The epoch was chosen on these rows (best %s), so on new texts expect slightly less." % options.metric,
        "",
        "## Data",
        "",
    ]
    lines += ["- %s: %s" % item for item in plan.examination.facts.items()]
    lines += ["- note: " + remark for remark in plan.examination.remarks + plan.notices]
    lines += ["", "## Recipe", ""]
    lines += ["- %s: %s" % (name, value) for name, value in sorted(options.recipe().items()) if value is not None]
    lines += [
        "",
        "TensorFlow %s, Python %s, numpy %s." % (training["tensorflow"], sys.version.split()[0], np.__version__),
        "",
        "## Labels",
        "",
        "| label | train rows | dev rows | precision | recall | F1 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for score in metrics.per_label[:_MOST_LABELS]:
        lines.append(
            "| %s | %d | %d | %.3f | %.3f | %.3f |"
            % (
                score.label.replace("|", "\\|"),
                plan.examination.label_counts[score.label],
                score.support,
                score.precision,
                score.recall,
                score.f1,
            )
        )
    if len(metrics.per_label) > _MOST_LABELS:
        lines.append("\nand %d more: see report.html." % (len(metrics.per_label) - _MOST_LABELS))
    write_text(path, "\n".join(lines) + "\n")
