"""`play` and `watch`: a person, a twin and an agent in the terminal, over the engine of all conversations."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from conftest import scripted
from usertwin.personas import UsageError
from usertwin.simulator import SimulatedUser, as_agent
from usertwin.simulator.conversation import TurnLimits
from usertwin.simulator.terminal.agent_talk import AgentTalk
from usertwin.simulator.terminal.screen import Screen
from usertwin.simulator.terminal.session import Kind, Session

Entry = str | BaseException
#: What a twin says that never leaves; each turn is a thought and a message.
TURNS = tuple(line for city in ("Oslo", "Rome", "Lima", "Cairo", "Quito") for line in ("a thought", f"the weather in {city}"))


class Lines:
    """A reader of given entries, after which the input ends."""

    def __init__(self, *entries: Entry, typed: int = 0) -> None:
        self.entries, self.typed = list(entries), typed

    def read(self, prompt: str) -> str:
        entry = self.entries.pop(0) if self.entries else EOFError()
        if isinstance(entry, BaseException):
            raise entry
        return entry

    def waiting(self) -> bool:
        """Return False for the first questions, and True from the one of the number `typed` on."""
        self.typed -= 1
        return self.typed == 0


class Agent:
    """An agent that records what it gets, and does as its replies say."""

    def __init__(self, *replies: Any) -> None:
        self.replies, self.got = list(replies), list[tuple[list[str], str]]()

    def __call__(self, messages: list[dict[str, Any]], thread_id: str) -> Any:
        self.got.append(([str(m["content"]) for m in messages], thread_id))
        reply = self.replies.pop(0) if self.replies else f"reply {len(self.got)}"
        if isinstance(reply, BaseException):
            raise reply
        return reply


Run = Callable[..., tuple[Session, str]]


@pytest.fixture
def run(ann: str) -> Iterator[Run]:
    """A function that lets a person talk with an agent, and returns the session and the screen."""
    opened: list[SimulatedUser] = []

    def talk(
        agent: Any, *entries: Entry, kind: Kind = "play", twin: bool = True, plain: bool = False, typed: int = 0,
        answers: tuple[str, ...] = TURNS, session: Session | None = None, keep: Any = None, **options: Any,
    ) -> tuple[Session, str]:  # fmt: skip
        user = SimulatedUser.load(ann, model=scripted(*answers)) if twin else None
        opened.extend([user] if user else [])
        console = Console(record=True, file=io.StringIO(), width=120, force_terminal=True, color_system=None)
        session = session or Session(kind=kind, twin=ann if twin else "", agent="mine")
        call = as_agent(agent).in_own_loop()
        AgentTalk(
            Screen(console, plain=plain), Lines(*entries, typed=typed), session, user, keep, call=call,
            limits=TurnLimits(agent_timeout=60), about={"agent": "mine"}, **options,
        ).run()  # fmt: skip
        return session, console.export_text()

    yield talk
    for user in opened:
        user.close()


def said(session: Session) -> list[str]:
    """Return what was said in a session."""
    return [str(message["content"]) for message in session.messages]


# play ---------------------------------------------------------------------------------------------------------------------


def test_the_person_is_the_user_and_the_agent_answers(run: Run) -> None:
    agent = Agent()
    session, text = run(agent, "Hello", "//slash", "/why", "/quit", twin=False)
    assert said(session) == ["Hello", "reply 1", "/slash", "reply 2"]
    assert [messages for messages, _ in agent.got] == [["Hello"], ["Hello", "reply 1", "/slash"]]
    assert "You are the user; the agent answers." in text
    assert "agent  reply 2" in text
    assert "a twin has not said anything yet" in text


def test_without_a_twin_there_is_nobody_to_hand_over_to(run: Run) -> None:
    session, text = run(Agent(), "/twin", "/twin 2", twin=False)
    assert text.count("there is no twin to hand over to; name one with usertwin play AGENT --twin NAME") == 2
    assert session.turns == []


def test_the_twin_takes_over_for_some_turns_and_the_person_again(run: Run) -> None:
    agent = Agent()
    session, text = run(agent, "Hello", "/twin 2", "/why", "I again", "/twin 0", "/twin x")
    assert said(session) == [
        "Hello", "reply 1", "the weather in Oslo", "reply 2", "the weather in Rome", "reply 3", "I again", "reply 4",
    ]  # fmt: skip
    assert [turn.answer is not None for turn in session.turns] == [False, True, True, False]
    assert "Ann  the weather in Rome" in text
    assert text.count("why Ann says this") == 1  # on request only
    assert "/twin 0: give the number of turns" in text
    assert "/twin x: give the number of turns" in text
    assert len({thread for _, thread in agent.got}) == 1


def test_the_twin_goes_on_until_a_line_is_typed(run: Run) -> None:
    session, text = run(Agent(), "/twin", "/me", "I again", typed=2)
    assert said(session)[::2] == ["the weather in Oslo", "the weather in Rome", "I again"]
    assert "you speak" in text


def test_the_twin_goes_on_for_twenty_turns_at_most(run: Run) -> None:
    session, text = run(Agent(), "/twin", answers=tuple(f"the weather on day {n}" for n in range(50)))
    assert len(session.turns) == 20
    assert "for 20 turns at most" in text


def test_ctrl_c_takes_over_after_the_exchange_that_is_going_on(run: Run) -> None:
    def interrupt(messages: list[Any]) -> str:
        if len(messages) == 3:
            import signal

            signal.raise_signal(signal.SIGINT)
        return "well"

    session, text = run(_in_caller(interrupt), "/twin 4", "I again")
    assert said(session) == ["the weather in Oslo", "well", "the weather in Rome", "well", "I again", "well"]
    assert "stopping after this exchange; Ctrl-C again stops at once" in text


def _in_caller(function: Callable[[list[Any]], str]) -> Any:
    """Return an agent that runs in the thread of the person, which alone gets signals."""
    from usertwin.memory.event_loop import in_caller

    async def agent(messages: list[Any]) -> str:
        return await in_caller(function, messages)

    return agent


def test_a_failed_exchange_is_taken_back_and_the_agent_begins_anew(run: Run) -> None:
    agent = Agent("fine", KeyError("no such city"), "better")
    kept: list[list[str]] = []
    session, text = run(agent, "one", "two", "three", keep=lambda session: kept.append(said(session)))
    assert said(session) == ["one", "fine", "three", "better"]
    assert kept == [["one", "fine"], ["one", "fine", "three", "better"]]
    assert "the agent raised KeyError: 'no such city'; this exchange is taken back" in text
    assert agent.got[2][0] == ["one", "fine", "three"]
    assert agent.got[0][1] == agent.got[1][1] != agent.got[2][1] == session.thread_id


def test_undo_gives_the_agent_a_new_thread(run: Run) -> None:
    agent = Agent()
    session, text = run(agent, "one", "two", "/undo", "three")
    assert said(session) == ["one", "reply 1", "three", "reply 3"]
    assert "taken back: you: two\ntaken back: agent: reply 2" in text
    assert agent.got[1][1] != agent.got[2][1]


def test_a_program_serves_the_whole_conversation(run: Run, tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text(
        "import sys\nfor number, line in enumerate(sys.stdin, 1):\n    print(f'line {number}', flush=True)\n", "utf-8"
    )
    session, _ = run(f"command:{sys.executable} {tmp_path / 'agent.py'}", "one", "two", twin=False)
    assert said(session) == ["one", "line 1", "two", "line 2"]


def test_a_twin_that_fails_is_not_the_agents_fault(run: Run) -> None:
    agent = Agent()
    session, text = run(agent, "/twin 1", "Hello", answers=("",))
    assert said(session) == ["Hello", "reply 1"]
    assert "wrote nothing 4 times in a row" in " ".join(text.split())


def test_the_calls_of_tools_are_shown(run: Run) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"city": "Oslo"}'}}
    replies = [
        {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
    ]  # fmt: skip
    session, text = run(Agent(replies), "Oslo?")
    assert 'agent calls find({"city": "Oslo"})' in text
    assert "agent  It rains." in text
    assert [turn.text for turn in session.conversation().turns] == ["Oslo?", "It rains."]


def test_the_agent_may_open_the_conversation_once(run: Run) -> None:
    session, text = run(Agent("Welcome"), "Hello", agent_first=True)
    assert said(session) == ["Welcome", "Hello", "reply 2"]
    session, text = run(Agent(), agent_first=True, session=session)
    assert said(session) == ["Welcome", "Hello", "reply 2"]
    assert "agent  Welcome\nyou  Hello" in text


# watch --------------------------------------------------------------------------------------------------------------------


def test_each_turn_of_the_twin_is_shown_before_the_agent_replies(run: Run) -> None:
    screens: list[str] = []
    session, text = run(Agent(), kind="watch", max_turns=2, keep=lambda session: screens.append("kept"))
    assert said(session) == ["the weather in Oslo", "reply 1", "the weather in Rome", "reply 2"]
    assert text.count("why Ann says this") == 2
    assert text.index("Ann  the weather in Oslo") < text.index("agent  reply 1") < text.index("Ann  the weather in Rome")
    assert screens == ["kept"] * 2


def test_one_who_watches_lets_them_go_on_and_says_nothing(run: Run) -> None:
    session, text = run(Agent(), "", "Hello", "/me", "/undo", "/twin 2", kind="watch")
    assert said(session)[::2] == ["the weather in Rome", "the weather in Lima"]  # another first turn than the one taken back
    assert "in usertwin watch you say nothing" in text
    assert '"/me" is not a command' in text


def test_a_twin_that_has_left_says_no_more(run: Run, ann: str) -> None:
    answers = ("t", "hi, the weather in Oslo please", "t", "tomorrow, day 3", "t", "no thats all thank you bye")
    agent = Agent("Hello, what can I do for you?", "Which day do you mean for Oslo?", "It will be sunny. Anything else?")
    session, text = run(agent, "", kind="watch", answers=answers, max_turns=8, agent_first=True)
    assert len(session.turns) == 4
    assert session.has_left
    assert "Ann leaves." in text
    assert text.count("Ann has left; /undo takes that back, /quit ends") == 2  # on its own, and after Enter


def test_plain_output_has_a_speaker_before_every_line(run: Run) -> None:
    _, text = run(Agent("two\nlines"), "/why", "/help", kind="watch", plain=True, max_turns=1)
    speakers = {line.partition(":")[0] for line in text.splitlines()}
    assert speakers == {"usertwin", "Ann", "agent"}
    assert "agent: two\nagent: lines" in text
    assert text.isascii()


def test_control_characters_and_markup_are_inert(run: Run) -> None:
    session, text = run(Agent("\x1b]0;owned\x07 [bold]x[/bold] \u202e"), "\x1b[31mred", twin=False)
    assert "agent  ␛]0;owned␇ [bold]x[/bold] �" in text
    assert "\x1b" not in text
    with pytest.raises(UsageError, match="nothing was said"):
        Session(kind="play").undo()
    assert said(session)[0] == "\x1b[31mred"
