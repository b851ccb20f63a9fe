"""The twin in a terminal: a turn with the memories and the reasoning behind it, and a chat with the twin."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from usertwin.memory import Recalled
from usertwin.memory.text.transcript import single_line
from usertwin.personas import UsertwinError
from usertwin.personas.printable import printable

from .agents import Message
from .records import Exchange
from .state import Answer
from .user import SimulatedUser

#: Memories shown for a turn during a conversation.
_MAX_MEMORIES = 4
_HELP = "/why shows the memories and the reasoning of the last turn, /quit ends the chat"


def memories_table(recalled: Sequence[Recalled], max_rows: int | None = None) -> RenderableType:
    """Return a table of the first `max_rows` recalled triples, with similarities of contexts and scores of traces."""
    if not recalled:
        return Text("no memories were recalled", style="dim")
    table = Table(box=None, padding=(0, 1), header_style="dim", expand=True)
    table.add_column("similarity", justify="right", no_wrap=True)
    traced = any(memory.triple.reasoning for memory in recalled[:max_rows])
    table.add_column("context", ratio=3, style="dim")
    if traced:
        table.add_column("reasoning", ratio=3, style="italic dim")
    table.add_column("action", ratio=3)
    for memory in recalled[:max_rows]:
        triple = memory.triple
        context = triple.pair.context[-1].text if triple.pair.context else "(none)"
        score = "" if triple.score is None else f" [{triple.score:+.2f}]"
        reasoning = [_shorten(triple.reasoning or "–") + score] if traced else []
        texts = (_shorten(context), *reasoning, _shorten(triple.pair.action))
        table.add_row(f"{memory.similarity:.2f}", *map(Text, texts))
    hidden = len(recalled) - table.row_count
    return Group(table, Text(f"and {hidden} less similar ones", style="dim")) if hidden else table


def why(answer: Answer, name: str, max_memories: int | None = None) -> RenderableType:
    """Return a panel with the memories (all, or the first `max_memories`) and the reasoning behind a person's answer."""
    name = printable(name)
    thought = Text(printable(answer.reasoning) or "(none)", style="italic")
    by = "" if answer.reasoner is None else printable(f"  (reasoned by {answer.reasoner})")
    if not answer.action:
        thought = Text(f"{name} left in {answer.abandonment_rate:.0%} of the most similar memories", style="italic")
    reasoning = Text.assemble(("reasoning  ", "dim"), thought, (by, "dim"))
    title = f"why {escape(name)} {'says this' if answer.action else 'leaves'}"
    cuts = ((answer.cut_turns, "earlier turns of the chat"), (answer.cut_recalled, "of these memories"))
    left_out = " and ".join(f"{count} {what}" for count, what in cuts if count)
    notes = [f"not in the prompt, or not whole: {left_out}"] if left_out else []
    notes += [f"the best of {answer.candidates} candidates"] if answer.candidates > 1 else []
    lines = [Text(note, style="dim") for note in notes]
    content = Group(memories_table(answer.recalled, max_memories), Text(), reasoning, *lines)
    return Panel(content, title=title, title_align="left", border_style="dim")


def speech(name: str, text: str, *, style: str) -> Text:
    """Return one message with its speaker."""
    return Text.assemble((printable(f"{name}  "), f"bold {style}"), printable(text))


def show_exchange(console: Console, name: str, exchange: Exchange) -> None:
    """Print a turn of the twin with its memories and its reasoning, and the agent's reply."""
    console.print(why(exchange.answer, name, _MAX_MEMORIES))
    if exchange.answer.action:
        console.print(speech(name, exchange.answer.action, style="cyan"))
    for message in exchange.replies:
        for call in message.get("tool_calls", ()):
            console.print(
                Text(printable(f"agent calls {call['function']['name']}({call['function']['arguments']})"), style="dim")
            )
        if message["role"] == "assistant" and message["content"]:
            console.print(speech("agent", str(message["content"]), style="yellow"))
    if exchange.answer.done:
        console.print(Text(printable(f"{name} leaves."), style="dim"))
    console.print()


def chat(user: SimulatedUser, console: Console, *, goal: str = "", seed: int = 0, role: str = "the agent") -> list[Message]:
    """Chat with a twin in the terminal, where the person at the keyboard is the agent. Return the messages.

    The chat ends with /quit, the end of the input, Ctrl-C, or when the twin leaves. The twin wants the goal. `role` is what the
    person at the keyboard is called.
    """
    name = printable(user.persona.name)
    console.print(f"[dim]You are {escape(role)}; [bold]{escape(name)}[/bold] answers. {_HELP}.[/dim]")
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
                last = user.respond(messages, goal=goal, seed=seed)
        except UsertwinError as error:
            messages.pop()
            console.print(Text(printable(str(error)), style="red"))
            continue
        except KeyboardInterrupt:
            console.print()
            return messages
        if last.action:
            messages.append(last.message)
            console.print(speech(name, last.action, style="cyan"))
        if last.done:
            rate = f" without a word, as in {last.abandonment_rate:.0%} of the most similar memories"
            console.print(f"[dim]{escape(name)} leaves the chat{'' if last.action else rate}.[/dim]")
            return messages


def _shorten(text: str, characters: int = 90) -> str:
    text = printable(single_line(text))
    return text if len(text) <= characters else text[: characters - 1] + "…"
