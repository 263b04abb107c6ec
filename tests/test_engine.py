"""The engine through its C ABI, every device and precision of this machine against the numpy oracle."""

import threading

import numpy as np
import pytest
from numpy_bert import as_weights, random_weights, run_batch

from ftbert._ops import Engine, Weight, describe_machine
from ftbert.batching import PackedBatch, pack
from ftbert.config import BertConfig
from ftbert.errors import ClosedError, ConfigError, InputError, UnavailableError

ALL = ("logits", "pooled", "first_states", "token_states")

# (device, precision) -> largest absolute error of logits and states allowed at these sizes.
TOLERANCES = {
    ("reference", "fp32"): 1e-6,
    ("cpu", "fp32"): 2e-5,
    ("cpu", "bf16"): 8e-2,
    ("cpu", "int8"): 1.5e-1,
}

CONFIGS = {
    "small": BertConfig(97, 48, 2, 3, 80, 64, 2, "gelu_tanh"),
    "erf": BertConfig(33, 64, 3, 1, 256, 40, 2, "gelu_erf"),
    "relu, odd": BertConfig(50, 35, 1, 5, 51, 33, 3, "relu"),
    "heads of 1": BertConfig(15, 4, 2, 4, 16, 16, 2, "gelu_tanh"),
    "heads of 128": BertConfig(40, 256, 2, 2, 512, 150, 2, "gelu_tanh"),
}


def random_batch(config, lengths, seed=0):
    random = np.random.RandomState(seed)
    return pack(
        [random.randint(0, config.vocab_size, n) for n in lengths],
        [random.randint(0, config.type_vocab_size, n) for n in lengths],
    )


def build(config, arrays, num_labels=3, **options):
    return Engine.build(config, as_weights(arrays), num_labels, "bert/pooler/dense/kernel" in arrays, **options)


@pytest.fixture(params=sorted(TOLERANCES), ids="-".join)
def target(request):
    device, precision = request.param
    return {"device": device, "precision": precision}, TOLERANCES[request.param]


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_output_matches_the_oracle(name, target):
    config = CONFIGS[name]
    options, tolerance = target
    arrays = random_weights(config, 3)
    longest = config.max_position_embeddings
    batch = random_batch(config, [1, longest, 7, 2, longest - 1, 13, 1])
    expected = run_batch(config, arrays, batch, ALL)
    with build(config, arrays, **options) as engine:
        got = engine.run(batch, ALL)
        for output in ALL:
            assert got[output].shape == expected[output].shape
            worst = np.abs(got[output] - expected[output]).max()
            assert not np.isnan(got[output]).any() and worst <= tolerance, (output, worst)
        # The short cut through the last layer gives what the whole layer gives.
        short = engine.run(batch)["logits"]
        assert np.abs(short - got["logits"]).max() <= tolerance / 4


def test_a_row_alone_equals_the_row_in_a_batch(target):
    options, _ = target
    config = CONFIGS["small"]
    batch = random_batch(config, [5, 64, 1, 33, 17, 2, 48])
    with build(config, random_weights(config, 3), **options) as engine:
        together = engine.run(batch, ("logits", "pooled"))
        for row in range(batch.num_rows):
            alone = engine.run(batch.take(np.array([row])), ("logits", "pooled"))
            for output in alone:
                assert np.array_equal(alone[output][0], together[output][row]), (row, output)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_threads_do_not_change_a_bit(precision):
    config = CONFIGS["small"]
    arrays = random_weights(config, 3)
    batch = random_batch(config, [64] * 5 + [3, 9, 1])
    results = []
    for threads in (1, 2, 3):
        with build(config, arrays, precision=precision, threads=threads) as engine:
            assert engine.describe()["threads"] == threads
            results.append(engine.run(batch, ALL))
    for other in results[1:]:
        for output in ALL:
            assert np.array_equal(results[0][output], other[output])


