"""The terminal: the memories and reasoning behind an answer, and the chat in which the reader is the agent."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from conftest import scripted
from usertwin.memory import Recalled, Triple
from usertwin.memory.models.chat import Usage
from usertwin.personas import Pair, Turn
from usertwin.simulator import Answer, Exchange, SimulatedUser
from usertwin.simulator.terminal.chat import chat
from usertwin.simulator.terminal.views import show_exchange, speech, why, why_lines


def console(width: int = 120) -> Console:
    """Return a console that records its output."""
    return Console(record=True, file=io.StringIO(), width=width, force_terminal=True, color_system=None)


def memory(
    *,
    similarity: float = 0.8765,
    context: tuple[str, ...] = ("Which day do you mean?",),
    action: str = "tomorrow, day 7",
    reasoning: str | None = "is in a hurry",
    score: float | None = 0.1234,
) -> Recalled:
    """Return a recalled triple."""
    turns = tuple(Turn("desk", "agent", text) for text in context)
    pair = Pair(
        speaker="Ann", context=turns, action=action, goal="", conversation_id="c", position=len(turns), when=0.0
    )  # fmt: skip
    return Recalled(Triple(pair, reasoning, score), similarity)


def answer(*recalled: Recalled, action: str = "tomorrow please", **fields: Any) -> Answer:
    """Return an answer of a twin."""
    defaults: dict[str, Any] = {"reasoning": "wants it soon", "done": False, "usage": Usage()}
    return Answer(action=action, recalled=recalled, **(defaults | fields))


def printed(renderable: Any, width: int = 120) -> str:
    """Return what a console prints."""
    screen = console(width)
    screen.print(renderable)
    return screen.export_text()


# Answers ----------------------------------------------------------------------------------------------------------------


def test_why_shows_memories_scores_and_reasoning() -> None:
    text = printed(why(answer(memory(), memory(similarity=0.5, score=-0.02, action="no thanks")), "Ann"))
    assert "why Ann says this" in text
    first, second = (line for line in text.splitlines() if "Which day do you mean?" in line)
    assert all(part in first for part in ("0.88", "is in a hurry [+0.12]", "tomorrow, day 7"))
    assert all(part in second for part in ("0.50", "[-0.02]", "no thanks"))
    assert "reasoning  wants it soon" in text


def test_why_says_what_the_prompt_lacks() -> None:
    text = printed(why(answer(memory(), cut_turns=3, cut_recalled=1), "Ann"))
    assert "not in the prompt, or not whole: 3 earlier turns of the chat and 1 of these memories" in text
    assert "not whole: 1 of these memories" in printed(why(answer(memory(), cut_recalled=1), "Ann"))
    assert "not in the prompt" not in printed(why(answer(memory()), "Ann"))


def test_why_without_memories_and_reasoning_states_that() -> None:
    text = printed(why(answer(reasoning=""), "Ann"))
    assert "no memories were recalled" in text
    assert "reasoning  (none)" in text


def test_a_memory_without_context_trace_or_score_has_placeholders() -> None:
    text = printed(why(answer(memory(context=(), reasoning=None, score=None), memory(action="no thanks")), "Ann"))
    [line] = (line for line in text.splitlines() if "tomorrow, day 7" in line)
    assert "(none)" in line
    assert "–" in line
    assert "[" not in line


def test_memories_without_any_trace_have_no_column_for_it() -> None:
    text = printed(why(answer(memory(reasoning=None, score=None)), "Ann"))
    assert "action" in text
    assert text.count("reasoning") == 1  # that of the answer


def test_only_the_shortened_last_turn_of_a_context_is_printed() -> None:
    context = ("earlier", "word " * 60)
    text = printed(why(answer(memory(context=context, reasoning="two\nlines")), "Ann"), 300)
    assert "earlier" not in text
    assert "…" in text
    assert "two lines [+0.12]" in text


def test_an_exchange_shows_memories_turn_and_reply() -> None:
    screen = console()
    replies = tuple({"role": "assistant", "content": text} for text in ("One moment.", "It rains."))
    show_exchange(screen, "Ann", Exchange(answer(memory()), replies, 1.0, 1.0))
    lines = [line.strip() for line in screen.export_text().splitlines()]
    turn = lines.index("Ann  tomorrow please")
    assert lines[turn + 1 : turn + 3] == ["agent  One moment.", "agent  It rains."]
    assert any("why Ann says this" in line for line in lines[:turn])
    assert not any("leaves" in line for line in lines)


def test_an_exchange_shows_four_memories_and_why_shows_all() -> None:
    screen = console()
    one = answer(*(memory(action=f"moment {number}") for number in range(6)))
    show_exchange(screen, "Ann", Exchange(one, (), 1.0, 1.0))
    text = screen.export_text()
    assert [f"moment {number}" in text for number in range(6)] == [True] * 4 + [False] * 2
    assert "and 2 less similar ones" in text
    assert "moment 5" in printed(why(one, "Ann"))
    assert "less similar ones" not in printed(why(one, "Ann"))


def test_an_exchange_states_that_the_person_leaves() -> None:
    screen = console()
    show_exchange(screen, "Ann", Exchange(answer(done=True), (), 1.0, 0.0))
    assert "Ann leaves." in screen.export_text()


def test_an_exchange_with_a_silent_leave_shows_its_rate() -> None:
    screen = console(300)
    left = answer(memory(action="(left)"), action="", reasoning="", done=True, abandonment_rate=0.75)
    show_exchange(screen, "Ann", Exchange(left, (), 1.0, 0.0))
    text = screen.export_text()
    assert "why Ann leaves" in text
    assert "Ann left in 75% of the most similar memories" in text
    assert "(left)" in text
    assert "Ann leaves." in text


@given(st.text(st.sampled_from("[]/\\abc bold red=@:#"), max_size=20))
def test_markup_in_texts_is_printed_literally(markup: str) -> None:
    text = f"<{markup.strip()}>"
    screen = console(300)
    recalled = memory(action=text, reasoning=text, context=(text,))
    show_exchange(
        screen,
        "Ann",
        Exchange(answer(recalled, action=text, reasoning=text), ({"role": "assistant", "content": text},), 0.0, 0.0),
    )
    flat = " ".join(screen.export_text().split())
    assert (
        flat.count(" ".join(text.split())) == 6
    )  # context, reasoning and action of the memory; reasoning and action now; the reply


@pytest.mark.parametrize(("encoding", "dots"), [("utf-8", "…"), ("cp1252", "…"), ("latin-1", "..."), ("ascii", "...")])
def test_a_narrow_panel_lists_the_memories_and_keeps_its_frame_in_every_encoding(encoding: str, dots: str) -> None:
    text = "Zoë – 日本語 " + "word " * 30
    file = io.TextIOWrapper(io.BytesIO(), encoding)
    screen = Console(file=file, width=80, record=True)
    screen.print(why(answer(memory(context=(text,), action=text, reasoning=text), reasoning=text), "Zoë"))
    lines = screen.export_text().splitlines()
    assert {cell_len(line) for line in lines} == {80}
    assert len({line[0] for line in lines[1:-1]} | {line[-1] for line in lines[1:-1]}) == 1  # the frame
    assert sum(line.rstrip("|│ ").endswith(dots) for line in lines) == 3  # each part of the memory is one line
    file.flush()  # all could be encoded


def test_a_screen_reader_gets_the_same_as_sentences() -> None:
    one = answer(memory(), memory(reasoning=None, score=None), cut_turns=2)
    assert list(why_lines(one, "Ann", 1)) == [
        "why Ann says this",
        "memory 1, similarity 0.88: to Which day do you mean? the reply tomorrow, day 7",
        "memory 1, reasoning: is in a hurry [+0.12]",
        "and 1 less similar ones",
        "reasoning: wants it soon",
        "not in the prompt, or not whole: 2 earlier turns of the chat",
    ]


def test_speech_prints_brackets_in_a_name() -> None:
    assert printed(speech("[bold]Ann", "hi [red]you", style="cyan")).strip() == "[bold]Ann  hi [red]you"


# The chat ---------------------------------------------------------------------------------------------------------------

Talk = Callable[..., tuple[list[dict[str, Any]], str, list[str]]]


@pytest.fixture
def talk(ann: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Talk]:
    """A function that chats with Ann and returns the messages, the screen, and the model's prompts."""
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


