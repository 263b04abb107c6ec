"""The engines that peers_gpu.py compares: ours, PyTorch's forms and ONNX Runtime's, on the same weights and texts.

An engine is a function of (Model, works) that yields (work, run): run() goes once from token ids in host memory to
logits in host memory and returns [(rows, logits), ...], which together answer each row of the work.
"""

from typing import Any, Dict, List, NamedTuple

import numpy as np

from ftbert._ops import Engine, Weight
from ftbert.batching import PackedBatch, plan
from ftbert.checkpoint.names import huggingface_names, weight_shapes
from ftbert.config import BertConfig

LABELS = 5
BATCH_TOKENS = 32768
PADDED_ROWS = 256  # of a padded batch of sorted rows
PACKING_ROWS = 1024  # of a batch whose padding ONNX Runtime removes
CONFIG_KEYS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


class Model(NamedTuple):
    """Sizes as a Hugging Face config names them, and the weights, fp32, by google-research/bert's names."""

    sizes: Dict[str, Any]
    weights: Dict[str, np.ndarray]


class Work(NamedTuple):
    """What is timed: rows of token ids, end to end."""

    name: str
    batch: PackedBatch

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.batch.row_splits)


def config_of(model):
    keys = CONFIG_KEYS + ("max_position_embeddings", "type_vocab_size")
    return BertConfig(hidden_act="gelu_tanh", **{key: model[key] for key in keys})


def random_model(sizes, seed=0):
    """Random weights at the scale of trained ones (standard deviation 0.04)."""
    random = np.random.Generator(np.random.PCG64(seed))
    weights = {}
    for name, shape in weight_shapes(config_of(sizes), LABELS).items():
        weights[name] = random.standard_normal(shape, np.float32) * np.float32(0.04)
        if name.endswith("/gamma"):
            weights[name] += 1
    return Model(sizes, weights)


def work_of(name, lengths, vocab_size, seed=0):
    splits = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=splits[1:])
    ids = np.random.RandomState(seed).randint(0, vocab_size, splits[-1]).astype(np.int32)
    return Work(name, PackedBatch(ids, np.zeros_like(ids), splits))


def packed_groups(work, row_tile=0):
    """Row numbers of each packed batch: all at once, or by the budget that ftbert's predictor has."""
    if work.batch.num_tokens <= 2 * BATCH_TOKENS:
        return [np.arange(work.batch.num_rows)]
    return plan(work.lengths, BATCH_TOKENS, row_tile)


def padded_groups(work, rows):
    """Row numbers of each padded batch: rows of a batch are sorted, so that they are alike."""
    order = np.argsort(work.lengths, kind="stable")
    return [order[begin : begin + rows] for begin in range(0, len(order), rows)]


def padded(work, rows):
    """ids and mask (rows, longest) int32 of the rows named."""
    part = work.batch.take(rows)
    lengths = np.diff(part.row_splits)
    mask = np.arange(lengths.max()) < lengths[:, np.newaxis]
    ids = np.zeros(mask.shape, np.int32)
    ids[mask] = part.token_ids
    return ids, mask.astype(np.int32)


# ---- ftbert


def ftbert(precision, tuned=False):
    def make(model, works):
        weights = (Weight(name, array) for name, array in model.weights.items())
        with Engine.build(config_of(model.sizes), weights, LABELS, device="cuda", precision=precision) as engine:
            if tuned:
                counts = {min(work.batch.num_tokens, BATCH_TOKENS) for work in works}
                engine.tune(sorted(counts))
            for work in works:
                groups = packed_groups(work, engine.describe().get("row_tile", 0))
                parts = [(rows, work.batch.take(rows)) for rows in groups]
                yield work, lambda parts=parts: [(rows, engine.run(part)["logits"]) for rows, part in parts]
            print("  ", engine.describe(), flush=True)

    return make


# ---- PyTorch


