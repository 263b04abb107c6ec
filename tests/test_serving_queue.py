"""BatchingPredictor: the queue without HTTP."""

import asyncio
import os
import threading
import time

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from serving_fakes import KnownPredictor  # noqa: E402

from ftbert.errors import (  # noqa: E402
    ClosedError,
    ConfigError,
    DeadlineError,
    EngineError,
    InputError,
    OutOfMemoryError,
    OverloadedError,
)
from ftbert.serving import BatchingPredictor  # noqa: E402

TEXTS = ["abc", "我要退款", "x", "", "zz top", "a" * 40, "hello world"]


@pytest.fixture
def known():
    return KnownPredictor()


@pytest.fixture
def queue(known):
    with BatchingPredictor(known) as made:
        yield made


def test_answers_are_the_predictors_own(queue, known):
    answer = queue.submit(TEXTS).result(10)
    np.testing.assert_array_equal(answer.values, known.expect(TEXTS))
    assert answer.truncated.tolist() == [False] * 5 + [True, False]
    assert answer.tokens == known.tokenizer.encode(TEXTS, 32).batch.num_tokens


def test_every_thread_gets_its_own_answer(known):
    texts = [chr(97 + index % 26) * (1 + index % 7) for index in range(200)]
    got = [None] * len(texts)
    known.gate.clear()
    with BatchingPredictor(known, batch_tokens=64) as queue:

        def call(index):
            got[index] = queue.submit([texts[index]]).result(30).values

        threads = [threading.Thread(target=call, args=(index,)) for index in range(len(texts))]
        for thread in threads:
            thread.start()
        assert _until(lambda: queue.queued_texts >= 180)  # the first batch is in the engine, held there
        known.gate.set()
        for thread in threads:
            thread.join(30)
    for index, text in enumerate(texts):
        np.testing.assert_array_equal(got[index], known.expect([text]), err_msg=text)
    assert all(tokens <= 64 for _, tokens in known.batches)
    assert len(known.batches) < 60, "texts that waited together were not run together"


def test_coroutines_share_batches_and_the_loop_stays_free(known):
    known.gate.clear()

    async def main(queue):
        waiting = asyncio.gather(*(queue.submit_async([text]).result_async(30) for text in TEXTS * 10))
        while queue.queued_texts > len(TEXTS) * 10 - 1:
            await asyncio.sleep(0.001)
        for _ in range(20):  # the engine is held; this goes on
            await asyncio.sleep(0.001)
        known.gate.set()
        return await waiting

    with BatchingPredictor(known) as queue:
        answers = asyncio.run(asyncio.wait_for(main(queue), 60))
    np.testing.assert_array_equal(np.concatenate([answer.values for answer in answers]), known.expect(TEXTS * 10))
    assert len(known.batches) <= 6


def test_one_long_call_spans_batches_and_lets_others_pass(known, monkeypatch):
    known.gate.clear()
    run, passed = known._run, []

    def run_and_look(batch):
        if len(known.batches) == 5:  # half of the long call is still to come
            passed.append(short.result(10))
        run(batch)

    monkeypatch.setattr(known, "_run", run_and_look)
    with BatchingPredictor(known, batch_tokens=20, max_wait_ms=0) as queue:
        long = queue.submit(["abc"] * 40)  # 5 tokens each: 4 rows a batch
        assert _until(lambda: queue.queued_texts == 36)
        short = queue.submit(["x"])
        assert _until(lambda: len(queue._ready._lines["logits"]) == 2)  # it is tokenized, too
        known.gate.set()
        np.testing.assert_array_equal(long.result(10).values, known.expect(["abc"] * 40))
        np.testing.assert_array_equal(passed[0].values, known.expect(["x"]))
        assert all(tokens <= 20 for _, tokens in known.batches)


def test_a_row_longer_than_the_budget_runs_alone(known):
    with BatchingPredictor(known, batch_tokens=4) as queue:
        np.testing.assert_array_equal(
            queue.submit(["abcdefgh", "x"]).result(10).values, known.expect(["abcdefgh", "x"])
        )


def test_logits_and_embeddings_are_never_mixed(queue, known):
    tickets = [queue.submit([text], want) for text in TEXTS for want in ("logits", "mean", "first")]
    for ticket, (text, add) in zip(tickets, [(text, add) for text in TEXTS for add in (0, 3, 2)]):
        np.testing.assert_array_equal(ticket.result(10).values, known.expect([text]) + add)


def test_a_full_queue_refuses_and_recovers(known):
    known.gate.clear()
    with BatchingPredictor(known, batch_tokens=1, max_queue_texts=5) as queue:
        first = queue.submit(["a"])
        assert _until(lambda: queue.queued_texts == 0)  # it is in the engine
        waiting = [queue.submit(["a"]) for _ in range(5)]
        with pytest.raises(OverloadedError) as caught:
            queue.submit(["a"])
        assert caught.value.retry_after > 0
        known.gate.set()
        for ticket in [first] + waiting:
            ticket.result(10)
        queue.submit(["a"] * 5).result(10)
        assert queue.queued_texts == 0


