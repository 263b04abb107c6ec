"""FastBertClassifier: a fine-tuned BERT classifier, loaded once for the life of the object."""

import html
import time
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np

from ftbert._ops import PRECISIONS
from ftbert.batching import PackedBatch, check_batch
from ftbert.checkpoint import ModelFolder, load_model_folder, save_model_folder
from ftbert.errors import ConfigError, UnavailableError
from ftbert.guards import Gate, Progress, check_choice, check_count, open_progress
from ftbert.paths import PathLike
from ftbert.prediction import Prediction, check_top_k, predictions_from_scores, scores_from_logits
from ftbert.runtimes import RUNTIMES, build_runtimes, choose_devices, device_kind, guarded
from ftbert.streaming import Answered, EnginePool, answer_batch, answer_chunks, answer_stream
from ftbert.texts import Text, check_collection, check_texts
from ftbert.tokenization import TRUNCATIONS, Encoded, Tokenizer

__all__ = ["FastBertClassifier", "Prediction"]

# Tokens in one batch: enough to fill the device, few enough that a batch is a fraction of a second.
_BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}

# Texts tokenized together while the engine is busy with those before.
_CHUNK_TEXTS = {"cpu": 1024, "cuda": 4096}

_POOLINGS = {"pooled": "pooled", "first": "first_states", "mean": "token_states"}

# More than any machine's: a number beyond is a mistake, and each thread costs memory.
_MOST_THREADS = 1024

# Token counts that `tune` looks at unless told: a few short texts up to a full batch.
_TUNED_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


