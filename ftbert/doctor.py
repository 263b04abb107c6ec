"""Checks an installation: what is here, what works, what `auto` would choose, and a remedy for what is broken.

Everything that could crash (opening libraries, running kernels, importing TensorFlow) happens in a process of its own,
so that the report comes out whatever state the machine is in.
"""

import glob
import json
import os
import platform
import subprocess
import sys
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

__all__ = ["Finding", "main", "run"]

OK, NOTE, BROKEN = "ok", "note", "broken"

# A tiny model through the C ABI; argv[1] = "op" runs it through TensorFlow's op as well, which must answer bitwise the
# same.
_TRIAL = r"""
import json, sys
import numpy as np
from ftbert import _ops
from ftbert.batching import PackedBatch
from ftbert.config import BertConfig

print("machine:" + json.dumps(_ops.describe_machine()), flush=True)
config = BertConfig(vocab_size=11, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                    max_position_embeddings=8)
random = np.random.RandomState(0)
hidden, inner, layer = 16, 32, "bert/encoder/layer_0/"
shapes = {"output_weights": (3, hidden), "output_bias": (3,)}
for name, rows in (("word", 11), ("position", 8), ("token_type", 2)):
    shapes["bert/embeddings/%s_embeddings" % name] = (rows, hidden)
for name in ("bert/embeddings", layer + "attention/output", layer + "output"):
    shapes[name + "/LayerNorm/gamma"] = shapes[name + "/LayerNorm/beta"] = (hidden,)
dense = {layer + "attention/self/" + part: (hidden, hidden) for part in ("query", "key", "value")}
dense.update({layer + "attention/output/dense": (hidden, hidden), layer + "intermediate/dense": (hidden, inner),
              layer + "output/dense": (inner, hidden), "bert/pooler/dense": (hidden, hidden)})
for name, shape in dense.items():
    shapes[name + "/kernel"], shapes[name + "/bias"] = shape, shape[1:]
weights = [_ops.Weight(name, random.standard_normal(shape).astype(np.float32))
           for name, shape in sorted(shapes.items())]
engine = _ops.Engine.build(config, weights, 3)
batch = PackedBatch(np.array([1, 2, 3, 4, 5], np.int32), np.zeros(5, np.int32), np.array([0, 2, 5], np.int32))
direct = engine.run(batch)["logits"]
if not np.isfinite(direct).all():
    sys.exit("the engine's answer is not finite: %s" % direct)
print("engine:" + json.dumps(engine.describe()), flush=True)
if sys.argv[1] == "op":
    from tensorflow.compat import v1 as tf
    print("tensorflow:" + json.dumps(tf.__version__), flush=True)
    from ftbert._ops.tensorflow_op import load_tensorflow_op, tensorflow_adapter
    with tf.Graph().as_default(), tf.Session() as session:
        op = load_tensorflow_op().ftbert_run(token_ids=batch.token_ids, segment_ids=batch.segment_ids,
                                             row_splits=batch.row_splits, engine=engine.id)
        logits = session.run(op)[0]
    if not np.array_equal(logits, direct):
        sys.exit("the op and the engine disagree: %s and %s" % (logits, direct))
    print("op:" + json.dumps(tensorflow_adapter(tf.__version__)), flush=True)
"""


class Finding(NamedTuple):
    """One line of the report. state: "ok", "note" (works, worth knowing) or "broken"."""

    name: str
    state: str
    value: str
    remedy: str = ""


class _Trial(NamedTuple):
    said: Dict[str, Any]
    problem: Optional[str]


def _try(mode: str) -> _Trial:
    """Runs the trial model; `problem` is why it did not come to its end."""
    environment = dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3")
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment["PYTHONPATH"] = os.pathsep.join([root] + [p for p in [os.environ.get("PYTHONPATH")] if p])
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRIAL, mode],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            timeout=300,
        )
    except subprocess.TimeoutExpired:
        return _Trial({}, "no answer within 300 s")
    said = {}
    for line in done.stdout.splitlines():
        key, _, text = line.partition(":")
        if key in ("machine", "engine", "tensorflow", "op"):
            said[key] = json.loads(text)
    if done.returncode == 0:
        return _Trial(said, None)
    if done.returncode < 0:
        return _Trial(said, "the process was ended by signal %d" % -done.returncode)
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    return _Trial(said, lines[-1] if lines else "exit status %d" % done.returncode)


def _python() -> Finding:
    value = "%s, %s, %s" % (platform.python_version(), sys.executable, platform.platform())
    if sys.version_info < (3, 7):
        return Finding("Python", BROKEN, value, "Use Python 3.7 or newer.")
    return Finding("Python", OK, value)


def _packages() -> Finding:
    versions = []
    for name in ("numpy", "tokenizers"):
        try:
            versions.append("%s %s" % (name, __import__(name).__version__))
        except ImportError as error:
            return Finding("Packages", BROKEN, "%s does not import: %s" % (name, error), "pip install -U %s" % name)
    return Finding("Packages", OK, ", ".join(versions))


