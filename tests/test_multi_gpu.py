"""benchmarks/multi_gpu.py on two CPU devices, and report.py's table and chart of what it writes."""

import importlib
import json
import os
import sys

import pytest

from ftbert.streaming import EnginePool

pytestmark = pytest.mark.once

BENCHMARKS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "benchmarks")


@pytest.fixture
def bench(monkeypatch):
    if not os.path.isdir(BENCHMARKS):
        pytest.skip("benchmarks/ is not beside these tests")
    pytest.importorskip("safetensors")
    monkeypatch.setattr(sys, "path", [BENCHMARKS, *sys.path])
    return importlib.import_module("multi_gpu")


def run(bench, tmp_path):
    output = tmp_path / "multi.json"
    status = bench.main(
        ["--devices", "cpu,cpu", "--model", "tiny", "--texts", "1500", "--threads", "1", "--seconds", "0"]
        + ["--cache", str(tmp_path), "--output", str(output)]
    )
    return status, json.loads(output.read_text(encoding="utf-8"))


def test_the_harness_on_two_devices(bench, tmp_path, monkeypatch):
    status, result = run(bench, tmp_path)
    assert status == 0 and result["all_right"]
    assert [record["devices"] for record in result["sets"]] == [["cpu"], ["cpu", "cpu"]]
    for record in result["sets"]:
        for work in ("token_ids", "strings"):
            assert record[work]["texts_per_second"] > 0 and record[work]["efficiency"] > 0
            assert record["rows"][work] == dict(record["rows"][work], rows=1500, right=True)
    assert result["host"]["strings"]["cards_fed"] > 0
    failure = result["failure"]
    assert failure["right"] and failure["reported"].startswith("cpu: simulated") and failure["describe_says"][0] is None

    report, charts, tables = map(importlib.import_module, ("report", "report_charts", "report_tables"))
    monkeypatch.setattr(tables, "RESULTS", str(tmp_path))
    os.rename(str(tmp_path / "multi.json"), str(tmp_path / "multi_gpu_cpu.json"))
    text = report.sections("en")
    assert "cpu, cpu" in text and "reported after %d right rows" % failure["rows_delivered_before"] in text
    pytest.importorskip("matplotlib")
    charts.draw_multi()
    assert "multi_gpu_cpu.svg" in report.sections("zh")


def test_the_harness_sees_rows_in_the_wrong_places(bench, tmp_path, monkeypatch):
    real = EnginePool.submit

    def mixed_up(self, batch, want):
        future = real(self, batch, want)
        values = future.result()[::-1]
        future.result = lambda: values
        return future

    monkeypatch.setattr(EnginePool, "submit", mixed_up)
    status, result = run(bench, tmp_path)
    assert status == 1 and not result["all_right"] and not result["sets"][0]["rows"]["token_ids"]["right"]
