"""float32 to half precision, and what it costs: values that overflow, vanish or lose accuracy."""

from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from ftbert.checkpoint.streams import chunks

__all__ = ["RoundedTensor", "measure_rounding", "round_to_bfloat16", "round_to_float16", "worst"]


# float32 patterns of magnitudes: 2^-14, below which a float16 is subnormal; 65,520, from where it is infinite.
_SUBNORMAL, _OVERFLOW = np.uint32(0x38800000), np.uint32(0x477FF000)


def round_to_float16(values: np.ndarray) -> np.ndarray:
    """The nearest float16, ties to even; beyond 65,519 infinity."""
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float16)


def _round_to_float16_quickly(values: np.ndarray) -> Optional[Tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Bit for bit `round_to_float16` in whole-array integer steps, which numpy's own cast takes one by one.

    Returns:
        The bits (uint32), the magnitudes after rounding and those before (float32); None where a value is not finite or
        would not be.
    """
    bits = np.ascontiguousarray(values).view(np.uint32)
    before = bits & np.uint32(0x7FFFFFFF)
    if before.size and before.max() >= _OVERFLOW:
        return None
    after = before >> np.uint32(13)
    after &= np.uint32(1)
    after += np.uint32(0xFFF)
    after += before
    after &= np.uint32(0xFFFFE000)
    half = after >> np.uint32(13)
    half -= np.uint32(112 << 10)
    small = np.flatnonzero(before < _SUBNORMAL)
    if len(small):
        # float16's subnormals are the multiples of 2^-24, and so are the float32 from 0.5 to 1: adding 0.5 rounds.
        shifted = before[small].view(np.float32) + np.float32(0.5)
        half[small] = shifted.view(np.uint32) - np.uint32(0x3F000000)
        after.view(np.float32)[small] = shifted - np.float32(0.5)
    sign = bits >> np.uint32(16)
    sign &= np.uint32(0x8000)
    half |= sign
    return half, after.view(np.float32), before.view(np.float32)


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
        quick = _round_to_float16_quickly(values) if dtype == "float16" else None
        if quick is not None:
            bits, error, magnitudes = quick
            out.view(np.uint16)[part] = bits
            rounded = out[part]
        else:
            rounded = rounds(values)
            out[part] = rounded
            error, magnitudes = widens(rounded), values
        with np.errstate(all="ignore"):
            # 0 where exact, 1 where it vanished, infinite where it overflowed, NaN for 0 / 0 and what was not finite.
            np.subtract(error, magnitudes, out=error)
            np.divide(error, magnitudes, out=error)
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
