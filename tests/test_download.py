"""Fetching pretrained models: from a hub that is made up, and what is said where there is none."""

import os
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from fake_hub import COMMIT, FakeHub
from test_checkpoint_convert import make, read_all

from ftbert.checkpoint import convert
from ftbert.download import NEEDED, PRETRAINED, WANTED, download
from ftbert.errors import CheckpointError, ConfigError, UnavailableError


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of one repository; `hub.calls` are the requests it got, `hub.folder` is what it serves, as links."""
    served = tmp_path / "served"
    convert(make(tmp_path / "source", labels=()), str(served), "huggingface")
    (served / "pytorch_model.bin").write_bytes(b"a pickle")
    (served / "README.md").write_text("A model card.")
    module = types.ModuleType("huggingface_hub")
    module.calls, module.folder, module.error = [], served, None

    def snapshot_download(repo_id, revision=None, allow_patterns=None):
        module.calls.append((repo_id, revision, allow_patterns))
        if module.error:
            raise module.error
        cache = tmp_path / "cache"
        if not cache.exists():
            cache.mkdir()
            for name in os.listdir(str(served)):
                os.symlink(str(served / name), str(cache / name))
        return str(cache)

    module.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_a_known_name_becomes_a_folder_of_its_own(hub, tmp_path):
    assert download("bert-base-chinese", str(tmp_path / "new" / "base")) == str(tmp_path / "new" / "base")
    assert hub.calls == [("google-bert/bert-base-chinese", None, list(WANTED))]
    names = os.listdir(str(tmp_path / "new" / "base"))
    assert set(NEEDED) <= set(names) and "pytorch_model.bin" not in names and "README.md" not in names
    assert not any(os.path.islink(str(tmp_path / "new" / "base" / name)) for name in names)
    expected = read_all(hub.folder)
    for name, (_, array) in read_all(tmp_path / "new" / "base").items():
        np.testing.assert_array_equal(array, expected[name][1])
    assert os.listdir(str(tmp_path / "new")) == ["base"]


@pytest.mark.parametrize("name", ["chinese_L-12_H-768_A-12", "bert-base-chinese"])
def test_the_real_client_fetches_over_http(tmp_path, name):
    """huggingface_hub as installed against a hub on this machine, in a process whose environment names it."""
    pytest.importorskip("huggingface_hub")
    served = tmp_path / "served"
    convert(make(tmp_path / "source", labels=()), str(served), "huggingface")
    (served / "pytorch_model.bin").write_bytes(b"a pickle")
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with FakeHub({"google-bert/bert-base-chinese": served}) as hub:
        environment = dict(
            os.environ,
            HF_ENDPOINT=hub.endpoint,
            HF_HOME=str(tmp_path / "home"),
            NO_PROXY="127.0.0.1",
            no_proxy="127.0.0.1",
        )
        environment["PYTHONPATH"] = root
        environment.pop("HF_HUB_OFFLINE", None)

        def fetch(what):
            command = [sys.executable, "-m", "ftbert", "download", what, str(tmp_path / "got")]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
            return done.returncode, done.stderr.decode("utf-8")

        status, said = fetch("nobody/nothing")
        assert status == 1 and "could not fetch nobody/nothing" in said and not (tmp_path / "got").exists()
        assert fetch(name)[0] == 0
    assert ("GET", "/google-bert/bert-base-chinese/resolve/%s/model.safetensors" % COMMIT) in hub.requests
    assert not any(path.endswith("pytorch_model.bin") for _, path in hub.requests)
    fetched, expected = read_all(tmp_path / "got"), read_all(served)
    assert sorted(fetched) == sorted(expected)
    for key in expected:
        np.testing.assert_array_equal(fetched[key][1], expected[key][1])


def test_any_repository_and_revision(hub, tmp_path):
    download("someone/bert-for-shops", str(tmp_path / "x"), revision="v2")
    assert hub.calls == [("someone/bert-for-shops", "v2", list(WANTED))]


@pytest.mark.parametrize("name", ["bert-base-klingon", "", "a/b/c", "/b", "a/"])
def test_unknown_names(hub, tmp_path, name):
    with pytest.raises(ConfigError, match="expected one of bert-base-chinese, .* or user/model"):
        download(name, str(tmp_path / "x"))
    assert hub.calls == [] and not (tmp_path / "x").exists()


def test_a_taken_place_is_refused_before_anything_is_fetched(hub, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("mine")
    with pytest.raises(CheckpointError, match="expected a new or empty folder"):
        download("bert-base-chinese", str(tmp_path / "x"))
    assert hub.calls == [] and os.listdir(str(tmp_path / "x")) == ["mine"]


def test_what_came_is_checked(hub, tmp_path):
    os.remove(str(hub.folder / "model.safetensors"))
    with pytest.raises(CheckpointError, match="has no model.safetensors.*any code"):
        download("bert-base-chinese", str(tmp_path / "x"))
    shutil.rmtree(str(tmp_path / "cache"))
    (hub.folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="truncated, a download pointer"):
        download("bert-base-chinese", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_no_hub_in_reach_says_what_to_fetch_and_where_to_put_it(hub, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    hub.error = OSError("Connection refused\nand a page of advice")
    with pytest.raises(UnavailableError) as caught:
        download("bert-base-chinese", str(tmp_path / "x"))
    message = str(caught.value)
    assert "OSError: Connection refused" in message and "page of advice" not in message
    for file in NEEDED:
        assert "https://huggingface.co/google-bert/bert-base-chinese/resolve/main/" + file in message
    assert str(tmp_path / "x") in message and PRETRAINED["bert-base-chinese"].archive in message
    assert not (tmp_path / "x").exists()


def test_a_mirror_is_named_in_the_advice(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    hub.error = OSError("x")
    with pytest.raises(UnavailableError, match="https://mirror.example/someone/model/resolve/v2/config.json"):
        download("someone/model", str(tmp_path / "x"), revision="v2")


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UnavailableError, match=r"pip install 'ftbert\[download\]'(?s:.*)vocab.txt"):
        download("bert-base-cased", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_the_real_package_offline(tmp_path, monkeypatch):
    """huggingface_hub as installed, told that there is no network, with an empty cache."""
    hub_package = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        hub_package,
        "snapshot_download",
        lambda *args, **kwargs: REAL(*args, cache_dir=str(tmp_path / "cache"), **kwargs),
    )
    with pytest.raises(UnavailableError, match="could not fetch google-bert/bert-base-chinese(?s:.*)resolve/main"):
        download("bert-base-chinese", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


try:
    from huggingface_hub import snapshot_download as REAL
except ImportError:
    REAL = None


def test_the_names_are_well_formed():
    assert len(PRETRAINED) >= 12
    assert len({entry.repository for entry in PRETRAINED.values()}) == len(PRETRAINED)
    assert all(entry.archive.endswith(".zip") and "_L-" in entry.archive for entry in PRETRAINED.values())
