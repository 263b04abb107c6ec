"""The training graph: one session, one model seen twice (with dropout to learn, without to measure)."""

import collections
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from tensorflow.compat import v1 as tf

from ftbert import modeling
from ftbert.config import BertConfig
from ftbert.errors import FtbertError
from ftbert.training.batches import Batch
from ftbert.training.machine import Machine
from ftbert.training.optimization import AdamW, dense_gradients, layer_depth, learning_rate_at

__all__ = ["Schedule", "StepResult", "TrainingGraph"]

# float16 gradients below 6e-8 vanish: the loss is multiplied by this first, the gradients divided after.
_FLOAT16_LOSS_SCALE = 1024.0

# A run per variable costs more than the copy; all in one would hold the model and its moments once more.
_FETCH_BYTES = 256 << 20


class Schedule(NamedTuple):
    """What decides the updates.

    Attributes:
        learning_rate: the peak.
        total_steps: updates until the rate is 0.
        warmup_steps: updates until the peak.
        weight_decay, clip_norm: as in `AdamW`.
        layer_decay: the rate of a layer is that of the next one above times this.
        head_factor: the classifier head's rate is the learning rate times this.
        bias_correction: as in `AdamW`.
        frozen_layers: this many layers from below stay as they are, and with them the embeddings; -1: all is trained.
    """

    learning_rate: float
    total_steps: int
    warmup_steps: int
    weight_decay: float = 0.01
    clip_norm: Optional[float] = 1.0
    layer_decay: float = 1.0
    head_factor: float = 1.0
    frozen_layers: int = -1
    bias_correction: bool = False


class StepResult(NamedTuple):
    """One micro-batch's loss and, when it made an update, the gradients' norm and the rate."""

    loss: float
    gradient_norm: float
    learning_rate: float


def _hide(ids: Any, draw: Any, share: float, hidden_piece: int, special_pieces: Sequence[int]) -> Any:
    """`ids` with a share of them, drawn anew for each step, replaced; special ones stay."""
    hit = tf.random.stateless_uniform(tf.shape(ids), draw) < share
    for piece in special_pieces:
        hit = tf.logical_and(hit, tf.not_equal(ids, piece))
    return tf.where_v2(hit, tf.fill(tf.shape(ids), hidden_piece), ids)


