"""Pairs of replies to compare, the verdicts of a judge, and the JSON lines that hold them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

from usertwin.evals.arm_names import with_current_arms
from usertwin.memory.jsonl import read_lines
from usertwin.memory.text.transcript import single_line

#: A contrast of two arms, or a sanity check: a pair whose verdict is known.
QuestionKind = Literal["contrast", "identical", "real", "same_arm", "another_person"]
Label = Literal["1", "2", "tie"]
Closer = Literal["a", "b", "tie"]
LABELS: tuple[Label, ...] = get_args(Label)
#: Turns of context shown to a judge, the latest, and characters of each.
CONTEXT_TURNS, _TURN_CHARACTERS = 6, 240

Slot: TypeAlias = tuple[QuestionKind, str, str, str, str, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Two replies to the same turns: which is closer to the real turn?

    Attributes:
        kind: "contrast", or a sanity check.
        a: the arm of the first reply, or another source of it.
        b: that of the second.
        person: the person of the turn, as in `MeasuredTurn`.
        conversation_id: its conversation.
        position: its index in the conversation.
        context: the latest turns before it, (speaker, text).
        action: the person's real turn.
        sample: the index of the sample of each arm.
        texts: the two replies, a's and b's.
    """

    kind: QuestionKind
    a: str
    b: str
    person: str
    conversation_id: str
    position: int
    context: tuple[tuple[str, str], ...]
    action: str
    sample: int
    texts: tuple[str, str]

    @property
    def slot(self) -> Slot:
        """Kind, arms, turn and sample: unique within a run."""
        return (self.kind, self.a, self.b, self.person, self.conversation_id, self.position, self.sample)

    @property
    def pair(self) -> str:
        """A hash of the content, equal for every judge: 16 hexadecimal digits."""
        return digest([self.context, self.action, self.texts])

    @property
    def name(self) -> str:
        """The speaker's name without the corpus, for display."""
        return single_line(self.person.rpartition("/")[2])[:24]

    def context_lines(self) -> list[str]:
        """Return the latest turns before the action, one line each, as a judge is shown them."""
        return [f"{single_line(speaker)[:24]}: {_tail(single_line(text))}" for speaker, text in self.context[-CONTEXT_TURNS:]]


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeVerdict:
    """The verdict of a judge on a pair.

    Attributes:
        key: a hash of the judge, the prompt, the seed and the pair.
        pair: as in `Question`; so are the next seven.
        kind: see there.
        a: see there.
        b: see there.
        person: see there.
        conversation_id: see there.
        position: see there.
        sample: see there.
        judge: the name of the judge.
        identity: separates weights of the same name.
        prompt: the version of the prompt.
        seed: of the first attempt.
        labels: the label with a's reply shown first, and with b's; None for an unreadable answer after all attempts.
    """

    key: str
    pair: str
    kind: QuestionKind
    a: str
    b: str
    person: str
    conversation_id: str
    position: int
    sample: int
    judge: str
    identity: str
    prompt: str
    seed: int
    labels: tuple[Label | None, Label | None]

    @property
    def slot(self) -> Slot:
        """Kind, arms, turn and sample: unique within a run."""
        return (self.kind, self.a, self.b, self.person, self.conversation_id, self.position, self.sample)

    @property
    def orders(self) -> tuple[Closer | None, Closer | None]:
        """The closer reply according to each order."""
        first, second = self.labels
        return _closer_of(first, "ab"), _closer_of(second, "ba")

    @property
    def closer(self) -> Closer | None:
        """The closer reply: a tie if the orders disagree, None if an answer is unreadable."""
        first, second = self.orders
        if first is None or second is None:
            return None
        return first if first == second else "tie"

    @property
    def consistent(self) -> bool | None:
        """Whether both orders agree; None if an answer is unreadable."""
        first, second = self.orders
        return None if first is None or second is None else first == second

    @property
    def score(self) -> float | None:
        """1 if a's reply is closer, 0 if b's is, 0.5 for a tie; None if an answer is unreadable."""
        closer = self.closer
        return None if closer is None else {"a": 1.0, "b": 0.0, "tie": 0.5}[closer]

    def to_json(self) -> dict[str, Any]:
        """Return the object of a line of verdicts.jsonl."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Any) -> JudgeVerdict:
        """Read the object of `to_json`, or that of an earlier version. KeyError, TypeError or ValueError for other input."""
        fields: dict[str, Any] = {**raw, "a": with_current_arms(raw["a"]), "b": with_current_arms(raw["b"])}
        first, second = fields["labels"] if "labels" in fields else fields.pop("said")  # "said" is the key of earlier versions
        if not {first, second} <= {*LABELS, None}:
            raise ValueError(f"labels are {first!r} and {second!r}; each must be one of {', '.join(LABELS)} or null")
        fields["labels"] = (first, second)
        return cls(**fields)


def read_verdicts(path: Path) -> list[JudgeVerdict]:
    """Return every verdict in a file, without an incomplete last line; none if the file is missing.

    Raises:
        UsageError: a line is no verdict; the message names it.
    """
    return read_lines(path, JudgeVerdict.from_json, "verdict", "delete that line, and try again")


def digest(content: object) -> str:
    """Return a hash of a JSON value: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()[:16]


def _closer_of(label: Label | None, order: str) -> Closer | None:
    return label if label is None or label == "tie" else cast("Closer", order[int(label) - 1])


def _tail(text: str) -> str:
    return text if len(text) <= _TURN_CHARACTERS else "…" + text[-_TURN_CHARACTERS:]
