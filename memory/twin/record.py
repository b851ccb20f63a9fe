"""A twin's folder and its record, twin.json.

Design: the folder holds everything that belongs to a twin, also the held-out conversations and those of the person it is
compared with. So it can be moved, measured again and deleted as a unit.

    HOME/NAME/
        twin.json                       the record
        memory.sqlite, memory.faiss     the triples and their index (and memory.seal, memory.lock)
        ending.json, leaving.json       the models of leaving with a last turn and without one
        held_out.jsonl.gz               the person's validation and test conversations
        other_person.jsonl.gz           conversations of another person in the same log, for comparison
        adapter/                        an adapter of the acting model, trained on the twin's own prompts, if it pays
        adapting/                       the checkpoints of a training of one that is not finished
        sessions.sqlite                 conversations with the twin in the terminal
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from usertwin.memory.own_words.word_weights import WordWeights
from usertwin.memory.store.error_messages import storage_errors
from usertwin.personas import Conversation, Pair, Persona, TwinError, read_conversations
from usertwin.personas.files import write_private
from usertwin.personas.pairs import group_pairs
from usertwin.personas.reading import STRICT, as_type, parse_json, reason

from .locks import finish_replacement, record_lock, refuse_links
from .recipe import Recipe
from .reranking import Reranking

_FORMAT = 2
#: Fields and values of format 1 (development snapshots before 0.1.0), and their present names.
_RECIPE_FIELDS_1 = {"how": "proposal_mode", "calls": "max_calls"}
_FIDELITIES_1 = {"novel": "guarded_gain"}
_TRACES_1 = {"chosen": "recon"}
_SAFE_NAME = re.compile(r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)(\.|$))[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # not a Windows device
HELD_OUT_FILE = "held_out.jsonl.gz"
OTHER_PERSON_FILE = "other_person.jsonl.gz"
LAST_TURN_FILE, ABANDONMENT_FILE = "ending.json", "leaving.json"
ADAPTER_FOLDER, ADAPTING_FOLDER = "adapter", "adapting"
SESSIONS_FILE = "sessions.sqlite"

#: The traces in a twin's prompts: none, the first proposals, or the Recon-selected ones.
ShownTraces = Literal["none", "backward", "recon"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a twin uses its memory.

    Attributes:
        k: number of triples recalled for a turn.
        window: number of turns of the present chat in the prompt.
        traces: traces of the recalled triples in the prompt.
        reasons: whether the twin writes a trace for the present turn before it acts.
        words: the weights of the person's own words in the model's next-token probabilities; None for the model alone.
        reranking: how the twin chooses its reply among several candidates; None for the first that the model writes.
        measured: the comparison behind these settings, a JSON object; None if they were not measured.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    k: int = 8
    window: int = 6
    traces: ShownTraces = "recon"
    reasons: bool = True
    words: WordWeights | None = None
    reranking: Reranking | None = None
    measured: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinAdapter:
    """The latest attempt to adapt the acting model to a twin: a LoRA adapter, trained on the twin's own prompts.

    Attributes:
        used: whether it paid on validation turns; else it is deleted, and this is what is left of it.
        base: name of the model that it was trained on.
        weights: checksum of that model's weights (see `weights_checksum`), the only ones that it is used with.
        identity: hash of the adapter.
        turns: number of the person's turns that it was trained on.
        remembered: number of the turns in the memory at that time.
        epochs: passes over these turns.
        rank: rank of its matrices.
        trained_at: end of the training, ISO 8601.
        difference: bits per character of validation turns, with the adapter minus without, below 0 a gain.
        low: lower end of the 95% interval of the difference; None without one.
        high: its upper end.
        validation_turns: number of turns behind the difference.
        conversations: number of conversations behind it.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    used: bool
    base: str
    weights: str
    identity: str
    turns: int
    remembered: int
    epochs: int
    rank: int
    trained_at: str
    difference: float
    low: float | None
    high: float | None
    validation_turns: int
    conversations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinRecord:
    """The metadata of a twin.

    Attributes:
        name: name of the twin and of its folder.
        persona: the persona that it plays.
        recipe: the settings of learning.
        state: "complete", or "interrupted" if learning can be resumed.
        learned_at: start of learning, ISO 8601.
        dated: whether the log has dates; otherwise times are indices of conversations.
        corpus_ends: time of the latest pair of the corpus (see `Pair.when`).
        corpus: ids of the conversations in the memory.
        validation: ids of the conversations for choosing settings.
        test: ids of the conversations for measuring.
        other_speaker: the person it is compared with; None if the log has no other person of the same role.
        versions: versions of the packages that affect results.
        closeness: the latest result of `usertwin eval`; None if there is none.
        settings: the settings chosen on validation turns; None if they were not measured.
        judge_check: how the judge of the fidelity answered questions with known answers; None if it was not checked.
        adapter: the latest attempt to adapt the acting model; None without one.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

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
    judge_check: Mapping[str, Any] | None = None
    adapter: TwinAdapter | None = None

    def save(self, folder: Path) -> None:
        """Write `twin.json`, durably and as a whole; to change the record of an existing twin, use `update_record`."""
        text = json.dumps({"format": _FORMAT} | asdict(self), ensure_ascii=False, indent=1)
        with storage_errors(folder):
            write_private(folder / "twin.json", text + "\n")

    @classmethod
    def load(cls, folder: Path) -> TwinRecord:
        """Read `twin.json`. TwinError if it is missing, damaged or of a newer format."""
        path = folder / "twin.json"
        way_out = "learn the twin again with --overwrite"
        try:
            raw = as_type(dict[str, Any], parse_json(path.read_bytes()))
            format_ = raw.pop("format", None)
            if format_ not in {1, _FORMAT}:
                raise TwinError(f"{path}: was written by a newer usertwin; upgrade usertwin, or {way_out}")
            if format_ == 1:
                raw["recipe"] = _recipe_of_format_1(raw["recipe"])
                raw["settings"] = raw.get("settings") and _settings_of_format_1(raw["settings"])
            _drop_words_of_others(raw)
            record = as_type(cls, raw)
            record.recipe.check()
            Persona.from_json(raw["persona"])
            return record
        except (FileNotFoundError, NotADirectoryError):
            raise TwinError(f"{folder}: has no twin.json, so it is not a complete twin; {way_out}") from None
        except OSError as error:
            raise TwinError(f"{path}: cannot be read ({reason(error)}); check its permissions") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # the last three: of format 1
            if isinstance(error, TwinError):
                raise
            raise TwinError(f"{path}: is damaged ({error}); {way_out}") from None

    def with_closeness(self, closeness: Mapping[str, Any]) -> TwinRecord:
        """Return the record with a new measurement."""
        return replace(self, closeness=dict(closeness))


def update_record(folder: Path, change: Callable[[TwinRecord], TwinRecord]) -> TwinRecord:
    """Apply a change to the record as it is on disk now, save it, and return it; no other process changes it meanwhile.

    Raises:
        TwinError: the record cannot be read or written; it is as before then.
    """
    with record_lock(folder):
        record = change(TwinRecord.load(folder))
        for leftover in folder.glob(".twin.json.*.partial"):  # of killed processes
            leftover.unlink(missing_ok=True)
        record.save(folder)
    return record


def _recipe_of_format_1(raw: Mapping[str, Any]) -> dict[str, Any]:
    recipe = {_RECIPE_FIELDS_1.get(key, key): value for key, value in raw.items()}
    if "fidelity" in recipe:
        recipe["fidelity"] = _FIDELITIES_1.get(recipe["fidelity"], recipe["fidelity"])
    return recipe


def _drop_words_of_others(raw: Mapping[str, Any]) -> None:
    """Remove the weights of a layer that development snapshots before 0.1.0 stored and never used."""
    words = (raw.get("settings") or {}).get("words") or {}
    if words.get("others") in ([], ()):
        del words["others"]


def _settings_of_format_1(raw: Mapping[str, Any]) -> dict[str, Any]:
    def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
        return {**values, "traces": _TRACES_1.get(values["traces"], values["traces"])}

    settings = renamed(raw)
    measured = settings.get("measured")
    if measured and "settings" in measured:
        settings["measured"] = {**measured, "settings": [renamed(row) for row in measured["settings"]]}
    return settings


def read_stored_conversations(path: Path) -> Sequence[Conversation]:
    """Return the conversations in one of a twin's files, which may be empty. TwinError if it is missing or damaged."""
    try:
        return read_conversations(path).conversations if gzip.decompress(path.read_bytes()) else ()
    except (OSError, EOFError, zlib.error) as error:
        raise TwinError(f"{path}: is missing or damaged ({error}); learn the twin again with --overwrite") from None