def test_the_reader_is_the_agent_and_the_twin_answers(talk: Talk) -> None:
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


def test_quit_ends_the_chat_and_is_not_a_message(talk: Talk) -> None:
    messages, _, prompts = talk("  /quit ", "never read")
    assert messages == prompts == []


@pytest.mark.parametrize("end", [EOFError(), KeyboardInterrupt()])
def test_the_end_of_the_input_and_ctrl_c_end_the_chat(talk: Talk, end: BaseException) -> None:
    messages, _, _ = talk("Hello", end, "never read")
    assert [m["content"] for m in messages] == ["Hello", "tomorrow please"]


def test_why_shows_the_last_turn(talk: Talk) -> None:
    messages, text, prompts = talk("Hello", "/why", "/quit")
    assert "why Ann says this" in text
    assert "reasoning  a thought" in text
    assert "similarity" in text
    assert len(messages) == len(prompts) == 2  # /why is not a message


def test_why_before_the_first_turn_states_that_there_is_none(talk: Talk) -> None:
    messages, text, _ = talk("/why", "/quit")
    assert "Ann has not said anything yet." in text
    assert messages == []


@pytest.mark.parametrize("line", ["/help", "", "   "])
def test_help_and_an_empty_line_list_the_commands(talk: Talk, line: str) -> None:
    messages, text, prompts = talk(line, "/quit")
    lines = [line.split()[0] for line in text.splitlines() if line.startswith("/")]
    assert lines == ["/why", "/goal", "/undo", "/save", "/help", "/quit", "//..."]
    assert messages == prompts == []


