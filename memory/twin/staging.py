"""Folders in which a twin is learned before it replaces an older one."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from usertwin.memory.models.answer_cache import COMPLETIONS_FILE
from usertwin.memory.models.embedding import Embedder
from usertwin.memory.store.triple_store import TripleStore
from usertwin.memory.store.writer_lock import WriterLock
from usertwin.personas import Split, TwinError

from .recipe import Recipe
from .record import TwinRecord, conversation_ids


def work_folder(name: str, target: Path, recipe: Recipe, split: Split, overwrite: bool, embedder: Embedder) -> Path:
    """Where to work: on an interrupted twin of the same recipe and log, else in a hidden folder beside the target."""
    if target.exists():
        if _begun(target, recipe, split, embedder):
            return target
        if not overwrite:
            TwinRecord.load(target)  # a damaged twin is said to be damaged
            raise TwinError(f'there is a twin "{name}" in {target.parent} already; choose another name, or pass --overwrite')
    work = target.parent / f".{name}.partial"
    for folder in (target, work):
        if folder.exists():  # nothing is replaced that somebody is writing
            WriterLock(folder, wait=0.0).check()
    if not _begun(work, recipe, split, embedder):
        answers = next((kept for folder in (work, target) if (kept := _answers(folder, recipe))), {})
        shutil.rmtree(work, ignore_errors=True)
        with _writable(target.parent):
            work.mkdir(parents=True)
        for file, kept in answers.items():  # the same question need not be asked again
            (work / file).write_bytes(kept)
    return work


def _answers(folder: Path, recipe: Recipe) -> dict[str, bytes]:
    """The files of what models answered about the same person, by name; a killed run leaves a log beside the database."""
    try:
        known = TwinRecord.load(folder).recipe
    except TwinError:
        return {}
    if (known.source, known.speaker) != (recipe.source, recipe.speaker):
        return {}  # nothing of one person is kept in another one's folder
    return {file.name: file.read_bytes() for file in folder.glob(f"{COMPLETIONS_FILE}*")}


def _begun(folder: Path, recipe: Recipe, split: Split, embedder: Embedder) -> bool:
    """Whether the same learning was begun here: the recipe, what is held out (a log may have changed), a memory that opens."""
    try:
        record = TwinRecord.load(folder)
        same = (record.recipe, record.validation, record.test) == (
            recipe,
            conversation_ids(split.validation),
            conversation_ids(split.test),
        )
        if record.state == "interrupted" and same:
            TripleStore(folder, embedder, create=False).close()
            return True
    except TwinError:
        pass
    return False


@contextmanager
def _writable(home: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise TwinError(f"{home}: twins cannot be kept there ({error.strerror}); choose another folder with --home") from None


def replace_twin(work: Path, target: Path) -> None:
    """Put the new twin where the old one is; if that is interrupted, the old one is beside it, its name with a dot and .old."""
    old = target.parent / f".{target.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    work.rename(target)
    shutil.rmtree(old, ignore_errors=True)
