"""The graph and the loop of masked-language-model pretraining."""

import collections
import math
import time
from typing import Any, Dict, List, NamedTuple, Optional

import numpy as np
from tensorflow.compat import v1 as tf

from ftbert import modeling
from ftbert.config import BertConfig
from ftbert.training.batches import Batch, EncodedSet, epoch_plan, in_order
from ftbert.training.journal import Bar, Journal
from ftbert.training.machine import Machine
from ftbert.training.masking import Masker
from ftbert.training.pretraining_options import PretrainingOptions
from ftbert.training.run_folder import RunFolder
from ftbert.training.trainer import split_micro, updates_per_epoch
from ftbert.training.updates import Schedule, UpdateGraph
from ftbert.variables import masked_lm_specs, variable_specs

__all__ = ["PretrainingGraph", "PretrainingOutcome", "pretrain_loop"]

_EVALUATION_ROWS = 64
_LOG_EVERY = 10  # updates between two lines of metrics.jsonl
_DEV_SEED = 1 << 31  # no epoch has this number: the dev rows' masks are their own, and the same each time


class PretrainingGraph(UpdateGraph):
    """BERT's encoder under google-research/bert's masked-language-model head, whose output table is the embedding.

    Args:
        config: the encoder's sizes and dropout.
        schedule: what decides the updates.
        machine: devices, threads, precision.
        seed: of new weights and of dropout.
        accumulation: micro-batches to an update.
    """

    def __init__(
        self, config: BertConfig, schedule: Schedule, machine: Machine, seed: int, accumulation: int = 1
    ) -> None:
        specs = variable_specs(config, has_pooler=False)
        specs.update(masked_lm_specs(config))
        super().__init__(config, specs, schedule, machine, seed, accumulation)

    def _make_inputs(self) -> None:
        self._ids = tf.placeholder(tf.int32, [None, None], "input_ids")
        self._mask = tf.placeholder(tf.int32, [None, None], "input_mask")
        self._targets = tf.placeholder(tf.int32, [None, None], "targets")

    def _make_loss(self, index: int, variables: Dict[str, Any], draw: Any) -> Any:
        ids, mask, targets = (self._replicas.part(rows, index) for rows in (self._ids, self._mask, self._targets))
        losses, _ = self._predictions(True, variables, ids, mask, targets, draw)
        asked = tf.reduce_sum(tf.cast(self._targets >= 0, tf.float32))
        return tf.reduce_sum(losses) / tf.maximum(asked, 1.0)

    def _make_outputs(self, variables: Dict[str, Any]) -> None:
        losses, hits = self._predictions(False, variables, self._ids, self._mask, self._targets, None)
        self._measures = [tf.reduce_sum(losses), tf.reduce_sum(hits)]

    def _predictions(
        self, training: bool, variables: Dict[str, Any], ids: Any, mask: Any, targets: Any, draw: Any
    ) -> Any:
        """The losses of the M pieces asked for, and 1 where the likeliest piece is right: float32 (M,) both."""
        model = modeling.BertModel(
            self._config, training, ids, mask, compute_dtype=self._dtype, dropout_seed=draw, variables=variables
        )
        states = tf.reshape(model.get_sequence_output(), [-1, self._config.hidden_size])
        flat = tf.reshape(targets, [-1])
        places = tf.reshape(tf.where(flat >= 0), [-1])
        logits = modeling.masked_lm_logits(model, tf.gather(states, places))
        labels = tf.gather(flat, places)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        hits = tf.equal(tf.argmax(logits, -1, output_type=tf.int32), labels)
        return losses, tf.cast(hits, tf.float32)

    def _feed(self, batch: Batch, labels: bool) -> Dict[Any, Any]:
        return {self._ids: batch.token_ids, self._mask: batch.mask, self._targets: batch.labels}

    def measure(self, batch: Batch) -> List[float]:
        """[sum of the losses, number of right pieces], without dropout."""
        return [float(value) for value in self.session.run(self._measures, self._feed(batch, labels=True))]


