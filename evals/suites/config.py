"""A suite: which people, arms and models to measure, read from a TOML file.

    name = "two domains"
    arms = ["no_memory", "recalled_pairs", "openevals"]
    turns = 100                      # held-out turns of each person

    [[corpora]]
    name = "casual chat"
    from = "chitchat"                # "chitchat", a file, "oyez:FOLDER" or "twinbench:FILE"; paths relative to the suite file
    people = 2                       # the most frequent speakers; or names: ["ann", "bob"]; or "development" or "test"

Paths in model names ("scripted:replies.txt", "local:models/x.gguf", "local+ADAPTER") are relative to the suite file, too.
The fields of the classes below are all keys, with their defaults.

Design: every key, name and file is checked before any long work begins; an error names the file and the key.
"""

from __future__ import annotations

import difflib
import json
import os.path
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from usertwin.evals.arm_names import (
    ARM_ALIASES,
    DEFAULT_ARMS,
    TRACE_ARMS,
    arm_names,
    base_arm,
    check_arms,
    check_question,
    in_order,
)
from usertwin.memory.models.scoring import Precision
from usertwin.personas import ChatLog, LogError, UsageError, load_log, split_pairs
from usertwin.personas.importers.chitchat import CHITCHAT
from usertwin.personas.pairs import check_speaker
from usertwin.personas.reading import parse_toml, read_file, shown
from usertwin.simulator.backends.model_name import ModelName, Role

from .people import people_of_kind


def _resolve_source(source: str, info: ValidationInfo) -> str:
    """Return a source with an absolute path, as seen from the suite file."""
    if info.context is None or source == CHITCHAT:
        return source
    kind, colon, path = source.partition(":")
    if not (colon and kind.isalpha() and len(kind) > 1):  # a path without a kind; one letter is a drive
        kind, colon, path = "", "", source
    return f"{kind}{colon}{os.path.abspath(info.context / os.path.expanduser(path))}"


def _model_name(role: Role) -> AfterValidator:
    """Check a model name, and make the paths in it absolute, as seen from the suite file."""

    def resolve(name: str, info: ValidationInfo) -> str:
        if info.context is None:
            return name
        try:
            return str(ModelName.parse(name, role, folder=info.context).resolved(info.context))
        except UsageError as error:
            raise ValueError(str(error)) from None

    return AfterValidator(resolve)


