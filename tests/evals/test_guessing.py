"""evals/demo/guessing.py and views.py: the guessing game, and what fits on a terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from conftest import PAIR, function_model
from usertwin.evals.demo.guessing import play, score, write_pairs
from usertwin.evals.demo.moments import choose_moments
from usertwin.evals.demo.views import chat_view, comparison_view, two_replies_view
from usertwin.memory import Recalled, Triple, existing_twin
from usertwin.memory.models.chat import Usage
from usertwin.personas import Pair, Turn
from usertwin.simulator import Answer, SimulatedUser

REAL = "no thats all thank you bye"


def console(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width, color_system=None)


def text_of(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


@pytest.fixture
def user(ann: str) -> Iterator[SimulatedUser]:
    model, _ = function_model(lambda prompt, seed: "what about the day after")
    with SimulatedUser.load(ann, model=model) as user:
        yield user


@pytest.fixture
def moments(user: SimulatedUser, repeats_count: None) -> list[Pair]:
    return choose_moments(user, existing_twin("ann"), 9)


def answer_with(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Let the reader type these lines, and then end the input."""
    waiting = iter(lines)

    def typed(*_: object) -> str:
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)


def play_at(screen: Console, user: SimulatedUser, moments: list[Pair], *, rounds: int) -> str:
    return play(screen, user.persona.name, write_pairs(user, moments, count=rounds))


def test_a_guess_is_right_where_the_real_turn_stands(
    user: SimulatedUser, moments: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with(monkeypatch, *["A"] * 9)
    screen = console(100)
    sentence = play_at(screen, user, moments, rounds=9)
    lines = text_of(screen).splitlines()
    places = ["A" if line.index(REAL) < 50 else "B" for line in lines if REAL in line]
    verdicts = [line.partition("? ")[2] for line in lines if line.endswith("really wrote.")]
    assert len(places) == len(verdicts) == len(moments) > 1
    assert verdicts == [f"{'Right' if place == 'A' else 'No'}: {place} is what Ann really wrote." for place in places]
    assert sentence.startswith(f"You found the real turn in {places.count('A')} of {len(moments)} pairs")


def test_both_places_are_used(user: SimulatedUser, moments: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, *["A"] * 20)
    screen = console()
    play_at(screen, user, moments * 4, rounds=len(moments) * 4)
    assert {line.split(":")[1].split()[0] for line in text_of(screen).splitlines() if line.endswith("wrote.")} == {"A", "B"}


@pytest.mark.parametrize("end", [[""], []], ids=["empty line", "end of input"])
def test_the_game_ends_early_and_counts_what_was_guessed(
    user: SimulatedUser, moments: list[Pair], monkeypatch: pytest.MonkeyPatch, end: list[str]
) -> None:
    answer_with(monkeypatch, "what?", "b", *end)
    screen = console()
    sentence = play_at(screen, user, moments, rounds=5)
    assert "type A or B" in text_of(screen)
    assert " of 1 pairs" in sentence
    answer_with(monkeypatch, *end)
    assert play_at(console(), user, moments, rounds=5) == ""


def test_a_pair_of_equal_replies_is_no_question(ann: str, moments: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = function_model(lambda prompt, seed: REAL)
    answer_with(monkeypatch, *["A"] * 9)
    with SimulatedUser.load(ann, model=model) as same:
        assert play_at(console(), same, moments, rounds=5) == ""


def test_a_twin_that_writes_no_turn_is_no_question(ann: str, moments: list[Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = function_model(lambda prompt, seed: "")
    answer_with(monkeypatch, *["A"] * 9)
    with SimulatedUser.load(ann, model=model) as mute:
        assert play_at(console(), mute, moments, rounds=5) == ""


@pytest.mark.parametrize(
    ("right", "interval", "reading"),
    [(5, "57% to 100%", "tell them apart"), (3, "23% to 88%", "blind guessing"), (0, "0% to 43%", "passes for the person")],
)
def test_a_score_has_its_interval_and_claims_no_more(right: int, interval: str, reading: str) -> None:
    sentence = score(right, 5)
    assert f"{right} of 5 pairs (95% interval {interval})" in sentence
    assert reading in sentence


# Views ------------------------------------------------------------------------------------------------------------------


def long_moment() -> tuple[Pair, Answer]:
    """Return a moment and an answer in which every text is long."""
    words = " ".join(["word"] * 400)
    context = tuple(Turn("Bob" if place % 2 else "Ann", "user", " ".join(["word"] * 25)) for place in range(9))
    pair = Pair(
        speaker="Ann", context=context, action=words, goal="", conversation_id="c", position=9, when=0.0
    )  # fmt: skip
    return pair, Answer(
        action=words, reasoning="", recalled=(Recalled(Triple(pair), 0.5),), done=False, usage=Usage()
    )  # fmt: skip


def test_a_moment_fits_on_a_terminal_of_80_columns_and_24_lines() -> None:
    pair, answer = long_moment()
    screen = console()
    for view in (chat_view(pair, "Ann"), comparison_view(pair, answer, "Ann")):
        screen.print(view)
    lines = text_of(screen).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


def test_the_reply_stands_beside_the_real_turn_and_the_memory_below() -> None:
    memory = Triple(PAIR)
    answer = Answer(action="at nine", reasoning="", recalled=(Recalled(memory, 0.876),), done=False, usage=Usage())
    screen = console()
    screen.print(comparison_view(PAIR, answer, "Ann"))
    lines = text_of(screen).splitlines()
    [heads] = [line for line in lines if "the twin says" in line]
    [replies] = [line for line in lines if "at nine" in line]
    assert heads.index("Ann really said") == replies.index(PAIR.action)
    assert "similarity 0.88" in text_of(screen)
    assert "When do you want to go?" in text_of(screen)


def test_a_twin_that_leaves_is_said_to_leave() -> None:
    answer = Answer(action="", reasoning="", recalled=(), done=True, usage=Usage())
    screen = console()
    screen.print(comparison_view(PAIR, answer, "Ann"))
    assert "(leaves without a word)" in text_of(screen)


def test_the_chat_names_the_person_and_counts_earlier_turns() -> None:
    pair, _ = long_moment()
    screen = console()
    screen.print(chat_view(pair, "[b]Ann"))  # no markup
    text = text_of(screen)
    assert "(5 earlier turns)" in text
    assert "[b]Ann  word" in text
    assert "the other  word" in text


def test_replies_are_no_markup() -> None:
    screen = console()
    screen.print(two_replies_view("[red]one", "[/]two"))
    assert "[red]one" in text_of(screen)
    assert "[/]two" in text_of(screen)
