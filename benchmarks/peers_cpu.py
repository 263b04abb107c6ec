"""ftbert and what a user would pick instead, on this machine's CPU, in one run.

    python benchmarks/peers_cpu.py --cpus 2,3 [--engines ftbert/fp32,onnxruntime/fp32,...] [--result NAME]

With --isa avx2, ftbert and ONNX Runtime alone, both held to AVX2 (see hold_to_avx2.py). With --in-turn ROUNDS every
engine's process stays, all at once in memory, and they take turns, one pass of the work each, for so many rounds: for
machines whose speed changes from minute to minute. Each finds the caches as the others have left them.

Makes the peers' environment (a venv beside the system's temporary folder, or --peers-python), a BERT-base of random
weights at the scale of trained ones, checks every engine's logits against torch fp32, then times each in a process of
its own on the processors named, at its best batching. ftbert runs first and last, so that a drift of the machine shows.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from common import HERE, lognormal_lengths, machine, make_model, revision, write_result  # noqa: E402
from hold_to_avx2 import hold_to_avx2  # noqa: E402

PEER_PACKAGES = [
    "torch==2.13.0",
    "transformers",
    "safetensors",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "nncf",
    "ctranslate2",
]
DEFAULT = [
    "ftbert/fp32",
    "torch/fp32",
    "torch-compiled/fp32",
    "onnxruntime/fp32",
    "openvino/fp32",
    "ctranslate2/fp32",
    "tensorflow/fp32",
    "ftbert/bf16",
    "torch/bf16",
    "openvino/bf16",
    "ftbert/int8",
    "onnxruntime/int8",
    "openvino/int8",
    "ctranslate2/int8",
    "ftbert/fp32",
]
OURS = ("ftbert", "ftbert-direct", "tensorflow")


def peers_python(folder):
    python = os.path.join(folder, "peers", "bin", "python")
    if not os.path.exists(python):
        subprocess.check_call([sys.executable, "-m", "venv", os.path.join(folder, "peers")])
        subprocess.check_call([python, "-m", "pip", "install", "-q"] + PEER_PACKAGES)
    return python


def make_work(path, vocab_size, names):
    shapes = {
        "1x32": [32],
        "1x128": [128],
        "8x128": [128] * 8,
        "32x128": [128] * 32,
        "256 texts": lognormal_lengths(256).tolist(),
    }
    arrays = {"names": json.dumps(names)}
    for name in names:
        random = np.random.RandomState(sorted(shapes).index(name))  # the same ids whatever else is measured
        splits = np.concatenate([[0], np.cumsum(shapes[name])])
        arrays[name + "/ids"] = random.randint(5, vocab_size, splits[-1]).astype(np.int64)
        arrays[name + "/splits"] = splits
    np.savez(path, **arrays)


def measure_kernels(program, cpus, precision, folder):
    """Peak of a register-only loop and the whole model's share of it, from bench_kernels on the same processors."""
    out = os.path.join(folder, "kernels.json")
    threads = str(len(cpus.split(",")))
    command = ["taskset", "-c", cpus, program, "--threads", threads, "--precision", precision, "--json", out]
    subprocess.check_call(command + (["gemm", "model"] if precision == "fp32" else ["model"]))
    with open(out) as file:
        return json.load(file)


def start_engine(engine, arguments, python, model, work, out, held=None):
    name, precision = engine.split("/")
    threads = len(arguments.cpus.split(","))
    command = ["taskset", "-c", arguments.cpus, python, os.path.join(HERE, "peer_worker.py")]
    command += ["--engine", name, "--precision", precision, "--model", model, "--work", work, "--out", out]
    command += ["--threads", str(threads), "--seconds", str(arguments.seconds)]
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads), TF_CPP_MIN_LOG_LEVEL="3", HF_HUB_OFFLINE="1")
    if arguments.isa:
        environment["FTBERT_CPU_ISA"] = arguments.isa
        environment.update(held if name == "onnxruntime" else {})
    if name in OURS:
        environment["PYTHONPATH"] = os.path.dirname(HERE) + os.pathsep + environment.get("PYTHONPATH", "")
    if not arguments.in_turn:
        return subprocess.Popen(command, env=environment)
    pipe = subprocess.PIPE
    return subprocess.Popen(command + ["--in-turn"], env=environment, stdin=pipe, stdout=pipe, text=True)


