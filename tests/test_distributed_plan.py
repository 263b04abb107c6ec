"""What `distributed.predict` decides without Ray at work: which devices, how many actors, what may be overwritten."""

import os
import sys
import types

import pytest

from ftbert.distributed import offline, online, output, reading
from ftbert.distributed.output import check_output, write
from ftbert.errors import ConfigError, FtbertError, InputError, UnavailableError


class FakeRay:
    """As much of Ray as the planning looks at."""

    class data:
        ActorPoolStrategy = staticmethod(lambda min_size, max_size: (min_size, max_size))

    def __init__(self, *nodes):
        self._nodes = [{"Alive": alive, "Resources": resources} for alive, resources in nodes]

    def nodes(self):
        return self._nodes


def node(cpus, cards=0, alive=True):
    return alive, dict({"CPU": float(cpus)}, **({"GPU": float(cards)} if cards else {}))


@pytest.mark.parametrize(
    "nodes, arguments, resources, pool",
    [
        ([node(4), node(4)], ("auto", None, None), {"num_cpus": 3.0}, (1, 2)),
        ([node(4), node(16)], ("auto", None, None), {"num_cpus": 3.0}, (1, 6)),
        ([node(1)], ("cpu", None, None), {"num_cpus": 0.5}, (1, 2)),
        ([node(64, 8)], ("auto", None, None), {"num_cpus": 1.0, "num_gpus": 1.0}, (1, 8)),
        ([node(64, 8), node(32, 4), node(8)], ("cuda", None, None), {"num_cpus": 1.0, "num_gpus": 1.0}, (1, 12)),
        ([node(64, 8), node(64, 8, alive=False)], ("auto", None, None), {"num_cpus": 1.0, "num_gpus": 1.0}, (1, 8)),
        ([node(64, 8)], ("cuda", (2, 4), 6), {"num_cpus": 6.0, "num_gpus": 1.0}, (2, 4)),
        ([node(64, 8)], ("cpu", 3, 8), {"num_cpus": 8.0}, (3, 3)),
    ],
)
def test_one_actor_for_each_card_or_node(nodes, arguments, resources, pool):
    assert offline._pool(FakeRay(*nodes), *arguments) == (resources, pool)


def test_devices_that_are_not_there_are_refused():
    with pytest.raises(UnavailableError, match="has none"):
        offline._pool(FakeRay(node(4)), "cuda", None, None)
    with pytest.raises(ConfigError, match="device"):
        offline._pool(FakeRay(node(4, 1)), "cuda:0", None, None)


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"num_cpus": 4}, {"device": "cpu", "devices": None, "threads": 4}),
        ({"num_gpus": 1}, {"device": "cuda", "devices": None, "threads": None}),  # never the CPU in silence
        ({"num_gpus": 2}, {"devices": "all", "threads": None}),
        ({"num_gpus": 1, "device": "auto"}, {"device": "auto", "devices": None}),
    ],
)
def test_a_replica_uses_what_ray_gives_it(monkeypatch, settings, expected):
    made = []

    class Deployment:
        def bind(self, model, options):
            return options

    serve = types.ModuleType("ray.serve")
    serve.deployment = lambda replica, **arguments: made.append(arguments) or Deployment()
    ray = types.ModuleType("ray")
    ray.serve = serve
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.serve", serve)
    options = online.deployment("model", **settings)
    assert {name: getattr(options, name) for name in expected} == expected
    assert made[0]["ray_actor_options"]["num_gpus"] == settings.get("num_gpus", 0)


@pytest.mark.parametrize(
    "queued, failed, asked", [(0, 0, True), (5000, 0, False), (5000, 3, True)]
)
def test_a_busy_replica_is_not_taken_for_a_dead_one(queued, failed, asked):
    questions = []

    class Queue:
        queued_texts, failed_batches = queued, failed

        def submit(self, texts, truncation):
            questions.append(texts)
            return types.SimpleNamespace(result=lambda timeout: None)

    replica = object.__new__(online._Replica)
    replica._queue = Queue()
    replica.check_health()
    assert bool(questions) == asked


@pytest.mark.parametrize("files, readers", [(1, "1"), (10, "1"), (11, "2"), (5000, "32")])
def test_no_more_processes_read_footers_than_have_work(monkeypatch, files, readers):
    name = "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS"
    monkeypatch.delenv(name, raising=False)
    with reading._few_footer_readers(files):
        assert os.environ[name] == readers
    assert name not in os.environ
    monkeypatch.setenv(name, "7")  # the user's own
    with reading._few_footer_readers(files):
        assert os.environ[name] == "7"
    assert os.environ[name] == "7"


