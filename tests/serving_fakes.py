"""A predictor with known answers whose engine can be held, slowed and broken: faults that a real one seldom shows."""

import threading
import time

import numpy as np

from ftbert.prediction import predictions_from_scores, scores_from_logits
from ftbert.tokenization import Tokenizer

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] + [chr(code) for code in range(97, 123)] + list("我你他卡钱退款了吗") + [
    "##" + chr(code) for code in range(97, 123)
]  # fmt: skip


class KnownPredictor:
    """Logit c of a row is the number of its tokens whose id is c modulo C."""

    problem_type = "single_label"
    precision = "fp32"
    engine = "cpu known answers"
    devices = ["cpu"]
    batch_tokens = 2048

    def __init__(self, labels=("none", "one", "two"), max_length=32, truncation="head"):
        self.labels = list(labels)
        self.max_length = max_length
        self.truncation = truncation
        self.tokenizer = Tokenizer(VOCAB)
        self.gate = threading.Event()  # cleared: the engine waits
        self.gate.set()
        self.held = False  # the engine waits at the gate
        self.error = None  # raised by the engine
        self.delay = 0.0  # seconds for each batch
        self.batches = []  # (rows, tokens) of every run
        self.closed = False
        self.warmed = None  # what `warm` was asked for

    def warm(self, most_tokens, at_once=1):
        self.warmed = (most_tokens, at_once)

    def _run(self, batch):
        self.held = not self.gate.is_set()
        self.gate.wait(30)
        self.held = False
        if self.delay:
            time.sleep(self.delay)
        self.batches.append((batch.num_rows, batch.num_tokens))
        if self.error is not None:
            raise self.error
        assert not self.closed

    def predict_ids(self, batch):
        self._run(batch)
        return self.count(batch)

    def encode_ids(self, batch, pooling):
        self._run(batch)
        return self.count(batch) + {"pooled": 1, "first": 2, "mean": 3}[pooling]

    def count(self, batch):
        rows = np.repeat(np.arange(batch.num_rows), np.diff(batch.row_splits))
        values = np.zeros((batch.num_rows, len(self.labels)), np.float32)
        np.add.at(values, (rows, batch.token_ids % len(self.labels)), 1)
        return values

    def expect(self, texts):
        """The logits of texts, computed without any queue."""
        return self.count(self.tokenizer.encode(texts, self.max_length, self.truncation).batch)

    def predictions_from_logits(self, logits, truncated, top_k=1):
        return predictions_from_scores(scores_from_logits(logits, self.problem_type), truncated, self.labels, top_k)

    def describe(self):
        return [{"name": self.engine, "threads": 2}]

    def close(self):
        self.closed = True
