"""Eight threads give one card batches of random rows for ten minutes: no wrong row, no growth of memory.

    python benchmarks/soak_gpu.py                                      # ten minutes, BERT-base, fp16
    python benchmarks/soak_gpu.py --device cpu --precision int8 --model small --seconds 20      # a dry run

Rows of 1 .. 512 tokens are run alone first; whatever batch they come back in, their logits must be the same to
rounding. Batches have 1 to 600 rows, most of them few, half of them short rows alone. Device memory, resident memory,
threads and open files are noted ten times a minute; growth is counted from a fifth of the time on, when every graph
and workspace is made. Time in which the process was stopped (SIGSTOP) does not count. The engine's switches
(FTBERT_CUDA_DISABLE, docs/roofline.md) say what a failure comes from. Writes results/soak_<precision>_<device>.json;
exits 1 on a wrong row or growth.
"""

import argparse
import concurrent.futures
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE)]

import common  # noqa: E402
from serve_load import MODELS  # noqa: E402

from ftbert import FastBertClassifier  # noqa: E402
from ftbert.batching import PackedBatch  # noqa: E402

TOLERANCE = {"fp32": 1e-3, "fp16": 0.03, "bf16": 0.25, "fp8": 0.5, "int8": 0.5}
LARGEST = 600  # rows of a batch
SHORT = 128  # tokens; batches of nothing longer take kernels of their own
GROWTH_MIB = 64  # of the card or of the process, of what both hold: gigabytes and a gigabyte


def device_mib():
    """MiB that this process holds on the first card; what anyone holds there where that is not told; or None."""
    for query in ("--query-compute-apps=pid,used_memory", "--query-gpu=index,memory.used"):
        command = ["nvidia-smi", query, "--format=csv,noheader,nounits", "--id=0"]
        try:
            lines = subprocess.check_output(command, universal_newlines=True).splitlines()
            found = {int(first): int(second) for first, second in (line.split(",") for line in lines)}
        except (OSError, subprocess.CalledProcessError, ValueError):
            continue
        wanted = os.getpid() if "compute-apps" in query else 0
        if wanted in found:
            return found[wanted]
    return None


def sample():
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return {
        "device_mib": device_mib(),
        "resident_mib": round(resident, 1),
        "threads": len(os.listdir("/proc/self/task")),
        "files": len(os.listdir("/proc/self/fd")),
    }


