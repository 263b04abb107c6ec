"""A long time of random texts at load: does the server's memory grow, does a request fail?

    python benchmarks/serve_soak.py --minutes 10 --model small --precision int8

Writes results/serve_soak.json (or --name). wrk sends, 64 connections without a pause; memory is read from /proc every
two seconds.
Drift compares the median of the last quarter with that of the second (the first, in which buffers grow, is warm-up).
"""

import argparse
import os
import tempfile
import threading
import time

import common
import numpy as np
from serve_load import MODELS, Server, random_texts, write_bodies, wrk


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--model", choices=sorted(MODELS), default="small")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--texts", type=int, default=1, help="in a request")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--wrk-threads", type=int, default=1)
    parser.add_argument("--name", default="serve_soak", help="of the result file")
    parser.add_argument("--cache", default=os.path.join(tempfile.gettempdir(), "ftbert-serve-models"))
    given = parser.parse_args()
    folder = common.make_model(os.path.join(given.cache, given.model), MODELS[given.model], num_labels=20)
    options = {"device": given.device, "precision": given.precision, "max_length": 128, "timeout_s": 60}
    options["max_queue_texts"] = max(8192, 2 * given.connections * given.texts)
    if given.threads:
        options["threads"] = given.threads
    bodies = os.path.join(given.cache, "bodies-soak-%d.txt" % given.texts)
    write_bodies(bodies, random_texts(50000, 128, seed=7), given.texts)
    samples, stop = [], threading.Event()
    seconds = int(given.minutes * 60)
    with Server("ftbert", folder, options) as server:

        def watch():
            while not stop.wait(2):
                samples.append(server.resident_mb())

        watcher = threading.Thread(target=watch)
        watcher.start()
        result = wrk(server.url, bodies, given.connections, seconds, threads=given.wrk_threads)
        stop.set()
        watcher.join()
    quarter = len(samples) // 4
    second, last = np.median(samples[quarter : 2 * quarter]), np.median(samples[-quarter:])
    failed = result["status_errors"] + result["socket_errors"] + result["timeouts"]
    value = {
        "what": "resident memory and failures of the server under random texts at full load",
        "date": time.strftime("%Y-%m-%d"),
        "revision": common.revision(),
        "machine": common.machine(),
        "load_average": os.getloadavg(),
        "settings": {key: item for key, item in vars(given).items() if key not in ("cache", "name")},
        "minutes": round(result["seconds"] / 60, 2),
        "texts_per_second": round(result["requests_per_second"] * given.texts, 1),
        "load": result,
        "resident_mb": {
            "second_quarter": round(float(second), 1),
            "last_quarter": round(float(last), 1),
            "most": round(max(samples), 1),
            "every_20_s": [round(sample, 1) for sample in samples[::10]],
        },
        "drift_percent": round(100 * float(last / second - 1), 2),
        "failed_requests": failed,
        "exit_status": server.status,
    }
    print({key: value[key] for key in ("minutes", "resident_mb", "drift_percent", "failed_requests", "exit_status")})
    print(common.write_result(given.name, value))


if __name__ == "__main__":
    main()
