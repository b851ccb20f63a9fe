"""Files that are whole or not there: checksums, and replacing one file by another for good.

The one design choice: checksums are XXH3-128, which costs less than reading the file; they guard against damage, not against
somebody who means harm.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_BUFFER = 2**20


def checksum(data: bytes) -> str:
    """The checksum of bytes, 32 hexadecimal digits."""
    import xxhash

    return xxhash.xxh3_128_hexdigest(data)


def file_checksum(path: Path, end: int | None = None) -> str:
    """The checksum of a file, or of its first `end` bytes. Takes a megabyte of memory, however large the file."""
    import xxhash

    found, buffer, left = xxhash.xxh3_128(), bytearray(_BUFFER), sys.maxsize if end is None else end
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while left > 0 and (count := file.readinto(view[: min(_BUFFER, left)])):
            found.update(view[:count])
            left -= count
    return found.hexdigest()


def replace_file(partial: Path, target: Path) -> None:
    """Put a file that was just written in the place of another, so that a power cut leaves the one or the other."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(target)
    fsync_folder(target.parent)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder as durable as the files."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
