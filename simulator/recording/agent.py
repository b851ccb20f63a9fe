"""The agent of a recorded run: what it replied, and how it failed, so that a replay needs no agent either."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from usertwin.memory.models.recording import Recording
from usertwin.personas import AgentError

from ..agents import AgentCall, Failure, Message, run_turn
from ..records import StopReason

_KIND, _LATE = "agent reply", "late end"
#: How the clock ended a conversation: in which phase, after how many messages, the stop reason, and the error.
LateEnd = tuple[str, int, StopReason, str | None]


class RecordedAgent(AgentCall):
    """An agent with a recording, for one conversation.

    Design: while it records, the agent is always called, and a new reply replaces an older one. Most agents keep a state for
    a conversation: with only some of its turns looked up, an agent would go on without having seen the others.

    Args:
        agent: the agent; None in a replay, which needs none.
        recording: the recording.
        spec: names the agent.
        conversation: names the conversation; other conversations of the recording with this agent have other names.
    """

    def __init__(self, agent: AgentCall | None, recording: Recording, spec: str, conversation: str) -> None:
        super().__init__(self._unused, ours=True)
        self._agent, self._recording, self._spec, self._conversation = agent, recording, spec, conversation

    async def turn(self, messages: Sequence[Message], thread_id: str, timeout: float) -> list[Message] | Failure:
        """Return the agent's new messages, or how it failed, as `run_turn`.

        Raises:
            ReplayMiss: it is a replay, and the recording does not hold this turn.
        """
        question = [self._conversation, list(messages)]
        if self._agent is None or self.is_replay:
            stored = self._recording.find(_KIND, self._spec, question)
            if stored is None:
                raise self._recording.miss(_KIND, self._spec, question)
            if "replies" not in stored:
                return Failure(stored["reason"], stored["error"], tuple(stored["messages"]))
            self._states[thread_id] = stored["state"]
            return stored["replies"]
        result = await run_turn(self._agent, messages, thread_id, timeout)
        self._states[thread_id] = state = self._agent.state_so_far(thread_id)
        if isinstance(result, Failure):
            answer = {"reason": result.reason, "error": result.error, "messages": result.messages}
        else:
            answer = {"replies": result, "state": state}
        self._recording.replace(_KIND, self._spec, question, answer)
        return result

    @property
    def is_replay(self) -> bool:
        """Whether the agent is never called."""
        return self._agent is None or self._recording.is_replay

    def keep_late_end(self, end: LateEnd | None) -> None:
        """Record how the clock ended the conversation; None if it did not."""
        self._recording.replace(_LATE, self._spec, self._conversation, end)

    def late_end(self) -> LateEnd | None:
        """Return how the clock ended the recorded conversation; None if it did not."""
        stored = self._recording.stored(_LATE, self._spec, self._conversation)
        return None if stored is None else (stored[0], stored[1], stored[2], stored[3])

    def state_of(self, thread_id: str) -> Any:
        """See `AgentCall.state_of`; the agent forgets the conversation, too."""
        if self._agent is not None and not self._recording.is_replay:
            self._agent.state_of(thread_id)
        return super().state_of(thread_id)

    async def __call__(self, messages: Sequence[Message], thread_id: str) -> list[Message]:
        """Return the agent's new messages, without a time limit: one is recorded only by `run_recorded_turn`."""
        result = await self.turn(messages, thread_id, float("inf"))
        if isinstance(result, Failure):
            raise AgentError(result.error)
        return result

    def in_own_loop(self) -> AgentCall:
        """See `AgentCall.in_own_loop`."""
        agent = None if self._agent is None else self._agent.in_own_loop()
        return RecordedAgent(agent, self._recording, self._spec, self._conversation)

    async def begin(self) -> None:
        """See `AgentCall.begin`; a replay begins nothing."""
        if self._agent is not None and not self._recording.is_replay:
            await self._agent.begin()

    def close(self) -> None:
        """See `AgentCall.close`."""
        if self._agent is not None:
            self._agent.close()

    async def _unused(self, messages: list[Message], thread_id: str) -> Any:
        return await self(messages, thread_id)


def recorded_agent(agent: AgentCall | None, recording: Recording, spec: str, *, conversation: str) -> RecordedAgent:
    """Return an agent whose turns in one conversation are recorded or replayed; the arguments are those of the class."""
    return RecordedAgent(agent, recording, spec, conversation)


async def run_recorded_turn(
    call: AgentCall, messages: Sequence[Message], thread_id: str, timeout: float
) -> list[Message] | Failure:
    """Return what `run_turn` returns, from the recording of an agent that has one.

    Raises:
        ReplayMiss: it is a replay, and the recording does not hold this turn.
    """
    if isinstance(call, RecordedAgent):
        return await call.turn(messages, thread_id, timeout)
    return await run_turn(call, messages, thread_id, timeout)
