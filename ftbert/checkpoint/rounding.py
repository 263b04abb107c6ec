"""float32 to half precision, and what it costs: values that overflow, vanish or lose accuracy."""

from typing import Callable, Dict, List, NamedTuple, Tuple

import numpy as np

from ftbert.checkpoint.streams import chunks

__all__ = ["RoundedTensor", "measure_rounding", "round_to_bfloat16", "round_to_float16", "worst"]


def round_to_float16(values: np.ndarray) -> np.ndarray:
    """The nearest float16, ties to even; beyond 65,519 infinity."""
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float16)


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """uint16 bits of the nearest bfloat16 of float32 `values`, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    half = (bits >> np.uint32(16)) & np.uint32(1)
    half += np.uint32(0x7FFF)
    half += bits
    half >>= np.uint32(16)
    rounded = half.astype(np.uint16)
    nan = np.isnan(values)
    if nan.any():
        # Adding to a NaN's bits could carry into the sign or end at infinity: keep the upper half, and make it quiet.
        rounded[nan] = (bits[nan] >> np.uint32(16)).astype(np.uint16) | np.uint16(0x0040)
    return rounded


def _widen_float16(rounded: np.ndarray) -> np.ndarray:
    return rounded.astype(np.float32)


def _widen_bfloat16(rounded: np.ndarray) -> np.ndarray:
    return (rounded.astype(np.uint32) << np.uint32(16)).view(np.float32)


_Rounding = Tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]

_KINDS: Dict[str, _Rounding] = {
    "float16": (round_to_float16, _widen_float16),
    "bfloat16": (round_to_bfloat16, _widen_bfloat16),
}


class RoundedTensor(NamedTuple):
    """What rounding did to one tensor.

    Attributes:
        name: of the tensor.
        size: number of its values.
        overflows: finite values that became infinite.
        underflows: values other than zero that became zero.
        largest_error: the largest |rounded - value| / |value| of those that became neither.
        not_finite: values that were infinite or NaN before.
    """

    name: str
    size: int
    overflows: int
    underflows: int
    largest_error: float
    not_finite: int


def measure_rounding(name: str, array: np.ndarray, dtype: str) -> Tuple[np.ndarray, RoundedTensor]:
    """Rounds a float32 array to "float16" or "bfloat16" (as uint16 bits).

    Returns:
        The rounded array, and what was lost.
    """
    rounds, widens = _KINDS[dtype]
    flat = array.reshape(-1)
    out = np.empty(flat.shape, np.float16 if dtype == "float16" else np.uint16)
    overflows = underflows = not_finite = 0
    largest = 0.0
    for part in chunks(len(flat)):
        values = flat[part]
        rounded = rounds(values)
        out[part] = rounded
        error = widens(rounded)
        with np.errstate(all="ignore"):
            # 0 where exact, 1 where it vanished, infinite where it overflowed, NaN for 0 / 0 and what was not finite.
            np.subtract(error, values, out=error)
            np.divide(error, values, out=error)
            np.abs(error, out=error)
        peak = float(error.max()) if len(error) else 0.0
        if peak < 1.0:  # false for NaN
            largest = max(largest, peak)
            continue
        # Rare: look at each kind. A value that vanished has error 1; rounding alone never moves one so far.
        finite = np.isfinite(values)
        not_finite += len(values) - int(np.count_nonzero(finite))
        overflows += int(np.count_nonzero(np.isinf(error) & finite))
        underflows += int(np.count_nonzero((error == 1.0) & _vanished(rounded)))
        kept = error[finite & np.isfinite(error) & ~_vanished(rounded)]
        largest = max(largest, float(kept.max()) if len(kept) else 0.0)
    tensor = RoundedTensor(name, len(flat), overflows, underflows, largest, not_finite)
    return out.reshape(array.shape), tensor


def _vanished(rounded: np.ndarray) -> np.ndarray:
    """Where a float16, or a bfloat16's bits, is zero of either sign."""
    return (rounded.view(np.uint16) & np.uint16(0x7FFF)) == 0


def worst(tensors: List[RoundedTensor], count: int) -> List[RoundedTensor]:
    """The tensors that lost most: overflow before underflow before error."""
    return sorted(tensors, key=lambda tensor: (-tensor.overflows, -tensor.underflows, -tensor.largest_error))[:count]
