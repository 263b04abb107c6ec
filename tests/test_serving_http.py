"""The routes: forms, limits, refusals. In process, through the ASGI interface."""

import asyncio
import math

import numpy as np
import pytest

for package in ("tokenizers", "starlette", "orjson", "prometheus_client", "httpx"):
    pytest.importorskip(package)

import httpx  # noqa: E402
from serving_client import JSON, Client, by_label, softmax  # noqa: E402

from ftbert.errors import EngineError  # noqa: E402
from ftbert.serving import ServeOptions, create_app  # noqa: E402


async def _until(condition):
    for _ in range(10000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("waited in vain")


# text-embeddings-inference's form


@pytest.mark.parametrize("inputs, texts", [("abc", ["abc"]), (["abc"], ["abc"]), (["a", "我要"], [("a", "我要")])])
def test_one_input_gives_one_array_best_first(client, known, inputs, texts):
    response = client.predict(inputs)
    assert response.status_code == 200
    answer = response.json()
    scores = [item["score"] for item in answer]
    assert scores == sorted(scores, reverse=True)
    expected = softmax(known.expect(texts)[0])
    np.testing.assert_allclose([by_label(answer)[label] for label in known.labels], expected, rtol=1e-6)


def test_a_list_gives_an_array_of_arrays_in_order(client, known):
    response = client.predict([["abc"], ["a", "bc"], ["我要退款"]])
    answers = response.json()
    expected = known.expect(["abc", ("a", "bc"), "我要退款"])
    for answer, logits in zip(answers, expected):
        np.testing.assert_allclose([by_label(answer)[label] for label in known.labels], softmax(logits), rtol=1e-6)
    assert len(answers) == 3


def test_raw_scores_are_logits(client, known):
    answer = client.predict("abc", raw_scores=True).json()
    assert [by_label(answer)[label] for label in known.labels] == known.expect(["abc"])[0].tolist()


def test_labels_that_do_not_exclude_each_other_get_sigmoids(known):
    known.problem_type = "multi_label"
    client = Client(create_app(known))
    answer = client.predict("abc").json()
    expected = 1 / (1 + np.exp(-known.expect(["abc"])[0]))
    np.testing.assert_allclose([by_label(answer)[label] for label in known.labels], expected, rtol=1e-6)
    client.close()


def test_truncation_as_asked(client, known):
    text = "abcdefghijklmnopqrstuvwxyz" * 2
    head = client.predict(text, truncate=True, raw_scores=True)
    assert head.headers["x-truncated-texts"] == "1"
    assert client.predict(text, raw_scores=True).json() == head.json()  # null: the model's policy, "head"
    tail = client.predict(text, truncate=True, truncation_direction="left", raw_scores=True)
    expected = known.count(known.tokenizer.encode([text], known.max_length, "tail").batch)[0]
    assert [by_label(tail.json())[label] for label in known.labels] == expected.tolist()
    refused = client.predict(text, truncate=False)
    assert refused.status_code == 413
    assert refused.json()["error_type"] == "Validation"
    assert "expected at most 32 tokens" in refused.json()["error"]


def test_a_model_that_refuses_long_texts_does_so_unless_told(known):
    known.truncation = "error"
    client = Client(create_app(known))
    text = "abc" * 40
    assert client.predict(text).status_code == 413
    assert client.predict(text, truncation_direction="left").status_code == 413
    assert client.predict(text, truncate=True).status_code == 200
    assert client("GET", "/info").json()["auto_truncate"] is False
    client.close()


def test_timing_headers(client):
    headers = client.predict(["a", "bcd"]).headers
    assert headers["x-compute-characters"] == "4"
    assert headers["x-compute-tokens"] == "7"
    parts = sum(float(headers["x-%s-time" % part]) for part in ("tokenization", "queue", "inference"))
    assert 0 < parts <= float(headers["x-total-time"]) + 0.01


def test_embeddings(client, known):
    values = np.array(client("POST", "/embed", json={"inputs": ["abc", "x"], "normalize": False}).json(), np.float32)
    np.testing.assert_array_equal(values, known.expect(["abc", "x"]) + 3)
    unit = np.array(client("POST", "/embed", json={"inputs": "abc", "pooling": "first"}).json())
    np.testing.assert_allclose(
        unit[0], (known.expect(["abc"])[0] + 2) / np.linalg.norm(known.expect(["abc"])[0] + 2), rtol=1e-6
    )


def test_info_names_what_is_served(client, known):
    info = client("GET", "/info").json()
    assert info["model_type"]["classifier"]["id2label"] == {"0": "none", "1": "one", "2": "two"}
    assert info["max_input_length"] == 32 and info["max_client_batch_size"] == 4
    assert info["engine"] == known.engine and info["models"] == ["default"]


# Refusals: what is wrong, and that the next request is served


@pytest.mark.parametrize(
    "body, status",
    [
        (b"", 400),
        (b"{", 400),
        (b'{"inputs": "a"} x', 400),
        (b'{"inputs": NaN}', 400),
        (b'{"inputs": Infinity}', 400),
        (b'{"inputs": "\xff\xfe"}', 400),
        (b'{"inputs": "\\ud800"}', 400),
        (b'{"inputs": ' + b"[" * 1500, 400),
        (b'{"inputs": ' + b"[" * 800 + b"]" * 800 + b"}", 422),
        (b"null", 422),
        (b"[]", 422),
        (b'"a"', 422),
        (b"{}", 422),
        (b'{"inputs": null}', 422),
        (b'{"inputs": 7}', 422),
        (b'{"inputs": {}}', 422),
        (b'{"inputs": []}', 422),
        (b'{"inputs": [[]]}', 422),
        (b'{"inputs": ["a", "b", "c"]}', 422),
        (b'{"inputs": ["a", 1]}', 422),
        (b'{"inputs": ["a", ["b"]]}', 422),
        (b'{"inputs": [["a"], "b"]}', 422),
        (b'{"inputs": [["a", "b", "c"]]}', 422),
        (b'{"inputs": [[1]]}', 422),
        (b'{"inputs": "a", "truncate": "yes"}', 422),
        (b'{"inputs": "a", "raw_scores": null}', 422),
        (b'{"inputs": "a", "raw_scores": 1}', 422),
        (b'{"inputs": "a", "truncation_direction": "up"}', 422),
        (b'{"inputs": "a", "truncation_direction": null}', 422),
        (b'{"inputs": "a", "truncat": true}', 422),
        (b'{"inputs": [["a"], ["a"], ["a"], ["a"], ["a"]]}', 413),
        (b'{"inputs": "' + b"a" * 61 + b'"}', 413),
        (b'{"inputs": ["b", "' + b"a" * 61 + b'"]}', 413),
        (b'{"inputs": "' + b"a" * 3000 + b'"}', 413),
    ],
)
def test_a_wrong_body_is_refused(client, body, status):
    response = client("POST", "/predict", content=body, headers=JSON)
    assert response.status_code == status, response.text
    assert response.json()["error_type"] in ("Validation", "Empty")
    assert len(response.json()["error"]) > 15
    assert client.predict("abc").status_code == 200


@pytest.mark.parametrize(
    "body, status",
    [
        (b'{"inputs": [["a"]]}', 422),
        (b'{"inputs": []}', 422),
        (b'{"inputs": "a", "normalize": 1}', 422),
        (b'{"inputs": "a", "pooling": "max"}', 422),
        (b'{"inputs": "a", "pooling": ["mean"]}', 422),
        (b'{"inputs": ["a", "a", "a", "a", "a"]}', 413),
    ],
)
def test_a_wrong_embed_body_is_refused(client, body, status):
    assert client("POST", "/embed", content=body, headers=JSON).status_code == status


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 415),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "application/json", "content-encoding": "gzip"}, 415),
        ({"content-type": "application/json", "content-encoding": "Identity"}, 200),
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"content-type": "Application/JSON"}, 200),
    ],
)
def test_content_types(client, headers, status):
    assert client("POST", "/predict", content=b'{"inputs": "a"}', headers=headers).status_code == status