class TrainingGraph:
    """BERT with a classifier, its loss and its updates, in one session.

    Args:
        config: the encoder's sizes and dropout.
        num_labels: C.
        multi_label: sigmoid instead of softmax.
        schedule: what decides the updates; None: a graph that predicts only.
        machine: devices, threads, precision.
        seed: of new weights and of dropout.
        class_weights: (C,) or None.
        label_smoothing: see `classification_loss`.
        classifier_dropout: on the pooled output.
        accumulation: micro-batches to an update.
        word_dropout: share of the word pieces hidden in training.
        hidden_piece: the id that stands in their place.
        special_pieces: ids that are never hidden.
    """

    def __init__(
        self,
        config: BertConfig,
        num_labels: int,
        multi_label: bool,
        schedule: Schedule,
        machine: Machine,
        seed: int,
        class_weights: Optional[np.ndarray] = None,
        label_smoothing: float = 0.0,
        classifier_dropout: float = 0.1,
        accumulation: int = 1,
        word_dropout: float = 0.0,
        hidden_piece: int = 0,
        special_pieces: Sequence[int] = (),
    ) -> None:
        self._config = config
        self._schedule = schedule
        self._accumulation = accumulation
        self._dtype = tf.as_dtype(machine.mixed_precision) if machine.mixed_precision else None
        self._loss_scale = _FLOAT16_LOSS_SCALE if machine.mixed_precision == "float16" else 1.0
        self._graph = tf.Graph()
        with self._graph.as_default(), machine.scope():
            tf.set_random_seed(seed)
            self._ids = tf.placeholder(tf.int32, [None, None], "input_ids")
            self._mask = tf.placeholder(tf.int32, [None, None], "input_mask")
            self._segments = tf.placeholder(tf.int32, [None, None], "segment_ids")
            labels_type, labels_shape = (tf.float32, [None, num_labels]) if multi_label else (tf.int32, [None])
            self._labels = tf.placeholder(labels_type, labels_shape, "labels")
            self._micro_steps = tf.placeholder_with_default(tf.constant(1.0), [], "micro_steps")
            self.step = tf.get_variable(
                "global_step", [], tf.int64, tf.zeros_initializer(), trainable=False, use_resource=True
            )
            self._micro = tf.placeholder_with_default(tf.constant(0, tf.int64), [], "micro_batch")
            # The mask of every dropout depends on (seed, update, micro-batch): a resumed run draws the same ones.
            draw = tf.stack([tf.constant(seed * 7919, tf.int64) + self._micro, self.step])
            ids = self._ids
            if word_dropout:
                ids = _hide(ids, draw, word_dropout, hidden_piece, special_pieces)
            model, logits = self._model(True, ids, draw, num_labels, classifier_dropout)
            self.variables = model.variables
            with tf.variable_scope(tf.get_variable_scope(), reuse=True):
                _, self._logits = self._model(False, self._ids, None, num_labels, 0.0)
            weights = None if class_weights is None else tf.constant(class_weights, tf.float32)
            rows = modeling.classification_loss(logits, self._labels, multi_label, weights, label_smoothing)
            self._loss = tf.reduce_mean(rows)
            self._build_updates()
            self._values = {name: variable.value() for name, variable in self.state().items()}
            initialize = tf.global_variables_initializer()
        self.session = tf.Session(graph=self._graph, config=machine.session_config())
        self.session.run(initialize)

    def _model(self, training: bool, ids: Any, draw: Any, num_labels: int, dropout: float) -> Tuple[Any, Any]:
        model = modeling.BertModel(
            self._config,
            training,
            ids,
            self._mask,
            self._segments,
            first_token_only=True,
            compute_dtype=self._dtype,
            dropout_seed=draw,
        )
        return model, modeling.apply_classifier(model, num_labels, training, dropout)

    def _trained(self) -> "collections.OrderedDict[str, Any]":
        """The variables that learn: those above the frozen layers."""
        layers = self._config.num_hidden_layers
        limit = layers + 1 if self._schedule.frozen_layers < 0 else layers - self._schedule.frozen_layers
        return collections.OrderedDict(
            (name, variable) for name, variable in self.variables.items() if layer_depth(name, layers) <= limit
        )

    def _factor(self, name: str) -> float:
        if name in ("output_weights", "output_bias"):
            return self._schedule.head_factor
        return self._schedule.layer_decay ** layer_depth(name, self._config.num_hidden_layers)

    def _build_updates(self) -> None:
        schedule = self._schedule
        trained = self._trained()
        self._rate = learning_rate_at(self.step, schedule.learning_rate, schedule.total_steps, schedule.warmup_steps)
        factors = {name: self._factor(name) for name in trained}
        step = self.step if schedule.bias_correction else None
        optimizer = AdamW(trained, self._rate, schedule.weight_decay, schedule.clip_norm, factors, step)
        self.slots = optimizer.slots
        gradients = dense_gradients(self._loss * self._loss_scale, trained.values())
        if self._loss_scale != 1.0:
            gradients = [gradient * (1.0 / self._loss_scale) for gradient in gradients]
        self._add = tf.no_op()
        after: List[Any] = []
        if self._accumulation > 1:
            sums = [
                tf.get_variable(
                    variable.op.name + "/accumulated",
                    variable.shape.as_list(),
                    initializer=tf.zeros_initializer(),
                    trainable=False,
                    use_resource=True,
                )
                for variable in trained.values()
            ]
            pairs = list(zip(sums, gradients))
            self._add = tf.group(*[total.assign_add(gradient, read_value=False) for total, gradient in pairs])
            gradients = [(total + gradient) / self._micro_steps for total, gradient in pairs]
            after = sums
        update, self._norm = optimizer.apply(gradients)
        with tf.control_dependencies([update]):
            cleared = [total.assign(tf.zeros_like(total), read_value=False) for total in after]
        # Loss, norm and rate are read before the step advances: they belong to the step that they are reported with.
        with tf.control_dependencies([update, self._loss, self._norm, self._rate] + cleared):
            self._update = tf.group(self.step.assign_add(1, read_value=False))

    def _feed(self, batch: Batch) -> Dict[Any, Any]:
        return {self._ids: batch.token_ids, self._mask: batch.mask, self._segments: batch.segment_ids}

    def train_step(self, micro_batches: List[Batch]) -> StepResult:
        """One update from `accumulation` micro-batches (fewer at an epoch's end); the loss is their mean.

        Raises:
            FtbertError: the loss is not a number.
        """
        losses = []
        norm = rate = 0.0
        for index, batch in enumerate(micro_batches):
            feed = self._feed(batch)
            feed[self._labels] = batch.labels
            feed[self._micro] = index
            if index < len(micro_batches) - 1:
                loss, _ = self.session.run([self._loss, self._add], feed)
            else:
                feed[self._micro_steps] = float(len(micro_batches))
                loss, norm, rate, _ = self.session.run([self._loss, self._norm, self._rate, self._update], feed)
            losses.append(float(loss))
        if not np.isfinite(losses).all() or not np.isfinite(norm):
            raise FtbertError(
                "The loss became %s (gradient norm %s). Lower learning_rate (now at most %g), or raise warmup."
                % (losses, norm, self._schedule.learning_rate)
            )
        return StepResult(float(np.mean(losses)), float(norm), float(rate))

    def logits(self, batch: Batch) -> np.ndarray:
        """(B, C) without dropout."""
        return self.session.run(self._logits, self._feed(batch))

    def state(self) -> Dict[str, Any]:
        """Every variable that a resumed run needs, by name: weights, moments and the step."""
        state = collections.OrderedDict(self.variables)
        state.update(self.slots)
        state["global_step"] = self.step
        return state

    def read(self, names: Iterable[str]) -> Iterator[Tuple[str, np.ndarray]]:
        """(name, value) of the variables named, fetched in lots of `_FETCH_BYTES`."""
        lot: List[str] = []
        size = 0
        for name in names:
            lot.append(name)
            size += 4 * int(np.prod(self._values[name].shape.as_list()))
            if size > _FETCH_BYTES:
                for pair in self._fetch(lot):
                    yield pair
                lot, size = [], 0
        for pair in self._fetch(lot):
            yield pair

    def _fetch(self, names: List[str]) -> List[Tuple[str, np.ndarray]]:
        return list(zip(names, self.session.run([self._values[name] for name in names])))

    def assign(self, weights: Iterable[Any]) -> List[str]:
        """Gives the model's variables values; returns the names that got none (they keep their new, random ones)."""
        return modeling.assign_weights(self.session, self.variables, weights)

    def close(self) -> None:
        """Ends the session."""
        self.session.close()
