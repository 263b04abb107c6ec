"""The server's models: several by name, reloads, draining, metrics, and options that are refused."""

import pytest

for package in ("tokenizers", "starlette", "orjson", "prometheus_client", "httpx"):
    pytest.importorskip(package)

from serving_client import Client, by_label  # noqa: E402
from serving_fakes import KnownPredictor  # noqa: E402

from ftbert.errors import CheckpointError, ConfigError  # noqa: E402
from ftbert.serving import ServeOptions, create_app  # noqa: E402


def test_several_models_by_name_the_first_by_default():
    first, second = KnownPredictor(), KnownPredictor(labels=("left", "right"))
    client = Client(create_app({"a": first, "b-2": second}))
    assert set(by_label(client.predict("x").json())) == {"none", "one", "two"}
    response = client("POST", "/models/b-2/predict", json={"inputs": "x"})
    assert set(by_label(response.json())) == {"left", "right"}
    assert client("GET", "/models/b-2/info").json()["models"] == ["a", "b-2"]
    assert client("POST", "/models/c/predict", json={"inputs": "x"}).status_code == 404
    assert client("GET", "/v2/models/b-2").json()["outputs"][2]["shape"] == [-1, 2]
    client.close()
    assert first.closed and second.closed


def test_a_draining_server_is_alive_but_not_ready(client):
    assert client("GET", "/ready").status_code == 200
    client.app.state.table.draining = True
    assert client("GET", "/health").status_code == 200
    for path in ("/ready", "/v2/health/ready", "/v2/models/default/ready"):
        response = client("GET", path)
        assert response.status_code == 503 and response.headers["retry-after"] == "1"


def test_metrics_count_what_happened(client):
    client.predict("abc")
    client.predict([["a"], ["a" * 50]])
    client.predict(7)
    text = client("GET", "/metrics").text
    for line in (
        'ftbert_requests_total{route="predict",status="200"} 2.0',
        'ftbert_requests_total{route="predict",status="422"} 1.0',
        'ftbert_errors_total{type="Validation"} 1.0',
        'ftbert_texts_total{model="default"} 4.0',  # with the warm-up
        'ftbert_truncated_texts_total{model="default"} 1.0',
        'ftbert_queue_texts{model="default"} 0.0',
        'ftbert_engine_seconds_count{model="default"} 3.0',
        'ftbert_batch_texts_sum{model="default"} 4.0',
    ):
        assert line in text.splitlines(), line


def test_the_page_allows_itself_alone(client):
    response = client("GET", "/")
    assert response.status_code == 200 and "文本" in response.text
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe-inline" not in policy


def test_a_reload_swaps_models_and_keeps_the_old_one_when_it_fails():
    made = []

    def load(path):
        if path == "bad" and len(made) >= 2:
            raise CheckpointError("damaged")
        made.append(KnownPredictor(labels=("v%d" % len(made), "other")))
        return made[-1]

    app = create_app({"good": "good", "bad": "bad"}, load=load)
    client = Client(app)
    assert not app.state.table.reload()
    assert set(by_label(client.predict("x").json())) == {"v2", "other"}
    assert set(by_label(client("POST", "/models/bad/predict", json={"inputs": "x"}).json())) == {"v1", "other"}
    assert [model.closed for model in made] == [True, False, False]
    client.close()


def test_a_model_that_cannot_be_loaded_leaves_none_open():
    opened = []

    def load(path):
        if path == "missing":
            raise CheckpointError("missing: expected a model folder.")
        opened.append(KnownPredictor())
        return opened[-1]

    with pytest.raises(CheckpointError):
        create_app({"a": "there", "b": "missing"}, load=load)
    assert [model.closed for model in opened] == [True]


@pytest.mark.parametrize(
    "settings",
    [
        {"port": -1},
        {"port": 70000},
        {"timeout_s": 0},
        {"max_texts": 0},
        {"max_texts": True},
        {"token": ""},
        {"token": "a b"},
        {"max_texts": 10, "max_queue_texts": 5},
        {"ssl_keyfile": "key"},
        {"ssl_certfile": "/not/there.pem"},
        {"log_texts": True},
        {"pooling": "max"},
    ],
)
def test_options_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError):
        ServeOptions(**settings)


@pytest.mark.parametrize("names", [{}, {"": "x"}, {"a/b": "x"}, {"ä": "x"}])
def test_model_names_that_cannot_stand_in_a_url_are_refused(names):
    with pytest.raises(ConfigError):
        create_app(names, load=lambda path: KnownPredictor())