def write_stored_conversations(conversations: Sequence[Conversation], path: Path) -> None:
    """Replace one of a twin's files of conversations, as a whole. OSError if it cannot be written."""
    lines = "".join(json.dumps(conversation.to_json(), ensure_ascii=False) + "\n" for conversation in conversations)
    write_private(path, gzip.compress(lines.encode("utf-8", "backslashreplace"), mtime=0))


def read_other_person_pairs(folder: Path, record: TwinRecord) -> list[Pair]:
    """Return the pairs of the person that a twin is compared with; none without one. TwinError for a damaged file."""
    speaker = record.other_speaker
    if speaker is None:
        return []
    groups = group_pairs(read_stored_conversations(folder / OTHER_PERSON_FILE), speaker, window=record.recipe.window)
    return [pair for group in groups for pair in group]


def default_home() -> Path:
    """Return the folder of all twins: USERTWIN_HOME, or else a folder in the user's data folder."""
    home = os.environ.get("USERTWIN_HOME")
    return Path(home) if home else data_folder() / "twins"


def data_folder() -> Path:
    """Return the folder for what belongs to the user and not to a twin: USERTWIN_DATA, else the user's data folder."""
    if folder := os.environ.get("USERTWIN_DATA"):
        return Path(folder)
    from platformdirs import user_data_path

    return user_data_path("usertwin", appauthor=False)


