"""BERT as an ONNX file, written operation by operation with the `onnx` package; no TensorFlow, no torch."""

import json
import math
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from ftbert.checkpoint import ModelFolder, as_float32, load_model_folder
from ftbert.checkpoint.names import weight_shapes
from ftbert.checkpoint.streams import replaced_file
from ftbert.config import BertConfig
from ftbert.errors import CheckpointError, UnavailableError
from ftbert.paths import PathLike, as_path
from ftbert.tokenization import Tokenizer

__all__ = ["export_onnx"]

# The first with LayerNormalization as one operation; onnxruntime has it since 1.12 (2022).
_OPSET = 17
_IR_VERSION = 8  # the one of that opset

# A protocol buffer cannot be larger; the graph itself is some hundred kilobytes.
_LARGEST = (2 << 30) - (8 << 20)

# Added to the attention score of a padding token, as in google-research/bert.
_MASKED_SCORE = -10000.0


def export_onnx(model: PathLike, dst: PathLike) -> str:
    """Writes an ONNX file for onnxruntime and others: opset 17, float32 weights, any number and length of rows.

    Inputs named as Hugging Face's exporters do: int64 (B, S) input_ids, attention_mask and token_type_ids. Outputs:
    logits (B, C), or last_hidden_state (B, S, H) and, with a pooler, pooler_output (B, H) of a mere encoder.
    The file's metadata hold the labels, the problem type, max_length and the tokenizer's settings as JSON.

    Args:
        model: a model folder of any kind that `FastBertClassifier.load` reads.
        dst: the file; written beside and renamed, so that it stays as it was on any failure.

    Returns:
        dst.

    Raises:
        CheckpointError: `model` is no whole model, or its weights exceed the 2 GiB that an ONNX file can hold.
        UnavailableError: the package `onnx` is not here.
    """
    try:
        import onnx
    except ImportError as error:
        raise UnavailableError(
            "export_onnx: expected the package onnx, found none (%s). pip install onnx." % error
        ) from error
    source = load_model_folder(model)
    shapes = weight_shapes(source.config, source.num_labels, source.has_pooler).values()
    size = 4 * sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes)
    if size > _LARGEST:
        raise CheckpointError(
            "%s: %d bytes of float32 weights do not fit into an ONNX file (2 GiB)." % (source.path, size)
        )
    proto = _Builder(onnx, source.config).build(source)
    onnx.checker.check_model(proto)
    with replaced_file(dst) as file:
        file.write(proto.SerializeToString())
    return as_path(dst)


