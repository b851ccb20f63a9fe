"""The built-in help desk greets, keeps to its rules, does not repeat itself, and always says something."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from usertwin.simulator.demo_agent import help_desk


def talk(*said: str) -> list[str]:
    """What the help desk answers, turn by turn."""
    messages: list[dict[str, str]] = []
    for text in said:
        messages.append({"role": "user", "content": text})
        messages.append({"role": "assistant", "content": help_desk(messages)})
    return [message["content"] for message in messages[1::2]]


def test_it_greets_where_nobody_has_said_anything() -> None:
    greeting = help_desk([])
    assert "help desk" in greeting
    assert help_desk([{"role": "assistant", "content": "earlier"}]) == greeting


def test_it_knows_what_a_help_desk_is_asked() -> None:
    assert "order number" in talk("where is my parcel?")[0]
    assert "return" in talk("I want my money back")[0]
    assert "went wrong" in talk("it doesn't work")[0]
    assert "dollars" in talk("How much is it?")[0]
    assert "book" in talk("a room please")[0]


def test_an_order_is_found_by_its_number() -> None:
    assert "Friday" in talk("my order is late", "4711")[1]


def test_it_says_goodbye_to_who_leaves_also_with_thanks() -> None:
    assert "Goodbye" in talk("thanks, bye!")[0]
    assert "welcome" in talk("Thanks!")[0]


def test_a_part_of_a_word_is_not_the_word() -> None:
    assert "Goodbye" not in talk("I like bytes")[0]
    assert "Hello" not in talk("this is it")[0]  # "hi" is in "this"


def test_it_does_not_give_the_same_answer_to_the_same_words() -> None:
    answers = talk("hello", "hello")
    assert answers[0] != answers[1]


def test_what_it_does_not_know_it_asks_about_and_differently_each_time() -> None:
    answers = talk(*["the moon is far away"] * 5)
    assert len(set(answers)) == 5
    assert all("?" in answer for answer in answers)


def test_only_the_users_last_words_count() -> None:
    messages = [
        {"role": "user", "content": "I want a refund"},
        {"role": "assistant", "content": "..."},
        {"role": "user", "content": "how much does it cost"},
        {"role": "assistant", "content": "about my order"},
    ]
    assert "dollars" in help_desk(messages)


@given(st.lists(st.text(max_size=40), max_size=8))
def test_it_answers_anything_and_always_the_same(said: list[str]) -> None:
    answers = talk(*said)
    assert all(answer.strip() for answer in answers)
    assert answers == talk(*said)
