"""Pairs of replies, what a judge said about them, and the files of JSON lines in which that is kept.

The one design choice: a line is kept the moment there is something to keep, so a file may end within a line; whoever reads it
leaves that line out, and whoever appends takes it off first.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

from usertwin.memory.jsonl import read_lines
from usertwin.memory.text.transcript import flat

#: What a pair is asked for: a contrast of two arms, or to see whether the judge says what must come out.
QuestionKind = Literal["contrast", "identical", "real", "same_arm", "another_person"]
Label = Literal["1", "2", "tie"]
Closer = Literal["a", "b", "tie"]
LABELS: tuple[Label, ...] = get_args(Label)
#: Latest turns that whoever judges is shown, and characters of each.
CONTEXT_TURNS, _TURN_CHARACTERS = 6, 240

Place: TypeAlias = tuple[QuestionKind, str, str, str, str, int, int]


@dataclass(frozen=True, slots=True)
class Question:
    """Two replies at one moment: which is closer to the real turn?

    Attributes:
        kind: "contrast", or the name of a pair of which it is known what must come out.
        a: the arm that wrote the one, or what else it is.
        b: likewise the other.
        person: whose turn, as `MeasuredTurn` has it; so are the next four.
        conversation_id: where it is from.
        position: which turn of it.
        context: the latest turns before it, (who, text).
        action: what the person really said.
        sample: which sample of each arm.
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
    def place(self) -> Place:
        """Where it stands: kind, arms, turn and sample."""
        return (self.kind, self.a, self.b, self.person, self.conversation_id, self.position, self.sample)

    @property
    def pair(self) -> str:
        """What tells this pair from others by its content, whoever judges it: 16 hexadecimal digits."""
        return digest([self.context, self.action, self.texts])

    @property
    def name(self) -> str:
        """How the person is called where turns are shown: the speaker's name without the corpus."""
        return flat(self.person.rpartition("/")[2])[:24]

    def context_lines(self) -> list[str]:
        """The latest turns before, a line each, as whoever judges is shown them."""
        return [f"{flat(who)[:24]}: {_tail(flat(text))}" for who, text in self.context[-CONTEXT_TURNS:]]


@dataclass(frozen=True, slots=True)
class JudgeVerdict:
    """What a judge said about a pair.

    Attributes:
        key: of the content: the judge, the prompt, the seed and the pair.
        pair: as `Question` has it; so are the next seven.
        kind: see there.
        a: see there.
        b: see there.
        person: see there.
        conversation_id: see there.
        position: see there.
        sample: see there.
        judge: the judge's name.
        identity: what tells its weights from others of that name.
        prompt: the version of the prompt.
        seed: of the first try.
        said: the label it gave with a's reply shown first, and with b's; None for what could not be read, however often.
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
    said: tuple[Label | None, Label | None]

    @property
    def place(self) -> Place:
        """Where it stands: kind, arms, turn and sample."""
        return (self.kind, self.a, self.b, self.person, self.conversation_id, self.position, self.sample)

    @property
    def orders(self) -> tuple[Closer | None, Closer | None]:
        """Which reply each order says is closer."""
        first, second = self.said
        return _meant(first, "ab"), _meant(second, "ba")

    @property
    def closer(self) -> Closer | None:
        """Which reply is closer: a tie if the orders disagree, None if one of them could not be read."""
        first, second = self.orders
        if first is None or second is None:
            return None
        return first if first == second else "tie"

    @property
    def consistent(self) -> bool | None:
        """Whether both orders say the same; None if one of them could not be read."""
        first, second = self.orders
        return None if first is None or second is None else first == second

    @property
    def score(self) -> float | None:
        """1 if a's reply is closer, 0 if b's is, 0.5 for a tie; None if that could not be read."""
        closer = self.closer
        return None if closer is None else {"a": 1.0, "b": 0.0, "tie": 0.5}[closer]

    @property
    def where(self) -> tuple[str, str]:
        """Person and conversation, for intervals."""
        return self.person, self.conversation_id

    def to_json(self) -> dict[str, Any]:
        """As the object of a line of verdicts.jsonl."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> JudgeVerdict:
        """Back from `to_json`. KeyError, TypeError or ValueError if it is something else."""
        first, second = data["said"]
        if not {first, second} <= {*LABELS, None}:
            raise ValueError(f"{data['said']} are no two labels")
        rest: dict[str, Any] = {name: value for name, value in data.items() if name != "said"}
        return cls(**rest, said=(first, second))


def read_verdicts(path: Path) -> list[JudgeVerdict]:
    """Every verdict in a file, none if it is not there; a last line that was cut short by a kill is left out.

    Raises:
        UsageError: a line is no verdict; the message names it.
    """
    return read_lines(path, JudgeVerdict.from_json, "verdict", "delete that line, and try again")


def digest(content: object) -> str:
    """What tells JSON values from others: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()[:16]


def _meant(label: Label | None, order: str) -> Closer | None:
    return label if label is None or label == "tie" else cast("Closer", order[int(label) - 1])


def _tail(text: str) -> str:
    return text if len(text) <= _TURN_CHARACTERS else "…" + text[-_TURN_CHARACTERS:]
