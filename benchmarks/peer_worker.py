"""One engine, one process: checks its logits against the others' and times it. Started by peers_cpu.py.

Every adapter takes a padded batch (or, ours, a packed one) and returns logits; the work, the batching and the clock are
the same for all.
"""

import argparse
import json
import os
import statistics
import sys
import time

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from common import batches_of  # noqa: E402


class Torch:
    """transformers' BertForSequenceClassification with scaled dot product attention; eager or compiled."""

    def __init__(self, model, precision, threads, compiled=False):
        import torch
        from transformers import BertForSequenceClassification

        torch.set_num_threads(threads)
        self.torch = torch
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.net = BertForSequenceClassification.from_pretrained(model, attn_implementation="sdpa").to(dtype).eval()
        if compiled:
            self.net = torch.compile(self.net, dynamic=True)
        self.version = torch.__version__

    def __call__(self, ids, mask):
        torch = self.torch
        with torch.inference_mode():
            logits = self.net(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).logits
        return logits.float().numpy()


class OnnxRuntime:
    """ONNX Runtime with its own transformer optimizer (fused attention, layer norm, GELU); int8 is its dynamic one."""

    def __init__(self, model, precision, threads):
        import onnxruntime as ort

        path = os.path.join(model, "onnx", "optimized_%s.onnx" % precision)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self.session.get_inputs()]
        self.version = ort.__version__

    def __call__(self, ids, mask):
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return self.session.run(None, {name: feed[name] for name in self.names})[0]


class OpenVino:
    """OpenVINO's compiled model with the latency hint; int8 by nncf's quantization with calibration rows."""

    def __init__(self, model, precision, threads):
        import openvino as ov

        core = ov.Core()
        name = "openvino_int8.xml" if precision == "int8" else "model.onnx"
        config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": str(threads)}
        config["INFERENCE_PRECISION_HINT"] = "bf16" if precision == "bf16" else "f32"
        self.compiled = core.compile_model(core.read_model(os.path.join(model, "onnx", name)), "CPU", config)
        self.names = [value.get_any_name() for value in self.compiled.inputs]
        self.version = ov.__version__

    def __call__(self, ids, mask):
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return self.compiled({name: feed[name] for name in self.names})[0]


class CTranslate2:
    """CTranslate2's encoder; pooled output times the classifier in numpy, which costs next to nothing."""

    def __init__(self, model, precision, threads):
        import ctranslate2
        from safetensors.numpy import load_file

        compute = {"fp32": "float32", "int8": "int8", "bf16": "bfloat16"}[precision]
        self.encoder = ctranslate2.Encoder(
            os.path.join(model, "ctranslate2"),
            device="cpu",
            compute_type=compute,
            inter_threads=1,
            intra_threads=threads,
        )
        head = load_file(os.path.join(model, "model.safetensors"))
        self.weight, self.bias = head["classifier.weight"], head["classifier.bias"]
        self.version = ctranslate2.__version__

    def __call__(self, ids, mask):
        rows = [row[: int(length)].tolist() for row, length in zip(ids, mask.sum(1))]
        output = self.encoder.forward_batch(rows)
        return np.array(output.pooler_output) @ self.weight.T + self.bias


class Ftbert:
    """Ours, through the predictor's engine call. "tensorflow" is the plain TensorFlow twin."""

    packed = True

    def __init__(self, model, precision, threads, runtime="session"):
        from ftbert import FastBertClassifier, __version__

        self.classifier = FastBertClassifier.load(
            model, device="cpu", precision=precision, threads=threads, runtime=runtime, max_length=512
        )
        self.version = __version__
        self.name = self.classifier.engine

    def run_packed(self, batch):
        return self.classifier.predict_ids(batch)


class PlainTensorFlow:
    """BERT in plain TensorFlow operations, padded, as a user of google-research/bert runs it, in one session."""

    def __init__(self, model, precision, threads):
        import tensorflow
        from tensorflow.compat import v1 as tf

        from ftbert import modeling
        from ftbert.checkpoint import load_model_folder

        folder = load_model_folder(model)
        graph = tf.Graph()
        with graph.as_default():
            self.ids = tf.placeholder(tf.int32, (None, None))
            self.mask = tf.placeholder(tf.int32, (None, None))
            net = modeling.BertModel(config=folder.config, is_training=False, input_ids=self.ids, input_mask=self.mask)
            self.logits = modeling.apply_classifier(net, folder.num_labels)
            config = tf.ConfigProto(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=1)
            self.session = tf.Session(config=config)
            modeling.assign_weights(self.session, net.variables, folder.weights())
        self.version = tensorflow.__version__

    def __call__(self, ids, mask):
        return self.session.run(self.logits, {self.ids: ids.astype(np.int32), self.mask: mask.astype(np.int32)})


