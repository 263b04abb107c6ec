"""What the tail of a queue must be: latencies at 70% of saturation of a server that costs nothing but its engine.

    python benchmarks/queue_bound.py --model base --precision int8 --threads 2

Fits the engine's time to a + b * tokens (the least of many runs, so that other work on the machine matters little),
then lets Poisson arrivals of the benchmarks' texts go through the server's own batching (ftbert.serving.ready) on a
simulated clock: no HTTP, no Python, no noise. Writes results/queue_bound_<model>_<precision>.json.
"""

import argparse
import os
import tempfile
import time
import types

import common
import numpy as np
from serve_load import MODELS, random_texts

from ftbert import FastBertClassifier
from ftbert.serving.ready import ReadyTickets, least_tokens


def cost(classifier, repeats):
    """(a, b): seconds of a batch and of each token in it, by least squares over batches of 2 to 30 texts."""
    batch = classifier.tokenize(random_texts(30, 128)).batch
    sizes, best = (2, 4, 8, 16, 30), {}
    for _ in range(repeats):
        for size in sizes:
            part = batch.take(np.arange(size))
            start = time.perf_counter()
            classifier.predict_ids(part)
            best[size] = min(best.get(size, 1e9), time.perf_counter() - start)
    tokens = np.array([int(batch.row_splits[size]) for size in sizes])
    b, a = np.polyfit(tokens, np.array([best[size] for size in sizes]), 1, w=1 / tokens)
    return max(a, 0.0), b


def simulate(a, b, batch_tokens, least, part, texts, max_wait=0.001, seed=0):
    """Latencies in seconds of single texts that arrive at `part` of the rate of full batches."""
    lengths = common.lognormal_lengths(texts, seed)
    mean = float(lengths.mean())
    saturation = 1 / (b * mean + a * mean / batch_tokens)
    arrivals = np.cumsum(np.random.RandomState(seed).exponential(1 / (part * saturation), texts))
    ready = ReadyTickets(batch_tokens, least, max_wait)
    latencies, now, came = np.zeros(texts), 0.0, 0

    def admit(until):
        nonlocal came
        while came < texts and arrivals[came] <= until:
            length = int(lengths[came])
            ready.add(
                types.SimpleNamespace(
                    index=came, want="logits", submitted=arrivals[came], abandoned=False, next_row=0,
                    tokens_left=length, started=0.0, batch=types.SimpleNamespace(row_splits=np.array([0, length])),
                )
            )  # fmt: skip
            came += 1

    while True:
        admit(now)
        due = ready.due_in(now)
        if due is None:
            if came == texts:
                return latencies
            now = arrivals[came]
            continue
        if due > 0:
            now = min(now + due, arrivals[came]) if came < texts else now + due
            continue
        taken = [ticket for ticket, _, _ in ready.take(now)]
        now += a + b * sum(ticket.tokens_left for ticket in taken)
        for ticket in taken:
            latencies[ticket.index] = now - ticket.submitted


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(MODELS), default="base")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, default=60000)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--cache", default=os.path.join(tempfile.gettempdir(), "ftbert-serve-models"))
    given = parser.parse_args()
    folder = common.make_model(os.path.join(given.cache, given.model), MODELS[given.model], num_labels=20)
    with FastBertClassifier.load(
        folder, device="cpu", precision=given.precision, threads=given.threads, runtime="direct", max_length=128
    ) as classifier:
        a, b = cost(classifier, given.repeats)
        own = least_tokens(classifier)
        name, budget = classifier.engine, classifier.batch_tokens
    policies = []
    for least in sorted({own // 2, own, 2 * own, budget}):
        latencies = 1000 * simulate(a, b, budget, least, 0.7, given.texts)
        p50, p90, p99 = np.percentile(latencies, [50, 90, 99])
        policies.append({
            "least_tokens": least, "ours": least == own, "p50_ms": round(float(p50), 2), "p90_ms": round(float(p90), 2),
            "p99_ms": round(float(p99), 2), "p99_to_p50": round(float(p99 / p50), 2),
        })  # fmt: skip
        print(policies[-1], flush=True)
    value = {
        "what": "simulated latencies of single texts at 70% of saturation: our batching, the engine's time alone",
        "date": time.strftime("%Y-%m-%d"),
        "revision": common.revision(),
        "machine": common.machine(),
        "load_average": os.getloadavg(),
        "engine": name,
        "milliseconds": {"of_a_batch": round(1000 * a, 3), "of_a_token": round(1000 * b, 4)},
        "policies": policies,
    }
    print(common.write_result("queue_bound_%s_%s" % (given.model, given.precision), value))


if __name__ == "__main__":
    main()
