"""A session: a conversation in the terminal as it is kept, and as a chat log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, Self
from uuid import uuid4

from usertwin.memory.twin.record import enclosing_twin
from usertwin.personas import Conversation, Turn, UsageError
from usertwin.personas.files import open_private
from usertwin.personas.reading import STRICT, as_type, reason
from usertwin.personas.secrets import mask

from ..agents import Message
from ..state import Answer

#: The command of a session.
Kind = Literal["chat", "play", "watch"]
#: The speaker of what the person at the keyboard says, and of what the agent says.
PERSON, AGENT = "me", "agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionTurn:
    """A finished exchange.

    Attributes:
        messages: what was said, in order; "user" is the side of the twin.
        answer: the twin's turn; None if the twin said nothing.
        goal: what the twin wanted.
    """

    messages: tuple[Message, ...]
    answer: Answer | None = None
    goal: str = ""


@dataclass(slots=True, kw_only=True)
class Session:
    """A conversation in the terminal.

    Attributes:
        kind: the command.
        twin: the twin's name; "" without one.
        agent: the agent, as it was named; "" if the person is the agent.
        goal: what the twin wants now.
        seed: the seed of the conversation.
        id: names the session.
        thread_id: the id that the agent gets; a new one after anything was taken back.
        started_at: when it began, ISO 8601.
        undone: how often something was taken back; what is said instead is sampled anew.
        turns: the finished exchanges.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    kind: Kind
    twin: str = ""
    agent: str = ""
    goal: str = ""
    seed: int = 0
    id: str = field(default_factory=lambda: uuid4().hex[:8])
    thread_id: str = field(default_factory=lambda: uuid4().hex)
    started_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    undone: int = 0
    turns: list[SessionTurn] = field(default_factory=list[SessionTurn])

    @property
    def messages(self) -> list[Message]:
        """All messages so far."""
        return [dict(message) for turn in self.turns for message in turn.messages]

    @property
    def last_answer(self) -> Answer | None:
        """The twin's last turn; None if it has not spoken."""
        return next((turn.answer for turn in reversed(self.turns) if turn.answer is not None), None)

    @property
    def has_left(self) -> bool:
        """Whether the twin has left with the last turn."""
        answer = self.turns[-1].answer if self.turns else None
        return answer is not None and answer.done

    @property
    def sampling_seed(self) -> int:
        """The seed of the next turn."""
        return self.seed + self.undone

    def undo(self) -> SessionTurn:
        """Take the last exchange back and return it. UsageError if there is none."""
        if not self.turns:
            raise UsageError("nothing was said that could be taken back")
        self.undone += 1
        self.thread_id = uuid4().hex
        return self.turns.pop()

    def to_json(self) -> dict[str, Any]:
        """Return the session as a JSON object."""
        plain = asdict(replace(self, turns=[]))
        return plain | {
            "turns": [
                {
                    "messages": [dict(message) for message in turn.messages],
                    "answer": None if turn.answer is None else turn.answer.to_json(),
                    "goal": turn.goal,
                }
                for turn in self.turns
            ]
        }

    @classmethod
    def from_json(cls, raw: Any, speaker: str) -> Self:
        """Return the session that `to_json` wrote, with a twin of this speaker. ValueError if it is none."""
        values = as_type(dict[str, Any], raw)
        turns = [_turn(row, speaker) for row in as_type(list[dict[str, Any]], values.get("turns"))]
        return replace(as_type(cls, values | {"turns": []}), turns=turns)

    def conversation(self) -> Conversation:
        """Return the session in the interchange format; a goal is a turn that only the person saw."""
        return Conversation(f"{self.kind}-{self.id}", tuple(self._log_turns()), self.started_at)

    def _log_turns(self) -> Iterator[Turn]:
        goal = ""
        for turn in self.turns:
            if turn.goal and turn.goal != goal:
                yield Turn("goal", "instruction", turn.goal)
            goal = turn.goal
            for message in turn.messages:
                if message["role"] in {"user", "assistant"} and message.get("content"):
                    is_user = message["role"] == "user"
                    yield Turn(self._speaker(turn, is_user=is_user), "user" if is_user else "agent", str(message["content"]))

    def _speaker(self, turn: SessionTurn, *, is_user: bool) -> str:
        if is_user:
            return PERSON if turn.answer is None else self.twin
        return PERSON if self.kind == "chat" else AGENT


def _turn(raw: dict[str, Any], speaker: str) -> SessionTurn:
    answer = None if raw.get("answer") is None else Answer.from_json(as_type(dict[str, Any], raw["answer"]), speaker)
    messages = as_type(tuple[Message, ...], raw.get("messages"))
    if not all(isinstance(message.get("role"), str) for message in messages):
        raise ValueError("a message has no role")
    return SessionTurn(messages=messages, answer=answer, goal=as_type(str, raw.get("goal")))


def save_log(session: Session, path: Path) -> None:
    """Write a session as a chat log into a new file.

    Raises:
        UsageError: the file exists, lies in the folder of a twin, or cannot be written; or nothing was said yet.
    """
    path = path.expanduser()
    if not session.turns:
        raise UsageError("nothing was said that could be saved")
    if (twin := enclosing_twin(path.parent)) is not None:
        raise UsageError(f"{path}: lies in the folder of the twin {twin.name}; name another folder")
    line = mask(json.dumps(session.conversation().to_json(), ensure_ascii=False)) + "\n"
    try:
        with open_private(path, "x", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(line)
    except FileExistsError:
        raise UsageError(f"{path}: exists already, and is not overwritten; name another file") from None
    except (OSError, ValueError) as error:
        text = reason(error) if isinstance(error, OSError) else str(error)
        raise UsageError(f"{path}: cannot be written ({text}); name another file") from None
