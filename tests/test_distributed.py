"""Ray: data at rest over a cluster of several nodes, one of which dies; and Ray Serve. All nodes on one machine."""

import glob
import json
import os
import random
import signal
import socket
import threading
import time

import pytest

ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
pytest.importorskip("pyarrow")
pytest.importorskip("orjson")
pytest.importorskip("tokenizers")

import pyarrow  # noqa: E402
import pyarrow.csv  # noqa: E402
import pyarrow.parquet  # noqa: E402
from serving_models import LETTERS, save_random_model  # noqa: E402

from ftbert import FastBertClassifier  # noqa: E402
from ftbert.distributed import deployment, predict  # noqa: E402
from ftbert.errors import CheckpointError, ConfigError, InputError, UnavailableError  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TESTS = os.path.join(ROOT, "tests")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_random_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def cluster():
    """Three nodes of two processors each."""
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = os.pathsep.join([ROOT, TESTS] + os.environ.get("PYTHONPATH", "").split(os.pathsep))
    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
    # A worker takes 1.5 s of processor time to start: a second without work shall not end those beyond one a processor.
    os.environ.setdefault("RAY_num_workers_soft_limit", "6")
    # Ray gives workers a niceness of 15: beside other work on few processors they would hardly run at all.
    os.environ.setdefault("RAY_worker_niceness", "0")
    store = 100 * 1024 * 1024
    head = {"num_cpus": 2, "object_store_memory": store, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    nodes = [made.add_node(num_cpus=2, object_store_memory=store) for _ in range(2)]
    ray.init(address=made.address, logging_level="error", log_to_driver=False)
    yield made, nodes
    ray.shutdown()
    made.shutdown()


def texts_of(count, seed=0):
    source = random.Random(seed)
    return ["".join(source.choices(LETTERS + [" "], k=source.randint(0, 50))) for _ in range(count)]


def write_files(folder, kind, files, rows_each):
    """Files of rows with an id, a text, and a column that a careless reader would change. Returns id -> text."""
    os.makedirs(folder)
    texts = texts_of(files * rows_each)
    for number in range(files):
        ids = range(number * rows_each, (number + 1) * rows_each)
        table = pyarrow.table({
            "id": ["%06d" % index for index in ids],
            "text": [texts[index] for index in ids],
            "note": ["a,\"b\"\n我" if index % 7 == 0 else "" for index in ids],
        })  # fmt: skip
        path = os.path.join(folder, "part-%03d.%s" % (number, kind))
        if kind == "parquet":
            pyarrow.parquet.write_table(table, path)
        elif kind == "csv":
            pyarrow.csv.write_csv(table, path)
        else:
            with open(path, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())
    return {"%06d" % index: text for index, text in enumerate(texts)}


def read_files(folder, kind):
    rows = []
    for path in sorted(glob.glob(os.path.join(folder, "*." + kind))):
        if kind == "parquet":
            rows += pyarrow.parquet.read_table(path).to_pylist()
        elif kind == "csv":
            import csv

            with open(path, encoding="utf-8", newline="") as file:
                rows += list(csv.DictReader(file))
        else:
            with open(path, encoding="utf-8") as file:
                rows += [json.loads(line) for line in file]
    return rows


def check_rows(rows, texts, model):
    assert sorted(row["id"] for row in rows) == sorted(texts), "rows were lost or repeated"
    with FastBertClassifier.load(model, runtime="direct", device="cpu") as classifier:
        expected = dict(zip(texts, classifier.predict(list(texts.values()))))
    assert len({prediction.label for prediction in expected.values()}) > 1
    for row in rows:
        assert row["text"] == texts[row["id"]]
        assert row["note"] == ('a,"b"\n我' if int(row["id"]) % 7 == 0 else "")
        assert row["label"] == expected[row["id"]].label
        assert abs(float(row["score"]) - expected[row["id"]].score) < 1e-5


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_every_row_once_in_every_format(cluster, model, tmp_path, kind):
    texts = write_files(str(tmp_path / "in"), kind, 4, 100)
    assert predict(str(tmp_path / "in"), model, str(tmp_path / "out"), batch_rows=64, progress=False) is None
    check_rows(read_files(str(tmp_path / "out"), kind), texts, model)
    assert sorted(os.listdir(str(tmp_path))) == ["in", "out"], "something was left beside the output"
    parts = sorted(os.listdir(str(tmp_path / "out")))
    assert parts == ["part-%05d.%s" % (number, kind) for number in range(len(parts))]


def test_an_output_is_replaced_when_asked(cluster, model, tmp_path):
    texts = write_files(str(tmp_path / "in"), "parquet", 2, 30)
    arguments = (str(tmp_path / "in"), model, str(tmp_path / "out"))
    predict(*arguments, prefix="first_", progress=False)
    with pytest.raises(InputError, match="overwrite"):
        predict(*arguments, progress=False)
    predict(*arguments, progress=False, overwrite=True)
    check_rows(read_files(str(tmp_path / "out"), "parquet"), texts, model)
    (tmp_path / "scored.jsonl").write_text('{"text": "a", "score:first": 1}\n')
    with pytest.raises(InputError, match="score:first"):
        predict(str(tmp_path / "scored.jsonl"), model, scores=True)


def test_a_dataset_in_and_out_with_scores(cluster, model):
    import ray.data

    texts = texts_of(50)
    source = ray.data.from_items([{"sentence": text, "label": "gold"} for text in texts])
    result = predict(source, model, text_column="sentence", scores=True, prefix="predicted_", progress=False)
    rows = result.take_all()
    assert len(rows) == 50 and {row["label"] for row in rows} == {"gold"}
    for row in rows:
        scores = {name.split(":")[1]: row[name] for name in row if name.startswith("predicted_score:")}
        assert max(scores, key=scores.get) == row["predicted_label"] and abs(sum(scores.values()) - 1) < 1e-5


def test_what_is_wrong_is_said_before_any_work(cluster, model, tmp_path):
    write_files(str(tmp_path / "in"), "jsonl", 1, 5)
    source = str(tmp_path / "in")
    with pytest.raises(InputError, match="column 'sentence', found id, text, note"):
        predict(source, model, str(tmp_path / "out"), text_column="sentence", progress=False)
    with pytest.raises(InputError, match="found nothing"):
        predict(str(tmp_path / "none"), model, str(tmp_path / "out"))
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="nothing is overwritten"):
        predict(source, model, str(tmp_path / "there"))
    (tmp_path / "in" / "x.txt").write_text("x")
    with pytest.raises(InputError, match="files of one kind"):
        predict(source, model, str(tmp_path / "out"))
    with pytest.raises(UnavailableError, match="this one has none"):
        predict(str(tmp_path / "in" / "part-000.jsonl"), model, str(tmp_path / "out"), device="cuda")
    with pytest.raises(ConfigError):
        predict(str(tmp_path / "in" / "part-000.jsonl"), model, str(tmp_path / "out"), batch_rows=0)
    (tmp_path / "gold.jsonl").write_text('{"text": "a", "label": "b"}\n')
    with pytest.raises(InputError, match="prefix"):
        predict(str(tmp_path / "gold.jsonl"), model, str(tmp_path / "out"))
    assert not os.path.exists(str(tmp_path / "out"))


