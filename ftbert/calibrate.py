"""Which lower precision answers as fp32 does on the user's own texts, and how much faster it is.

    from ftbert.calibrate import calibrate
    report = calibrate("models/intents", texts, labels=labels)
    print(report)

Every precision that the machine has is loaded in turn and compared with fp32, on this machine and these texts. The
fastest that passed is recorded in the model folder, and `FastBertClassifier.load(path, precision="auto")` uses it from
then on.
"""

import json
import os
import tempfile
import time
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ftbert.batching import PackedBatch, plan
from ftbert.callable_module import make_callable
from ftbert.checkpoint import load_model_folder
from ftbert.errors import CheckpointError, ConfigError, InputError, UnavailableError
from ftbert.measure import time_calls
from ftbert.paths import PathLike
from ftbert.predictor import FastBertClassifier

__all__ = ["CalibrationReport", "PrecisionResult", "calibrate"]

_CANDIDATES = {"cpu": ("bf16", "int8"), "cuda": ("fp16", "bf16", "int8", "fp8")}

_PRECISIONS = ("fp32", "bf16", "fp16", "int8", "fp8")

# What precision="auto" runs without a record.
_DEFAULTS = {"cpu": "fp32", "cuda": "fp16"}

# Fewer texts than this show little: 0 of 100 different still leaves 3% likely (the rule of three).
_LEAST_TEXTS = 100

# Speed is measured on batches of about so many tokens in all: enough to be steady, seconds on a slow machine.
_TIMED_TOKENS = 8192
_TIMED_SECONDS = 2.0


class PrecisionResult(NamedTuple):
    """How one precision did.

    Attributes:
        precision: its name.
        engine: what computed, "cpu avx512_vnni int8 4 threads"; "" where it is not available.
        agreement: share of the texts with fp32's answer (every label's, for a multi-label model).
        largest_difference: of any score from fp32's, in [0, 1].
        accuracy: share of the texts answered right; None without labels.
        texts_per_second: engine calls with ready token ids.
        speed: texts_per_second over fp32's.
        weight_bytes: memory that the weights hold.
        passed: whether it is within the tolerance.
        note: why not, or why it is not available.
    """

    precision: str
    engine: str = ""
    agreement: float = 0.0
    largest_difference: float = 0.0
    accuracy: Optional[float] = None
    texts_per_second: float = 0.0
    speed: float = 0.0
    weight_bytes: int = 0
    passed: bool = False
    note: str = ""


class CalibrationReport(NamedTuple):
    """What `calibrate` found.

    Attributes:
        model: the folder.
        device: what was measured, "cpu" or "cuda:0".
        texts: how many.
        tolerance: as asked.
        results: fp32 first, then as tried.
        chosen: the fastest precision that passed (fp32 if none is faster).
        recorded: whether the folder now says so.
    """

    model: str
    device: str
    texts: int
    tolerance: float
    results: List[PrecisionResult]
    chosen: str
    recorded: bool

    def table(self) -> Any:
        """The results as a rich.table.Table."""
        from rich import box
        from rich.table import Table

        title = "%s, %d texts, %s" % (self.model, self.texts, self.device)
        table = Table(title=title, caption=self._caption(), box=box.SIMPLE, padding=(0, 1, 0, 0))
        table.add_column("precision", no_wrap=True)
        for name in ("agreement", "largest\ndiffer.", "accuracy", "texts/s", "speed", "weights"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("", min_width=10)
        for result in self.results:
            table.add_row(*_cells(result), style="bold" if result.precision == self.chosen else None)
        return table

    def _caption(self) -> str:
        kept = "recorded in the model folder" if self.recorded else "not recorded"
        return "chosen: %s (%s)" % (self.chosen, kept)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=140, no_color=True)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()


def _cells(result: PrecisionResult) -> List[str]:
    if not result.engine:
        return [result.precision, "-", "-", "-", "-", "-", "-", result.note]
    return [
        result.precision,
        "%.2f%%" % (100 * result.agreement),
        "%.4f" % result.largest_difference,
        "-" if result.accuracy is None else "%.2f%%" % (100 * result.accuracy),
        "%.0f" % result.texts_per_second,
        "%.2fx" % result.speed,
        "%.0f MB" % (result.weight_bytes / 1e6),
        "passed" if result.passed else result.note,
    ]


