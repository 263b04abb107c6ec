"""Checkpoints for the tests of ftbert.checkpoint, and what is asked of them."""

import hashlib
import os

import numpy as np

from ftbert.checkpoint import CheckpointWriter, open_checkpoint
from ftbert.checkpoint.safetensors_writer import SafetensorsWriter, TensorSpec
from ftbert.checkpoint.sorted_table import read_table, write_table


def write(prefix, tensors):
    """A TensorFlow checkpoint of name -> array; uint16 arrays are bfloat16."""
    with CheckpointWriter(str(prefix)) as writer:
        for name, array in tensors.items():
            writer.add(name, array, bfloat16=np.asarray(array).dtype == np.uint16)
    return str(prefix)


def write_safetensors(path, tensors):
    specs = [TensorSpec(name, array.dtype.name, array.shape) for name, array in tensors.items()]
    with SafetensorsWriter(str(path), specs) as writer:
        for name, array in tensors.items():
            writer.add(name, array)
    return str(path)


def read_all(path):
    reader = open_checkpoint(str(path))
    return {name: np.array(reader.read(name)) for name in reader.names()}


def fingerprint(folder):
    """Every path below a folder with its content's hash."""
    found = {}
    for base, folders, files in os.walk(str(folder)):
        for name in folders + files:
            path = os.path.join(base, name)
            content = open(path, "rb").read() if os.path.isfile(path) else b""
            found[os.path.relpath(path, str(folder))] = hashlib.sha256(content).hexdigest()
    return found


def trained(seed=0, size=6):
    """A small model as training leaves it: weights, and slots of several optimizers."""
    draw = np.random.RandomState(seed)
    weights = {
        "bert/embeddings/word_embeddings": draw.randn(11, size).astype(np.float32),
        "bert/encoder/layer_0/output/dense/kernel": draw.randn(size, size).astype(np.float32),
        "bert/encoder/layer_0/output/dense/bias": draw.randn(size).astype(np.float32),
        "output_bias": draw.randn(3).astype(np.float32),
        "towers/Adam": draw.randn(2).astype(np.float32),  # a weight that is only called so
    }
    rest = {}
    for name, array in weights.items():
        if name != "towers/Adam":
            for slot in ("adam_m", "adam_v", "Adam", "Adam_1"):
                rest["%s/%s" % (name, slot)] = array * 0.5
            rest["training/%s/LAMBOptimizer" % name] = array * 0.25
    for name in ("beta1_power", "training/beta2_power", "current_loss_scale", "loss_scale/good_steps"):
        rest[name] = np.float32(0.9)
    rest["global_step"] = np.int64(1234)
    return weights, rest


def hold_text(folder, name="a.ckpt"):
    """Says of a tensor that it holds strings."""
    entries = dict(read_table(str(folder / (name + ".index"))))
    kept = entries[b"output_bias"]
    entries[b"output_bias"] = b"\x08\x07" + kept[2:]
    (folder / (name + ".index")).write_bytes(write_table(sorted(entries.items())))
