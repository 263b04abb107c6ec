"""Load on the HTTP server by wrk, next to the bare predictor, a plain FastAPI app and padded batches, in one run.

    python benchmarks/serve_load.py --model base --precision int8 --threads 4 --seconds 10

Writes results/serve_<model>_<precision>_<cpu or card>.json: texts per second of each at saturation and their ratios to
the bare predictor's, and latencies at 70% of saturation. Needs wrk, ftbert[serve] and fastapi; all stays on this
machine.
"""

import argparse
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import common
import numpy as np

SMALL = dict(common.BASE, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
MODELS = {"small": SMALL, "base": common.BASE}
KINDS = ("ftbert", "one_by_one", "padded")
LUA = os.path.join(common.HERE, "serve_load.lua")


def python_path():
    """This checkout before what the caller's PYTHONPATH names."""
    return os.pathsep.join(filter(None, [os.path.dirname(common.HERE), os.environ.get("PYTHONPATH")]))


class Server:
    """serve_apps.py in a process; `with` stops it by SIGTERM."""

    def __init__(self, kind, folder, options):
        environment = dict(os.environ, PYTHONPATH=python_path())
        command = [sys.executable, os.path.join(common.HERE, "serve_apps.py"), kind, folder, json.dumps(options)]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, universal_newlines=True
        )
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line)
            found = re.search(r"Serving .* at (http://\S+)", line)
            if found:
                self.url = found.group(1)
                break
        else:
            raise RuntimeError("The server did not start: " + "".join(self.lines))
        host, port = self.url.rsplit("/", 1)[1].split(":")
        for _ in range(200):
            try:
                socket.create_connection((host, int(port)), 5).close()
                break
            except OSError:
                time.sleep(0.05)
        self._reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True)
        self._reader.start()

    def processor_seconds(self):
        with open("/proc/%d/stat" % self.process.pid) as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mb(self):
        with open("/proc/%d/statm" % self.process.pid) as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.process.send_signal(signal.SIGTERM)
        self.status = self.process.wait(60)


def random_texts(count, max_length, seed=0):
    """Chinese-like texts, one token a character, of the lengths that short real texts have."""
    random = np.random.RandomState(seed)
    lengths = np.minimum(common.lognormal_lengths(count, seed), max_length) - 2
    return ["".join(chr(code) for code in random.randint(0x4E00, 0x4E00 + 6000, length)) for length in lengths]


def write_bodies(path, texts, each):
    with open(path, "w", encoding="utf-8") as file:
        for start in range(0, len(texts) - each + 1, each):
            file.write(json.dumps({"inputs": [[text] for text in texts[start : start + each]]}) + "\n")


def wrk(url, bodies, connections, seconds, pause_ms=0.0, threads=1):
    command = ["wrk", "-t%d" % threads, "-c%d" % connections, "-d%ds" % seconds, "--timeout", "30s", "-s", LUA, url]
    command += ["--", bodies, "/predict", "%.4f" % pause_ms]
    output = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True).stdout
    found = re.search(r"^\{.*\}$", output, re.M)
    if not found:
        raise RuntimeError("wrk: " + output)
    result = json.loads(found.group(0))
    result["requests_per_second"] = round(result["requests"] / result["seconds"], 2)
    return result


def bare(folder, options, texts, seconds):
    """Texts per second and processor seconds per text of one big predict in a process of its own, and the engine."""
    code = (
        "import json, sys, time; from ftbert import FastBertClassifier\n"
        "folder, options, texts, seconds = json.load(sys.stdin)\n"
        "classifier = FastBertClassifier.load(folder, runtime='direct', **options)\n"
        "classifier.predict(texts[:200])\n"
        "done, began, processor = 0, time.perf_counter(), time.process_time()\n"
        "while time.perf_counter() - began < seconds:\n"
        "    classifier.predict(texts); done += len(texts)\n"
        "spent = (time.process_time() - processor) / done\n"
        "print(json.dumps([done / (time.perf_counter() - began), spent, classifier.engine]))\n"
    )
    environment = dict(os.environ, PYTHONPATH=python_path())
    output = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps([folder, options, texts, seconds]), env=environment,
        stdout=subprocess.PIPE, universal_newlines=True, check=True,
    ).stdout  # fmt: skip
    return json.loads(output)


