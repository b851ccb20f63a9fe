"""Completions: reasoning is not an answer, and a tag that somebody writes about is text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.memory.text.completions import MIXED, ONLY_REASONING, UNCLOSED, Answered, json_objects, without_reasoning
from usertwin.memory.text.control_tokens import COMMON, without_control_tokens


@pytest.mark.parametrize(
    "completion",
    [
        "<think>\nI am Mira, be short.\n</think>\n\ni need a bell",
        "<thinking>a</thinking>i need a bell",
        "<reasoning>a <think>b</think> c</reasoning>\ni need a bell",
        "Okay, I should act as the customer.\n</think>\ni need a bell",
        "\u25c1think\u25b7short\u25c1/think\u25b7i need a bell",
        "[THINK]short[/THINK]i need a bell",
        "<THINK >short</ think>i need a bell",
        "<thought>short</thought>i need a bell",
        "<|start|>assistant<|channel|>final<|message|>i need a bell",
        "i need a bell\n<think>was that short?</think>",
        "<|channel|>analysis<|message|>We need<|end|><|start|>assistant<|channel|>final<|message|>i need a bell<|return|>",
        "analysisWe need a bell.assistantfinali need a bell",
        "<think>first</think><think>second</think>i need a bell",
        "<think>short</think>\n<answer> i need a bell\n</answer>",
        "<|begin_of_thought|>short<|end_of_thought|>\n\n<|begin_of_solution|>i need a bell<|end_of_solution|>",
        "<|begin_of_thought|>short<|end_of_thought|><|begin_of_solution|>i need a bell",
        "analysis(short)assistantfinali need a bell",
    ],
)
def test_the_answer_is_what_remains_without_reasoning(completion: str) -> None:
    assert without_reasoning(completion) == Answered("i need a bell")


@pytest.mark.parametrize(
    ("completion", "defect"),
    [
        ("<think>The user wants", UNCLOSED),
        ("i need a bell <think>I should be", UNCLOSED),
        ("<think>a</think>i need <think>b", UNCLOSED),
        ("i need <think>short</think> a bell", MIXED),
        ("<think>only</think>", ONLY_REASONING),
        ("plan</think>", ONLY_REASONING),
        ("<|channel|>analysis<|message|>We need", ONLY_REASONING),
        ("analysisWe need to", ONLY_REASONING),
        ("<reasoning>The user wants", UNCLOSED),
        ("i need <think>a</think> a bell</think>or two", MIXED),
    ],
)
def test_what_is_not_one_whole_answer_is_named(completion: str, defect: str) -> None:
    assert without_reasoning(completion).defect == defect


@pytest.mark.parametrize(
    "text",
    [
        "why does it print `<think>` always",
        'what is "<reasoning>"?',
        "i think <so> ok",
        "analysis of it please",
        "analysis('data.csv') crashes with a KeyError",
        'what does "<|channel|>" mean?',
        "<answer>42</answer>",
        " hello",
        "a < b",
    ],
)
def test_text_about_tags_is_unchanged(text: str) -> None:
    assert without_reasoning(text) == Answered(text)


def test_a_tag_that_the_chat_is_about_is_text_inside_a_line_only() -> None:
    prompt = "Them: Your page shows <think> and </think>.\nMe:"
    assert without_reasoning("yes the <think> and the </think> are there", prompt).defect == ""
    assert without_reasoning("<think>a</think>yes", prompt) == Answered("yes")
    assert without_reasoning("a plan\n</think>\nyes", prompt) == Answered("yes")


@pytest.mark.parametrize(
    "text",
    [
        "<reason>late</reason> is what it returns",
        "my file:\n<reason>late</reason>\n<reasoning>x</reasoning>\nwhy is it refused?",
        "<analysis>\n  <item>3</item>\n</analysis>",
        "<reflection/>",
        "</reason> is missing at the end",
        '<thought id="3">calm</thought>',
        "my template:\n```\n<think>\n{{ text }}\n</think>\n```\nand it prints the tags",
        "it shows `if (a <think> b)` there",
        "analysisResult is null",
        'commentary"x" is a syntax error',
        "my parser gets <|channel|>final<|message|>hi and fails",
        "[think] positive",
    ],
)
def test_xml_and_code_are_unchanged(text: str) -> None:
    assert without_reasoning(text) == Answered(text)
    assert without_reasoning(f"<think>a</think>{text}") == Answered(text)


def test_a_tag_of_the_chat_begins_a_turn_as_text() -> None:
    text = "<reasoning>late</reasoning> is refused"
    assert without_reasoning(text, "Them: Write it as <reasoning>.\nMe:") == Answered(text)
    assert without_reasoning(text) == Answered("is refused")


_ELEMENTS = st.recursive(
    st.sampled_from(["late", "x < 3", "i need a bell", "\n", ""]),
    lambda inner: st.builds(
        lambda name, parts: f"<{name}>{''.join(parts)}</{name}>",
        st.sampled_from(["reason", "analysis", "reasoning", "thought", "reflection", "div", "order"]),
        st.lists(inner, max_size=3),
    ),
    max_leaves=8,
)


@given(_ELEMENTS)
def test_a_document_within_a_turn_is_unchanged(document: str) -> None:
    text = f"this one:\n{document}"
    assert without_reasoning(text) == Answered(text)
    assert without_reasoning(f"<think>short</think>{text}") == Answered(text.strip())


@given(
    st.text(st.characters(exclude_characters="<[\u25c1"), max_size=60).filter(
        lambda text: not text.strip().startswith(("analysis", "commentary"))
    )
)
def test_text_without_a_tag_is_unchanged(text: str) -> None:
    assert without_reasoning(text) == Answered(text)


@given(st.text('abc {}"\\1:,', max_size=40))
def test_json_objects_are_objects(text: str) -> None:
    assert all(isinstance(raw, dict) for raw in json_objects(text))


def test_json_objects_are_found_in_prose() -> None:
    assert list(json_objects('first {"a": {"b": 1}}, {no} {"c": 2}')) == [{"a": {"b": 1}}, {"c": 2}]


@given(st.lists(st.sampled_from([*COMMON, "<", "|", "s>", " ", "x", "[", "INST]"]), max_size=8).map("".join))
def test_no_control_token_remains_and_nothing_else_changes(text: str) -> None:
    inert = without_control_tokens(text, COMMON)
    assert not any(token in inert for token in COMMON)
    assert inert.replace(" ", "") == text.replace(" ", "")
    assert without_control_tokens(text, ()) == text
