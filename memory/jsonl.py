"""Files of JSON lines that are written one after another, each handed to the system at once.

The one design choice: a line counts if its end was written; what a stop cut short, maybe within a letter, is left out by who
reads and taken off by who goes on writing, so that a stop loses at most the line it came in.
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
    """The lines of a file that are whole, without their ends; none if it is not there."""
    return path.read_bytes().split(b"\n")[:-1] if path.is_file() else []


def read_lines(path: Path, made: Callable[[Any], T], what: str, way_out: str) -> list[T]:
    """What the whole lines of a file hold. UsageError names the line that holds something else, and the way out."""
    found: list[T] = []
    for number, line in enumerate(complete_lines(path), 1):
        try:
            found.append(made(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UsageError(f"{path}, line {number}: no {what} ({error!r}); {way_out}") from error
    return found


def open_for_append(path: Path) -> TextIO:
    """The file, to append to; made if missing. A last line that was cut short is taken off first."""
    if path.is_file():
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)
    return path.open("a", encoding="utf-8")


def append_line(file: TextIO, data: Any) -> None:
    """Append a value as a line, and hand it to the system at once."""
    file.write(json.dumps(data, ensure_ascii=False) + "\n")
    file.flush()
