"""ftbert alone on this machine: how cost grows with tokens and threads, strings against ids, loading, memory.

    python benchmarks/bench_predict.py [--precisions fp32,bf16,int8] [--threads 1,2,4] [--result NAME]

About four minutes on four processors. Calls of a second or more are timed as often as they fit, the first one included.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE)]
from common import lognormal_lengths, machine, make_model, revision, write_result  # noqa: E402

TOKENS = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768]
THREADS_TOKENS = 4096  # growth with threads is measured at so many tokens
FEW_THREADS_TOKENS = 8192  # and growth with tokens goes so far where the threads are not all there are


def seconds_of(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def time_call(call, seconds):
    """Milliseconds: {"milliseconds": median, "least", "runs"}. The first run counts only where it took a second."""
    times = [seconds_of(call)]
    if times[0] < 1.0:
        times = []
    end = time.perf_counter() + seconds
    while not times or (time.perf_counter() < end and len(times) < 1000):
        times.append(seconds_of(call))
    return {"milliseconds": statistics.median(times) * 1e3, "least": min(times) * 1e3, "runs": len(times)}


def growth(model, precision, threads, seconds, tokens_list):
    """Milliseconds of one engine call at each T, rows of at most 128 tokens."""
    from ftbert import FastBertClassifier
    from ftbert.measure import fixed_batch

    points = []
    options = {"device": "cpu", "precision": precision, "threads": threads, "runtime": "direct"}
    with FastBertClassifier.load(model, **options) as classifier:
        for tokens in tokens_list:
            length = min(tokens, 128)
            batch = fixed_batch(tokens // length, length, classifier.config.vocab_size)
            figures = time_call(lambda b=batch: classifier.predict_ids(b), seconds)
            points.append(dict(tokens=tokens, **figures))
            print(precision, threads, points[-1], flush=True)
        name = classifier.engine
    return {"engine": name, "precision": precision, "threads": threads, "points": points}


def strings_and_ids(model, precision, threads, seconds, count):
    """The same texts as strings through predict() and as ids through the engine call, by turns."""
    from ftbert import FastBertClassifier
    from ftbert.batching import plan

    characters = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)]
    random = np.random.RandomState(2)
    texts = ["".join(random.choice(characters, max(1, n - 2))) for n in lognormal_lengths(count)]
    records = {}
    for runtime in ("session", "direct"):
        options = {"device": "cpu", "precision": precision, "threads": threads, "runtime": runtime, "max_length": 128}
        with FastBertClassifier.load(model, **options) as classifier:
            batch = classifier.tokenize(texts).batch
            parts = [batch.take(group) for group in plan(np.diff(batch.row_splits), classifier.batch_tokens)]

            def run_ids(parts=parts, classifier=classifier):
                for part in parts:
                    classifier.predict_ids(part)

            run_ids()
            classifier.predict(texts)
            ids, strings = [], []
            end = time.perf_counter() + seconds
            while len(ids) < 5 or time.perf_counter() < end:
                ids.append(seconds_of(run_ids) * 1e3)
                strings.append(seconds_of(lambda c=classifier: c.predict(texts)) * 1e3)
        records[runtime] = {
            "texts": count,
            "runs": len(ids),
            "ids_ms": statistics.median(ids),
            "strings_ms": statistics.median(strings),
            "strings_over_ids": statistics.median(strings) / statistics.median(ids),
            "least_strings_over_ids": min(strings) / min(ids),
        }
        print(precision, runtime, records[runtime], flush=True)
    return records


LOADER = """
import json, sys, time, resource
runtime, model, precision, threads = sys.argv[1:5]
def peak():
    with open('/proc/self/status') as f:
        s = dict(line.split(':', 1) for line in f)
    return {k: int(s[k].split()[0]) / 1024 for k in ('VmRSS', 'VmHWM')}
if runtime == 'session':
    import tensorflow
import ftbert.predictor
before = peak()
start = time.perf_counter()
clf = ftbert.FastBertClassifier.load(model, device='cpu', precision=precision, threads=int(threads), runtime=runtime)
loaded = time.perf_counter() - start
clf.predict(['one text to classify'])
first = time.perf_counter() - start
after = peak()
print(json.dumps({'load_s': loaded, 'first_prediction_s': first, 'before_mb': before['VmRSS'],
                  'peak_above_mb': after['VmHWM'] - before['VmRSS'], 'resident_mb': after['VmRSS']}))
"""


def loading(model, precision, runtime, threads):
    """A fresh process: seconds to the first prediction and memory above the imports."""
    environment = dict(os.environ, PYTHONPATH=os.path.dirname(HERE), TF_CPP_MIN_LOG_LEVEL="3")
    runs = []
    for _ in range(3):
        start = time.perf_counter()
        command = [sys.executable, "-c", LOADER, runtime, model, precision, str(threads)]
        text = subprocess.check_output(command, env=environment, universal_newlines=True)
        record = json.loads(text.strip().splitlines()[-1])
        record["process_s"] = time.perf_counter() - start
        runs.append(record)
    best = sorted(runs, key=lambda record: record["first_prediction_s"])[1]
    print(precision, runtime, best, flush=True)
    return dict(best, precision=precision, runtime=runtime)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", default="fp32,bf16,int8")
    parser.add_argument("--threads", default=None, help="thread counts, e.g. 1,2,4; left out: 1, half of all and all")
    parser.add_argument("--seconds", type=float, default=0.5, help="how long each point is timed, at least once")
    parser.add_argument("--texts", type=int, default=64, help="texts of strings against ids")
    parser.add_argument("--longest", type=int, default=32768, help="largest T")
    parser.add_argument("--folder", default=os.path.join(tempfile.gettempdir(), "ftbert-benchmarks"))
    parser.add_argument("--result")
    arguments = parser.parse_args()
    from ftbert.checkpoint import convert, to_fp16

    cores = len(os.sched_getaffinity(0))
    threads = sorted({1, max(1, cores // 2), cores})
    if arguments.threads:
        threads = [int(n) for n in arguments.threads.split(",")]
    precisions = arguments.precisions.split(",")
    model = make_model(os.path.join(arguments.folder, "bert-base"))
    ours = os.path.join(arguments.folder, "bert-base-ftbert")
    half = os.path.join(arguments.folder, "bert-base-fp16")
    if not os.path.isdir(half):
        if not os.path.isdir(ours):
            convert(model, ours, "ftbert")
        to_fp16(ours, half)
    started = time.perf_counter()
    result = {
        "what": "ftbert alone: BERT-base, random weights, 5 labels",
        "machine": machine(),
        "revision": revision(),
        "loading": [loading(half, p, r, threads[-1]) for r in ("direct", "session") for p in precisions],
        "strings": {p: strings_and_ids(model, p, threads[-1], arguments.seconds, arguments.texts) for p in precisions},
    }
    curves = []
    for precision in precisions:
        for n in threads:
            longest = arguments.longest if n == threads[-1] else FEW_THREADS_TOKENS
            tokens = [t for t in TOKENS if t <= min(longest, arguments.longest)]
            if n not in (threads[0], threads[-1]):
                tokens = [t for t in tokens if t == THREADS_TOKENS]
            curves.append(growth(model, precision, n, arguments.seconds, tokens))
    result["growth"] = curves
    result["took_seconds"] = time.perf_counter() - started
    print("took %.0f s" % result["took_seconds"])
    if arguments.result:
        print(write_result(arguments.result, result))


if __name__ == "__main__":
    main()
