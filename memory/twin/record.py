"""A twin's folder: what is known about it besides its memory, and where twins live.

The one design choice: a twin is a folder that holds all it needs, the held-out conversations and the other person it is
compared with included, so that it can be moved, measured again and deleted as one thing.

    HOME/NAME/
        twin.json                       the record below
        memory.sqlite, memory.faiss     the triples and their index (and memory.seal, memory.lock)
        ending.json, leaving.json       when the person leaves, with a last word or without
        held_out.jsonl.gz               the person's conversations that the memory must not know
        other_person.jsonl.gz           the conversations of somebody else from the same log, for comparison
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from usertwin.personas import Conversation, Pair, Persona, TwinError, read_conversations

from .recipe import Recipe

_FORMAT = 2
#: Fields of a recipe in format 1, and their names today.
_RECIPE_FIELDS_1 = {"how": "proposal_mode", "calls": "max_calls"}
_SAFE_NAME = re.compile(r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)(\.|$))[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # Windows has devices
HELD_OUT = "held_out.jsonl.gz"
OTHER_PERSON = "other_person.jsonl.gz"
ENDING, LEAVING = "ending.json", "leaving.json"


#: Which traces a twin is shown with its memories.
ShownTraces = Literal["none", "backward", "recon"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a twin uses its memory.

    Attributes:
        k: how many triples it recalls for a turn.
        window: how many turns of the present chat it is shown.
        traces: which traces it sees with what it recalls: none, the first proposals ("backward"), or those that were chosen.
        reasons: whether it writes a trace of its own for the present turn before it acts.
        measured: what was compared to find this: a JSON object, as `usertwin learn` shows it; None if nothing was.
    """

    k: int = 8
    window: int = 6
    traces: ShownTraces = "recon"
    reasons: bool = True
    measured: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinRecord:
    """What is known about a twin.

    Attributes:
        name: the twin's name, which is its folder's.
        persona: who it plays.
        recipe: how it was learned.
        state: "complete", or "interrupted" if learning was stopped: then the same command goes on where it stopped.
        learned_at: ISO 8601, when learning began.
        dated: whether the log has dates; if not, time is the place in the log.
        corpus_ends: the time of the latest pair that was available to the memory (see `Pair.when`).
        corpus: the conversations that the twin was learned from.
        validation: the conversations that settings may be chosen on.
        test: the conversations to measure on.
        other_speaker: the person it is compared with, or None if the log has nobody else of the kind.
        versions: of the packages that matter.
        closeness: the last measurement, as `eval` wrote it; None if there was none.
        settings: what was found best for this person on validation turns; None if that was not measured.
    """

    name: str
    persona: Persona
    recipe: Recipe
    state: Literal["complete", "interrupted"]
    learned_at: str
    dated: bool
    corpus_ends: float
    corpus: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    other_speaker: str | None
    versions: Mapping[str, str]
    closeness: Mapping[str, Any] | None = None
    settings: Settings | None = None

    def save(self, folder: Path) -> None:
        """Write `twin.json`, atomically."""
        text = json.dumps({"format": _FORMAT} | asdict(self), ensure_ascii=False, indent=1)
        partial = folder / "twin.json.partial"
        partial.write_text(text + "\n", "utf-8")
        os.replace(partial, folder / "twin.json")

    @classmethod
    def load(cls, folder: Path) -> TwinRecord:
        """Read `twin.json`. TwinError, with the way out, if it is missing, damaged or of a newer format."""
        path = folder / "twin.json"
        again = "learn the twin again with --overwrite"
        try:
            raw = json.loads(path.read_text("utf-8"))
            written = raw.pop("format", None)
            if written not in {1, _FORMAT}:
                raise TwinError(f"{path}: was written by a newer usertwin; upgrade usertwin, or {again}")
            recipe_fields: dict[str, Any] = raw.pop("recipe")
            if written == 1:
                recipe_fields = {_RECIPE_FIELDS_1.get(key, key): value for key, value in recipe_fields.items()}
            persona, recipe = Persona.from_json(raw.pop("persona")), Recipe(**recipe_fields)
            ids = {key: tuple(raw.pop(key)) for key in ("corpus", "validation", "test")}
            settings = raw.pop("settings", None)
            return cls(persona=persona, recipe=recipe, settings=Settings(**settings) if settings else None, **ids, **raw)
        except (FileNotFoundError, NotADirectoryError):
            raise TwinError(f"{folder}: is not a twin, or only half of one (there is no twin.json); {again}") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, TwinError):
                raise
            raise TwinError(f"{path}: is damaged ({error}); {again}") from None

    def with_closeness(self, closeness: Mapping[str, Any]) -> TwinRecord:
        """The record with a new measurement."""
        return replace(self, closeness=dict(closeness))


def kept_conversations(path: Path) -> Sequence[Conversation]:
    """The conversations in one of a twin's files, which may hold none. TwinError if it is missing or damaged."""
    try:
        return read_conversations(path).conversations if gzip.decompress(path.read_bytes()) else ()
    except (OSError, EOFError, zlib.error) as error:
        raise TwinError(f"{path}: is missing or damaged ({error}); learn the twin again with --overwrite") from None


def default_home() -> Path:
    """Where twins live: the environment's USERTWIN_HOME, else the user's data folder."""
    told = os.environ.get("USERTWIN_HOME")
    if told:
        return Path(told)
    from platformdirs import user_data_path

    return user_data_path("usertwin", appauthor=False) / "twins"


def twin_folder(name: str, home: str | Path | None = None) -> Path:
    """The folder of a twin, which need not exist. TwinError if the name cannot be a folder's on every system."""
    if not _SAFE_NAME.fullmatch(name) or name.endswith("."):
        raise TwinError(
            f'"{name}" cannot be a twin\'s name; use letters, digits, ".", "_" and "-", a letter or digit first, 64 at most'
        )
    return (Path(home) if home is not None else default_home()) / name


def existing_twin(name: str, home: str | Path | None = None) -> Path:
    """The folder of a twin that exists. TwinError, listing those that do, if it does not."""
    folder = twin_folder(name, home)
    if not folder.is_dir():
        known = ", ".join(list_twins(home)[:10]) or "none yet"
        raise TwinError(
            f'there is no twin "{name}" in {folder.parent} (there: {known}); '
            f"make it with: usertwin learn {name} --from FILE --speaker WHO"
        )
    return folder


def list_twins(home: str | Path | None = None) -> list[str]:
    """The names of the twins in a home, sorted; empty if there is no such folder."""
    root = Path(home) if home is not None else default_home()
    if not root.is_dir():
        return []
    return sorted(entry.name for entry in root.iterdir() if (entry / "twin.json").is_file() and not entry.name.startswith("."))


def conversation_ids(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """Return the ids of the conversations of some pairs, each once, in order."""
    return tuple(dict.fromkeys(pair.conversation_id for pair in pairs))