def packed_torch_bert(sizes):
    """Padding-free BERT on PyTorch's own varlen attention: the strongest thing a user could write there."""
    import torch
    from torch.nn.attention.varlen import varlen_attn

    hidden, inner, heads = sizes["hidden_size"], sizes["intermediate_size"], sizes["num_attention_heads"]

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = torch.nn.Linear(hidden, 3 * hidden), torch.nn.Linear(hidden, hidden)
            self.up, self.down = torch.nn.Linear(hidden, inner), torch.nn.Linear(inner, hidden)
            self.norm1, self.norm2 = (torch.nn.LayerNorm(hidden, sizes["layer_norm_eps"]) for _ in range(2))

        def forward(self, x, splits, longest):
            q, k, v = self.qkv(x).view(len(x), 3, heads, hidden // heads).unbind(1)
            context = varlen_attn(q, k, v, splits, splits, longest, longest).reshape(len(x), hidden)
            x = self.norm1(x + self.out(context))
            return self.norm2(x + self.down(torch.nn.functional.gelu(self.up(x), approximate="tanh")))

    class Packed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.words = torch.nn.Embedding(sizes["vocab_size"], hidden)
            self.places = torch.nn.Embedding(sizes["max_position_embeddings"], hidden)
            self.segment = torch.nn.Parameter(torch.zeros(hidden))
            self.norm = torch.nn.LayerNorm(hidden, sizes["layer_norm_eps"])
            self.layers = torch.nn.ModuleList(Layer() for _ in range(sizes["num_hidden_layers"]))
            self.pooler, self.classifier = torch.nn.Linear(hidden, hidden), torch.nn.Linear(hidden, LABELS)

        def forward(self, ids, places, splits, first, longest):
            x = self.norm(self.words(ids) + self.places(places) + self.segment)
            for layer in self.layers:
                x = layer(x, splits, longest)
            return self.classifier(torch.tanh(self.pooler(x[first])))

    return Packed()


def fill_packed(net, weights):
    """Copies google-named weights into a `packed_torch_bert`."""
    import torch

    def put(parameter, *names):
        array = np.concatenate([weights[name] for name in names], axis=-1)
        array = array.T if names[0].endswith("/kernel") else array
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(array)))

    def put_dense(layer, *scopes):
        put(layer.weight, *(scope + "/kernel" for scope in scopes))
        put(layer.bias, *(scope + "/bias" for scope in scopes))

    def put_norm(layer, scope):
        put(layer.weight, scope + "/LayerNorm/gamma")
        put(layer.bias, scope + "/LayerNorm/beta")

    put(net.words.weight, "bert/embeddings/word_embeddings")
    put(net.places.weight, "bert/embeddings/position_embeddings")
    with torch.no_grad():
        net.segment.copy_(torch.from_numpy(weights["bert/embeddings/token_type_embeddings"][0]))
    put_norm(net.norm, "bert/embeddings")
    for index, layer in enumerate(net.layers):
        scope = "bert/encoder/layer_%d/" % index
        put_dense(layer.qkv, *(scope + "attention/self/" + part for part in ("query", "key", "value")))
        put_dense(layer.out, scope + "attention/output/dense")
        put_norm(layer.norm1, scope + "attention/output")
        put_dense(layer.up, scope + "intermediate/dense")
        put_dense(layer.down, scope + "output/dense")
        put_norm(layer.norm2, scope + "output")
    put_dense(net.pooler, "bert/pooler/dense")
    put(net.classifier.weight, "output_weights")
    put(net.classifier.bias, "output_bias")
    return net


def torch_packed(compiled, graphed):
    def make(model, works):
        import torch

        with torch.inference_mode():
            with torch.device("cuda"):
                net = packed_torch_bert(model.sizes)
            net = fill_packed(net, model.weights).to("cuda", torch.float16).eval()
            for work in works:
                call = torch.compile(net, mode="max-autotune-no-cudagraphs", dynamic=False) if compiled else net
                steps = [torch_step(work, rows, call, graphed) for rows in packed_groups(work)]
                yield work, lambda steps=steps: [(rows, run()) for rows, run in steps]

    return make


def torch_step(work, rows, call, graphed):
    """(rows, function that runs them), the inputs of which stay where a CUDA graph expects them."""
    import torch

    batch = work.batch.take(rows)
    lengths = np.diff(batch.row_splits)
    host = torch.from_numpy(batch.token_ids.astype(np.int64)).pin_memory()
    ids = host.cuda()
    splits = torch.from_numpy(batch.row_splits).cuda()
    places = torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])).cuda()
    inputs = (ids, places, splits, splits[:-1].long(), int(lengths.max()))
    graph, recorded = None, None
    if graphed:
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                call(*inputs)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            recorded = call(*inputs)

    def run():
        ids.copy_(host, non_blocking=True)
        if graph is None:
            return call(*inputs).float().cpu().numpy()
        graph.replay()
        return recorded.float().cpu().numpy()

    return rows, run


def transformers_net(model, dtype):
    import torch
    from transformers import BertConfig as TheirConfig
    from transformers import BertForSequenceClassification

    sizes = {key: model.sizes[key] for key in CONFIG_KEYS + ("max_position_embeddings", "layer_norm_eps")}
    config = TheirConfig(num_labels=LABELS, hidden_act="gelu_pytorch_tanh", attn_implementation="sdpa", **sizes)
    with torch.device("cuda"):
        net = BertForSequenceClassification(config)
    names = huggingface_names(model.sizes["num_hidden_layers"])
    state = {
        source.name: torch.from_numpy(np.ascontiguousarray(array.T) if source.transposed else array)
        for array, source in ((model.weights[name], source) for name, source in names.items())
    }
    wrong = net.load_state_dict(state, strict=False)
    assert not wrong.unexpected_keys and all("position_ids" in key for key in wrong.missing_keys), wrong
    return net.to("cuda", dtype).eval()