def wait_turn(process):
    """Seconds of the pass that the engine was asked for; None once its process has ended."""
    line = process.stdout.readline()
    return float(line) if line else None


def take_turn(process, name):
    """The same, asked for."""
    try:
        process.stdin.write(name + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return None
    return wait_turn(process)


def run_engine(engine, arguments, python, model, work, folder, index, held=None):
    name, precision = engine.split("/")
    out = os.path.join(folder, "%d.json" % index)
    process = start_engine(engine, arguments, python, model, work, out, held)
    if not arguments.in_turn or wait_turn(process) is None:
        status = process.wait()
        process = None
        if status != 0:
            return {"engine": name, "precision": precision, "failed": "exit status %d" % status}, None, None
    with open(out) as file:
        record = json.load(file)
    with np.load(out + ".npz") as logits:
        return record, {key: logits[key] for key in logits.files}, process


def run_in_turn(records, processes, names, rounds):
    """One pass of each engine after the other, `rounds` times, every other round the other way round.

    Puts the times into the records; an engine that ends in between fails, and the others go on.
    """
    there = [(record, process) for record, process in zip(records, processes) if "failed" not in record]
    turns = {id(record): {name: [] for name in names} for record, _ in there}
    for name in names:
        for number in range(rounds):
            for record, process in there if number % 2 == 0 else reversed(there):
                seconds = None if "failed" in record else take_turn(process, name)
                if seconds is None:
                    record.setdefault("failed", "ended in turn %d of %s" % (number + 1, name))
                else:
                    turns[id(record)][name].append(seconds * 1e3)
    for process in processes:
        if process is not None:
            process.communicate()
    for record, process in there:
        if "failed" not in record and process.returncode != 0:
            record["failed"] = "exit status %d after the turns" % process.returncode
        for name, times in turns[id(record)].items() if "failed" not in record else ():
            record["results"][name].update(
                milliseconds=statistics.median(times), least=min(times), runs=rounds, turns=times
            )
    for record in records:
        if "failed" in record:  # wrong logits, too: it took no turn, or not all
            record.pop("results", None)


def read_truth(path, work):
    """The logits that torch fp32 gave for exactly this work, in an earlier run; None if it was another."""
    if not os.path.exists(path):
        return None
    with np.load(path) as kept, np.load(work) as wanted:
        names = json.loads(str(wanted["names"]))
        for name in names:
            ids = name + "/ids"
            if ids not in kept.files or not np.array_equal(kept[ids], wanted[ids]):
                return None
        return {name: kept[name] for name in names}


def compare(logits, truth):
    """Largest difference of logits to torch fp32's, and how often the label is the same, over all the work."""
    largest = max(float(np.abs(logits[key] - truth[key]).max()) for key in truth)
    same = np.concatenate([logits[key].argmax(1) == truth[key].argmax(1) for key in truth])
    return {"largest_difference": largest, "label_agreement": float(same.mean())}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpus", default="0,1", help="processors to pin every engine to")
    parser.add_argument("--engines", default=",".join(DEFAULT))
    parser.add_argument("--work", default="1x32,1x128,8x128,32x128,256 texts")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each shape is timed")
    parser.add_argument("--in-turn", type=int, metavar="ROUNDS", help="time the engines in turn, so many rounds")
    parser.add_argument("--folder", default=os.path.join(tempfile.gettempdir(), "ftbert-benchmarks"))
    parser.add_argument("--peers-python", help="an interpreter that has the peers, instead of making one")
    parser.add_argument("--ours-python", default=sys.executable, help="the interpreter of ftbert and TensorFlow")
    parser.add_argument(
        "--isa", choices=["avx2"], help="hold ftbert and ONNX Runtime to this instruction set; no other engine can be"
    )
    parser.add_argument("--bench-kernels", help="the bench_kernels program, for the share of the measured peak")
    parser.add_argument("--result", help="write benchmarks/results/<RESULT>.json")
    arguments = parser.parse_args()
    if arguments.in_turn is not None and arguments.in_turn < 1:
        parser.error("--in-turn: expected one round or more, got %d." % arguments.in_turn)
    os.makedirs(arguments.folder, exist_ok=True)
    theirs = arguments.peers_python or peers_python(arguments.folder)
    model = make_model(os.path.join(arguments.folder, "bert-base"))
    engines = arguments.engines.split(",")
    if any(engine.split("/")[0] not in OURS + ("torch", "torch-compiled") for engine in engines):
        subprocess.check_call([theirs, os.path.join(HERE, "peer_export.py"), model])
    held = None
    if arguments.isa:
        free = [engine for engine in engines if engine.split("/")[0] not in ("ftbert", "onnxruntime", "torch")]
        if free:
            parser.error("--isa holds ftbert and onnxruntime (torch/fp32 gives the truth), not %s." % ", ".join(free))
        held = hold_to_avx2(theirs, arguments.folder)
    facts = {
        "what": "BERT-base, random weights, 5 labels, token ids to logits, milliseconds (median)",
        "machine": machine(),
        "cpus": arguments.cpus,
        "threads": len(arguments.cpus.split(",")),
        "revision": revision(),
        "isa": arguments.isa,
    }
    if arguments.in_turn:
        facts["what"] += ", pass by pass in turn"
    names = arguments.work.split(",")
    work = os.path.join(arguments.folder, "work.npz")
    make_work(work, 21128, names)

    if "torch/fp32" in engines:  # the truth of the comparison comes first
        engines.remove("torch/fp32")
        engines.insert(0, "torch/fp32")
    records = []
    processes = []
    kept = os.path.join(arguments.folder, "truth.npz")  # torch's logits of the last run that had it
    truth = read_truth(kept, work)
    kernels = {}
    if arguments.bench_kernels:
        for precision in sorted({engine.split("/")[1] for engine in engines if engine.startswith("ftbert/")}):
            kernels[precision] = measure_kernels(arguments.bench_kernels, arguments.cpus, precision, arguments.folder)
    for index, engine in enumerate(engines):
        python = arguments.ours_python if engine.split("/")[0] in OURS else theirs
        record, logits, process = run_engine(engine, arguments, python, model, work, arguments.folder, index, held)
        if engine == "torch/fp32":
            truth = logits
            if logits is not None:
                with np.load(work) as ids:
                    np.savez(kept, **dict(logits, **{name + "/ids": ids[name + "/ids"] for name in names}))
        if truth is not None and logits is not None:
            record["against_torch_fp32"] = compare(logits, truth)
            limit = 1e-3 if record["precision"] == "fp32" else None
            if limit is not None and not record["against_torch_fp32"]["largest_difference"] <= limit:
                record["failed"] = (
                    "logits differ from torch's by %r" % record["against_torch_fp32"]["largest_difference"]
                )
        records.append(record)
        processes.append(process)
        if arguments.result:  # as it comes: a run that is cut off leaves what it had
            written = write_result(arguments.result, dict(facts, kernels=kernels, engines=records))
    if arguments.in_turn:
        run_in_turn(records, processes, names, arguments.in_turn)
        if arguments.result:
            written = write_result(arguments.result, dict(facts, kernels=kernels, engines=records))
    print_table(records, names)
    if arguments.result:
        print(written)
    return 1 if any("failed" in record for record in records) else 0


def print_table(records, names):
    print("%-28s" % "engine" + "".join("%12s" % name for name in names) + "   largest difference, agreement")
    for record in records:
        title = "%s %s" % (record["engine"], record["precision"])
        if "results" not in record:
            print("%-28s %s" % (title, record["failed"]))
            continue
        against = record.get("against_torch_fp32", {})
        print(
            "%-28s" % title
            + "".join("%12.1f" % record["results"][name]["milliseconds"] for name in names)
            + "   %.4f %.3f"
            % (against.get("largest_difference", float("nan")), against.get("label_agreement", float("nan")))
        )


if __name__ == "__main__":
    sys.exit(main())