# The output folder


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "out"
    made.mkdir()
    (made / "part-00000.parquet").write_text("old")
    return made


def test_nothing_is_overwritten_unless_asked(folder):
    with pytest.raises(InputError, match="--overwrite"):
        check_output(str(folder), False, None)
    check_output(str(folder), True, None)
    check_output(str(folder.parent / "new"), False, None)


@pytest.mark.parametrize("name", ["notes.txt", "part-1.parquet.bak", ".hidden", "folder", "part-00000.bin"])
def test_a_folder_with_anything_else_is_never_touched(folder, name):
    (folder / name).mkdir() if name == "folder" else (folder / name).write_text("mine")
    with pytest.raises(InputError, match="not\\s+overwritten"):
        check_output(str(folder), True, None)


def test_a_file_or_a_link_is_never_touched(folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    os.symlink(str(folder), str(tmp_path / "link"))
    for name in ("file", "link"):
        with pytest.raises(InputError, match="something else"):
            check_output(str(tmp_path / name), True, None)


def test_the_input_is_never_the_output(folder, tmp_path):
    for source in (folder, folder / "part-00000.parquet", tmp_path):
        with pytest.raises(InputError, match="must not be the input"):
            check_output(str(folder), True, str(source))


class Dataset:
    """Writes two files, as Ray names them."""

    def __init__(self, error=None, files=("b_000001_000000.parquet", "a_000000_000000.parquet")):
        self.error, self.files = error, files

    def write_parquet(self, path, ray_remote_args):
        os.makedirs(path)
        for name in self.files:
            with open(os.path.join(path, name), "w") as file:
                file.write(name)
        if self.error is not None:
            raise self.error


class Count:
    def __init__(self, path, kind):
        self.names = os.listdir(path)

    def count(self):
        return len(self.names)


def test_parts_are_numbered_and_an_old_output_replaced(folder):
    write(Dataset(), str(folder), "parquet", Count, 2)
    assert {name: (folder / name).read_text()[0] for name in os.listdir(str(folder))} == {
        "part-00000.parquet": "a",
        "part-00001.parquet": "b",
    }
    assert os.listdir(str(folder.parent)) == ["out"]


@pytest.mark.parametrize("dataset, count", [(Dataset(OSError("disk full")), 2), (Dataset(), 3)])
def test_a_failure_leaves_the_old_output_as_it_was(folder, dataset, count):
    with pytest.raises((OSError, FtbertError)):
        write(dataset, str(folder), "parquet", Count, count)
    assert (folder / "part-00000.parquet").read_text() == "old"
    assert os.listdir(str(folder.parent)) == ["out"]


def test_what_a_task_writes_late_goes_too(folder, monkeypatch):
    rmdir, late = os.rmdir, []

    def write_first(path, **place):
        if not late:
            late.extend(folder.parent.glob(".out.writing-*"))
            (late[0] / "c_000002_000000.parquet").write_text("late")
        rmdir(path, **place)

    monkeypatch.setattr(os, "rmdir", write_first)
    with pytest.raises(KeyboardInterrupt):
        write(Dataset(KeyboardInterrupt()), str(folder), "parquet", Count, 2)
    assert late and os.listdir(str(folder.parent)) == ["out"]


def test_what_cannot_be_removed_is_named(folder, monkeypatch, caplog):
    monkeypatch.setattr(output, "_LATE_SECONDS", 0.0)
    monkeypatch.setattr(output.shutil, "rmtree", lambda path, ignore_errors: None)
    with pytest.raises(OSError):
        write(Dataset(OSError("disk full")), str(folder), "parquet", Count, 2)
    left = [name for name in os.listdir(str(folder.parent)) if name != "out"]
    assert len(left) == 1 and left[0] in caplog.text


def test_a_new_output_that_cannot_take_its_name_gives_the_old_one_back(folder, monkeypatch):
    real = os.rename

    def rename(source, target):
        if ".writing-" in source and target == str(folder):
            raise OSError("not now")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="not now"):
        write(Dataset(), str(folder), "parquet", Count, 2)
    assert (folder / "part-00000.parquet").read_text() == "old"
    assert os.listdir(str(folder.parent)) == ["out"]


def test_no_rows_make_an_empty_folder(tmp_path):
    write(Dataset(files=()), str(tmp_path / "out"), "parquet", Count, 0)
    assert os.listdir(str(tmp_path / "out")) == []