def twin_folder(name: str, home: str | Path | None = None) -> Path:
    """Return the folder of a twin, which need not exist. TwinError if the name is not a valid folder name on every system."""
    if not _SAFE_NAME.fullmatch(name) or name.endswith("."):
        raise TwinError(
            f'"{name}" cannot be a twin\'s name; use at most 64 letters, digits, ".", "_" and "-", a letter or digit first'
        )
    return (Path(home) if home is not None else default_home()) / name


def twin_command(command: str, name: str, home: str | Path | None = None, *options: str) -> str:
    """Return a command on a twin as it can be pasted into a shell: with the twin's home, unless that is the default one."""
    default = home is None or Path(home).absolute() == default_home().absolute()
    place = () if default else ("--home", shlex.quote(str(home)))
    return " ".join(("usertwin", command, shlex.quote(name), *options, *place))


def existing_twin(name: str, home: str | Path | None = None) -> Path:
    """Return the folder of a twin. TwinError, with the names of the existing twins, if there is none; UsageError for a link."""
    folder = twin_folder(name, home)
    refuse_links(folder)
    finish_replacement(folder)
    if not folder.is_dir():
        known = ", ".join(list_twins(home)[:10]) or "none yet"
        raise TwinError(
            f'there is no twin "{name}" in {folder.parent} (there: {known}); '
            f"make it with: {twin_command('learn', name, home, '--from FILE', '--speaker WHO')}"
        )
    return folder


def enclosing_twin(path: Path) -> Path | None:
    """Return the folder of the twin in which a path lies; None if it lies in none."""
    return next((place for place in (path.absolute(), *path.absolute().parents) if os.path.exists(place / "twin.json")), None)


def list_twins(home: str | Path | None = None) -> list[str]:
    """Return the sorted names of the twins in a home; empty if there is no such folder."""
    root = Path(home) if home is not None else default_home()
    if not root.is_dir():
        return []
    for old in root.glob(".*.old"):
        finish_replacement(root / old.name[1:].removesuffix(".old"))
    return sorted(entry.name for entry in root.iterdir() if (entry / "twin.json").is_file() and not entry.name.startswith("."))


def conversation_ids(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """Return the conversation ids of the pairs, without repeats, in order."""
    return tuple(dict.fromkeys(pair.conversation_id for pair in pairs))
