"""Which models a twin or an adapter may load: harmless ones, and those that the user chose for it on this machine.

A twin's folder may come from a stranger, and its record names models. A name may hold a path, or a URL that the chat would be
sent to. So such a name is loaded only if the twin was learned here with it, or the user allowed it with `usertwin trust`.

Design: the list lies in the user's data folder, outside the homes, so that no folder brings its own. An entry is a hash of the
twin's name, the time of its learning and the model, so a twin may be moved, and the list names nobody. An adapter's entry is a
hash of its content and its base.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from usertwin.memory.models.embedding import BFLOAT16_SUFFIX, DEFAULT_EMBEDDER
from usertwin.personas import UsageError
from usertwin.personas.files import open_private, private_folder

from .record import TwinRecord, data_folder, twin_command

_LOG = logging.getLogger("usertwin.memory")
#: Models that come with usertwin and run on this machine.
_BUILT_IN = {"local", "local:small", DEFAULT_EMBEDDER, DEFAULT_EMBEDDER + BFLOAT16_SUFFIX}
_LIST = "allowed_models"
_allowed_in_this_process: set[str] = set()  # also where the list cannot be written
_FAKE = re.compile(r"fake:\d{0,4}")


def needs_consent(record: TwinRecord) -> list[str]:
    """Return the models that a twin names and may not load yet, without repeats."""
    recipe = record.recipe
    names = (recipe.embedder, recipe.synthesizer, recipe.model, recipe.scorer, recipe.actor, recipe.judge)
    return [name for name in dict.fromkeys(names) if name is not None and not _is_allowed(name, *_twin(record))]


def check_consent(record: TwinRecord, *models: str | None, folder: Path | None = None) -> None:
    """Raise UsageError if a twin may not load one of these models, which its record names.

    The way out names the twin by its folder, whatever its record says.
    """
    for name in models:
        if name is not None and not _is_allowed(name, *_twin(record)):
            model, twin = (" ".join(text.split()) for text in (name, record.name))
            command = twin_command("trust", twin) if folder is None else twin_command("trust", folder.name, folder.parent)
            raise UsageError(
                f'the twin "{twin}" names the model "{model}", and nothing shows that you chose it; if you trust it with your '
                f"chats, run: {command}"
            )


def allow_models(record: TwinRecord) -> None:
    """Allow a twin every model that its record names. OSError if the list cannot be written."""
    _allow([_entry(name, *_twin(record)) for name in needs_consent(record)])


def allow_own_models(record: TwinRecord, folder: Path) -> None:
    """Allow the twin that is learned in a folder the models of its recipe, if the list can be written."""
    try:
        allow_models(record)
    except OSError as error:
        _LOG.warning(
            "%s: cannot be written (%s), so the twin will need: %s",
            data_folder(), error.strerror, twin_command("trust", folder.name, folder.parent),
        )  # fmt: skip


def adapter_may_load(base: str, identity: str) -> bool:
    """Return whether an adapter, with this hash of its content, may load the base that it names."""
    return _is_allowed(base, identity)


def allow_adapter(base: str, identity: str) -> None:
    """Allow an adapter that was trained here its base, if the list can be written."""
    try:
        _allow([] if _is_allowed(base, identity) else [_entry(base, identity)])
    except OSError as error:
        _LOG.warning("%s: cannot be written (%s), so the adapter has to be named with its base", data_folder(), error.strerror)


def _allow(entries: Sequence[str]) -> None:
    if entries:
        _allowed_in_this_process.update(entries)
        with open_private(private_folder(data_folder()) / _LIST, "a", encoding="ascii") as file:
            file.write("".join(f"{entry}\n" for entry in entries))


def _twin(record: TwinRecord) -> tuple[str, str]:
    return record.name, record.learned_at


def _is_allowed(model: str, *owner: str) -> bool:
    if model in _BUILT_IN or _FAKE.fullmatch(model):
        return True
    if model.startswith("scripted:") and os.environ.get("USERTWIN_ONLY_SCRIPTED"):
        return True
    return _entry(model, *owner) in _allowed_in_this_process | _entries()


def _entries() -> set[str]:
    try:
        return set((data_folder() / _LIST).read_text("ascii").split())
    except (OSError, ValueError):
        return set()


def _entry(model: str, *owner: str) -> str:
    return hashlib.sha256(json.dumps([*owner, model]).encode()).hexdigest()
