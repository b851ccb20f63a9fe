"""The settling experiment: does a model of a person learn more from (context, trace, action) than from (context, action)?

A base is fine-tuned on what people did (memory/training/user_model.py), each time on the very same moments and with as many steps, and
only what stands before the action differs. It is then asked what people's held-out turns cost:

    base        nothing was learned
    none        pairs alone
    backward    the first proposal that the guards let pass (Backward Synthesis)
    recon       the trace that Recon chose among the proposals
    trained     the same by a trained synthesizer

A model that was taught traces writes some of its own before it is asked (see `UserModel.with_thoughts`), and is asked at once
beside that; one that was not is asked at once. The one design choice: every kind is held against "none" in the way it is meant
to be used, so that a trace has to pay for the room it takes, and nobody's held-out conversation, of whoever of a group, is
learned by any model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from usertwin.evals.metrics.closeness import ALPHA, PRIMARY, closeness
from usertwin.evals.metrics.statistics import evenly_spaced, holm
from usertwin.evals.records.measured_turns import MeasuredTurn, turns_of
from usertwin.evals.replay.held_out import held_out_pairs
from usertwin.evals.replay.leak_checks import check_split, near_duplicates
from usertwin.memory import Settings, TripleStore
from usertwin.memory.jsonl import open_for_append, append_line
from usertwin.memory.progress import Progress, no_progress
from usertwin.memory.recon.synthesizer import backward_trace
from usertwin.memory.text.transcript import ME, action_completion
from usertwin.memory.training.policy import check_installed
from usertwin.memory.training.user_model import UserModel, UserModelConfig, fit, row_of
from usertwin.personas import Pair, UsageError
from usertwin.simulator import SimulatedUser
from usertwin.simulator.backends.downloads import FetchProgress
from usertwin.simulator.backends.model_name import split_adapter
from usertwin.simulator.backends.weights import weights_folder

from .config import Suite, TraceKind, UserModels
from .measure_person import CONTEXT_WINDOW, Person, PersonMeasurement

BASE, PAIRS = "base", "none"
#: A moment, and its trace by kind.
ExampleRow = tuple[Pair, Mapping[TraceKind, str | None]]
#: Fewer moments than this, and a model can only learn them by heart.
FEWEST = 8


def at_once(kind: str) -> str:
    """What a kind is called where it is asked without thoughts of its own."""
    return kind if kind in {BASE, PAIRS} else f"{kind}, at once"


@dataclass(frozen=True, slots=True)
class TrainedPerson:
    """A person of the experiment.

    Attributes:
        number: of the person in the suite.
        label: as reports call them.
        group: who shares a model: the person's twin, or the corpus.
        lessons: what may be learned: each moment with its traces, by kind; only moments that have one of every kind.
        tested: the held-out moments that are measured.
        held_out: every conversation that is held out.
    """

    number: int
    label: str
    group: str
    lessons: tuple[ExampleRow, ...]
    tested: tuple[Pair, ...]
    held_out: frozenset[str] = field(default_factory=frozenset[str])


def check_user_models(suite: Suite) -> None:
    """UsageError or ModelError if the base of the experiment cannot be had, or a package is missing; nothing is loaded."""
    if suite.settling is None:
        return
    check_installed()
    base, adapter = split_adapter(suite.settling.base)
    kind, _, rest = base.partition(":")
    if adapter is not None or kind not in {"local", "hf", "transformers"} or (kind != "local" and not rest):
        raise UsageError(
            f'"{suite.settling.base}" cannot be fine-tuned; settling.base is "local", "local:small", "local:/path.gguf", '
            '"hf:OWNER/REPO/FILE.gguf" or "transformers:DIR", without an adapter'
        )
    if kind == "transformers":
        weights_folder(base)  # says what is wrong with it


async def run_user_models(
    suite: Suite, measurer: PersonMeasurement, people: Sequence[Person], folder: Path, progress: Progress = no_progress
) -> dict[str, Any] | None:
    """Do what is not yet done of the experiment, and return its figures; None if the suite has none.

    Args:
        suite: with the table [settling].
        measurer: learns the people's twins.
        people: of the suite; those who were learned elsewhere are left out.
        folder: of the run; adapters are kept in `settling/`, records in `people/`.
        progress: is told how far things are.

    Raises:
        UsageError: too few moments have a trace of every kind; an adapter of another run is there.
        ModelError: a model does not answer, or cannot be loaded.
        TwinError: something that is held out was learned.
    """
    wanted = suite.settling
    if wanted is None:
        return None
    taught = [await _taught(suite, measurer, number, one) for number, one in enumerate(people) if one.corpus is not None]
    groups: dict[str, list[TrainedPerson]] = {}
    for one in taught:
        groups.setdefault(one.group, []).append(one)
    lessons = {name: example_rows(members) for name, members in groups.items()}
    for name, members in groups.items():
        if len(lessons[name]) < FEWEST:
            raise UsageError(
                f"{', '.join(one.label for one in members)}: only {len(lessons[name])} moments have a trace of every kind "
                f"({', '.join(suite.settled)}), and at least {FEWEST} are needed; raise traces.moments, or leave out a kind"
            )
    turns: list[MeasuredTurn] = []
    fitted: dict[str, dict[str, Any]] = {}
    for name, members in groups.items():
        group = _Group(suite, wanted, members, lessons[name], folder, measurer.models.fetch, progress)
        turns += await asyncio.to_thread(group.run)
        fitted[name] = {"people": [one.label for one in members], "lessons": len(lessons[name]), "loss": group.losses}
    return {
        "of": wanted.of, "base": wanted.base, "thoughts": wanted.thoughts, "precision": wanted.precision, "models": fitted,
        "lessons": [one["lessons"] for one in fitted.values()],
        "steps": [_fitting(suite, wanted).steps_for(one["lessons"]) for one in fitted.values()],
        **user_models_result(turns, suite.settled, seed=suite.seed),
    }  # fmt: skip


def example_rows(members: Sequence[TrainedPerson]) -> list[ExampleRow]:
    """What the model of a group learns: nothing of a conversation that is held out of anybody in it."""
    held_out = frozenset[str]().union(*(one.held_out for one in members))
    return [lesson for one in members for lesson in one.lessons if lesson[0].conversation_id not in held_out]


def _fitting(suite: Suite, wanted: UserModels) -> UserModelConfig:
    return UserModelConfig(
        wanted.epochs, wanted.steps, wanted.batch, wanted.learning_rate, wanted.rank, wanted.precision, suite.seed
    )  # fmt: skip


def user_models_plan(suite: Suite, people: int) -> list[str]:
    """What the experiment will take, a sentence each; nothing is loaded for it.

    Args:
        suite: with the table [settling], or without.
        people: of its corpora.
    """
    wanted, kinds = suite.settling, suite.settled
    if wanted is None or not people:
        return []
    groups = people if wanted.of == "person" else len(suite.corpora)
    moments = people * suite.traces.moments
    makers = [f"{moments * suite.traces.candidates:,} texts of {suite.models.proposer}"] * (not suite.traced)
    if "trained" in kinds and "trained" not in suite.arms:
        makers.append(f"{moments * suite.traces.candidates:,} texts of {suite.models.trained}")
    traces = [f"traces for the user models: {', '.join(makers)}"] if makers else []
    steps = groups * _fitting(suite, wanted).steps_for(moments // groups)
    asked, thinking = people * wanted.turns, sum(kind != PAIRS for kind in kinds)
    return [
        *traces,
        f"{groups * len(kinds)} user models of {wanted.base} ({', '.join(kinds)}), at most {steps * len(kinds):,} steps of "
        f"{wanted.batch} moments",
        f"{asked * (1 + len(kinds) + thinking * wanted.thoughts):,} turns scored under them, and "
        f"{asked * thinking * wanted.thoughts:,} thoughts written",
    ]


# What is learned and what is measured ----------------------------------------------------------------------------------


async def _taught(suite: Suite, measurer: PersonMeasurement, number: int, person: Person) -> TrainedPerson:
    """A person's lessons and test, of the twins of the suite, which are learned first if they are not yet."""
    wanted, corpus = suite.settling, person.corpus
    assert wanted is not None
    assert corpus is not None
    name = person.twin if suite.traced else f"{person.twin}-traced"
    folder = await measurer.learn(person, suite.models.proposer, name=name)
    with ExitStack() as stack:
        chosen = _triples(folder, measurer, stack)
        trained: dict[tuple[str, int], str | None] = {}
        if "trained" in suite.settled:
            other = await measurer.learn(person, str(suite.models.trained), name=f"{person.twin}-trained")
            trained = {_key(one.pair): one.reasoning for one in _triples(other, measurer, stack).triples()}
        options: dict[str, Any] = {"home": person.home, "model": measurer.models.chat(suite.models.action)}
        settings = Settings(k=suite.k or Settings().k, window=suite.window or CONTEXT_WINDOW, traces="recon", reasons=False)
        user = stack.enter_context(
            SimulatedUser.load(name, embedder=measurer.models.embedder(), settings=settings, **options)
        )  # fmt: skip
        held_out, _ = held_out_pairs(user, folder)
        triples = list(chosen.triples())
        known = [triple.pair for triple in triples]
        check_split(user.record, known, held_out)
        lessons: list[ExampleRow] = []
        for triple in triples:
            of_kind: dict[TraceKind, str | None] = {
                "none": None, "backward": backward_trace(triple), "recon": triple.reasoning,
                "trained": trained.get(_key(triple.pair)),
            }  # fmt: skip
            if not triple.pair.abandoned and all(of_kind[kind] for kind in suite.settled if kind != PAIRS):
                lessons.append((triple.pair, {kind: of_kind[kind] for kind in suite.settled}))
        twice = near_duplicates(held_out, known)
        said = [pair for place, pair in enumerate(held_out) if place not in twice and not pair.abandoned]
        if not said:
            raise UsageError(f"{person.label}: no held-out turn is left that is not nearly the same in what is learned")
        group = person.twin if wanted.of == "person" else f"c{suite.corpora.index(corpus)}"
        held = frozenset((*user.record.test, *user.record.validation))
        return TrainedPerson(number, person.label, group, tuple(lessons), tuple(evenly_spaced(said, wanted.turns)), held)


