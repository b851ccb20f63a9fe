"""The user-model experiment, which compares models of people that are fine-tuned with and without traces.

A base model is fine-tuned on what people did (see memory/training/user_model.py), in several kinds. All kinds have the same
pairs and number of steps; only the text before the action differs. Each model then scores the people's held-out turns:

    base        no training
    none        pairs alone
    backward    the first candidate trace that passes the guards (backward synthesis)
    recon       the trace that Recon selected
    trained     the Recon-selected trace of a trained synthesizer

A model trained on traces samples thoughts before it scores a turn (see `UserModel.score_with_thoughts`), and scores the turn
without thoughts as well. Design: each kind is compared with "none" in its intended use, so a trace must pay for its tokens. A
conversation that is held out for one person of a group is used to train no model of that group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

from usertwin.evals.metrics.closeness import ALPHA, PRIMARY, closeness
from usertwin.evals.metrics.statistics import add_holm, evenly_spaced
from usertwin.evals.records.measured_turns import MeasuredTurn, read_turn_file
from usertwin.evals.replay.held_out import held_out_pairs
from usertwin.evals.replay.leak_checks import check_split, without_near_duplicates
from usertwin.memory.concurrency import to_thread
from usertwin.memory.jsonl import append_line, open_for_append
from usertwin.memory.recon.synthesizer import backward_trace
from usertwin.memory.text.transcript import ME, action_completion
from usertwin.memory.training.policy import check_installed
from usertwin.memory.training.user_model import UserModel, UserModelConfig, fine_tune, training_row
from usertwin.personas import Pair, UsageError
from usertwin.simulator.backends.model_name import ModelName
from usertwin.simulator.backends.weights import weights_folder

from .config import Suite, TraceKind, UserModels
from .measure_person import Person, PersonMeasurement

BASE, PAIRS = "base", "none"
#: A pair, and its trace by kind.
ExampleRow = tuple[Pair, Mapping[TraceKind, str | None]]
#: With fewer pairs a model would only memorize them.
MIN_EXAMPLES = 8


def without_thoughts(kind: str) -> str:
    """Return the name of a kind when it scores without thoughts."""
    return kind if kind in {BASE, PAIRS} else f"{kind}, without thoughts"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedPerson:
    """A person of the experiment."""

    number: int  #: in the suite
    label: str
    group: str  #: the name of the people who share a model: the person's twin, or the corpus
    examples: tuple[ExampleRow, ...]  #: only pairs with a trace of every kind
    test_pairs: tuple[Pair, ...]
    held_out: frozenset[str]  #: all held-out conversations


def check_user_models(suite: Suite) -> None:
    """Raise UsageError or ModelError if the base model or a package is missing; nothing is loaded."""
    if suite.user_models is not None:
        check_installed()
        base = ModelName.parse(suite.user_models.base, "base")
        if base.kind == "transformers":
            weights_folder(str(base))


async def run_user_models(measurement: PersonMeasurement, people: Sequence[Person]) -> dict[str, Any] | None:
    """Do the missing part of the experiment, and return its figures; None without the table [user_models].

    Adapters are in `user_models/` of the run's folder, records in `people/`. Twins learned before are skipped.

    Raises:
        UsageError: too few pairs have a trace of every kind; the folder holds an adapter of another run.
        ModelError: a model does not answer, or cannot be loaded.
        TwinError: a held-out turn is in the memory.
    """
    suite, config = measurement.suite, measurement.suite.user_models
    if config is None:
        return None
    groups: dict[str, list[TrainedPerson]] = {}
    for number, person in enumerate(people):
        if person.corpus is not None:
            member = await _trained_person(measurement, config, number, person)
            groups.setdefault(member.group, []).append(member)
    examples = {name: example_rows(members) for name, members in groups.items()}
    for name, members in groups.items():
        if len(examples[name]) < MIN_EXAMPLES:
            raise UsageError(
                f"{', '.join(member.label for member in members)}: only {len(examples[name])} pairs have a trace of every kind "
                f"({', '.join(suite.user_model_kinds)}), and {MIN_EXAMPLES} are needed; raise traces.pairs, or leave out a kind"
            )
    turns: list[MeasuredTurn] = []
    models: dict[str, dict[str, Any]] = {}
    for name, members in groups.items():
        group = _Group(measurement, config, members, examples[name])
        turns += await to_thread(group.run)
        models[name] = {"people": [member.label for member in members], "examples": len(examples[name]), "loss": group.losses}
    counts = [len(rows) for rows in examples.values()]
    return {
        "of": config.of, "base": config.base, "thoughts": config.thoughts, "precision": config.precision, "models": models,
        "examples": counts, "steps": [_training_config(suite, config).steps_for(count) for count in counts],
        **user_models_result(turns, suite.user_model_kinds, seed=suite.seed),
    }  # fmt: skip


def example_rows(members: Sequence[TrainedPerson]) -> list[ExampleRow]:
    """Return the training examples of a group, without conversations that are held out for any of its members."""
    held_out = frozenset[str]().union(*(member.held_out for member in members))
    return [row for member in members for row in member.examples if row[0].conversation_id not in held_out]


def _training_config(suite: Suite, config: UserModels) -> UserModelConfig:
    keys = ("epochs", "steps", "batch_size", "learning_rate", "rank", "precision")
    return UserModelConfig(**{key: getattr(config, key) for key in keys}, seed=suite.seed)


def user_models_estimate(suite: Suite, people: int) -> list[str]:
    """Return the work of the experiment for this number of people in sentences; nothing is loaded."""
    config, kinds = suite.user_models, suite.user_model_kinds
    if config is None or not people:
        return []
    groups = people if config.of == "person" else len(suite.corpora)
    pairs = people * suite.traces.pairs
    proposers = [] if suite.shows_traces else [suite.models.proposer]
    if "trained" in kinds and "trained" not in suite.arms:
        proposers.append(str(suite.models.trained))
    completions = ", ".join(f"{pairs * suite.traces.candidates:,} completions of {proposer}" for proposer in proposers)
    steps = groups * len(kinds) * _training_config(suite, config).steps_for(pairs // groups)
    turns, with_thoughts = people * config.turns, sum(kind != PAIRS for kind in kinds)
    thoughts = turns * with_thoughts * config.thoughts
    return [
        *([f"traces for the user models: {completions}"] if proposers else []),
        f"{groups * len(kinds)} user models of {config.base} ({', '.join(kinds)}), at most {steps:,} steps of "
        f"{config.batch_size} pairs",
        f"{turns * (1 + len(kinds)) + thoughts:,} turns scored under them, and {thoughts:,} thoughts sampled",
    ]


async def _trained_person(measurement: PersonMeasurement, config: UserModels, number: int, person: Person) -> TrainedPerson:
    """The examples and test pairs of a person, from the person's twins, which are learned first if they are missing."""
    suite, corpus = measurement.suite, person.corpus
    assert corpus is not None
    kinds = suite.user_model_kinds
    name = person.twin if suite.shows_traces else f"{person.twin}-traced"
    folder = await measurement.learn(person, suite.models.proposer, name=name)
    with ExitStack() as stack:
        trained: dict[tuple[str, int], str | None] = {}
        if "trained" in kinds:
            store = await measurement.trained_store(person, stack)
            trained = {_key(triple.pair): triple.reasoning for triple in store.triples()}
        user = stack.enter_context(measurement.open_twin(person, name, measurement.trace_settings))
        held_out, _ = held_out_pairs(user, folder)
        triples = list(user.store.triples())
        known = [triple.pair for triple in triples]
        check_split(user.record, known, held_out)
        examples: list[ExampleRow] = []
        for triple in triples:
            traces: dict[TraceKind, str | None] = {
                "none": None, "backward": backward_trace(triple), "recon": triple.reasoning,
                "trained": trained.get(_key(triple.pair)),
            }  # fmt: skip
            if not triple.pair.abandoned and all(traces[kind] for kind in kinds if kind != PAIRS):
                examples.append((triple.pair, {kind: traces[kind] for kind in kinds}))
        spoken = [pair for pair in without_near_duplicates(person.label, held_out, known) if not pair.abandoned]
        return TrainedPerson(
            number=number, label=person.label, examples=tuple(examples),
            group=person.twin if config.of == "person" else f"c{suite.corpora.index(corpus)}",
            test_pairs=tuple(evenly_spaced(spoken, config.turns)),
            held_out=frozenset((*user.record.test, *user.record.validation)),
        )  # fmt: skip