def test_a_body_in_chunks_is_limited_too(client):
    async def chunks():
        for _ in range(100):
            yield b" " * 100

    response = client("POST", "/predict", content=chunks(), headers=JSON)
    assert response.status_code == 413
    assert response.headers["connection"] == "close"


@pytest.mark.parametrize(
    "method, path, status", [("GET", "/predict", 405), ("DELETE", "/info", 405), ("GET", "/none", 404)]
)
def test_other_paths_and_methods(client, method, path, status):
    response = client(method, path)
    assert response.status_code == status
    assert response.json()["error"]
    assert status != 405 or response.headers["allow"]


def test_a_failing_engine_is_a_424_and_numbers_that_are_none_too(client, known):
    known.error = EngineError("device lost")
    response = client.predict("abc")
    assert (response.status_code, response.json()["error_type"]) == (424, "Backend")
    known.error = None
    known.count = lambda batch: np.full((batch.num_rows, 3), math.nan, np.float32)
    assert client.predict("abc").status_code == 424


def test_an_unexpected_error_is_a_500_without_its_text(client, known, caplog):
    known.error = KeyError("my secret text")
    response = client.predict("my secret text")
    assert response.status_code == 500
    assert "secret" not in response.text and "secret" not in caplog.text
    assert "KeyError" in caplog.text


