"""The server and the queue around the real engine, without TensorFlow in the process."""

import asyncio
import json
import os
import sys
import threading

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from serving_models import LETTERS, save_random_model  # noqa: E402
from serving_process import WAIT, ServerProcess  # noqa: E402

from ftbert import FastBertClassifier  # noqa: E402
from ftbert.serving import BatchingPredictor  # noqa: E402

LABELS = ("first", "second", "third")


def texts_of(count, seed):
    random = np.random.RandomState(seed)
    return ["".join(random.choice(LETTERS + [" "], random.randint(0, 60))) for _ in range(count)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_random_model(tmp_path_factory.mktemp("models") / "tiny", LABELS)


@pytest.fixture(scope="module")
def classifier(model):
    with FastBertClassifier.load(model, device="cpu", runtime="direct") as made:
        yield made


def same(scores, expected):
    """Rows that were batched with others: equal to what rounding allows."""
    np.testing.assert_allclose(scores, expected, rtol=2e-5, atol=1e-6)


def test_threads_share_batches_and_get_the_predictors_answers(model, classifier):
    texts = texts_of(300, seed=1)
    expected = classifier.predict_proba(texts)
    got = [None] * len(texts)
    predictor = FastBertClassifier.load(model, device="cpu", runtime="direct")
    with BatchingPredictor(predictor) as queue:

        def call(start):
            for index in range(start, len(texts), 30):
                got[index] = list(queue.predict([texts[index]], timeout=WAIT)[0].scores.values())

        threads = [threading.Thread(target=call, args=(start,)) for start in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)

        async def all_at_once():
            return await asyncio.gather(*(queue.predict_async([text], timeout=WAIT) for text in texts[:50]))

        answers = asyncio.run(all_at_once())
    same(got, expected)
    same([list(answer[0].scores.values()) for answer in answers], expected[:50])
    assert len({prediction.label for prediction in classifier.predict(texts)}) > 1


def test_several_workers_on_one_call(model, classifier):
    texts = texts_of(200, seed=2)
    predictor = FastBertClassifier.load(model, device="cpu", runtime="direct")
    with BatchingPredictor(predictor, batch_tokens=100, workers=3) as queue:
        tickets = [queue.submit(texts) for _ in range(4)]
        values = [ticket.result(WAIT).values for ticket in tickets]
        assert queue.queued_texts == 0
    expected = classifier.predict_ids(classifier.tokenize(texts).batch)
    for value in values:
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def server(model):
    for package in ("starlette", "uvicorn", "httptools", "orjson", "prometheus_client", "typer"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "ftbert", "serve", model, "--port", "0", "--device", "cpu"]
    with ServerProcess(command) as made:
        yield made
        assert made.stop() == 0, made.log


def test_the_command_serves_the_models_own_answers(server, classifier):
    texts = texts_of(100, seed=3)
    expected = classifier.predict_proba(texts)
    for text, row in zip(texts, expected):
        status, answer = server.predict(text)
        assert status == 200
        scores = {item["label"]: item["score"] for item in answer}
        same([scores[label] for label in LABELS], row)
    status, answers = server.predict([[text] for text in texts])
    for answer, row in zip(answers, expected):
        scores = {item["label"]: item["score"] for item in answer}
        same([scores[label] for label in LABELS], row)


@pytest.mark.parametrize("pooling", ["pooled", "first", "mean"])
def test_embeddings_over_http(server, classifier, pooling):
    texts = texts_of(20, seed=4)
    body = json.dumps({"inputs": texts, "pooling": pooling, "normalize": False})
    status, _, answer = server.request("POST", "/embed", body)
    assert status == 200
    np.testing.assert_allclose(json.loads(answer), classifier.encode(texts, pooling), rtol=1e-3, atol=1e-4)


def test_there_is_no_tensorflow_in_the_server(server):
    assert server.predict("abc")[0] == 200
    with open("/proc/%d/maps" % server.process.pid) as file:
        files = {os.path.basename(line.split()[-1]) for line in file if "/" in line}
    assert any(name.startswith("libftbert") for name in files)
    assert not [name for name in files if "tensorflow" in name or "libtorch" in name]


def test_pairs_over_http(server, classifier):
    status, answer = server.predict(["abc", "xyz"])
    expected = classifier.predict([("abc", "xyz")])[0]
    assert status == 200 and answer[0]["label"] == expected.label
