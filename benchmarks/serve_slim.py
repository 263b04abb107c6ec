"""What a server costs before it has answered anything: memory, the time to the first answer, and what threads reach.

    python benchmarks/serve_slim.py

Writes results/serve_slim.json: for BERT-base in int8, seconds from the process's start to the first answer over HTTP
and resident memory after 200 requests (how much of it is the process's own); the same for the import alone; and the
throughput of 200 threads that each call predict with one text, next to one big predict.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import common
from serve_load import MODELS, Server, random_texts


def ask(url, text):
    body = json.dumps({"inputs": text}).encode()
    request = urllib.request.Request(url + "/predict", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


def memory_mb(pid):
    """Resident and private megabytes."""
    values = {}
    with open("/proc/%d/smaps_rollup" % pid) as file:
        for line in file:
            parts = line.split()
            if len(parts) >= 2 and parts[1].isdigit():
                values[parts[0].rstrip(":")] = int(parts[1]) * 1024 / 1e6
    private = values["Private_Clean"] + values["Private_Dirty"]
    return {"resident": round(values["Rss"], 1), "private": round(private, 1)}


def serve_once(folder, options, texts):
    began = time.perf_counter()
    with Server("ftbert", folder, options) as server:
        ask(server.url, texts[0])
        first = time.perf_counter() - began
        after_first = memory_mb(server.process.pid)
        for text in texts[1:200]:
            ask(server.url, text)
        later = memory_mb(server.process.pid)
        with open("/proc/%d/maps" % server.process.pid) as file:
            tensorflow = "tensorflow" in file.read()
    return {"seconds_to_first_answer": round(first, 3), "mb_after_first": after_first, "mb_after_200": later,
            "tensorflow_in_process": tensorflow}  # fmt: skip


def import_cost():
    code = "import time; a = time.perf_counter(); from ftbert import FastBertClassifier; b = time.perf_counter() - a\n"
    code += "print(b, [l.split()[1] for l in open('/proc/self/status') if l.startswith('VmRSS')][0])"
    environment = dict(os.environ, PYTHONPATH=os.path.dirname(common.HERE))
    outputs = [subprocess.check_output([sys.executable, "-c", code], env=environment).split() for _ in range(5)]
    seconds, kilobytes = min((float(seconds), int(kilobytes)) for seconds, kilobytes in outputs)
    return {"seconds": round(seconds, 4), "resident_mb": round(kilobytes * 1024 / 1e6, 1)}


def threads_against_one(folder, options, texts, count=200):
    """Texts per second: `count` threads with one text a call, and one call with all; alternating, medians of 5."""
    from ftbert import FastBertClassifier
    from ftbert.serving import BatchingPredictor

    rates = {"one_predict": [], "threads": []}
    with BatchingPredictor(FastBertClassifier.load(folder, runtime="direct", **options)) as queue:
        classifier = queue.predictor
        classifier.predict(texts[:100])
        for _ in range(5):
            began = time.perf_counter()
            classifier.predict(texts)
            rates["one_predict"].append(len(texts) / (time.perf_counter() - began))
            start = threading.Barrier(count + 1)

            def call(first, start=start):
                start.wait()
                for text in texts[first::count]:
                    queue.predict([text])

            threads = [threading.Thread(target=call, args=(first,)) for first in range(count)]
            for thread in threads:
                thread.start()
            start.wait()
            began = time.perf_counter()
            for thread in threads:
                thread.join()
            rates["threads"].append(len(texts) / (time.perf_counter() - began))
    medians = {name: sorted(values)[2] for name, values in rates.items()}
    return {
        "threads": count,
        "texts": len(texts),
        "texts_per_second": {name: [round(value, 1) for value in values] for name, values in rates.items()},
        "ratio": round(medians["threads"] / medians["one_predict"], 3),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default=os.path.join(tempfile.gettempdir(), "ftbert-serve-models"))
    given = parser.parse_args()
    base = common.make_model(os.path.join(given.cache, "base"), MODELS["base"], num_labels=20)
    small = common.make_model(os.path.join(given.cache, "small"), MODELS["small"], num_labels=20)
    options = {"device": "cpu", "precision": "int8", "max_length": 128}
    texts = random_texts(4000, 128)
    converted = os.path.join(given.cache, "base-ftbert")
    if not os.path.exists(converted):
        from ftbert import FastBertClassifier

        with FastBertClassifier.load(base, runtime="direct", precision="fp32", device="cpu") as classifier:
            classifier.save(converted)
    value = {
        "what": "the cost of a server of BERT-base in int8 on the CPU, of the import, and of 200 threads",
        "date": time.strftime("%Y-%m-%d"),
        "revision": common.revision(),
        "machine": common.machine(),
        "load_average": os.getloadavg(),
        "import": import_cost(),
        "server_of_fp32_safetensors": [serve_once(base, options, texts) for _ in range(3)],
        "server_of_ftbert_folder": [serve_once(converted, options, texts) for _ in range(3)],
        "threads_small_int8": threads_against_one(small, options, texts),
    }
    print(json.dumps({key: value[key] for key in list(value)[4:]}, indent=1))
    print(common.write_result("serve_slim", value))


if __name__ == "__main__":
    main()
