"""The seal of a memory: what a clean close leaves behind, so that a damaged byte is noticed when the memory is opened.

The one design choice: the seal is a checksum of the whole of `memory.sqlite`, in a file of its own that carries its own
checksum; it only counts while the write-ahead log is empty, and whoever begins to write removes it first.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from usertwin.memory.atomic_files import digest, digest_of, replace_file, sync_folder

#: A larger file is compared with its seal by its size only when it is opened (its rows are still checked when they are
#: read, and `usertwin memory check` reads it all): to open a memory must not mean to read gigabytes.
COMPARED_WHEN_OPENED = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Seal:
    """How `memory.sqlite` was when it was closed: after which transaction, its size, its checksum."""

    generation: int
    bytes: int
    digest: str


def log_bytes(folder: Path) -> int:
    """The size of the write-ahead log; 0 if all of it is in `memory.sqlite`."""
    try:
        return (folder / "memory.sqlite-wal").stat().st_size
    except OSError:
        return 0


def read_seal(folder: Path) -> Seal | None:
    """The seal; None if there is none that is whole."""
    try:
        text, _, checksum = (folder / "memory.seal").read_text("utf-8").strip().rpartition(" ")
        return Seal(**json.loads(text)) if digest_of(text.encode()) == checksum else None
    except (OSError, ValueError, TypeError):
        return None


def write_seal(folder: Path, generation: int) -> None:
    """Seal `memory.sqlite` as it is."""
    path, partial = folder / "memory.sqlite", folder / "memory.seal.partial"
    text = json.dumps(asdict(Seal(generation, path.stat().st_size, digest(path))))
    partial.write_text(f"{text} {digest_of(text.encode())}\n", "utf-8")
    replace_file(partial, folder / "memory.seal")


def break_seal(folder: Path) -> None:
    """Remove the seal, for good: a power cut must not bring back the seal of another content."""
    (folder / "memory.seal").unlink(missing_ok=True)
    sync_folder(folder)


def holds(folder: Path, *, at_any_size: bool = False) -> bool | None:
    """Whether `memory.sqlite` is as it was closed; None if there is no seal, or somebody is writing.

    Args:
        folder: of the memory.
        at_any_size: compare all of a file that is larger than `COMPARED_WHEN_OPENED` too.
    """
    seal = read_seal(folder)
    if seal is None or log_bytes(folder):
        return None
    path = folder / "memory.sqlite"
    size = path.stat().st_size
    same = size == seal.bytes and ((size > COMPARED_WHEN_OPENED and not at_any_size) or digest(path) == seal.digest)
    # A writer may have begun meanwhile: then what was compared is not what was sealed.
    return same if seal == read_seal(folder) and not log_bytes(folder) else None
