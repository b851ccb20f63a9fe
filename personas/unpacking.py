"""Unpacking within limits: a small compressed log that unpacks to endless text must fill neither the memory nor the disk."""

from __future__ import annotations

import gzip
import io
import os
from typing import IO, Any

#: Bytes up to which any file may unpack, and times of its own size beyond that.
MAX_UNPACKED, MAX_RATIO = 1 << 28, 100


class Gunzip(io.RawIOBase):
    """The unpacked bytes of a gzip file.

    Args:
        packed: the file, at its beginning.

    Raises:
        OSError: while it is read, if it is damaged or unpacks to far more than its size.
    """

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed, self._file = packed, gzip.GzipFile(fileobj=packed)

    def readable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def seekable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """See `io.IOBase`."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """See `io.IOBase`."""
        return self._file.tell()

    def readinto(self, buffer: Any, /) -> int:
        """See `io.RawIOBase`."""
        data = self._file.read1(len(buffer))
        if self._file.tell() > max(MAX_UNPACKED, MAX_RATIO * self._packed.tell()):
            raise OSError(f"it unpacks to over {MAX_RATIO} times its size; unpack it yourself")
        buffer[: len(data)] = data
        return len(data)
