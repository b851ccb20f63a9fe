"""What the terminal shows of an answer, and the chat in which the reader plays the agent."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from conftest import scripted
from usertwin.memory.models.chat import Usage
from usertwin.simulator import Answer, Exchange, SimulatedUser
from usertwin.simulator.state import RecalledTriple
from usertwin.simulator.terminal import chat, show_exchange, speech, why


def console(width: int = 120) -> Console:
    """A console that remembers what was shown."""
    return Console(record=True, file=io.StringIO(), width=width, force_terminal=True, color_system=None)


def row(**changes: Any) -> RecalledTriple:
    """A recalled triple as the graph's state holds it."""
    base: dict[str, Any] = {
        "id": "0" * 16,
        "similarity": 0.8765,
        "conversation_id": "c",
        "position": 1,
        "when": 0.0,
        "context": [{"speaker": "desk", "role": "agent", "text": "Which day do you mean?"}],
        "action": "tomorrow, day 7",
        "reasoning": "is in a hurry",
        "score": 0.1234,
    }
    return base | changes  # pyright: ignore[reportReturnType]


def answer(*recalled: RecalledTriple, reasoning: str = "wants it soon", done: bool = False) -> Answer:
    return Answer("tomorrow please", reasoning, recalled, done, Usage())


def shown(thing: Any, width: int = 120) -> str:
    screen = console(width)
    screen.print(thing)
    return screen.export_text()


# One answer --------------------------------------------------------------------------------------------------------------


def test_why_shows_memories_with_their_scores_and_the_thought() -> None:
    text = shown(why(answer(row(), row(similarity=0.5, score=-0.02, action="no thanks")), "Ann"))
    assert "why Ann says this" in text
    first, second = (line for line in text.splitlines() if "Which day do you mean?" in line)
    assert all(part in first for part in ("0.88", "is in a hurry [+0.12]", "tomorrow, day 7"))
    assert all(part in second for part in ("0.50", "[-0.02]", "no thanks"))
    assert "thinks  wants it soon" in text


def test_why_says_so_where_there_is_no_memory_and_no_thought() -> None:
    text = shown(why(answer(reasoning=""), "Ann"))
    assert "no memory came to mind" in text
    assert "no thought was written down" in text


def test_a_memory_without_context_trace_or_score_is_shown_as_such() -> None:
    text = shown(why(answer(row(context=[], reasoning=None, score=None)), "Ann"))
    [line] = (line for line in text.splitlines() if "tomorrow, day 7" in line)
    assert "(nothing yet)" in line
    assert "–" in line
    assert "[" not in line


def test_only_the_last_turn_of_a_long_context_is_shown_and_shortened() -> None:
    context = [{"speaker": "a", "role": "agent", "text": text} for text in ("earlier", "word " * 60)]
    text = shown(why(answer(row(context=context, reasoning="two\nlines")), "Ann"), 300)
    assert "earlier" not in text
    assert "…" in text
    assert "two lines [+0.12]" in text


def test_an_exchange_shows_why_what_and_the_reply() -> None:
    screen = console()
    replies = tuple({"role": "assistant", "content": text} for text in ("One moment.", "It rains."))
    show_exchange(screen, "Ann", Exchange(answer(row()), replies, 1.0, 1.0))
    lines = [line.strip() for line in screen.export_text().splitlines()]
    said = lines.index("Ann  tomorrow please")
    assert lines[said + 1 : said + 3] == ["agent  One moment.", "agent  It rains."]
    assert any("why Ann says this" in line for line in lines[:said])
    assert not any("leaves" in line for line in lines)


def test_an_exchange_shows_the_nearest_memories_and_why_shows_all() -> None:
    screen = console()
    one = answer(*(row(action=f"moment {number}") for number in range(6)))
    show_exchange(screen, "Ann", Exchange(one, (), 1.0, 1.0))
    text = screen.export_text()
    assert [f"moment {number}" in text for number in range(6)] == [True] * 4 + [False] * 2
    assert "and 2 more that are less like now" in text
    assert "moment 5" in shown(why(one, "Ann"))
    assert "more that are" not in shown(why(one, "Ann"))


def test_an_exchange_says_when_the_person_leaves() -> None:
    screen = console()
    show_exchange(screen, "Ann", Exchange(answer(done=True), (), 1.0, 0.0))
    assert "Ann leaves." in screen.export_text()


def test_an_exchange_in_which_the_person_silently_leaves_shows_what_that_came_from() -> None:
    screen = console(300)
    left = Answer("", "", (row(action="(left)"),), True, Usage(), 0.75)
    show_exchange(screen, "Ann", Exchange(left, (), 1.0, 0.0))
    text = screen.export_text()
    assert "why Ann leaves" in text
    assert "75% of what came to mind are moments in which Ann left" in text
    assert "(left)" in text
    assert "Ann leaves." in text