def device_name(device, engine):
    """ "cpu", or the card's name as in "cuda:0 NVIDIA H100 80GB HBM3 fp16", in letters that a file name may have."""
    if device == "cpu":
        return device
    return re.sub("[^a-z0-9]+", "_", engine.split(" ", 1)[1].rsplit(" ", 1)[0].lower()).strip("_")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(MODELS), default="small")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of the engine")
    parser.add_argument("--texts", type=int, default=1, help="in a request")
    parser.add_argument("--connections", type=int, default=128)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--wrk-threads", type=int, default=1)
    parser.add_argument("--kinds", default=",".join(KINDS), help="of servers; %(default)s unless told")
    parser.add_argument("--cache", default=os.path.join(tempfile.gettempdir(), "ftbert-serve-models"))
    parser.add_argument("--name", help="of the result file")
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("Expected wrk on the path (Debian: apt-get install wrk).")
    folder = common.make_model(os.path.join(given.cache, given.model), MODELS[given.model], num_labels=20)
    load = {"device": given.device, "precision": given.precision, "max_length": given.max_length}
    if given.threads:
        load["threads"] = given.threads
    serve = dict(load, max_queue_texts=100000, timeout_s=60)
    texts = random_texts(4096, given.max_length)
    bodies = os.path.join(given.cache, "bodies-%d.txt" % given.texts)
    write_bodies(bodies, texts, given.texts)
    kinds = given.kinds.split(",")
    # One predict of about a second, so that its beginning and end count for little.
    sample = texts[:512] if given.device == "cpu" else texts * 16
    rates = {kind: [] for kind in ["bare"] + kinds}
    processor = {kind: [] for kind in rates}
    latencies = {}
    failed = 0
    steady = None
    for round_ in range(given.rounds):
        rate, spent, engine = bare(folder, load, sample, given.seconds)
        rates["bare"].append(rate)
        processor["bare"].append(spent)
        for kind in kinds:
            with Server(kind, folder, serve if kind != "one_by_one" else load) as server:
                wrk(server.url, bodies, given.connections, 2, threads=given.wrk_threads)
                before = server.processor_seconds()
                result = wrk(server.url, bodies, given.connections, given.seconds, threads=given.wrk_threads)
                spent = server.processor_seconds() - before
                processor[kind].append(spent / result["requests"] / given.texts)
                rates[kind].append(result["requests_per_second"] * given.texts)
                latencies[kind] = result
                failed += result["status_errors"] + result["socket_errors"] + result["timeouts"]
                if kind == "ftbert" and round_ == given.rounds - 1:
                    steady = at_part(server, bodies, result["requests_per_second"], given)
            print(kind, rates[kind], flush=True)
        print("bare", rates["bare"], flush=True)
    medians = {kind: float(np.median(values)) for kind, values in rates.items()}
    value = {
        "what": "texts per second over HTTP at saturation, next to one big predict of the same texts in one process",
        "date": time.strftime("%Y-%m-%d"),
        "revision": common.revision(),
        "machine": common.machine(),
        "load_average": os.getloadavg(),
        "engine": engine,
        "settings": {key: value for key, value in vars(given).items() if key not in ("cache", "name")},
        "texts_per_second": {kind: [round(rate, 1) for rate in values] for kind, values in rates.items()},
        "ratio_to_bare": {kind: round(median / medians["bare"], 3) for kind, median in medians.items()},
        "processor_ms_per_text": {
            kind: round(1000 * float(np.median(values)), 3) for kind, values in processor.items()
        },
        **{
            "ratio_to_" + kind: round(medians["ftbert"] / medians[kind], 2)
            for kind in ("one_by_one", "padded")
            if kind in medians and "ftbert" in medians
        },
        "saturation": latencies,
        "at_70_percent": steady,
        "failed_requests": failed,
    }
    name = given.name or "serve_%s_%s_%s" % (given.model, given.precision, device_name(given.device, engine))
    print(
        json.dumps(
            {key: value[key] for key in ("ratio_to_bare", "processor_ms_per_text", "at_70_percent", "failed_requests")},
            indent=1,
        )
    )
    print(common.write_result(name, value))


def at_part(server, bodies, saturation, given, part=0.7, mean_pause=2.0):
    """Latencies under a Poisson stream of 70% of the saturation's rate: many connections with long pauses, but not so
    long that the server closes them."""
    rate = part * saturation
    connections = min(4 * given.connections, math.ceil(mean_pause * rate))
    latency = 0.01
    time.sleep(1)  # what was under way at saturation
    for seconds in (5, 5, given.seconds):  # a connection's next request comes a pause and a latency after the last
        pause = max(0.0, connections / rate - latency)
        result = wrk(server.url, bodies, connections, seconds, pause * 1000, threads=given.wrk_threads)
        latency = result["p50_ms"] / 1000
    result["part_of_saturation"] = round(result["requests_per_second"] / saturation, 3)
    result["p99_to_p50"] = round(result["p99_ms"] / result["p50_ms"], 2)
    return result


if __name__ == "__main__":
    main()
