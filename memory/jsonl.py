"""JSON lines files that are written line by line and survive a crash.

A line counts once its newline is written. Readers skip an incomplete last line and writers remove it, so a crash loses at most
the line it interrupts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, TypeVar

from usertwin.personas import UsageError

T = TypeVar("T")


def complete_lines(path: Path) -> list[bytes]:
    """Return the complete lines of a file without their newlines; empty if the file is missing."""
    return path.read_bytes().split(b"\n")[:-1] if path.is_file() else []


def read_lines(path: Path, parse: Callable[[Any], T], item: str, fix: str) -> list[T]:
    """Return what `parse` makes of the JSON of a file's complete lines; empty if the file is missing.

    The error message calls a value `item` and ends with the way out, `fix`.

    Raises:
        UsageError: a line is not such a value; the message names the file and the line.
    """
    values: list[T] = []
    for number, line in enumerate(complete_lines(path), 1):
        try:
            values.append(parse(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UsageError(f"{path}, line {number}: not a valid {item} ({error!r}); {fix}") from error
    return values


def open_for_append(path: Path) -> TextIO:
    """Open a file for appending, created if missing; an incomplete last line is removed first."""
    if path.is_file():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    return path.open("a", encoding="utf-8")


def append_line(file: TextIO, value: Any) -> None:
    """Append a JSON value as a line and flush it, so that it survives the end of the process."""
    file.write(json.dumps(value, ensure_ascii=False) + "\n")
    file.flush()
