"""What a synthesizer is trained on, watched on and measured on: pairs of people, parted by person and by time.

The one design choice: people who are held out ("unseen") are so with every conversation they took part in, so that nobody
who is trained on can bring a turn of theirs along; of everybody else only what a twin may remember is trained on, and what came
later ("seen") is measured. A conversation of several of them is in one part only, the latest that it is in for any.

    train      corpus part of the people who are seen, in turn: a budget that ends early leaves nobody out
    watched    validation part of the same, a few pairs: looked at while training, to see whether it goes wrong
    seen       test part of the same
    unseen     test part of the people who are held out
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from usertwin.memory.models.embedding import Embedder
from usertwin.memory.text.words import word_tokens
from usertwin.personas import ChatLog, LogError, Pair, Split, UsageError, split_pairs
from usertwin.personas.pairs import DEFAULT_WINDOW, check_speaker

#: Fewer words than this make a turn that any trace predicts as well as any other ("ok", "yes please").
MIN_WORDS = 4
#: Longer turns take long to score and leave a trace little room to matter.
MAX_WORDS = 80
#: So many training pairs at least: fewer are learned by heart.
MIN_PAIRS = 16


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """A pair of somebody.

    Attributes:
        label: the log and the person, as they are told apart.
        pair: what the person saw and did.
        later: a moment of the same person in another conversation, the most alike of those trained on, that what was learned
            here may help with; None where nobody asks for it.
    """

    label: str
    pair: Pair
    later: Pair | None = None


@dataclass(frozen=True, slots=True)
class DatasetSplit:
    """The parts; see the top of this file."""

    train: tuple[TrainingExample, ...]
    validation: tuple[TrainingExample, ...]
    seen: tuple[TrainingExample, ...]
    unseen: tuple[TrainingExample, ...]

    @property
    def people(self) -> dict[str, list[str]]:
        """The labels of who is seen and who is not."""
        return {
            "seen": list(dict.fromkeys(one.label for one in self.train)),
            "unseen": list(dict.fromkeys(one.label for one in self.unseen)),
        }


@dataclass(frozen=True, slots=True)
class SplitConfig:
    """Who is trained on and how much of them.

    Attributes:
        people: how many people of each log, those who said most.
        unseen: how many more of each log are held out, spread evenly among them.
        held_out: people who are held out, by name, instead.
        role: of whom, such as "user", in logs where somebody has it; None for anybody.
        pairs: training pairs of each person.
        watched: pairs that are watched, of all people together.
        measured: pairs that are measured, of each person.
        window: turns of context of a pair.
        later: pairs that are measured of each person who is trained on, if not as many as of the others.
    """

    people: int = 8
    unseen: int = 4
    held_out: tuple[str, ...] = ()
    role: str | None = None
    train_pairs: int = 16
    validation_pairs: int = 32
    test_pairs: int = 16
    window: int = DEFAULT_WINDOW
    later_test_pairs: int | None = None

    @property
    def of_seen(self) -> int:
        """Pairs that are measured of each person who is trained on."""
        return self.test_pairs if self.later_test_pairs is None else self.later_test_pairs


def build_dataset(logs: Mapping[str, ChatLog], config: SplitConfig) -> DatasetSplit:
    """Return the training, validation and test examples of some logs.

    Args:
        logs: by what to call them.
        config: whose pairs, and how many.

    Raises:
        LogError: somebody is unknown, or too few people said enough.
        UsageError: a number that makes no sense.
    """
    if (
        min(config.people, config.train_pairs, config.validation_pairs) < 1
        or min(config.unseen, config.test_pairs, config.of_seen) < 0
    ):
        raise UsageError("at least one person, one pair of each and one that is watched are needed, and no number is negative")
    _check_named(logs, config.held_out)
    parts: dict[str, list[TrainingExample]] = {"seen": [], "unseen": []}
    trained: list[list[TrainingExample]] = []
    watched: list[list[TrainingExample]] = []
    for name, log in logs.items():
        splits, strangers = _people(log, config)
        without = {
            one.conversation_id
            for one in log.conversations
            if strangers & {turn.speaker for turn in one.turns if not turn.private}
        }
        known = {speaker: split for speaker, split in splits.items() if speaker not in strangers}
        measured = without | {pair.conversation_id for split in known.values() for pair in split.test}
        looked_at = measured | {pair.conversation_id for split in known.values() for pair in split.validation}
        for speaker, split in splits.items():
            label = f"{name}/{speaker}"
            if speaker in strangers:
                parts["unseen"] += _lessons(label, split.test, config.test_pairs)
            elif own := _lessons(label, _outside(split.corpus, looked_at), config.train_pairs):
                trained.append(own)
                watched.append(_lessons(label, _outside(split.validation, measured), config.validation_pairs))
                parts["seen"] += _lessons(label, _outside(split.test, without), config.of_seen)
    train = _in_turn(trained)
    if len(train) < MIN_PAIRS or not any(watched):
        raise LogError(
            f"only {len(train)} pairs to train on and {sum(map(len, watched))} to watch (answers of {MIN_WORDS} to "
            f"{MAX_WORDS} words, in conversations without anybody who is held out); at least {MIN_PAIRS} and one are "
            "needed; take more people, more pairs of each, or a longer log"
        )
    looked_at_often = _in_turn(watched)[: config.validation_pairs]
    return DatasetSplit(tuple(train), tuple(looked_at_often), tuple(parts["seen"]), tuple(parts["unseen"]))


def _in_turn(groups: Sequence[Sequence[TrainingExample]]) -> list[TrainingExample]:
    """A lesson of each person, then the next of each: whoever takes only the first so many has them of everybody."""
    return [one for of_each in zip_longest(*groups) for one in of_each if one is not None]


def with_later(lessons: Sequence[TrainingExample], embedder: Embedder) -> list[TrainingExample]:
    """The lessons, each with the most alike of the same person in another conversation, if there is one."""
    found: list[TrainingExample] = []
    by_person: dict[str, list[TrainingExample]] = {}
    for one in lessons:
        by_person.setdefault(one.label, []).append(one)
    for own in by_person.values():
        vectors = embedder.embed(["\n".join(turn.text for turn in one.pair.context[-2:]) for one in own])
        near = vectors @ vectors.T
        for place, one in enumerate(own):
            others = [i for i, other in enumerate(own) if other.pair.conversation_id != one.pair.conversation_id]
            best = max(others, key=lambda i: float(near[place][i]), default=None)
            found.append(TrainingExample(one.label, one.pair, None if best is None else own[best].pair))
    return found


def _outside(pairs: Sequence[Pair], conversations: Collection[str]) -> list[Pair]:
    return [pair for pair in pairs if pair.conversation_id not in conversations]


def _check_named(logs: Mapping[str, ChatLog], names: Sequence[str]) -> None:
    """LogError if somebody who is to be held out speaks in none of the logs."""
    for name in names:
        if not any(name in log.turn_counts() for log in logs.values()):
            raise LogError(f'nobody called "{name}" speaks in {", ".join(logs)}, so nothing of theirs can be held out')


def _people(log: ChatLog, enrolment: SplitConfig) -> tuple[dict[str, Split], set[str]]:
    """The splits of everybody who is looked at, and who of them is held out."""
    named = [speaker for speaker in dict.fromkeys(enrolment.held_out) if speaker in log.turn_counts()]
    for speaker in named:
        check_speaker(log, speaker)
    unseen = 0 if enrolment.held_out else enrolment.unseen
    wanted = enrolment.people + unseen
    splits: dict[str, Split] = {speaker: split_pairs(log, speaker, window=enrolment.window) for speaker in named}
    for speaker in log.turn_counts(enrolment.role) or log.turn_counts():
        if len(splits) == wanted + len(named):
            break
        if speaker not in splits:
            try:
                splits[speaker] = split_pairs(log, speaker, window=enrolment.window)
            except LogError:
                continue
    if len(splits) < wanted + len(named):
        raise LogError(
            f"{log.source}: only {len(splits)} people said enough, and {wanted + len(named)} are wanted "
            f"({enrolment.people} to train on and {wanted + len(named) - enrolment.people} held out); ask for fewer"
        )
    ranked = list(splits)
    return splits, {*named, *(ranked[int((i + 0.5) * len(ranked) / unseen)] for i in range(unseen))}


def _lessons(label: str, pairs: Sequence[Pair], most: int) -> list[TrainingExample]:
    """At most so many lessons, spread evenly over the pairs that one can learn from."""
    usable = [
        pair
        for pair in pairs
        if pair.context and not pair.abandoned and MIN_WORDS <= len(word_tokens(pair.action)) <= MAX_WORDS
    ]
    if len(usable) > most:
        usable = [usable[len(usable) * place // most] for place in range(most)]
    return [TrainingExample(label, pair) for pair in usable]