def _as_tuple(value: object) -> object:
    """Return a text as the only item of a tuple, a list as a tuple, and any other value as it is."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


ChatName = Annotated[str, _model_name("chat model")]
ScorerName = Annotated[str, _model_name("scorer")]
BaseName = Annotated[str, _model_name("base")]
FidelityKey = Annotated[
    Literal["guarded_gain", "gain", "judge", "choice", "rank", "prior"],
    BeforeValidator(lambda name: "guarded_gain" if name == "novel" else name),  # the name in development snapshots before 0.1.0
]
TraceKind = Literal["none", "backward", "recon", "trained"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class Models(_Strict):
    """The models of a suite; names are those of the command line."""

    action: ChatName = "local"  # writes the replies of every arm
    style: Literal["transcript", "instruction"] | None = None  # its prompt style, if not the usual one
    scorer: ScorerName = "local"  # the model under which real turns are scored
    precision: Precision = "float32"  # of the scorer's weights and sums; bfloat16 is faster on processors that support it
    proposer: ChatName = "local"  # proposes traces
    trained: ChatName | None = None  # proposes the traces of the arm "trained"
    judge: ChatName | None = None  # compares two replies; None for no judge
    outside: ScorerName | None = None  # compares two replies by likelihood, of another family than `action`; None for none
    embedder: str | None = None  # finds similar pairs and computes the similarity of texts; None for the built-in one


class Traces(_Strict):
    """Trace synthesis for the arms that show traces."""

    # the number of latest pairs of each person to synthesize traces for ("moments" before 0.1.0)
    pairs: int = Field(default=100, ge=1, validation_alias=AliasChoices("pairs", "moments"))
    candidates: int = Field(default=4, ge=1)  # candidate traces for each pair
    propose: Literal["backward", "forward", "scaffolded"] = "backward"  # the way to propose them
    fidelity: FidelityKey = "guarded_gain"  # the score that selects among them
    reasons: bool = False  # whether the twin also writes a trace of its own before it replies


class Corpus(_Strict):
    """A source of people."""

    name: str = Field(min_length=1)  # for the report
    source: Annotated[str, Field(alias="from", min_length=1), AfterValidator(_resolve_source)]  # the key "from" in the file
    # names, a number of the most frequent speakers, or the registered people of this kind (see people.py)
    people: tuple[str, ...] | int | Literal["development", "test"] = 2
    most: int | None = Field(default=None, ge=1)  # the first of the registered people only, in the registry's order
    role: str | None = None  # count only turns with this role when ranking speakers, such as "user"; None for any
    max_triples: int | None = Field(default=None, ge=1)  # the number of latest pairs of a person to remember; None for all

    @field_validator("people")
    @classmethod
    def _check_people(cls, people: tuple[str, ...] | int | str) -> tuple[str, ...] | int | str:
        if not people or (isinstance(people, int) and people < 1):
            raise ValueError("name at least one person, or give a number of people")
        if isinstance(people, tuple) and (repeated := [name for name in people if people.count(name) > 1]):
            raise ValueError(f'"{repeated[0]}" is named twice')
        return people

    @model_validator(mode="after")
    def _check_most(self) -> Corpus:
        if self.most is not None and self.people not in ("development", "test"):
            raise ValueError('most: is for people = "development" or "test"; otherwise give the people')
        return self


class Transfer(_Strict):
    """Traces of one model, used by another."""

    proposers: tuple[ChatName, ...]  # the models that propose traces
    scorers: tuple[ScorerName, ...]  # the models that score the real turns after these traces
    turns: int = Field(default=40, ge=1)  # held-out turns of each person

    @field_validator("proposers", "scorers")
    @classmethod
    def _unique(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("name at least one model")
        return tuple(dict.fromkeys(names))


class UserModels(_Strict):
    """User models fine-tuned with and without traces; see user_model_experiment.py."""

    # the training data: pairs alone ("none"), or pairs with these traces; None for all available kinds
    kinds: tuple[TraceKind, ...] | None = None
    of: Literal["person", "group"] = "person"  # one model for each person, or one for the people of a corpus
    base: BaseName = "local"  # the base model
    steps: int | None = Field(default=None, ge=1)  # optimizer steps; None to derive them from `epochs`
    epochs: int = Field(default=3, ge=1)  # passes over the pairs
    batch_size: int = Field(default=8, ge=1)  # pairs in a step
    learning_rate: float = Field(default=2e-4, gt=0)  # at the start
    rank: int = Field(default=16, ge=1)  # of the LoRA adapter
    thoughts: int = Field(default=4, ge=1)  # thoughts that a model samples at each held-out turn
    turns: int = Field(default=40, ge=1)  # held-out turns of each person
    precision: Precision = "float32"  # of the base's weights

    @field_validator("kinds")
    @classmethod
    def _check_kinds(cls, kinds: tuple[TraceKind, ...] | None) -> tuple[TraceKind, ...] | None:
        if kinds is not None and ("none" not in kinds or len(set(kinds)) < 2):
            raise ValueError('name the baseline "none" and at least one kind of traces')
        return kinds and tuple(kind for kind in get_args(TraceKind) if kind in kinds)


class Suite(_Strict):
    """What to measure."""

    name: str = Field(default="closeness", min_length=1)  # for the report
    arms: tuple[str, ...] = DEFAULT_ARMS  # the arms to compare; see arm_names.py
    # the arm that is the twin; by default "recon" or, without traces, "recalled_pairs", with own words and reranking if such an
    # arm is measured
    twin: str | None = None
    # what the summary answers: a contrast "A - B" of two arms, or several: does A predict people better than B? Declared
    # before the measurement; empty for the twin's arm against "no_memory", or else against the best alternative
    question: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ()
    turns: int = Field(default=100, ge=0)  # held-out turns of each person, evenly spaced; 0 for all
    replies: int = Field(default=20, ge=0)  # the number of these turns at which each arm also writes replies
    # the arms that write them; by default all. A reply takes longer than a score, so a long suite may leave arms out.
    reply_arms: tuple[str, ...] | None = None
    samples: int = Field(default=1, ge=1)  # replies of each arm at such a turn
    choices: int = Field(default=0, ge=0)  # actions in the forced choice at such a turn; 0 for no forced choice
    sanity: int = Field(default=20, ge=0)  # turns on which the judge is checked
    drift: int = Field(default=0, ge=0)  # conversations of each person that the twin simulates freely
    k: int | None = Field(default=None, ge=1)  # recalled pairs; None to tune it for each person on validation turns
    window: int | None = Field(default=None, ge=1)  # turns of the chat that are shown; None likewise
    seed: int = 0  # of all sampling
    concurrency: int = Field(default=1, ge=1)  # parallel requests to a model
    models: Models = Field(default_factory=Models)  # the models
    traces: Traces = Field(default_factory=Traces)  # trace synthesis, if an arm shows traces
    transfer: Transfer | None = None  # a table of proposers and users of traces; None for none
    user_models: UserModels | None = None  # the experiment with fine-tuned user models; None for none
    corpora: tuple[Corpus, ...] = ()  # sources of people to learn
    twins: tuple[str, ...] = ()  # names of twins that were learned before
    reason: str = ""  # why test people are looked at; needed for people = "test"

    @property
    def shows_traces(self) -> bool:
        """Whether an arm shows traces."""
        return any(base_arm(arm) in TRACE_ARMS for arm in self.arms)

    @property
    def user_model_kinds(self) -> tuple[TraceKind, ...]:
        """The kinds of user models to compare; empty without that experiment."""
        if self.user_models is None:
            return ()
        return self.user_models.kinds or get_args(TraceKind)[: 3 if self.models.trained is None else 4]

    @field_validator("arms")
    @classmethod
    def _check_arms(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return check_arms(arms)
        except UsageError as error:
            raise ValueError(str(error)) from None

    @field_validator("twin")
    @classmethod
    def _check_twin(cls, twin: str | None, info: ValidationInfo) -> str | None:
        twin = None if twin is None else ARM_ALIASES.get(twin, twin)
        if twin is None or "arms" not in info.data:
            return twin
        if twin not in info.data["arms"] or base_arm(twin) not in {"recalled_pairs", "recon"}:
            raise ValueError(f'"{twin}" cannot be the twin; name one of the arms that begin with "recalled_pairs" or "recon"')
        return twin

    @field_validator("reply_arms")
    @classmethod
    def _check_reply_arms(cls, arms: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        if arms is None or "arms" not in info.data:
            return arms
        arms = tuple(ARM_ALIASES.get(arm, arm) for arm in arms)
        if missing := [arm for arm in arms if arm not in arm_names(info.data["arms"])]:
            raise ValueError(f'"{missing[0]}" is not measured; add it to arms, or leave it out')
        return tuple(in_order(arms))

    @field_validator("question")
    @classmethod
    def _check_question(cls, question: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if "arms" not in info.data:  # they are wrong, and are reported
            return question
        try:
            return check_question(question, info.data["arms"])
        except UsageError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _check_together(self) -> Suite:
        names = [corpus.name for corpus in self.corpora]
        if not names and not self.twins:
            raise ValueError("there are no people to measure; add [[corpora]] or twins")
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f'two corpora have the name "{repeated[0]}"; give each corpus another name')
        if "trained" in self.user_model_kinds and self.models.trained is None:
            raise ValueError('user_models.kinds: "trained" needs the model models.trained; set it')
        if self.user_models is not None and not names:
            raise ValueError("user_models: the experiment needs people to learn; add [[corpora]]")
        outside, action = self.models.outside, self.models.action
        if outside is not None and ModelName.parse(outside, "scorer").base == ModelName.parse(action).base:
            raise ValueError(f'models.outside: "{outside}" is the action model; name a model of another family')
        if outside is not None and "other_person" not in self.arms:
            raise ValueError('models.outside: it compares with the pairs that the arm "other_person" shows; add that arm')
        if self.reply_arms is not None and self.twin not in self.reply_arms:
            raise ValueError(
                "reply_arms: the twin's replies are compared with the others'; set twin, and name its arm here too"
            )
        if (self.k is None) != (self.window is None):
            raise ValueError('"k" and "window" must be set together')
        if not self.reason.strip() and any(corpus.people == "test" for corpus in self.corpora):
            raise ValueError('reason: test people are looked at for a reason; add reason = "..."')
        return self


_TABLES = {"models": Models, "traces": Traces, "transfer": Transfer, "user_models": UserModels, "corpora": Corpus}


def read_suite(path: str | Path) -> Suite:
    """Read a suite file. UsageError, naming the file and the key, if it cannot be read or has a wrong value."""
    path = Path(path)
    data = read_file(path, parse_toml, way_out="name a suite file, as in docs/runs.md", error=UsageError)
    if "settling" in data:
        raise UsageError(f"{path}: [settling] is now called [user_models]; rename the table, and its key batch to batch_size")
    try:
        # Strict JSON validation reads a list as a tuple, and yet rejects "3" and true as numbers.
        return Suite.model_validate_json(json.dumps(data, default=str), strict=True, context=path.parent)
    except ValidationError as error:
        raise UsageError(f"{path}: {_sentence(error)}") from None


def _sentence(error: ValidationError) -> str:
    """Return the key and the problem of the first error."""
    first = error.errors()[0]
    place = list(first["loc"])
    if "people" in place:  # pydantic adds the type it tried
        place = place[: place.index("people") + 1]
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        model: type[BaseModel] = _TABLES.get(str(place[0]), Suite) if len(place) > 1 else Suite
        keys = [field.alias or name for name, field in model.model_fields.items()]
        near = difflib.get_close_matches(str(place[-1]), keys, 1)
        message = f'there is no such key; did you mean "{near[0]}"?' if near else f"there is no such key; use {', '.join(keys)}"
    elif first["type"] not in {"value_error", "missing"}:
        if place[-1:] == ["people"]:
            message = 'Input should be a number of people, a list of names, "development" or "test"'
        message += f", not {shown(first['input'])}"
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    return f"{key}: {message}" if key else message


def people_of(corpus: Corpus, log: ChatLog, window: int) -> list[str]:
    """Return the people of a corpus. LogError if one is unknown, or too few have enough turns to learn a twin.

    UsageError for registered people of a corpus that is not registered.
    """
    if not isinstance(corpus.people, int):
        kind = corpus.people if isinstance(corpus.people, str) else None
        names = list(corpus.people) if kind is None else people_of_kind(kind, corpus.source, log)[: corpus.most]
        for speaker in names:
            check_speaker(log, speaker)
            split_pairs(log, speaker, window=window)
        return names
    people: list[str] = []
    for speaker in log.turn_counts(corpus.role):
        try:
            split_pairs(log, speaker, window=window)
        except LogError:
            continue
        people.append(speaker)
        if len(people) == corpus.people:
            return people
    raise LogError(
        f'{log.source}: only {len(people)} people have enough turns to learn, and corpus "{corpus.name}" asks for '
        f"{corpus.people}; lower people, or set another role"
    )


def logs_of(suite: Suite) -> dict[str, ChatLog]:
    """Return the corpora of a suite by name. LogError if one cannot be read."""
    return {corpus.name: load_log(corpus.source) for corpus in suite.corpora}
