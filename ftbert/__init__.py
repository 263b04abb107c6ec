"""A fine-tuned BERT text classifier, loaded once, answered as fast as the hardware allows.

    from ftbert import FastBertClassifier
    clf = FastBertClassifier.load("models/intents")
    clf.predict(["卡丢了怎么办", "我要退款"])

Names are imported when they are first used, and TensorFlow only by what needs it.
"""

import importlib
from typing import TYPE_CHECKING, Any, List

if TYPE_CHECKING:
    from ftbert.batching import PackedBatch
    from ftbert.calibrate import calibrate
    from ftbert.config import BertConfig
    from ftbert.errors import (
        CheckpointError,
        ClosedError,
        ConfigError,
        EngineError,
        FtbertError,
        InputError,
        OutOfMemoryError,
        UnavailableError,
    )
    from ftbert.estimator import PersistentEstimator
    from ftbert.finetune import finetune
    from ftbert.prediction import Prediction
    from ftbert.predictor import FastBertClassifier
    from ftbert.pretrain import pretrain
    from ftbert.tokenization import Tokenizer

__all__ = [
    "BertConfig",
    "CheckpointError",
    "ClosedError",
    "ConfigError",
    "EngineError",
    "FastBertClassifier",
    "FtbertError",
    "InputError",
    "OutOfMemoryError",
    "PackedBatch",
    "PersistentEstimator",
    "Prediction",
    "Tokenizer",
    "UnavailableError",
    "__version__",
    "calibrate",
    "finetune",
    "pretrain",
]

__version__ = "0.1.0"

_MODULES = {
    "BertConfig": "ftbert.config",
    "FastBertClassifier": "ftbert.predictor",
    "PackedBatch": "ftbert.batching",
    "PersistentEstimator": "ftbert.estimator",
    "Prediction": "ftbert.prediction",
    "Tokenizer": "ftbert.tokenization",
}

# Modules that are called as the function of their own name (ftbert/callable_module.py).
_FUNCTIONS = ("calibrate", "finetune", "pretrain")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError("module 'ftbert' has no attribute %r" % name)
    if name in _FUNCTIONS:
        return importlib.import_module("ftbert." + name)
    value = getattr(importlib.import_module(_MODULES.get(name, "ftbert.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> List[str]:
    return sorted(set(globals()) | set(__all__))
