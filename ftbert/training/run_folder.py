"""What a training run leaves on disk while it goes on, so that it can be killed at any moment and taken up again."""

import collections
import fcntl
import json
import os
import shutil
from typing import Any, Dict, Iterable, List, Optional

import numpy as np

from ftbert._ops import Weight
from ftbert.checkpoint import CheckpointWriter, open_checkpoint
from ftbert.errors import CheckpointError, ConfigError

__all__ = ["RunFolder", "write_text"]

_FORMAT = 1


def write_text(path: str, text: str) -> None:
    """Writes a file beside its place and renames it."""
    temporary = "%s.writing-%d" % (path, os.getpid())
    with open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class RunFolder:
    """progress.json names the checkpoints that count; whatever else lies in the folder is from an epoch cut off.

    Attributes:
        path: the folder.
        progress: what progress.json says: "fingerprint", "epoch" or "step" (how many are done), "history" (one record
            each), "best" (epoch and value), "state" and "best_folder" (names of checkpoint folders, or None),
            "finished".
    """

    def __init__(self, path: str, fingerprint: str, resume: bool, counter: str = "epoch") -> None:
        """Takes up the run that is there, or begins one.

        Args:
            path: the folder.
            fingerprint: of all that decides the weights.
            resume: False: what is there is thrown away.
            counter: what the run counts its progress in, "epoch" or "step"; its records say it too.

        Raises:
            ConfigError: what is there was begun with other data or settings, or is being trained by another process.
        """
        self.path = path
        self._counter = counter
        self._progress_path = os.path.join(path, "progress.json")
        try:
            os.makedirs(path, exist_ok=True)
            self._lock = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ConfigError("%s: expected a place to write to: %s" % (path, error)) from error
        try:
            self._take()
            if not resume:
                self._empty()
            self.progress = self._read(fingerprint)
        except BaseException:
            self.close()
            raise

    def _take(self) -> None:
        """The folder is this run's until `close`, or until the process ends, however it does."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                "%s: another run is training there. Wait for it, end it, or choose another output." % self.path
            ) from error
        except OSError:
            pass  # a file system without locks

    def _empty(self) -> None:
        if os.listdir(self.path) and not os.path.exists(self._progress_path):
            raise ConfigError("%s exists and is no training run of ftbert. Choose another output." % self.path)
        # The file that says that this is a run goes last.
        for entry in sorted(os.scandir(self.path), key=lambda entry: entry.name == "progress.json"):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.remove(entry.path)

    def close(self) -> None:
        """Lets others train there."""
        os.close(self._lock)

    def _read(self, fingerprint: str) -> Dict[str, Any]:
        fresh = {
            "format": _FORMAT,
            "fingerprint": fingerprint,
            self._counter: 0,
            "history": [],
            "best": None,
            "state": None,
            "best_folder": None,
            "finished": False,
        }
        if not os.path.exists(self._progress_path):
            write_text(self._progress_path, json.dumps(fresh))
            return fresh
        with open(self._progress_path, "r", encoding="utf-8") as file:
            found = json.load(file)
        if found.get("format") != _FORMAT or found.get("fingerprint") != fingerprint:
            raise ConfigError(
                "%s: a run with other data or settings (%d %ss done) is there. Pass resume=False to begin anew, or "
                "choose another output." % (self.path, found.get(self._counter, 0), self._counter)
            )
        return found

    def save(self, values: Dict[str, Any], state: Iterable[Any], best: Optional[Iterable[Any]]) -> None:
        """Keeps what was reached: the checkpoints first, then the one file that says they count, then the old ones go.

        Args:
            values: new values of `progress`.
            state: (name, array) pairs to go on from; empty when training is over.
            best: (name, array) pairs of the model, if this epoch is the best so far.
        """
        progress = dict(self.progress, **values)
        progress["state"] = self._write("state-%d" % progress[self._counter], state)
        if best is not None:
            progress["best_folder"] = self._write("best-%d" % progress[self._counter], best)
        write_text(self._progress_path, json.dumps(progress, ensure_ascii=False))
        self.progress = progress
        self._clean()

    def finish(self) -> None:
        """Notes that the model folder is written; the state to go on from is dropped."""
        progress = dict(self.progress, finished=True, state=None)
        write_text(self._progress_path, json.dumps(progress, ensure_ascii=False))
        self.progress = progress
        self._clean()

    def _write(self, name: str, tensors: Iterable[Any]) -> Optional[str]:
        folder = os.path.join(self.path, name)
        shutil.rmtree(folder, ignore_errors=True)
        os.mkdir(folder)
        count = 0
        with CheckpointWriter(os.path.join(folder, "model.ckpt")) as writer:
            for tensor_name, array in tensors:
                writer.add(tensor_name, np.asarray(array))
                count += 1
        if not count:
            shutil.rmtree(folder)
            return None
        return name

    def _clean(self) -> None:
        kept = (self.progress["state"], self.progress["best_folder"])
        for name in os.listdir(self.path):
            if name.startswith(("state-", "best-")) and name not in kept:
                shutil.rmtree(os.path.join(self.path, name))

    def weights(self, which: str) -> Iterable[Weight]:
        """The tensors of "state" or "best_folder", one at a time."""
        name = self.progress[which]
        if name is None:
            raise CheckpointError("%s: no checkpoint was kept there." % self.path)
        reader = open_checkpoint(os.path.join(self.path, name))
        for tensor_name in reader.names():
            yield Weight(tensor_name, reader.read(tensor_name), False, False)

    def final_weights(self, which: str, precision: str) -> Iterable[Weight]:
        """`weights` as they are to be saved: optimizer's slots and counters left out, "fp32" or "fp16".

        Raises:
            CheckpointError: a value does not fit float16.
        """
        for weight in self.weights(which):
            if weight.name == "global_step" or weight.name.endswith(("/adam_m", "/adam_v")):
                continue
            if precision == "fp32":
                yield weight
                continue
            with np.errstate(over="ignore"):
                half = weight.array.astype(np.float16)
            if not np.isfinite(half).all():
                raise CheckpointError(
                    "%s: a value of %g does not fit float16. Save with precision='fp32': what was trained is kept, "
                    "nothing is trained again." % (weight.name, float(np.abs(weight.array).max()))
                )
            yield weight._replace(array=half)

    def file(self, name: str) -> str:
        """The path of a file in the folder."""
        return os.path.join(self.path, name)

    def trim_metrics(self) -> List[Dict[str, Any]]:
        """Cuts metrics.jsonl back to what is done; returns what stays."""
        path = self.file("metrics.jsonl")
        kept: List[Dict[str, Any]] = []
        if os.path.exists(path):
            with open(path, "r", encoding="utf-8") as file:
                for line in file:
                    try:
                        record = json.loads(line, object_pairs_hook=collections.OrderedDict)
                    except ValueError:
                        break  # the line that was being written when the run was killed
                    if record[self._counter] <= self.progress[self._counter]:
                        kept.append(record)
        write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))
        return kept
