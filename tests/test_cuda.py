"""The CUDA engine on a card: against the fp64 oracle and PyTorch's own half precision, graphs, threads, memory, tuning.

Skipped visibly where there is no usable card; with FTBERT_REQUIRE_GPU=1 its absence is a failure.
"""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from numpy_bert import as_weights, random_weights, run_batch
from tolerances import CUDA_TOLERANCES

from ftbert._ops import Engine, describe_machine
from ftbert.batching import pack
from ftbert.config import BertConfig
from ftbert.errors import ConfigError, InputError, OutOfMemoryError, UnavailableError

pytestmark = pytest.mark.gpu

ALL = ("logits", "pooled", "first_states", "token_states")

CONFIGS = {
    "small": BertConfig(97, 48, 2, 3, 80, 64, 2, "gelu_tanh"),
    "erf": BertConfig(33, 64, 3, 1, 256, 40, 2, "gelu_erf"),
    "relu, odd": BertConfig(50, 35, 1, 5, 51, 33, 3, "relu"),
    "heads of 1": BertConfig(15, 4, 2, 4, 16, 16, 2, "gelu_tanh"),
    "heads of 128": BertConfig(40, 256, 2, 2, 512, 150, 2, "gelu_tanh"),
    "wider than a warp's registers": BertConfig(40, 2304, 1, 36, 128, 40, 2, "gelu_tanh"),
}


@pytest.fixture(scope="module", autouse=True)
def card():
    """What describe_machine says of CUDA; no card ends the tests here."""
    found = describe_machine()["cuda"]
    if not any(device.get("usable") for device in found["devices"]):
        reason = "no usable CUDA card: %s" % found["problem"]
        if os.environ.get("FTBERT_REQUIRE_GPU") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def precisions(card):
    hopper = card["devices"][0]["compute_capability"] == "9.0"
    return [p for p in CUDA_TOLERANCES if p != "fp8" or hopper]


def random_batch(config, lengths, seed=0):
    random = np.random.RandomState(seed)
    return pack(
        [random.randint(0, config.vocab_size, n) for n in lengths],
        [random.randint(0, config.type_vocab_size, n) for n in lengths],
    )


def build(config, arrays, num_labels=3, device="cuda", precision="fp16"):
    return Engine.build(config, as_weights(arrays), num_labels, device=device, precision=precision)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_output_matches_the_oracle(name, card):
    config = CONFIGS[name]
    arrays = random_weights(config, 3, seed=sum(name.encode()))
    longest = config.max_position_embeddings
    batch = random_batch(config, [1, longest, 7, 2, longest - 1, 13, 1])
    expected = run_batch(config, arrays, batch, ALL)
    for precision in precisions(card):
        with build(config, arrays, precision=precision) as engine:
            for _ in range(3):  # run as it is, recorded, replayed
                got = engine.run(batch, ALL)
                for want in ALL:
                    assert got[want].shape == expected[want].shape
                    worst = np.abs(got[want] - expected[want]).max()
                    assert worst <= CUDA_TOLERANCES[precision], (precision, want)


def test_one_graph_serves_every_batch_of_its_bucket():
    config = CONFIGS["small"]
    arrays = random_weights(config, 3)
    with build(config, arrays, precision="fp32") as engine:
        for seed, lengths in enumerate([[40, 20], [33, 29], [1, 60], [30, 31], [61], [2, 60], [64]] * 2):
            batch = random_batch(config, lengths, seed)
            expected = run_batch(config, arrays, batch, ("logits",))["logits"]
            worst = np.abs(engine.run(batch)["logits"] - expected).max()
            assert worst <= CUDA_TOLERANCES["fp32"], lengths