def test_a_deadline_drops_the_work(known):
    known.gate.clear()
    with BatchingPredictor(known, batch_tokens=1) as queue:
        blocker = queue.submit(["a"])
        assert _until(lambda: queue.queued_texts == 0)
        late = queue.submit(["b", "c"])
        with pytest.raises(DeadlineError):
            late.result(0.05)
        assert queue.queued_texts == 0, "the dropped texts still hold room"
        known.gate.set()
        blocker.result(10)
        queue.submit(["d"]).result(10)
        assert sum(rows for rows, _ in known.batches) == 2, "dropped texts reached the engine"


def test_a_cancelled_coroutine_drops_its_work(known):
    known.gate.clear()

    async def main(queue):
        blocker = queue.submit_async(["a"])
        while queue.queued_texts:
            await asyncio.sleep(0.001)
        task = asyncio.ensure_future(queue.submit_async(["b"]).result_async())
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert queue.queued_texts == 0
        known.gate.set()
        await blocker.result_async(10)
        await queue.submit_async(["c"]).result_async(10)

    with BatchingPredictor(known, batch_tokens=1) as queue:
        asyncio.run(main(queue))
    assert sum(rows for rows, _ in known.batches) == 2


def test_an_engine_error_reaches_those_in_the_batch_only(queue, known):
    known.error = EngineError("broken")
    with pytest.raises(EngineError, match="broken"):
        queue.submit(["a"]).result(10)
    known.error = None
    queue.submit(["a"]).result(10)
    assert queue.queued_texts == 0


def test_an_engine_error_in_the_middle_of_a_long_call(known):
    with BatchingPredictor(known, batch_tokens=20) as queue:
        known.error = EngineError("broken")
        with pytest.raises(EngineError, match="broken"):
            queue.submit(["abc"] * 40).result(10)
        known.error = None
        queue.submit(["a"]).result(10)
        assert queue.queued_texts == 0
        assert sum(rows for rows, _ in known.batches) == 5, "the rest of the failed call was run"


def test_a_batch_too_large_for_the_device_is_split(known):
    real = known.predict_ids

    def small_only(batch):
        if batch.num_rows > 2:
            raise OutOfMemoryError("no room")
        return real(batch)

    known.predict_ids = small_only
    with BatchingPredictor(known) as queue:
        np.testing.assert_array_equal(queue.submit(TEXTS).result(10).values, known.expect(TEXTS))


def test_one_text_too_long_fails_its_own_call_only(queue, known):
    known.gate.clear()
    queue.submit(["x"])
    tickets = [queue.submit(["abc"], truncation="error"), queue.submit(["a" * 99], truncation="error")]
    known.gate.set()
    np.testing.assert_array_equal(tickets[0].result(10).values, known.expect(["abc"]))
    with pytest.raises(InputError, match=r"texts\[0\]: expected at most 32 tokens"):
        tickets[1].result(10)


def test_close_answers_what_is_queued_and_refuses_more(known):
    known.delay = 0.01
    queue = BatchingPredictor(known, batch_tokens=8)
    tickets = [queue.submit(["abc"]) for _ in range(20)]
    queue.close()
    for ticket in tickets:
        np.testing.assert_array_equal(ticket.result(0).values, known.expect(["abc"]))
    assert known.closed
    with pytest.raises(ClosedError):
        queue.submit(["a"])


def test_close_with_a_time_limit_answers_the_rest_with_an_error(known):
    known.gate.clear()
    queue = BatchingPredictor(known, batch_tokens=1)
    queue.submit(["a"])
    assert _until(lambda: queue.queued_texts == 0)
    left = queue.submit(["b"])
    queue.close(timeout=0.1)
    with pytest.raises(ClosedError):
        left.result(1)
    known.gate.set()


def test_no_texts_give_no_predictions(queue):
    assert queue.predict([]) == []
    assert asyncio.run(queue.predict_async([])) == []


def test_a_forked_child_is_told_so(queue):
    queue.submit(["a"]).result(10)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            queue.submit(["a"]).result(5)
            os.write(writing, b"answered")
        except ClosedError:
            os.write(writing, b"told")
        except BaseException as error:  # noqa: BLE001 - the parent shows it
            os.write(writing, repr(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 1000) == b"told"
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("texts", ["one string", b"bytes", [], [1], [None], [("a", "b", "c")], 7])
def test_what_is_no_list_of_texts_is_refused(queue, texts):
    with pytest.raises(InputError):
        queue.submit(texts)


@pytest.mark.parametrize("settings", [{"batch_tokens": 0}, {"max_wait_ms": -1}, {"max_queue_texts": 0}, {"workers": 0}])
def test_settings_out_of_range_are_refused(known, settings):
    with pytest.raises(ConfigError):
        BatchingPredictor(known, **settings)


def test_predictions_are_those_of_the_predictor(queue, known):
    expected = known.predictions_from_logits(known.expect(TEXTS), np.array([False] * 5 + [True, False]), 2)
    got = queue.predict(TEXTS, top_k=2)
    assert got == expected
    assert [prediction.top for prediction in got] == [prediction.top for prediction in expected]
    assert asyncio.run(queue.predict_async(TEXTS, top_k=2, timeout=10)) == expected


def _until(condition, seconds=10):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.002)
    return False
