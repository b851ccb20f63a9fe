"""Hidden folders in which a twin is learned before it replaces an older one."""

from __future__ import annotations

import shutil
from pathlib import Path

from usertwin.memory.models.completion_cache import COMPLETIONS_FILE
from usertwin.memory.models.embedding import Embedder
from usertwin.memory.store.triple_store import TripleStore
from usertwin.memory.store.writer_lock import WriterLock
from usertwin.personas import Split, TwinError
from usertwin.personas.files import private_folder, replacement

from .locks import finish_replacement, staged_folder
from .recipe import Recipe
from .record import TwinRecord, conversation_ids


def work_folder(target: Path, recipe: Recipe, split: Split, overwrite: bool, embedder: Embedder) -> tuple[Path, bool]:
    """Return the folder to learn in, and whether it holds an interrupted twin of the same recipe and log.

    The target itself if it can be resumed, or else a hidden folder beside it. Requires the writer lock.

    Raises:
        TwinError: the target exists and `overwrite` is False, or another process is writing in one of the folders.
    """
    finish_replacement(target)
    if target.exists():
        if _can_resume(target, {"interrupted"}, recipe, split, embedder):
            return target, True
        if not overwrite:
            TwinRecord.load(target)  # raises its own error for a damaged twin
            home, name = target.parent, target.name
            raise TwinError(f'there is a twin "{name}" in {home} already; choose another name, or pass --overwrite')
    work = staged_folder(target)
    for folder in (target, work):
        if folder.exists():
            WriterLock(folder, wait=0.0).check()
    if _can_resume(work, {"interrupted", "complete"}, recipe, split, embedder):
        return work, True
    kept = _completions(work, recipe)
    caches = [] if kept else _completions(target, recipe)
    for path in work.iterdir() if work.exists() else ():
        if not kept or path not in (*kept, work / "twin.json"):  # twin.json says whose completions they are
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    private_folder(work)
    for cache in caches:
        with replacement(work / cache.name) as partial:
            shutil.copyfile(cache, partial)
    return work, False


def _completions(folder: Path, recipe: Recipe) -> list[Path]:
    """Return the files of the completion cache; a killed process leaves a write-ahead log beside the database."""
    try:
        stored = TwinRecord.load(folder).recipe
    except TwinError:
        return []
    if (stored.source, stored.speaker) != (recipe.source, recipe.speaker):
        return []  # text of one person must not reach another person's folder
    return sorted(folder.glob(f"{COMPLETIONS_FILE}*"))


def _can_resume(folder: Path, states: set[str], recipe: Recipe, split: Split, embedder: Embedder) -> bool:
    """Return whether the folder holds a twin of this recipe and these held-out conversations, in such a state, that opens."""
    try:
        record = TwinRecord.load(folder)
        expected = (recipe, conversation_ids(split.validation), conversation_ids(split.test))
        if record.state in states and (record.recipe, record.validation, record.test) == expected:
            TripleStore(folder, embedder, create=False).close()
            return True
    except TwinError:
        pass
    return False
