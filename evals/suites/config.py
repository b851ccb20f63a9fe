"""A suite: which people of which corpora are measured, under which arms and models, as a TOML file says it.

The one design choice: the file is read into a frozen model that knows every key and no other, and everything that can be wrong
with it (a key, an arm, a person, a file) is said before anything long begins, with the line of the file.

    name = "two domains"
    arms = ["no_memory", "recalled_pairs", "openevals"]
    turns = 100                      # held-out turns of each person

    [[corpora]]
    name = "casual chat"
    from = "chitchat"                # a package, a file or "oyez:FOLDER"; paths are relative to the suite's file
    people = 2                       # those who said most; or their names: ["ann", "bob"]

Paths of models ("scripted:replies.txt", "local:models/x.gguf", "local+ADAPTER") are relative to the suite's file, too.
All keys, with what they are if they are left out, are the attributes of the classes below.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from usertwin.evals.arm_names import ARMS, TRACE_ARMS, USUAL_ARMS
from usertwin.personas import ChatLog, LogError, UsageError, load_log, split_pairs
from usertwin.personas.importers.chitchat import CHITCHAT
from usertwin.personas.pairs import check_speaker
from usertwin.simulator.backends.model_name import split_adapter


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Models(_Strict):
    """Which models do what; names are those of the command line.

    Attributes:
        action: writes the replies of every arm.
        style: how it is prompted, if not in its usual way.
        scorer: the model under which real turns are scored.
        precision: of the scorer's weights and sums; bfloat16 is faster where the processor has it.
        proposer: proposes traces.
        trained: proposes the traces of the arm "trained".
        judge: says which of two replies is closer; without one there is no judging.
        embedder: finds similar moments and tells how like two texts are; the built-in one if None.
    """

    action: str = "local"
    style: Literal["transcript", "instruction"] | None = None
    scorer: str = "local"
    precision: Literal["float32", "bfloat16"] = "float32"
    proposer: str = "local"
    trained: str | None = None
    judge: str | None = None
    embedder: str | None = None


class Traces(_Strict):
    """How traces are made for the arms that show them.

    Attributes:
        moments: for how many of the latest moments of each person.
        candidates: how many are proposed for each.
        propose: in which way.
        fidelity: what scores them.
        reasons: whether the twin also writes one of its own before it replies.
    """

    moments: int = Field(default=100, ge=1)
    candidates: int = Field(default=4, ge=1)
    propose: Literal["backward", "forward", "scaffolded"] = "backward"
    fidelity: Literal["novel", "gain", "judge", "choice", "rank", "prior"] = "novel"
    reasons: bool = False


class Corpus(_Strict):
    """Where people come from.

    Attributes:
        name: what to call it in the report.
        source: "from" in the file.
        people: who, or how many of those who said most.
        role: of whom to count the turns for that, such as "user"; None for anybody.
        max_triples: remember only the latest so many moments of a person; None for all.
    """

    name: str = Field(min_length=1)
    source: str = Field(alias="from", min_length=1)
    people: tuple[str, ...] | int = 2
    role: str | None = None
    max_triples: int | None = Field(default=None, ge=1)

    @field_validator("people")
    @classmethod
    def _somebody(cls, people: tuple[str, ...] | int) -> tuple[str, ...] | int:
        if not people or (isinstance(people, int) and people < 1):
            raise ValueError('"people": name at least one person, or how many')
        if isinstance(people, tuple) and (twice := [name for name in people if people.count(name) > 1]):
            raise ValueError(f'"people": "{twice[0]}" is named twice')
        return people


class Transfer(_Strict):
    """Traces made by one model and used by another.

    Attributes:
        proposers: who make traces.
        scorers: the models that are to say the real turn after them.
        turns: on how many held-out turns of each person.
    """

    proposers: tuple[str, ...]
    scorers: tuple[str, ...]
    turns: int = Field(default=40, ge=1)

    @field_validator("proposers", "scorers")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError('a table of transfer needs at least one of the "proposers" and one of the "scorers"')
        return tuple(dict.fromkeys(names))


TraceKind = Literal["none", "backward", "recon", "trained"]


class UserModels(_Strict):
    """Models that are fine-tuned on people, with and without traces; see settling.py.

    Attributes:
        kinds: trained on pairs alone ("none"), or with which traces; None for all that can be had.
        of: whether each person has a model of their own, or the people of a corpus share one.
        base: what is fine-tuned.
        steps: of the optimizer; None: as `epochs` (how often everything is seen) say.
        batch: moments of a step.
        learning_rate: at the start.
        rank: of the LoRA adapter.
        thoughts: how many thoughts of its own a model writes at each held-out turn.
        turns: on how many held-out turns of each person.
        precision: of the base's weights.
    """

    kinds: tuple[TraceKind, ...] | None = None
    of: Literal["person", "group"] = "person"
    base: str = "local"
    steps: int | None = Field(default=None, ge=1)
    epochs: int = Field(default=3, ge=1)
    batch: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=2e-4, gt=0)
    rank: int = Field(default=16, ge=1)
    thoughts: int = Field(default=4, ge=1)
    turns: int = Field(default=40, ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"

    @field_validator("kinds")
    @classmethod
    def _compared(cls, kinds: tuple[TraceKind, ...] | None) -> tuple[TraceKind, ...] | None:
        if kinds is not None and ("none" not in kinds or len(set(kinds)) < 2):
            raise ValueError('"kinds": name "none", which the others are compared with, and at least one kind of traces')
        return kinds and tuple(kind for kind in get_args(TraceKind) if kind in kinds)


class Suite(_Strict):
    """What is measured.

    Attributes:
        name: what to call it.
        arms: what is compared; see arms.py.
        turns: held-out turns of each person, spread evenly; 0 for all.
        replies: on how many of them each arm also writes replies.
        samples: how many each time.
        choices: among how many actions the real one is to be found at these turns; 0 leaves that out.
        sanity: on how many turns a judge is checked.
        drift: in how many conversations of each person the twin talks freely.
        k: how many moments are recalled; None: found for each person on validation turns.
        window: how many turns of the chat are shown; likewise.
        seed: for everything that is drawn or sampled.
        concurrency: how many questions may wait for a model at once.
        models: which.
        traces: how they are made, where an arm shows some.
        transfer: a table of proposers and users of traces, if wanted.
        settling: user models that are fine-tuned with and without traces, if wanted.
        corpora: where people are learned from.
        twins: twins that were learned before, by name.
    """

    name: str = Field(default="closeness", min_length=1)
    arms: tuple[str, ...] = USUAL_ARMS
    turns: int = Field(default=100, ge=0)
    replies: int = Field(default=20, ge=0)
    samples: int = Field(default=1, ge=1)
    choices: int = Field(default=0, ge=0)
    sanity: int = Field(default=20, ge=0)
    drift: int = Field(default=0, ge=0)
    k: int | None = Field(default=None, ge=1)
    window: int | None = Field(default=None, ge=1)
    seed: int = 0
    concurrency: int = Field(default=1, ge=1)
    models: Models = Field(default_factory=Models)
    traces: Traces = Field(default_factory=Traces)
    transfer: Transfer | None = None
    settling: UserModels | None = None
    corpora: tuple[Corpus, ...] = ()
    twins: tuple[str, ...] = ()

    @property
    def traced(self) -> bool:
        """Whether an arm shows traces."""
        return any(arm in TRACE_ARMS for arm in self.arms)

    @property
    def settled(self) -> tuple[TraceKind, ...]:
        """The kinds of user models that are compared; empty without such a table."""
        if self.settling is None:
            return ()
        return self.settling.kinds or get_args(TraceKind)[: 3 if self.models.trained is None else 4]

    @field_validator("arms")
    @classmethod
    def _known(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        for arm in arms:
            if arm not in ARMS:
                raise ValueError(f'there is no arm "{arm}"{_meant(arm, ARMS)}; there are {", ".join(ARMS)}')
        return tuple(arm for arm in ARMS if arm in arms)

    @model_validator(mode="after")
    def _something(self) -> Suite:
        if not self.corpora and not self.twins:
            raise ValueError("names nobody to measure: give [[corpora]] with people, or twins")
        names = [corpus.name for corpus in self.corpora]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f'two corpora have the name "{twice[0]}"; give each its own')
        if "trained" in self.settled and self.models.trained is None:
            raise ValueError('"settling": the kind "trained" needs a model that makes the traces: name it as models.trained')
        if self.settling is not None and not self.corpora:
            raise ValueError('"settling": is of people who are learned here: give [[corpora]] with people')
        if (self.k is None) != (self.window is None):
            raise ValueError('"k" and "window" are given together, or neither')
        return self


_TABLES = {"models": Models, "traces": Traces, "transfer": Transfer, "settling": UserModels, "corpora": Corpus}


def read_suite(path: str | Path) -> Suite:
    """Read a suite. UsageError, naming the file and the line, if it cannot be read or says something that makes no sense."""
    path = Path(path)
    try:
        text = path.read_text("utf-8")
        data: dict[str, Any] = tomllib.loads(text)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None
    try:
        # As JSON a list is a tuple, and yet a text is no number, and a yes no 1.
        suite = Suite.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        raise UsageError(_sentence(path, text, error)) from None
    folder, models, transfer = path.parent, suite.models, suite.transfer
    named = {key: _model(getattr(models, key), folder) for key in ("action", "scorer", "proposer", "trained", "judge")}
    found: dict[str, Any] = {
        "corpora": tuple(corpus.model_copy(update={"source": _found(corpus.source, folder)}) for corpus in suite.corpora),
        "models": models.model_copy(update=named),
    }
    if transfer is not None:
        both = {key: tuple(_model(one, folder) for one in getattr(transfer, key)) for key in ("proposers", "scorers")}
        found["transfer"] = transfer.model_copy(update=both)
    if (settling := suite.settling) is not None:
        found["settling"] = settling.model_copy(update={"base": _model(settling.base, folder)})
    return suite.model_copy(update=found)


def _found(source: str, folder: Path) -> str:
    """A source with its path made absolute, as seen from the suite's file."""
    if source == CHITCHAT:
        return source
    kind, colon, rest = source.partition(":")
    if colon and kind.isalpha() and len(kind) > 1:
        return f"{kind}:{_path(rest, folder)}"
    return _path(source, folder)