def _triples(folder: Path, measurer: PersonMeasurement, stack: ExitStack) -> TripleStore:
    store = TripleStore(folder, measurer.models.embedder(), create=False)
    stack.callback(store.close)
    return store


def _key(pair: Pair) -> tuple[str, int]:
    return pair.conversation_id, pair.position


# Fine-tuning and asking ------------------------------------------------------------------------------------------------


class _Group:
    """Those who share a model: it is fine-tuned in every kind, and each of them is measured under each."""

    def __init__(
        self, suite: Suite, wanted: UserModels, members: Sequence[TrainedPerson], lessons: Sequence[ExampleRow], folder: Path,
        fetch: FetchProgress | None, progress: Progress,
    ) -> None:  # fmt: skip
        self._suite, self._wanted, self._members, self._lessons = suite, wanted, members, lessons
        self._folder, self._fetch, self._progress = folder, fetch, progress
        self._window = suite.window or CONTEXT_WINDOW
        #: Of each kind, at the end of its training: in nats per token of what it learned, which differs from kind to kind.
        self.losses: dict[str, float | None] = {}

    def run(self) -> list[MeasuredTurn]:
        """The turns of the members, with what they cost under every kind."""
        base = weights_folder(self._wanted.base, self._fetch)
        found: dict[tuple[int, tuple[str, int]], MeasuredTurn] = {}
        for kind in (BASE, *self._suite.settled):
            adapter = None if kind == BASE else self._fitted(kind, base)
            model = UserModel(kind, base, adapter, self._wanted.precision)
            for one in self._members:
                keep = self._folder / "people" / f"settling-{one.number}-{kind}.part"
                for turn in self._measured(model, kind, one, keep):
                    place = one.number, (turn.conversation_id, turn.position)
                    found[place] = turn if place not in found else _merged(found[place], turn)
        return list(found.values())

    def _fitted(self, kind: TraceKind, base: Path) -> Path:
        rows = [row_of(pair, self._window, traces[kind]) for pair, traces in self._lessons]
        target = self._folder / "settling" / f"{self._members[0].group}-{kind}"
        about = {
            "base": self._wanted.base, "method": "user model", "kind": kind, "people": [one.label for one in self._members],
        }  # fmt: skip
        self.losses[kind] = fit(rows, base, target, _fitting(self._suite, self._wanted), about=about, progress=self._progress)[
            "loss"
        ]
        return target

    def _measured(self, model: UserModel, kind: str, one: TrainedPerson, keep: Path) -> list[MeasuredTurn]:
        """One person's turns under one model; each is kept before the next is begun."""
        known = {(turn.conversation_id, turn.position): turn for turn in turns_of(keep)}
        with open_for_append(keep) as file:
            for number, pair in enumerate(one.tested):
                self._progress("settling", number, len(one.tested))
                if _key(pair) not in known:
                    known[_key(pair)] = self._turn(model, kind, one, pair)
                    append_line(file, known[_key(pair)].to_json())
        self._progress("settling", len(one.tested), len(one.tested))
        return [known[_key(pair)] for pair in one.tested]

    def _turn(self, model: UserModel, kind: str, one: TrainedPerson, pair: Pair) -> MeasuredTurn:
        likelihood = model.at_once(pair, self._window)
        bits, thought = {at_once(kind): likelihood.bits}, dict[str, str]()
        if kind not in {BASE, PAIRS}:
            seed = crc32(f"{self._suite.seed}/{pair.conversation_id}/{pair.position}".encode())
            nats, thoughts = model.with_thoughts(pair, self._window, self._wanted.thoughts, seed=seed)
            bits[kind], thought = type(likelihood)(nats, likelihood.tokens).bits, {kind: thoughts[0]}
        context = tuple((ME if turn.speaker == pair.speaker else turn.speaker, turn.text) for turn in pair.context)
        return MeasuredTurn(
            one.label, pair.conversation_id, pair.position, context, pair.action, len(action_completion(pair.action)) - 1, pair.goal,
            bits, reasoning=thought,
        )  # fmt: skip


