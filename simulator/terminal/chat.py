"""`chat`: a chat with a twin on a console, without a record on disk."""

from __future__ import annotations

from rich.console import Console

from ..agents import Message
from ..user import SimulatedUser
from .keyboard import Keyboard
from .screen import Screen
from .session import Session
from .talk import ChatTalk


def chat(user: SimulatedUser, console: Console, *, goal: str = "", seed: int = 0, role: str = "the agent") -> list[Message]:
    """Chat with a twin, which wants the goal, and return the messages. `role` is what the person at the keyboard is called."""
    screen = Screen(console)
    session = Session(kind="chat", twin=user.name, goal=goal, seed=seed)
    ChatTalk(screen, Keyboard(screen), session, user, role=role).run()
    return session.messages
