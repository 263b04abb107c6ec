"""What the writers of checkpoints share: an error that names the file, and data that is on the disk before its name."""

import contextlib
import os
from typing import IO, Any, Iterator

from ftbert.errors import CheckpointError

__all__ = ["sync_and_close", "writing"]


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
    """Whatever the system refuses inside becomes a CheckpointError that names `path`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError("%s: could not be written: %s. Is there room on the disk?" % (path, error)) from error


def sync_and_close(file: IO[Any]) -> None:
    """Returns when the file's contents are on the disk."""
    file.flush()
    os.fsync(file.fileno())
    file.close()
