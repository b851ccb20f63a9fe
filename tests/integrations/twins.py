"""Scripted twins for the tests of other tools: one that talks, one that leaves, one that leaves silently, one that fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from conftest import FunctionChatModel, function_model
from usertwin.memory import ChatModel, Settings
from usertwin.personas import ModelError
from usertwin.simulator import SimulatedUser

GOAL = "You want the weather for Oslo."
BYE = "no thats all thank you bye"


def talking_twin(ann: str, *, leaves_after: int | None = None) -> tuple[SimulatedUser, FunctionChatModel]:
    """Return a twin whose turns name their seed, and its model; it leaves with its turn of this number, counted from 0."""
    turns: dict[int, int] = {}

    def reply(prompt: str, seed: int) -> str:
        number = turns.setdefault(seed, len(turns))
        return BYE if number == leaves_after else f"the weather in Oslo please, request {seed}"

    model, chat = function_model(reply)
    user = _open(ann, model)
    user.last_turn = type("Leaves", (), {"leaves": lambda self, pair: pair.action == BYE})()  # pyright: ignore
    return user, chat


def silent_twin(ann: str, *, after: int) -> SimulatedUser:
    """Return a twin that leaves without a word after this number of turns."""
    user, _ = talking_twin(ann)
    count = lambda self, _, query: sum(turn.speaker == query.speaker for turn in query.context) >= after  # noqa: E731
    user.abandonment = type("Leaves", (), {"leaves": count})()  # pyright: ignore
    return user


def failing_twin(ann: str, *, after: int = 0) -> SimulatedUser:
    """Return a twin whose model stops answering after this number of turns."""
    replies = iter(range(after))

    def reply(prompt: str, seed: int) -> str:
        if next(replies, None) is None:
            raise ModelError("the model does not answer; start it")
        return f"the weather please, request {seed}"

    return _open(ann, function_model(reply)[0])


def _open(ann: str, model: ChatModel) -> SimulatedUser:
    user = SimulatedUser.load(ann, model=model, settings=Settings(reasons=False, traces="none"))
    user.abandonment = None
    return user


def texts(messages: Sequence[Any], role: str) -> list[str]:
    """Return what a side said in OpenAI-style messages or objects with the same attributes."""
    rows = [message if isinstance(message, dict) else vars(message) for message in messages]
    return [row["content"] for row in rows if row["role"] == role]
