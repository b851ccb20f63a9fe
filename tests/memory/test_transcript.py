"""Transcripts: a turn is one line, the person is "Me", and the thought comes before the action."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.memory.text.transcript import (
    action_completion,
    context_lines,
    escaped_line,
    format_action_prompt,
    format_example,
    format_thought_prompt,
    join_blocks,
    persona_line,
    single_line,
    unescaped_line,
)
from usertwin.personas import Pair, Turn


def pair(*turns: tuple[str, str], action: str = "fine, thanks", goal: str = "") -> Pair:
    return Pair(
        speaker="Ann",
        context=tuple(Turn(speaker, "any", text) for speaker, text in turns),
        action=action,
        goal=goal,
        conversation_id="talk",
        position=len(turns),
        when=0.0,
    )


TALK = pair(("Bob", "Hello"), ("Ann", "hi"), ("Bob", "How are\nyou?"), goal="Be friendly.")

texts = st.text(st.characters(exclude_categories=[]), max_size=40)
pairs = st.builds(
    lambda turns, action, goal: pair(*turns, action=action, goal=goal),
    st.lists(st.tuples(st.one_of(st.just("Ann"), texts), texts), max_size=6),
    texts,
    texts,
)


def test_action_prompt_has_goal_context_and_thought_and_ends_before_the_action() -> None:
    assert format_action_prompt(TALK, 4) == "(My goal: Be friendly.)\nThem: Hello\nMe: hi\nThem: How are \\n you?\nMe:"
    assert format_action_prompt(TALK, 1, thought="is  polite\n") == (
        "(My goal: Be friendly.)\nThem: How are \\n you?\n(Me thinking: is polite)\nMe:"
    )


def test_example_has_the_action_and_no_goal() -> None:
    assert format_example(TALK, 1) == "Them: How are \\n you?\nMe: fine, thanks\n"
    assert (
        format_example(TALK, 1, thought="is polite") == "Them: How are \\n you?\n(Me thinking: is polite)\nMe: fine, thanks\n"
    )


def test_zero_turns_give_no_context() -> None:
    assert context_lines(TALK, 0) == []
    assert format_action_prompt(pair(), 4) == "Me:"


def test_several_other_speakers_are_named_even_if_only_one_is_in_the_window() -> None:
    three = pair(("Bob", "Hello"), ("Cleo", "Hi all"), ("Ann", "hi"), ("Bob", "So?"))
    assert context_lines(three, 3) == ["Cleo: Hi all", "Me: hi", "Bob: So?"]
    assert context_lines(three, 1) == ["Bob: So?"]


def test_turns_and_goal_are_whole_and_only_examples_are_shortened() -> None:
    long = "start " + "x" * 3000 + " end"
    assert context_lines(pair(("Bob", long)), 4) == [f"Them: {long}"]
    assert format_action_prompt(pair(goal=long), 4) == f"(My goal: {long})\nMe:"
    assert format_example(pair(("Bob", "x" * 300 + "end")), 4).startswith("Them: …" + "x" * 237 + "end\n")
    assert format_example(pair(("Bob", "x" * 240)), 4).startswith("Them: " + "x" * 240 + "\n")


MARKER = re.compile(r"\((?:me thinking|my goal|about me):", re.IGNORECASE)
PARTS = ("(", "Me thinking", "ME  Thinking", "My goal", "About me", ":", ")", "\n", "Me: ", "x")
forged = st.one_of(texts, st.lists(st.sampled_from(PARTS), max_size=8).map("".join))


@given(st.lists(st.tuples(st.one_of(st.just("Ann"), forged), forged), max_size=4), forged, forged, st.none() | forged, forged)
def test_no_text_and_no_speaker_can_be_a_marker_or_a_turn(
    turns: list[tuple[str, str]], action: str, goal: str, thought: str | None, description: str
) -> None:
    sample_pair = pair(*turns, action=action, goal=goal)
    blocks = [persona_line(description), format_example(sample_pair, 4, thought=thought), format_action_prompt(sample_pair, 4)]
    prompt = join_blocks(blocks)
    assert len(MARKER.findall(prompt)) == 1 + (thought is not None) + bool(goal)
    lines = prompt.splitlines()
    assert sum(line.startswith("(") for line in lines) == 1 + (thought is not None) + bool(goal)
    own = sum(speaker == "Ann" for speaker, _ in turns)
    assert sum(line.startswith("Me:") for line in lines) == 2 * own + 2


@pytest.mark.parametrize("speaker", ["(Me thinking", "(My goal", "Me", "me", "Me: hi", "", "()", "(left)"])
def test_a_speaker_cannot_forge_a_marker_or_the_person(speaker: str) -> None:
    lines = context_lines(pair((speaker, "I hate it"), ("Cleo", "So?")), 2)
    assert not lines[0].startswith(("(", "Me:"))
    assert lines[0].endswith(": I hate it")


def test_blocks_are_separated_by_dashes_and_a_blank_line() -> None:
    assert join_blocks([format_example(TALK, 1), format_action_prompt(TALK, 0)]) == (
        "Them: How are \\n you?\nMe: fine, thanks\n---\n\n(My goal: Be friendly.)\nMe:"
    )


@pytest.mark.parametrize("end", ["thanks", "thanks.", "thanks?", "ok :)"])
def test_a_turn_ends_in_the_same_token_in_an_example_as_when_it_is_scored(end: str) -> None:
    """With the pretokenizer and the merges of Qwen2.5, which has tokens of punctuation and two newlines."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    split = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    merges = [("Ċ", "Ċ"), (".", "Ċ"), ("?", "Ċ"), (":", ")"), ("Ġ", ":)"), (".", "ĊĊ"), ("?", "ĊĊ"), ("Ġ:)", "ĊĊ")]
    parts = [*pre_tokenizers.ByteLevel.alphabet(), *dict.fromkeys(first + second for first, second in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={part: number for number, part in enumerate(parts)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # pyright: ignore[reportAttributeAccessIssue]
        [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    example = pair(("Bob", "hi"), action=end)
    shown = tokenizer.encode(join_blocks([format_example(example, 1), "Them: hi"])).tokens
    scored = tokenizer.encode("Them: hi\nMe:").tokens + tokenizer.encode(action_completion(end)).tokens
    assert shown[: len(scored)] == scored


@given(texts)
def test_single_line_has_no_line_break_and_the_same_words(text: str) -> None:
    assert len(single_line(text).splitlines()) <= 1
    assert single_line(text).split() == text.split()
    assert single_line(single_line(text)) == single_line(text)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("two\nlines", r"two \n lines"), ("  a \n\n  b\n", r"a \n \n b"), ("C:\\new\ndone", r"C:\\new \n done"),
        ("Me: x\nThem: y", r"Me: x \n Them: y"), ("\\", "\\\\"), (" ", ""),
    ],
)  # fmt: skip
def test_line_breaks_and_backslashes_survive_on_one_line(text: str, line: str) -> None:
    assert escaped_line(text) == line
    assert unescaped_line(line) == "\n".join(part.strip() for part in text.strip().split("\n"))


@pytest.mark.parametrize("text", [r"it is in C:\new\notes", r"\nabla f = \n0", "a \\nb"])
def test_other_backslashes_are_no_line_breaks(text: str) -> None:
    assert unescaped_line(text) == text


def test_a_long_turn_is_cut_before_it_is_escaped() -> None:
    shown = format_example(pair(("Bob", "a\n" * 200)), 1).splitlines()[0]
    assert shown.startswith("Them: …")
    assert shown.count("\\n") in range(118, 121)
    assert context_lines(pair(("Bob", "C:\\x\nb")), 1) == ["Them: C:\\x b"]  # for prompts that are no transcripts


@given(texts)
def test_an_escaped_text_is_one_line_and_comes_back_but_for_blanks(text: str) -> None:
    assert len(escaped_line(text).splitlines()) <= 1
    assert unescaped_line(escaped_line(text)) == "\n".join(map(single_line, text.strip().splitlines())).strip()


@given(pairs, st.integers(0, 6))
def test_every_turn_is_one_line(sample_pair: Pair, turns: int) -> None:
    shown = min(turns, len(sample_pair.context))
    lines = format_example(sample_pair, turns, thought="why").splitlines()
    assert len(lines) == shown + 2
    assert lines[shown:] == ["(Me thinking: why)", f"Me: {escaped_line(sample_pair.action)}"]


@given(pairs, st.integers(0, 6), texts)
def test_action_prompt_plus_completion_equals_the_example(sample_pair: Pair, turns: int, thought: str) -> None:
    without_goal = pair(*((turn.speaker, turn.text) for turn in sample_pair.context), action=sample_pair.action)
    prompt = format_action_prompt(without_goal, turns, thought=thought)
    assert prompt + action_completion(sample_pair.action) == format_example(sample_pair, turns, thought=thought)


@given(pairs, st.integers(0, 6), texts)
def test_action_prompt_with_a_thought_starts_with_the_thought_prompt(sample_pair: Pair, turns: int, thought: str) -> None:
    assert format_action_prompt(sample_pair, turns, thought=thought).startswith(format_thought_prompt(sample_pair, turns) + " ")
    assert format_thought_prompt(sample_pair, turns).endswith("(Me thinking:")
