"""Several engines: who takes the next batch, what happens when one fails, and whose rows are whose."""

import threading

import models
import numpy as np
import pytest

from ftbert import EngineError, FastBertClassifier, InputError
from ftbert.batching import pack
from ftbert.errors import OutOfMemoryError
from ftbert.streaming import EnginePool, _chunks, answer_batch

BATCH = pack([[1, 2]])


def echo(batch, want):
    """Each row's first id: rows that changed places would show."""
    return batch.token_ids[batch.row_splits[:-1]].astype(np.float32)[:, np.newaxis]


class Broken:
    """Works `good` times, then raises until `mended`."""

    def __init__(self, good, error=EngineError):
        self.good, self.error, self.calls, self.mended = good, error, 0, False

    def __call__(self, batch, want):
        self.calls += 1
        if self.calls > self.good and not self.mended:
            raise self.error("the card has fallen off the bus")
        return echo(batch, want)


def test_engines_take_turns():
    taken = []
    pool = EnginePool([lambda *_, i=i: taken.append(i) for i in range(3)], ["a", "b", "c"], 1)
    for _ in range(6):
        pool.run(BATCH, "logits")
    assert taken == [0, 1, 2, 0, 1, 2]


def test_an_engine_at_work_is_passed_over():
    begun, go_on = threading.Event(), threading.Event()
    taken = []

    def slow(batch, want):
        begun.set()
        assert go_on.wait(30)

    pool = EnginePool([slow, lambda *_: taken.append(1)], ["slow", "quick"], 1)
    thread = threading.Thread(target=pool.run, args=(BATCH, "logits"))
    thread.start()
    assert begun.wait(30)
    for _ in range(5):
        pool.run(BATCH, "logits")
    go_on.set()
    thread.join()
    assert taken == [1] * 5


def test_a_failed_engine_is_named_and_left_alone():
    broken = Broken(1)
    pool = EnginePool([broken, echo], ["cuda:0", "cuda:1"], 1)
    pool.run(BATCH, "logits")
    pool.run(BATCH, "logits")
    with pytest.raises(EngineError, match="^cuda:0: the card has fallen"):
        pool.run(BATCH, "logits")
    assert pool.failures == ["the card has fallen off the bus", None]
    for _ in range(5):
        pool.run(BATCH, "logits")
    assert broken.calls == 2


def test_when_all_have_failed_each_is_tried_again():
    one, two = Broken(0), Broken(0)
    pool = EnginePool([one, two], ["one", "two"], 1)
    for _ in range(4):
        with pytest.raises(EngineError):
            pool.run(BATCH, "logits")
    assert (one.calls, two.calls) == (2, 2)
    one.mended = two.mended = True
    pool.run(BATCH, "logits")
    assert pool.failures.count(None) == 1


@pytest.mark.parametrize("error", [OutOfMemoryError, InputError])
def test_an_engine_that_refuses_a_batch_has_not_failed(error):
    broken = Broken(0, error)
    pool = EnginePool([broken, echo], ["one", "two"], 1)
    with pytest.raises(error):
        pool.run(BATCH, "logits")
    assert pool.failures == [None, None]


@pytest.mark.parametrize("budget", [1, 3, 20, 64, 10000])
@pytest.mark.parametrize("engines", [1, 2, 3])
@pytest.mark.parametrize("tile", [0, 8, 128])
def test_a_batch_is_spread_and_comes_back_in_order(budget, engines, tile):
    source = np.random.RandomState(budget)
    batch = pack([[index] * source.randint(1, 17) for index in range(200)])
    sizes, lock = [], threading.Lock()

    def run(part, want):
        with lock:
            sizes.append((part.num_tokens, part.num_rows))
        return echo(part, want)

    pool = EnginePool([run] * engines, ["engine"] * engines, 2, tile)
    assert np.array_equal(answer_batch(batch, pool, "logits", budget)[:, 0], np.arange(200))
    assert all(tokens <= budget or rows == 1 for tokens, rows in sizes)
    if budget == 64:
        assert len(sizes) % engines == 0
    pool.close()


def test_texts_that_are_dealt_out_for_tiles_come_back_in_order(tmp_path):
    models.google_folder(tmp_path)
    texts = models.texts(500, seed=4)
    with FastBertClassifier.load(str(tmp_path), threads=1, runtime="direct", batch_tokens=200) as loaded:
        assert loaded.row_tile == 0  # a CPU has none
        expected = loaded.predict_proba(texts)
        met, real = [], loaded._pool.run

        def run(batch, want):
            met.append(np.diff(batch.row_splits))
            return real(batch, want)

        loaded._pool.run, loaded._pool.row_tile = run, 128
        assert np.array_equal(loaded.predict_proba(texts), expected)
        assert len(met) > 3 and all(lengths[0] > lengths[-1] for lengths in met)  # each has long ones and short ones


def test_predict_ids_on_two_devices(tmp_path):
    models.google_folder(tmp_path)
    texts = models.texts(500, seed=3)
    with FastBertClassifier.load(str(tmp_path), devices=["cpu", "cpu"], threads=1, runtime="direct") as loaded:
        batch = loaded.tokenize(texts).batch
        assert np.array_equal(loaded.predict_ids(batch, batch_tokens=100), loaded.predict_ids(batch))


def test_a_card_that_fails_half_way_is_reported_and_nothing_is_lost(tmp_path):
    models.google_folder(tmp_path)
    texts = models.texts(9000, seed=5)
    with FastBertClassifier.load(str(tmp_path), devices=["cpu", "cpu"], threads=1, runtime="direct") as loaded:
        expected = loaded.predict_proba(texts)
        real, calls = loaded._runtimes[1].run, []

        def failing(batch, want):
            calls.append(batch.num_rows)
            if len(calls) > 5:
                raise EngineError("an uncorrectable memory error")
            return real(batch, want)

        loaded._runtimes[1].run = failing
        got = []
        with pytest.raises(EngineError, match="cpu: an uncorrectable memory error"):
            for prediction in loaded.predict_stream(texts):
                got.append(prediction)
        # What came before the error is right and without a gap; what did not come is known from its length.
        assert 0 < len(got) < len(texts)
        assert [p.score for p in got] == expected[: len(got)].max(axis=1).tolist()
        assert [state["failure"] for state in loaded.describe()] == [None, "an uncorrectable memory error"]
        before = len(calls)
        assert np.array_equal(loaded.predict_proba(texts), expected)  # the other device does all the work
        assert len(calls) == before


def test_chunks_begin_small_and_at_most_double():
    texts = [str(index) for index in range(1000)]
    chunks = list(_chunks(iter(texts), 160))
    assert [first for first, _ in chunks] == [0, 10, 30, 70, 150, 310, 470, 630, 790, 950]
    assert [text for _, chunk in chunks for text in chunk] == texts
    assert [len(chunk) for _, chunk in _chunks(texts[:3], 2)] == [1, 2]
