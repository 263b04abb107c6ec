"""What stands around a predictor's calls: closing, forks, argument checks and progress."""

import contextlib
import os
import threading
from typing import Any, Callable, Iterable, Iterator, Optional, Union

import numpy as np

from ftbert.errors import ClosedError, ConfigError, UnavailableError

__all__ = ["Gate", "Progress", "check_choice", "check_count", "open_progress"]

Progress = Union[bool, Callable[[int, int], Any], None]


class Gate:
    """Entered by every call; `close` waits until all have left, and lets none in after."""

    def __init__(self) -> None:
        self.closed = False
        self._process = os.getpid()
        self._state = threading.Condition()
        self._inside = 0

    def check(self) -> None:
        """Raises ClosedError if calls may no longer come in."""
        # First the process: in a forked child the lock may be held by a thread that is not there.
        if os.getpid() != self._process:
            raise ClosedError(
                "This classifier was loaded in process %d and does not live on in a forked child (%d): its threads and "
                "its device stay with the parent. Load the model in the child, or start children with "
                "multiprocessing's 'spawn'." % (self._process, os.getpid())
            )
        if self.closed:
            raise ClosedError("This classifier was closed. Load the model again.")

    def __enter__(self) -> None:
        self.check()
        with self._state:
            self.check()
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._state:
            self._inside -= 1
            self._state.notify_all()

    def close(self) -> bool:
        """Whether the caller is the one who must free what is behind the gate: not a second one, not a forked child."""
        if os.getpid() != self._process:
            return False
        with self._state:
            if self.closed:
                return False
            self.closed = True
            while self._inside:
                self._state.wait()
        return True


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raises ConfigError unless `value` is one of the strings."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError("%s: expected one of %s, got %r." % (name, ", ".join(choices), value))


def check_count(name: str, value: Optional[int], least: int, most: Optional[int] = None) -> None:
    """Raises ConfigError unless `value` is None or an integer of at least `least` and at most `most`."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ConfigError("%s: expected an integer of at least %d, got %r." % (name, least, value))
    if most is not None and value > most:
        raise ConfigError("%s: expected at most %d, got %d." % (name, most, value))


@contextlib.contextmanager
def open_progress(progress: Progress, total: int) -> Iterator[Callable[[int], None]]:
    """A function to call with how many more are done.

    Args:
        progress: None or False: it does nothing; True: it moves a bar; a function: it is called with (done, total).
        total: how many there are.
    """
    if progress is None or progress is False:
        yield lambda count: None
    elif progress is True:
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise UnavailableError(
                "progress=True: expected tqdm. Run `pip install tqdm`, or pass a function."
            ) from error
        with tqdm(total=total, unit=" texts") as bar:
            yield bar.update
    elif callable(progress):
        report = progress
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            report(done, total)

        yield advance
    else:
        raise ConfigError("progress: expected None, True or a function of (done, total), got %r." % (progress,))
