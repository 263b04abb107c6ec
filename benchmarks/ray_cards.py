"""Ray on real cards: files through an actor on each card while a worker or a node is killed, then a Serve deployment.

    python benchmarks/ray_cards.py                                   # up to four of the cards that are visible
    python benchmarks/ray_cards.py --device cpu --model tiny --cards 2 --rows 20000

A Ray cluster is made on this machine: a head without cards and a node for each card. The same rows go through
`ftbert.distributed.predict` as Parquet (one actor's process is killed half way), as CSV (one node is killed half way;
where it was the only one with a card another joins) and as JSON lines (nothing is killed). Every row must come out
once, unchanged, with the label and score that one predictor in a process of its own gives its text. Then
`ftbert.distributed.deployment` runs with a replica on each card: answers through handles and HTTP are compared
likewise, and one replica is killed under load. Writes results/ray_cards_<card>.json and exits 1 where anything was
lost, repeated, wrong, or ran on fewer cards than there are.
"""

import argparse
import concurrent.futures
import glob
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

import common
import numpy as np
from multi_gpu import MODELS, cards
from ray_cluster import RayCluster, Watch, processes
from ray_rows import Expected, check_output, write_input
from serve_load import device_name, random_texts

from ftbert import FastBertClassifier
from ftbert.distributed import deployment, predict

REQUEST = 64  # texts


def reference(folder, load, texts):
    """The visible cards, the engine, every text's scores, the labels, and texts per second; in a process of its own,
    so that the driver holds no card."""
    with FastBertClassifier.load(folder, runtime="direct", **load) as classifier:
        classifier.predict(texts[:256])
        began = time.perf_counter()
        scores = classifier.predict_proba(texts)
        rate = len(texts) / (time.perf_counter() - began)
        return sorted(cards()), classifier.engine, np.asarray(scores), list(classifier.labels), rate


def offline(cluster, kind, fault, given, ids, folder, expected, options):
    """One input through the actors, with a fault when a third of it is written."""
    work = tempfile.mkdtemp(prefix="ray-cards-")
    source, output = os.path.join(work, "in"), os.path.join(work, "out")
    rows = given.rows * len(ids)
    write_input(kind, source, rows, 4 * len(ids), expected)
    problem = []

    def run():
        try:
            predict(
                source, folder, output, batch_rows=given.batch_rows, workers=len(ids), progress=False,
                cpus_per_worker=1, device=options["device"], precision=options["precision"],
                max_length=options["max_length"],
            )  # fmt: skip
        except BaseException as error:  # noqa: BLE001 - it is in the result
            problem.append("%s: %s" % (type(error).__name__, str(error)[-2000:]))

    watch = Watch("_Worker", ids)
    watch.start()
    thread = threading.Thread(target=run, daemon=True)
    began = time.perf_counter()
    first = killed_at = None
    thread.start()
    while thread.is_alive() and time.perf_counter() - began < given.patience:
        done = len(glob.glob(os.path.join(work, ".out.writing-*", "*." + kind)))
        if done and first is None:
            first = time.perf_counter()
        if fault and killed_at is None and done * 8 * given.batch_rows >= rows / 3:
            killed_at = done
            if fault == "worker":
                os.kill(processes("_Worker")[-1], signal.SIGKILL)
            else:
                cluster.kill_node()
        time.sleep(0.02)
    ended = time.perf_counter()
    hangs = thread.is_alive()
    if hangs:  # it would go on beside the next part
        raise RuntimeError(
            "%s: not done after %g s; %s written when something was killed" % (kind, given.patience, killed_at)
        )
    value = {"input": kind, "killed": fault, "rows_in": rows, **watch.finish()}
    value.update(check_output(kind, output, rows, expected))
    parts = len(glob.glob(os.path.join(output, "*." + kind)))
    value.update(
        files=parts, files_written_when_killed=killed_at, seconds=round(ended - began, 2),
        seconds_from_first_file=round(ended - first, 2) if first else None, error=problem[0] if problem else None,
    )  # fmt: skip
    value["right"] = bool(
        not problem and value["rows_out"] == rows
        and not any(value[key] for key in ("lost", "repeated", "changed", "wrong_answers"))
        and (not fault or killed_at is not None and 0 < killed_at < parts)
        and (not fault or value["actors_in_all"] > value["actors_at_a_time"] or fault == "node")
        and value["actors_at_a_time"] >= len(ids)
        and (options["device"] == "cpu" or value["cards_at_work"] in (None, len(ids)))
    )  # fmt: skip
    shutil.rmtree(work, ignore_errors=True)
    return value


