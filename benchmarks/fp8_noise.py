"""How far a BERT's logits move in fp8: with GELU in fp16 pairs, with the output projection in fp16, and with sums that
are rounded in another order.

    python benchmarks/fp8_noise.py        # numpy, ml_dtypes; seven minutes on two cores

BERT-base of random weights in numpy, as the CUDA engine's fp8 computes it: e4m3 weights with a scale for each output,
activations with a scale for each token, attention's results with one for each column, known from the values' weights
and the norm before them. `order` noise is 3e-7 of every product's sums, which is what another kernel's order of adding
changes. And how far off a BERT-large is whose last twelve projections but one, or all but the last, are in fp8. Writes
results/fp8_noise.json.
"""

import os
import sys
import time

import ml_dtypes
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE)]

import common  # noqa: E402

HIDDEN, INNER, LAYERS, HEADS, VOCABULARY, LABELS, ROWS = 768, 3072, 12, 12, 2000, 5, 24
LARGE_ROWS, LARGE_TOKENS = 24, 64
STEP = 2.0**-11  # the error of the tanh instructions
ORDER = 3e-7


def half(x):
    return np.clip(x, -65504, 65504).astype(np.float16).astype(np.float32)


def float8(x, scale):
    return np.clip(x / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)


def layer_norm(x, gamma, beta):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * gamma + beta


def gelu(x, random):
    """fp32, but for the tanh instruction's error (none without `random`)."""
    t = np.tanh(0.7978845608 * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + (t if random is None else t * (1 + random.uniform(-STEP, STEP, t.shape))))


def gelu_pairs(x, random):
    """Every operation in fp16."""
    x = half(x)
    inner = half(x * half(half(np.float32(0.7978845608 * 0.044715)) * half(x * x) + half(np.float32(0.7978845608))))
    t = half(np.tanh(inner) * (1 + random.uniform(-STEP, STEP, x.shape)))
    return half(half(0.5 * x) * t + half(0.5 * x))


class Model:
    def __init__(self, random, hidden=HIDDEN, inner=INNER, layers=LAYERS, heads=HEADS):
        self.heads = heads

        def normal(*shape):
            return (random.standard_normal(shape) * 0.04).astype(np.float32)

        self.words, self.places = normal(VOCABULARY, hidden), normal(512, hidden)
        self.norm = (1 + 2.5 * normal(hidden), normal(hidden))
        self.layers = []
        for _ in range(layers):
            layer = {}
            sizes = {"qkv": (3 * hidden, hidden), "out": (hidden, hidden)}
            sizes.update(up=(inner, hidden), down=(hidden, inner))
            for name, shape in sizes.items():
                w, bias = normal(*shape), normal(shape[0])
                scale = np.abs(w).max(1, keepdims=True) / 448
                layer[name] = (w, bias, float8(w, scale), scale[:, 0])
            layer["norms"] = [(1 + 2.5 * normal(hidden), normal(hidden)) for _ in range(2)]
            self.layers.append(layer)
        self.pooler = (normal(hidden, hidden), normal(hidden))
        self.classifier = (normal(LABELS, hidden), normal(LABELS))

    def logits(self, ids, activation=None, noise=0.0, seed=0, projections=12):
        """fp32 without an activation; else fp8, so many layers' output projections before the last's among it."""
        random = np.random.RandomState(seed)

        def product(x, weights, scale=None):
            w, bias, stored, column_scale = weights
            if activation is None:
                return x @ w.T + bias
            y = half(x) @ half(w).T if scale is None else (float8(x, scale) @ stored.T) * scale * column_scale
            return (y + bias) * (1 + noise * random.standard_normal(y.shape).astype(np.float32))

        def row_scale(x):
            return np.abs(x).max(1, keepdims=True) / 448

        last = len(self.layers) - 1

        def project(context, layer, norm, number):
            """The output projection; the last layer's is in fp16."""
            if activation is None or not last - projections <= number < last:
                return product(context, layer["out"])
            w, bias = (part[2 * hidden :] for part in layer["qkv"][:2])
            most = np.sqrt(hidden * ((w * norm[0]) ** 2).sum(1)) + np.abs(w @ norm[1] + bias)
            scaled = layer["out"][0] * most / 448
            scale = np.abs(scaled).max(1, keepdims=True) / 448
            return product(context * 448 / most, (None, layer["out"][1], float8(scaled, scale), scale[:, 0]), 1.0)

        rounded = (lambda x: x) if activation is None else half
        hidden = self.words.shape[1]
        x, norm = layer_norm(self.words[ids] + self.places[: len(ids)], *self.norm), self.norm
        for number, layer in enumerate(self.layers):
            qkv = rounded(product(x, layer["qkv"], row_scale(x)))
            q, k, v = (part.reshape(len(ids), self.heads, -1).transpose(1, 0, 2) for part in np.split(qkv, 3, 1))
            scores = q @ k.transpose(0, 2, 1) / 8
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            context = (weights / weights.sum(-1, keepdims=True)) @ v
            context = context.transpose(1, 0, 2).reshape(len(ids), hidden)
            x = layer_norm(project(context, layer, norm, number) + rounded(x), *layer["norms"][0])
            up = product(x, layer["up"], row_scale(x))
            longest = np.sqrt((layer["up"][0] ** 2).sum(1)).max()
            bound = (np.sqrt((x**2).sum(1, keepdims=True)) * longest + np.abs(layer["up"][1]).max() + 0.02) / 448
            wide = gelu(up, None) if activation is None else activation(up, random)
            norm = layer["norms"][1]
            x = layer_norm(product(wide, layer["down"], bound) + rounded(x), *norm)
        return np.tanh(x[0] @ self.pooler[0].T + self.pooler[1]) @ self.classifier[0].T + self.classifier[1]


