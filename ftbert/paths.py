"""Paths as callers give them, and what a path where nothing is was probably meant to be."""

import os
import re
from typing import Union

from ftbert.errors import CheckpointError

__all__ = ["PathLike", "as_path", "hint_for"]

PathLike = Union[str, "os.PathLike[str]"]


def as_path(path: PathLike) -> str:
    """The path as a string.

    Raises:
        CheckpointError: it is none, or empty.
    """
    if not isinstance(path, (str, bytes, os.PathLike)) or not os.fspath(path):
        raise CheckpointError("Expected the path of a model folder or a checkpoint, got %r." % (path,))
    return os.fsdecode(path)


def hint_for(path: str) -> str:
    """A sentence about a path where nothing is, led by a space; often ''."""
    if path.startswith("file:"):
        return " Write the path alone, without file://."
    if re.match(r"[a-z0-9]+://", path):
        return " Expected a path on this machine, not an address: download the model first."
    if path.startswith("~"):
        return " Python takes '~' for a name: write os.path.expanduser(%r)." % path
    if os.path.isabs(path):
        return ""
    hint = " Looked for in %s." % os.getcwd()
    if re.match(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?\Z", path):
        hint += " If it is a model of the Hugging Face hub: ftbert download %s <folder>." % path
    return hint