class _Run(NamedTuple):
    """One precision's answers and speed."""

    scores: np.ndarray  # (B, C)
    answers: np.ndarray  # (B, C) bool, one True in each row of a single-label model
    engine: str
    texts_per_second: float
    weight_bytes: int


def calibrate(
    model: PathLike,
    texts: Sequence[Any],
    labels: Optional[Sequence[Any]] = None,
    precisions: Optional[Sequence[str]] = None,
    tolerance: float = 0.01,
    device: str = "auto",
    threads: Optional[int] = None,
    record: bool = True,
) -> CalibrationReport:
    """Compares each precision with fp32 on the texts given, and records the fastest that passed.

    A precision passes if at most `tolerance` of the texts get another answer than in fp32; with labels, if its accuracy
    is at most `tolerance` below fp32's (answers that turn from wrong to wrong cost nothing).

    Args:
        model: the folder.
        texts: strings and (first, second) pairs such as the model will meet; at least 100 for a record.
        labels: the true label of each, by name; for a multi-label model a collection of names each.
        precisions: which to try; None: all that this machine has.
        tolerance: see above; 0 .. 1.
        device: "auto", "cpu", "cuda" or "cuda:<index>".
        threads: CPU threads; None: what the process may use.
        record: write the choice into the folder's ftbert.json (the file is replaced in one step).

    Raises:
        ConfigError, InputError, CheckpointError: an argument is wrong, or the folder cannot keep a record; nothing ran.
        UnavailableError: a precision named in `precisions` is not available here.
    """
    texts = list(texts) if not isinstance(texts, str) else texts
    _check_arguments(texts, labels, precisions, tolerance, record)
    folder = load_model_folder(model)
    if record and folder.kind != "ftbert":
        raise ConfigError(
            "%s: expected a folder saved by ftbert (ftbert.json) to record the choice in, got one of kind %r. Save it "
            "first: FastBertClassifier.load(path).save(other), or ftbert checkpoint convert; or pass record=False "
            "(--no-record)." % (folder.path, folder.kind)
        )
    truth = None if labels is None else _truth(labels, folder.labels, folder.problem_type == "multi_label")
    options = {"device": device, "threads": threads}

    reference, used = _run(model, texts, "fp32", options)
    kind = used.split(":")[0]
    tried = list(precisions) if precisions is not None else list(_CANDIDATES[kind])
    results = [_compare("fp32", reference, reference, truth, tolerance)]
    for precision in tried:
        if precision == "fp32":
            continue
        try:
            run, _ = _run(model, texts, precision, options)
        except UnavailableError as error:
            if precisions is not None:
                raise
            results.append(PrecisionResult(precision, note="not available here: %s" % str(error).split(". ")[0]))
            continue
        results.append(_compare(precision, run, reference, truth, tolerance))
    chosen = max((result for result in results if result.passed), key=lambda result: result.speed).precision
    if record:
        _record(folder.path, kind, chosen, results, len(texts), tolerance)
    return CalibrationReport(folder.path, used, len(texts), tolerance, results, chosen, record)


def _check_arguments(
    texts: Any, labels: Optional[Sequence[Any]], precisions: Optional[Sequence[str]], tolerance: float, record: bool
) -> None:
    if isinstance(texts, str):
        raise InputError("texts: expected a list of texts, got a single string.")
    if not texts:
        raise InputError("texts: expected at least one, got none.")
    if record and len(texts) < _LEAST_TEXTS:
        raise InputError(
            "texts: expected at least %d to record a choice, got %d: so few show little. Give more, or pass "
            "record=False (--no-record) to only look." % (_LEAST_TEXTS, len(texts))
        )
    if labels is not None and len(labels) != len(texts):
        raise InputError("labels: expected %d, one for each text, got %d." % (len(texts), len(labels)))
    for precision in precisions or ():
        if precision not in _PRECISIONS:
            raise ConfigError("precisions: expected any of %s, got %r." % (", ".join(_PRECISIONS), precision))
    if not 0 <= tolerance <= 1:
        raise ConfigError("tolerance: expected a share between 0 and 1, got %r." % (tolerance,))


