"""The console that the command prints its tables on."""

import os
import sys
from typing import Any

__all__ = ["make_console"]

# Where the output is read by a program or from a log, wrapped cells are of no use.
_PIPE_WIDTH = 160


def make_console() -> Any:
    """A rich.console.Console on standard output that prints names and texts as they are, whatever marks they hold."""
    from rich.console import Console

    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=_PIPE_WIDTH if piped else None, markup=False, emoji=False, highlight=False)
