"""Every error that ftbert raises on purpose.

Each message says what was expected, what came, and what to do about it.
"""

__all__ = [
    "CheckpointError",
    "ClosedError",
    "ConfigError",
    "DeadlineError",
    "EngineError",
    "FtbertError",
    "InputError",
    "OutOfMemoryError",
    "OverloadedError",
    "UnavailableError",
]


class FtbertError(Exception):
    """Base of every error below."""


class ConfigError(FtbertError, ValueError):
    """A model configuration or an argument is missing, unknown or out of range."""


class CheckpointError(FtbertError, ValueError):
    """A checkpoint or model folder is missing, damaged, or does not fit its configuration."""


class InputError(FtbertError, ValueError):
    """A text, a row of a file or a batch is not what it must be. Nothing was predicted."""


class UnavailableError(FtbertError, RuntimeError):
    """What was asked for (a device, a precision, a TensorFlow, an optional package) is not here."""


class EngineError(FtbertError, RuntimeError):
    """The native engine failed."""


class OutOfMemoryError(EngineError, MemoryError):
    """The device has no room for this batch; the predictor is still usable with a smaller one."""


class ClosedError(FtbertError, RuntimeError):
    """The predictor was closed, or is used in a forked child of the process that loaded it."""


class OverloadedError(FtbertError, RuntimeError):
    """The queue has no room; nothing was predicted.

    Attributes:
        retry_after: seconds after which there should be room.
    """

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(FtbertError, TimeoutError):
    """The answer did not come within the time given; its work was dropped."""
