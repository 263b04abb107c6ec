"""BERT classifiers on one GPU: ours and what a user would write in PyTorch or ONNX Runtime, in one call on one card.

    python benchmarks/peers_gpu.py                         # everything that is installed
    python benchmarks/peers_gpu.py --engines ftbert-fp16,torch-packed --output results.json
    python benchmarks/peers_gpu.py --engines transformers-compiled --output results.json --add    # to that file

Random weights at the scale of trained ones, real shapes; nothing is downloaded. Before an engine is timed its logits
are compared with transformers' in fp32 (not where only ours are asked for: the tests do that). Times are wall clock per
call, median, from token ids in host memory to logits in host memory. Writes benchmarks/results/peers_gpu_<card>.json,
anew after every engine.
"""

import argparse
import json
import math
import os
import re
import statistics
import sys
import tempfile
import time

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
sys.path.insert(0, HERE)

from common import BASE, LARGE, lognormal_lengths, revision  # noqa: E402
from gpu_engines import (  # noqa: E402
    BATCH_TOKENS,
    ENGINES,
    LABELS,
    config_of,
    random_model,
    reference_logits,
    whole,
    work_of,
)

from ftbert._ops import Engine, Weight, describe_machine  # noqa: E402
from ftbert.batching import PackedBatch  # noqa: E402

__all__ = ["BATCH_TOKENS", "Engine", "batch_of", "config_of", "weights_of"]

# name: (model, rows, tokens of a row), as in docs/roofline.md
SHAPES = {
    "1 x 32": ("base", 1, 32),
    "1 x 128": ("base", 1, 128),
    "8 x 128": ("base", 8, 128),
    "32 x 128": ("base", 32, 128),
    "256 x 128": ("base", 256, 128),
    "500 x 32": ("base", 500, 32),
    "32 x 384": ("base", 32, 384),
    "large 32 x 384": ("large", 32, 384),
}
TEXTS = "4096 texts"
MODELS = {"base": BASE, "large": LARGE}

# ||logits - reference|| / ||reference|| above which an engine does not compute this model and is not timed.
ALLOWED = {"fp32": 1e-3, "fp16": 0.03, "bf16": 0.15, "fp8": 0.4}


def weights_of(model, seed=0):
    """Random weights by google-research/bert's names."""
    return (Weight(name, array) for name, array in random_model(model, seed).weights.items())


def batch_of(lengths, vocab_size, seed=0) -> PackedBatch:
    """Random token ids in rows of these lengths."""
    return work_of("", lengths, vocab_size, seed).batch


def flops(model, lengths):
    """Useful arithmetic of an encoder over rows of these lengths (no padding, every layer whole)."""
    hidden, inner, layers = model["hidden_size"], model["intermediate_size"], model["num_hidden_layers"]
    tokens = float(sum(lengths))
    return layers * (2 * tokens * (4 * hidden**2 + 2 * hidden * inner) + sum(4.0 * n * n * hidden for n in lengths))


def median_ms(run, seconds=0.7, least=5, most=400):
    """Median wall clock of run() in ms, after a warm-up of three calls."""
    for _ in range(3):
        run()
    times = []
    begin = time.perf_counter()
    while len(times) < least or (len(times) < most and time.perf_counter() - begin < seconds):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times), len(times)


def works_of(size, wanted):
    """The works of one model that were asked for."""
    lengths = {name: np.full(rows, n) for name, (model, rows, n) in SHAPES.items() if model == size and name in wanted}
    if size == "base" and TEXTS in wanted:
        lengths[TEXTS] = lognormal_lengths(4096)
    return [work_of(name, n, MODELS[size]["vocab_size"]) for name, n in lengths.items()]


def compare(name, work, logits, expected, record):
    """Notes how far the logits are off; raises if they are another model's."""
    if expected is None:
        return
    difference = np.abs(logits - expected)
    relative = float(np.linalg.norm(difference) / np.linalg.norm(expected))
    record["logits_off_by"][work] = float("%.3g" % difference.max())
    record["logits_relative_error"][work] = float("%.3g" % relative)
    if not relative <= ALLOWED[record["precision"]]:
        raise ValueError("%s %s: logits off by %.3g of their norm: not timed" % (name, work, relative))


