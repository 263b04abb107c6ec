"""From strings to predictions on one device, beside the engine's own call: what tokenization and TensorFlow add.

    python benchmarks/predict_paths.py                            # a card, fp16, both runtimes where TensorFlow is
    python benchmarks/predict_paths.py --runtimes direct --output paths.json
    python benchmarks/predict_paths.py --device cpu --precision int8 --model small --texts 512    # a dry run

Calls that are compared take turns, so that a change of clock or load meets both. Random weights, 20 labels; texts of
lognormal(median 40, sigma 0.6) lengths clipped to 8 .. 128. Writes results/predict_<precision>_<device>.json and exits
1 where the runtimes' answers differ.
"""

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE)]

import common  # noqa: E402
from serve_load import MODELS, random_texts  # noqa: E402

from ftbert import FastBertClassifier  # noqa: E402
from ftbert.batching import plan  # noqa: E402
from ftbert.measure import fixed_batch  # noqa: E402

OVERHEAD_US, SHARE = 40, 0.85  # targets


def in_turns(calls, rounds, warm=3):
    """{name: median milliseconds} of calls that take turns."""
    times = {name: [] for name in calls}
    for turn in range(warm + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= warm:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def latency(classifier, rounds):
    """The engine's own call, the runtime's and predict() with one text, at two lengths."""
    (runtime,) = classifier._runtimes
    records = {}
    for length in (32, 128):
        batch = fixed_batch(1, length, classifier.config.vocab_size)
        text = "".join(chr(0x4E00 + i) for i in range(length - 2))
        calls = {
            "engine": lambda batch=batch: runtime.engine.run(batch, ("logits",)),
            "predict_ids": lambda batch=batch: classifier.predict_ids(batch),
            "predict": lambda text=text: classifier.predict([text]),
        }
        record = {name: round(ms, 4) for name, ms in in_turns(calls, rounds, 20).items()}
        for name in ("predict_ids", "predict"):
            record[name + "_adds_us"] = round((record[name] - record["engine"]) * 1e3, 1)
        records["1 x %d" % length] = record
    return records


def throughput(classifier, texts, rounds):
    """Many texts: ready token ids through the engine, one batch after the other; strings through predict(); parts."""
    batch = classifier.tokenize(texts).batch
    (runtime,) = classifier._runtimes

    def cut():
        groups = plan(np.diff(batch.row_splits), classifier.batch_tokens, classifier.row_tile)
        return [batch.take(group) for group in groups]

    parts = cut()
    logits = np.zeros((len(texts), len(classifier.labels)), np.float32)
    kept = np.zeros(len(texts), bool)
    calls = {
        "engine": lambda: [runtime.run(part, "logits") for part in parts],
        "strings": lambda: classifier.predict(texts),
        "tokenize": lambda: classifier.tokenize(texts),
        "cut into batches": cut,
        "logits to predictions": lambda: classifier.predictions_from_logits(logits, kept),
    }
    times = in_turns(calls, rounds)
    return {
        "texts": len(texts),
        "tokens": batch.num_tokens,
        "milliseconds": {name: round(ms, 3) for name, ms in times.items()},
        "texts_per_second": {name: round(len(texts) / times[name] * 1e3) for name in ("engine", "strings", "tokenize")},
        "strings_to_engine": round(times["engine"] / times["strings"], 3),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--runtimes", default="direct,session")
    parser.add_argument("--model", choices=sorted(MODELS), default="base")
    parser.add_argument("--texts", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=300, help="of one text; of many a twentieth")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--cache", default=os.path.join(tempfile.gettempdir(), "ftbert-serve-models"))
    parser.add_argument("--output")
    given = parser.parse_args()
    folder = common.make_model(os.path.join(given.cache, given.model), MODELS[given.model], num_labels=20)
    texts = random_texts(given.texts, 128)
    # TensorFlow is imported by the session alone; it goes last, so that the other is measured without it.
    result = {
        "what": "strings, token ids and TensorFlow's session beside the engine's own call",
        "date": time.strftime("%Y-%m-%d"),
        "revision": common.revision(),
        "machine": common.machine(),
        "targets": {"session adds at most, us": OVERHEAD_US, "strings to engine at least": SHARE},
        "runtimes": {},
    }
    answers = {}
    for name in given.runtimes.split(","):
        options = {"device": given.device, "precision": given.precision, "runtime": name, "max_length": 128}
        with FastBertClassifier.load(folder, **options) as classifier:
            if given.tune:
                classifier.tune()
            record = {"engine": classifier.engine, "tuned": given.tune}
            if name == "session":
                import tensorflow

                record["tensorflow"] = tensorflow.__version__
            answers[name] = classifier.predict_proba(texts[:512])
            record["latency"] = latency(classifier, given.rounds)
            record["throughput"] = throughput(classifier, texts, max(3, given.rounds // 20))
            result["runtimes"][name] = record
            print(name, json.dumps(record), flush=True)
            device = classifier.engine
    first = next(iter(answers.values()))
    result["largest_difference_between_runtimes"] = max(float(np.abs(a - first).max()) for a in answers.values())
    card = re.sub("[^a-z0-9]+", "_", device.split(" ", 1)[1].rsplit(" ", 1)[0].lower()).strip("_")
    if given.output:
        with open(given.output, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
    else:
        print(common.write_result("predict_%s_%s" % (given.precision, card), result))
    return 0 if result["largest_difference_between_runtimes"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
