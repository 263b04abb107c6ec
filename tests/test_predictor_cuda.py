"""FastBertClassifier on a CUDA card: the oracle's answers, order, threads, several copies. Skipped without a card."""

import os
import threading

import models
import numpy as np
import pytest
from tolerances import CUDA_TOLERANCES

from ftbert import FastBertClassifier
from ftbert.runtimes import choose_devices

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def card():
    (device,) = choose_devices("auto", None)
    if device == "cpu":
        if os.environ.get("FTBERT_REQUIRE_GPU") == "1":
            pytest.fail("no usable CUDA card")
        pytest.skip("no usable CUDA card")
    return device


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("google")
    return str(path), models.google_folder(path)


def test_auto_is_the_card_in_fp16(card, folder):
    with FastBertClassifier.load(folder[0], runtime="direct") as loaded:
        assert loaded.devices == [card] and loaded.precision == "fp16" and loaded.engine.startswith("cuda:")
        assert len(loaded.predict(["a b"])) == 1


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_logits_and_vectors_match_the_oracle(card, folder, precision):
    path, arrays = folder
    texts = models.texts(60)
    with FastBertClassifier.load(path, device=card, precision=precision, runtime="direct") as loaded:
        batch = loaded.tokenize(texts).batch
        tolerance = CUDA_TOLERANCES[precision]
        assert np.abs(loaded.predict_ids(batch) - models.oracle(arrays, batch, "logits")).max() <= tolerance
        assert np.abs(loaded.encode(texts) - models.oracle(arrays, batch, "pooled")).max() <= tolerance
        first = models.oracle(arrays, batch, "first_states")
        assert np.abs(loaded.encode(texts, "first") - first).max() <= tolerance


def test_order_streams_and_sessions(card, folder):
    texts = models.texts(12000, seed=2)
    with FastBertClassifier.load(folder[0], device=card, precision="fp32", runtime="direct") as loaded:
        whole = loaded.predict_proba(texts)
        streamed = np.array([[p.scores[label] for label in loaded.labels] for p in loaded.predict_stream(iter(texts))])
        small = loaded.predict_proba(texts[:2000], batch_tokens=300)
        alone = np.concatenate([loaded.predict_proba([text]) for text in texts[:2000:100]])
    for got, expected in ((streamed, whole), (small, whole[:2000]), (alone, whole[:2000:100])):
        assert np.abs(got - expected).max() <= CUDA_TOLERANCES["fp32"]
    with FastBertClassifier.load(folder[0], device="cpu", precision="fp32", runtime="direct") as on_cpu:
        assert np.abs(on_cpu.predict_proba(texts) - whole).max() <= CUDA_TOLERANCES["fp32"]
    pytest.importorskip("tensorflow")
    with FastBertClassifier.load(folder[0], device=card, precision="fp32", runtime="session") as session:
        assert np.abs(session.predict_proba(texts) - whole).max() <= CUDA_TOLERANCES["fp32"]


def test_many_threads_and_several_copies(card, folder):
    texts = models.texts(400, seed=5)
    with FastBertClassifier.load(folder[0], devices=[card, card], precision="fp32", runtime="direct") as loaded:
        expected = loaded.predict_proba(texts)
        differences = []

        def work(index):
            for turn in range(20):
                part = slice((index * 7 + turn) % 300, (index * 7 + turn) % 300 + 1 + 5 * turn)
                differences.append(np.abs(loaded.predict_proba(texts[part]) - expected[part]).max())

        threads = [threading.Thread(target=work, args=(index,)) for index in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert len(differences) == 320 and max(differences) <= CUDA_TOLERANCES["fp32"]
        assert loaded.tune([64, 512]) >= 0
        loaded.warm(512, 2)
        assert np.abs(loaded.predict_proba(texts) - expected).max() <= CUDA_TOLERANCES["fp32"]


def test_twenty_loads_leave_the_cards_memory(card, folder):
    used = []
    for _ in range(20):
        with FastBertClassifier.load(folder[0], device=card, runtime="direct") as loaded:
            loaded.predict(models.texts(50))
            used.append(loaded.describe()[0].get("weight_bytes"))
    assert len(set(used)) == 1
