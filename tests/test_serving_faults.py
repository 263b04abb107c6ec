"""Faults that an operator or an attacker brings: failing engines, models that change under a request, odd requests."""

import asyncio
import json
import logging

import numpy as np
import pytest

for package in ("tokenizers", "starlette", "orjson", "prometheus_client", "httpx"):
    pytest.importorskip(package)

import orjson  # noqa: E402
from serving_client import JSON, Client, by_label  # noqa: E402
from serving_fakes import KnownPredictor  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from starlette.routing import Mount  # noqa: E402

from ftbert import FastBertClassifier  # noqa: E402
from ftbert.commands.predicting import devices_of  # noqa: E402
from ftbert.errors import EngineError, OutOfMemoryError  # noqa: E402
from ftbert.serving import ServeOptions, create_app  # noqa: E402
from ftbert.serving.classify import render_predictions  # noqa: E402


@pytest.fixture
def client(known):
    made = Client(create_app(known, ServeOptions(max_body_bytes=2048, log_requests=True, log_texts=True)))
    yield made
    made.close()


def test_a_failing_engine_makes_the_server_not_ready_until_it_works_again(client, known, caplog):
    assert client("GET", "/ready").status_code == 200
    known.error = EngineError("cuda:0: an uncorrectable memory error")
    assert client.predict("abc").status_code == 424
    assert "an uncorrectable memory error" in caplog.text  # the operator reads why, the client does not
    for path in ("/ready", "/v2/health/ready", "/v2/models/default/ready"):
        assert client("GET", path).status_code == 503
    assert client("GET", "/health").status_code == 200
    known.error = None
    assert client("GET", "/ready").status_code == 200  # it asked the engine: nobody else had to
    assert client("GET", "/v2/models/default/ready").status_code == 200


def test_a_wrong_text_does_not_make_the_server_unready(client):
    assert client.predict("abc " * 100, truncate=False).status_code == 413
    assert client("GET", "/ready").status_code == 200


def test_with_several_devices_a_batch_of_a_failing_one_runs_again(known, caplog):
    known.devices = ["cuda:0", "cuda:1"]
    app = create_app(known)
    assert known.warmed == (known.batch_tokens, 2)  # before the first request; two batches at a time on each card
    real, failures = known.predict_ids, [EngineError("cuda:0: the card does not answer")]

    def failing_once(batch):
        if failures:
            raise failures.pop()
        return real(batch)

    known.predict_ids = failing_once
    client = Client(app)
    response = client.predict("abc")
    assert response.status_code == 200 and not failures
    assert "cuda:0: the card does not answer" in caplog.text
    known.predict_ids = lambda batch: (_ for _ in ()).throw(EngineError("both gone"))
    assert client.predict("abc").status_code == 424
    client.close()


def test_a_card_without_room_for_the_largest_batch_serves_smaller_ones(known, caplog):
    known.devices = ["cuda:0"]
    known.warm = lambda *asked: (_ for _ in ()).throw(OutOfMemoryError("no room for 2048 tokens."))
    client = Client(create_app(known))
    assert "no room for 2048 tokens. Not every size was prepared." in caplog.text
    assert client.predict("abc").status_code == 200
    client.close()


def test_labels_are_those_of_the_model_that_answered():
    made = []

    def load(path):
        made.append(KnownPredictor(labels=["old_%d" % i for i in range(5)] if not made else ["new", "other"]))
        return made[-1]

    app = create_app("model", load=load)
    table = app.state.table
    old = table.get()
    assert table.reload()
    table.get = lambda name=None: old  # a request that looked the model up before the reload, and queues after it
    client = Client(app)
    assert set(by_label(client.predict("x").json())) == {"new", "other"}
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["x"]}]}
    outputs = client("POST", "/v2/models/default/infer", json=body).json()["outputs"]
    assert {tensor["name"]: tensor for tensor in outputs}["label"]["data"][0] in ("new", "other")
    client.close()


@pytest.mark.parametrize("digits", ["9" * 19, "9" * 6000])
def test_numbers_too_long_to_read_are_refused(client, digits):
    headers = dict(JSON, **{"inference-header-content-length": digits})
    assert client("POST", "/v2/models/default/infer", content=b"{}", headers=headers).status_code == 400

    # Servers other than ours may let such a length through.
    sent = []

    async def main():
        scope = {
            "type": "http", "method": "POST", "path": "/predict", "root_path": "", "query_string": b"",
            "scheme": "http",
            "headers": [(b"content-type", b"application/json"), (b"content-length", digits.encode())],
        }  # fmt: skip

        async def receive():
            return {"type": "http.request", "body": b"{}", "more_body": False}

        async def send(message):
            sent.append(message)

        await client.app(scope, receive, send)

    asyncio.run(main())
    assert sent[0]["status"] == 413


