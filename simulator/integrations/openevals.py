"""A twin as `user=` of openevals' `run_multiturn_simulation` and `run_multiturn_simulation_async`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack
from uuid import uuid4

from usertwin.memory.event_loop import run_sync

from ..user import SimulatedUser
from .twin_user import TwinOptions, TwinTalk, TwinUser

_WAY_OUT = "give the simulation stopping_condition=user.stop, or user.astop in async code"


class OpenEvalsUser(TwinUser):
    """A twin for openevals, which calls its methods with the trajectory.

    Give `turn` as `user` and `stop` as `stopping_condition`; in async code `aturn` and `astop`.
    """

    def __init__(self, twin: str | SimulatedUser, **options: Unpack[TwinOptions]) -> None:
        super().__init__(twin, **options)
        self._talks = dict[str, TwinTalk]()

    async def aturn(self, trajectory: Sequence[Any], *, thread_id: str = "", turn_counter: int = 0, **_: Any) -> dict[str, str]:
        """Return the user's next message. UsageError if the twin has left, which `astop` tells before."""
        identity = uuid4().hex
        talk = self._talk(trajectory, identity)
        turn = await talk.turn(trajectory, _WAY_OUT)
        return {"role": "user", "content": turn.text, "id": identity}

    async def astop(self, trajectory: Sequence[Any], **_: Any) -> bool:
        """Return whether the conversation is over: the twin has left or leaves now, or the scenario is at its end."""
        return await self._talk(trajectory, "").stops(trajectory) is not None

    def turn(self, trajectory: Sequence[Any], **facts: Any) -> dict[str, str]:
        """Return the user's next message; the synchronous form of `aturn`."""
        return run_sync(self.aturn(trajectory, **facts))

    def stop(self, trajectory: Sequence[Any], **facts: Any) -> bool:
        """Return whether the conversation is over; the synchronous form of `astop`."""
        return run_sync(self.astop(trajectory, **facts))

    def _talk(self, trajectory: Sequence[Any], first: str) -> TwinTalk:
        """Return the conversation of a trajectory, which is known by the id of its first message."""
        identity = trajectory[0]["id"] if trajectory else first
        return self._talks.setdefault(identity, TwinTalk(self))


def twin_user(twin: str | SimulatedUser, **options: Unpack[TwinOptions]) -> OpenEvalsUser:
    """Return a twin for openevals; the arguments are those of `TwinUser`."""
    return OpenEvalsUser(twin, **options)
