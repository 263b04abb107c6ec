"""Which tensors of a checkpoint belong to training only. Data first, so that another optimizer is another line."""

import re
from typing import Iterable, List

__all__ = ["NOT_WEIGHTS", "SLOT_SUFFIXES", "is_optimizer_name", "optimizer_tensors"]

# A variable's slots are named after it. google-research/bert's AdamWeightDecayOptimizer and the LAMB optimizers derived
# from it write adam_m and adam_v; tf.train's optimizers write their own class name, with _1 for the second slot.
SLOT_SUFFIXES = (
    "adam_m",
    "adam_v",
    "lamb_m",
    "lamb_v",
    "Adam",
    "Adam_1",
    "AdamW",
    "AdamW_1",
    "AdamWeightDecayOptimizer",
    "AdamWeightDecayOptimizer_1",
    "AdamWeightDecay",
    "AdamWeightDecay_1",
    "LAMB",
    "LAMB_1",
    "LAMBOptimizer",
    "LAMBOptimizer_1",
    "LazyAdam",
    "LazyAdam_1",
    "Momentum",
    "Adagrad",
    "AdagradDA",
    "AdaMax",
    "AdaMax_1",
    "Adadelta",
    "Adadelta_1",
    "RMSProp",
    "RMSProp_1",
    "Ftrl",
    "Ftrl_1",
    "accum_grad",
    "accumulated",
    "gradient_accumulator",
    "ExponentialMovingAverage",
    "Adam/m",
    "Adam/v",
    "Adam/vhat",
    "AdamW/m",
    "AdamW/v",
    "LAMB/m",
    "LAMB/v",
)

# Counters and scales that stand alone, under any scope.
NOT_WEIGHTS = (
    r"global_step",
    r"local_step",
    r"accum_step",
    r"save_counter",
    r"beta[12]_power(_\d+)?",
    r"(current_)?loss_scale(/.*)?",
    r"good_steps",
    r"num_good_steps",
    r"loss_scaler/.*",
    r"(Adam|AdamW|LAMB|SGD|RMSprop|Adagrad)/(iter|beta_1|beta_2|decay|epsilon|learning_rate|momentum|rho)",
)

_ALONE = re.compile(r"(.*/)?(%s)$" % "|".join(NOT_WEIGHTS))
_SLOT = re.compile(r"(.+)/(%s)$" % "|".join(re.escape(suffix) for suffix in SLOT_SUFFIXES))


def is_optimizer_name(name: str, names: "frozenset[str]") -> bool:
    """Whether `name` is a slot of another tensor among `names`, or a counter or scale of training.

    A slot is one only beside its variable: a weight that happens to be called ".../Adam" is kept. The variable may lack
    leading scopes that the slot has, as optimizers made inside a variable scope write it.
    """
    if _ALONE.match(name):
        return True
    slot = _SLOT.match(name)
    while slot:
        parts = slot.group(1).split("/")
        if any("/".join(parts[first:]) in names for first in range(len(parts))):
            return True
        slot = _SLOT.match(slot.group(1))
    return False


def optimizer_tensors(names: Iterable[str]) -> List[str]:
    """Those of `names` that belong to training only, sorted."""
    known = frozenset(names)
    return sorted(name for name in known if is_optimizer_name(name, known))
