"""Model folders with random weights as google-research/bert, Hugging Face and ftbert lay them out; their oracle."""

import json
import struct

import numpy as np
from numpy_bert import random_weights, run_batch

from ftbert import FastBertClassifier
from ftbert._ops import Weight
from ftbert.checkpoint import CheckpointWriter, load_model_folder, save_model_folder
from ftbert.checkpoint.names import huggingface_names
from ftbert.config import BertConfig
from ftbert.tokenization import Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *("##" + letter for letter in LETTERS)]
VOCAB += "我你卡丢钱退款了吗?!,."
LABELS = ["lost card", "退款", "password"]
CONFIG = BertConfig(len(VOCAB), 48, 2, 4, 96, 40, 2, "gelu_tanh")
ERF_CONFIG = BertConfig(len(VOCAB), 48, 2, 4, 96, 40, 2, "gelu_erf")


def texts(count, seed=0, longest=12):
    """Texts of letters and Chinese characters, some of them pairs, some empty."""
    source = np.random.RandomState(seed)
    words = [*LETTERS, *"我你卡丢钱退款了吗?!,.", "ab", "zebra", "\U0001f600"]

    def text():
        return " ".join(source.choice(words, source.randint(0, longest)))

    return [(text(), text()) if index % 7 == 3 else text() for index in range(count)]


def write_safetensors(path, tensors):
    """name -> array; uint16 arrays are bfloat16. The format by hand: no package of another's in the test."""
    kinds = {"float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64", "uint16": "BF16"}
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, array in tensors.items():
        content = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": kinds[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_vocab(folder, vocab=VOCAB):
    (folder / "vocab.txt").write_text("".join(piece + "\n" for piece in vocab), encoding="utf-8")


def google_folder(folder, num_labels=3, config=CONFIG, seed=0, slots=True, name="model.ckpt-7", dtype=np.float32):
    """A run_classifier output folder, Adam slots and all; returns the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = random_weights(config, num_labels, seed=seed)
    with CheckpointWriter(str(folder / name)) as writer:
        for key, array in arrays.items():
            writer.add(key, array.astype(dtype))
            if slots:
                writer.add(key + "/adam_m", np.zeros_like(array))
                writer.add(key + "/adam_v", np.ones_like(array))
        writer.add("global_step", np.int64(7))
    (folder / "checkpoint").write_text('model_checkpoint_path: "%s"\nall_model_checkpoint_paths: "%s"\n' % (name, name))
    (folder / "bert_config.json").write_text(json.dumps(config.to_dict("google")))
    write_vocab(folder)
    return arrays


def huggingface_tensors(arrays, config, prefix="bert."):
    """google's names -> Hugging Face's, kernels turned."""
    sources = huggingface_names(config.num_hidden_layers, prefix)
    return {
        sources[name].name: np.ascontiguousarray(array.T) if sources[name].transposed else array
        for name, array in arrays.items()
    }


def huggingface_config(config, labels=LABELS, **more):
    values = config.to_dict("huggingface")
    values["architectures"] = ["BertForSequenceClassification" if labels else "BertModel"]
    if labels:
        values["id2label"] = {str(index): label for index, label in enumerate(labels)}
    values.update(more)
    return values


def huggingface_folder(folder, labels=LABELS, config=ERF_CONFIG, seed=0, prefix="bert.", **more):
    """A save_pretrained folder; returns the weights by google's names."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = random_weights(config, len(labels), seed=seed)
    tensors = huggingface_tensors(arrays, config, prefix)
    tensors[prefix + "embeddings.position_ids"] = np.arange(config.max_position_embeddings)[np.newaxis]
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(huggingface_config(config, labels, **more)))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True, "model_max_length": 32}))
    write_vocab(folder)
    return arrays


def our_folder(folder, labels=LABELS, config=CONFIG, seed=0, has_pooler=True, **options):
    """A folder that ftbert saved; returns the weights."""
    arrays = random_weights(config, len(labels), has_pooler, seed=seed)
    weights = [Weight(name, array) for name, array in arrays.items()]
    save_model_folder(str(folder), config, weights, Tokenizer(VOCAB, True), labels, has_pooler=has_pooler, **options)
    return arrays


def oracle(arrays, batch, want, config=CONFIG):
    """One output of a packed batch, by plain numpy in fp64."""
    return run_batch(config, arrays, batch, (want,))[want]


def values(folder):
    """Every weight by name, kernels as (in, out), fp32."""
    return {
        weight.name: weight.array.T if weight.transposed and weight.name.endswith("/kernel") else weight.array
        for weight in load_model_folder(str(folder)).weights()
    }


def same(got, expected):
    return set(got) == set(expected) and all(np.array_equal(got[name], array) for name, array in expected.items())


def load(folder, runtime="direct", **options):
    """A classifier on the CPU."""
    return FastBertClassifier.load(str(folder), device="cpu", runtime=runtime, **options)