def test_a_client_cannot_write_lines_of_its_own_into_the_log(client, caplog):
    with caplog.at_level(logging.INFO, "ftbert.serving"):
        client("GET", "/models/a%0AFORGED%0D/info")
        client("POST", "/predict", content=b'{"inputs":\n"FORGED\\n2"}', headers=JSON)
    messages = [record.getMessage() for record in caplog.records if "FORGED" in record.getMessage()]
    assert len(messages) == 2 and not any(mark in message for message in messages for mark in "\r\n")


def test_bodies_of_all_requests_together_are_bounded(known):
    app = create_app(known, ServeOptions(max_body_bytes=1024))
    body = json.dumps({"inputs": "a", "padding": ""}).encode()[:-2] + b"x" * 700

    async def main():
        release = asyncio.Event()
        statuses = []

        async def one(wait):
            parts = [{"type": "http.request", "body": body, "more_body": True}]
            scope = {
                "type": "http", "method": "POST", "path": "/predict", "root_path": "", "query_string": b"",
                "scheme": "http", "headers": [(b"content-type", b"application/json")],
            }  # fmt: skip

            async def receive():
                if parts:
                    return parts.pop()
                if wait:
                    await release.wait()
                return {"type": "http.request", "body": b'"}', "more_body": False}

            async def send(message):
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])

            await app(scope, receive, send)

        # 128 of the largest size: some 180 of these, all of them half sent.
        slow = [asyncio.ensure_future(one(True)) for _ in range(300)]
        for _ in range(20):
            await asyncio.sleep(0)
        refused = list(statuses)
        await one(False)
        late = statuses[len(refused) :]
        release.set()
        await asyncio.gather(*slow)
        before = len(statuses)
        await one(False)
        return refused, late, statuses[before:]

    refused, late, after = asyncio.run(main())
    assert set(refused) == {429} and 100 < len(refused) < 200
    assert late == [429] or late == [422]  # room comes back as the refused leave
    assert after == [422]  # an unknown key: it was read to the end
    app.state.table.close()


@pytest.mark.parametrize("labels", [1, 2, 20])
@pytest.mark.parametrize("rows", [1, 2, 3, 50])
def test_many_rows_are_written_like_few(labels, rows):
    source = np.random.RandomState(rows)
    scores = source.standard_normal((rows, labels)).astype(np.float32) * 10.0 ** source.randint(-12, 12, (rows, labels))
    scores = scores.astype(np.float32)
    scores[0, 0] = 0
    names = ['quote " and \\', "退款", "}]"] + ["label_%d" % i for i in range(labels)]
    names = names[:labels]
    body = render_predictions(scores, names, single=False)
    one_by_one = [orjson.loads(render_predictions(scores[row : row + 1], names, single=True)) for row in range(rows)]
    assert orjson.loads(body) == one_by_one
    assert (
        body
        == b"[" + b",".join(render_predictions(scores[row : row + 1], names, single=True) for row in range(rows)) + b"]"
    )


def test_devices_reach_the_loader(monkeypatch):
    seen = []

    def load(path, **settings):
        seen.append(settings)
        return KnownPredictor()

    monkeypatch.setattr(FastBertClassifier, "load", load)
    create_app("model", ServeOptions(devices=["cuda:0", "cuda:1"])).state.table.close()
    assert seen[0]["devices"] == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize(
    "option, arguments",
    [
        ("auto", {"device": "auto"}),
        ("cuda:1", {"device": "cuda:1"}),
        ("all", {"devices": "all"}),
        ("cuda:0, cuda:0", {"devices": ["cuda:0", "cuda:0"]}),
    ],
)
def test_the_device_option(option, arguments):
    assert devices_of(option) == arguments


def test_middleware_added_to_the_application_sees_every_request(known):
    app = create_app(known)
    seen = []

    class Watch:
        def __init__(self, inner):
            self.inner = inner

        async def __call__(self, scope, receive, send):
            seen.append(scope.get("path"))
            await self.inner(scope, receive, send)

    app.add_middleware(Watch)
    client = Client(app)
    assert client.predict("abc").status_code == 200 and client("GET", "/health").status_code == 200
    assert seen == ["/predict", "/health"]
    client.close()


def test_mounted_below_another_path(known):
    inner = create_app(known)
    outer = Starlette(routes=[Mount("/predict", app=inner)])
    outer.state.table = inner.state.table
    client = Client(outer)
    assert client("POST", "/predict/predict", json={"inputs": "abc"}).status_code == 200
    assert client("POST", "/predict", json={"inputs": "abc"}).status_code in (307, 404)
    client.close()


@pytest.mark.parametrize(
    "member, got",
    [([], "got 0."), (["a", "b", "c"], "got 3."), ([["a"]], "got one that holds an array."), ("b", "got a string.")],
)
def test_a_wrong_member_is_named(client, member, got):
    assert got in client.predict([["a"], member]).json()["error"]
