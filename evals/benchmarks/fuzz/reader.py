"""A reader under test, and how its input gets to it: as a file, as one file of a folder, as a SQLite file."""

from __future__ import annotations

import io
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from rich.console import RenderableType

from usertwin.evals.cli.parts.progress_bars import SafeConsole

from .mutations import mutate_sqlite

Mutation: TypeAlias = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A reader with its valid inputs.

    Attributes:
        name: for reports.
        inputs: valid inputs.
        mutate: changes an input.
        read: reads an input, and looks at all that was read.
        weight: its share of all inputs, relative to the others.
    """

    name: str
    inputs: Sequence[bytes]
    mutate: Mutation
    read: Callable[[bytes], object]
    weight: int = 8


def from_file(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Return a function that writes its input to a file and reads that."""

    def read_content(content: bytes) -> object:
        path.write_bytes(content)
        return read(path)

    return read_content


def show(view: RenderableType) -> None:
    """Print a view to nowhere."""
    SafeConsole(file=io.StringIO(), width=80, emoji=False).print(view)


def sampled(value: object) -> bool:
    """Return whether to look at a value in the ways that take long: at one in eight, by its content."""
    return zlib.crc32(repr(value).encode("utf-8", "replace")) % 8 == 0


def written(path: Path, content: bytes) -> Path:
    """Write a file, and return its path."""
    path.write_bytes(content)
    return path


def from_database(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Return a function that writes its input as a SQLite file without leftovers of the last one, and reads that."""

    def read_content(content: bytes) -> object:
        for name in ("", "-wal", "-shm", "-journal"):
            path.with_name(path.name + name).unlink(missing_ok=True)
        path.write_bytes(content)
        return read(path)

    return read_content


def mutate_database(folder: Path, content: bytes, rng: random.Random) -> bytes:
    """Return a SQLite file with changed cells, tables or bytes; it is changed in a folder."""
    path = written(folder / "mutated.sqlite", content)
    mutate_sqlite(path, rng)
    for name in ("-wal", "-shm", "-journal"):
        path.with_name(path.name + name).unlink(missing_ok=True)
    return path.read_bytes()


def from_folder(
    folder: Path, valid: Mapping[str, bytes], name: str, read: Callable[[Path], object]
) -> Callable[[bytes], object]:
    """Return a function that writes its input to one file of a folder whose other files are valid, and reads the folder."""

    def read_content(content: bytes) -> object:
        for file, whole in valid.items():
            (folder / file).write_bytes(content if file == name else whole)
        return read(folder)

    return read_content
