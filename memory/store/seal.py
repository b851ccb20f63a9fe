"""The seal of a memory: a checksum of `memory.sqlite`, written on a clean close and compared when the memory is opened.

The seal is a file of its own with a checksum of its own. It is valid only while the write-ahead log is empty, and every writer
removes it before its first change.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from usertwin.memory.atomic_files import checksum, file_checksum
from usertwin.personas.files import fsync_folder, write_private

#: On opening, only the size of a larger file is compared with the seal, so that opening does not read gigabytes. Its rows are
#: still checked when they are read, and `usertwin memory check` reads all of it.
MAX_BYTES_HASHED_ON_OPEN = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Seal:
    """`memory.sqlite` when it was closed: the number of its last transaction, its size, and its checksum."""

    generation: int
    bytes: int
    digest: str


def log_bytes(folder: Path) -> int:
    """Return the size of the write-ahead log; 0 if all changes are in `memory.sqlite`."""
    try:
        return (folder / "memory.sqlite-wal").stat().st_size
    except OSError:
        return 0


def read_seal(folder: Path) -> Seal | None:
    """Return the seal; None if it is missing or damaged."""
    try:
        text, _, stored = (folder / "memory.seal").read_text("utf-8").strip().rpartition(" ")
        return Seal(**json.loads(text)) if checksum(text.encode()) == stored else None
    except (OSError, ValueError, TypeError):
        return None


def write_seal(folder: Path, generation: int) -> None:
    """Seal the present content of `memory.sqlite`."""
    path = folder / "memory.sqlite"
    for leftover in folder.glob(".memory.seal.*.partial"):  # of killed processes
        leftover.unlink(missing_ok=True)
    text = json.dumps(asdict(Seal(generation, path.stat().st_size, file_checksum(path))))
    write_private(folder / "memory.seal", f"{text} {checksum(text.encode())}\n")


def break_seal(folder: Path) -> None:
    """Remove the seal, and sync the folder: after a power cut the seal of an older content must not reappear."""
    (folder / "memory.seal").unlink(missing_ok=True)
    fsync_folder(folder)


def matches_seal(folder: Path, *, at_any_size: bool = False) -> bool | None:
    """Return whether `memory.sqlite` is as it was closed; None if there is no valid seal, or a writer is at work.

    Args:
        folder: the folder of the memory.
        at_any_size: hash also a file larger than `MAX_BYTES_HASHED_ON_OPEN`.
    """
    seal = read_seal(folder)
    if seal is None or log_bytes(folder):
        return None
    path = folder / "memory.sqlite"
    size = path.stat().st_size
    same = size == seal.bytes and ((size > MAX_BYTES_HASHED_ON_OPEN and not at_any_size) or file_checksum(path) == seal.digest)
    # If a writer began meanwhile, the hashed content is not the sealed one.
    return same if seal == read_seal(folder) and not log_bytes(folder) else None