def _key(turn: Pair | MeasuredTurn) -> tuple[str, int]:
    return turn.conversation_id, turn.position


class _Group:
    """The people who share a model: the model is fine-tuned in every kind, and each person is measured under each."""

    def __init__(
        self, measurement: PersonMeasurement, config: UserModels, members: Sequence[TrainedPerson],
        examples: Sequence[ExampleRow],
    ) -> None:  # fmt: skip
        self._suite, self._window, self._fetch = measurement.suite, measurement.window, measurement.models.fetch
        self._config, self._members, self._examples = config, members, examples
        self._people, self._progress = measurement.folder, measurement.progress
        #: The final training loss of each kind, in nats per token; the tokens differ between kinds.
        self.losses: dict[str, float | None] = {}

    def run(self) -> list[MeasuredTurn]:
        """Return the turns of the members, with their bits under every kind."""
        base = weights_folder(self._config.base, self._fetch)
        turns: dict[tuple[int, str, int], MeasuredTurn] = {}
        for kind in (BASE, *self._suite.user_model_kinds):
            adapter = None if kind == BASE else self._fine_tune(kind, base)
            model = UserModel(kind, base, adapter, self._config.precision)
            for member in self._members:
                for turn in self._measure(model, kind, member):
                    key = member.number, *_key(turn)
                    earlier = turns.get(key, turn)  # under other kinds
                    both = {name: {**getattr(earlier, name), **getattr(turn, name)} for name in ("bits", "reasoning")}
                    turns[key] = replace(earlier, **both)
        return list(turns.values())

    def _fine_tune(self, kind: TraceKind, base: Path) -> Path:
        rows = [training_row(pair, self._window, traces[kind]) for pair, traces in self._examples]
        target = self._people.parent / "user_models" / f"{self._members[0].group}-{kind}"
        people = [member.label for member in self._members]
        metadata = {"base": self._config.base, "method": "user model", "kind": kind, "people": people}
        config = _training_config(self._suite, self._config)
        facts = fine_tune(rows, base, target, config, metadata=metadata, progress=self._progress)
        self.losses[kind] = facts["loss"]
        return target

    def _measure(self, model: UserModel, kind: str, member: TrainedPerson) -> list[MeasuredTurn]:
        """One person's turns under one model; each turn is written before the next is measured."""
        path = self._people / f"user-models-{member.number}-{kind}.part"
        known = {_key(turn): turn for turn in read_turn_file(path)}
        with open_for_append(path) as file:
            for number, pair in enumerate(member.test_pairs):
                self._progress("user models", number, len(member.test_pairs))
                if _key(pair) not in known:
                    known[_key(pair)] = self._turn(model, kind, member, pair)
                    append_line(file, known[_key(pair)].to_json())
        self._progress("user models", len(member.test_pairs), len(member.test_pairs))
        return [known[_key(pair)] for pair in member.test_pairs]

    def _turn(self, model: UserModel, kind: str, member: TrainedPerson, pair: Pair) -> MeasuredTurn:
        likelihood = model.score(pair, self._window)
        bits, reasoning = {without_thoughts(kind): likelihood.bits}, dict[str, str]()
        if kind not in {BASE, PAIRS}:
            seed = crc32(f"{self._suite.seed}/{pair.conversation_id}/{pair.position}".encode())
            nats, thoughts = model.score_with_thoughts(pair, self._window, self._config.thoughts, seed=seed)
            bits[kind], reasoning[kind] = type(likelihood)(nats, likelihood.tokens).bits, thoughts[0]
        return MeasuredTurn(
            person=member.label, conversation_id=pair.conversation_id, position=pair.position,
            context=tuple((ME if turn.speaker == pair.speaker else turn.speaker, turn.text) for turn in pair.context),
            action=pair.action, characters=len(action_completion(pair.action)) - 1, goal=pair.goal, bits=bits,
            reasoning=reasoning,
        )  # fmt: skip


