"""One model on several cards of a host: texts per second from token ids and from strings, against one card.

    python benchmarks/multi_gpu.py                                  # 1, 2, 4 and 8 cards, as many as there are
    python benchmarks/multi_gpu.py --devices cuda:0,cuda:0          # one card listed twice
    python benchmarks/multi_gpu.py --devices cpu,cpu --model tiny --texts 3000 --output multi.json

BERT-base with random weights, texts of lognormal(median 40, sigma 0.6) lengths clipped to 8 .. 128; TensorFlow is
not needed. Answers of every set of devices are compared, row by row, with those of one device that ran the rows one
batch after the other. In the end one device is made to fail half way. Writes results/multi_gpu_<card>.json and exits 1
where an answer was wrong or a failure was not reported.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
sys.path.insert(0, HERE)

import common  # noqa: E402
from serve_load import MODELS, random_texts  # noqa: E402

from ftbert import EngineError, FastBertClassifier  # noqa: E402
from ftbert._ops import describe_machine  # noqa: E402
from ftbert.prediction import scores_from_logits  # noqa: E402

TINY = dict(common.BASE, hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192)
MODELS = dict(MODELS, tiny=TINY)
TARGETS = {"token_ids": 0.95, "strings": 0.85}


def cards():
    """Index -> name of the usable cards."""
    found = describe_machine().get("cuda", {})
    return {card["index"]: card["name"] for card in found.get("devices", []) if card.get("usable")}


def used_memory():
    """Card as CUDA names it -> MiB in use there, by anyone; {} without nvidia-smi."""
    try:
        lines = subprocess.check_output(
            ["nvidia-smi", "--query-gpu=index,memory.used", "--format=csv,noheader,nounits"], universal_newlines=True
        ).splitlines()
    except (OSError, subprocess.CalledProcessError):
        return {}
    used = {line.split(",")[0].strip(): int(line.split(",")[1]) for line in lines}
    # nvidia-smi counts every card of the machine, CUDA those that it may see, in the order that they are named in.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = visible.split(",") if visible else sorted(used, key=int)
    return {"cuda:%d" % place: used[index] for place, index in enumerate(seen) if index in used}


def timed(run, count, seconds):
    """Median texts per second of whole passes, and the processors that this process kept busy meanwhile."""
    run()
    passes = []
    began, spent = time.perf_counter(), time.process_time()
    while len(passes) < 3 or time.perf_counter() - began < seconds:
        start = time.perf_counter()
        run()
        passes.append(time.perf_counter() - start)
    busy = (time.process_time() - spent) / (time.perf_counter() - began)
    return {
        "texts_per_second": round(count / statistics.median(passes), 1),
        "best": round(count / min(passes), 1),
        "passes": len(passes),
        "processors_busy": round(busy, 2),
        "share_of_host": round(busy / len(os.sched_getaffinity(0)), 3),
    }


def one_by_one(classifier, encoded):
    """Logits of the rows in their order, one batch after the other on one device: what the others are compared with."""
    parts, first, splits = [], 0, encoded.batch.row_splits
    rows = encoded.batch.num_rows
    while first < rows:
        end = int(np.searchsorted(splits, splits[first] + classifier.batch_tokens, side="right")) - 1
        parts.append(classifier.predict_ids(encoded.rows(first, min(max(end, first + 1), rows)).batch))
        first = min(max(end, first + 1), rows)
    return np.concatenate(parts)


class Order:
    """Whether rows are in the caller's order: each must be nearer to its own reference than rows are to each other."""

    def __init__(self, reference):
        self.reference = reference
        # Rows half the batch apart, so that no two of one batch are compared.
        apart = np.abs(reference - np.roll(reference, len(reference) // 2, axis=0)).max(axis=1)
        self.apart = float(np.median(apart))

    def check(self, values):
        """The largest difference from the reference, and whether every row is there and in its place."""
        if values.shape != self.reference.shape:
            return {"rows": len(values), "right": False}
        difference = float(np.abs(values - self.reference).max())
        return {
            "rows": len(values),
            "largest_difference": round(difference, 6),
            "rows_apart": round(self.apart, 6),
            "right": bool(difference <= self.apart / 4),
        }


def measure(folder, devices, load, texts, seconds, references):
    """One set of devices; `references` is filled by the first, which is one device alone."""
    before = used_memory()
    began = time.perf_counter()
    classifier = FastBertClassifier.load(folder, devices=devices, runtime="direct", max_length=128, **load)
    loaded = time.perf_counter() - began
    encoded = classifier.tokenize(texts)
    if not references:
        logits = one_by_one(classifier, encoded)
        references["logits"] = Order(logits)
        references["scores"] = Order(scores_from_logits(logits, classifier.problem_type))
    right = {
        "token_ids": references["logits"].check(classifier.predict_ids(encoded.batch, classifier.batch_tokens)),
        "strings": references["scores"].check(classifier.predict_proba(texts)),
    }
    record = {
        "devices": devices,
        # One card listed twice is one card; CPU engines have threads of their own.
        "cards": len(set(devices)) if devices[0].startswith("cuda") else len(devices),
        "engine": classifier.engine,
        "load_seconds": round(loaded, 2),
        "batch_tokens": classifier.batch_tokens,
        "token_ids": timed(lambda: classifier.predict_ids(encoded.batch, classifier.batch_tokens), len(texts), seconds),
        "strings": timed(lambda: classifier.predict(texts), len(texts), seconds),
        "rows": right,
    }
    record["memory"] = [
        {key: state[key] for key in ("device", "weight_bytes", "scratch_bytes") if key in state}
        for state in classifier.describe()
    ]
    after = used_memory()
    record["card_mib"] = {device: after[device] - before[device] for device in sorted(set(devices)) if device in after}
    return classifier, encoded, record


def without_engines(classifier, encoded, texts, seconds):
    """What the host alone does, with engines that answer zeros at once: the rate that no number of cards gets past."""
    real = [runtime.run for runtime in classifier._runtimes]
    zeros = [np.zeros((1, len(classifier.labels)), np.float32)]
    for runtime in classifier._runtimes:
        runtime.run = lambda batch, want: np.broadcast_to(zeros[0], (batch.num_rows, zeros[0].shape[1]))
    try:
        record = {
            "token_ids": timed(
                lambda: classifier.predict_ids(encoded.batch, classifier.batch_tokens), len(texts), seconds
            ),
            "strings": timed(lambda: classifier.predict(texts), len(texts), seconds),
            "tokenizer_alone": timed(lambda: classifier.tokenize(texts), len(texts), seconds),
        }
    finally:
        for runtime, run in zip(classifier._runtimes, real):
            runtime.run = run
    # Processor time of the calling thread is what Python does under its lock, plus handing texts to the tokenizer.
    began = time.thread_time()
    classifier.tokenize(texts)
    record["tokenizer_us_per_text_in_one_thread_of_python"] = round((time.thread_time() - began) / len(texts) * 1e6, 3)
    return record


def fail_half_way(classifier, texts, references):
    """Makes the last device fail in the middle of a call. Says what the caller saw, and what came after."""
    last = classifier._runtimes[-1]
    real, calls = last.run, []
    passes = []

    def failing(batch, want):
        calls.append(batch.num_rows)
        if len(calls) > passes[0]:
            raise EngineError("simulated: the card does not answer any more")
        return real(batch, want)

    # Half of the batches that this device takes of one call.
    last.run = lambda batch, want: (calls.append(batch.num_rows), real(batch, want))[1]
    classifier.predict_proba(texts)
    passes.append(max(1, len(calls) // 2))
    calls.clear()
    last.run = failing
    delivered, message = 0, None
    scores = references["scores"].reference
    right = True
    began = time.perf_counter()
    try:
        for row, prediction in enumerate(classifier.predict_stream(texts)):
            delivered = row + 1
            right = right and abs(prediction.score - float(scores[row].max())) <= references["scores"].apart
    except EngineError as error:
        message = str(error)
    seconds = time.perf_counter() - began
    after = references["scores"].check(classifier.predict_proba(texts))
    states = [state["failure"] for state in classifier.describe()]
    last.run = real
    return {
        "device": classifier.devices[-1],
        "reported": message,
        "seconds_until_reported": round(seconds, 3),
        "rows_delivered_before": delivered,
        "those_right": bool(right),
        "next_call_on_the_others": after,
        "describe_says": states,
        "right": message is not None and delivered < len(texts) and bool(right) and after["right"],
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", help="such as cuda:0,cuda:1; left out: every usable card")
    parser.add_argument("--counts", help="how many of them at a time; left out: 1, 2, 4, 8 and all")
    parser.add_argument("--model", choices=sorted(MODELS), default="base")
    parser.add_argument("--precision", help="left out: fp16 on cards, fp32 on the CPU")
    parser.add_argument("--threads", type=int, help="of each engine on the CPU")
    parser.add_argument("--batch-tokens", type=int, help="left out: what suits the device")
    parser.add_argument("--texts", type=int, default=65536)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement, at least, and three passes")
    parser.add_argument("--cache", default=os.path.join(tempfile.gettempdir(), "ftbert-serve-models"))
    parser.add_argument("--output", help="left out: results/multi_gpu_<card>.json")
    given = parser.parse_args(arguments)
    here = cards()
    devices = given.devices.split(",") if given.devices else ["cuda:%d" % index for index in sorted(here)]
    if not devices:
        sys.exit("Expected a usable card, found none; --devices cpu,cpu runs this on the CPU.")
    kind = devices[0].split(":")[0]
    counts = [int(count) for count in given.counts.split(",")] if given.counts else [1, 2, 4, 8, len(devices)]
    counts = sorted({count for count in counts if count <= len(devices)} | {1})
    name = here.get(int((devices[0].split(":") + ["0"])[1]), "cuda") if kind == "cuda" else kind
    load = {"precision": given.precision or ("fp16" if kind == "cuda" else "fp32")}
    if given.threads:
        load["threads"] = given.threads
    if given.batch_tokens:
        load["batch_tokens"] = given.batch_tokens
    folder = common.make_model(os.path.join(given.cache, given.model), MODELS[given.model], num_labels=20)
    texts = random_texts(given.texts, 128)
    records, references = [], {}
    result = {
        "what": "texts per second of one model on several devices of a host",
        "card": name,
        "date": time.strftime("%Y-%m-%d"),
        "revision": common.revision(),
        "machine": common.machine(),
        "load_average": os.getloadavg(),
        "settings": {key: value for key, value in vars(given).items() if key not in ("cache", "output")},
        "precision": load["precision"],
        "texts": len(texts),
        "targets": TARGETS,
        "sets": records,
    }
    classifier = None
    for count in counts:
        if classifier is not None:
            classifier.close()
        classifier, encoded, record = measure(folder, devices[:count], load, texts, given.seconds, references)
        result["tokens"] = encoded.batch.num_tokens
        one = records[0] if records else record
        for work in TARGETS:
            record[work]["efficiency"] = round(
                record[work]["texts_per_second"] / (one[work]["texts_per_second"] * record["cards"]), 3
            )
        records.append(record)
        print(json.dumps(record), flush=True)
    result["host"] = without_engines(classifier, encoded, texts, given.seconds / 2)
    for work in TARGETS:
        bound = result["host"][work]["texts_per_second"] / records[0]["token_ids"]["texts_per_second"]
        result["host"][work]["cards_fed"] = round(bound, 2)
    print(json.dumps(result["host"]), flush=True)
    if len(classifier.devices) > 1:
        result["failure"] = fail_half_way(classifier, texts, references)
        print(json.dumps(result["failure"]), flush=True)
    classifier.close()
    good = all(check["right"] for record in records for check in record["rows"].values())
    good = good and result.get("failure", {"right": True})["right"]
    result["all_right"] = good
    if given.output:
        with open(given.output, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
    else:
        print(common.write_result("multi_gpu_" + re.sub("[^a-z0-9]+", "_", name.lower()).strip("_"), result))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
