"""What a hostile agent is, and what its conversations must come to."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

from usertwin.simulator import StopReason

#: Seconds that agents which hang may take, and that the others may take.
SHORT, LONG = 0.1, 20.0
#: Seconds that agents block which would otherwise never return.
BLOCKED = 1.5


@dataclass(frozen=True, slots=True)
class Hostile:
    """An agent, and the stop reason that its conversations must have.

    Attributes:
        timeout: seconds that it may take for a reply.
        in_caller: whether to run it with `asimulate`, in the caller's event loop.
        own_process: whether to run it in a process of its own.
        says: a part of the error.
    """

    name: str
    agent: Any
    reason: StopReason = "agent_error"
    _: KW_ONLY
    timeout: float = LONG
    in_caller: bool = False
    own_process: bool = False
    says: str = ""


def good(messages: list[dict[str, Any]]) -> str:
    """Return a reply: the agent that behaves well."""
    return "Which one do you mean?"


class OwnError(BaseException):
    """An exception that is no `Exception`."""