def user_models_result(turns: Sequence[MeasuredTurn], kinds: Iterable[str], *, seed: int = 0) -> dict[str, Any]:
    """Return the bits of each kind on held-out turns, and their differences to training on pairs alone.

    The turns hold bits by kind, "base" included, and by "KIND, without thoughts" for kinds that sample thoughts.

    Returns:
        `rows`: for each kind its `kind`; `bits_per_char` in its intended use, and `without_thoughts`; the differences of these
        to "none" at the same turns (`against`, `without_thoughts_against`; below 0 the kind predicts people better).
        `family`: the contrasts of `against` that are tested together; their `p_holm` (Holm 1979) bounds the chance of any
        false positive. `paired`: the kinds with traces against each other. Intervals are over people and conversations; see
        `closeness`.
    """
    traced = [kind for kind in kinds if kind != PAIRS]
    main = [(kind, PAIRS) for kind in traced]
    extra = [(without_thoughts(kind), PAIRS) for kind in traced] + [(BASE, PAIRS)]
    among = [(second, first) for place, first in enumerate(traced) for second in traced[place + 1 :]]
    result = closeness(turns, PAIRS, seed=seed, contrasts=[*main, *extra, *among])
    paired = {name: measures[PRIMARY] for name, measures in result["paired"].items() if PRIMARY in measures}
    family = [name for first, second in main if (name := f"{first} - {second}") in paired]
    add_holm([paired[name] for name in family])

    def figures(name: str) -> tuple[Any, Any]:
        return result["arms"].get(name, {}).get(PRIMARY), paired.get(f"{name} - {PAIRS}")

    keys = ("bits_per_char", "against", "without_thoughts", "without_thoughts_against")
    rows: list[dict[str, Any]] = []
    for kind in (BASE, PAIRS, *traced):
        plain = figures(without_thoughts(kind)) if kind in traced else (None, None)
        rows.append({"kind": kind, **dict(zip(keys, (*figures(kind), *plain), strict=True))})
    names = [f"{first} - {second}" for first, second in among]
    return {
        "rows": rows, "paired": {name: paired[name] for name in names if name in paired},
        "family": {"contrasts": family, "alpha": ALPHA},
        "turns": result["turns"], "conversations": result["conversations"], "people": len(result["people"]),
    }  # fmt: skip