def start_workers(folder, options, cards):
    """A few rows through the actors, so that the first part does not wait for imports on a cold disk."""
    import ray.data

    rows = ray.data.from_items([{"text": "a"}] * 64)
    names = ("device", "precision", "max_length")
    arguments = {name: options[name] for name in names}
    predict(rows, folder, workers=cards, cpus_per_worker=1, progress=False, **arguments).take_all()


def online(given, ids, folder, expected, options):
    """A replica on each card: handles, HTTP, and one replica killed under load."""
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    watch = Watch("Replica", ids)
    watch.start()
    began = time.perf_counter()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        application = deployment(
            folder, min_replicas=len(ids), max_replicas=len(ids), num_cpus=1,
            num_gpus=0 if options["device"] == "cpu" else 1, precision=options["precision"],
            max_length=options["max_length"], ray_options={"health_check_period_s": 2},
        )  # fmt: skip
        handle = serve.run(application, name="app", route_prefix="/")
        ready = time.perf_counter() - began
        groups = [
            np.arange(start, start + REQUEST) % len(expected.texts)
            for start in range(0, given.requests * len(ids) * REQUEST, REQUEST)
        ]

        def send(group):
            return group, handle.predict.remote([expected.texts[index] for index in group])

        def take(sent):
            group, answer = sent
            got = answer.result(timeout_s=60)
            return expected.wrong(group, [label for label, _, _ in got], [score for _, score, _ in got])

        def load(groups, kill_at=None):
            """A window of requests under way; (wrong answers, requests that failed, seconds)."""
            wrong, failures, under_way = 0, [], []
            start = time.perf_counter()
            for number, group in enumerate(groups):
                if number == kill_at:
                    os.kill(processes("Replica")[-1], signal.SIGKILL)
                under_way.append(send(group))
                while len(under_way) >= 32 * len(ids) or number == len(groups) - 1 and under_way:
                    try:
                        wrong += take(under_way.pop(0))
                    except Exception as error:  # noqa: BLE001 - it is in the result
                        failures.append(type(error).__name__)
            return wrong, failures, time.perf_counter() - start

        load(groups[: 8 * len(ids)])
        wrong, failures, seconds = load(groups)
        value = {
            "replicas": len(processes("Replica")), "seconds_until_ready": round(ready, 2), "requests": len(groups),
            "texts_in_a_request": REQUEST, "texts_per_second": round(len(groups) * REQUEST / seconds, 1),
            "failed_requests": len(failures), "wrong_answers": wrong, "http": _http(port, expected),
        }  # fmt: skip
        wrong, failures, _ = load(groups, kill_at=len(groups) // 3)
        killed = time.perf_counter()
        while len(processes("Replica")) < len(ids) and time.perf_counter() - killed < given.patience:
            time.sleep(0.1)
        again, late, _ = _patient(load, groups[: 8 * len(ids)], given.patience)
        value["a_replica_killed"] = {
            "requests": len(groups), "failed_requests": len(failures), "errors": sorted(set(failures)),
            "wrong_answers": wrong + again, "replicas_afterwards": len(processes("Replica")),
            "failed_afterwards": len(late),
        }  # fmt: skip
        value.update(watch.finish())
        after = value["a_replica_killed"]
        value["right"] = bool(
            not value["failed_requests"] and not value["wrong_answers"] and value["http"] == [True, 400]
            and value["replicas"] == len(ids) and not after["wrong_answers"] and not after["failed_afterwards"]
            and after["replicas_afterwards"] == len(ids)
            and (options["device"] == "cpu" or value["cards_at_work"] in (None, len(ids)))
        )  # fmt: skip
        return value
    finally:
        serve.shutdown()


def _patient(load, groups, patience):
    """`load` once it goes without a failure, or the last try."""
    end = time.perf_counter() + patience
    while True:
        outcome = load(groups)
        if not outcome[1] or time.perf_counter() > end:
            return outcome
        time.sleep(0.5)


def _http(port, expected):
    """Whether one text's answer over HTTP is right, and the status that a broken body gets."""
    address = "http://127.0.0.1:%d/" % port
    headers = {"Content-Type": "application/json"}
    body = json.dumps({"inputs": expected.texts[0]}).encode()
    with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=30) as response:
        best = json.loads(response.read())[0]
    try:
        urllib.request.urlopen(urllib.request.Request(address, b"{", headers), timeout=30)
        status = 200
    except urllib.error.HTTPError as error:
        status = error.code
    return [not expected.wrong([0], [best["label"]], [best["score"]]), status]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--model", choices=sorted(MODELS), default="base")
    parser.add_argument("--precision", help="fp16 on cards, int8 on the CPU unless told")
    parser.add_argument("--cards", type=int, default=4, help="at most; on the CPU: nodes")
    parser.add_argument("--rows", type=int, default=150000, help="for each card")
    parser.add_argument("--batch-rows", type=int, default=256)
    parser.add_argument("--texts", type=int, default=20000, help="distinct ones")
    parser.add_argument("--requests", type=int, default=300, help="of %d texts, for each card" % REQUEST)
    parser.add_argument("--patience", type=float, default=120, help="seconds for one part")
    parser.add_argument("--parts", default="parquet,csv,jsonl,serve", help="%(default)s unless told")
    parser.add_argument("--cache", default=os.path.join(tempfile.gettempdir(), "ftbert-serve-models"))
    parser.add_argument("--output", help="the result's path")
    given = parser.parse_args(arguments)
    folder = common.make_model(os.path.join(given.cache, given.model), MODELS[given.model], num_labels=20)
    on_cpu = given.device == "cpu"
    options = {
        "device": given.device, "precision": given.precision or ("int8" if on_cpu else "fp16"), "max_length": 128,
    }  # fmt: skip
    texts = random_texts(given.texts, 128)
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
        found, engine, scores, labels, rate = apart.submit(reference, folder, options, texts).result()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = [str(number) for number in (range(given.cards) if on_cpu else found)]
    if visible and not on_cpu:
        ids = visible.split(",")
    ids = ids[: given.cards]
    expected = Expected(texts, scores, labels, 1e-3 if on_cpu else 1e-2)
    print(
        "%s; %d %s; one predictor: %.0f texts/s" % (engine, len(ids), "nodes" if on_cpu else "cards", rate), flush=True
    )
    import ray

    parts = given.parts.split(",")
    runs, served = [], None
    cluster = RayCluster(given.device, ids)
    try:
        start_workers(folder, options, len(ids))
        for kind, fault in (("parquet", "worker"), ("csv", "node"), ("jsonl", None)):
            if kind in parts:
                runs.append(offline(cluster, kind, fault, given, ids, folder, expected, options))
                print(_line(runs[-1]), flush=True)
                cluster.heal(ids)
        if "serve" in parts:
            served = online(given, ids, folder, expected, options)
            print(_line(served), flush=True)
    finally:
        cluster.stop()
    right = all(part["right"] for part in runs + ([served] if served else []))
    value = {
        "what": "prediction by Ray's actors, one for each card, while processes are killed; a Ray Serve deployment",
        "date": time.strftime("%Y-%m-%d"),
        "revision": common.revision(),
        "machine": common.machine(),
        "ray": ray.__version__,
        "engine": engine,
        "cards": len(ids),
        "model": given.model,
        "settings": {key: item for key, item in vars(given).items() if key not in ("cache", "output")},
        "one_predictor_texts_per_second": round(rate, 1),
        "offline": runs,
        "serve": served,
        "right": right,
    }
    if given.output:
        with open(given.output, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, ensure_ascii=False)
    else:
        print(common.write_result("ray_cards_%s" % device_name(given.device, engine), value))
    print("ray_cards: %s" % ("PASS" if right else "FAIL"))
    return 0 if right else 1


def _line(part):
    return "%s %s" % ("PASS" if part["right"] else "FAIL", {key: part[key] for key in part if key != "right"})


if __name__ == "__main__":
    sys.exit(main())