def test_transposed_and_half_arrays_mean_the_same():
    config = CONFIGS["small"]
    arrays = {
        name: array.astype(np.float16).astype(np.float32) for name, array in random_weights(config, 3).items()
    }
    batch = random_batch(config, [9, 20])

    def transposed(name, array):
        if name.endswith("/kernel"):
            return Weight(name, np.ascontiguousarray(array.T), transposed=True)
        return Weight(name, array)

    forms = [
        as_weights(arrays),
        [transposed(name, array) for name, array in reversed(list(arrays.items()))],
        [Weight(name, array.astype(np.float16)) for name, array in arrays.items()],
    ]
    logits = []
    for weights in forms:
        with Engine.build(config, weights, 3) as engine:
            logits.append(engine.run(batch)["logits"])
    assert np.array_equal(logits[0], logits[1]) and np.array_equal(logits[0], logits[2])


def test_bfloat16_arrays_are_read():
    config = CONFIGS["heads of 1"]
    bits = {name: (array.view(np.uint32) >> 16).astype(np.uint16) for name, array in random_weights(config, 2).items()}
    arrays = {name: (array.astype(np.uint32) << 16).view(np.float32) for name, array in bits.items()}
    batch = random_batch(config, [3, 16])
    with Engine.build(config, [Weight(n, a, bfloat16=True) for n, a in bits.items()], 2) as engine:
        got = engine.run(batch)["logits"]
    assert np.abs(got - run_batch(config, arrays, batch, ["logits"])["logits"]).max() <= 2e-5


def test_a_model_without_head_or_pooler():
    config = CONFIGS["small"]
    batch = random_batch(config, [4, 8])
    arrays = random_weights(config, 0, has_pooler=False)
    with build(config, arrays, num_labels=0) as engine:
        got = engine.run(batch, ("first_states", "token_states"))
        expected = run_batch(config, arrays, batch, ("first_states", "token_states"))
        for output in got:
            assert np.abs(got[output] - expected[output]).max() <= 2e-5
        for output, message in (("logits", "no classifier"), ("pooled", "no pooler")):
            with pytest.raises(InputError, match=message):
                engine.run(batch, (output,))


def test_extreme_inputs_stay_finite(target):
    options, _ = target
    config = CONFIGS["small"]
    arrays = random_weights(config, 3, scale=2.0)
    arrays["bert/embeddings/word_embeddings"] *= 1e4
    with build(config, arrays, **options) as engine:
        assert np.isfinite(engine.run(random_batch(config, [64, 1, 30]), ALL)["logits"]).all()


def test_eight_threads_at_once_get_their_own_rows():
    config = CONFIGS["small"]
    batches = [random_batch(config, [1 + (i * 7 + j) % 60 for j in range(9)], seed=i) for i in range(8)]
    with build(config, random_weights(config, 3), threads=2) as engine:
        expected = [engine.run(batch)["logits"] for batch in batches]
        wrong = []

        def work(index):
            for _ in range(25):
                if not np.array_equal(engine.run(batches[index])["logits"], expected[index]):
                    wrong.append(index)

        workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert wrong == []


SMALL = CONFIGS["small"]
ROW = np.zeros(4, np.int32)


