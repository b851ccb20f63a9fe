"""Hidden folders in which a twin is learned before it replaces an older one."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from usertwin.memory.models.completion_cache import COMPLETIONS_FILE
from usertwin.memory.models.embedding import Embedder
from usertwin.memory.store.triple_store import TripleStore
from usertwin.memory.store.writer_lock import WriterLock
from usertwin.personas import Split, TwinError

from .recipe import Recipe
from .record import TwinRecord, conversation_ids


def work_folder(name: str, target: Path, recipe: Recipe, split: Split, overwrite: bool, embedder: Embedder) -> Path:
    """Return the folder to learn in: an interrupted twin of the same recipe and log, or else a hidden one beside the target.

    Raises:
        TwinError: the target exists and `overwrite` is False, or another process is writing in one of the folders.
    """
    if target.exists():
        if _can_resume(target, recipe, split, embedder):
            return target
        if not overwrite:
            TwinRecord.load(target)  # raises its own error for a damaged twin
            raise TwinError(f'there is a twin "{name}" in {target.parent} already; choose another name, or pass --overwrite')
    work = target.parent / f".{name}.partial"
    for folder in (target, work):
        if folder.exists():
            WriterLock(folder, wait=0.0).check()
    if not _can_resume(work, recipe, split, embedder):
        caches = (_cached_completions(folder, recipe) for folder in (work, target))
        files = next((cache for cache in caches if cache), {})
        shutil.rmtree(work, ignore_errors=True)
        with _home_errors(target.parent):
            work.mkdir(parents=True)
        for file_name, content in files.items():
            (work / file_name).write_bytes(content)
    return work


def _cached_completions(folder: Path, recipe: Recipe) -> dict[str, bytes]:
    """Return the files of the completion cache by name; a killed process leaves a write-ahead log beside the database."""
    try:
        stored = TwinRecord.load(folder).recipe
    except TwinError:
        return {}
    if (stored.source, stored.speaker) != (recipe.source, recipe.speaker):
        return {}  # text of one person must not reach another person's folder
    return {file.name: file.read_bytes() for file in folder.glob(f"{COMPLETIONS_FILE}*")}


def _can_resume(folder: Path, recipe: Recipe, split: Split, embedder: Embedder) -> bool:
    """Return whether the folder holds an interrupted twin of this recipe and these held-out conversations that opens."""
    try:
        record = TwinRecord.load(folder)
        expected = (recipe, conversation_ids(split.validation), conversation_ids(split.test))
        if record.state == "interrupted" and (record.recipe, record.validation, record.test) == expected:
            TripleStore(folder, embedder, create=False).close()
            return True
    except TwinError:
        pass
    return False


@contextmanager
def _home_errors(home: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise TwinError(f"{home}: cannot hold twins ({error.strerror}); choose another folder with --home") from None


def replace_twin(work: Path, target: Path) -> None:
    """Move the new twin to the target. If this is interrupted, the old twin is beside it, in a hidden folder with .old."""
    old = target.parent / f".{target.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    work.rename(target)
    shutil.rmtree(old, ignore_errors=True)
