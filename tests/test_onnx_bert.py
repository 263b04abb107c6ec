"""The graph that the GPU benchmark gives to ONNX Runtime answers as the oracle does: the peer does the same work."""

import os

import numpy as np
import pytest
from numpy_bert import random_weights, run_batch

from ftbert.batching import pack
from ftbert.config import BertConfig

BENCHMARKS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "benchmarks")


def test_the_fused_graph_answers_as_the_oracle(monkeypatch):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    if not os.path.isdir(BENCHMARKS):
        pytest.skip("benchmarks/ is not beside these tests")
    monkeypatch.syspath_prepend(BENCHMARKS)
    from onnx_bert import fused_bert

    config = BertConfig(50, 64, 3, 4, 96, 32, 2, "gelu_tanh")
    weights = random_weights(config, 5)
    sizes = {"num_attention_heads": 4, "num_hidden_layers": 3, "layer_norm_eps": config.norm_epsilon}
    model = fused_bert(sizes, weights, half=False)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    lengths = np.array([7, 32, 1, 19])
    ids = np.random.RandomState(0).randint(0, 50, (4, 32)).astype(np.int32)
    mask = np.arange(32) < lengths[:, np.newaxis]
    feeds = {"input_ids": ids, "attention_mask": mask.astype(np.int32), "token_type_ids": np.zeros_like(ids)}
    got = session.run(None, feeds)[0]
    expected = run_batch(config, weights, pack([row[:n] for row, n in zip(ids, lengths)]), ("logits",))["logits"]
    assert got.shape == expected.shape and np.abs(expected).max() > 0.1
    assert np.abs(got - expected).max() <= 1e-4
    packing = fused_bert(sizes, weights, packing=True).graph.node  # runs on CUDA alone: its form at least
    assert [node.op_type for node in packing].count("PackedAttention") == 3
    assert sum(node.op_type in ("RemovePadding", "RestorePadding") for node in packing) == 2
