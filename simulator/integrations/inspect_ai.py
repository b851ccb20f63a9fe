"""A twin as the user of an agent in an Inspect task: a solver in which the two take turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Unpack

from ..user import SimulatedUser
from .twin_user import TwinOptions, TwinUser, UserTurn, third_party

_REQUIREMENT = "inspect-ai>=0.3.280"
#: The key in the sample's store that holds why the conversation ended, and the reasoning of each turn.
RECORD = "usertwin"


def twin_conversation(
    twin: str | SimulatedUser, agent: Any = None, *, max_turns: int = 8, **options: Unpack[TwinOptions]
) -> Any:  # fmt: skip
    """Return a solver in which a twin and an agent take turns until the twin leaves, the scenario or the turns end.

    Without a goal of its own, the twin wants what the sample says: the "goal" in its metadata, after which its input is the
    beginning of the conversation, or else an input that is a text, which the agent then never sees. Each epoch has a seed of
    its own. A failure of the twin is an error of the sample, which gets no score.

    Args:
        twin: a learned twin, or its name.
        agent: the agent under test, as an Inspect agent or solver; by default the task's model.
        max_turns: the maximum number of turns of the twin.
        **options: as of `TwinUser`.

    Raises:
        UsageError: inspect-ai is not installed.
    """
    solvers = third_party("inspect_ai.solver", _REQUIREMENT)
    models = third_party("inspect_ai.model", _REQUIREMENT)
    user = TwinUser(twin, **options)

    @solvers.solver(name="twin_conversation")
    def conversation() -> Any:
        async def solve(state: Any, generate: Any) -> Any:
            act = generate if agent is None else partial(_call, _as_solver(agent), generate)
            goal = _goal(state, user)
            seed, turns = user.seed + state.epoch - 1, list[UserTurn]()
            if any(message["role"] == "user" for message in _spoken(state.messages)[-1:]):
                state = await act(state)
            while len(turns) < max_turns and not state.completed:
                turns.append(await user.aplay(_spoken(state.messages), goal=goal, seed=seed))
                state.messages += [models.ChatMessageUser(content=text) for text in turns[-1].texts]
                state.store.set(RECORD, _record(turns))
                if turns[-1].stop is not None:
                    break
                state = await act(state)
            return state

        return solve

    return conversation()


async def _call(solver: Any, generate: Any, state: Any) -> Any:
    return await solver(state, generate)


def _as_solver(agent: Any) -> Any:
    """Return an Inspect agent as a solver; a solver stays as it is."""
    agents = third_party("inspect_ai.agent", _REQUIREMENT)
    return agents.as_solver(agent) if agents.is_agent(agent) else agent


def _goal(state: Any, user: TwinUser) -> str:
    """Return what the sample says that the twin wants; an input that is the goal leaves the messages."""
    goal = str(state.metadata.get("goal") or "")
    if not isinstance(state.input, str) or (state.input.strip() and (goal or user.scenario.goal)):
        return goal
    state.messages = [message for message in state.messages if not (message.role == "user" and message.text == state.input)]
    return goal or state.input


def _spoken(messages: Sequence[Any]) -> list[dict[str, str]]:
    """Return what both sides said."""
    return [
        {"role": message.role, "content": message.text}
        for message in messages
        if message.role in {"user", "assistant"} and message.text.strip()
    ]


def _record(turns: Sequence[UserTurn]) -> Mapping[str, Any]:
    """Return why the conversation ended so far, and the reasoning behind each turn."""
    return {"stop": turns[-1].stop, "reasoning": [turn.answer.reasoning for turn in turns if turn.answer is not None]}
