"""AdamW as google-research/bert trains with it: decoupled decay, no bias correction unless asked for, linear rate."""

import collections
import re
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

from tensorflow.compat import v1 as tf

from ftbert.errors import ConfigError

__all__ = ["AdamW", "create_train_op", "dense_gradients", "layer_depth", "learning_rate_at", "zeros_beside"]

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-6

_LAYER = re.compile(r"/encoder/layer_(\d+)/")


def learning_rate_at(step: Any, peak: float, total_steps: int, warmup_steps: int) -> Any:
    """The rate of `step` (int64 tensor, from 0): rises to `peak` over `warmup_steps`, then falls to 0 at `total_steps`.

    google-research/bert's rate, but for the first step, whose rate there is 0 and here is one part of the warm-up.
    """
    done = tf.cast(step, tf.float32)
    rate = peak * tf.maximum(0.0, 1.0 - done / float(max(total_steps, 1)))
    if warmup_steps:
        rate = tf.where_v2(done < float(warmup_steps), peak * (done + 1.0) / float(warmup_steps), rate)
    return rate


def layer_depth(name: str, num_layers: int) -> int:
    """How far a variable is from the head: 0 for head and pooler, 1 for the last layer, L + 1 for the embeddings."""
    found = _LAYER.search(name)
    if found:
        return num_layers - int(found.group(1))
    return num_layers + 1 if "/embeddings/" in name else 0


def _decays(name: str) -> bool:
    return not ("LayerNorm" in name or "layer_norm" in name or name.endswith("bias"))


class AdamW:
    """Updates float32 resource variables; the moments live in variables `<name>/adam_m` and `<name>/adam_v`.

    Args:
        variables: name -> variable, those to be trained.
        rate: scalar tensor, this step's learning rate.
        weight_decay: of every variable but biases and layer norms.
        clip_norm: the largest global norm of the gradients; None: no clipping.
        factors: name -> factor on the rate, 1 where a name is missing.
        step: int64 scalar, updates made before this one: the moments are divided by what they lack at the start, as
            Kingma and Ba have it. None: not, as google-research/bert has it; its first hundreds of steps are up to 3
            times as large.
    """

    def __init__(
        self,
        variables: Dict[str, Any],
        rate: Any,
        weight_decay: float = 0.01,
        clip_norm: Optional[float] = 1.0,
        factors: Optional[Dict[str, float]] = None,
        step: Optional[Any] = None,
    ) -> None:
        # Powers of 0 turn TensorFlow's fused kernel into the form without bias correction.
        count = None if step is None else tf.cast(step, tf.float32) + 1.0
        self._powers = [0.0 if count is None else tf.pow(tf.constant(beta), count) for beta in (BETA_1, BETA_2)]
        self._variables = variables
        self._rate = rate
        self._weight_decay = weight_decay
        self._clip_norm = clip_norm
        self._factors = factors or {}
        self.slots: "collections.OrderedDict[str, Any]" = collections.OrderedDict()
        for name, variable in variables.items():
            for slot in ("adam_m", "adam_v"):
                self.slots["%s/%s" % (name, slot)] = zeros_beside(variable, slot)

    def apply(self, gradients: List[Any]) -> Tuple[Any, Any]:
        """The update.

        Args:
            gradients: dense, in the order of the variables.

        Returns:
            (the op, the gradients' global norm before clipping).
        """
        norm = tf.global_norm(gradients)
        if self._clip_norm is not None:
            # Where the norm is not a number, so is every gradient: the loss shows it, and training stops on that.
            scale = self._clip_norm / tf.maximum(norm, self._clip_norm)
            gradients = [gradient * scale for gradient in gradients]
        updates = []
        for (name, variable), gradient in zip(self._variables.items(), gradients):
            rate = self._rate * self._factors.get(name, 1.0)
            before: List[Any] = []
            if self._weight_decay and _decays(name):
                # param - rate * (m / (sqrt(v) + epsilon) + decay * param): the second part first, on the old values.
                with tf.control_dependencies([gradient]):
                    before = [variable.assign(variable * (1.0 - rate * self._weight_decay), read_value=False)]
            with tf.control_dependencies(before):
                updates.append(self._adam(name, variable, rate, gradient))
        return tf.group(*updates), norm

    def _adam(self, name: str, variable: Any, rate: Any, gradient: Any) -> Any:
        return tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self.slots[name + "/adam_m"].handle,
            v=self.slots[name + "/adam_v"].handle,
            beta1_power=self._powers[0],
            beta2_power=self._powers[1],
            lr=rate,
            beta1=BETA_1,
            beta2=BETA_2,
            epsilon=EPSILON,
            grad=gradient,
            use_locking=False,
            use_nesterov=False,
        )


def zeros_beside(variable: Any, suffix: str) -> Any:
    """A new variable of zeros, shaped and named as `variable`; optimizers do not see it."""
    return tf.get_variable(
        "%s/%s" % (variable.op.name, suffix),
        variable.shape.as_list(),
        tf.float32,
        initializer=tf.zeros_initializer(),
        trainable=False,
        use_resource=True,
    )


def create_train_op(
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    weight_decay: float = 0.01,
    clip_norm: Optional[float] = 1.0,
) -> Callable[[Any], Any]:
    """What `ftbert.modeling.model_fn` wants as params["train_op"]: a function from the loss to the training op.

    It trains every trainable variable of the graph and advances the global step.
    """
    if not (learning_rate > 0 and total_steps > 0 and 0 <= warmup_steps <= total_steps):
        raise ConfigError(
            "Expected learning_rate > 0 and 0 <= warmup_steps <= total_steps, got %r, %r and %r."
            % (learning_rate, warmup_steps, total_steps)
        )

    def train_op(loss: Any) -> Any:
        step = tf.train.get_or_create_global_step()
        variables = collections.OrderedDict((variable.op.name, variable) for variable in tf.trainable_variables())
        rate = learning_rate_at(step, learning_rate, total_steps, warmup_steps)
        optimizer = AdamW(variables, rate, weight_decay, clip_norm)
        update, _ = optimizer.apply(dense_gradients(loss, variables.values()))
        with tf.control_dependencies([update]):
            return tf.assign_add(step, 1)

    return train_op


def dense_gradients(loss: Any, variables: Iterable[Any]) -> List[Any]:
    """d loss / d variable, zeros where it depends on none; looked-up tables get whole gradients, summed in order."""
    variables = list(variables)
    gradients = []
    for variable, gradient in zip(variables, tf.gradients(loss, variables)):
        if gradient is None:
            gradient = tf.zeros_like(variable)
        elif isinstance(gradient, tf.IndexedSlices):
            gradient = tf.unsorted_segment_sum(gradient.values, gradient.indices, variable.shape.as_list()[0])
        gradients.append(tf.convert_to_tensor(gradient))
    return gradients
