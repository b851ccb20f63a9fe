"""Roles of messages: who said a turn, and who could see it, under every name that chat formats have used.

Roles are compared without case, spaces and punctuation, so "Tool-Result" is "tool_result".
"""

from __future__ import annotations

import re
from functools import lru_cache

#: Roles whose turns only the person saw (a task, an instruction). They become the goal and are never sent to the agent.
_PRIVATE = frozenset(
    {"instruction", "instructions", "system", "developer", "platform", "root", "guideline", "systemprompt", "systemmessage",
     "systeminstruction", "systeminstructions", "latestreminder", "task"}
)  # fmt: skip
#: Roles of what neither side said aloud: tools and their results, retrieved documents, and a model's own reasoning.
_UNSEEN = frozenset(
    {"tool", "tools", "toolcall", "toolcalls", "toolcode", "tooluse", "toolinput", "tooloutput", "toolresult", "toolresults",
     "toolresponse", "toolresponses", "function", "functioncall", "functioncalls", "functioncalloutput", "functionresponse",
     "functionresult", "functionoutput", "ipython", "observation", "environment", "codeinterpreter", "codeoutput", "document",
     "documents", "context", "retrieval", "reasoning", "thinking", "thought", "thoughts", "analysis", "critic", "discriminator",
     "remove", "toolmessagechunk", "functionmessagechunk"}
)  # fmt: skip
#: Roles of the person who uses an agent, which a twin plays.
_USER = frozenset(
    {"user", "human", "customer", "client", "enduser", "consumer", "visitor", "guest", "caller", "prompter", "person", "me",
     "humanmessagechunk", "usermessage", "humanmessage"}
)  # fmt: skip


@lru_cache(maxsize=512)
def _plain(role: str) -> str:
    return re.sub(r"[\W_]+", "", role.casefold())


def is_private(role: object) -> bool:
    """Return whether only the person saw the turns of a role (a task, an instruction)."""
    return isinstance(role, str) and _plain(role) in _PRIVATE


def is_unseen(role: object) -> bool:
    """Return whether turns of a role are no speech: calls and results of tools, documents, a model's reasoning."""
    return isinstance(role, str) and _plain(role) in _UNSEEN


def is_user(role: object) -> bool:
    """Return whether a role is that of the person who uses an agent."""
    return isinstance(role, str) and _plain(role) in _USER
