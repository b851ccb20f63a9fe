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

from usertwin.memory.recon.judged_fidelity import FidelityName
from usertwin.memory.recon.propose import Proposing
from usertwin.memory.recon.synthesizer import SEARCH_CALLS, Method, check_counts, is_scored
from usertwin.personas import Conversation, Persona, TwinError, UsageError, read_conversations

_FORMAT = 1
_SAFE_NAME = re.compile(r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)(\.|$))[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # Windows has devices
HELD_OUT = "held_out.jsonl.gz"
OTHER_PERSON = "other_person.jsonl.gz"
ENDING, LEAVING = "ending.json", "leaving.json"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a twin is learned; two equal recipes make the same twin.

    Attributes:
        source: the log, as it was named.
        speaker: the person in it.
        method: how a trace is chosen among the proposals (see recon.py).
        candidates: how many traces are proposed for a pair.
        max_triples: the most triples to hold, the latest ones; None for all.
        max_traces: the most of them to find traces for, the latest ones; None for all.
        window: turns of context for each pair.
        embedder: the embedding model.
        model: who proposes traces; None if nobody does.
        scorer: under which they are scored and guarded; None if nobody does.
        seed: for the sampler.
        how: in which way traces are proposed (see propose.py).
        fidelity: what scores them (see fidelity.py).
        actor: who reconstructs actions, where the fidelity needs that.
        judge: who judges, where the method or the fidelity needs that.
        calls: how many texts a search may take for one pair.
        synthesizer: who proposed the traces, where that model is also to do the twin's own reasoning; None if it is not.
    """

    source: str
    speaker: str
    method: Method
    candidates: int
    max_triples: int | None
    max_traces: int | None
    window: int
    embedder: str
    model: str | None
    scorer: str | None
    seed: int
    how: Proposing = "backward"
    fidelity: FidelityName = "novel"
    actor: str | None = None
    judge: str | None = None
    calls: int = SEARCH_CALLS
    synthesizer: str | None = None

    @property
    def scored(self) -> bool:
        """Whether proposals are given a fidelity (see `is_scored`)."""
        return is_scored(self.method, self.how)

    @property
    def reconstructs(self) -> bool:
        """Whether a model, the actor, writes what the person may have done: for a judge, or to see how like it is."""
        return self.scored and self.fidelity in {"judge", "rank"}

    @property
    def judged(self) -> bool:
        """Whether a judge reads something: reconstructions, or the traces themselves."""
        return self.method == "quality" or (self.scored and self.fidelity == "judge")

    def pared(self) -> Recipe:
        """The same without the models that nothing in it needs."""
        makes = self.method != "none"
        return replace(
            self,
            model=self.model if makes else None,
            scorer=self.scorer if makes else None,
            actor=self.actor if self.reconstructs else None,
            judge=self.judge if self.judged else None,
        )

    def check(self) -> None:
        """UsageError if a number makes no sense, or two choices together do not."""
        if self.max_triples is not None and self.max_triples < 1:
            raise UsageError(f"{self.max_triples} triples at most: a twin needs at least one")
        if self.max_traces is not None and self.max_traces < 0:
            raise UsageError(f"{self.max_traces} traces at most: a number of traces is not negative")
        if self.window < 1:
            raise UsageError(f"a window of {self.window} turns: an action belongs to at least one turn before it")
        if self.synthesizer is not None and (self.method == "none" or self.synthesizer != self.model):
            raise UsageError(
                f'the synthesizer "{self.synthesizer}" is to propose the traces, and it does not: '
                "choose a way to make traces other than none, or leave the synthesizer out"
            )
        if self.method == "none":
            return
        check_counts(self.candidates, self.calls)
        if self.how == "search" and self.fidelity == "judge":
            raise UsageError("a search compares scores of different steps, which those of a judge are not made for")


#: Which traces a twin is shown with its memories.
Shown = Literal["none", "backward", "chosen"]


@dataclass(frozen=True, slots=True)
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
    traces: Shown = "chosen"
    reasons: bool = True
    measured: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
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
            if raw.pop("format", None) != _FORMAT:
                raise TwinError(f"{path}: was written by a newer usertwin; upgrade usertwin, or {again}")
            persona, recipe = Persona.from_json(raw.pop("persona")), Recipe(**raw.pop("recipe"))
            ids = {key: tuple(raw.pop(key)) for key in ("corpus", "validation", "test")}
            settings = raw.pop("settings", None)
            return cls(persona=persona, recipe=recipe, settings=Settings(**settings) if settings else None, **ids, **raw)
        except (FileNotFoundError, NotADirectoryError):
            raise TwinError(f"{folder}: is not a twin, or only half of one (there is no twin.json); {again}") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, TwinError):
                raise
            raise TwinError(f"{path}: is damaged ({error}); {again}") from None

    def measured(self, closeness: Mapping[str, Any]) -> TwinRecord:
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
