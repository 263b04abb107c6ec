"""The ONNX graph that ONNX Runtime's transformer optimizer makes of a BERT classifier, written down directly.

One EmbedLayerNormalization; in each layer Attention, SkipLayerNormalization and FastGelu of ONNX Runtime's own domain
between plain products; float16 throughout with `half`. With `packing` the rows' padding is removed before the first
layer and put back after the last, as its convert_to_packing_mode does. Inputs: input_ids, token_type_ids and
attention_mask, int32 (rows, length); output: logits, float32 (rows, labels).
"""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

THEIRS = "com.microsoft"
INPUTS = ("input_ids", "token_type_ids", "attention_mask")


def fused_bert(sizes, weights, half=True, packing=False):
    """An onnx.ModelProto of a model's sizes (Hugging Face's config keys) and weights (google's names)."""
    graph = _Graph(np.float16 if half else np.float32)
    heads, epsilon = sizes["num_attention_heads"], sizes["layer_norm_eps"]

    def embedding(name):
        return graph.constant(weights["bert/embeddings/" + name], name)

    def norm(scope):
        return [graph.constant(weights[scope + "/LayerNorm/" + part]) for part in ("gamma", "beta")]

    def bias(scope):
        return graph.constant(weights[scope + "/bias"])

    def product(x, scope):
        return graph.node("MatMul", [x, graph.constant(weights[scope + "/kernel"])])

    tables = [embedding(name) for name in ("word_embeddings", "position_embeddings", "token_type_embeddings")]
    graph.add(
        "EmbedLayerNormalization",
        ["input_ids", "token_type_ids"] + tables + norm("bert/embeddings") + ["attention_mask"],
        ["embedded", "mask_index"],
        THEIRS,
        epsilon=epsilon,
    )
    x, rows = "embedded", ["mask_index"]
    if packing:
        removed = ["packed", "token_offset", "row_splits", "longest"]
        graph.add("RemovePadding", ["embedded", "mask_index"], removed, THEIRS)
        x, rows = "packed", ["token_offset", "row_splits"]
    for index in range(sizes["num_hidden_layers"]):
        layer = "bert/encoder/layer_%d/" % index
        parts = [layer + "attention/self/" + part for part in ("query", "key", "value")]
        qkv = [
            graph.constant(np.concatenate([weights[part + "/" + kind] for part in parts], axis=-1))
            for kind in ("kernel", "bias")
        ]
        kind = "PackedAttention" if packing else "Attention"
        context = graph.node(kind, [x] + qkv + rows, THEIRS, num_heads=heads)
        for scope, inputs in (("attention/output", None), ("output", "intermediate/dense")):
            if inputs is not None:
                context = graph.node("FastGelu", [product(x, layer + inputs), bias(layer + inputs)], THEIRS)
            summed = [product(context, layer + scope + "/dense"), x] + norm(layer + scope)
            summed.append(bias(layer + scope + "/dense"))
            x = graph.node("SkipLayerNormalization", summed, THEIRS, epsilon=epsilon)
    if packing:
        x = graph.node("RestorePadding", [x, "token_offset"], THEIRS)
    first = graph.node("Gather", [x, graph.constant(np.array(0, np.int64), keep=True)], axis=1)
    dense = "bert/pooler/dense"
    pooled = graph.node("Gemm", [first, graph.constant(weights[dense + "/kernel"]), bias(dense)])
    pooled = graph.node("Tanh", [pooled])
    head = [graph.constant(weights["output_weights"]), graph.constant(weights["output_bias"])]
    logits = graph.node("Gemm", [pooled] + head, transB=1)
    graph.add("Cast", [logits], ["logits"], to=TensorProto.FLOAT)
    return graph.model(len(weights["output_bias"]))


class _Graph:
    def __init__(self, dtype):
        self.dtype = dtype
        self.nodes, self.constants = [], []

    def constant(self, array, name="", keep=False):
        name = "%s_%d" % (name or "weight", len(self.constants))
        array = array if keep else np.ascontiguousarray(array.astype(self.dtype))
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def add(self, kind, inputs, outputs, domain="", **attributes):
        name = "%s_%d" % (kind, len(self.nodes))
        self.nodes.append(helper.make_node(kind, inputs, outputs, name, domain=domain, **attributes))

    def node(self, kind, inputs, domain="", **attributes):
        """Adds a node; the name of its one output."""
        output = "%s_%d_output" % (kind, len(self.nodes))
        self.add(kind, inputs, [output], domain, **attributes)
        return output

    def model(self, labels):
        shape = ["rows", "length"]
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT32, shape) for name in INPUTS]
        outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", labels])]
        graph = helper.make_graph(self.nodes, "bert", inputs, outputs, self.constants)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(THEIRS, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)
