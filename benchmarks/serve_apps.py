"""The servers that serve_load.py compares, each in a process of its own: serve_apps.py KIND FOLDER JSON-OPTIONS.

KIND is one of
    ftbert      ftbert.serving
    one_by_one  a plain FastAPI app: each request calls predict with its own texts
    padded      ftbert.serving, but every row is filled up to max_length as bert-as-service does; it shows what padding
                costs, its answers are not those of the texts
    no_engine   ftbert.serving with an engine that answers zeros at once
    card        ftbert.serving with an engine that waits as long as a card would work; its times are among the options
"""

import json
import sys
import threading
import time

import numpy as np

from ftbert import FastBertClassifier
from ftbert.batching import PackedBatch


def padded(classifier):
    """Makes the classifier run rows of max_length tokens only."""
    run, length = classifier.predict_ids, classifier.max_length

    def predict_ids(batch):
        lengths = np.diff(batch.row_splits)
        tokens = np.zeros((batch.num_rows, length), np.int32)
        tokens[np.arange(length) < lengths[:, np.newaxis]] = batch.token_ids
        splits = np.arange(batch.num_rows + 1, dtype=np.int32) * length
        return run(PackedBatch(tokens.ravel(), np.zeros(tokens.size, np.int32), splits))

    classifier.predict_ids = predict_ids
    return classifier


class Card:
    """A classifier whose engine waits, one batch after the other, `batch` + `token` * T ms, and `first` ms more for
    every hundred tokens of a size that it has not had."""

    devices = ["cuda:0"]
    batch_tokens = 32768

    def __init__(self, classifier, batch, token, first):
        self._classifier = classifier
        self._times = batch, token, first
        self._turn = threading.Lock()
        self._seen = set()

    def __getattr__(self, name):
        return getattr(self._classifier, name)

    def warm(self, most_tokens, at_once):
        """There is no card to prepare."""

    def predict_ids(self, batch):
        of_a_batch, of_a_token, first = self._times
        size = batch.num_tokens // 100
        with self._turn:
            time.sleep((of_a_batch + of_a_token * batch.num_tokens + (0 if size in self._seen else first)) / 1000)
            self._seen.add(size)
        return np.zeros((batch.num_rows, len(self.labels)), np.float32)


def one_by_one(classifier, port):
    """What one writes first: no queue, a thread for each request."""
    import socket
    from typing import List

    import fastapi
    import pydantic
    import uvicorn

    class Body(pydantic.BaseModel):
        inputs: List[List[str]]

    app = fastapi.FastAPI()

    @app.post("/predict")
    def predict(body: Body):
        answers = classifier.predict([text for (text,) in body.inputs])
        return [[{"label": label, "score": score} for label, score in answer.scores.items()] for answer in answers]

    listening = socket.socket()
    listening.bind(("127.0.0.1", port))
    print("Serving one_by_one at http://127.0.0.1:%d" % listening.getsockname()[1], file=sys.stderr, flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])


def main():
    kind, folder, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    if kind == "ftbert":
        from ftbert.serving import run

        run(folder, port=0, **options)
        return
    load = {key: options[key] for key in ("device", "precision", "threads", "max_length") if key in options}
    classifier = FastBertClassifier.load(folder, runtime="direct", **load)
    if kind == "one_by_one":
        one_by_one(classifier, 0)
    elif kind == "no_engine":
        from ftbert.serving import run

        classifier.predict_ids = lambda batch: np.zeros((batch.num_rows, len(classifier.labels)), np.float32)
        run({"default": classifier}, port=0, **options)
    elif kind == "card":
        from ftbert.serving import run

        times = options.pop("card")
        run({"default": Card(classifier, **times)}, port=0, **options)
    elif kind == "padded":
        from ftbert.serving import run

        run({"default": padded(classifier)}, port=0, **options)
    else:
        sys.exit("KIND: expected ftbert, one_by_one, padded, no_engine or card, got %r." % kind)


main()