ADAPTERS = {
    "torch": Torch,
    "torch-compiled": lambda m, p, t: Torch(m, p, t, compiled=True),
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "ctranslate2": CTranslate2,
    "ftbert": Ftbert,
    "ftbert-direct": lambda m, p, t: Ftbert(m, p, t, runtime="direct"),
    "tensorflow": PlainTensorFlow,
}


def padded(rows):
    longest = max(len(row) for row in rows)
    ids = np.zeros((len(rows), longest), np.int64)
    mask = np.zeros((len(rows), longest), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask


def resident_mb():
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return {key: int(fields[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM")}


def calls_for(engine, rows, sizes):
    """One list of ready calls for each batching worth trying, by name."""
    lengths = np.array([len(row) for row in rows])
    if getattr(engine, "packed", False):
        from ftbert.batching import pack, plan

        options = {}
        for tokens in (1024, 2048, 4096, 16384):
            groups = plan(lengths, tokens)
            options["%d tokens" % tokens] = (
                groups,
                [lambda b=pack([rows[i] for i in g]): engine.run_packed(b) for g in groups],
            )
            if len(groups) == 1:
                break
        return options
    options = {}
    for size in sizes:
        groups = batches_of(lengths, size)
        options["%d rows" % size] = (
            groups,
            [lambda p=padded([rows[i] for i in g]): engine(*p) for g in groups],
        )
    return options


def run_all(groups, calls, count):
    logits = [None] * count
    for group, call in zip(groups, calls):
        for i, row in zip(group, call()):
            logits[i] = row
    return np.array(logits)


def time_pass(calls, limit=float("inf")):
    """Seconds of all calls; stops early, and says infinity, where they take more than `limit`."""
    start = time.perf_counter()
    for call in calls:
        call()
        if time.perf_counter() - start > limit:
            return float("inf")
    return time.perf_counter() - start


def median_time(calls, seconds, first):
    """`seconds` of passes, the `first` one included: at least three, or two where one takes eight seconds."""
    times = [first]
    end = time.perf_counter() + seconds - first
    least = 3 if first < 8 else 2
    while len(times) < least or time.perf_counter() < end:
        times.append(time_pass(calls))
    return {"milliseconds": statistics.median(times) * 1e3, "least": min(times) * 1e3, "runs": len(times)}


def main():
    parser = argparse.ArgumentParser()
    for name in ("engine", "precision", "model", "work", "out"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--in-turn", action="store_true", help="then a pass of each work named on the standard input")
    arguments = parser.parse_args()
    if arguments.in_turn:  # what engines print goes to the standard error
        answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
    started = time.perf_counter()
    engine = ADAPTERS[arguments.engine](arguments.model, arguments.precision, arguments.threads)
    loaded = time.perf_counter() - started
    work = np.load(arguments.work)
    results = {}
    logits = {}
    calls_of = {}
    for name in json.loads(str(work["names"])):
        ids, splits = work[name + "/ids"], work[name + "/splits"]
        rows = [ids[a:b] for a, b in zip(splits, splits[1:])]
        alike = len({len(row) for row in rows}) == 1
        options = calls_for(engine, rows, [len(rows)] if alike else [4, 8, 16, 32])
        best = None
        for batching, (groups, calls) in options.items():
            calls[0]()  # what happens once (memory, compiled shapes) is not the batching's cost
            if best is None:
                start = time.perf_counter()
                logits[name] = run_all(groups, calls, len(rows))
                spent = time.perf_counter() - start
            else:
                spent = time_pass(calls, best[0])
            if best is None or spent < best[0]:
                best = (spent, batching, calls)
        calls_of[name] = best[2]
        times = {} if arguments.in_turn else median_time(best[2], arguments.seconds, best[0])
        results[name] = dict(times, batching=best[1])
        print(arguments.engine, arguments.precision, name, results[name], flush=True)
    np.savez(arguments.out + ".npz", **{name.replace("/", "_"): value for name, value in logits.items()})
    with open(arguments.out, "w") as file:
        json.dump(
            {
                "engine": arguments.engine,
                "name": getattr(engine, "name", arguments.engine),
                "precision": arguments.precision,
                "version": engine.version,
                "load_seconds": loaded,
                "memory_mb": resident_mb(),
                "results": results,
            },
            file,
        )
    if arguments.in_turn:
        take_turns(calls_of, answers)


def take_turns(calls_of, answers):
    """Answers each line of the standard input, a work's name, with a line of seconds; "0" comes before the first."""
    print("0", file=answers, flush=True)
    for line in sys.stdin:
        print("%r" % time_pass(calls_of[line.strip()]), file=answers, flush=True)


if __name__ == "__main__":
    main()
