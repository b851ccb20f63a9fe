"""A scripted twin of Ann, and an agent that records its messages, for tests of conversations."""

from __future__ import annotations

from typing import Any

from conftest import scripted
from usertwin.simulator import SimulatedUser

#: The script of the twin: reasoning and turn, alternating.
TALK = ("wants the weather", "hi, the weather in Oslo please", "is in a hurry", "tomorrow please", "is done", "and Rome?")


def scripted_twin(ann: str, *replies: str) -> SimulatedUser:
    """Return the twin with these scripted replies, or with `TALK`."""
    return SimulatedUser.load(ann, model=scripted(*(replies or TALK)))


class Desk:
    """An agent that repeats its replies and records the messages of each call."""

    def __init__(self, *replies: str) -> None:
        self.replies, self.calls = replies or ("For which day?",), list[list[dict[str, Any]]]()

    def __call__(self, messages: list[dict[str, Any]]) -> str:
        self.calls.append(messages)
        return self.replies[(len(self.calls) - 1) % len(self.replies)]
