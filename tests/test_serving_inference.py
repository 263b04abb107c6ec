"""The Open Inference Protocol's routes. In process, through the ASGI interface."""

import json

import numpy as np
import pytest

for package in ("tokenizers", "starlette", "orjson", "prometheus_client", "httpx"):
    pytest.importorskip(package)

from serving_client import softmax  # noqa: E402


def infer(client, tensor, **keys):
    return client("POST", "/v2/models/default/infer", json=dict(keys, inputs=[tensor]))


def test_infer_gives_every_output(client, known):
    response = infer(client, {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["abc", "x" * 40]}, id="7")
    body = response.json()
    assert body["id"] == "7" and body["model_name"] == "default"
    outputs = {output["name"]: output for output in body["outputs"]}
    logits = known.expect(["abc", "x" * 40])
    assert outputs["logits"]["shape"] == [2, 3] and outputs["logits"]["data"] == logits.ravel().tolist()
    assert outputs["label"]["data"] == [known.labels[index] for index in logits.argmax(axis=1)]
    assert outputs["truncated"]["data"] == [False, True]
    np.testing.assert_allclose(outputs["score"]["data"], [softmax(row).max() for row in logits], rtol=1e-6)


def test_infer_takes_pairs_and_gives_what_was_asked(client, known):
    tensor = {"name": "text", "datatype": "BYTES", "shape": [2, 2], "data": [["a", "b"], ["c", "我"]]}
    body = infer(client, tensor, outputs=[{"name": "logits"}]).json()
    assert [output["name"] for output in body["outputs"]] == ["logits"]
    assert body["outputs"][0]["data"] == known.expect([("a", "b"), ("c", "我")]).ravel().tolist()


GOOD = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": None},
        {"inputs": []},
        {"inputs": [GOOD, GOOD]},
        {"inputs": [dict(GOOD, name="x")]},
        {"inputs": [dict(GOOD, datatype="FP32")]},
        {"inputs": [dict(GOOD, shape=[2])]},
        {"inputs": [dict(GOOD, shape=[-1])]},
        {"inputs": [dict(GOOD, shape=[1, 3])]},
        {"inputs": [dict(GOOD, shape=["1"])]},
        {"inputs": [dict(GOOD, shape=[True])]},
        {"inputs": [dict(GOOD, data=[1])]},
        {"inputs": [dict(GOOD, data="a")]},
        {"inputs": [dict(GOOD, data=None)]},
        {"inputs": [dict(GOOD, parameters=[])]},
        {"outputs": []},
        {"outputs": [{"name": "none"}]},
        {"outputs": [{"name": ["label"]}]},
        {"outputs": None},
        {"id": None},
        {"outputs": [{"name": "label"}] * 6},
        {"outputs": [{"name": "label", "parameters": {"binary_data": 1}}]},
        {"outputs": [{"name": "label", "parameters": {"classification": 2}}]},
        {"id": 7},
        {"parameters": 1},
    ],
)
def test_a_wrong_inference_request_is_refused(client, change):
    response = client("POST", "/v2/models/default/infer", json=dict({"inputs": [GOOD]}, **change))
    assert response.status_code in (400, 422), response.text
    assert list(response.json()) == ["error"]


@pytest.mark.parametrize(
    "length, tail, size",
    [
        ("999999", b"", 0),
        ("x", b"", 0),
        ("-1", b"", 0),
        (None, b"\x05\0\0\0ab", 6),
        (None, b"\x05\0", 2),
        (None, b"\1\0\0\0\xff", 5),
        (None, b"\1\0\0\0a", 4),
        (None, b"\1\0\0\0a\1\0\0\0b", 10),
        (None, b"", 0),
    ],
)
def test_a_wrong_binary_tensor_is_refused(client, length, tail, size):
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    response = client(
        "POST",
        "/v2/models/default/infer",
        content=head + tail,
        headers={
            "inference-header-content-length": length or str(len(head)),
            "content-type": "application/octet-stream",
        },
    )
    assert response.status_code in (400, 422), response.text


def test_unknown_models_and_versions_are_404(client):
    for path in ("/v2/models/none", "/v2/models/default/versions/2", "/v2/models/none/ready"):
        assert client("GET", path).status_code == 404
    assert client("GET", "/v2/models/default/versions/1/ready").json() == {"name": "default", "ready": True}
