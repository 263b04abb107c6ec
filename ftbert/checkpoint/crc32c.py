"""CRC-32C (Castagnoli) of arrays at memory speed, in numpy.

A checksum is a remainder: the bytes are the coefficients of a polynomial over GF(2), divided by CRC-32C's polynomial P.
P divides the four-term polynomial x^5685 + x^1362 + x^426 + 1 and therefore (squaring is linear over GF(2)) also
x^(5685 u) + x^(1362 u) + x^(426 u) + 1 for every power of two u. With u = 64 bits this says: eight bytes may be removed
from the front of a long message if they are added (XOR) at three places further back. So all but the last 45 KB of a
message fold away in whole-array XORs; the rest goes through a table of every byte value at every position of a block.
"""

from typing import Any, Optional

import numpy as np

__all__ = ["crc32c", "mask", "unmask"]

_POLYNOMIAL = 0x82F63B78  # bits reversed, as the reflected algorithm wants it
_HIGH, _MIDDLE, _LOW = 5685, 1362, 426  # exponents of the multiple of P, in words of 64 bits
_SPAN = _HIGH - _MIDDLE  # words that may be folded at once without reading a word that they change
_WINDOW = 1 << 17  # words folded per round: 1 MB, so that the work stays in cache
_BLOCK = 1024  # bytes per table block

_table: Optional[np.ndarray] = None


def _position_table() -> np.ndarray:
    """(_BLOCK * 256,) uint32: entry [p * 256 + v] is the remainder of byte v followed by _BLOCK - 1 - p zero bytes."""
    global _table
    if _table is None:
        step = np.arange(256, dtype=np.uint32)
        for _ in range(8):
            step = np.where(step & 1, (step >> 1) ^ np.uint32(_POLYNOMIAL), step >> 1).astype(np.uint32)
        table = np.empty((_BLOCK, 256), np.uint32)
        table[_BLOCK - 1] = step
        for position in range(_BLOCK - 2, -1, -1):
            after = table[position + 1]
            table[position] = step[after & 0xFF] ^ (after >> np.uint32(8))
        _table = table.reshape(-1)
    return _table


def _fold(data: np.ndarray) -> np.ndarray:
    """A message of _HIGH words and up to 7 bytes with the remainder of `data` (uint8) after its first 4 are flipped."""
    carry = np.zeros(_HIGH, np.uint64)
    whole = len(data) // 8
    words = data[: whole * 8].view(np.uint64)
    buffer = np.empty(_HIGH + _WINDOW, np.uint64)
    begin = 0
    while begin < whole:
        count = min(_WINDOW, whole - begin)
        buffer[:_HIGH] = carry
        buffer[_HIGH : _HIGH + count] = words[begin : begin + count]
        if begin == 0:
            buffer[_HIGH : _HIGH + 1].view(np.uint8)[:4] ^= 0xFF
        for front in range(0, count, _SPAN):
            block = buffer[front : min(front + _SPAN, count)]
            for distance in (_HIGH - _MIDDLE, _HIGH - _LOW, _HIGH):
                target = buffer[front + distance : front + distance + len(block)]
                np.bitwise_xor(target, block, out=target)
        carry = buffer[count : count + _HIGH].copy()
        begin += count
    return np.concatenate([carry.view(np.uint8), data[whole * 8 :]])


def _remainder(message: np.ndarray) -> int:
    """Remainder of a short message (uint8), no initial value, no final inversion."""
    table = _position_table()
    message = np.concatenate([np.zeros(-len(message) % _BLOCK, np.uint8), message])
    rows = message.reshape(-1, _BLOCK).astype(np.intp)
    rows += np.arange(0, _BLOCK * 256, 256)
    remainders = np.bitwise_xor.reduce(table[rows], axis=1)
    state = 0
    for remainder in remainders.tolist():
        if state:
            for position in range(4):
                remainder ^= int(table[position * 256 + (state & 0xFF)])
                state >>= 8
        state = remainder
    return state


def _bytes_of(part: Any) -> np.ndarray:
    return part.reshape(-1).view(np.uint8) if isinstance(part, np.ndarray) else np.frombuffer(part, np.uint8)


def crc32c(*parts: object) -> int:
    """CRC-32C of the parts' bytes, one after the other.

    Args:
        parts: bytes-like objects, or C-contiguous arrays of any type.
    """
    arrays = [_bytes_of(part) for part in parts]
    data = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    if len(data) > _HIGH * 16:
        return _remainder(_fold(data)) ^ 0xFFFFFFFF
    # The initial value 0xFFFFFFFF flips the first four bytes, whether the message has them or not.
    padded = np.concatenate([data, np.zeros(max(0, 4 - len(data)), np.uint8)])
    padded[:4] ^= 0xFF
    if len(data) >= 4:
        return _remainder(padded) ^ 0xFFFFFFFF
    state = 0xFFFFFFFF
    for byte in data.tolist():
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (_POLYNOMIAL if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def mask(crc: int) -> int:
    """The form in which TensorFlow and LevelDB store a checksum, so that checksums of checksums stay independent."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def unmask(masked: int) -> int:
    """Inverse of `mask`."""
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF
