# SPDX-License-Identifier: Apache-2.0
"""CRC32C (Castagnoli), by which TFRecords are checked: google_crc32c if it is installed.

Without it (extra `pack`), a table gives the checksums of short texts; those of pictures are not checked.
"""

from __future__ import annotations

import warnings
from functools import cache

#: The polynomial of Castagnoli, its bits in reverse, and what TFRecord adds to a rotated checksum.
_POLYNOMIAL, _MASK = 0x82F63B78, 0xA282EAD8

try:
    with warnings.catch_warnings():
        # Without its C code the package warns that it is slow; it is not used then.
        warnings.simplefilter("ignore")
        import google_crc32c

    #: Whether long texts can be checked.
    FAST = google_crc32c.implementation == "c"
except ImportError:
    FAST = False


def masked(data: bytes) -> int:
    """Return the checksum of `data` as TFRecord stores it: rotated by 15 bits, plus a constant."""
    checksum = google_crc32c.value(data) if FAST else by_table(data)
    return (((checksum >> 15) | (checksum << 17)) + _MASK) & 0xFFFFFFFF


def by_table(data: bytes) -> int:
    """Return the CRC32C of a short text, byte by byte."""
    table, checksum = _table(), 0xFFFFFFFF
    for byte in data:
        checksum = table[(checksum ^ byte) & 0xFF] ^ (checksum >> 8)
    return checksum ^ 0xFFFFFFFF


@cache
def _table() -> tuple[int, ...]:
    """Return the checksum of each byte."""
    table = []
    for checksum in range(256):
        for _ in range(8):
            checksum = (checksum >> 1) ^ (_POLYNOMIAL if checksum & 1 else 0)
        table.append(checksum)
    return tuple(table)
