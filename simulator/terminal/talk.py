"""A conversation in the terminal: what a person types is a command, or is said to the other side; and the chat with a twin.

A turn that fails or is stopped is no part of the conversation. Each finished exchange is kept before the next one begins.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

from usertwin.memory.text.transcript import single_line
from usertwin.personas import UsageError, UsertwinError

from ..agents import Message
from ..user import SimulatedUser
from .keyboard import Reader
from .screen import Screen
from .session import Session, SessionTurn, save_log
from .slash import Command, help_lines, parse
from .views import call_text

#: Stores a session after each exchange.
Keep = Callable[[Session], None]
#: Messages that a resumed session shows, and characters of one that was taken back.
_SHOWN, _SHORT = 10, 60


class Talk(ABC):
    """A conversation in the terminal.

    Args:
        screen: shows it.
        reader: reads what the person types.
        session: its record, which may hold turns already.
        user: the twin; None without one.
        keep: stores the session after each exchange; None to keep no record.
    """

    #: What stands before the person's entry.
    label = "you"

    def __init__(
        self, screen: Screen, reader: Reader, session: Session, user: SimulatedUser | None, keep: Keep | None = None
    ) -> None:
        self.screen, self.session, self.user = screen, session, user
        self._reader, self._keep, self.is_over = reader, keep, False
        self.name = "" if user is None else single_line(user.persona.name)

    def run(self) -> None:
        """Talk until the person ends it: by /quit, Ctrl-C at the prompt, or the end of the input."""
        self.introduce()
        if self.session.turns:
            self._show_past()
        self._guarded(self.begin)
        while not self.is_over:
            try:
                entry = self._reader.read(self.screen.prompt(self.label))
            except (EOFError, KeyboardInterrupt):
                self.screen.gap()
                return
            self._guarded(lambda entry=entry: self._handle(entry))

    @property
    def is_kept(self) -> bool:
        """Whether the session is stored and may be resumed."""
        return self._keep is not None and bool(self.session.turns)

    @property
    def commands(self) -> Mapping[str, Callable[[str], None]]:
        """The commands by name; each gets its argument."""
        return {
            "why": self._why, "goal": self._goal, "undo": self._undo, "save": self._save, "help": self._help,
            "quit": self._quit,
        }  # fmt: skip

    @abstractmethod
    def introduce(self) -> None:
        """Show who talks, and what the person can do."""

    def begin(self) -> None:
        """Do what comes before the first entry; nothing by default."""
        return

    @abstractmethod
    def say(self, text: str) -> None:
        """Let the person say something, and the other side answer."""

    def go_on(self) -> None:
        """Do what an empty line means."""
        self._help()

    def finish(self, turn: SessionTurn) -> None:
        """Add a finished exchange, and store the session."""
        self.session.turns.append(turn)
        self._store()

    def show(self, message: Message, *, by_twin: bool) -> None:
        """Print a message with its speaker; `by_twin` tells who was the user."""
        for line in call_text(message):
            self.screen.note(line)
        if message["role"] in {"user", "assistant"} and message.get("content"):
            name, style = self._speaker(message, by_twin=by_twin)
            self.screen.say(name, str(message["content"]), style)

    def _speaker(self, message: Message, *, by_twin: bool) -> tuple[str, str]:
        """Return the name and the colour of who said a message."""
        if message["role"] == "user" and by_twin:
            return self.name, "cyan"
        is_person = (message["role"] == "assistant") == (self.session.kind == "chat")
        return ("you", "green") if is_person else ("agent", "yellow")

    def _show_past(self) -> None:
        spoken = [(message, turn.answer is not None) for turn in self.session.turns for message in turn.messages]
        earlier = len(spoken) - _SHOWN
        self.screen.note(
            f"session {self.session.id} goes on" + (f"; {earlier} earlier messages are not shown" if earlier > 0 else "")
        )
        for message, by_twin in spoken[-_SHOWN:]:
            self.show(message, by_twin=by_twin)

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do some work; an error, or that it was stopped, is shown."""
        try:
            work()
        except UsertwinError as error:
            self.screen.error(error)
        except KeyboardInterrupt:
            self.screen.note("stopped; what was not finished is no part of the conversation")

    def _handle(self, entry: str) -> None:
        match parse(entry, self.commands):
            case Command(name, argument):
                self.commands[name](argument)
            case "":
                self.go_on()
            case text:
                self.say(text)

    def _store(self) -> None:
        if self._keep is None:
            return
        try:
            self._keep(self.session)
        except UsertwinError as error:
            self._keep = None
            self.screen.note(f"{error}; the conversation goes on without a record", "yellow")

    # Commands ---------------------------------------------------------------------------------------------------------

    def _why(self, argument: str = "") -> None:
        answer = self.session.last_answer
        if answer is None:
            self.screen.note(f"{self.name or 'a twin'} has not said anything yet.")
        else:
            self.screen.why(answer, self.name)

    def _goal(self, argument: str) -> None:
        if argument:
            self.session.goal = "" if argument == "-" else argument
            if self.session.turns:
                self._store()
        self.screen.note(f"goal: {self.session.goal or '(none)'}")

    def _undo(self, argument: str = "") -> None:
        turn = self.session.undo()
        self._store()
        for message in turn.messages:
            if message.get("content"):
                name, _ = self._speaker(message, by_twin=turn.answer is not None)
                text = single_line(str(message["content"]))
                self.screen.note(f"taken back: {name}: {text[:_SHORT]}{'…' if len(text) > _SHORT else ''}")

    def _save(self, argument: str) -> None:
        if not argument:
            raise UsageError("/save needs the name of a new file: /save talk.jsonl")
        save_log(self.session, path := Path(argument))
        self.screen.note(f"saved as the chat log {path}")

    def _help(self, argument: str = "") -> None:
        for line in help_lines(self.commands):
            self.screen.note(line)

    def _quit(self, argument: str = "") -> None:
        self.is_over = True


class ChatTalk(Talk):
    """A chat with a twin, in which the person is the agent, or whatever `role` says."""

    def __init__(
        self, screen: Screen, reader: Reader, session: Session, user: SimulatedUser, keep: Keep | None = None, *,
        role: str = "the agent",
    ) -> None:  # fmt: skip
        super().__init__(screen, reader, session, user, keep)
        self._twin, self._role = user, role

    def introduce(self) -> None:
        """See `Talk.introduce`."""
        self.screen.note(f"You are {self._role}; {self.name} answers. /help lists the commands, /quit ends the chat.")

    def go_on(self) -> None:
        """See `Talk.go_on`."""
        if self.session.has_left:
            self.is_over = True
        else:
            self._help()

    def say(self, text: str) -> None:
        """See `Talk.say`."""
        session = self.session
        if session.has_left:
            raise UsageError(f"{self.name} has left the chat; /undo takes that back, Enter ends the chat")
        said: Message = {"role": "assistant", "content": text}
        with self.screen.busy(f"{self.name} is thinking"):
            answer = self._twin.respond([*session.messages, said], goal=session.goal, seed=session.sampling_seed)
        if answer.action:
            self.screen.say(self.name, answer.action, "cyan")
        replies = (answer.message,) if answer.action else ()
        self.finish(SessionTurn(messages=(said, *replies), answer=answer, goal=session.goal))
        if answer.done:
            rate = f" without a word, as in {answer.abandonment_rate:.0%} of the most similar memories"
            self.screen.note(f"{self.name} leaves the chat{'' if answer.action else rate}.")
            self.screen.note("Enter ends the chat; /undo takes the last exchange back, /save FILE writes a chat log.")
