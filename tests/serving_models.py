"""Model folders with random weights, for tests of what is around a model."""

import numpy as np

from ftbert._ops import Weight
from ftbert.checkpoint import save_model_folder
from ftbert.checkpoint.names import weight_shapes
from ftbert.config import BertConfig
from ftbert.tokenization import Tokenizer

LETTERS = [chr(code) for code in range(97, 123)] + [chr(code) for code in range(48, 58)]
VOCAB = (
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    + LETTERS
    + ["##" + letter for letter in LETTERS]
    + list("我你他卡钱退款了吗丢")
)


def save_random_model(
    path, labels=("first", "second", "third"), hidden=64, layers=2, seed=0, max_length=64, vocab=VOCAB
):
    """Writes a model folder; returns its path. Weights are large enough that labels differ from text to text."""
    config = BertConfig(
        vocab_size=len(vocab), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=max(1, hidden // 32),
        intermediate_size=4 * hidden, max_position_embeddings=max(64, max_length),
    )  # fmt: skip
    random = np.random.RandomState(seed)

    def weights():
        for name, shape in weight_shapes(config, len(labels)).items():
            if name.endswith("gamma"):
                yield Weight(name, np.ones(shape, np.float32))
            elif name.endswith(("beta", "bias")):
                yield Weight(name, np.zeros(shape, np.float32))
            else:
                scale = 1.0 if name == "output_weights" else 0.1
                yield Weight(name, (scale * random.standard_normal(shape)).astype(np.float32))

    save_model_folder(str(path), config, weights(), Tokenizer(list(vocab)), labels, max_length=max_length)
    return str(path)
