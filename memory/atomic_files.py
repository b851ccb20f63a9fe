"""Checksums of files, and durable, atomic replacement of one file by another.

Design: checksums are XXH3-128, which costs less than reading the file. They detect damage, not tampering.
"""

from __future__ import annotations

import os
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


def replace_file(partial: Path, target: Path) -> None:
    """Replace `target` with the newly written `partial`; after a power failure either the old or the new file is there."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(target)
    fsync_folder(target.parent)


def fsync_folder(folder: Path) -> None:
    """Flush a folder's directory entries to disk."""
    if os.name == "posix":  # other systems cannot open a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
