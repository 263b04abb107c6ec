"""BERT classifiers on one GPU: ours and what a user would write in PyTorch or ONNX Runtime, in one call on one card.

    python benchmarks/peers_gpu.py                         # everything that is installed
    python benchmarks/peers_gpu.py --engines ftbert-fp16,torch-packed --output results.json

Random weights at the scale of trained ones, real shapes; nothing is downloaded. Times are wall clock per call, median,
from token ids in host memory to logits in host memory (synchronized). Writes benchmarks/results/peers_gpu_<card>.json.
"""

import argparse
import json
import math
import os
import re
import statistics
import sys
import time

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))
sys.path.insert(0, HERE)

from common import BASE, LARGE, lognormal_lengths  # noqa: E402

from ftbert._ops import Engine, Weight, describe_machine  # noqa: E402
from ftbert.batching import PackedBatch, plan  # noqa: E402
from ftbert.config import BertConfig  # noqa: E402

# name: (model, rows, tokens of a row), as in docs/roofline.md
SHAPES = {
    "1 x 32": ("base", 1, 32),
    "1 x 128": ("base", 1, 128),
    "8 x 128": ("base", 8, 128),
    "32 x 128": ("base", 32, 128),
    "256 x 128": ("base", 256, 128),
    "500 x 32": ("base", 500, 32),
    "32 x 384": ("base", 32, 384),
    "large 32 x 384": ("large", 32, 384),
}
TEXTS = "4096 texts"
BATCH_TOKENS = 32768
LABELS = 5
MODELS = {"base": BASE, "large": LARGE}


def flops(model, lengths):
    """Useful arithmetic of an encoder over rows of these lengths (no padding, every layer whole)."""
    hidden, inner, layers = model["hidden_size"], model["intermediate_size"], model["num_hidden_layers"]
    tokens = float(sum(lengths))
    return layers * (2 * tokens * (4 * hidden**2 + 2 * hidden * inner) + sum(4.0 * n * n * hidden for n in lengths))


def config_of(model):
    return BertConfig(
        model["vocab_size"],
        model["hidden_size"],
        model["num_hidden_layers"],
        model["num_attention_heads"],
        model["intermediate_size"],
        model["max_position_embeddings"],
        model["type_vocab_size"],
        "gelu_tanh",
    )


def weights_of(model, seed=0):
    """Random weights by google-research/bert's names, fp16-sized values in fp32, generated one by one."""
    random = np.random.RandomState(seed)
    hidden, inner = model["hidden_size"], model["intermediate_size"]

    def normal(*shape):
        return random.standard_normal(shape).astype(np.float32) * np.float32(0.04)

    def dense(name, inputs, outputs):
        yield Weight(name + "/kernel", normal(inputs, outputs))
        yield Weight(name + "/bias", normal(outputs))

    def norm(name):
        yield Weight(name + "/LayerNorm/gamma", 1 + normal(hidden))
        yield Weight(name + "/LayerNorm/beta", normal(hidden))

    yield Weight("bert/embeddings/position_embeddings", normal(model["max_position_embeddings"], hidden))
    yield Weight("bert/embeddings/token_type_embeddings", normal(model["type_vocab_size"], hidden))
    yield Weight("bert/embeddings/word_embeddings", normal(model["vocab_size"], hidden))
    yield from norm("bert/embeddings")
    for i in range(model["num_hidden_layers"]):
        layer = "bert/encoder/layer_%d/" % i
        for part in ("query", "key", "value"):
            yield from dense(layer + "attention/self/" + part, hidden, hidden)
        yield from dense(layer + "attention/output/dense", hidden, hidden)
        yield from norm(layer + "attention/output")
        yield from dense(layer + "intermediate/dense", hidden, inner)
        yield from dense(layer + "output/dense", inner, hidden)
        yield from norm(layer + "output")
    yield from dense("bert/pooler/dense", hidden, hidden)
    yield Weight("output_weights", normal(LABELS, hidden))
    yield Weight("output_bias", normal(LABELS))


def batch_of(lengths, vocab_size, seed=0):
    splits = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=splits[1:])
    ids = np.random.RandomState(seed).randint(0, vocab_size, splits[-1]).astype(np.int32)
    return PackedBatch(ids, np.zeros_like(ids), splits)


def median_ms(run, seconds=0.7, least=5, most=400):
    """Median wall clock of run() in ms, after a warm-up of three calls."""
    for _ in range(3):
        run()
    times = []
    begin = time.perf_counter()
    while len(times) < least or (len(times) < most and time.perf_counter() - begin < seconds):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times), len(times)


# ---- Engines: each yields (shape name, function to time) for the shapes asked for


