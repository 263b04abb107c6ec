"""The training loop: epochs, measures, what is best, when to stop, what to keep."""

import time
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence

import numpy as np

from ftbert.training.batches import EncodedSet, epoch_plan, in_order
from ftbert.training.graph import TrainingGraph
from ftbert.training.journal import Bar, Journal
from ftbert.training.metrics import Metrics, measure
from ftbert.training.options import Options
from ftbert.training.run_folder import RunFolder

__all__ = ["Outcome", "evaluate", "split_micro", "train", "updates_per_epoch"]

_EVALUATION_ROWS = 64
_LOG_EVERY = 10  # updates between two lines of metrics.jsonl


class Outcome(NamedTuple):
    """How training ended.

    Attributes:
        interrupted: by Ctrl-C.
        stopped_early: by patience.
        seconds: of training steps, in this process.
        examples_per_second: rows trained on per second of those, 0 if no epoch was trained now.
    """

    interrupted: bool
    stopped_early: bool
    seconds: float
    examples_per_second: float


def updates_per_epoch(rows: int, batch_size: int) -> int:
    """How often the weights change in one pass."""
    return (rows + batch_size - 1) // batch_size


def evaluate(graph: TrainingGraph, data: EncodedSet) -> np.ndarray:
    """(B, C) logits in the rows' order."""
    logits: List[Any] = [None] * len(data.lengths)
    for chosen in in_order(data.lengths, _EVALUATION_ROWS):
        for row, values in zip(chosen, graph.logits(data.batch(chosen))):
            logits[row] = values
    return np.stack(logits)


def _is_better(value: float, best: Optional[Dict[str, Any]], metric: str) -> bool:
    if best is None:
        return True
    return value < best["value"] if metric == "loss" else value > best["value"]


def split_micro(chosen: np.ndarray, accumulation: int) -> List[np.ndarray]:
    """The rows of one update in at most `accumulation` parts of equal size (but the last)."""
    size = (len(chosen) + accumulation - 1) // accumulation
    return [chosen[start : start + size] for start in range(0, len(chosen), size)]


def train(
    graph: TrainingGraph,
    train_set: EncodedSet,
    dev_set: EncodedSet,
    labels: Sequence[str],
    options: Options,
    run: RunFolder,
) -> Outcome:
    """Trains from where `run` stands to the last epoch, keeping each epoch. `graph` already holds the weights to start
    with.

    Ctrl-C ends training after the step it falls into; the best epoch so far is kept. Before the first is done it is
    raised.
    """
    per_epoch = updates_per_epoch(len(train_set.lengths), options.batch_size)
    progress = run.progress
    done = per_epoch * progress["epoch"]
    journal = Journal(run, options.tensorboard, done)
    bar = Bar(per_epoch * options.epochs, done, options.progress)
    interrupted = stopped = False
    seconds, rows = 0.0, 0
    note = ""
    try:
        for epoch in range(progress["epoch"], options.epochs):
            begun = time.perf_counter()
            losses = []
            plan = epoch_plan(train_set.lengths, options.batch_size, options.seed, epoch)
            for index, chosen in enumerate(plan):
                step = epoch * per_epoch + index
                parts = [train_set.batch(part) for part in split_micro(chosen, options.accumulation)]
                result = graph.train_step(parts)
                losses.append(result.loss)
                bar.advance(result.loss, note)
                if index % _LOG_EVERY == 0:
                    journal.write("train", step, dict(result._asdict(), epoch=epoch + 1))
            spent = time.perf_counter() - begun
            seconds, rows = seconds + spent, rows + len(train_set.lengths)
            metrics = measure(evaluate(graph, dev_set), dev_set.labels, labels, options.multi_label)
            stopped = _keep(graph, run, options, metrics, epoch, float(np.mean(losses)), spent)
            record = run.progress["history"][-1]
            journal.write("dev", (epoch + 1) * per_epoch, dict(record))
            note = ", dev accuracy %.2f%%" % (100 * metrics.accuracy)
            bar.say(
                "epoch %d/%d  loss %.4f  dev loss %.4f  accuracy %.2f%%  macro-F1 %.2f%%"
                % (
                    epoch + 1,
                    options.epochs,
                    record["train_loss"],
                    metrics.loss,
                    100 * metrics.accuracy,
                    100 * metrics.macro_f1,
                )
            )
            if stopped:
                break
    except KeyboardInterrupt:
        if run.progress["best_folder"] is None:
            raise
        interrupted = True
    finally:
        bar.close()
        journal.close()
    return Outcome(interrupted, stopped, seconds, rows / seconds if seconds else 0.0)


def _keep(
    graph: TrainingGraph, run: RunFolder, options: Options, metrics: Metrics, epoch: int, loss: float, seconds: float
) -> bool:
    """Saves the epoch; returns whether patience is at its end."""
    value = metrics.summary()[options.metric]
    best = run.progress["best"]
    better = _is_better(value, best, options.metric)
    if better:
        best = {"epoch": epoch + 1, "value": value}
    record = dict(metrics.summary(), epoch=epoch + 1, train_loss=loss, seconds=seconds)
    stop = options.patience is not None and epoch + 1 - best["epoch"] >= options.patience
    over = stop or epoch + 1 == options.epochs
    values = {
        "epoch": epoch + 1,
        "best": best,
        "history": run.progress["history"] + [record],
        "over": over,
    }
    state: Iterable[Any] = () if over else graph.read(graph.state())
    run.save(values, state, graph.read(graph.variables) if better else None)
    return stop
