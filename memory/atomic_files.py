"""Checksums of bytes and files.

Design: checksums are XXH3-128, which costs less than reading the file. They detect damage, not tampering.
"""

from __future__ import annotations

import sys
from pathlib import Path


def checksum(data: bytes) -> str:
    """Return the checksum of bytes, 32 hexadecimal digits."""
    import xxhash

    return xxhash.xxh3_128_hexdigest(data)


def file_checksum(path: Path, end: int | None = None) -> str:
    """Return the checksum of a file, or of its first `end` bytes, read one mebibyte at a time."""
    import xxhash

    digest, remaining = xxhash.xxh3_128(), sys.maxsize if end is None else end
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(min(2**20, remaining)):
            digest.update(chunk)
            remaining -= len(chunk)
    return digest.hexdigest()
