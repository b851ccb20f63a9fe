"""The twin on a terminal: what a turn looks like with its memories and its reasoning, and a chat with it.

The one design choice: what is shown is a pure function of an answer, so that the demonstration, the simulation and the chat
show the same thing and a test can read it.
"""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from usertwin.memory.text.transcript import flat
from usertwin.personas import UsertwinError

from .agents import Message
from .simulation import Exchange
from .state import Answer, RecalledTriple
from .user import SimulatedUser

#: Memories that are shown for a turn while a conversation goes on.
_SHOWN = 4
_HELP = "/why shows the memories and the reasoning of the last turn, /quit ends the chat"


def memories_table(recalled: tuple[RecalledTriple, ...], most: int | None = None) -> RenderableType:
    """The recalled triples with how similar their contexts are, and how well their traces predict what was done.

    Args:
        recalled: most similar first.
        most: show only so many.
    """
    if not recalled:
        return Text("no memory came to mind", style="dim")
    table = Table(box=None, padding=(0, 1), header_style="dim", expand=True)
    table.add_column("like now", justify="right", no_wrap=True)
    table.add_column("when somebody said", ratio=3, style="dim")
    table.add_column("they thought", ratio=3, style="italic dim")
    table.add_column("and wrote", ratio=3)
    for row in recalled[:most]:
        heard = row["context"][-1]["text"] if row["context"] else "(nothing yet)"
        score = "" if row["score"] is None else f" [{row['score']:+.2f}]"
        table.add_row(
            f"{row['similarity']:.2f}",
            Text(_short(heard)),
            Text(_short(row["reasoning"] or "–") + score),
            Text(_short(row["action"])),
        )
    hidden = len(recalled) - table.row_count
    return Group(table, Text(f"and {hidden} more that are less like now", style="dim")) if hidden else table


def why(answer: Answer, name: str, most: int | None = None) -> RenderableType:
    """The memories, all or the `most` similar ones, and the reasoning behind an answer."""
    thought = Text(answer.reasoning or "(no thought was written down)", style="italic")
    by = "" if answer.reasoner is None else f"  (reasoned by {answer.reasoner})"
    if not answer.action:
        thought = Text(f"{answer.leaving:.0%} of what came to mind are moments in which {name} left", style="italic")
    return Panel(
        Group(memories_table(answer.recalled, most), Text(), Text.assemble(("thinks  ", "dim"), thought, (by, "dim"))),
        title=f"why {escape(name)} {'says this' if answer.action else 'leaves'}",
        title_align="left",
        border_style="dim",
    )


def speech(name: str, text: str, *, style: str) -> Text:
    """A line somebody says."""
    return Text.assemble((f"{name}  ", f"bold {style}"), text)


def show_exchange(console: Console, name: str, exchange: Exchange) -> None:
    """Show a turn of the twin with what it came from, and the agent's reply."""
    console.print(why(exchange.answer, name, _SHOWN))
    if exchange.answer.action:
        console.print(speech(name, exchange.answer.action, style="cyan"))
    for message in exchange.replies:
        console.print(speech("agent", str(message["content"]), style="yellow"))
    if exchange.answer.done:
        console.print(Text(f"{name} leaves.", style="dim"))
    console.print()


def chat(user: SimulatedUser, console: Console, *, goal: str = "") -> list[Message]:
    """Talk with a twin: you are the agent, the twin answers. Returns what was said.

    Ends with /quit, the end of the input, Ctrl-C, or when the twin leaves.
    """
    name = user.persona.name
    console.print(f"[dim]You are the agent; [bold]{escape(name)}[/bold] answers. {_HELP}.[/dim]")
    messages: list[Message] = []
    last: Answer | None = None
    while True:
        try:
            line = console.input("[bold yellow]you  [/bold yellow]").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return messages
        if line == "/quit":
            return messages
        if line == "/why":
            console.print(why(last, name) if last is not None else f"[dim]{escape(name)} has not said anything yet.[/dim]")
            continue
        if not line or line.startswith("/"):
            console.print(f"[dim]{_HELP}[/dim]")
            continue
        messages.append({"role": "assistant", "content": line})
        try:
            with console.status(f"{escape(name)} is thinking"):
                last = user.respond(messages, goal=goal)
        except UsertwinError as error:
            messages.pop()
            console.print(f"[red]{escape(str(error))}[/red]")
            continue
        except KeyboardInterrupt:
            console.print()
            return messages
        if last.action:
            messages.append(last.message)
            console.print(speech(name, last.action, style="cyan"))
        if last.done:
            why_silent = "" if last.action else f" without another word: so ended {last.leaving:.0%} of what came to mind"
            console.print(f"[dim]{escape(name)} leaves the chat{why_silent}.[/dim]")
            return messages


def _short(text: str, characters: int = 90) -> str:
    text = flat(text)
    return text if len(text) <= characters else text[: characters - 1] + "…"