class PretrainingOutcome(NamedTuple):
    """How pretraining ended: whether by Ctrl-C, and tokens trained on per second (0 if nothing was left to do)."""

    interrupted: bool
    tokens_per_second: float


def _masked(batch: Batch, masker: Masker, seed: List[int]) -> Batch:
    seen, targets = masker(batch.token_ids, batch.mask, seed)
    return batch._replace(token_ids=seen, labels=targets)


def _measure(graph: PretrainingGraph, data: EncodedSet, masker: Masker, seed: int) -> Dict[str, float]:
    """Loss, accuracy and perplexity of the pieces hidden in the dev rows: always the same ones."""
    loss = hits = 0.0
    count = 0
    for index, chosen in enumerate(in_order(data.lengths, _EVALUATION_ROWS)):
        batch = _masked(data.batch(chosen), masker, [seed, _DEV_SEED, index])
        values = graph.measure(batch)
        loss, hits, count = loss + values[0], hits + values[1], count + int((batch.labels >= 0).sum())
    count = max(count, 1)
    return {"loss": loss / count, "accuracy": hits / count, "perplexity": math.exp(min(loss / count, 700.0))}


def pretrain_loop(
    graph: PretrainingGraph,
    train_set: EncodedSet,
    dev_set: Optional[EncodedSet],
    masker: Masker,
    options: PretrainingOptions,
    run: RunFolder,
) -> PretrainingOutcome:
    """Trains from where `run` stands to the last epoch. `graph` already holds the weights to start with.

    The state is kept after each epoch, and after every `options.save_steps` updates. Ctrl-C ends training; what was
    kept last stays. Before anything was kept it is raised.
    """
    per_epoch = updates_per_epoch(len(train_set.lengths), options.batch_size)
    total = per_epoch * options.epochs
    begun_at = run.progress["step"]
    journal = Journal(run, options.tensorboard, begun_at)
    bar = Bar(total, begun_at, options.progress)
    seconds, tokens, note = 0.0, 0, ""
    losses: List[float] = []
    try:
        for epoch in range(begun_at // per_epoch, options.epochs):
            plan = epoch_plan(train_set.lengths, options.batch_size, options.seed, epoch)
            for index in range(max(0, begun_at - epoch * per_epoch), per_epoch):
                begun, step = time.perf_counter(), epoch * per_epoch + index + 1
                parts = [
                    _masked(train_set.batch(part), masker, [options.seed, epoch, index, micro])
                    for micro, part in enumerate(split_micro(plan[index], options.accumulation))
                ]
                result = graph.train_step(parts)
                losses.append(result.loss)
                seconds += time.perf_counter() - begun
                tokens += int(train_set.lengths[plan[index]].sum())
                bar.advance(result.loss, note)
                if index % _LOG_EVERY == 0:
                    journal.write("train", step, dict(result._asdict(), epoch=epoch + 1))
                ends = index + 1 == per_epoch
                if not ends and (not options.save_steps or step % options.save_steps):
                    continue
                record: Dict[str, Any] = collections.OrderedDict(step=step, epoch=(step / per_epoch))
                record["train_loss"], losses = float(np.mean(losses)), []
                if dev_set is not None:
                    record.update(_measure(graph, dev_set, masker, options.seed))
                    note = ", dev accuracy %.2f%%" % (100 * record["accuracy"])
                history = run.progress["history"] + [record]
                run.save({"step": step, "history": history}, graph.read(graph.state()), None)
                journal.write("dev", step, {name: value for name, value in record.items() if name != "step"})
                if ends:
                    bar.say("epoch %d/%d  loss %.4f%s" % (epoch + 1, options.epochs, record["train_loss"], note))
    except KeyboardInterrupt:
        if run.progress["state"] is None:
            raise
        return PretrainingOutcome(True, tokens / seconds if seconds else 0.0)
    finally:
        bar.close()
        journal.close()
    return PretrainingOutcome(False, tokens / seconds if seconds else 0.0)
