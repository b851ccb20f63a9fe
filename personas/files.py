"""Every file that usertwin writes goes through here: private, whole, and never through a symbolic link.

What is written holds people's conversations, so folders are created with mode 700 and files with mode 600. A file is replaced
as a whole: after a crash or on a full disk, either the old or the new content is there. A twin may come from a stranger, and a
link planted in its folder must not make usertwin overwrite another file of the user.

Design: libraries that open files themselves (SQLite, FAISS) get a file that `create_private` made before.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import UsageError
from .secrets import mask

_FOLDER_MODE, _FILE_MODE = 0o700, 0o600
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has no such flag; `refuse_link` has looked before


def private_folder(path: Path) -> Path:
    """Create a folder, and its missing parents, that only the user can read; return its path. OSError if that fails."""
    for folder in reversed((path, *path.parents)):
        if not folder.is_dir():
            folder.mkdir(mode=_FOLDER_MODE, exist_ok=True)
    return path


def refuse_link(path: Path) -> None:
    """Raise UsageError if the path is a link, or a pipe or a device. Opening a folder raises OSError anyway."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISLNK(status.st_mode):
        raise UsageError(f"{path}: is a symbolic link, and usertwin uses plain files only; delete the link")
    if stat.S_ISDIR(status.st_mode):
        return
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{path}: is not a plain file, so it cannot be used; move it away")
    if status.st_nlink > 1:
        raise UsageError(f"{path}: is a hard link, and the other file would change too; copy its folder with cp -r")


def refuse_links_in(folder: Path) -> None:
    """Raise UsageError if a folder, or anything in it at any depth, is a link, or is neither a plain file nor a folder.

    Such a folder may come from a stranger, and a link could make usertwin read or overwrite any file of the user.
    """
    if folder.is_symlink():
        raise UsageError(f"{folder}: is a symbolic link; name the folder that it leads to, or move that folder here")
    for root, folders, files in os.walk(folder):
        for name in files:
            refuse_link(Path(root, name))
        for name in folders:  # os.walk lists links to folders here, and does not follow them
            if (path := Path(root, name)).is_symlink():
                raise UsageError(f"{path}: is a symbolic link, and usertwin uses plain folders only; delete the link")


def create_private(path: Path) -> None:
    """Create an empty file that only the user can read, unless it exists. UsageError if the path is a link."""
    refuse_link(path)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | _NO_FOLLOW, _FILE_MODE))


def create_database(path: Path) -> None:
    """Create a private file for SQLite, unless it exists; its mode is that of the files beside it. UsageError for a link."""
    for suffix in ("-wal", "-shm", "-journal"):
        refuse_link(path.with_name(path.name + suffix))
    create_private(path)


@contextmanager
def private_umask() -> Generator[None]:
    """Let libraries create private files and folders while the block runs. It holds for the whole process."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def open_private(path: Path, mode: str = "w", **options: Any) -> IO[Any]:
    """Open a file for writing ("w", "a", "x", also "b"); a new one can be read only by the user. UsageError for a link."""
    refuse_link(path)
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | _NO_FOLLOW, _FILE_MODE), **options)


def write_private(path: Path, content: str | bytes) -> None:
    """Replace a file's content as a whole, durably. Secrets in a text are masked, and lone surrogates become escapes.

    Raises:
        UsageError: the path is a symbolic link.
        OSError: the disk is full or the folder cannot be written; the old content is still there.
    """
    with replacement(path) as partial:
        partial.write_bytes(mask(content).encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


@contextmanager
def replacement(path: Path) -> Generator[Path]:
    """Yield the path of an empty private file beside `path` that replaces it when the block ends, and is gone if it fails."""
    refuse_link(path)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".partial", dir=path.parent)  # mode 600
    os.close(descriptor)
    partial = Path(name)
    try:
        yield partial
        replace_file(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def replace_file(partial: Path, target: Path) -> None:
    """Replace `target` with the newly written `partial`; after a power failure either the old or the new file is there."""
    refuse_link(target)
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
