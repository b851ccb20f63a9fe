"""What the demonstration prints: a chat so far, and the twin's reply beside the real one and the memory behind it.

Everything fits on a terminal of 80 columns and 24 lines.
"""

from __future__ import annotations

from textwrap import shorten

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from usertwin.memory.text.transcript import single_line
from usertwin.personas import Pair
from usertwin.simulator import Answer

from .moments import SHOWN_TURNS

#: Characters shown of a remembered turn, and of a reply.
_MEMORY, _REPLY = 110, 240


def chat_view(pair: Pair, name: str) -> RenderableType:
    """Return the last turns of the chat before a moment, one line or more for each."""
    earlier = len(pair.context) - SHOWN_TURNS
    lines = [Text(f"({earlier} earlier turns)", style="dim")] if earlier > 0 else []
    for turn in pair.context[-SHOWN_TURNS:]:
        own = turn.speaker == pair.speaker
        label = (f"{name if own else 'the other'}  ", "bold cyan" if own else "bold yellow")
        lines.append(Text.assemble(label, single_line(turn.text)))
    return Padding(Group(*lines), (0, 0, 0, 1))


def comparison_view(pair: Pair, answer: Answer, name: str) -> RenderableType:
    """Return what the twin says beside what the person said, and the remembered moment behind it."""
    table = _two_columns()
    table.add_row(Text("the twin says", style="bold magenta"), Text(f"{name} really said", style="bold green"))
    table.add_row(_reply(answer), _shortened(pair.action, _REPLY))
    if answer.recalled:
        memory = answer.recalled[0]
        context = memory.triple.pair.context
        title = f"a remembered moment (similarity {memory.similarity:.2f})"
        table.add_row(Text(title, style="dim"), Text(f"{name} said then", style="dim"))
        then = _shortened(context[-1].text if context else "(start of the chat)", _MEMORY)
        table.add_row(then, _shortened(memory.triple.pair.action, _MEMORY))
    return table


def two_replies_view(first: str, second: str) -> RenderableType:
    """Return two replies side by side, as A and B."""
    table = _two_columns()
    table.add_row(Text("A", style="bold magenta"), Text("B", style="bold magenta"))
    table.add_row(_shortened(first, _REPLY), _shortened(second, _REPLY))
    return table


def _reply(answer: Answer) -> Text:
    return _shortened(answer.action, _REPLY) if answer.action else Text("(leaves without a word)", style="italic")


def _two_columns() -> Table:
    table = Table(box=None, show_header=False, expand=True, padding=(0, 2, 0, 1))
    table.add_column(ratio=1)
    table.add_column(ratio=1)
    return table


def _shortened(text: str, characters: int) -> Text:
    return Text(shorten(single_line(text), characters, placeholder=" …"))
