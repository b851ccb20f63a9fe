"""Conversations with an agent in the terminal: the person is the user, or a twin that they hand over to, or that they watch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from uuid import uuid4

from usertwin.memory.event_loop import run_sync
from usertwin.personas import AgentError, TwinError, UsageError

from ..agents import AgentCall
from ..conversation import OpenConversation, TurnLimits
from ..records import AGENT_FAULTS, Exchange, Simulation
from ..scenarios.scenario import Scenario
from ..state import Answer
from ..user import SimulatedUser
from .keyboard import Reader, on_interrupt
from .screen import Screen
from .session import Session, SessionTurn
from .talk import Keep, Talk
from .views import MAX_MEMORIES

#: The most turns of a twin that goes on until it is stopped.
_MAX_HANDED_OVER = 20
_ANSWERING = "the agent is answering"


class AgentTalk(Talk):
    """A conversation with an agent, by the engine of all conversations.

    Args:
        screen: shows it.
        reader: reads what the person types.
        session: its record, which may hold turns already; its kind is "play" or "watch".
        user: the twin; None without one.
        keep: stores the session after each exchange; None to keep no record.
        call: the agent; it stays open.
        limits: what bounds a turn.
        about: what is known before, by name.
        agent_first: whether the agent opens the conversation.
        max_turns: turns of a twin that is watched, before the person is asked.
    """

    def __init__(
        self, screen: Screen, reader: Reader, session: Session, user: SimulatedUser | None, keep: Keep | None = None, *,
        call: AgentCall, limits: TurnLimits, about: Mapping[str, str], agent_first: bool = False, max_turns: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(screen, reader, session, user, keep)
        self._call, self._limits, self._about = call, limits, about
        self._agent_first, self._max_turns = agent_first, max_turns
        self._watches = session.kind == "watch"
        if self._watches:
            self.label = "Enter lets them go on, /help lists the commands"

    @property
    def commands(self) -> Mapping[str, Callable[[str], None]]:
        """See `Talk.commands`."""
        twin: dict[str, Callable[[str], None]] = {"twin": self._hand_over}
        return {**super().commands, **twin, **({} if self._watches else {"me": self._take_over})}

    def introduce(self) -> None:
        """See `Talk.introduce`."""
        self.screen.about(f"{self.session.kind} {self._about.get('twin') or self.session.agent}", self._about)
        if not self._watches:
            self.screen.note("You are the user; the agent answers. /help lists the commands, /quit ends.")

    def begin(self) -> None:
        """See `Talk.begin`."""
        run_sync(self._call.begin())
        if self._agent_first and not self.session.turns:
            self._exchange(opens=True)
        if self._max_turns:
            self._twin_turns(self._max_turns)

    def say(self, text: str) -> None:
        """See `Talk.say`."""
        if self._watches:
            raise UsageError(
                "in usertwin watch you say nothing; Enter lets them go on, and usertwin play AGENT --twin NAME lets you speak"
            )
        self._exchange(text)

    def go_on(self) -> None:
        """See `Talk.go_on`."""
        if self._watches:
            self._twin_turns(1)
        else:
            self._help()

    def _hand_over(self, argument: str) -> None:
        if not argument:
            self.screen.note(
                f"{self.name or 'the twin'} goes on for {_MAX_HANDED_OVER} turns at most; Ctrl-C, or a line of yours, stops it"
            )
            self._twin_turns(_MAX_HANDED_OVER, until_typed=True)
        elif argument.isdecimal() and 0 < int(argument) <= 1000:
            self._twin_turns(int(argument))
        else:
            raise UsageError(f"/twin {argument}: give the number of turns, 1 to 1000, or nothing")

    def _take_over(self, argument: str) -> None:
        self.screen.note("you speak")

    def _twin_turns(self, count: int, *, until_typed: bool = False) -> None:
        """Let the twin and the agent take turns, until the twin leaves or the person stops them."""
        if self.user is None:
            raise UsageError("there is no twin to hand over to; name one with usertwin play AGENT --twin NAME")
        stop = threading.Event()

        def pause() -> None:
            stop.set()
            self.screen.note("stopping after this exchange; Ctrl-C again stops at once")

        for _ in range(count):
            if self.session.has_left:
                self.screen.note(f"{self.name} has left; /undo takes that back, /quit ends")
                return
            with on_interrupt(pause):
                self._exchange()
            if stop.is_set() or (until_typed and self._reader.waiting()):
                return

    def _exchange(self, text: str | None = None, *, opens: bool = False) -> None:
        """Let the user, which is the twin unless a text is given, say something, and the agent reply; or let the agent open."""
        session, messages = self.session, self.session.messages
        simulation = Simulation(
            twin=session.twin, goal=session.goal, seed=session.sampling_seed, thread_id=session.thread_id, messages=messages
        )
        before, writes = len(messages), text is None and not opens
        try:
            with self.screen.busy(f"{self.name} is thinking" if writes else _ANSWERING) as busy:
                conversation = OpenConversation(
                    self.user, self._call, Scenario(name="", goal=session.goal), simulation=simulation, limits=self._limits,
                    on_answer=partial(self._answered, busy) if writes else None,
                )  # fmt: skip
                step = conversation.reply() if opens else conversation.exchange(len(session.turns), text)
                exchange = run_sync(step)
        except BaseException:
            self._new_thread()
            raise
        self._check(simulation)
        answer = exchange.answer if writes and isinstance(exchange, Exchange) else None
        self.finish(SessionTurn(messages=tuple(messages[before:]), answer=answer, goal=session.goal))
        for message in messages[before:]:
            if message["role"] != "user":
                self.show(message, by_twin=writes)
        if answer is not None and answer.done:
            self.screen.note(f"{self.name} leaves.")

    def _answered(self, busy: Callable[[str], None], answer: Answer) -> None:
        """Show a turn of the twin, before the agent replies."""
        self.screen.gap()
        if self._watches:
            self.screen.why(answer, self.name, MAX_MEMORIES)
        if answer.action:
            self.screen.say(self.name, answer.action, "cyan")
        busy(_ANSWERING)

    def _check(self, simulation: Simulation) -> None:
        """Raise the failure of a turn, which is taken back."""
        if simulation.stop_reason == "max_turns":
            return
        if simulation.stop_reason not in AGENT_FAULTS:
            raise TwinError(simulation.error or simulation.stop_reason)
        self._new_thread()
        raise AgentError(f"{simulation.error}; this exchange is taken back, and the agent gets a new thread")

    def _new_thread(self) -> None:
        """Let the agent begin anew with the whole conversation: it may have seen what was taken back."""
        self._call.state_of(self.session.thread_id)
        self.session.thread_id = uuid4().hex

    def _undo(self, argument: str = "") -> None:
        thread_id = self.session.thread_id
        super()._undo(argument)
        self._call.state_of(thread_id)
