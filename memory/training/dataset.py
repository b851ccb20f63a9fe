"""The data split of a training: pairs of several people, split by person and by time.

Design: a person who is held out ("unseen") is held out with every conversation they took part in, so no turn of theirs reaches
the training set. A conversation of several people belongs to one part only, the latest that it has for any of them.

    train        corpus part of the seen people, round-robin, so a budget that ends early covers everyone
    validation   validation part of the same people; audited during training
    seen         test part of the same people
    unseen       test part of the held-out people
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from usertwin.memory.models.embedding import Embedder
from usertwin.memory.text.words import word_tokens
from usertwin.personas import ChatLog, LogError, Pair, Split, UsageError, split_pairs
from usertwin.personas.pairs import DEFAULT_WINDOW, check_speaker

#: Shorter actions ("ok", "yes please") are predicted equally well from any trace.
MIN_WORDS = 4
#: Longer actions are slow to score and leave a trace little influence.
MAX_WORDS = 80
#: Fewer training pairs would be memorised.
MIN_PAIRS = 16


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """A pair with its person.

    Attributes:
        label: "LOG/PERSON", unique across logs.
        pair: the context and the action.
        related_pair: the most similar pair of the same person in another conversation; only `with_related_pairs` sets it.
    """

    label: str
    pair: Pair
    related_pair: Pair | None = None


@dataclass(frozen=True, slots=True)
class DatasetSplit:
    """The parts of a dataset; the module docstring describes them."""

    train: tuple[TrainingExample, ...]
    validation: tuple[TrainingExample, ...]
    seen: tuple[TrainingExample, ...]
    unseen: tuple[TrainingExample, ...]

    @property
    def people(self) -> dict[str, list[str]]:
        """Return the labels of the seen and the unseen people."""
        return {
            "seen": list(dict.fromkeys(example.label for example in self.train)),
            "unseen": list(dict.fromkeys(example.label for example in self.unseen)),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitConfig:
    """Which people and how many of their pairs.

    Attributes:
        people: people of each log to train on, those with the most turns.
        unseen: further people of each log to hold out, spread evenly among them.
        held_out: names of the people to hold out instead.
        role: only people of this role, such as "user", in logs that have it.
        train_pairs: training pairs per person.
        validation_pairs: validation pairs of all people together.
        test_pairs: test pairs per person.
        window: turns of context per pair.
        later_test_pairs: test pairs per seen person; None for `test_pairs`.
    """

    people: int = 8
    unseen: int = 4
    held_out: tuple[str, ...] = ()
    role: str | None = None
    train_pairs: int = 16
    validation_pairs: int = 64
    test_pairs: int = 16
    window: int = DEFAULT_WINDOW
    later_test_pairs: int | None = None

    @property
    def seen_test_pairs(self) -> int:
        """Return the test pairs per seen person."""
        return self.test_pairs if self.later_test_pairs is None else self.later_test_pairs

    def check(self) -> None:
        """Raise UsageError if a number is out of range."""
        for option, value, minimum in (
            ("--people", self.people, 1),
            ("--train-pairs", self.train_pairs, 1),
            ("--validation-pairs", self.validation_pairs, 1),
            ("--unseen", self.unseen, 0),
            ("--test-pairs", self.test_pairs, 0),
            ("--later-test-pairs", self.seen_test_pairs, 0),
        ):
            if value < minimum:
                raise UsageError(f"{option} is {value}; it must be at least {minimum}")


def build_dataset(logs: Mapping[str, ChatLog], config: SplitConfig) -> DatasetSplit:
    """Return the training, validation and test examples of some logs.

    Args:
        logs: chat logs by name.
        config: which people, and how many pairs.

    Raises:
        LogError: a held-out person is unknown, or too few people have enough turns.
        UsageError: a number of the configuration is out of range.
    """
    config.check()
    _check_held_out(logs, config.held_out)
    train: list[list[TrainingExample]] = []
    validation: list[list[TrainingExample]] = []
    seen: list[TrainingExample] = []
    unseen: list[TrainingExample] = []
    for name, log in logs.items():
        splits, held_out = _people(log, config)
        theirs = {
            conversation.conversation_id
            for conversation in log.conversations
            if held_out & {turn.speaker for turn in conversation.turns if not turn.private}
        }
        known = [split for speaker, split in splits.items() if speaker not in held_out]
        tested = theirs | {pair.conversation_id for split in known for pair in split.test}
        not_trained = tested | {pair.conversation_id for split in known for pair in split.validation}
        for speaker, split in splits.items():
            label = f"{name}/{speaker}"
            if speaker in held_out:
                unseen += _examples(label, split.test, config.test_pairs)
            elif own := _examples(label, _outside(split.corpus, not_trained), config.train_pairs):
                train.append(own)
                validation.append(_examples(label, _outside(split.validation, tested), config.validation_pairs))
                seen += _examples(label, _outside(split.test, theirs), config.seen_test_pairs)
    pairs = sum(map(len, train))
    if pairs < MIN_PAIRS or not any(validation):
        raise LogError(
            f"only {pairs} pairs to train on and {sum(map(len, validation))} for validation (actions of {MIN_WORDS} to "
            f"{MAX_WORDS} words, in conversations without a held-out person); at least {MIN_PAIRS} and 1 are needed; take more "
            "people, more pairs per person, or a longer log"
        )
    validation_set = _round_robin(validation)[: config.validation_pairs]
    return DatasetSplit(tuple(_round_robin(train)), tuple(validation_set), tuple(seen), tuple(unseen))


def _round_robin(groups: Sequence[Sequence[TrainingExample]]) -> list[TrainingExample]:
    """Return the first example of each group, then the second of each, and so on."""
    return [example for turn in zip_longest(*groups) for example in turn if example is not None]


def with_related_pairs(examples: Sequence[TrainingExample], embedder: Embedder) -> list[TrainingExample]:
    """Return the examples, grouped by person, each with its `related_pair`, where there is one."""
    by_person: dict[str, list[TrainingExample]] = {}
    for example in examples:
        by_person.setdefault(example.label, []).append(example)
    related: list[TrainingExample] = []
    for own in by_person.values():
        vectors = embedder.embed(["\n".join(turn.text for turn in example.pair.context[-2:]) for example in own])
        similarity = vectors @ vectors.T
        for place, example in enumerate(own):
            others = [i for i, other in enumerate(own) if other.pair.conversation_id != example.pair.conversation_id]
            best = max(others, key=lambda i: float(similarity[place][i]), default=None)
            related.append(TrainingExample(example.label, example.pair, None if best is None else own[best].pair))
    return related


def _outside(pairs: Sequence[Pair], conversations: Collection[str]) -> list[Pair]:
    return [pair for pair in pairs if pair.conversation_id not in conversations]


def _check_held_out(logs: Mapping[str, ChatLog], names: Sequence[str]) -> None:
    """Raise LogError if a person to hold out speaks in none of the logs."""
    for name in names:
        if not any(name in log.turn_counts() for log in logs.values()):
            raise LogError(f'--hold-out: "{name}" does not speak in {", ".join(logs)}; name a speaker of a log')


def _people(log: ChatLog, config: SplitConfig) -> tuple[dict[str, Split], set[str]]:
    """Return the splits of the selected people, most turns first after the named ones, and the names of the held-out ones."""
    named = [speaker for speaker in dict.fromkeys(config.held_out) if speaker in log.turn_counts()]
    for speaker in named:
        check_speaker(log, speaker)
    unseen = 0 if config.held_out else config.unseen
    wanted = config.people + unseen + len(named)
    splits: dict[str, Split] = {speaker: split_pairs(log, speaker, window=config.window) for speaker in named}
    for speaker in log.turn_counts(config.role) or log.turn_counts():
        if len(splits) == wanted:
            break
        if speaker not in splits:
            try:
                splits[speaker] = split_pairs(log, speaker, window=config.window)
            except LogError:
                continue
    if len(splits) < wanted:
        raise LogError(
            f"{log.source}: only {len(splits)} people have enough turns, and {wanted} are wanted "
            f"({config.people} to train on and {wanted - config.people} held out); lower --people or --unseen"
        )
    ranked = list(splits)
    return splits, {*named, *(ranked[int((i + 0.5) * len(ranked) / unseen)] for i in range(unseen))}


def _examples(label: str, pairs: Sequence[Pair], limit: int) -> list[TrainingExample]:
    """Return at most `limit` examples, spread evenly over the pairs of usable length."""
    usable = [
        pair
        for pair in pairs
        if pair.context and not pair.abandoned and MIN_WORDS <= len(word_tokens(pair.action)) <= MAX_WORDS
    ]
    if len(usable) > limit:
        usable = [usable[len(usable) * place // limit] for place in range(limit)]
    return [TrainingExample(label, pair) for pair in usable]
