"""The doctor: what it finds here, and that it calls broken what is broken."""

import os
import subprocess
import sys

import pytest

from ftbert import doctor


def examine(**variables):
    """The doctor's exit status and report, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "ftbert", "doctor"],
        env=dict(os.environ, COLUMNS="200", **variables),
        cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
    )
    return done.returncode, done.stdout


def test_a_sound_installation():
    findings, status = doctor.run()
    by_name = {finding.name: finding for finding in findings}
    assert status == 0 and not [finding for finding in findings if finding.state == "broken"]
    assert by_name["Engine"].value.startswith("cpu ")
    assert "device " in by_name["auto chooses"].value and "precision " in by_name["auto chooses"].value
    if doctor._has_tensorflow():
        assert "bitwise" in by_name["Op library"].value
    else:
        assert by_name["TensorFlow"].state == "note" and by_name["TensorFlow"].remedy


def test_an_engine_that_does_not_run():
    status, said = examine(FTBERT_CPU_ISA="avx1024")
    assert status == 1
    assert "broken" in said and "avx1024" in said and "unset it" in said


@pytest.mark.parametrize(
    "code, state, part",
    [
        ("raise ImportError('libfoo.so.9 is missing')", "broken", "libfoo.so.9 is missing"),
        ("import os; os._exit(3)", "broken", "exit status 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "broken", "signal 11"),
    ],
)
def test_a_tensorflow_that_does_not_import(tmp_path, code, state, part):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text(code)
    status, said = examine(PYTHONPATH=str(tmp_path))
    assert status == 1
    line = next(line for line in said.splitlines() if "TensorFlow" in line)
    assert state in line and part in said


def test_a_lowered_instruction_set_is_said():
    status, said = examine(FTBERT_CPU_ISA="portable")
    assert status == 0
    assert "FTBERT_CPU_ISA=portable lowers" in said
