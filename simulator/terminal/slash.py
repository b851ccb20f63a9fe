"""What a person types: a message, or a command that begins with a slash."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from usertwin.personas import UsageError

#: Every command: the name of its argument, and what it does.
COMMANDS = {
    "why": ("", "the memories and the reasoning behind the twin's last turn"),
    "twin": ("[N]", "let the twin go on, for N turns or until you stop it"),
    "me": ("", "take over from the twin"),
    "goal": ("[TEXT]", "what the twin wants: show it, or change it; - removes it"),
    "undo": ("", "take the last exchange back"),
    "save": ("FILE", "write the conversation as a chat log into a new file"),
    "help": ("", "this list"),
    "quit": ("", "end"),
}


@dataclass(frozen=True, slots=True)
class Command:
    """A command and what follows its name."""

    name: str
    argument: str = ""


def parse(entry: str, known: Collection[str]) -> Command | str:
    """Return the known command in an entry, or else the message: a first slash is doubled, and several lines are no command.

    Raises:
        UsageError: there is no such command.
    """
    text = entry.strip()
    if not text.startswith("/") or "\n" in text:
        return text
    if text.startswith("//"):
        return text[1:]
    name, _, argument = text[1:].partition(" ")
    if (lower := name.lower()) not in known:
        names = ", ".join(f"/{name}" for name in COMMANDS if name in known)
        raise UsageError(f'"/{name}" is not a command ({names}); to say it, double the slash: /{text}')
    return Command(lower, argument.strip())


def help_lines(known: Collection[str]) -> list[str]:
    """Return a line for each known command, and how to say a line that begins with a slash."""
    usages = {f"/{name} {argument}".strip(): text for name, (argument, text) in COMMANDS.items() if name in known}
    usages["//..."] = "say a line that begins with /"
    width = max(map(len, usages))
    return [f"{usage:<{width}}  {text}" for usage, text in usages.items()]
