"""The built-in help desk: greeting, rules, and questions that do not repeat."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from usertwin.simulator.agents.demo_agent import help_desk


def talk(*texts: str) -> list[str]:
    """Return the help desk's answers, turn by turn."""
    messages: list[dict[str, str]] = []
    for text in texts:
        messages.append({"role": "user", "content": text})
        messages.append({"role": "assistant", "content": help_desk(messages)})
    return [message["content"] for message in messages[1::2]]


def test_it_greets_before_the_first_user_message() -> None:
    greeting = help_desk([])
    assert "help desk" in greeting
    assert help_desk([{"role": "assistant", "content": "earlier"}]) == greeting


def test_it_answers_typical_requests() -> None:
    assert "order number" in talk("where is my parcel?")[0]
    assert "return" in talk("I want my money back")[0]
    assert "went wrong" in talk("it doesn't work")[0]
    assert "dollars" in talk("How much is it?")[0]
    assert "book" in talk("a room please")[0]


def test_it_finds_an_order_by_its_number() -> None:
    assert "Friday" in talk("my order is late", "4711")[1]


def test_goodbye_wins_over_thanks() -> None:
    assert "Goodbye" in talk("thanks, bye!")[0]
    assert "welcome" in talk("Thanks!")[0]


def test_rules_match_whole_words() -> None:
    assert "Goodbye" not in talk("I like bytes")[0]
    assert "Hello" not in talk("this is it")[0]  # "hi" is in "this"


def test_it_does_not_repeat_an_answer() -> None:
    answers = talk("hello", "hello")
    assert answers[0] != answers[1]


def test_unknown_requests_get_different_questions() -> None:
    answers = talk(*["the moon is far away"] * 5)
    assert len(set(answers)) == 5
    assert all("?" in answer for answer in answers)


def test_only_the_last_user_message_counts() -> None:
    messages = [
        {"role": "user", "content": "I want a refund"},
        {"role": "assistant", "content": "..."},
        {"role": "user", "content": "how much does it cost"},
        {"role": "assistant", "content": "about my order"},
    ]
    assert "dollars" in help_desk(messages)


@given(st.lists(st.text(max_size=40), max_size=8))
def test_it_answers_any_text_deterministically(texts: list[str]) -> None:
    answers = talk(*texts)
    assert all(answer.strip() for answer in answers)
    assert answers == talk(*texts)
