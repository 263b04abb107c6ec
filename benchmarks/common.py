"""What the benchmarks share: a BERT of realistic weights, the work to do, the machine's description, result files."""

import json
import os
import platform
import re
import subprocess
from typing import Any, Dict, List, Optional

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
RESULTS = os.path.join(HERE, "results")

BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "vocab_size": 21128,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
}
LARGE = dict(BASE, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)


def lognormal_lengths(count: int, seed: int = 0, median: float = 40.0, sigma: float = 0.6) -> np.ndarray:
    """Lengths as short real texts have them: lognormal, clipped to 8 .. 128 tokens."""
    lengths = np.random.RandomState(seed).lognormal(np.log(median), sigma, count)
    return np.clip(np.rint(lengths), 8, 128).astype(np.int64)


def make_model(folder: str, config: Optional[Dict[str, Any]] = None, num_labels: int = 5, seed: int = 0) -> str:
    """Writes a Hugging Face folder of random weights at the scale of trained ones (kernels: standard deviation 0.04).

    Does nothing where the folder is there already. Returns the folder.
    """
    config = dict(config or BASE)
    target = os.path.join(folder, "model.safetensors")
    if os.path.exists(target):
        return folder
    from safetensors.numpy import save_file

    os.makedirs(folder, exist_ok=True)
    config["num_labels"] = num_labels
    config["id2label"] = {str(i): "label_%d" % i for i in range(num_labels)}
    config["label2id"] = {"label_%d" % i: i for i in range(num_labels)}
    random = np.random.RandomState(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]

    def normal(*shape: int, scale: float = 0.04) -> np.ndarray:
        return (random.standard_normal(shape) * scale).astype(np.float32)

    weights = {}  # type: Dict[str, np.ndarray]

    def linear(name: str, outputs: int, inputs: int) -> None:
        weights[name + ".weight"] = normal(outputs, inputs)
        weights[name + ".bias"] = normal(outputs)

    def norm(name: str) -> None:
        weights[name + ".weight"] = 1 + normal(hidden, scale=0.1)
        weights[name + ".bias"] = normal(hidden)

    base = "bert.embeddings."
    weights[base + "word_embeddings.weight"] = normal(config["vocab_size"], hidden)
    weights[base + "position_embeddings.weight"] = normal(config["max_position_embeddings"], hidden)
    weights[base + "token_type_embeddings.weight"] = normal(config["type_vocab_size"], hidden)
    norm(base + "LayerNorm")
    for i in range(config["num_hidden_layers"]):
        layer = "bert.encoder.layer.%d." % i
        for part in ("query", "key", "value"):
            linear(layer + "attention.self." + part, hidden, hidden)
        linear(layer + "attention.output.dense", hidden, hidden)
        norm(layer + "attention.output.LayerNorm")
        linear(layer + "intermediate.dense", inner, hidden)
        linear(layer + "output.dense", hidden, inner)
        norm(layer + "output.LayerNorm")
    linear("bert.pooler.dense", hidden, hidden)
    linear("classifier", num_labels, hidden)
    temporary = target + ".tmp"
    save_file(weights, temporary, metadata={"format": "pt"})
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file, indent=1)
    write_vocabulary(os.path.join(folder, "vocab.txt"), config["vocab_size"])
    os.replace(temporary, target)
    return folder


def write_vocabulary(path: str, size: int) -> None:
    """A vocabulary of `size` pieces: special ones, printable ASCII, common Chinese characters, then made-up words."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces += [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces += ["##" + chr(code) for code in range(97, 123)] + ["##" + chr(code) for code in range(48, 58)]
    pieces += [chr(code) for code in range(0x4E00, 0x9FA6)][: max(0, size - len(pieces))]
    pieces += ["word%d" % i for i in range(size)]
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(pieces[:size]) + "\n")


def machine() -> Dict[str, Any]:
    """Processor, cores, memory, system: what a number means nothing without."""
    model = "unknown"
    with open("/proc/cpuinfo") as file:
        text = file.read()
    found = re.search(r"model name\s*:\s*(.*)", text)
    if found:
        model = found.group(1)
    family = [re.search(r"^%s\s*:\s*(\d+)" % key, text, re.M) for key in ("cpu family", "model")]
    return {
        "processor": model,
        "family_model": "/".join(match.group(1) for match in family if match),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def revision() -> str:
    """The commit measured, with a + where the tree differs from it; FTBERT_REVISION where there is no repository."""
    if os.environ.get("FTBERT_REVISION"):
        return os.environ["FTBERT_REVISION"]
    try:
        commit = subprocess.check_output(["git", "-C", HERE, "rev-parse", "--short", "HEAD"], text=True).strip()
        dirty = subprocess.call(["git", "-C", HERE, "diff", "--quiet", "HEAD", "--", "../ftbert"])
        return commit + ("+" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_result(name: str, value: Dict[str, Any]) -> str:
    """Writes benchmarks/results/<name>.json whole or not at all. Returns its path."""
    os.makedirs(RESULTS, exist_ok=True)
    path = os.path.join(RESULTS, name + ".json")
    temporary = path + ".tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False, sort_keys=False)
        file.write("\n")
    os.replace(temporary, path)
    return path


def batches_of(lengths: np.ndarray, size: int) -> List[np.ndarray]:
    """Rows sorted by length, cut into batches of `size`: the best that a padding engine can do."""
    order = np.argsort(lengths, kind="stable")
    return [order[i : i + size] for i in range(0, len(order), size)]
