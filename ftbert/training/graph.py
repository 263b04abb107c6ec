"""The graph of fine-tuning: one model seen twice (with dropout to learn, without to measure)."""

from typing import Any, Dict, Optional, Sequence

import numpy as np
from tensorflow.compat import v1 as tf

from ftbert import modeling
from ftbert.config import BertConfig
from ftbert.training.batches import Batch
from ftbert.training.machine import Machine
from ftbert.training.updates import Schedule, StepResult, UpdateGraph

__all__ = ["Schedule", "StepResult", "TrainingGraph"]


def _hide(ids: Any, draw: Any, share: float, hidden_piece: int, special_pieces: Sequence[int]) -> Any:
    """`ids` with a share of them, drawn anew for each step, replaced; special ones stay."""
    hit = tf.random.stateless_uniform(tf.shape(ids), draw) < share
    for piece in special_pieces:
        hit = tf.logical_and(hit, tf.not_equal(ids, piece))
    return tf.where_v2(hit, tf.fill(tf.shape(ids), hidden_piece), ids)


class TrainingGraph(UpdateGraph):
    """BERT with a classifier, its loss and its updates, in one session.

    Args:
        config: the encoder's sizes and dropout.
        num_labels: C.
        multi_label: sigmoid instead of softmax.
        schedule: what decides the updates.
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
        self._num_labels = num_labels
        self._multi_label = multi_label
        self._class_weights = class_weights
        self._label_smoothing = label_smoothing
        self._classifier_dropout = classifier_dropout
        self._word_dropout = word_dropout
        self._hidden_piece = hidden_piece
        self._special_pieces = special_pieces
        specs = modeling.variable_specs(config, num_labels)
        super().__init__(config, specs, schedule, machine, seed, accumulation)

    def _make_inputs(self) -> None:
        self._ids = tf.placeholder(tf.int32, [None, None], "input_ids")
        self._mask = tf.placeholder(tf.int32, [None, None], "input_mask")
        self._segments = tf.placeholder(tf.int32, [None, None], "segment_ids")
        labels_type, labels_shape = (tf.float32, [None, self._num_labels]) if self._multi_label else (tf.int32, [None])
        self._labels = tf.placeholder(labels_type, labels_shape, "labels")

    def _make_loss(self, index: int, variables: Dict[str, Any], draw: Any) -> Any:
        ids, mask, segments, labels = (
            self._replicas.part(rows, index) for rows in (self._ids, self._mask, self._segments, self._labels)
        )
        if self._word_dropout:
            ids = _hide(ids, draw, self._word_dropout, self._hidden_piece, self._special_pieces)
        logits = self._model(True, variables, ids, mask, segments, draw, self._classifier_dropout)
        weights = None if self._class_weights is None else tf.constant(self._class_weights, tf.float32)
        rows = modeling.classification_loss(logits, labels, self._multi_label, weights, self._label_smoothing)
        if self._replicas.count == 1:
            return tf.reduce_mean(rows)
        return tf.reduce_sum(rows) / tf.cast(tf.shape(self._labels)[0], tf.float32)

    def _make_outputs(self, variables: Dict[str, Any]) -> None:
        self._logits = self._model(False, variables, self._ids, self._mask, self._segments, None, 0.0)

    def _model(
        self, training: bool, variables: Dict[str, Any], ids: Any, mask: Any, segments: Any, draw: Any, dropout: float
    ) -> Any:
        model = modeling.BertModel(
            self._config,
            training,
            ids,
            mask,
            segments,
            first_token_only=True,
            compute_dtype=self._dtype,
            dropout_seed=draw,
            variables=variables,
        )
        return modeling.apply_classifier(model, self._num_labels, training, dropout)

    def _feed(self, batch: Batch, labels: bool) -> Dict[Any, Any]:
        feed = {self._ids: batch.token_ids, self._mask: batch.mask, self._segments: batch.segment_ids}
        if labels:
            feed[self._labels] = batch.labels
        return feed

    def logits(self, batch: Batch) -> np.ndarray:
        """(B, C) without dropout."""
        return self.session.run(self._logits, self._feed(batch, labels=False))
