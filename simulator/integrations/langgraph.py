"""A twin as a node of somebody's LangGraph graph, whose state has a list of messages.

The twin itself is a graph, too: `SimulatedUser.graph` can be added as a subgraph, with "goal", "seed" and "done" in the state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

from ..state import as_node
from ..user import SimulatedUser
from .twin_user import TwinOptions, TwinUser, spoken_messages

if TYPE_CHECKING:
    from langchain_core.runnables import Runnable, RunnableConfig

#: The key in the `additional_kwargs` of the message with which the user leaves; its value says why.
STOP = "usertwin_stop"


def twin_node(
    twin: str | SimulatedUser, *, messages_key: str = "messages", **options: Unpack[TwinOptions]
) -> Runnable[Any, Any]:  # fmt: skip
    """Return a node that adds the twin's next turn to the state's messages, as HumanMessage; `twin_left` tells if it leaves.

    If the user has the last word already, it adds nothing, and the agent is next. A run's config may hold a goal and a seed:
    `{"configurable": {"twin_goal": ..., "twin_seed": ...}}`. The options are those of `TwinUser`.
    """
    user = TwinUser(twin, **options)

    async def step(state: Any, config: RunnableConfig) -> dict[str, Any]:
        from langchain_core.messages import HumanMessage

        messages = _messages(state, messages_key)
        spoken = spoken_messages(messages)
        if spoken and spoken[-1]["role"] == "user":
            return {messages_key: []}
        chosen: Mapping[str, Any] = config.get("configurable") or {}
        turn = await user.aplay(messages, goal=chosen.get("twin_goal", ""), seed=chosen.get("twin_seed"))
        update = [HumanMessage(text) for text in turn.texts]
        if update and turn.stop is not None:
            update[-1].additional_kwargs[STOP] = turn.stop
        return {messages_key: update}

    return as_node(f"twin:{user.name}", step)


def twin_left(state: Any, messages_key: str = "messages") -> bool:
    """Return whether the user has left, with its last turn or without a word, for the edges after a twin's node."""
    messages = _messages(state, messages_key)
    if not any(message["role"] == "user" for message in spoken_messages(messages[-1:])):
        return True
    return STOP in getattr(messages[-1], "additional_kwargs", {})


def _messages(state: Any, key: str) -> list[Any]:
    """Return the messages in a state that is a mapping or an object."""
    return list(state.get(key) or []) if isinstance(state, Mapping) else list(getattr(state, key))
