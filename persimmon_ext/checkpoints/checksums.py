"""CRC-32 of tensors that are read in pieces, in any order and by several threads.

Zip files, and so those of torch.save, hold the checksum of every record. safetensors has none; files that this library
writes hold one for each tensor in their metadata, ``"crc32:NAME": "8 hexadecimal digits"``: zlib.crc32 of the tensor's
bytes as they lie in the file. Other readers ignore it.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache

from persimmon_ext.checkpoints.errors import CheckpointError, listing

_PREFIX = "crc32:"
_DIGITS = 8
_POLYNOMIAL = 0xEDB88320  # of CRC-32, bit 31 - i being the coefficient of x^i
_ONE, _X = 1 << 31, 1 << 30


class Tally:
    """Puts the checksum of `size` bytes together from pieces. Each byte is expected once."""

    def __init__(self, size: int) -> None:
        self._missing = self._size = size
        self._pieces: dict[int, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def add(self, offset: int, piece: memoryview) -> int | None:
        """Takes the bytes from `offset` on; returns the checksum of all with the last piece, None before."""
        checksum = zlib.crc32(piece)
        with self._lock:
            self._pieces[offset] = len(piece), checksum
            self._missing -= len(piece)
            if self._missing > 0:
                return None
            pieces, self._pieces, self._missing = sorted(self._pieces.items()), {}, self._size
        whole = 0
        for _, (length, part) in pieces:
            whole = _times(_power(8 * length), whole) ^ part
        return whole


def as_metadata(checksums: Mapping[str, int]) -> dict[str, str]:
    """The metadata of a safetensors file that say the checksums of its tensors; always of the same length."""
    return {f"{_PREFIX}{name}": f"{checksum:0{_DIGITS}x}" for name, checksum in checksums.items()}


def from_metadata(metadata: Mapping[str, str], names: Iterable[str], file: object) -> dict[str, int]:
    """The checksums of the tensors `names` of a safetensors file; none where its metadata has none.

    Raises CheckpointError where it has them for other tensors, or something else in their place.
    """
    stated = {key.removeprefix(_PREFIX): value for key, value in metadata.items() if key.startswith(_PREFIX)}
    if not stated:
        return {}
    odd = sorted(set(stated) ^ set(names))
    odd += [name for name, text in stated.items() if len(text) != _DIGITS or set(text) - set("0123456789abcdef")]
    if odd:
        raise CheckpointError(
            f"{file} has checksums that don't go with its tensors, at {listing(odd)}: it is damaged, or was changed "
            "by a program that kept them (verify=False loads it nevertheless)."
        )
    return {name: int(text, 16) for name, text in stated.items()}


@lru_cache
def _power(exponent: int) -> int:
    """x^exponent modulo the polynomial: that many zero bits behind a message multiply its checksum by it."""
    result, square = _ONE, _X
    while exponent:
        if exponent & 1:
            result = _times(result, square)
        square = _times(square, square)
        exponent >>= 1
    return result


def _times(a: int, b: int) -> int:
    """The product of two polynomials over GF(2), modulo that of CRC-32."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product
