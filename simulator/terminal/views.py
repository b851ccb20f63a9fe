"""What is seen of a twin's turn: the memories and the reasoning behind it, drawn for the width and the encoding of a screen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from usertwin.memory import Recalled
from usertwin.memory.text.transcript import single_line
from usertwin.personas.printable import in_encoding, printable

from ..agents import Message
from ..records import Exchange
from ..state import Answer

#: Memories shown for a turn during a conversation.
MAX_MEMORIES = 4
#: Cells of a screen on which memories are a table; on a narrower one each is a list of lines.
_WIDE = 96
#: Characters of a cell of the table.
_CELL = 90


def why(answer: Answer, name: str, max_memories: int | None = None) -> RenderableType:
    """Return a panel with the memories (all, or the first `max_memories`) and the reasoning behind a person's answer."""
    return _Why(answer, printable(single_line(name)), max_memories)


def why_lines(answer: Answer, name: str, max_memories: int | None = None) -> Iterator[str]:
    """Yield the same as sentences, for a screen reader."""
    yield _title(answer, name)
    shown = answer.recalled[:max_memories]
    for number, memory in enumerate(shown, 1):
        context, action, reasoning = _parts(memory)
        yield f"memory {number}, similarity {memory.similarity:.2f}: to {_shortened(context)} the reply {_shortened(action)}"
        if reasoning:
            yield f"memory {number}, reasoning: {_shortened(reasoning)}"
    yield from _rest(answer, len(shown))
    yield f"reasoning: {_thought(answer, name)}"
    yield from _notes(answer)


@dataclass(frozen=True, slots=True)
class _Why:
    answer: Answer
    name: str
    max_memories: int | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        answer, name = self.answer, self.name

        def fit(text: str) -> str:
            return in_encoding(printable(text), options.encoding)

        memories = answer.recalled[: self.max_memories]
        width, encoding = options.max_width, options.encoding
        rows = _table(memories, encoding) if width >= _WIDE else _list(memories, width - 4, encoding)
        rest = [Text(line, style="dim") for line in _rest(answer, len(memories))]
        by = "" if answer.reasoner is None else f"  (reasoned by {answer.reasoner})"
        reasoning = Text.assemble(("reasoning  ", "dim"), (fit(_thought(answer, name)), "italic"), (fit(by), "dim"))
        notes = [Text(note, style="dim") for note in _notes(answer)]
        content = Group(*([rows] if memories else []), *rest, Text(), reasoning, *notes)
        yield Panel(content, title=escape(fit(_title(answer, name))), title_align="left", border_style="dim")


def _title(answer: Answer, name: str) -> str:
    return f"why {name} {'says this' if answer.action else 'leaves'}"


def _thought(answer: Answer, name: str) -> str:
    left = f"{name} left in {answer.abandonment_rate:.0%} of the most similar memories"
    return answer.reasoning or "(none)" if answer.action else left


def _rest(answer: Answer, shown: int) -> Iterator[str]:
    """Yield how many memories are not shown, or that there are none."""
    if not answer.recalled:
        yield "no memories were recalled"
    elif hidden := len(answer.recalled) - shown:
        yield f"and {hidden} less similar ones"


def _notes(answer: Answer) -> Iterator[str]:
    """Yield what the prompt lacks, and how the turn was chosen."""
    cuts = ((answer.cut_turns, "earlier turns of the chat"), (answer.cut_recalled, "of these memories"))
    if left_out := " and ".join(f"{count} {noun}" for count, noun in cuts if count):
        yield f"not in the prompt, or not whole: {left_out}"
    if answer.candidates > 1:
        yield f"the best of {answer.candidates} candidates"


def _parts(memory: Recalled) -> tuple[str, str, str]:
    """Return the last turn before a memory, its action, and its reasoning with the score; "" without a trace."""
    triple = memory.triple
    context = triple.pair.context[-1].text if triple.pair.context else "(none)"
    score = "" if triple.score is None else f" [{triple.score:+.2f}]"
    return context, triple.pair.action, f"{_shortened(triple.reasoning)}{score}" if triple.reasoning else ""


def _table(memories: tuple[Recalled, ...], encoding: str) -> Table:
    """Return a table of memories, with similarities of contexts and scores of traces."""
    table = Table(box=None, padding=(0, 1), header_style="dim", expand=True)
    table.add_column("similarity", justify="right", no_wrap=True)
    traced = any(memory.triple.reasoning for memory in memories)
    table.add_column("context", ratio=3, style="dim")
    if traced:
        table.add_column("reasoning", ratio=3, style="italic dim")
    table.add_column("action", ratio=3)
    for memory in memories:
        context, action, reasoning = _parts(memory)
        texts = (_shortened(context), *([reasoning or "–"] if traced else []), _shortened(action))
        table.add_row(f"{memory.similarity:.2f}", *(Text(in_encoding(text, encoding)) for text in texts))
    return table


def _list(memories: tuple[Recalled, ...], width: int, encoding: str) -> Group:
    """Return memories as lines: the similarity and what was said to the person, what they replied, and why."""
    lines = list[Text]()
    for memory in memories:
        context, action, reasoning = _parts(memory)
        lines.append(_line(f"{memory.similarity:.2f}  ", context, width, encoding, "dim"))
        lines.append(_line("   -> ", action, width, encoding, ""))
        if reasoning:
            lines.append(_line("      why: ", reasoning, width, encoding, "italic dim"))
    return Group(*lines)


def _line(start: str, text: str, width: int, encoding: str, style: str) -> Text:
    """Return a start and a text as one line of at most `width` cells."""
    line = Text(start + in_encoding(printable(single_line(text)), encoding), style, no_wrap=True, overflow="crop")
    if line.cell_len > width:
        dots = in_encoding("…", encoding)
        line.truncate(width - len(dots))
        line.append(dots)
    return line


def speech(name: str, text: str, *, style: str) -> Text:
    """Return one message with its speaker."""
    return Text.assemble((printable(f"{name}  "), f"bold {style}"), printable(text))


def call_text(message: Message) -> list[str]:
    """Return a line for each tool that an agent's message calls."""
    calls = (call["function"] for call in message.get("tool_calls") or ())
    return [f"agent calls {call['name']}({call['arguments']})" for call in calls]


def show_exchange(console: Console, name: str, exchange: Exchange) -> None:
    """Print a turn of the twin with its memories and its reasoning, and the agent's reply."""
    console.print(why(exchange.answer, name, MAX_MEMORIES))
    if exchange.answer.action:
        console.print(speech(name, exchange.answer.action, style="cyan"))
    for message in exchange.replies:
        for line in call_text(message):
            console.print(Text(printable(line), style="dim"))
        if message["role"] == "assistant" and message["content"]:
            console.print(speech("agent", str(message["content"]), style="yellow"))
    if exchange.answer.done:
        console.print(Text(printable(f"{name} leaves."), style="dim"))
    console.print()


def _shortened(text: str | None) -> str:
    text = printable(single_line(text or ""))
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"
