"""Fixtures that many tests share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data():
    """A function from the name of a real input to its path, below FTBERT_TEST_DATA or the repository's ../shared/data.

    The inputs are no part of the project; where they are absent the test is skipped, visibly.
    """
    folder = Path(os.environ.get("FTBERT_TEST_DATA") or ROOT.parent / "shared" / "data")

    def find(name):
        path = folder / name
        if not path.exists():
            pytest.skip("no %s (set FTBERT_TEST_DATA to the folder of real inputs)" % path)
        return path

    return find


@pytest.fixture(params=["direct", "session", "tensorflow"])
def runtime(request):
    """Each of the three ways to run a model; those that need TensorFlow are skipped where it is absent."""
    if request.param != "direct":
        pytest.importorskip("tensorflow")
    return request.param


@pytest.fixture
def known():
    """A predictor whose answers are known, for the server's tests."""
    from serving_fakes import KnownPredictor

    return KnownPredictor()


@pytest.fixture
def client(known):
    """Calls into a server of it, with small limits."""
    from serving_client import Client

    from ftbert.serving import ServeOptions, create_app

    made = Client(create_app(known, ServeOptions(max_texts=4, max_characters=60, max_body_bytes=2048)))
    yield made
    made.close()


@pytest.fixture(scope="module")
def google(tmp_path_factory):
    """A folder as run_classifier leaves it, and its arrays."""
    import models

    folder = tmp_path_factory.mktemp("google")
    return folder, models.google_folder(folder)