def _engine(trial: _Trial) -> Finding:
    if "engine" in trial.said:
        return Finding("Engine", OK, "%s; a trial model ran" % trial.said["engine"].get("name", "?"))
    return Finding(
        "Engine",
        BROKEN,
        str(trial.problem),
        "If FTBERT_CPU_ISA is set, unset it. Else build the library again: pip install --force-reinstall --no-deps . "
        "(in ftbert's source folder)",
    )


def _has_tensorflow() -> bool:
    import importlib.util

    # TensorFlow 1.14, once imported, has no __spec__, which find_spec takes for an error.
    return "tensorflow" in sys.modules or importlib.util.find_spec("tensorflow") is not None


def _tensorflow(trial: Optional[_Trial]) -> List[Finding]:
    if trial is None:
        return [
            Finding(
                "TensorFlow",
                NOTE,
                'not installed; runtime="direct" and the command line work without it',
                "For the Session runtime, training and fast_modeling: pip install tensorflow-cpu",
            )
        ]
    if "tensorflow" not in trial.said:
        problem = "does not import: %s" % trial.problem
        return [Finding("TensorFlow", BROKEN, problem, "Repair or reinstall TensorFlow; its own message stands above.")]
    findings = [Finding("TensorFlow", OK, trial.said["tensorflow"])]
    if "op" in trial.said:
        value = "%s; answers bitwise as the engine does" % trial.said["op"]
        return findings + [Finding("Op library", OK, value)]
    remedy = "Install ftbert again in this environment: pip install --force-reinstall --no-deps ."
    return findings + [Finding("Op library", BROKEN, str(trial.problem), remedy)]


def _cpu(machine: Dict[str, Any]) -> Finding:
    cpu = machine.get("cpu", {})
    levels = cpu.get("levels")
    value = "%s, %s threads" % (cpu.get("isa", "?"), cpu.get("threads", "?"))
    if levels:
        value += " (has %s)" % (levels if isinstance(levels, str) else ", ".join(levels))
    wanted = os.environ.get("FTBERT_CPU_ISA")
    if wanted:
        remedy = "FTBERT_CPU_ISA=%s lowers the instruction set; unset it for full speed." % wanted
        return Finding("CPU", NOTE, value, remedy)
    return Finding("CPU", OK, value)


def _nvidia_cards() -> int:
    """Cards that the kernel driver shows, whether or not CUDA works."""
    return len(glob.glob("/proc/driver/nvidia/gpus/*")) or len(glob.glob("/dev/nvidia[0-9]*"))


def _gpus(machine: Dict[str, Any]) -> List[Finding]:
    cuda = machine.get("cuda", {})
    findings = []
    driver = "driver %s, CUDA runtime %s" % (cuda.get("driver"), cuda.get("runtime"))
    for device in cuda.get("devices", []):
        value = "cuda:%s %s, compute capability %s, %.0f GB; %s" % (
            device.get("index"),
            device.get("name"),
            device.get("compute_capability"),
            (device.get("memory_bytes") or 0) / 1e9,
            driver,
        )
        findings.append(Finding("GPU", OK, value))
    problem = cuda.get("problem")
    if findings and not problem:
        return findings
    if _nvidia_cards():
        return findings + [Finding("GPU", BROKEN, "%d NVIDIA card(s), not usable" % _nvidia_cards(), str(problem))]
    return findings + [Finding("GPU", NOTE, "no NVIDIA card found")]


def _automatic() -> Finding:
    """What FastBertClassifier.load would take; asked of the function that it asks."""
    from ftbert.runtimes import choose_devices, device_kind

    device = choose_devices("auto", None)[0]
    card = device_kind(device) == "cuda"
    value = "device %s, precision %s, or the one that a model folder records as checked (ftbert calibrate); %s" % (
        device,
        "fp16" if card else "fp32",
        "the first usable card" if card else "there is no usable card",
    )
    return Finding("auto chooses", OK, value)


def run() -> Tuple[List[Finding], int]:
    """Examines this installation.

    Returns:
        The findings, and the exit status: 0, or 1 when something is broken.
    """
    findings = [_python(), _packages()]
    if findings[1].state == BROKEN:
        return findings, 1
    direct = _try("direct")
    findings.append(_engine(direct))
    with_op = _try("op") if _has_tensorflow() and direct.problem is None else None
    if with_op is not None or not _has_tensorflow():
        findings += _tensorflow(with_op)
    machine = direct.said.get("machine")
    if machine is not None:
        findings.append(_cpu(machine))
        findings += _gpus(machine)
        findings.append(_automatic())
    return findings, int(any(finding.state == BROKEN for finding in findings))


def main() -> int:
    """Prints the report and returns the exit status."""
    from rich.table import Table
    from rich.text import Text

    from ftbert.console import make_console

    findings, status = run()
    table = Table(show_header=False, box=None, padding=(0, 1))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    colours = {OK: "green", NOTE: "yellow", BROKEN: "bold red"}
    for finding in findings:
        table.add_row(Text(finding.name), Text(finding.state, colours[finding.state]), Text(finding.value))
        if finding.remedy:
            table.add_row("", "", Text("-> " + finding.remedy))
    make_console().print(table)
    return status


if __name__ == "__main__":
    sys.exit(main())