class _Builder:
    """Collects nodes and weights. Tensors are (B, S, ...) throughout; every method returns its output's name."""

    def __init__(self, onnx: Any, config: BertConfig) -> None:
        self._onnx = onnx
        self._config = config
        self._nodes: List[Any] = []
        self._initializers: Dict[str, Any] = {}

    def build(self, source: ModelFolder) -> Any:
        """The ModelProto of a model folder."""
        for weight in source.weights():
            array = as_float32(weight.array, weight.bfloat16)
            if weight.transposed and weight.name.endswith("/kernel"):
                array = array.T
            self._constant(weight.name, np.ascontiguousarray(array))
        states = self._embed()
        mask = self._mask_scores()
        for layer in range(self._config.num_hidden_layers):
            states = self._layer(states, mask, "bert/encoder/layer_%d/" % layer)
        shapes = {"last_hidden_state": ["batch", "sequence", self._config.hidden_size]}
        outputs = {"last_hidden_state": states}
        if source.has_pooler:
            first = self._node("Gather", [states, self._integer(0)], axis=1)
            pooled = self._node("Tanh", [self._dense(first, "bert/pooler/dense")])
            outputs["pooler_output"] = pooled
            shapes["pooler_output"] = ["batch", self._config.hidden_size]
            if source.num_labels:
                logits = self._node("Gemm", [pooled, "output_weights", "output_bias"], transB=1)
                outputs, shapes = {"logits": logits}, {"logits": ["batch", source.num_labels]}
        helper, types = self._onnx.helper, self._onnx.TensorProto
        for name, value in outputs.items():
            self._nodes.append(helper.make_node("Identity", [value], [name]))
        graph = helper.make_graph(
            self._nodes,
            "bert",
            [
                helper.make_tensor_value_info(name, types.INT64, ["batch", "sequence"])
                for name in ("input_ids", "attention_mask", "token_type_ids")
            ],
            [helper.make_tensor_value_info(name, types.FLOAT, shapes[name]) for name in outputs],
            list(self._initializers.values()),
        )
        proto = helper.make_model(
            graph, producer_name="ftbert", opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
        )
        helper.set_model_props(proto, _metadata(source))
        return proto

    def _constant(self, name: str, array: np.ndarray) -> str:
        if name not in self._initializers:
            self._initializers[name] = self._onnx.numpy_helper.from_array(array, name)
        return name

    def _number(self, value: float) -> str:
        return self._constant("number_%r" % value, np.array(value, np.float32))

    def _integer(self, value: int) -> str:
        return self._constant("integer_%d" % value, np.array(value, np.int64))

    def _integers(self, values: Sequence[int]) -> str:
        return self._constant("integers_" + "_".join(str(value) for value in values), np.array(values, np.int64))

    def _node(self, kind: str, inputs: Sequence[str], name: Optional[str] = None, **attributes: Any) -> str:
        output = name or "%s_%d" % (kind.lower(), len(self._nodes))
        self._nodes.append(self._onnx.helper.make_node(kind, list(inputs), [output], output, **attributes))
        return output

    def _dense(self, states: str, name: str) -> str:
        return self._node("Add", [self._node("MatMul", [states, name + "/kernel"]), name + "/bias"])

    def _norm(self, states: str, name: str) -> str:
        names = [states, name + "/LayerNorm/gamma", name + "/LayerNorm/beta"]
        return self._node("LayerNormalization", names, axis=-1, epsilon=self._config.norm_epsilon)

    def _embed(self) -> str:
        """(B, S, H)."""
        base = "bert/embeddings"
        words = self._node("Gather", [base + "/word_embeddings", "input_ids"])
        types = self._node("Gather", [base + "/token_type_embeddings", "token_type_ids"])
        length = self._node("Gather", [self._node("Shape", ["input_ids"]), self._integer(1)])
        positions = self._node("Range", [self._integer(0), length, self._integer(1)])
        placed = self._node("Gather", [base + "/position_embeddings", positions])
        return self._norm(self._node("Add", [self._node("Add", [words, types]), placed]), base)

    def _mask_scores(self) -> str:
        """(B, 1, 1, S): 0 for tokens, a large negative number for padding."""
        mask = self._node("Cast", ["attention_mask"], to=self._onnx.TensorProto.FLOAT)
        mask = self._node("Unsqueeze", [mask, self._integers([1, 2])])
        return self._node("Mul", [self._node("Sub", [self._number(1.0), mask]), self._number(_MASKED_SCORE)])

    def _layer(self, states: str, mask: str, prefix: str) -> str:
        attended = self._dense(
            self._attend(states, mask, prefix + "attention/self/"), prefix + "attention/output/dense"
        )
        attended = self._norm(self._node("Add", [attended, states]), prefix + "attention/output")
        inner = self._activate(self._dense(attended, prefix + "intermediate/dense"))
        output = self._dense(inner, prefix + "output/dense")
        return self._norm(self._node("Add", [output, attended]), prefix + "output")

    def _attend(self, states: str, mask: str, prefix: str) -> str:
        """(B, S, H) -> (B, S, H), before the output projection."""
        heads, size = self._config.num_attention_heads, self._config.head_size
        # 0 keeps a dimension: (B, S, H) -> (B, S, N, D).
        split, join = self._integers([0, 0, heads, size]), self._integers([0, 0, heads * size])

        def by_head(part: str, order: List[int]) -> str:
            return self._node(
                "Transpose", [self._node("Reshape", [self._dense(states, prefix + part), split])], perm=order
            )

        query, value = by_head("query", [0, 2, 1, 3]), by_head("value", [0, 2, 1, 3])
        key = by_head("key", [0, 2, 3, 1])
        scores = self._node("Div", [self._node("MatMul", [query, key]), self._number(math.sqrt(size))])
        weights = self._node("Softmax", [self._node("Add", [scores, mask])], axis=-1)
        context = self._node("Transpose", [self._node("MatMul", [weights, value])], perm=[0, 2, 1, 3])
        return self._node("Reshape", [context, join])

    def _activate(self, inner: str) -> str:
        act = self._config.hidden_act
        if act == "relu":
            return self._node("Relu", [inner])
        if act == "gelu_erf":
            curve = self._node("Erf", [self._node("Div", [inner, self._number(math.sqrt(2.0))])])
        else:
            # Hendrycks and Gimpel, "Gaussian Error Linear Units", the tanh approximation.
            cube = self._node("Mul", [self._node("Mul", [inner, inner]), inner])
            bent = self._node("Add", [inner, self._node("Mul", [cube, self._number(0.044715)])])
            curve = self._node("Tanh", [self._node("Mul", [bent, self._number(math.sqrt(2.0 / math.pi))])])
        share = self._node("Add", [curve, self._number(1.0)])
        return self._node("Mul", [self._node("Mul", [inner, share]), self._number(0.5)])


def _metadata(source: ModelFolder) -> Dict[str, str]:
    return {
        "labels": json.dumps(source.labels, ensure_ascii=False),
        "problem_type": source.problem_type,
        "max_length": str(source.max_length or source.config.max_position_embeddings),
        "tokenizer": json.dumps(Tokenizer.from_folder(source.path).settings()),
    }