def large_relative_errors():
    """||logits - fp32's|| / ||fp32's|| of a BERT-large, by how many projections are in fp8."""
    model, random = Model(np.random.RandomState(0), 1024, 4096, 24, 16), np.random.RandomState(5)
    off, norm = dict.fromkeys((0, 12, 23), 0.0), 0.0
    for _ in range(LARGE_ROWS):
        ids = random.randint(0, VOCABULARY, LARGE_TOKENS)
        exact = model.logits(ids)
        norm += (exact**2).sum()
        for projections in off:
            off[projections] += ((model.logits(ids, gelu, 0.0, 1, projections) - exact) ** 2).sum()
    return {str(projections): float(np.sqrt(value / norm)) for projections, value in off.items()}


def main():
    model, random = Model(np.random.RandomState(0)), np.random.RandomState(5)
    names = "fp8_from_fp32", "fp8_pairs_from_fp32", "fp8_half_context_from_fp32", "fp8_in_another_order", "rows_apart"
    found = {name: [] for name in names}
    before = None
    for _ in range(ROWS):
        ids = random.randint(0, VOCABULARY, 8 + random.randint(48))
        exact, plain = model.logits(ids), model.logits(ids, gelu, 0.0, 1)
        found["fp8_from_fp32"].append(np.abs(plain - exact).max())
        found["fp8_pairs_from_fp32"].append(np.abs(model.logits(ids, gelu_pairs, ORDER, 3) - exact).max())
        halved = model.logits(ids, gelu, 0.0, 1, projections=0)
        found["fp8_half_context_from_fp32"].append(np.abs(halved - exact).max())
        found["fp8_in_another_order"].append(np.abs(model.logits(ids, gelu, ORDER, 2) - plain).max())
        if before is not None:
            found["rows_apart"].append(np.abs(exact - before).max())
        before = exact
    value = {
        "what": "largest difference of a row's logits, rows of 8 to 55 tokens; BERT-base of random weights in numpy",
        "date": time.strftime("%Y-%m-%d"),
        "machine": common.machine(),
        "rows": ROWS,
        "large": "%d rows of %d tokens, by how many layers project in fp8" % (LARGE_ROWS, LARGE_TOKENS),
        "large_relative_error": large_relative_errors(),
        **{
            name: {"median": float(np.median(v)), "mean": float(np.mean(v)), "largest": float(np.max(v))}
            for name, v in found.items()
        },
    }
    print(common.write_result("fp8_noise", value))


if __name__ == "__main__":
    main()
