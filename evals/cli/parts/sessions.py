"""The options of conversations in the terminal, and the sessions in which these are kept."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

    from usertwin.simulator.terminal.keyboard import Keyboard
    from usertwin.simulator.terminal.screen import Screen
    from usertwin.simulator.terminal.session import Kind, Session
    from usertwin.simulator.terminal.store import SessionStore
    from usertwin.simulator.terminal.talk import Keep, Talk

_Command = TypeVar("_Command", bound=Callable[..., Any])
#: Characters of the beginning of a session in a list.
_BEGINNING = 40


@dataclass(frozen=True, slots=True)
class OpenedSession:
    """A session, new or resumed, and what stores it after each exchange; None if it is not to be kept."""

    session: Session
    keep: Keep | None


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """The options that `session_options` adds.

    Attributes:
        resume: the id of a session to continue, "" for the latest one; None to begin one.
        lists: whether to list the sessions only.
        keep: whether to keep a record.
        plain: whether the output is for a screen reader.
    """

    resume: str | None
    lists: bool
    keep: bool
    plain: bool

    def screen(self, console: Console) -> tuple[Screen, Keyboard]:
        """Return the screen and the keyboard of a conversation."""
        from usertwin.simulator.terminal.keyboard import Keyboard
        from usertwin.simulator.terminal.screen import Screen

        screen = Screen(console, plain=self.plain)
        return screen, Keyboard(screen)

    @contextmanager
    def opened(
        self, kind: Kind, twin: str | None, home: Path | None, *, goal: str, seed: int, agent: str = ""
    ) -> Generator[OpenedSession]:
        """A session of a twin, or of the user without one, with its file open while the block runs."""
        from usertwin.simulator.terminal.session import Session

        store = _store(twin, home)
        try:
            if self.resume is None:
                session = Session(kind=kind, twin=twin or "", agent=agent, goal=goal, seed=seed)
            else:
                session = store.load(self.resume, kind)
                session.goal, session.agent = goal or session.goal, agent
            yield OpenedSession(session, store.save if self.keep else None)
        finally:
            store.close()

    def only_lists(self, console: Console, kind: Kind, twin: str | None, home: Path | None) -> bool:
        """Return whether a list of the sessions is all that is asked for, and print it."""
        if self.lists:
            store = _store(twin, home)
            try:
                sessions = [session for session in store.sessions() if session.kind == kind]
            finally:
                store.close()
            for session in sessions or ():
                beginning = next((str(m["content"]) for m in session.messages if m.get("content")), "")
                text = " ".join(beginning.split())
                text = text if len(text) <= _BEGINNING else text[: _BEGINNING - 1] + "…"
                line = f"{session.id}  {session.started_at[:16]}  {len(session.turns):>3} exchanges  {text}"
                console.print(line, markup=False, soft_wrap=True)
            if not sessions:
                console.print("there are no sessions yet", style="dim")
        return self.lists

    def print_end(self, console: Console, talk: Talk, command: str) -> None:
        """Print how to resume a session that is kept."""
        if talk.is_kept:
            line = f"{command} --resume {talk.session.id}"
            console.print(f"usertwin: {line}" if self.plain else f"to go on: {line}", style="dim", markup=False, soft_wrap=True)


_OPTIONS = (
    click.option(
        "--resume", is_flag=False, flag_value="", metavar="[ID]", help="Continue a session: the latest one, or the one named."
    ),
    click.option("--sessions", "lists", is_flag=True, help="List the sessions, and stop."),
    click.option("--no-keep", is_flag=True, help="Keep no record of the session."),
    click.option("--plain", is_flag=True, help="Print lines only, each with its speaker, as for a screen reader."),
)  # fmt: skip


def session_options(command: _Command) -> _Command:
    """Add the options of a session to a command, which gets them as the argument `session`."""

    @wraps(command)
    def with_session(*, resume: str | None, lists: bool, no_keep: bool, plain: bool, **arguments: Any) -> Any:
        return command(**arguments, session=SessionOptions(resume, lists, not no_keep, plain))

    for option in reversed(_OPTIONS):
        option(with_session)
    return with_session  # pyright: ignore[reportReturnType] - click calls it by name


def _store(twin: str | None, home: Path | None) -> SessionStore:
    """Return the sessions of a twin; those of the user without one."""
    from usertwin.memory import TwinRecord, existing_twin
    from usertwin.memory.twin.record import data_folder
    from usertwin.simulator.terminal.store import SessionStore

    if twin is None:
        return SessionStore(data_folder())
    folder = existing_twin(twin, home)
    return SessionStore(folder, TwinRecord.load(folder).recipe.speaker)
