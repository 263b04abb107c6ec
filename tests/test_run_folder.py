"""The folder of a training run: whose it is, and what `resume=False` takes out of it."""

import os
import subprocess
import sys

import pytest

from ftbert.errors import ConfigError
from ftbert.training.run_folder import RunFolder

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from ftbert.training.run_folder import RunFolder
run = RunFolder(sys.argv[2], "mark", True)
print("mine", flush=True)
time.sleep(60)
"""


def test_two_runs_do_not_share_a_folder(tmp_path):
    path = str(tmp_path / "m.training")
    process = subprocess.Popen([sys.executable, "-c", HOLDER, ROOT, path], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline().strip() == b"mine"
        for resume in (True, False):
            with pytest.raises(ConfigError, match="another run is training there"):
                RunFolder(path, "mark", resume)
        assert os.listdir(path) == ["progress.json"]
    finally:
        process.kill()
        process.communicate()
    RunFolder(path, "mark", True).close()  # whoever was killed holds nothing


def test_a_refused_run_holds_nothing(tmp_path):
    path = str(tmp_path / "m.training")
    RunFolder(path, "mark", True).close()
    with pytest.raises(ConfigError, match="other data or settings") as kept:
        RunFolder(path, "other", True)
    RunFolder(path, "mark", True).close()
    assert kept.traceback  # which an interactive session keeps, and the frames with it


def test_beginning_anew_empties_a_run_and_nothing_else(tmp_path):
    path = tmp_path / "m.training"
    RunFolder(str(path), "mark", True).close()
    (path / "state-3").mkdir()
    (path / "state-3" / "x").write_text("x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("mine")
    os.symlink("../elsewhere", str(path / "tensorboard"))
    RunFolder(str(path), "other", False).close()
    assert os.listdir(str(path)) == ["progress.json"]
    assert (tmp_path / "elsewhere" / "mine").read_text() == "mine"
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "mine").write_text("mine")
    with pytest.raises(ConfigError, match="no training run of ftbert"):
        RunFolder(str(tmp_path / "foreign"), "mark", False)
    assert os.listdir(str(tmp_path / "foreign")) == ["mine"]