def transformers_bert(compile_mode=None, dtype="float16"):
    def make(model, works):
        import torch

        with torch.inference_mode():
            net = transformers_net(model, getattr(torch, dtype))
            if compile_mode:
                torch._dynamo.config.cache_size_limit = 64
                net = torch.compile(net, mode=compile_mode, dynamic=False)
            for work in works:
                steps = []
                for rows in padded_groups(work, PADDED_ROWS):
                    ids, mask = padded(work, rows)
                    pair = [torch.from_numpy(array.astype(np.int64)).pin_memory() for array in (ids, mask)]
                    steps.append((rows, pair))

                def run(steps=steps):
                    return [
                        (rows, net(input_ids=ids.cuda(), attention_mask=mask.cuda()).logits.float().cpu().numpy())
                        for rows, (ids, mask) in steps
                    ]

                yield work, run

    return make


def reference_logits(model, works):
    """What the rest is compared with: transformers in fp32 (TF32 off) on the card. {name of work: (B, C)}."""
    return {work.name: whole(work, run()) for work, run in transformers_bert(dtype="float32")(model, works)}


def whole(work, parts: List[Any]) -> np.ndarray:
    """The parts of an answer as one array (B, C); NaN where none answers."""
    logits = np.full((work.batch.num_rows, LABELS), np.nan, np.float32)
    for rows, part in parts:
        logits[rows] = part
    return logits


# ---- ONNX Runtime


def onnxruntime(packing):
    """Its CUDA provider on the fused fp16 graph: in a CUDA graph for each shape; or, with `packing`, without padding
    inside (PackedAttention), which a CUDA graph cannot hold and which changes nothing where no row is padded."""

    def make(model, works):
        import onnxruntime as ort
        import torch  # noqa: F401 - brings the CUDA libraries that the provider needs, wherever they are installed
        from onnx_bert import fused_bert

        if packing:
            works = [work for work in works if np.ptp(work.lengths)]
        if not works:
            return
        options = {"enable_cuda_graph": "0" if packing else "1"}
        session = ort.InferenceSession(
            fused_bert(model.sizes, model.weights, half=True, packing=packing).SerializeToString(),
            providers=[("CUDAExecutionProvider", options)],
        )
        assert session.get_providers()[0] == "CUDAExecutionProvider", session.get_providers()
        for number, work in enumerate(works):
            rows_of_a_batch = PACKING_ROWS if packing else PADDED_ROWS
            steps = []
            groups = padded_groups(work, rows_of_a_batch)
            for group, rows in enumerate(groups):
                ids, mask = padded(work, rows)
                feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
                if packing:
                    run = _plain_run(session, feeds)
                else:
                    run = _graph_run(ort, session, feeds, len(rows), number * 1000 + group)
                steps.append((rows, run))
            yield work, lambda steps=steps: [(rows, run()) for rows, run in steps]

    return make


def _plain_run(session, feeds):
    return lambda: session.run(None, feeds)[0]


def _graph_run(ort, session, feeds, rows, number):
    """Replays the CUDA graph of this number: inputs and outputs stay at one place on the card."""
    binding = session.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0) for name, array in feeds.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    logits = ort.OrtValue.ortvalue_from_shape_and_type([rows, LABELS], np.float32, "cuda", 0)
    binding.bind_ortvalue_output("logits", logits)
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number + 1))

    def run():
        for name in ("input_ids", "attention_mask"):
            values[name].update_inplace(feeds[name])
        session.run_with_iobinding(binding, options)
        return logits.numpy()

    return run


# name on the command line: (engine, precision, what makes it)
ENGINES = {
    "ftbert-fp16": ("ftbert", "fp16", ftbert("fp16")),
    "ftbert-fp8": ("ftbert", "fp8", ftbert("fp8")),
    "ftbert-fp16-tuned": ("ftbert, tuned", "fp16", ftbert("fp16", tuned=True)),
    "ftbert-fp8-tuned": ("ftbert, tuned", "fp8", ftbert("fp8", tuned=True)),
    "ftbert-bf16": ("ftbert", "bf16", ftbert("bf16")),
    "ftbert-fp32": ("ftbert", "fp32", ftbert("fp32")),
    "onnxruntime-graph": ("ONNX Runtime CUDA, fused, CUDA graph", "fp16", onnxruntime(packing=False)),
    "onnxruntime-packing": ("ONNX Runtime CUDA, fused, packing", "fp16", onnxruntime(packing=True)),
    "torch-packed": ("PyTorch packed varlen", "fp16", torch_packed(False, False)),
    "torch-packed-graph": ("PyTorch packed varlen, CUDA graph", "fp16", torch_packed(False, True)),
    "transformers": ("transformers, sdpa", "fp16", transformers_bert()),
    "transformers-compiled": ("transformers, torch.compile", "fp16", transformers_bert("reduce-overhead")),
    "torch-packed-compiled-graph": ("PyTorch packed varlen, compiled, CUDA graph", "fp16", torch_packed(True, True)),
}