class FastBertClassifier:
    """A text classifier. Make one with `load`; every method may be called from many threads at once."""

    def __init__(self, folder: ModelFolder, tokenizer: Tokenizer, runtimes: List[Any], options: Dict[str, Any]) -> None:
        """For `load`, which chooses and checks what comes in."""
        self.folder = folder
        self.tokenizer = tokenizer
        self.config = folder.config
        self.labels = list(folder.labels)
        self.problem_type = folder.problem_type
        self.max_length: int = options["max_length"]
        self.truncation: str = options["truncation"]
        self.batch_tokens: int = options["batch_tokens"]
        self.devices: List[str] = options["devices"]
        self.precision: str = options["precision"]
        self.runtime: str = options["runtime"]
        self._kind = device_kind(self.devices[0])
        self._runtimes = runtimes
        self._gate = Gate()
        runs, found = [guarded(self._gate, runtime) for runtime in runtimes], [run.describe() for run in runtimes]
        self.row_tile = min(int(facts.get("row_tile", 0)) for facts in found)
        # Two batches at a time on a card: one is copied while the other is computed.
        self._pool = EnginePool(runs, self.devices, 2 if self._kind == "cuda" else 1, self.row_tile)
        self._engine = " + ".join(str(facts["name"]) for facts in found)

    @classmethod
    def load(
        cls,
        path: PathLike,
        device: str = "auto",
        precision: str = "auto",
        max_length: Optional[int] = None,
        truncation: Optional[str] = None,
        threads: Optional[int] = None,
        runtime: str = "session",
        devices: Union[str, Sequence[str], None] = None,
        batch_tokens: Optional[int] = None,
        lower_case: Optional[bool] = None,
    ) -> "FastBertClassifier":
        """Loads a model, warms it up, and returns it ready to answer.

        Args:
            path: a folder of ours, google-research/bert's, run_classifier's output or Hugging Face's; or a checkpoint
                in it.
            device: "auto" (a usable CUDA card, else the CPU), "cpu", "cuda" or "cuda:<index>".
            precision: "fp32", "bf16", "fp16", "int8", "fp8"; "auto": fp16 on a card and fp32 on the CPU, or lower
                where the folder records that it was checked.
            max_length: the longest row in tokens; None: the folder's, else as many as the model has positions.
            truncation: "error", "head", "tail" or "head+tail"; None: the folder's, else "head".
            threads: CPU threads; None: what the process may use.
            runtime: "session" (the engine as a TensorFlow op), "direct" (the same engine, no TensorFlow in the
                process), "tensorflow" (the same model in plain TensorFlow, to compare with).
            devices: "all" or a list: a copy of the model on each, batches spread over them.
            batch_tokens: tokens in one batch; None: what suits the device.
            lower_case: overrides what the folder says of its tokenizer.

        Raises:
            CheckpointError, ConfigError: the folder or an argument is wrong; nothing was loaded.
            UnavailableError: the device, precision or TensorFlow asked for is not here.
        """
        check_choice("runtime", runtime, sorted(RUNTIMES))
        check_choice("precision", precision, ["auto", *PRECISIONS])
        check_count("threads", threads, 1, _MOST_THREADS)
        if not isinstance(lower_case, (bool, type(None))):
            raise ConfigError("lower_case: expected True, False or None, got %r." % (lower_case,))
        check_count("batch_tokens", batch_tokens, 1)
        folder = load_model_folder(path)
        options = _row_options(folder, max_length, truncation)
        tokenizer = Tokenizer.from_folder(folder.path, lower_case)
        tokenizer.check_fits(folder.path, folder.config.vocab_size)
        plain = runtime == "tensorflow" and device == "auto"
        chosen = choose_devices("cpu" if plain else device, devices)
        runtimes, used = build_runtimes(folder, runtime, chosen, precision, threads or 0)
        options.update(devices=chosen, precision=used, runtime=runtime)
        options["batch_tokens"] = batch_tokens or _BATCH_TOKENS.get(device_kind(chosen[0]), _BATCH_TOKENS["cpu"])
        classifier = cls(folder, tokenizer, runtimes, options)
        try:
            classifier._warm_up()
        except BaseException:
            classifier.close()
            raise
        return classifier

    def _warm_up(self) -> None:
        """One small batch through each device, so that the first caller does not pay for what happens once."""
        row = np.array([self.tokenizer.cls_id, self.tokenizer.sep_id], np.int32)
        batch = PackedBatch(row, np.zeros(2, np.int32), np.array([0, 2], np.int32))
        want = "logits" if self.labels else "first_states"
        for runtime in self._runtimes:
            runtime.run(batch, want)

    # Prediction

    def predict(
        self,
        texts: Iterable[Text],
        top_k: Optional[int] = 1,
        batch_tokens: Optional[int] = None,
        progress: Progress = None,
    ) -> List[Prediction]:
        """The label of each text.

        Args:
            texts: strings and (first, second) pairs.
            top_k: how many labels each prediction's `top` names; None: all.
            batch_tokens: tokens in one batch; None: as loaded.
            progress: True for a bar, or a function of (done, total).

        Returns:
            One Prediction for each text, in the caller's order; [] for none.

        Raises:
            InputError: an item is no text, or too long under truncation="error". Nothing was predicted.
        """
        check_top_k(top_k)
        predictions: List[Prediction] = []
        for part in self._answer(texts, "logits", batch_tokens, progress):
            predictions += self.predictions_from_logits(part.values, part.encoded.truncated, top_k)
        return predictions

    def predict_proba(
        self, texts: Iterable[Text], batch_tokens: Optional[int] = None, progress: Progress = None
    ) -> np.ndarray:
        """Every label's score for each text: float32 (B, C), columns as `labels`. Errors as `predict`."""
        parts = [part.values for part in self._answer(texts, "logits", batch_tokens, progress)]
        logits = np.concatenate(parts) if parts else np.zeros((0, len(self.labels)), np.float32)
        return scores_from_logits(logits, self.problem_type) if parts else logits

    def predict_stream(
        self, texts: Iterable[Text], top_k: Optional[int] = 1, batch_tokens: Optional[int] = None
    ) -> Iterator[Prediction]:
        """Predictions one after the other, for more texts than fit into memory.

        `texts` is walked in another thread, a few thousand ahead. A wrong item raises where its turn comes, after the
        predictions of the chunks before it.
        """
        self._gate.check()
        self._check_output("logits")
        check_top_k(top_k)
        check_count("batch_tokens", batch_tokens, 1)
        check_collection(texts)
        return (
            prediction
            for part in self._stream(texts, "logits", batch_tokens or self.batch_tokens)
            for prediction in self.predictions_from_logits(part.values, part.encoded.truncated, top_k)
        )

    def encode(
        self,
        texts: Iterable[Text],
        pooling: str = "pooled",
        batch_tokens: Optional[int] = None,
        progress: Progress = None,
    ) -> np.ndarray:
        """One vector for each text: float32 (B, H).

        Args:
            texts: strings and pairs.
            pooling: "pooled" (tanh pooler over the first token, what the classifier sees), "first" (the first token's
                last state), "mean" (the mean of all tokens' last states, as sentence encoders use it).
            batch_tokens: tokens in one batch; None: as loaded.
            progress: as in `predict`.
        """
        want = self._check_pooling(pooling)
        parts = [part.values for part in self._answer(texts, want, batch_tokens, progress)]
        return np.concatenate(parts) if parts else np.zeros((0, self.config.hidden_size), np.float32)

    def predict_ids(self, batch: PackedBatch, batch_tokens: Optional[int] = None) -> np.ndarray:
        """The engine alone: logits float32 (B, C) of a packed batch, at once and in the calling thread; with
        `batch_tokens` cut into batches of at most that, which run on all devices."""
        self._check_output("logits")
        check_batch(batch)
        check_count("batch_tokens", batch_tokens, 1)
        if batch_tokens is None:
            return self._pool.run(batch, "logits")
        return answer_batch(batch, self._pool, "logits", batch_tokens)

    def encode_ids(self, batch: PackedBatch, pooling: str = "pooled") -> np.ndarray:
        """`encode` for a packed batch, in the calling thread: float32 (B, H)."""
        check_batch(batch)
        return self._pool.run(batch, self._check_pooling(pooling))

    def predictions_from_logits(
        self, logits: np.ndarray, truncated: np.ndarray, top_k: Optional[int] = 1
    ) -> List[Prediction]:
        """Predictions of rows that were run elsewhere: logits (B, C), truncated (B,) bool."""
        return predictions_from_scores(scores_from_logits(logits, self.problem_type), truncated, self.labels, top_k)

    def tokenize(self, texts: Iterable[Text]) -> Encoded:
        """The token ids that `predict` would run: rows, which of them are truncated, how many pieces are unknown."""
        return self.tokenizer.encode(check_texts(texts), self.max_length, self.truncation)

    def _answer(
        self, texts: Iterable[Text], want: str, batch_tokens: Optional[int], progress: Progress
    ) -> Iterator[Answered]:
        """All texts, checked before any is run; in chunks, in order."""
        self._gate.check()
        self._check_output(want)
        check_count("batch_tokens", batch_tokens, 1)
        checked = check_texts(texts)
        if not checked:
            return
        budget = batch_tokens or self.batch_tokens
        with open_progress(progress, len(checked)) as advance:
            for part in self._answer_checked(checked, want, budget):
                advance(len(part.values))
                yield part

    def _answer_checked(self, texts: List[Text], want: str, budget: int) -> Iterator[Answered]:
        size = self._chunk_texts
        if len(texts) > size // 8 and self.truncation != "error":
            return self._stream(texts, want, budget)
        # Few texts; or a text that is too long must be found before the first batch is run.
        encoded = self.tokenizer.encode(texts, self.max_length, self.truncation)
        if encoded.batch.num_tokens <= budget or len(texts) == 1:
            return iter([Answered(self._pool.run(encoded.batch, want), encoded)])
        chunks = (encoded.rows(begin, min(begin + size, len(texts))) for begin in range(0, len(texts), size))
        return answer_chunks(chunks, self._pool, want, budget)

    def _stream(self, texts: Iterable[Text], want: str, budget: int) -> Iterator[Answered]:
        def encode(chunk: List[Text], first: int) -> Encoded:
            return self.tokenizer.encode(chunk, self.max_length, self.truncation, first)

        return answer_stream(texts, encode, self._pool, want, budget, self._chunk_texts)

    @property
    def _chunk_texts(self) -> int:
        return _CHUNK_TEXTS.get(self._kind, _CHUNK_TEXTS["cpu"])

    def _check_output(self, want: str) -> None:
        if want == "logits" and not self.labels:
            raise UnavailableError(
                "%s has no classifier (output_weights): it can encode(), not predict(). Fine-tune it first (ftbert "
                "finetune --pretrained %s --train ...)." % (self.folder.path, self.folder.path)
            )

    def _check_pooling(self, pooling: str) -> str:
        check_choice("pooling", pooling, _POOLINGS)
        if pooling == "pooled" and not self.folder.has_pooler:
            raise UnavailableError("%s has no pooler: choose pooling='first' or 'mean'." % self.folder.path)
        return _POOLINGS[pooling]

    @property
    def engine(self) -> str:
        """What computes, in words: "cuda:0 NVIDIA H100 80GB HBM3 fp16"."""
        return self._engine

    def describe(self) -> List[Dict[str, Any]]:
        """Each device's engine: name, device, precision, weight_bytes, scratch_bytes, runtime; a CPU's isa, threads and
        strassen (products take tokens in pairs); failure: what it raised and has not worked since, or None."""
        with self._gate:
            states = [runtime.describe() for runtime in self._runtimes]
        return [dict(state, failure=failure) for state, failure in zip(states, self._pool.failures)]

    def tune(self, token_counts: Optional[Sequence[int]] = None) -> float:
        """Searches the fastest kernels for batches of these many tokens and remembers them; answers stay the same to
        within the precision's rounding. Nothing to do on a CPU.

        Args:
            token_counts: None: from 16 to `batch_tokens`.

        Returns:
            Seconds spent.
        """
        counts = list(token_counts or [count for count in _TUNED_TOKENS if count <= self.batch_tokens])
        for count in counts:
            check_count("token_counts", count, 1)
        begin = time.perf_counter()
        with self._gate:
            for runtime in self._runtimes:
                runtime.tune(counts)
        return time.perf_counter() - begin

    def warm(self, most_tokens: int, at_once: int = 1) -> None:
        """On a card: does now what the first runs of each size up to `most_tokens` would, for `at_once` at a time."""
        with self._gate:
            for runtime in self._runtimes:
                runtime.warm(most_tokens, at_once)

    def save(self, path: PathLike) -> None:
        """Writes our model folder, in the precision of the source; a model loaded from it predicts bitwise the same.

        The folder appears whole or not at all; one that ftbert saved there before is replaced.
        """
        save_model_folder(
            path,
            self.config,
            self.folder.weights(),
            self.tokenizer,
            self.labels,
            self.problem_type,
            self.max_length,
            self.truncation,
            self.folder.precision_checked,
            extra={key: value for key, value in self.folder.settings.items() if key not in _OWN_SETTINGS},
            has_pooler=self.folder.has_pooler,
        )

    def close(self) -> None:
        """Frees the model once the calls that run have ended; closing twice is fine."""
        if self._gate.close():
            self._pool.close()
            for runtime in self._runtimes:
                runtime.close()

    def __enter__(self) -> "FastBertClassifier":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def __del__(self) -> None:
        # Nothing can be running: a call in flight holds a reference.
        try:
            self.close()
        except Exception:  # noqa: BLE001 - the interpreter, or a load that failed, may be half way
            return

    def __reduce__(self) -> Any:
        raise TypeError(
            "A FastBertClassifier cannot be pickled: its engine lives in this process. Load the model in each process, "
            "such as in the initializer of a multiprocessing.Pool."
        )

    def _facts(self) -> List[Tuple[str, str]]:
        shown = ", ".join(self.labels[:6]) + (", ..." if len(self.labels) > 6 else "")
        return [
            ("model", self.folder.path),
            ("engine", self._engine + (" (closed)" if self._gate.closed else "")),
            ("runtime", self.runtime),
            ("labels", "%d: %s" % (len(self.labels), shown) if self.labels else "none, encode() only"),
            ("scores", "softmax" if self.problem_type == "single_label" else "sigmoid, any number of labels"),
            ("max_length", "%d tokens, truncation %r" % (self.max_length, self.truncation)),
        ]

    def __repr__(self) -> str:
        return "FastBertClassifier(%r, %d labels, %s, max_length=%d%s)" % (
            self.folder.path,
            len(self.labels),
            self._engine,
            self.max_length,
            ", closed" if self._gate.closed else "",
        )

    def _repr_html_(self) -> str:
        rows = "".join("<tr><th>%s</th><td>%s</td></tr>" % (key, html.escape(value)) for key, value in self._facts())
        return "<table><caption>FastBertClassifier</caption>%s</table>" % rows


# Keys of ftbert.json that save_model_folder writes itself.
_OWN_SETTINGS = ("format", "problem_type", "max_length", "truncation", "precision_checked", "tokenizer")


def _row_options(folder: ModelFolder, max_length: Optional[int], truncation: Optional[str]) -> Dict[str, Any]:
    positions = folder.config.max_position_embeddings
    length = max_length if max_length is not None else (folder.max_length or positions)
    where = "max_length" if max_length is not None else "%s: max_length" % folder.path
    check_count(where, length, 3)
    if length > positions:
        raise ConfigError("%s: expected at most %d, the model's positions, got %d." % (where, positions, length))
    policy = truncation if truncation is not None else (folder.truncation or "head")
    check_choice("truncation", policy, TRUNCATIONS)
    return {"max_length": int(length), "truncation": policy}
