"""The screen of a conversation in the terminal: who says what, in colour and boxes, or plainly for a screen reader.

Every text becomes printable, and what the terminal's encoding lacks is replaced, before lines are broken.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from usertwin.memory.text.transcript import single_line
from usertwin.personas.printable import in_encoding, printable

from ..state import Answer
from .views import why, why_lines

#: Who speaks where the program itself does, in plain output.
_PROGRAM = "usertwin"


class Screen:
    """Prints a conversation.

    Args:
        console: where to print.
        plain: whether to print lines only, without boxes and moving parts; each begins with who speaks.
    """

    def __init__(self, console: Console, *, plain: bool = False) -> None:
        self.console, self.plain = console, plain

    def prompt(self, name: str) -> str:
        """Return what stands before an entry of a person."""
        return f"{name}: " if self.plain else f"{name}  "

    def say(self, name: str, text: str, style: str) -> None:
        """Print a message with its speaker."""
        name = single_line(name)
        if self.plain:
            self._lines(name, text.splitlines())
        else:
            self._print(Text.assemble((self._fit(f"{name}  "), f"bold {style}"), self._fit(text)))

    def note(self, text: str, style: str = "dim") -> None:
        """Print a sentence of the program."""
        if self.plain:
            self._lines(_PROGRAM, text.splitlines())
        else:
            self._print(Text(self._fit(text), style))

    def error(self, error: Exception) -> None:
        """Print what went wrong."""
        self.note(str(error), "red")

    def why(self, answer: Answer, name: str, max_memories: int | None = None) -> None:
        """Print the memories and the reasoning behind a turn."""
        if self.plain:
            self._lines(_PROGRAM, why_lines(answer, name, max_memories))
        else:
            self.console.print(why(answer, name, max_memories))

    def about(self, title: str, rows: Mapping[str, str]) -> None:
        """Print what is known before a conversation begins; rows without a text are left out."""
        shown = {key: single_line(text) for key, text in rows.items() if text}
        if self.plain:
            self._lines(_PROGRAM, (title, *(f"{key}: {text}" for key, text in shown.items())))
            return
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for key, text in shown.items():
            table.add_row(self._fit(key), Text(self._fit(text)))
        self.console.print(Panel(table, title=Text(self._fit(title)), title_align="left", border_style="dim"))

    def gap(self) -> None:
        """Print an empty line, unless the output is plain."""
        if not self.plain:
            self.console.print()

    @contextmanager
    def busy(self, text: str) -> Generator[Callable[[str], None]]:
        """Show what is going on while the block runs; the yielded function changes the text."""
        if self.plain:
            yield lambda text: None
            return
        spinner = "line" if self.console.options.ascii_only else "dots"
        with self.console.status(Text(self._fit(text)), spinner=spinner) as status:
            yield lambda text: status.update(Text(self._fit(text)))

    def _lines(self, name: str, lines: Iterable[str]) -> None:
        for line in lines:
            self.console.print(Text(self._fit(f"{name}: {line}")), soft_wrap=True)

    def _print(self, text: Text) -> None:
        self.console.print(text)

    def _fit(self, text: str) -> str:
        return in_encoding(printable(text), self.console.encoding)
