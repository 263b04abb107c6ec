"""What the writers of checkpoints share: an error that names the file, and data that is on the disk before its name."""

import contextlib
import os
from typing import IO, Any, Iterator, Optional

from ftbert.errors import CheckpointError

__all__ = ["WholeFile", "sync_and_close", "writing"]


class WholeFile:
    """Something being written that gets its name when it is whole: leaving the `with` block by an exception, or one
    while it is completed, removes what was begun."""

    def close(self) -> None:
        """Completes it and gives it its name."""
        raise NotImplementedError

    def abort(self) -> None:
        """Removes what was begun; does nothing after `close`."""
        raise NotImplementedError

    def __exit__(self, kind: Optional[type], *exception: object) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.abort()


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
