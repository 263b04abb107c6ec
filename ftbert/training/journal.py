"""What a training run says while it goes on: metrics.jsonl, TensorBoard, a progress bar."""

import json
import sys
from typing import Any, Dict, Optional

from ftbert.training.run_folder import RunFolder

__all__ = ["Bar", "Journal"]


class Journal:
    """metrics.jsonl and TensorBoard.

    Args:
        run: what it stands at.
        tensorboard: whether to write TensorBoard's files.
        done: updates made before: what a run that was cut off wrote of later ones does not count.
    """

    def __init__(self, run: RunFolder, tensorboard: bool, done: int) -> None:
        run.trim_metrics()
        self._file = open(run.file("metrics.jsonl"), "a", encoding="utf-8")
        self._board: Optional[Any] = None
        if tensorboard:
            from tensorflow.compat import v1 as tf

            self._tf = tf
            with tf.Graph().as_default():
                self._board = tf.summary.FileWriter(run.file("tensorboard"))
            if done:
                # TensorBoard drops what older files hold of these steps.
                self._board.add_session_log(tf.SessionLog(status=tf.SessionLog.START), done + 1)

    def write(self, kind: str, step: int, values: Dict[str, Any]) -> None:
        record = dict(kind=kind, step=step, **values)
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()
        if self._board is not None:
            scalars = [
                self._tf.Summary.Value(tag="%s/%s" % (kind, name), simple_value=value)
                for name, value in values.items()
                if isinstance(value, float)
            ]
            self._board.add_summary(self._tf.Summary(value=scalars), step)
            self._board.flush()

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


class Bar:
    """A progress bar over all updates, or nothing."""

    def __init__(self, total: int, done: int, shown: bool) -> None:
        self._bar: Optional[Any] = None
        if shown:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                initial=done,
                unit="step",
                file=sys.stderr,
                dynamic_ncols=True,
                desc="training",
                # A log file has no use for a bar ten times a second.
                mininterval=0.2 if sys.stderr.isatty() else 15.0,
            )

    def advance(self, loss: float, note: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str("loss %.4f%s" % (loss, note), refresh=False)
            self._bar.update(1)

    def say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
