"""What the tail of a queue must be: latencies at 70% of saturation of a server that costs nothing but its engine.

    python benchmarks/queue_bound.py --model base --precision int8 --threads 2

Fits the engine's time to a + b * tokens (the least of many runs, so that other work on the machine matters little),
then lets Poisson arrivals of the benchmarks' texts go through the server's own batching (ftbert.serving.ready) on a
simulated clock: no HTTP, no Python, no noise. Writes results/queue_bound_<model>_<precision>.json. Next to it stand
other sizes of batch, and batches of the oldest text and then the shortest that wait: their p99 over all texts is lower,
because it is the longest texts that wait instead, which "long_p99_ms" shows.

    python benchmarks/queue_bound.py --milliseconds 0.25 0.00034 --texts-each 64 --budget 32768 --name card

takes the engine's times (of a batch, of a token) as given, here those of an H100, and requests of 64 texts.
"""

import argparse
import os
import tempfile
import time
import types
from collections import deque

import common
import numpy as np
from serve_load import MODELS, random_texts

from ftbert import FastBertClassifier
from ftbert.serving.ready import ReadyTickets, least_tokens

LONG = 100  # tokens a text


class ShortestFirst(ReadyTickets):
    """A batch is the oldest call, then the shortest of those that wait."""

    def take(self, now):
        for want, line in self._lines.items():
            if line:
                oldest = min(line, key=lambda ticket: ticket.submitted)
                others = sorted((ticket for ticket in line if ticket is not oldest), key=lambda t: t.tokens_left)
                self._lines[want] = deque([oldest, *others])
        return super().take(now)


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


def simulate(a, b, batch_tokens, least, part, lengths, max_wait=0.001, seed=0, line=ReadyTickets):
    """Latencies in seconds of requests of `lengths` tokens that arrive at `part` of the rate of full batches."""
    texts = len(lengths)
    mean = float(lengths.mean())
    saturation = 1 / (b * mean + a * mean / batch_tokens)
    arrivals = np.cumsum(np.random.RandomState(seed).exponential(1 / (part * saturation), texts))
    ready = line(batch_tokens, least, max_wait)
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
    parser.add_argument("--texts", type=int, default=60000, help="requests, rather, with --texts-each")
    parser.add_argument("--texts-each", type=int, default=1, help="in a request")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--milliseconds", type=float, nargs=2, help="of a batch and of a token, instead of measuring")
    parser.add_argument("--budget", type=int, default=2048, help="tokens of a batch, with --milliseconds")
    parser.add_argument("--least", type=int, help="tokens of a batch, with --milliseconds; all that waits unless told")
    parser.add_argument("--cache", default=os.path.join(tempfile.gettempdir(), "ftbert-serve-models"))
    parser.add_argument("--name", help="of the result file, after queue_bound_")
    given = parser.parse_args()
    if given.milliseconds:
        a, b = (value / 1000 for value in given.milliseconds)
        budget, own, name = given.budget, given.least or given.budget, "times as given"
    else:
        folder = common.make_model(os.path.join(given.cache, given.model), MODELS[given.model], num_labels=20)
        with FastBertClassifier.load(
            folder, device="cpu", precision=given.precision, threads=given.threads, runtime="direct", max_length=128
        ) as classifier:
            a, b = cost(classifier, given.repeats)
            own = least_tokens(classifier)
            name, budget = classifier.engine, classifier.batch_tokens
    lengths = common.lognormal_lengths(given.texts * given.texts_each).reshape(given.texts, -1).sum(axis=1)
    policies = []
    sizes = sorted({own // 2, own, min(2 * own, budget), budget})
    for line, least in [(ReadyTickets, least) for least in sizes] + [(ShortestFirst, own)]:
        latencies = 1000 * simulate(a, b, budget, least, 0.7, lengths, line=line)
        p50, p90, p99, p999 = np.percentile(latencies, [50, 90, 99, 99.9])
        policies.append({
            "order": "oldest first" if line is ReadyTickets else "the oldest, then the shortest first",
            "least_tokens": least, "ours": least == own and line is ReadyTickets, "p50_ms": round(float(p50), 2),
            "p90_ms": round(float(p90), 2), "p99_ms": round(float(p99), 2), "p99_9_ms": round(float(p999), 2),
            "p99_to_p50": round(float(p99 / p50), 2),
        })  # fmt: skip
        long = latencies[lengths >= LONG]
        if given.texts_each == 1 and len(long):
            policies[-1]["long_p99_ms"] = round(float(np.percentile(long, 99)), 2)
        print(policies[-1], flush=True)
    value = {
        "what": "simulated latencies at 70% of saturation: our batching, the engine alone; long: 100 tokens and more",
        "date": time.strftime("%Y-%m-%d"),
        "revision": common.revision(),
        "machine": common.machine(),
        "load_average": os.getloadavg(),
        "engine": name,
        "texts_in_a_request": given.texts_each,
        "milliseconds": {"of_a_batch": round(1000 * a, 3), "of_a_token": round(1000 * b, 4)},
        "policies": policies,
    }
    print(common.write_result("queue_bound_" + (given.name or "%s_%s" % (given.model, given.precision)), value))


if __name__ == "__main__":
    main()
