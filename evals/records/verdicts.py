"""Pairs of replies to compare, the verdicts of a judge, and the JSON lines that hold them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

from usertwin.evals.arm_names import with_current_arms
from usertwin.memory.jsonl import read_lines
from usertwin.memory.text.transcript import single_line
from usertwin.personas.reading import STRICT, as_type

#: A contrast of two arms, or a sanity check: a pair whose verdict is known.
QuestionKind = Literal["contrast", "identical", "real", "same_arm", "another_person"]
Label = Literal["1", "2", "tie"]
Closer = Literal["a", "b", "tie"]
LABELS: tuple[Label, ...] = get_args(Label)
#: Turns of context shown to a judge, the latest, and characters of each.
CONTEXT_TURNS, _TURN_CHARACTERS = 6, 240


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two replies to the same turn: its person, conversation and position as in `MeasuredTurn`.

    `a` and `b` are the arms of the replies, or other sources; `sample` is the index of each reply among those of its arm.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    a: str
    b: str
    person: str
    conversation_id: str
    position: int
    sample: int

    def to_json(self) -> dict[str, Any]:
        """Return the object of a line of a file."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question(Comparison):
    """Two replies to the same turns: which is closer to the real turn?

    Attributes:
        kind: "contrast", or a sanity check.
        context: the latest turns before it, (speaker, text).
        action: the person's real turn.
        texts: the two replies, a's and b's.
    """

    kind: QuestionKind
    context: tuple[tuple[str, str], ...]
    action: str
    texts: tuple[str, str]

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
class JudgeVerdict(Comparison):
    """The verdict of a judge on a `Question` of the same kind and pair.

    Attributes:
        key: a hash of the judge, the prompt, the seed and the pair.
        judge: the name of the judge.
        identity: separates weights of the same name.
        prompt: the version of the prompt.
        seed: of the first attempt.
        labels: the label with a's reply shown first, and with b's; None for an unreadable answer after all attempts.
    """

    key: str
    pair: str
    kind: QuestionKind
    judge: str
    identity: str
    prompt: str
    seed: int
    labels: tuple[Label | None, Label | None]

    @property
    def orders(self) -> tuple[Closer | None, Closer | None]:
        """The closer reply according to each order."""
        first, second = self.labels
        return closer_of(first, "ab"), closer_of(second, "ba")

    @property
    def closer(self) -> Closer | None:
        """The closer reply: a tie if the orders disagree, None if an answer is unreadable."""
        return None if self.consistent is None else self.orders[0] if self.consistent else "tie"

    @property
    def consistent(self) -> bool | None:
        """Whether both orders agree; None if an answer is unreadable."""
        first, second = self.orders
        return None if first is None or second is None else first == second

    @property
    def score(self) -> float | None:
        """1 if a's reply is closer, 0 if b's is, 0.5 for a tie; None if an answer is unreadable."""
        return None if self.closer is None else {"a": 1.0, "b": 0.0, "tie": 0.5}[self.closer]

    @classmethod
    def from_json(cls, raw: Any) -> JudgeVerdict:
        """Read the object of `to_json`, or that of an earlier version. ValueError for any other value."""
        fields = with_current_sides(raw)
        if "said" in fields:  # the key of earlier versions
            fields["labels"] = fields.pop("said")
        return as_type(cls, fields)


def read_verdicts(path: Path) -> list[JudgeVerdict]:
    """Return the verdicts in a file, none if it is missing; see `read_lines` for an incomplete or broken line.

    Of two verdicts on the same question the later one counts: an answer that could not be read was asked for again.
    """
    lines = read_lines(path, JudgeVerdict.from_json, "verdict", "delete that line, and try again")
    return list({(verdict.key, *slot(verdict)): verdict for verdict in lines}.values())


def closer_of(label: str | None, order: str) -> Closer | None:
    """Return the closer reply by a label and the order in which the replies were shown: "ab" or "ba"."""
    return cast("Closer | None", label if label is None or label == "tie" else order[int(label) - 1])


def with_current_sides(raw: Any) -> dict[str, Any]:
    """Return the fields of a `Comparison` with earlier names of arms replaced. ValueError if the value is no object."""
    fields = dict(as_type(dict[str, Any], raw))
    return fields | {side: with_current_arms(fields[side]) for side in ("a", "b") if side in fields}


def slot(item: Question | JudgeVerdict) -> tuple[QuestionKind, str, str, str, str, int, int]:
    """Return the kind, arms, turn and sample of a question or its verdict: unique within a run."""
    return item.kind, item.a, item.b, item.person, item.conversation_id, item.position, item.sample


def digest(content: object) -> str:
    """Return a hash of a JSON value: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()[:16]


def _tail(text: str) -> str:
    return text if len(text) <= _TURN_CHARACTERS else "…" + text[-_TURN_CHARACTERS:]