def test_a_row_alone_equals_the_row_in_a_batch():
    config = CONFIGS["heads of 128"]
    arrays = random_weights(config, 3)
    lengths = [150, 1, 33, 64, 7, 128]
    batch = random_batch(config, lengths)
    with build(config, arrays) as engine:
        together = engine.run(batch)["logits"]
        for row in range(len(lengths)):
            alone = engine.run(batch.take(np.array([row])))["logits"]
            assert np.abs(alone - together[row : row + 1]).max() <= CUDA_TOLERANCES["fp16"]


def torch_logits(config, arrays, batch, dtype):
    """The same model in plain PyTorch on the card, every row by itself."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    heads = config.num_attention_heads
    w = {name: torch.tensor(array, device="cuda", dtype=dtype) for name, array in arrays.items()}

    def dense(x, name):
        return x @ w[name + "/kernel"] + w[name + "/bias"]

    def norm(x, name):
        scope = name + "/LayerNorm/"
        return functional.layer_norm(x, x.shape[-1:], w[scope + "gamma"], w[scope + "beta"], config.norm_epsilon)

    rows = []
    for begin, end in zip(batch.row_splits, batch.row_splits[1:]):
        ids = torch.tensor(batch.token_ids[begin:end], device="cuda", dtype=torch.long)
        segments = torch.tensor(batch.segment_ids[begin:end], device="cuda", dtype=torch.long)
        x = w["bert/embeddings/word_embeddings"][ids] + w["bert/embeddings/token_type_embeddings"][segments]
        x = norm(x + w["bert/embeddings/position_embeddings"][: len(ids)], "bert/embeddings")
        for i in range(config.num_hidden_layers):
            layer = "bert/encoder/layer_%d/" % i
            q, k, v = (
                dense(x, layer + "attention/self/" + part).view(len(ids), heads, -1).transpose(0, 1)
                for part in ("query", "key", "value")
            )
            scores = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, -1)
            context = (scores @ v).transpose(0, 1).reshape(len(ids), -1)
            x = norm(x + dense(context, layer + "attention/output/dense"), layer + "attention/output")
            inner = functional.gelu(dense(x, layer + "intermediate/dense"), approximate="tanh")
            x = norm(x + dense(inner, layer + "output/dense"), layer + "output")
        pooled = torch.tanh(dense(x[0], "bert/pooler/dense"))
        rows.append(pooled @ w["output_weights"].T + w["output_bias"])
    return torch.stack(rows).double().cpu().numpy()


@pytest.mark.parametrize("times", [1, 2])  # twice as many rows lie in tiles
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_at_most_twice_as_wrong_as_torch(precision, times):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")
    config = BertConfig(1000, 768, 6, 12, 3072, 128, 2, "gelu_tanh")
    arrays = random_weights(config, 16, scale=0.04)
    batch = random_batch(config, [128, 5, 40, 64, 17, 90, 31, 77] * times)
    truth = torch_logits(config, arrays, batch, torch.float64)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    theirs = np.abs(torch_logits(config, arrays, batch, dtype) - truth)
    with build(config, arrays, 16, precision=precision) as engine:
        ours = np.abs(engine.run(batch)["logits"] - truth)
    print("%s: mean error ours %.2e torch %.2e" % (precision, ours.mean(), theirs.mean()))
    assert ours.mean() <= 2 * theirs.mean()
    assert ours.max() <= 2 * theirs.max()


def test_large_activations_do_not_overflow_fp16():
    config = CONFIGS["heads of 128"]
    arrays = random_weights(config, 3)
    arrays["bert/encoder/layer_0/output/dense/bias"][:4] = [70000.0, -70000.0, 60000.0, 65000.0]
    arrays["bert/embeddings/LayerNorm/gamma"][7] = 900.0
    batch = random_batch(config, [100, 3])
    with build(config, arrays) as engine:
        for _ in range(3):
            assert np.isfinite(engine.run(batch, ALL)["token_states"]).all()


def test_threads_share_an_engine():
    config = CONFIGS["heads of 128"]
    arrays = random_weights(config, 3)
    work_items = [[5], [150], [7, 9, 33], [64, 64], [1] * 50]
    batches = [random_batch(config, lengths, i) for i, lengths in enumerate(work_items)]
    with build(config, arrays) as first, build(config, arrays, precision="bf16") as second:
        expected = {id(e): [e.run(b)["logits"] for b in batches] for e in (first, second)}
        wrong = []

        def work(seed):
            random = np.random.RandomState(seed)
            for _ in range(200):
                engine, i = (first, second)[random.randint(2)], random.randint(len(batches))
                if not np.abs(engine.run(batches[i])["logits"] - expected[id(engine)][i]).max() <= 2e-2:
                    wrong.append((seed, i))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def run_threads(engine, batches, alone, seconds, tolerance):
    """Eight threads give the engine random batches of rows that it has answered alone; what went wrong."""
    rows = [batch.take(np.array([i])) for batch in batches for i in range(batch.num_rows)]
    wrong, end = [], time.monotonic() + seconds

    def work(seed):
        random = np.random.RandomState(seed)
        while time.monotonic() < end and not wrong:
            chosen = random.randint(0, len(rows), random.randint(1, (4, 32, 128)[random.randint(3)] + 1))
            try:
                got = engine.run(pack([rows[i].token_ids for i in chosen], [rows[i].segment_ids for i in chosen]))
                off = np.abs(got["logits"] - alone[chosen]).max()
            except Exception as error:  # noqa: BLE001 - what a thread saw must reach the test
                wrong.append(repr(error))
                return
            if not off <= tolerance:
                wrong.append((seed, len(chosen), float(off)))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def test_eight_threads_on_a_bert_base(seconds=30):
    """Sizes, threads and recorded batches with which a kernel that passed every check alone once failed."""
    config = BertConfig(1000, 768, 12, 12, 3072, 512, 2, "gelu_tanh")
    arrays = random_weights(config, 5, scale=0.04)
    random = np.random.RandomState(1)
    batches = [random_batch(config, random.randint(1, most, 64), most) for most in (40, 128, 512)]
    with build(config, arrays, 5) as engine:
        alone = np.concatenate(
            [engine.run(batch.take(np.array([i])))["logits"] for batch in batches for i in range(batch.num_rows)]
        )
        assert np.abs(alone - np.roll(alone, 1, axis=0)).max(axis=1).min() > 0.06  # another row's answer would show
        assert not run_threads(engine, batches, alone, seconds, 0.03)


def test_a_warm_engine_takes_no_more_memory_and_answers_alike():
    config = CONFIGS["heads of 128"]
    arrays = random_weights(config, 3)
    batches = [random_batch(config, lengths) for lengths in ([9], [40, 3, 70], [5] * 60, [150] * 7)]
    with build(config, arrays) as cold, build(config, arrays) as warm:
        warm.warm(2048, 4)
        memory = warm.describe()["scratch_bytes"]
        for batch in batches * 3:
            assert np.abs(cold.run(batch)["logits"] - warm.run(batch)["logits"]).max() <= CUDA_TOLERANCES["fp16"]
        assert warm.describe()["scratch_bytes"] == memory >= cold.describe()["scratch_bytes"]
        with pytest.raises(InputError, match="at least 1 token"):
            warm.warm(0)


@pytest.mark.parametrize("switch", ["early-start", "graphs", "watching", "clusters", "prefetch", "cublaslt", "tiles"])
def test_each_switch_leaves_the_answers_alone(switch, monkeypatch):
    config = BertConfig(200, 768, 2, 12, 3072, 128, 2, "gelu_tanh")
    arrays = random_weights(config, 3, scale=0.04)
    batches = [random_batch(config, lengths) for lengths in ([32], [128, 60], [100] * 12, [64] * 18)]
    with build(config, arrays) as engine:
        expected = [engine.run(batch)["logits"] for batch in batches]
        expected_tiles = "capability 9.0" in engine.describe()["isa"]
    monkeypatch.setenv("FTBERT_CUDA_DISABLE", switch)
    tile = 128 if expected_tiles else 0
    with build(config, arrays) as engine:
        assert engine.describe()["switches"] == "no " + switch
        assert engine.describe()["row_tile"] == (0 if switch == "tiles" else tile)
        for batch, logits in list(zip(batches, expected)) * 3:
            assert np.abs(engine.run(batch)["logits"] - logits).max() <= CUDA_TOLERANCES["fp16"]
    monkeypatch.setenv("FTBERT_CUDA_DISABLE", switch + ",everything")
    with pytest.raises(InputError, match="early-start.*everything"):
        build(config, arrays)


def test_what_the_card_cannot_do_is_refused():
    config = CONFIGS["small"]
    arrays = random_weights(config, 3)
    with pytest.raises(UnavailableError, match="index 0 to"):
        build(config, arrays, device="cuda:97")
    with pytest.raises((ConfigError, InputError), match="cuda:<index>"):
        build(config, arrays, device="cuda:one")
    with pytest.raises(UnavailableError, match="fp16"):
        build(config, arrays, precision="int8")


def test_out_of_memory_names_sizes_and_leaves_the_engine_usable(card):
    config = BertConfig(50, 1024, 1, 16, 16384, 512, 2, "gelu_tanh")
    arrays = random_weights(config, 3)
    small = random_batch(config, [9, 30])
    with build(config, arrays) as engine:
        before = engine.run(small)["logits"]
        a_token = 2 * (2 * 1024 + 16384)  # bytes: states and what is added to them, the feed-forward's activations
        rows = int(1.2 * card["devices"][0]["memory_bytes"] / a_token / 512)
        huge = random_batch(config, [512])._replace(
            token_ids=np.zeros(rows * 512, np.int32),
            segment_ids=np.zeros(rows * 512, np.int32),
            row_splits=np.arange(0, rows * 512 + 1, 512, dtype=np.int32),
        )
        with pytest.raises(OutOfMemoryError, match="MiB"):
            engine.run(huge)
        np.testing.assert_array_equal(engine.run(small)["logits"], before)


def test_describe_names_card_and_memory(card):
    with build(CONFIGS["small"], random_weights(CONFIGS["small"], 3)) as engine:
        engine.run(random_batch(CONFIGS["small"], [7]))
        found = engine.describe()
    assert found["name"] == "cuda:0 %s fp16" % card["devices"][0]["name"]
    assert found["scratch_bytes"] > 0 and found["weight_bytes"] > 0 and found["scratch_bytes_per_token"] > 0


SCRIPT = """
import sys
sys.path[:0] = %r
from test_cuda import CONFIGS, build, random_weights, random_batch
config = CONFIGS["heads of 128"]
with build(config, random_weights(config, 3)) as engine:
    warning = engine.describe()["warning"]
    measured = engine.describe()["tuned_products"]
    if "tune" in sys.argv:
        engine.tune([300])
    engine.run(random_batch(config, [50]))
    print(measured, engine.describe()["tuned_products"], warning)
"""


def test_measured_choices_are_kept_and_damaged_ones_are_not_used(tmp_path):
    here = os.path.dirname(os.path.abspath(__file__))
    environment = dict(os.environ, XDG_CACHE_HOME=str(tmp_path))

    def run(*arguments):
        code = SCRIPT % ([here, os.path.dirname(here)],)
        command = [sys.executable, "-c", code] + list(arguments)
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, cwd=str(tmp_path))
        return done.stdout.decode().strip().split(" ", 2)

    before, after, warning = run("tune")
    assert before == "0" and int(after) >= 4 and warning == "None"
    assert run()[0] == after
    (cache,) = (tmp_path / "ftbert").iterdir()
    cache.write_text(cache.read_text()[:-20])
    before, _, warning = run()
    assert before == "0" and "damaged" in warning
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ftbert"]  # nothing in the working directory
