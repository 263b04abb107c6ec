"""Variables, gradients and updates in one session: what every kind of training here shares."""

import collections
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from tensorflow.compat import v1 as tf

from ftbert.config import BertConfig
from ftbert.errors import FtbertError
from ftbert.training.machine import Machine
from ftbert.training.optimization import AdamW, dense_gradients, layer_depth, learning_rate_at, zeros_beside
from ftbert.training.replicas import Replicas
from ftbert.variables import VariableSpec, assign_weights, create_variables

__all__ = ["Schedule", "StepResult", "UpdateGraph"]

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
    """One update's loss, and the gradients' norm and the rate."""

    loss: float
    gradient_norm: float
    learning_rate: float


class UpdateGraph:
    """A model, its loss and its updates, in one session on one device or several; a subclass says which model and loss.

    Args:
        config: the encoder's sizes and dropout.
        specs: the variables.
        schedule: what decides the updates.
        machine: devices, threads, precision.
        seed: of new weights and of dropout.
        accumulation: micro-batches to an update.
    """

    def __init__(
        self,
        config: BertConfig,
        specs: "collections.OrderedDict[str, VariableSpec]",
        schedule: Schedule,
        machine: Machine,
        seed: int,
        accumulation: int = 1,
    ) -> None:
        self._config = config
        self._schedule = schedule
        self._accumulation = accumulation
        self._dtype = tf.as_dtype(machine.mixed_precision) if machine.mixed_precision else None
        self._loss_scale = _FLOAT16_LOSS_SCALE if machine.mixed_precision == "float16" else 1.0
        self._graph = tf.Graph()
        with self._graph.as_default():
            tf.set_random_seed(seed)
            self._replicas = Replicas(machine.devices)
            self._copies = self._replicas.create(lambda: create_variables(specs, config.initializer_range, seed=seed))
            self.variables = self._copies[0]
            with self._replicas.on(0):
                self._make_inputs()
                self._micro_steps = tf.placeholder_with_default(tf.constant(1.0), [], "micro_steps")
                self._micro = tf.placeholder_with_default(tf.constant(0, tf.int64), [], "micro_batch")
                self.step = tf.get_variable(
                    "global_step", [], tf.int64, tf.zeros_initializer(), trainable=False, use_resource=True
                )
            self._seed = seed
            self._build_updates()
            with self._replicas.on(0):
                self._make_outputs(self.variables)
                self._values = {name: variable.value() for name, variable in self.state().items()}
            initialize = tf.global_variables_initializer()
        self.session = tf.Session(graph=self._graph, config=machine.session_config())
        self.session.run(initialize)

    # ---- What a subclass has to say.

    def _make_inputs(self) -> None:
        """Makes the placeholders."""
        raise NotImplementedError

    def _make_loss(self, index: int, variables: Dict[str, Any], draw: Any) -> Any:
        """The loss of the rows that are device `index`'s; over all devices they add up to the batch's mean.

        Args:
            index: for `self._replicas.part`.
            variables: that device's.
            draw: int64 (2,), the seed of whatever is drawn in this step.
        """
        raise NotImplementedError

    def _make_outputs(self, variables: Dict[str, Any]) -> None:
        """Makes what measuring needs, without dropout."""
        raise NotImplementedError

    def _feed(self, batch: Any, labels: bool) -> Dict[Any, Any]:
        """A batch's values for the placeholders."""
        raise NotImplementedError

    # ---- The updates.

    def _trained(self) -> List[str]:
        """The variables that learn: those above the frozen layers."""
        layers = self._config.num_hidden_layers
        limit = layers + 1 if self._schedule.frozen_layers < 0 else layers - self._schedule.frozen_layers
        return [name for name in self.variables if layer_depth(name, layers) <= limit]

    def _factor(self, name: str) -> float:
        if name in ("output_weights", "output_bias"):
            return self._schedule.head_factor
        return self._schedule.layer_decay ** layer_depth(name, self._config.num_hidden_layers)

    def _draw(self, index: int) -> Any:
        """What is drawn depends on (seed, update, micro-batch, device): a resumed run draws the same."""
        first = tf.constant(self._seed * 7919 + index * 15485863, tf.int64)
        return tf.stack([first + self._micro, self.step])

    def _build_updates(self) -> None:
        schedule, replicas = self._schedule, self._replicas
        trained = self._trained()
        sums: List[List[Any]] = []
        if self._accumulation > 1:
            for index, variables in enumerate(self._copies):
                with replicas.on(index):
                    sums.append([zeros_beside(variables[name], "accumulated") for name in trained])

        def build(index: int) -> Tuple[Any, List[Any]]:
            mine = [self._copies[index][name] for name in trained]
            loss = self._make_loss(index, self._copies[index], self._draw(index))
            gradients = dense_gradients(loss * self._loss_scale, mine)
            if self._loss_scale != 1.0:
                gradients = [gradient * (1.0 / self._loss_scale) for gradient in gradients]
            add = tf.no_op()
            if sums:
                pairs = list(zip(sums[index], gradients))
                add = tf.group(*[total.assign_add(gradient, read_value=False) for total, gradient in pairs])
                gradients = [(total + gradient) / self._micro_steps for total, gradient in pairs]
            return (loss, add), gradients

        made, totals = replicas.gradients(trained, build)
        self._losses = [loss for loss, _ in made]
        self._add = [add for _, add in made]
        factors = {name: self._factor(name) for name in trained}
        with replicas.on(0):
            self._rate = learning_rate_at(
                self.step, schedule.learning_rate, schedule.total_steps, schedule.warmup_steps
            )
        done: List[Any] = []
        optimizers = []
        for index, variables in enumerate(self._copies):
            with replicas.on(index):
                optimizer = AdamW(
                    collections.OrderedDict((name, variables[name]) for name in trained),
                    self._rate,
                    schedule.weight_decay,
                    schedule.clip_norm,
                    factors,
                    self.step if schedule.bias_correction else None,
                )
                update, norm = optimizer.apply(totals[index])
                optimizers.append(optimizer)
                done += [update, norm]
                with tf.control_dependencies([update]):
                    after = sums[index] if sums else []
                    done += [total.assign(tf.zeros_like(total), read_value=False) for total in after]
                if index == 0:
                    self._norm = norm
        self.slots = optimizers[0].slots
        # Loss, norm and rate are read before the step advances: they belong to the step that they are reported with.
        with replicas.on(0), tf.control_dependencies(done + self._losses + [self._rate]):
            self._update = tf.group(self.step.assign_add(1, read_value=False))
        self._spread = self._spreading([optimizer.slots for optimizer in optimizers])

    def _spreading(self, slots: Sequence[Dict[str, Any]]) -> Any:
        """The operation that gives the other devices the first one's values."""
        copied = []
        for index in range(1, self._replicas.count):
            with self._replicas.on(index):
                for first, other in ((self._copies[0], self._copies[index]), (slots[0], slots[index])):
                    copied += [other[name].assign(first[name].value(), read_value=False) for name in first]
        return tf.group(*copied)

    def train_step(self, micro_batches: Sequence[Any]) -> StepResult:
        """One update from `accumulation` micro-batches (fewer at an epoch's end); the loss is their mean.

        Raises:
            FtbertError: the loss is not a number.
        """
        losses = []
        norm = rate = 0.0
        for index, batch in enumerate(micro_batches):
            feed = self._feed(batch, labels=True)
            feed[self._micro] = index
            if index < len(micro_batches) - 1:
                parts, _ = self.session.run([self._losses, self._add], feed)
            else:
                feed[self._micro_steps] = float(len(micro_batches))
                parts, norm, rate, _ = self.session.run([self._losses, self._norm, self._rate, self._update], feed)
            losses.append(float(np.sum(parts)))
        if not np.isfinite(losses).all() or not np.isfinite(norm):
            raise FtbertError(
                "The loss became %s (gradient norm %s). Lower learning_rate (now at most %g), or raise warmup."
                % (losses, norm, self._schedule.learning_rate)
            )
        return StepResult(float(np.mean(losses)), float(norm), float(rate))

    # ---- The weights, in and out.

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
        missing = assign_weights(self.session, self.variables, weights)
        self.session.run(self._spread)
        return missing

    def restore(self, weights: Iterable[Any]) -> List[str]:
        """Gives all of `state` values; returns the names that got none."""
        missing = assign_weights(self.session, self.state(), weights)
        self.session.run(self._spread)
        return missing

    def close(self) -> None:
        """Ends the session."""
        self.session.close()
