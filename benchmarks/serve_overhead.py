"""What serving costs: processor time of the server for a request and for a text, of the tokenizer, and of the engine.

    python benchmarks/serve_overhead.py

Writes results/serve_overhead.json. For the server the engine is replaced by one that answers zeros at once. Processor
time, not elapsed time, so that other work on the machine matters little; the rates are what one core could do.
"""

import argparse
import os
import tempfile
import time

import common
from serve_load import MODELS, Server, random_texts, write_bodies, wrk


def serve(folder, texts, each, seconds, cache):
    bodies = os.path.join(cache, "bodies-overhead-%d.txt" % each)
    write_bodies(bodies, texts, each)
    with Server("no_engine", folder, {"device": "cpu", "precision": "int8", "max_length": 128, "threads": 1}) as server:
        wrk(server.url, bodies, 32, 1)
        before = server.processor_seconds()
        result = wrk(server.url, bodies, 32, seconds)
        spent = server.processor_seconds() - before
    each_request = spent / result["requests"]
    return {
        "texts_in_a_request": each,
        "processor_us_per_request": round(each_request * 1e6, 1),
        "processor_us_per_text": round(each_request / each * 1e6, 1),
        "texts_per_second_of_a_core": round(each / each_request),
        "failed_requests": result["status_errors"] + result["socket_errors"] + result["timeouts"],
    }


def tokenize(folder, texts):
    from ftbert.tokenization import Tokenizer

    tokenizer = Tokenizer.from_folder(folder)
    tokenizer.encode(texts, 128)
    before, rounds = time.process_time(), 0
    while time.process_time() - before < 3:
        tokenizer.encode(texts, 128)
        rounds += 1
    each = (time.process_time() - before) / (rounds * len(texts))
    return {"processor_us_per_text": round(each * 1e6, 2), "texts_per_second_of_a_core": round(1 / each)}


def engine(folder, precision, texts):
    """One thread of the engine: processor time from token ids to logits."""
    from ftbert import FastBertClassifier

    with FastBertClassifier.load(
        folder, runtime="direct", device="cpu", precision=precision, threads=1, max_length=128
    ) as classifier:
        batches = [classifier.tokenize(texts[start : start + 32]).batch for start in range(0, len(texts), 32)]
        classifier.predict_ids(batches[0])
        before = time.process_time()
        for batch in batches:
            classifier.predict_ids(batch)
        each = (time.process_time() - before) / len(texts)
        name = classifier.engine
    return {"engine": name, "texts_per_second_of_a_core": round(1 / each, 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--cache", default=os.path.join(tempfile.gettempdir(), "ftbert-serve-models"))
    given = parser.parse_args()
    folder = common.make_model(os.path.join(given.cache, "small"), MODELS["small"], num_labels=20)
    base = common.make_model(os.path.join(given.cache, "base"), MODELS["base"], num_labels=20)
    texts = random_texts(4096, 128)
    engines = {"base " + precision: engine(base, precision, texts[:128]) for precision in ("int8", "bf16", "fp32")}
    engines["small int8"] = engine(folder, "int8", texts[:512])
    value = {
        "what": "processor time of the server without its engine, of the tokenizer, and of one thread of the engine",
        "texts": "20 labels; lognormal lengths, mean about 47 tokens",
        "date": time.strftime("%Y-%m-%d"),
        "revision": common.revision(),
        "machine": common.machine(),
        "load_average": os.getloadavg(),
        "engines": engines,
        "tokenizer": tokenize(folder, texts),
        "server": [serve(folder, texts, each, given.seconds, given.cache) for each in (1, 8, 32, 128)],
    }
    print(engines, value["tokenizer"], *value["server"], sep="\n")
    print(common.write_result("serve_overhead", value))


if __name__ == "__main__":
    main()
