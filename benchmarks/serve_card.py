"""What the HTTP server adds on a fast card: its latencies in front of an engine that waits as long as an H100 works.

    python benchmarks/serve_card.py

Requests of 64 texts, saturation and 70% of it, by wrk on the same machine; once with the times of an H100 in
docs/benchmarks.md alone, and with some milliseconds more for every size of batch that the engine has not had, which is
what recording a graph or choosing a kernel costs. Writes results/serve_card.json.
"""

import argparse
import os
import tempfile
import time
import types

import common
import numpy as np
from serve_load import MODELS, Server, at_part, random_texts, write_bodies, wrk

# BERT-base in fp16 on an H100: 0.25 ms for 32 tokens, 1.54 for 4,096, 11.4 for 32,768.
TIMES = {"batch": 0.25, "token": 0.00034}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=64, help="in a request")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=int, default=6)
    parser.add_argument("--first", type=float, nargs="*", default=[0, 20], help="ms for a new size")
    parser.add_argument("--cache", default=os.path.join(tempfile.gettempdir(), "ftbert-serve-models"))
    given = parser.parse_args()
    folder = common.make_model(os.path.join(given.cache, "small"), MODELS["small"], num_labels=20)
    texts = random_texts(4096, 128)
    bodies = os.path.join(given.cache, "bodies-%d.txt" % given.texts)
    write_bodies(bodies, texts, given.texts)
    runs = []
    for first in given.first:
        options = {
            "card": dict(TIMES, first=first), "device": "cpu", "precision": "int8", "threads": 1, "max_length": 128,
            "max_queue_texts": 100000, "timeout_s": 60,
        }  # fmt: skip
        with Server("card", folder, options) as server:
            full = wrk(server.url, bodies, given.connections, given.seconds)
            before = server.processor_seconds()
            settings = types.SimpleNamespace(connections=given.connections, seconds=given.seconds, wrk_threads=1)
            part = at_part(server, bodies, full["requests_per_second"], settings)
            spent = server.processor_seconds() - before
        runs.append({
            "ms_for_a_new_size": first,
            "texts_per_second": round(full["requests_per_second"] * given.texts),
            "saturation": full,
            "at_70_percent": part,
            "processors_at_70_percent": round(spent / (given.seconds + 6), 2),
        })  # fmt: skip
        print({key: part[key] for key in ("p50_ms", "p90_ms", "p99_ms", "p99_to_p50")}, flush=True)
    mean = float(np.mean([len(text) + 2 for text in texts]))
    value = {
        "what": "the HTTP server in front of an engine that waits as long as an H100 works, fp16 BERT-base",
        "date": time.strftime("%Y-%m-%d"),
        "revision": common.revision(),
        "machine": common.machine(),
        "load_average": os.getloadavg(),
        "engine_ms": dict(TIMES, of_a_request=round(TIMES["batch"] + TIMES["token"] * mean * given.texts, 3)),
        "texts_in_a_request": given.texts,
        "runs": runs,
    }
    print(common.write_result("serve_card", value))


if __name__ == "__main__":
    main()