def _model(name: str | None, folder: Path) -> str | None:
    """A model's name with its path and its adapter's, if there are such in it, made absolute."""
    if name is None:
        return None
    base, adapter = split_adapter(name, folder)
    kind, _, rest = base.partition(":")
    is_path = kind in {"scripted", "transformers"} or (kind == "local" and rest.endswith(".gguf"))
    found = f"{kind}:{_path(rest, folder)}" if rest and is_path else base
    return found if adapter is None else f"{found}+{adapter.resolve()}"


def _path(name: str, folder: Path) -> str:
    return str((folder / Path(name).expanduser()).resolve())


def _sentence(path: Path, text: str, error: ValidationError) -> str:
    """The first thing that is wrong, in one sentence with its line."""
    first = error.errors()[0]
    place = _place(first["loc"])
    keys = [part for part in place if isinstance(part, str)]
    name = ".".join(keys)
    if first["type"] == "extra_forbidden":
        what = f'there is no key "{name}"{_meant(keys[-1], _keys(keys[:-1]))}'
    elif first["type"] == "value_error":
        what = str(first["ctx"]["error"]) if "ctx" in first else first["msg"]
        named = [(word,) for word in re.findall(r'"(\w+)"', what)]  # what concerns several keys is said of one that is there
        place = place or next((one for one in named if _line(text, one)), ())
    elif first["type"] == "missing":
        what = f'"{name}" is missing'
    elif keys[-1:] == ["people"]:
        what = f'"{name}": how many, or a list of names, not {first["input"]!r}'
    else:
        what = f'"{name}": {first["msg"][:1].lower()}{first["msg"][1:]}, not {first["input"]!r}'
    line = _line(text, place)
    return f"{path}{f', line {line}' if line else ''}: {what}"


