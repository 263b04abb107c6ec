"""Every knob of pretraining in one checked record."""

import dataclasses
from typing import Any, Dict, Mapping, Optional, Union

from ftbert.config import BertConfig
from ftbert.training.options import CHOICES, RANGES, check_options, recipe_of

__all__ = ["PretrainingOptions", "make_pretraining_options"]


@dataclasses.dataclass(frozen=True)
class PretrainingOptions:
    """How `ftbert.pretrain` trains. The defaults suit a small model and some thousand sentences.

    Attributes:
        text_column, format: of tables; None: by the file's ending.
        dev_fraction: of the texts, held out to measure on (at most 2,000); 0: nothing is measured.
        epochs: passes over the text.
        batch_size: rows to an update, over all micro-batches.
        accumulation: micro-batches to an update.
        learning_rate: the peak; 1e-4 suits a BERT-base.
        warmup: share of the updates in which the rate rises from 0.
        weight_decay, bias_correction, clip_norm, dropout: as in fine-tuning.
        masked_share: of the pieces of a row that are asked for; 80% of them are hidden, 10% replaced, 10% stay.
        whole_word: all pieces of a word are asked for, or none.
        max_length: longest row in tokens; longer texts become several rows.
        save_steps: updates after which the state is kept, besides every epoch's end; 0: there alone.
        seed: of new weights, order, masks and dropout; two runs on a CPU with equal settings end bitwise equal
            where TensorFlow's pool, made by the process's first session, has as many threads.
        device, devices, threads, mixed_precision, xla, precision: as in fine-tuning.
        config: sizes of a new model: a BertConfig, or a dict of its fields without vocab_size.
        vocab_size, lower_case: of a vocabulary built from the text. With a given vocab.txt `lower_case` counts too.
        resume: go on with a run of the same settings that was cut off; False: begin anew.
        tensorboard: whether to write its files; progress: a bar on standard error.
    """

    text_column: str = "text"
    format: Optional[str] = None
    dev_fraction: float = 0.02
    epochs: int = 10
    batch_size: int = 64
    accumulation: int = 1
    learning_rate: float = 5e-4
    warmup: float = 0.1
    weight_decay: float = 0.01
    bias_correction: bool = True
    clip_norm: Optional[float] = 1.0
    dropout: Optional[float] = None
    masked_share: float = 0.15
    whole_word: bool = False
    max_length: int = 128
    save_steps: int = 1000
    seed: int = 0
    device: str = "auto"
    devices: int = 0
    threads: int = 0
    mixed_precision: Optional[str] = None
    xla: bool = False
    precision: str = "fp32"
    config: Union[None, BertConfig, Mapping[str, Any]] = None
    vocab_size: int = 8000
    lower_case: bool = True
    resume: bool = True
    tensorboard: bool = True
    progress: bool = True

    def recipe(self) -> Dict[str, Any]:
        """What decides the trained weights, for JSON."""
        return recipe_of(self, ("resume", "tensorboard", "progress", "text_column", "format", "save_steps"))


_RANGES = dict(RANGES, masked_share=(float, 0.01, 0.9, False), save_steps=(int, 0, 1 << 31, False))
_SWITCHES = ("bias_correction", "whole_word", "xla", "lower_case", "resume", "tensorboard", "progress")


def make_pretraining_options(values: Mapping[str, Any]) -> PretrainingOptions:
    """Checks every value.

    Raises:
        ConfigError: as `check_options`.
    """
    options: PretrainingOptions = check_options(PretrainingOptions, values, _RANGES, CHOICES, _SWITCHES)
    return options