def _truth(labels: Sequence[Any], names: List[str], multi: bool) -> np.ndarray:
    """(B, C) bool."""
    index = {name: column for column, name in enumerate(names)}
    truth = np.zeros((len(labels), len(names)), bool)
    for row, label in enumerate(labels):
        if multi and isinstance(label, str):
            raise InputError("labels[%d]: this model gives any number of labels: expected a list of names." % row)
        for name in label if multi else [label]:
            if name not in index:
                raise InputError("labels[%d]: %r is no label of this model, which has %s." % (row, name, names[:20]))
            truth[row, index[name]] = True
    return truth


def _run(model: PathLike, texts: Sequence[Any], precision: str, options: Dict[str, Any]) -> Tuple[_Run, str]:
    """Loads, answers, times and closes one precision; also the device it ran on."""
    with FastBertClassifier.load(model, precision=precision, runtime="direct", **options) as classifier:
        scores = classifier.predict_proba(texts)
        if classifier.problem_type == "multi_label":
            answers = scores >= 0.5
        else:
            answers = np.arange(scores.shape[1]) == scores.argmax(axis=1)[:, np.newaxis]
        parts = _timed_batches(classifier, texts)

        def answer_all() -> None:
            for part in parts:
                classifier.predict_ids(part)

        latency = time_calls(answer_all, _TIMED_SECONDS, 3)
        rows = sum(part.num_rows for part in parts)
        weight_bytes = sum(int(facts.get("weight_bytes", 0)) for facts in classifier.describe())
        run = _Run(scores, answers, classifier.engine, rows / latency.median * 1e3, weight_bytes)
        return run, classifier.devices[0]


def _timed_batches(classifier: FastBertClassifier, texts: Sequence[Any]) -> List[PackedBatch]:
    """The first texts, up to about _TIMED_TOKENS tokens, in the batches that `predict` would make."""
    encoded = classifier.tokenize(texts[:1024])
    rows = int(np.searchsorted(encoded.batch.row_splits, _TIMED_TOKENS))
    batch = encoded.rows(0, max(1, min(rows, encoded.batch.num_rows))).batch
    groups = plan(np.diff(batch.row_splits), classifier.batch_tokens, classifier.row_tile)
    return [batch.take(group) for group in groups]


def _compare(
    precision: str, run: _Run, reference: _Run, truth: Optional[np.ndarray], tolerance: float
) -> PrecisionResult:
    agreement = float((run.answers == reference.answers).all(axis=1).mean())
    accuracy = None if truth is None else float((run.answers == truth).all(axis=1).mean())
    if truth is None:
        lost = 1 - agreement
        note = "%.2f%% answered differently" % (100 * lost)
    else:
        lost = float((reference.answers == truth).all(axis=1).mean()) - (accuracy or 0.0)
        note = "%.2f points less accurate" % (100 * lost)
    finite = bool(np.isfinite(run.scores).all())
    passed = finite and lost <= tolerance + 1e-9
    return PrecisionResult(
        precision,
        run.engine,
        agreement,
        float(np.abs(run.scores - reference.scores).max()),
        accuracy,
        run.texts_per_second,
        run.texts_per_second / reference.texts_per_second,
        run.weight_bytes,
        passed,
        "" if passed else (note if finite else "scores that are no numbers"),
    )


def _record(folder: str, kind: str, chosen: str, results: List[PrecisionResult], texts: int, tolerance: float) -> None:
    """Replaces ftbert.json by one that names `chosen` for this kind of device, and by what evidence."""
    path = os.path.join(folder, "ftbert.json")
    try:
        with open(path, "r", encoding="utf-8") as file:
            settings = json.load(file)
    except (OSError, ValueError) as error:
        raise CheckpointError("%s: expected readable JSON to record the choice in: %s" % (path, error)) from error
    checked = dict(settings.get("precision_checked") or {})
    checked.pop(kind, None)
    if chosen != _DEFAULTS[kind]:
        checked[kind] = chosen
    settings["precision_checked"] = checked
    calibration = dict(settings.get("calibration") or {})
    calibration[kind] = {
        "chosen": chosen,
        "texts": texts,
        "tolerance": tolerance,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "results": [result._asdict() for result in results],
    }
    settings["calibration"] = calibration
    descriptor, temporary = tempfile.mkstemp(prefix=".ftbert.json.", dir=folder)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(settings, file, ensure_ascii=False, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, os.stat(path).st_mode & 0o777)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


make_callable(__name__)
