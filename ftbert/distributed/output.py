"""The output folder of `predict`: written beside its place, counted, named, and only then put there."""

import glob
import logging
import os
import re
import shutil
import time
import uuid
from typing import Any, Callable, Optional

from ftbert.errors import FtbertError, InputError

__all__ = ["READER_CPUS", "check_output", "write"]

_log = logging.getLogger("ftbert.distributed")

# Reading and writing wait for disks, not for processors: they fit beside the actors on every node.
READER_CPUS = 0.25

# What a task that was cut off may still take to write its file.
_LATE_SECONDS = 10.0

_PART = re.compile(r"part-\d+\.(parquet|csv|jsonl)")


def check_output(output: str, overwrite: bool, path_in: Optional[str]) -> None:
    """Refuses an output that something would be lost for.

    Raises:
        InputError: it exists (with `overwrite`: and holds anything but parts of an earlier output), or is the input or
            above or below it.
    """
    if not os.path.lexists(output):
        return
    if not overwrite:
        raise InputError(
            "%s: expected no such path yet; nothing is overwritten. Choose another, remove it, or give overwrite=True "
            "(--overwrite)." % output
        )
    if os.path.islink(output) or not os.path.isdir(output):
        raise InputError("%s: expected a folder that an earlier call wrote, found something else." % output)
    others = sorted(name for name in os.listdir(output) if not _PART.fullmatch(name))
    if others:
        raise InputError(
            "%s: expected a folder that an earlier call wrote, with files part-00000.* alone, found %s. It is not "
            "overwritten." % (output, ", ".join(others[:5]))
        )
    if path_in is not None:
        ours, theirs = os.path.realpath(output), os.path.realpath(path_in)
        if os.path.commonpath([ours, theirs]) in (ours, theirs):
            raise InputError("%s: the output must not be the input %s, nor hold it." % (output, path_in))


def write(predicted: Any, output: str, kind: str, read: Callable[[str, str], Any], expected: Optional[int]) -> None:
    """Writes a dataset.

    Args:
        predicted: a Ray dataset.
        output: the folder; one that exists is replaced.
        kind: "parquet", "csv" or "jsonl".
        read: a folder of such files as a dataset.
        expected: rows that must come out; None: whatever comes.
    """
    output = os.path.abspath(output)
    parent, name = os.path.split(output)
    os.makedirs(parent, exist_ok=True)
    beside = os.path.join(parent, ".%s.writing-%s" % (name, uuid.uuid4().hex[:8]))
    light = {"num_cpus": READER_CPUS}
    for left in glob.glob(os.path.join(glob.escape(parent), ".%s.writing-*" % glob.escape(name))):
        _log.warning("%s: left by a call that was killed, unless one still writes there; it may be removed.", left)
    try:
        if kind == "parquet":
            predicted.write_parquet(beside, ray_remote_args=light)
        elif kind == "csv":
            predicted.write_csv(beside, ray_remote_args=light)
        else:
            predicted.write_json(beside, ray_remote_args=light, force_ascii=False)
        os.makedirs(beside, exist_ok=True)  # a dataset without rows writes none
        # Ray names files after tasks, so that a repeated task replaces its own; afterwards they are just numbered.
        for number, file in enumerate(sorted(os.listdir(beside))):
            os.rename(os.path.join(beside, file), os.path.join(beside, "part-%05d.%s" % (number, kind)))
        if expected is not None:
            written = read(beside, kind).count() if os.listdir(beside) else 0
            if written != expected:
                raise FtbertError(
                    "Expected %d rows in the output, as in the input, got %d; it was not kept." % (expected, written)
                )
        _put(beside, output)
    except BaseException:
        _remove(beside)
        raise


def _remove(folder: str) -> None:
    """Removes a folder into which tasks that were under way may write for a moment more."""
    end = time.monotonic() + _LATE_SECONDS
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.isdir(folder):
            return
        if time.monotonic() > end:
            _log.warning("%s: could not be removed; it is of a call that failed.", folder)
            return
        time.sleep(0.1)


def _put(beside: str, output: str) -> None:
    """Gives the new folder its name; the old one, if any, comes back should that fail."""
    if not os.path.isdir(output):
        os.rename(beside, output)
        return
    old = beside.replace(".writing-", ".replaced-")
    os.rename(output, old)
    try:
        os.rename(beside, output)
    except OSError:
        os.rename(old, output)
        raise
    shutil.rmtree(old, ignore_errors=True)