@pytest.mark.parametrize(
    "batch, message",
    [
        (PackedBatch(ROW, ROW, np.array([0, 2, 2, 4], np.int32)), "Row 1 has 0 tokens"),
        (PackedBatch(ROW, ROW, np.array([0, 3], np.int32)), "expected to end at T = 4, got 3"),
        (PackedBatch(ROW, ROW, np.array([1, 4], np.int32)), r"row_splits\[0\] to be 0"),
        (PackedBatch(ROW, ROW, np.array([0, 6, 4], np.int32)), "Row 1 has -2 tokens"),
        (PackedBatch(ROW, ROW[:3], np.array([0, 4], np.int32)), "Expected token_ids"),
        (PackedBatch(ROW[:0], ROW[:0], np.array([0], np.int32)), "Expected token_ids"),
        (PackedBatch(ROW + 97, ROW, np.array([0, 4], np.int32)), r"token_ids\[0\] is 97; expected 0 to 96"),
        (PackedBatch(ROW - 1, ROW, np.array([0, 4], np.int32)), r"token_ids\[0\] is -1"),
        (PackedBatch(ROW, ROW + 2, np.array([0, 4], np.int32)), r"segment_ids\[0\] is 2; expected 0 to 1"),
        (
            PackedBatch(np.zeros(65, np.int32), np.zeros(65, np.int32), np.array([0, 65], np.int32)),
            "Row 0 has 65 tokens; expected 1 to 64",
        ),
    ],
)
def test_bad_batches_are_refused(batch, message):
    with build(SMALL, random_weights(SMALL, 3)) as engine:
        good = random_batch(SMALL, [5])
        before = engine.run(good)["logits"]
        with pytest.raises(InputError, match=message):
            engine.run(batch)
        assert np.array_equal(engine.run(good)["logits"], before)


def test_incomplete_and_wrong_models_are_refused():
    arrays = random_weights(SMALL, 3)
    missing = dict(arrays)
    del missing["bert/encoder/layer_1/output/dense/bias"]
    with pytest.raises(InputError, match="missing bert/encoder/layer_1/output/dense/bias"):
        build(SMALL, missing)
    with pytest.raises(InputError, match="and .* more"):
        build(SMALL, {"bert/pooler/dense/kernel": arrays["bert/pooler/dense/kernel"]})
    with pytest.raises(InputError, match="not one of this configuration's"):
        build(SMALL, dict(arrays, **{"bert/encoder/layer_2/output/dense/bias": arrays["output_bias"]}))
    with pytest.raises(InputError, match=r"expected the shape \(3\) .* got \(4\)"):
        build(SMALL, dict(arrays, output_bias=np.zeros(4, np.float32)))
    with pytest.raises(InputError, match="came twice"):
        Engine.build(SMALL, as_weights(arrays) + as_weights({"output_bias": arrays["output_bias"]}), 3)
    with pytest.raises(ConfigError, match="float64"):
        build(SMALL, dict(arrays, output_bias=np.zeros(3)))
    with pytest.raises(ConfigError, match="precision"):
        build(SMALL, arrays, precision="fp64")
    with pytest.raises(InputError, match="device"):
        build(SMALL, arrays, device="tpu")
    with pytest.raises(InputError, match="threads"):
        build(SMALL, arrays, threads=-1)
    with pytest.raises(UnavailableError, match="The CPU runs fp32, bf16 and int8"):
        build(SMALL, arrays, precision="fp8")


def test_a_closed_engine_says_so():
    engine = build(SMALL, random_weights(SMALL, 3))
    engine.close()
    engine.close()
    with pytest.raises(ClosedError):
        engine.run(random_batch(SMALL, [3]))
    with pytest.raises(ClosedError):
        engine.describe()


def test_the_engine_describes_itself_and_the_machine():
    machine = describe_machine()
    assert machine["cpu"]["threads"] >= 1 and machine["cpu"]["isa"] in machine["cpu"]["levels"]
    assert isinstance(machine["cuda"]["devices"], list)
    with build(SMALL, random_weights(SMALL, 3), threads=2) as engine:
        facts = engine.describe()
    assert facts["device"] == "cpu" and facts["precision"] == "fp32"
    # The kernels' own level may be lower than the machine's: fp32 has no use for bf16 instructions.
    assert facts["isa"] in machine["cpu"]["levels"] and facts["isa_level"] == machine["cpu"]["isa"]
    assert facts["name"].startswith("cpu ") and "2 threads" in facts["name"]
    parameters = sum(array.size for array in random_weights(SMALL, 3).values())
    assert parameters * 4 <= facts["weight_bytes"] <= parameters * 4 * 3
