"""A twin as the user-role agent of a LangWatch scenario (the package langwatch-scenario, imported as `scenario`)."""

from __future__ import annotations

from typing import Any, Unpack

from usertwin.personas import UsageError

from ..user import SimulatedUser
from .twin_user import TwinOptions, TwinTalk, TwinUser, third_party


def twin_user(twin: str | SimulatedUser, **options: Unpack[TwinOptions]) -> Any:
    """Return an `AgentAdapter` in the role of the user; the arguments are those of `TwinUser`.

    Without a goal of its own, the twin wants what the scenario's description says. When the twin has left, the judge gives
    its final verdict. LangWatch raises a failure of the twin as RuntimeError, with our error as its cause.

    Raises:
        UsageError: langwatch-scenario is not installed.
    """
    scenario = third_party("scenario", "langwatch-scenario>=1.6")
    user = TwinUser(twin, **options)
    talks = dict[str, TwinTalk]()

    class Twin(scenario.AgentAdapter):
        """The twin in the role of the user."""

        role = scenario.AgentRole.USER
        name = f"twin:{user.name}"
        twin = user

        async def call(self, input: Any) -> Any:
            """Return the user's messages, or the judge's verdict if the user has left."""
            state = input.scenario_state
            talk = talks.setdefault(input.thread_id, TwinTalk(user, goal=state.description))
            if await talk.stops(input.messages) is not None:
                return await _verdict(scenario, state, user.name)
            turn = await talk.turn(input.messages, "end the script there")
            return [{"role": "user", "content": text} for text in turn.texts]

    return Twin()


async def _verdict(scenario: Any, state: Any, name: str) -> Any:
    """Return the judge's final verdict."""
    try:
        verdict = await scenario.judge()(state)
    except ValueError as error:
        raise UsageError(f"{name} has left the conversation, and there is no judge to end it; add a JudgeAgent") from error
    if verdict is None:
        raise UsageError(f"{name} has left the conversation, and the judge gives no verdict; use a judge that does")
    return verdict