def test_a_full_queue_is_a_429_with_retry_after(known):
    app = create_app(known, ServeOptions(max_queue_texts=2, max_texts=2, batch_tokens=1))
    known.gate.clear()

    async def main():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            first = asyncio.ensure_future(client.post("/predict", json={"inputs": "a"}))
            queue = app.state.table.get().queue
            await _until(lambda: known.held)
            second = asyncio.ensure_future(client.post("/predict", json={"inputs": [["a"], ["b"]]}))
            await _until(lambda: queue.queued_texts == 2)
            refused = await client.post("/predict", json={"inputs": "a"})
            known.gate.set()
            return refused, await first, await second

    refused, first, second = asyncio.run(main())
    assert (refused.status_code, refused.json()["error_type"]) == (429, "Overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert first.status_code == second.status_code == 200
    app.state.table.close()


def test_a_request_that_takes_too_long_is_a_504_and_dropped(known):
    app = create_app(known, ServeOptions(timeout_s=0.1, batch_tokens=1))
    known.gate.clear()
    client = Client(app)
    blocker = app.state.table.get().queue.submit(["x"])
    asyncio.run(_until(lambda: known.held))
    response = client.predict("abc")
    assert (response.status_code, response.json()["error_type"]) == (504, "Timeout")
    assert app.state.table.get().queue.queued_texts == 0
    known.gate.set()
    blocker.result(10)
    client.close()
    assert sum(rows for rows, _ in known.batches) == 2  # the warm-up and the blocker


def test_the_work_of_a_client_that_went_away_is_dropped(known):
    app = create_app(known, ServeOptions(batch_tokens=1))
    known.gate.clear()
    queue = app.state.table.get().queue
    blocker = queue.submit(["x"])
    asyncio.run(_until(lambda: known.held))
    body = b'{"inputs": "abc"}'
    messages = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]
    sent = []

    async def main():
        async def receive():
            if len(messages) == 1:
                await _until(lambda: known.held and queue.queued_texts == 1)
            return messages.pop(0)

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/predict",
            "raw_path": b"/predict",
            "root_path": "",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "server": ("test", 80),
            "client": ("test", 1),
        }
        await asyncio.wait_for(app(scope, receive, send), 10)

    asyncio.run(main())
    assert sent == [] and queue.queued_texts == 0
    known.gate.set()
    blocker.result(10)
    app.state.table.close()
    assert sum(rows for rows, _ in known.batches) == 2


# Token, several models, health


def test_the_token_guards_everything_but_health_and_the_page(known):
    client = Client(create_app(known, ServeOptions(token="s3cret")))
    for path in ("/health", "/ready", "/v2/health/live", "/v2/health/ready", "/"):
        assert client("GET", path).status_code == 200, path
    for method, path in (
        ("POST", "/predict"),
        ("POST", "/embed"),
        ("GET", "/info"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/v2"),
        ("POST", "/v2/models/default/infer"),
        ("GET", "/v2/models/default"),
        ("POST", "/models/default/predict"),
    ):
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "Basic s3cret"},
            {"authorization": "s3cret"},
        ):
            response = client(method, path, headers=headers)
            assert response.status_code == 401, (method, path, headers)
            assert response.headers["www-authenticate"] == "Bearer"
    good = {"authorization": "Bearer s3cret"}
    assert client("POST", "/predict", json={"inputs": "a"}, headers=good).status_code == 200
    assert (
        client("POST", "/predict", json={"inputs": "a"}, headers={"authorization": "bearer s3cret"}).status_code == 200
    )
    client.close()
