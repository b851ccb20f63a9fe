"""What a person types, line by line: lines that are pasted together become one message, which is sent only on Enter.

Terminals with bracketed paste hand a pasted block to readline as one entry. On others, lines that are already waiting when one
was read are taken for a paste: they are collected, and an empty line sends them. Input that is no terminal has no pastes.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Callable, Generator
from typing import Protocol

from .screen import Screen


class Reader(Protocol):
    """What reads the entries of a person."""

    def read(self, prompt: str) -> str:
        """Return an entry, of several lines if they were pasted. EOFError at the end of the input."""
        ...

    def waiting(self) -> bool:
        """Return whether a line was typed that is not read yet."""
        ...


class Keyboard:
    """The standard input.

    Args:
        screen: shows sentences, and entries that do not come from a terminal, which nobody else shows.
    """

    def __init__(self, screen: Screen) -> None:
        self._screen, self._note = screen, screen.note
        with contextlib.suppress(ImportError):  # Windows has no readline
            import readline  # input() uses it from now on

            if os.environ.get("TERM", "dumb") not in {"dumb", "unknown"}:
                readline.parse_and_bind("set enable-bracketed-paste on")  # Python turns it off

    def read(self, prompt: str) -> str:
        """See `Reader.read`."""
        if not sys.stdin.isatty():
            entry = input()
            self._screen.say(prompt.rstrip(": "), entry, "green")
            return entry
        entry = None
        while entry is None:
            lines = [input(prompt)]
            entry = self._pasted(lines) if self.waiting() else lines[0]
        return entry

    def waiting(self) -> bool:
        """See `Reader.waiting`."""
        try:
            return sys.stdin.isatty() and bool(select.select([sys.stdin], [], [], 0.05)[0])
        except (OSError, ValueError):  # Windows selects sockets only
            return False

    def _pasted(self, lines: list[str]) -> str | None:
        """Return pasted lines as one entry when the person sends it with an empty line; None if Ctrl-C drops it."""
        try:
            while True:
                while self.waiting():
                    lines.append(input())
                self._note(f"{len(lines)} lines are one message: an empty line sends it, Ctrl-C drops it")
                line = input()
                if not (line.strip() or self.waiting()):
                    return "\n".join(lines)
                lines.append(line)
        except KeyboardInterrupt:
            self._note("dropped")
            return None


@contextlib.contextmanager
def on_interrupt(stop: Callable[[], None]) -> Generator[None]:
    """Call a function on the first Ctrl-C while the block runs; the second one interrupts as usual."""

    def handle(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        stop()

    try:
        before = signal.signal(signal.SIGINT, handle)
    except ValueError:  # not in the main thread, which gets no signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