def _merged(one: MeasuredTurn, other: MeasuredTurn) -> MeasuredTurn:
    """One record of what was measured at the same turn under two models."""
    both = {"bits": {**one.bits, **other.bits}, "reasoning": {**one.reasoning, **other.reasoning}}
    return MeasuredTurn.from_json(one.to_json() | both)


# The figures -----------------------------------------------------------------------------------------------------------


def user_models_result(turns: Sequence[MeasuredTurn], kinds: Iterable[str], *, seed: int = 0) -> dict[str, Any]:
    """What each kind's held-out turns cost, and how much more that is than with pairs alone.

    Args:
        turns: with bits by kind, "base" included, and by "KIND, at once" where a kind was also asked without thoughts.
        kinds: those that were compared; "none" is one of them.
        seed: for the resampling.

    Returns:
        `rows`: of each kind its `kind`; `bits_per_char` as it is meant to be used, and `at_once`; and what these are more than
        those of "none" at the same turns (`against`, `at_once_against`; below 0: it predicts people better). `family`: which of
        `against` are tested together, so that their `p_holm` (Holm 1979) bounds the chance of any false finding. `paired`: the
        traces against each other. Intervals are over people and conversations; see `closeness`.
    """
    taught = [kind for kind in kinds if kind != PAIRS]
    main = [(kind, PAIRS) for kind in taught]
    beside = [(at_once(kind), PAIRS) for kind in taught] + [(BASE, PAIRS)]
    among = [(b, a) for place, a in enumerate(taught) for b in taught[place + 1 :]]
    found = closeness(turns, PAIRS, seed=seed, contrasts=[*main, *beside, *among])
    paired = {name: one[PRIMARY] for name, one in found["paired"].items() if PRIMARY in one}
    names = [name for a, b in main if (name := f"{a} - {b}") in paired]
    for name in names:
        paired[name]["p_holm"] = None
    tested = [name for name in names if paired[name]["p"] is not None]
    for name, p in zip(tested, holm([paired[name]["p"] for name in tested]), strict=True):
        paired[name]["p_holm"] = p
    rows = [
        {
            "kind": kind,
            "bits_per_char": found["arms"].get(kind, {}).get(PRIMARY),
            "against": paired.get(f"{kind} - {PAIRS}"),
            "at_once": found["arms"].get(at_once(kind), {}).get(PRIMARY) if kind in taught else None,
            "at_once_against": paired.get(f"{at_once(kind)} - {PAIRS}") if kind in taught else None,
        }
        for kind in (BASE, PAIRS, *taught)
    ]
    return {
        "rows": rows, "paired": {f"{a} - {b}": paired[f"{a} - {b}"] for a, b in among if f"{a} - {b}" in paired},
        "family": {"contrasts": names, "alpha": ALPHA},
        "turns": found["turns"], "conversations": found["conversations"], "people": len(found["people"]),
    }  # fmt: skip