class Soak:
    """Rows with their known answers, and what the threads count."""

    def __init__(self, classifier, count, seed=0):
        random = np.random.RandomState(seed)
        longest = classifier.config.max_position_embeddings
        lengths = np.minimum(common.lognormal_lengths(count, seed), longest)
        lengths[: count // 8] = random.randint(1, longest + 1, count // 8)
        self.rows = [random.randint(0, classifier.config.vocab_size, n).astype(np.int32) for n in lengths]
        self.short = np.flatnonzero(lengths <= SHORT)
        self.classifier = classifier
        self.alone = np.concatenate([classifier.predict_ids(self.batch([i])) for i in range(count)])
        self.stop = threading.Event()
        self.calls, self.texts, self.wrong, self.errors, self.worst = [0] * 8, [0] * 8, [], [], [0.0] * 8

    def batch(self, chosen):
        rows = [self.rows[i] for i in chosen]
        splits = np.zeros(len(rows) + 1, np.int32)
        np.cumsum([len(row) for row in rows], out=splits[1:])
        ids = np.concatenate(rows)
        return PackedBatch(ids, np.zeros_like(ids), splits)

    def make_room(self):
        """Runs a batch larger than any to come (a quarter more rows, the long ones among them) in more threads than an
        engine works in at once, so that what grows later is no room for a larger batch."""
        large = self.batch(np.arange(LARGEST * 5 // 4) % len(self.rows))
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(self.classifier.predict_ids, [large] * 8))  # an error is raised here

    def work(self, number, tolerance):
        random = np.random.RandomState(1000 + number)
        try:
            while not self.stop.is_set():
                most = (4, 4, 4, 32, 32, 128, 128, LARGEST)[random.randint(8)]
                among = self.short if random.randint(2) else np.arange(len(self.rows))
                chosen = random.choice(among, random.randint(1, most + 1))
                logits = self.classifier.predict_ids(self.batch(chosen))
                off = np.abs(logits - self.alone[chosen]).max(axis=1)
                self.worst[number] = max(self.worst[number], float(off.max()))
                bad = ~(off <= tolerance)
                if bad.any():
                    tokens = sum(len(self.rows[i]) for i in chosen)
                    what = [number, self.calls[number], float(off.max()), len(chosen), tokens, int(bad.sum())]
                    self.wrong.append(what)
                self.calls[number] += 1
                self.texts[number] += len(chosen)
        except Exception as error:  # noqa: BLE001 - counted; the others go on
            self.errors.append(repr(error)[:300])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--model", choices=sorted(MODELS), default="base")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--cache", default=os.path.join(tempfile.gettempdir(), "ftbert-serve-models"))
    parser.add_argument("--output", help="rewritten at every sample")
    given = parser.parse_args()
    folder = common.make_model(os.path.join(given.cache, given.model), MODELS[given.model], num_labels=20)
    options = {"device": given.device, "precision": given.precision, "runtime": "direct"}
    classifier = FastBertClassifier.load(folder, **options)
    soak = Soak(classifier, 1024 if given.device != "cpu" else 64)
    soak.make_room()
    apart = float(np.median(np.abs(soak.alone - np.roll(soak.alone, 1, axis=0)).max(axis=1)))
    tolerance = min(TOLERANCE[given.precision], apart / 2)  # another row's answer would show
    card = re.sub("[^a-z0-9]+", "_", classifier.engine.split(" ", 1)[1].rsplit(" ", 1)[0].lower()).strip("_")
    output = given.output or os.path.join(common.RESULTS, "soak_%s_%s.json" % (given.precision, card))
    result = {
        "what": "eight threads, batches of 1 to 600 random rows of 1 to 512 tokens, half of them of short rows alone, "
        "on one engine",
        "date": time.strftime("%Y-%m-%d"),
        "revision": common.revision(),
        "machine": common.machine(),
        "engine": classifier.engine,
        "switches": {key: os.environ[key] for key in sorted(os.environ) if key.startswith("FTBERT_CUDA_")},
        "tolerance": tolerance,
        "rows_apart": apart,
    }
    threads = [threading.Thread(target=soak.work, args=(i, tolerance), daemon=True) for i in range(8)]
    for thread in threads:
        thread.start()
    samples, active, last = [], 0.0, time.monotonic()
    good = False
    while active < given.seconds and not soak.errors:
        time.sleep(min(1.0, given.seconds / 20))
        now = time.monotonic()
        active += min(now - last, 2.0)  # a longer step: the process was stopped
        last = now
        if not samples or active - samples[-1]["second"] >= min(6.0, given.seconds / 20):
            samples.append(dict(sample(), second=round(active, 1)))
            good = summarize(soak, samples, active, result)
            with open(output + ".tmp", "w", encoding="utf-8") as file:
                json.dump(result, file, indent=1)
            os.replace(output + ".tmp", output)
    soak.stop.set()
    for thread in threads:
        thread.join(120)
    classifier.close()
    print(json.dumps({key: value for key, value in result.items() if key != "samples"}))
    return 0 if good else 1


def summarize(soak, samples, active, result):
    """Fills `result`; whether all is well so far."""
    settled = [s for s in samples if s["second"] >= active / 5] or samples
    quarter = max(1, len(settled) // 4)
    growth = {}
    for key in ("device_mib", "resident_mib", "threads", "files"):
        if settled[0][key] is not None:
            values = [s[key] for s in settled]
            growth[key] = round(statistics.median(values[-quarter:]) - statistics.median(values[:quarter]), 1)
    result.update(
        wrong_rows_are="of a batch: thread, its call, largest difference, rows, tokens, wrong rows",
        seconds=round(active, 1),
        calls=sum(soak.calls),
        texts=sum(soak.texts),
        wrong_rows=soak.wrong[:20],
        errors=soak.errors,
        largest_difference=max(soak.worst),
        growth_after_the_first_fifth=growth,
        samples=samples,
    )
    small = all(growth.get(key, 0) <= GROWTH_MIB for key in ("device_mib", "resident_mib"))
    return small and not soak.wrong and not soak.errors


if __name__ == "__main__":
    sys.exit(main())