@given(st.text(st.sampled_from("[]/\\abc bold red=@:#"), max_size=20))
def test_what_looks_like_markup_is_shown_as_it_was_said(said: str) -> None:
    text = f"<{said.strip()}>"
    screen = console(300)
    memory = row(action=text, reasoning=text, context=[{"speaker": "a", "role": "agent", "text": text}])
    show_exchange(screen, "Ann", Exchange(Answer(text, text, (memory,), False, Usage()), ({"content": text},), 0.0, 0.0))
    flat = " ".join(screen.export_text().split())
    assert flat.count(" ".join(text.split())) == 6  # heard, thought and written then, thought and written now, the reply


def test_speech_keeps_a_name_with_brackets() -> None:
    assert shown(speech("[bold]Ann", "hi [red]you", style="cyan")).strip() == "[bold]Ann  hi [red]you"


# The chat ----------------------------------------------------------------------------------------------------------------

Talk = Callable[..., tuple[list[dict[str, Any]], str, list[str]]]


@pytest.fixture
def talk(ann: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Talk]:
    """Chat with Ann by these lines; returns the messages, what was on the screen, and what the model was asked."""
    opened: list[SimulatedUser] = []

    def run(*lines: str | BaseException, answers: tuple[str, ...] = ("a thought", "tomorrow please"), goal: str = "") -> Any:
        typed = itertools.chain(lines, itertools.repeat(EOFError()))

        def read(prompt: str = "") -> str:
            line = next(typed)
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read)
        user = SimulatedUser.load(ann, model=scripted(*answers))
        opened.append(user)
        screen = console()
        messages = chat(user, screen, goal=goal)
        return messages, screen.export_text(), user.model.chat.prompts  # pyright: ignore

    yield run
    for user in opened:
        user.close()


def test_you_are_the_agent_and_the_twin_answers(talk: Talk) -> None:
    messages, text, prompts = talk(
        "Hello, what can I do?", "Which day?", "/quit", answers=("t", "the weather", "t", "tomorrow")
    )
    assert [(m["role"], m["content"]) for m in messages] == [
        ("assistant", "Hello, what can I do?"),
        ("user", "the weather"),
        ("assistant", "Which day?"),
        ("user", "tomorrow"),
    ]
    assert "You are the agent; Ann answers." in text
    assert "Ann  the weather" in text
    assert "Ann  tomorrow" in text
    assert prompts[-1].endswith(
        "Them: Hello, what can I do?\nMe: the weather\nThem: Which day?\n(Me thinking: t)\nMe:"
    )  # the chat is one conversation


def test_quit_ends_the_chat_and_is_not_said(talk: Talk) -> None:
    messages, _, prompts = talk("  /quit ", "never read")
    assert messages == prompts == []


@pytest.mark.parametrize("end", [EOFError(), KeyboardInterrupt()])
def test_the_end_of_the_input_and_ctrl_c_end_the_chat(talk: Talk, end: BaseException) -> None:
    messages, _, _ = talk("Hello", end, "never read")
    assert [m["content"] for m in messages] == ["Hello", "tomorrow please"]


def test_why_shows_the_last_turn(talk: Talk) -> None:
    messages, text, prompts = talk("Hello", "/why", "/quit")
    assert "why Ann says this" in text
    assert "thinks  a thought" in text
    assert "like now" in text
    assert len(messages) == len(prompts) == 2  # asking why is not talking


def test_why_before_the_first_turn_says_that_there_is_none(talk: Talk) -> None:
    messages, text, _ = talk("/why", "/quit")
    assert "Ann has not said anything yet." in text
    assert messages == []


@pytest.mark.parametrize("line", ["/help", "/whyy", "/", "", "   "])
def test_an_unknown_command_or_an_empty_line_shows_what_there_is(talk: Talk, line: str) -> None:
    messages, text, prompts = talk(line, "/quit")
    assert text.count("/quit ends the chat") == 2  # once at the start, and once more
    assert messages == prompts == []


def test_a_goal_is_known_to_the_twin_alone(talk: Talk) -> None:
    _, text, prompts = talk("Hello", "/quit", goal="You want a window seat.")
    assert all("(My goal: You want a window seat.)" in prompt for prompt in prompts)
    assert "window seat" not in text


def test_the_chat_ends_when_the_twin_leaves(talk: Talk) -> None:
    lines = ("Hello, what can I do for you?", "Which day do you mean for Oslo?", "It will be sunny. Anything else?")
    said = ("t", "hi, the weather in Oslo please", "t", "tomorrow, day 3", "t", "no thats all thank you bye")
    messages, text, _ = talk(*lines, "never read", answers=said)
    assert "Ann leaves the chat." in text
    assert len(messages) == 6


def test_what_goes_wrong_is_said_and_the_chat_goes_on(talk: Talk) -> None:
    answers = ("t", "", "", "", "", "t", "tomorrow please")  # a thought and four times nothing, then a turn
    messages, text, _ = talk("Hello [bold", "Hello again", "/quit", answers=answers)
    assert "wrote nothing 4 times in a row" in " ".join(text.split())
    assert "Traceback" not in text
    assert [m["content"] for m in messages] == ["Hello again", "tomorrow please"]  # what was not answered was not said
