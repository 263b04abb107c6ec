"""`python -m ftbert`: the same as the `ftbert` command."""

import sys

from ftbert.cli import main

__all__ = []  # type: list

if __name__ == "__main__":
    sys.exit(main())