def ftbert_engine(precision):
    def make(model, shapes):
        with Engine.build(config_of(model), weights_of(model), LABELS, device="cuda", precision=precision) as engine:
            if "FTBERT_BENCH_TUNE" in os.environ:
                engine.tune([int(sum(lengths)) for lengths in shapes.values() if len(lengths) < 4096] + [BATCH_TOKENS])
            for name, lengths in shapes.items():
                batch = batch_of(lengths, model["vocab_size"])
                parts = [batch]
                if batch.num_tokens > 2 * BATCH_TOKENS:
                    parts = [batch.take(rows) for rows in plan(lengths, BATCH_TOKENS)]
                yield name, lambda parts=parts: [engine.run(part)["logits"] for part in parts]
            print("  ", json.dumps(engine.describe()), flush=True)

    return make


def packed_torch_bert(model):
    """Padding-free BERT on PyTorch's own varlen attention: the strongest thing a user could write there."""
    import torch
    from torch.nn.attention.varlen import varlen_attn

    hidden, inner, heads = model["hidden_size"], model["intermediate_size"], model["num_attention_heads"]

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = torch.nn.Linear(hidden, 3 * hidden), torch.nn.Linear(hidden, hidden)
            self.up, self.down = torch.nn.Linear(hidden, inner), torch.nn.Linear(inner, hidden)
            self.norm1, self.norm2 = torch.nn.LayerNorm(hidden), torch.nn.LayerNorm(hidden)

        def forward(self, x, splits, longest):
            q, k, v = self.qkv(x).view(len(x), 3, heads, hidden // heads).unbind(1)
            context = varlen_attn(q, k, v, splits, splits, longest, longest).reshape(len(x), hidden)
            x = self.norm1(x + self.out(context))
            return self.norm2(x + self.down(torch.nn.functional.gelu(self.up(x), approximate="tanh")))

    class Packed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words = torch.nn.Embedding(model["vocab_size"], hidden)
            self.places = torch.nn.Embedding(model["max_position_embeddings"], hidden)
            self.segment = torch.nn.Parameter(torch.zeros(hidden))
            self.norm = torch.nn.LayerNorm(hidden)
            self.layers = torch.nn.ModuleList(Layer() for _ in range(model["num_hidden_layers"]))
            self.pooler, self.classifier = torch.nn.Linear(hidden, hidden), torch.nn.Linear(hidden, LABELS)

        def forward(self, ids, places, splits, first, longest):
            x = self.norm(self.words(ids) + self.places(places) + self.segment)
            for layer in self.layers:
                x = layer(x, splits, longest)
            return self.classifier(torch.tanh(self.pooler(x[first])))

    return Packed().to("cuda", torch.float16).eval()


def torch_packed(compiled, graphed):
    def make(model, shapes):
        import torch

        with torch.inference_mode():
            net = packed_torch_bert(model)
            for name, lengths in shapes.items():
                call = torch.compile(net, mode="max-autotune-no-cudagraphs", dynamic=False) if compiled else net
                steps = []
                parts = plan(lengths, BATCH_TOKENS) if sum(lengths) > 2 * BATCH_TOKENS else [np.arange(len(lengths))]
                for rows in parts:
                    group = np.asarray(lengths)[rows]
                    batch = batch_of(group, model["vocab_size"])
                    host = torch.from_numpy(batch.token_ids.astype(np.int64)).pin_memory()
                    ids = host.cuda()
                    splits = torch.from_numpy(batch.row_splits).cuda()
                    places = torch.from_numpy(np.concatenate([np.arange(n) for n in group])).cuda()
                    inputs = (ids, places, splits, splits[:-1].long(), int(max(group)))
                    graph = None
                    if graphed:
                        side = torch.cuda.Stream()
                        with torch.cuda.stream(side):
                            for _ in range(3):
                                call(*inputs)
                        torch.cuda.synchronize()
                        graph = torch.cuda.CUDAGraph()
                        with torch.cuda.graph(graph):
                            logits = call(*inputs)
                    else:
                        logits = None
                    steps.append((host, ids, inputs, graph, logits))

                def run(call=call, steps=steps):
                    out = []
                    for host, ids, inputs, graph, logits in steps:
                        ids.copy_(host, non_blocking=True)
                        if graph is None:
                            logits = call(*inputs)
                        else:
                            graph.replay()
                        out.append(logits.float().cpu())
                    return out

                yield name, run

    return make


def transformers_bert(mode):
    def make(model, shapes):
        import torch
        from transformers import BertConfig as TheirConfig
        from transformers import BertForSequenceClassification

        keys = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        config = TheirConfig(num_labels=LABELS, attn_implementation="sdpa", **{key: model[key] for key in keys})
        with torch.inference_mode():
            net = BertForSequenceClassification(config).to("cuda", torch.float16).eval()
            if mode:
                torch._dynamo.config.cache_size_limit = 64
                net = torch.compile(net, mode=mode, dynamic=False)
            for name, lengths in shapes.items():
                # Rows of a batch are padded to its longest; sorted, they are alike.
                ordered, batches = np.sort(lengths), []
                for begin in range(0, len(ordered), 256):
                    group = ordered[begin : begin + 256]
                    mask = torch.from_numpy((np.arange(group[-1]) < group[:, None]).astype(np.int64))
                    ids = torch.randint(0, model["vocab_size"], mask.shape)
                    batches.append((ids.pin_memory(), mask.pin_memory()))

                def run(batches=batches):
                    return [net(input_ids=i.cuda(), attention_mask=m.cuda()).logits.float().cpu() for i, m in batches]

                yield name, run

    return make


# name on the command line: (engine, precision, what makes it)
ENGINES = {
    "ftbert-fp16": ("ftbert", "fp16", ftbert_engine("fp16")),
    "ftbert-fp8": ("ftbert", "fp8", ftbert_engine("fp8")),
    "ftbert-bf16": ("ftbert", "bf16", ftbert_engine("bf16")),
    "ftbert-fp32": ("ftbert", "fp32", ftbert_engine("fp32")),
    "transformers": ("transformers sdpa, eager", "fp16", transformers_bert(None)),
    "transformers-compiled": ("transformers sdpa, torch.compile", "fp16", transformers_bert("reduce-overhead")),
    "torch-packed": ("PyTorch packed varlen, eager", "fp16", torch_packed(False, False)),
    "torch-packed-graph": ("PyTorch packed varlen, CUDA graph", "fp16", torch_packed(False, True)),
    "torch-packed-compiled-graph": ("PyTorch packed varlen, compiled, CUDA graph", "fp16", torch_packed(True, True)),
}


def measure(name, model, shapes, seconds, record):
    """Times one engine on the shapes of one model; adds to record["milliseconds"] and what follows from them."""
    for shape, run in ENGINES[name][2](model, shapes):
        lengths = shapes[shape]
        ms, calls = median_ms(run, seconds, least=3, most=3 if shape == TEXTS else 400)
        assert math.isfinite(ms)
        record["milliseconds"][shape] = round(ms, 4)
        record["calls"][shape] = calls
        record["rows_per_second"][shape] = round(len(lengths) / ms * 1e3, 1)
        record["tflops"][shape] = round(flops(model, lengths) / ms / 1e9, 1)
        line = "%-28s %-15s %9.3f ms %10.0f rows/s %7.1f TFLOP/s"
        print(line % (name, shape, ms, record["rows_per_second"][shape], record["tflops"][shape]), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", default=",".join(ENGINES), help="some of: " + ", ".join(ENGINES))
    parser.add_argument("--shapes", default=",".join(list(SHAPES) + [TEXTS]))
    parser.add_argument("--seconds", type=float, default=0.7, help="of measuring, for each shape")
    parser.add_argument("--output", help="where to write; default: benchmarks/results/peers_gpu_<card>.json")
    arguments = parser.parse_args()
    machine = describe_machine()["cuda"]
    if not machine["devices"]:
        parser.error("no CUDA card: %s" % machine["problem"])
    card = machine["devices"][0]["name"]
    wanted = arguments.shapes.split(",")
    engines = []
    for name in arguments.engines.split(","):
        engine, precision, _ = ENGINES[name]
        record = {"engine": engine, "precision": precision, "tuned": "FTBERT_BENCH_TUNE" in os.environ}
        record.update({key: {} for key in ("milliseconds", "calls", "rows_per_second", "tflops")})
        engines.append(record)
        for size in ("base", "large"):
            chosen = {shape: SHAPES[shape] for shape in SHAPES if shape in wanted and SHAPES[shape][0] == size}
            shapes = {shape: np.full(rows, n) for shape, (_, rows, n) in chosen.items()}
            if size == "base" and TEXTS in wanted:
                shapes[TEXTS] = lognormal_lengths(4096)
            if not shapes:
                continue
            try:
                measure(name, MODELS[size], shapes, arguments.seconds, record)
            except Exception as problem:  # a peer that is missing or fails is recorded, and the rest goes on
                record.setdefault("failed", []).append("%s: %r" % (size, problem))
                print("%s %s failed: %r" % (name, size, problem), flush=True)
    date = time.strftime("%Y-%m-%d")
    result = {"card": card, "machine": machine, "date": date, "labels": LABELS, "work": wanted, "engines": engines}
    name = "peers_gpu_" + re.sub(r"[^a-z0-9]+", "_", card.lower()).strip("_") + ".json"
    path = arguments.output or os.path.join(HERE, "results", name)
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
    os.replace(path + ".tmp", path)
    print(path)


if __name__ == "__main__":
    main()