def _place(found: Sequence[int | str]) -> tuple[int | str, ...]:
    """Where in the file something is wrong, without what pydantic adds for the one and the other kind of "people"."""
    known = {key for outer in ("", *_TABLES) for key in _keys([outer] if outer else [])}
    place = list(found)
    while len(place) > 1 and (isinstance(place[-1], int) or (place[-1] not in known and "people" in place)):
        place.pop()
    return tuple(place)


def _line(text: str, place: Sequence[int | str]) -> int | None:
    """The line of the file on which a key stands, or the table in which it should; None if there is none."""
    if not place:
        return None
    table, number = str(place[0]), next((part for part in place if isinstance(part, int)), 0)
    key = str(place[-1]) if isinstance(place[-1], str) and len(place) > 1 else ""
    inside, seen, header = "", -1, None
    for count, line in enumerate(text.splitlines(), 1):
        if opened := re.match(r"\s*(\[{1,2})\s*[\"']?([\w-]+)", line):
            inside = opened[2]
            seen += inside == table and opened[1] == "[["
            if inside == table and seen in (-1, number):
                header = header or count
        elif (said := re.match(r"\s*[\"']?([\w-]+)[\"']?\s*([.=])\s*[\"']?([\w-]*)", line)) is not None:
            here = inside == table and seen in (-1, number) and said[1] == key
            if here or (not inside and said[1] == table and (said[2] == "=" or said[3] == key)):
                return count
    return header


def _keys(outer: Sequence[str]) -> list[str]:
    """The keys that are known at a place of the file."""
    kind: Any = _TABLES.get(outer[0]) if outer else Suite
    return [field.alias or name for name, field in (kind or Suite).model_fields.items()]


def _meant(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), 1)
    return f' (did you mean "{near[0]}"?)' if near else ""


def people_of(corpus: Corpus, log: ChatLog, window: int) -> list[str]:
    """The people of a corpus, by name; each of them can be learned.

    Raises:
        LogError: somebody is unknown or said too little; or too few people said enough.
    """
    if not isinstance(corpus.people, int):
        for speaker in corpus.people:
            check_speaker(log, speaker)
            split_pairs(log, speaker, window=window)
        return list(corpus.people)
    found: list[str] = []
    for speaker in log.turn_counts(corpus.role):
        try:
            split_pairs(log, speaker, window=window)
        except LogError:
            continue
        found.append(speaker)
        if len(found) == corpus.people:
            return found
    raise LogError(
        f"{log.source}: only {len(found)} people said enough to be learned, and the suite wants {corpus.people} of "
        f'"{corpus.name}"; ask for fewer, or give another role'
    )


def logs_of(suite: Suite) -> dict[str, ChatLog]:
    """The corpora of a suite by name. LogError if one cannot be read."""
    return {corpus.name: load_log(corpus.source) for corpus in suite.corpora}
