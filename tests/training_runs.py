"""Small runs of finetune: rows that can be learned, and runs in interpreters of their own that can be killed."""

import json
import os
import signal
import subprocess
import sys

import numpy as np

from ftbert.checkpoint import open_checkpoint
from ftbert.finetune import finetune

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

WORDS = {
    "fruit": ["apple", "pear", "plum", "苹果", "梨子"],
    "animal": ["horse", "cat", "mouse", "马儿", "猫咪"],
    "colour": ["red", "green", "blue", "红色", "绿色"],
}
FILLERS = ["the", "a", "is", "here", "now", "我", "有", "一个"]

# One layer: TensorFlow takes longer to build the graph of another one, twice or thrice, than to do all else here. What
# is about layers takes two.
TINY = {
    "config": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 16,
        "initializer_range": 0.1,
    },
    "epochs": 2,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "dropout": 0.1,
    "classifier_dropout": 0.1,
    "word_dropout": 0.0,
    "label_smoothing": 0.0,
    "max_length": 16,
    "threads": 1,
    "device": "cpu",
    "progress": False,
    "tensorboard": False,
    "vocab_size": 200,
}
TWO_LAYERS = dict(TINY["config"], num_hidden_layers=2)


def make_rows(count, seed, pairs=False):
    """(text, label) rows whose label is that of the one telling word."""
    draw = np.random.RandomState(seed)
    names = sorted(WORDS)
    rows = []
    for _ in range(count):
        label = names[draw.randint(3)]
        words = [FILLERS[draw.randint(len(FILLERS))] for _ in range(draw.randint(1, 6))]
        words.insert(draw.randint(len(words) + 1), WORDS[label][draw.randint(5)])
        text = " ".join(words)
        rows.append((text, "and then", label) if pairs else (text, label))
    return rows


TRAIN, DEV = make_rows(240, 0), make_rows(60, 1)


def run(output, train=TRAIN, dev=DEV, pretrained=None, **changes):
    options = dict(TINY, **changes)
    if pretrained is not None:
        options.pop("config")
    return finetune(train, dev, pretrained, str(output), **options)


def read_weights(folder):
    reader = open_checkpoint(str(folder))
    return {name: np.array(reader.read(name)) for name in reader.names()}


def assert_same(first, second):
    first, second = read_weights(first), read_weights(second)
    assert sorted(first) == sorted(second)
    for name in first:
        assert np.array_equal(first[name], second[name]), name


APART = """
import json, os, signal, sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from ftbert.training import run_folder, updates
module, changes, death = __import__(sys.argv[3]), json.loads(sys.argv[4]), json.loads(sys.argv[5])
write_text, train_step = run_folder.write_text, updates.UpdateGraph.train_step
left = None  # steps to live
def die_when_over():
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
def write(path, text):
    global left
    write_text(path, text)
    if os.path.basename(path) == "progress.json" and json.loads(text)[death["counter"]] == death["wanted"]:
        left = death["steps"]
        die_when_over()
def step(self, parts):
    global left
    result = train_step(self, parts)
    if left is not None:
        left -= 1
        die_when_over()
    return result
if death:
    run_folder.write_text, updates.UpdateGraph.train_step = write, step
print(json.dumps([module.run(output, **changes).history for output in sys.argv[6:]]))
"""


def _start(module, outputs, changes, death=None):
    """`module.run` for each output in an interpreter of its own: its exit status and what it printed, the histories.

    TensorFlow's pool of threads is the process's, made by its first session: runs are equal bit by bit where their
    pools are, and this process's pool is whatever the tests before asked for.
    """
    command = [sys.executable, "-c", APART, ROOT, os.path.join(ROOT, "tests"), module]
    command += [json.dumps(changes), json.dumps(death)] + [str(output) for output in outputs]
    done = subprocess.run(command, stderr=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=300)
    return done.returncode, done.stdout.decode()


def run_apart(module, outputs, changes):
    """The histories of whole runs, one after another in an interpreter of their own."""
    status, printed = _start(module, outputs, changes)
    assert status == 0
    return json.loads(printed.splitlines()[-1])


def kill_apart(module, output, changes, counter, wanted, steps):
    """A run that kills itself so many steps after its kept state says that `counter` has come to `wanted`."""
    status, _ = _start(module, [output], changes, {"counter": counter, "wanted": wanted, "steps": steps})
    assert status == -signal.SIGKILL
    with open(str(output) + ".training/progress.json", encoding="utf-8") as file:
        assert json.load(file)[counter] == wanted