def test_a_workers_error_comes_back_as_it_is_and_nothing_is_left(cluster, model, tmp_path):
    (tmp_path / "null.jsonl").write_text('{"text": "a"}\n{"text": null}\n')
    with pytest.raises(InputError, match="got null in row 1"):
        predict(str(tmp_path / "null.jsonl"), model, str(tmp_path / "out"), progress=False)
    (tmp_path / "good.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises((CheckpointError, InputError), match="nowhere") as kept:
        predict(str(tmp_path / "good.jsonl"), "/nowhere/model", str(tmp_path / "out"), progress=False)
    assert sorted(os.listdir(str(tmp_path))) == ["good.jsonl", "null.jsonl"]
    assert all_processors_are_free(), "whoever keeps the error keeps an actor"
    assert isinstance(kept.value.__cause__, ray.exceptions.RayError)


def all_processors_are_free():
    """Waits until no actor is left; the next call may need the processors."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]:
            return True
        time.sleep(0.1)
    return False


def test_ctrl_c_leaves_what_was_there_and_no_actor(cluster, model, tmp_path):
    texts = write_files(str(tmp_path / "in"), "parquet", 8, 480)
    arguments = (str(tmp_path / "in"), model, str(tmp_path / "out"))
    predict(str(tmp_path / "in" / "part-000.parquet"), *arguments[1:], progress=False)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    ended = threading.Event()

    def interrupt():
        while not ended.wait(0.02):
            if glob.glob(str(tmp_path / ".out.writing-*" / "*.parquet")):
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=interrupt, daemon=True)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started this beside it
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            predict(*arguments, batch_rows=16, workers=(3, 3), cpus_per_worker=1, progress=False, overwrite=True)
    finally:
        ended.set()
        thread.join()
        signal.signal(signal.SIGINT, handler)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert sorted(os.listdir(str(tmp_path))) == ["in", "out"], "something was left beside the output"
    assert all_processors_are_free()
    predict(*arguments, progress=False, overwrite=True)
    check_rows(read_files(str(tmp_path / "out"), "parquet"), texts, model)


@pytest.mark.parametrize(
    "files, message",
    [
        (
            {"a.jsonl": b'{"text": "a"}\n', "b.jsonl": b'{"text": "a"}\n{"text":\n'},
            "b.jsonl: .*line 2: Expecting value",
        ),
        ({"a.jsonl": b'{"text": "a"}\n{"text": 5}\n'}, "a.jsonl: .*changed from string to number in row 1"),
        ({"a.jsonl": b'{"text": "\xe9"}\n'}, "UTF-8"),
        ({"a.csv": b"id,text\n1,a\n", "b.csv": b"id,text\n1\n"}, "b.csv: .*Expected 2 columns, got 1"),
        ({"a.csv": b"id,text\n1\n"}, "a.csv: .*Expected 2 columns, got 1"),
        ({"a.csv": b"id,text\n1,\xe9\n"}, "a.csv: .*UTF8"),
        ({"a.csv": b""}, "0 bytes"),
        ({"a.parquet": b""}, "a.parquet: expected Parquet"),
        ({"a.parquet": b"PAR1" + 60 * b"x" + b"PAR1"}, "a.parquet: cannot be read as parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(cluster, model, tmp_path, files, message):
    (tmp_path / "in").mkdir()
    for name, content in files.items():
        (tmp_path / "in" / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        predict(str(tmp_path / "in"), model, str(tmp_path / "out"), progress=False)
    assert os.listdir(str(tmp_path)) == ["in"]


def test_an_empty_file_has_no_rows(cluster, model, tmp_path, caplog):
    (tmp_path / ".out.writing-0").mkdir()  # of a driver that was killed
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_bytes(b"")
    (tmp_path / "in" / "b.csv").write_bytes(b"text\nabc\n")
    predict(str(tmp_path / "in"), model, str(tmp_path / "out"), progress=False)
    assert [row["text"] for row in read_files(str(tmp_path / "out"), "csv")] == ["abc"]
    assert ".out.writing-0: left by a call that was killed" in caplog.text


def test_a_node_whose_cards_cannot_be_used_is_said_so(cluster, model, tmp_path):
    """Ray promises a card where ours finds none: an error, never the CPU in silence."""
    made, _ = cluster
    node = made.add_node(num_cpus=2, num_gpus=1, object_store_memory=100 * 1024 * 1024)
    try:
        (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
        with pytest.raises(UnavailableError, match="(?i)cuda"):
            predict(str(tmp_path / "a.jsonl"), model, str(tmp_path / "out"), progress=False)
        assert not (tmp_path / "out").exists()
        predict(str(tmp_path / "a.jsonl"), model, str(tmp_path / "out"), device="cpu", progress=False)
    finally:
        made.remove_node(node)


@pytest.mark.slow
def test_ray_serve_answers_and_scales(cluster, model):
    import urllib.error
    import urllib.request

    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        application = deployment(
            model, min_replicas=1, max_replicas=2, target_requests=2, upscale_delay_s=1, num_cpus=0.5
        )
        handle = serve.run(application, name="app", route_prefix="/")
        with FastBertClassifier.load(model, runtime="direct", device="cpu") as classifier:
            texts = texts_of(200, seed=1)
            expected = [(item.label, item.truncated) for item in classifier.predict(texts)]
        answers = [handle.predict.remote([text]) for text in texts]
        got = [answer.result(timeout_s=60)[0] for answer in answers]
        assert [(label, cut) for label, _, cut in got] == expected

        request = urllib.request.Request(
            "http://127.0.0.1:%d/" % port,
            json.dumps({"inputs": texts[0]}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            assert json.loads(response.read())[0]["label"] == expected[0][0]
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(request.full_url, b"{", dict(request.headers)), timeout=30)
        assert caught.value.code == 400
        assert _replicas_under_load(serve, handle) == 2
    finally:
        serve.shutdown()


def _replicas_under_load(serve, handle):
    """Keeps forty requests under way until a second replica runs, or a minute is over."""
    running = 0
    end = time.monotonic() + 60
    while running < 2 and time.monotonic() < end:
        answers = [handle.predict.remote(["abc " * 20] * 200) for _ in range(40)]
        for answer in answers:
            answer.result(timeout_s=60)
        states = serve.status().applications["app"].deployments["ftbert"].replica_states
        running = sum(count for state, count in states.items() if getattr(state, "value", state) == "RUNNING")
    return running


@pytest.mark.slow
def test_a_node_dies_half_way_and_no_row_is_lost_or_repeated(cluster, model, tmp_path):
    made, nodes = cluster
    texts = write_files(str(tmp_path / "in"), "parquet", 8, 960)
    output = str(tmp_path / "out")
    failure = []

    def work():
        try:
            predict(
                str(tmp_path / "in"), model, output, batch_rows=16, workers=(3, 3), cpus_per_worker=1, progress=False
            )
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            failure.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    end = time.monotonic() + 120
    while time.monotonic() < end and thread.is_alive():
        done = len(glob.glob(str(tmp_path / ".out.writing-*" / "*.parquet")))
        if done >= 8:
            break
        time.sleep(0.02)
    assert thread.is_alive() and done >= 8, "%d files when it was time to kill a node; %s" % (done, failure)
    assert done < 30
    made.remove_node(nodes[0], allow_graceful=False)
    thread.join(240)
    assert not thread.is_alive(), "the work hangs after a node died"
    assert not failure, failure
    check_rows(read_files(output, "parquet"), texts, model)
