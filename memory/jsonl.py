"""JSON lines files that are written line by line, survive a crash, and hold no secrets.

A line counts once its newline is written. Readers skip an incomplete last line and writers remove it, so a crash loses at most
the line it interrupts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

from usertwin.personas import UsageError
from usertwin.personas.files import open_private, refuse_link
from usertwin.personas.reading import parse_json
from usertwin.personas.secrets import mask

T = TypeVar("T")
_BLOCK = 2**16


def complete_lines(path: Path) -> list[bytes]:
    """Return the complete lines of a file without their newlines; empty if the file is missing."""
    return path.read_bytes().split(b"\n")[:-1] if path.is_file() else []


def read_lines(path: Path, parse: Callable[[Any], T], item: str, fix: str) -> list[T]:
    """Return what `parse` makes of the JSON of a file's complete lines; empty if the file is missing.

    `parse` raises ValueError for any other value. The error message calls a value `item` and ends with the way out, `fix`.

    Raises:
        UsageError: a line is not such a value; the message names the file and the line.
    """
    values: list[T] = []
    for number, line in enumerate(complete_lines(path), 1):
        try:
            values.append(parse(parse_json(line)))
        except ValueError as error:
            raise UsageError(f"{path}:{number}: not a valid {item}: {error}; {fix}") from None
    return values


def open_for_append(path: Path) -> TextIO:
    """Open a private file for appending, created if missing; an incomplete last line is removed first."""
    refuse_link(path)
    if path.is_file():
        os.truncate(path, _complete_bytes(path))
    return cast("TextIO", open_private(path, "a", encoding="utf-8", errors="backslashreplace"))


def _complete_bytes(path: Path) -> int:
    """Return the size of a file's complete lines; only its end is read."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _BLOCK)
            file.seek(start)
            if (newline := file.read(end - start).rfind(b"\n")) >= 0:
                return start + newline + 1
            end = start
    return 0


def append_line(file: TextIO, value: Any) -> None:
    """Append a JSON value as a line, secrets masked, and flush it, so that it survives the end of the process."""
    file.write(mask(json.dumps(value, ensure_ascii=False)) + "\n")
    file.flush()