def measure(name, model, works, references, seconds, record):
    """Times one engine on the works of one model; adds to record["milliseconds"] and what follows from them."""
    for work, run in ENGINES[name][2](model, works):
        lengths = work.lengths
        compare(name, work.name, whole(work, run()), references.get(work.name), record)
        ms, calls = median_ms(run, seconds, least=3, most=8 if work.name == TEXTS else 400)
        assert math.isfinite(ms)
        record["milliseconds"][work.name] = round(ms, 4)
        record["calls"][work.name] = calls
        record["rows_per_second"][work.name] = round(len(lengths) / ms * 1e3, 1)
        record["tflops"][work.name] = round(flops(model.sizes, lengths) / ms / 1e9, 1)
        line = "%-28s %-15s %9.3f ms %10.0f rows/s %7.1f TFLOP/s  off by %s"
        off = record["logits_off_by"].get(work.name)
        rate, tflops = record["rows_per_second"][work.name], record["tflops"][work.name]
        print(line % (name, work.name, ms, rate, tflops, off), flush=True)


def versions():
    """Of what is compared, where it is installed."""
    from importlib import metadata

    found = {}
    for name in ("torch", "transformers", "onnxruntime-gpu", "nvidia-cublas", "nvidia-cudnn-cu13"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write(path, result):
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
    os.replace(path + ".tmp", path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default=",".join(ENGINES), help="some of: " + ", ".join(ENGINES))
    parser.add_argument("--shapes", default=",".join(list(SHAPES) + [TEXTS]))
    parser.add_argument("--seconds", type=float, default=0.7, help="of measuring, for each shape")
    parser.add_argument("--add", action="store_true", help="to what the output file holds already")
    parser.add_argument("--output", help="where to write; default: benchmarks/results/peers_gpu_<card>.json")
    arguments = parser.parse_args()
    machine = describe_machine()["cuda"]
    if not machine["devices"]:
        parser.error("no CUDA card: %s" % machine["problem"])
    # What an earlier `tune` found must not decide how the untuned engine does.
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="ftbert-peers-")
    card = machine["devices"][0]["name"]
    path = os.path.join(HERE, "results", "peers_gpu_" + re.sub(r"[^a-z0-9]+", "_", card.lower()).strip("_") + ".json")
    path = arguments.output or path
    wanted = arguments.shapes.split(",")
    date = time.strftime("%Y-%m-%d")
    result = {"card": card, "machine": machine, "date": date, "revision": revision(), "versions": versions()}
    result.update({"labels": LABELS, "work": wanted, "engines": []})
    if arguments.add and os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
    loaded = {}
    for size in ("base", "large"):
        works = works_of(size, wanted)
        if works:
            loaded[size] = (random_model(MODELS[size]), works, {})
    names = arguments.engines.split(",")
    if "FTBERT_BENCH_TUNE" in os.environ:
        names = [name + "-tuned" if name + "-tuned" in ENGINES else name for name in names]
    if not all(name.startswith("ftbert") for name in names):
        for model, works, references in loaded.values():
            references.update(reference_logits(model, works))
    for name in names:
        engine, precision, _ = ENGINES[name]
        record = {"name": name, "engine": engine, "precision": precision}
        keys = ("milliseconds", "calls", "rows_per_second", "tflops", "logits_off_by", "logits_relative_error")
        record.update({key: {} for key in keys})
        result["engines"] = [other for other in result["engines"] if other.get("name") != name] + [record]
        begin = time.perf_counter()
        for size, (model, works, references) in loaded.items():
            try:
                measure(name, model, works, references, arguments.seconds, record)
            except Exception as problem:  # a peer that is missing or fails is recorded, and the rest goes on
                record.setdefault("failed", []).append("%s: %r" % (size, problem))
                print("%s %s failed: %r" % (name, size, problem), flush=True)
        record["seconds_in_all"] = round(time.perf_counter() - begin, 1)
        write(path, result)
    print(path)


if __name__ == "__main__":
    main()
