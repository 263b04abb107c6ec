"""benchmarks/ray_cards.py: Ray's actors on cards while processes are killed. On the CPU: test_distributed.py."""

import json
import os
import subprocess
import sys

import pytest

from ftbert.runtimes import choose_devices

pytest.importorskip("ray", reason="the extra 'ray' is not installed")
pytest.importorskip("pyarrow")
pytest.importorskip("safetensors")

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = os.path.join(ROOT, "benchmarks", "ray_cards.py")


def run(tmp_path, *arguments):
    if not os.path.exists(PROGRAM):
        pytest.skip("benchmarks/ is not beside these tests")
    output = tmp_path / "ray.json"
    done = subprocess.run(
        [sys.executable, PROGRAM, "--model", "tiny", "--texts", "2000", "--output", str(output)]
        + ["--cache", str(tmp_path), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return json.loads(output.read_text(encoding="utf-8"))


def check(result):
    assert result["right"] and [part["killed"] for part in result["offline"]] == ["worker", "node", None]
    for part in result["offline"]:
        assert part["rows_out"] == part["rows_in"] and part["lost"] == part["repeated"] == part["wrong_answers"] == 0
    assert result["serve"]["wrong_answers"] == result["serve"]["failed_requests"] == 0


@pytest.mark.gpu
def test_workers_and_nodes_die_on_cards(tmp_path):
    if choose_devices("auto", None) == ["cpu"]:
        if os.environ.get("FTBERT_REQUIRE_GPU") == "1":
            pytest.fail("no usable CUDA card")
        pytest.skip("no usable CUDA card")
    result = run(tmp_path, "--rows", "150000", "--batch-rows", "128")
    check(result)
    assert result["engine"].startswith("cuda:") and "fp16" in result["engine"]