@pytest.mark.parametrize("line", ["/whyy", "/", "/me", "/twin 2", "/ quit"])
def test_an_unknown_command_is_said_to_be_none_with_the_commands(talk: Talk, line: str) -> None:
    messages, text, prompts = talk(line, "/quit")
    name = line.split(" ")[0]
    assert f'"{name}" is not a command (/why, /goal, /undo, /save, /help, /quit); to say it, double the slash: /{line}' in text
    assert messages == prompts == []


def test_a_line_that_begins_with_a_slash_is_said_by_doubling_it(talk: Talk) -> None:
    messages, _, _ = talk("//etc/hosts is missing", "///", "/QUIT", "never read")
    assert [m["content"] for m in messages if m["role"] == "assistant"] == ["/etc/hosts is missing", "//"]


def test_undo_takes_the_last_exchange_back_and_another_answer_is_sampled(talk: Talk) -> None:
    answers = ("t", "the weather", "t", "tomorrow", "t", "today")
    messages, text, prompts = talk("Hello", "Which day?", "/undo", "Which day?", "/undo", "/undo", "/undo", answers=answers)
    assert "taken back: you: Which day?\ntaken back: Ann: tomorrow" in text
    assert text.count("taken back: you: Which day?") == 2
    assert "nothing was said that could be taken back" in text
    assert messages == []
    assert prompts[-1].endswith("Them: Hello\nMe: the weather\nThem: Which day?\n(Me thinking: t)\nMe:")


def test_the_goal_can_be_seen_changed_and_removed(talk: Talk) -> None:
    _, text, prompts = talk("/goal", "/goal You want a boat.", "Hello", "/goal -", "Which?", "/goal", goal="A window seat.")
    assert "goal: A window seat." in text
    assert "(My goal: You want a boat.)" in prompts[0]
    assert "My goal" not in prompts[-1]
    assert text.count("goal: (none)") == 2


def test_an_entry_of_several_lines_is_one_message_and_no_command(talk: Talk) -> None:
    messages, _, _ = talk("/quit\nis what I typed\n", "/quit")
    assert messages[0]["content"] == "/quit\nis what I typed"


def test_only_the_twin_sees_the_goal(talk: Talk) -> None:
    _, text, prompts = talk("Hello", "/quit", goal="You want a window seat.")
    assert all("(My goal: You want a window seat.)" in prompt for prompt in prompts)
    assert "window seat" not in text


def test_the_chat_ends_when_the_twin_leaves(talk: Talk) -> None:
    lines = ("Hello, what can I do for you?", "Which day do you mean for Oslo?", "It will be sunny. Anything else?")
    replies = ("t", "hi, the weather in Oslo please", "t", "tomorrow, day 3", "t", "no thats all thank you bye")
    messages, text, _ = talk(*lines, "not said", "", "never read", answers=replies)
    assert "Ann leaves the chat." in text
    assert "Ann has left the chat; /undo takes that back, Enter ends the chat" in text
    assert "never read" not in text
    assert len(messages) == 6


def test_a_leave_can_be_taken_back(talk: Talk) -> None:
    lines = ("Hello, what can I do for you?", "Which day do you mean for Oslo?", "It will be sunny. Anything else?")
    replies = ("t", "hi, the weather in Oslo please", "t", "tomorrow, day 3", "t", "no thats all thank you bye", "t", "rain?")
    messages, _, _ = talk(*lines, "/undo", "It will be sunny.", answers=replies)
    assert [m["content"] for m in messages[-2:]] == ["It will be sunny.", "rain?"]


def test_an_error_is_printed_and_the_chat_continues(talk: Talk) -> None:
    answers = ("t", "", "", "", "", "t", "tomorrow please")  # reasoning and four empty attempts, then a turn
    messages, text, _ = talk("Hello [bold", "Hello again", "/quit", answers=answers)
    assert "wrote nothing 4 times in a row" in " ".join(text.split())
    assert "Traceback" not in text
    assert [m["content"] for m in messages] == ["Hello again", "tomorrow please"]  # a message without an answer is dropped
