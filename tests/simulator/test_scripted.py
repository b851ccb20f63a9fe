"""Scripted chat models: replies in order, rules, and malformed files."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.memory.models.chat import sample
from usertwin.personas import ModelError
from usertwin.simulator import load_model
from usertwin.simulator.backends.scripted import ScriptedChatModel, scripted_model


def reply(model: ScriptedChatModel, prompt: str) -> str:
    return str(model.invoke(prompt).text)


def test_the_lines_of_a_script_are_replies_in_order(tmp_path: Path) -> None:
    path = tmp_path / "script.txt"
    path.write_text("one\n\n   \ntwo\n", "utf-8")
    model = scripted_model(path)
    assert [reply(model, "x") for _ in range(5)] == ["one", "two", "one", "two", "one"]
    assert model.prompts == ["x"] * 5


def test_replies_to_requests_made_at_once_keep_the_order_of_the_script() -> None:
    async def ask() -> list[str]:
        model = ScriptedChatModel(answers=[str(number) for number in range(50)])
        return [str(message.text) for message in await asyncio.gather(*(model.ainvoke("x") for _ in range(50)))]

    assert asyncio.run(ask()) == [str(number) for number in range(50)]


@pytest.mark.parametrize("gap", ["", " "])
def test_a_rule_replies_to_matching_prompts(tmp_path: Path, gap: str) -> None:
    path = tmp_path / "script.txt"
    path.write_text(f'one\n{{{gap}"when": "Rome", "say": "ciao\\n{{x}}"}}\n{{{gap}"say": "any", "when": "o"}}\ntwo\n', "utf-8")
    model = scripted_model(path)
    assert [reply(model, prompt) for prompt in ("a", "to Rome", "b", "oh")] == ["one", "ciao\n{x}", "two", "any"]


def test_a_script_of_rules_only_replies_with_nothing_to_other_prompts(tmp_path: Path) -> None:
    path = tmp_path / "script.txt"
    path.write_text('{"when": "Rome", "say": "ciao"}\n', "utf-8")
    assert reply(scripted_model(path), "Oslo") == ""


def test_a_reply_may_begin_with_a_brace(tmp_path: Path) -> None:
    path = tmp_path / "script.txt"
    path.write_text("{smiles} hello\n", "utf-8")
    assert reply(scripted_model(path), "x") == "{smiles} hello"


@pytest.mark.parametrize("rule", ['{"when": "a"}', '{"say": "a"}', '{"when": "a", "say": "b"', '{"when"}', '{"when": "a"} b'])
def test_a_malformed_rule_is_reported_with_its_line(tmp_path: Path, rule: str) -> None:
    path = tmp_path / "script.txt"
    path.write_text(f"one\n{rule}\n", "utf-8")
    with pytest.raises(ModelError, match=r"script\.txt:2: not a rule"):
        scripted_model(path)


def test_empty_lines_count_in_the_line_number_of_a_malformed_rule(tmp_path: Path) -> None:
    path = tmp_path / "script.txt"
    path.write_text('one\n\n\n{"when"}\n', "utf-8")
    with pytest.raises(ModelError, match=r"script\.txt:4"):
        scripted_model(path)


def test_a_missing_unreadable_or_empty_script_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text(" \n", "utf-8")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("none", "binary", "."):
        with pytest.raises(ModelError, match="the script cannot be read"):
            load_model(f"scripted:{tmp_path / name}")
    with pytest.raises(ModelError, match="the script is empty"):
        load_model(f"scripted:{tmp_path / 'empty'}")


_LINE_ENDS = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


@given(st.lists(st.text(st.characters(exclude_characters=_LINE_ENDS, codec="utf-8")), max_size=5))
def test_any_file_is_a_script_or_a_model_error(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = tmp_path_factory.mktemp("scripts") / "script.txt"
    path.write_bytes("\n".join(lines).encode())
    nonempty = [line for line in lines if line.strip()]
    try:
        model = scripted_model(path)
    except ModelError:
        assert not nonempty or any(line.lstrip().startswith("{") for line in nonempty)
        return
    assert len(model.answers) + len(model.rules) == len(nonempty)
    assert set(model.answers) <= set(nonempty)


def test_usage_counts_words_as_tokens(tmp_path: Path) -> None:
    script = tmp_path / "script.txt"
    script.write_text("one two\nthree\n", "utf-8")
    samples = asyncio.run(sample(load_model(f"scripted:{script}"), [("system", "a b"), ("user", "c")], n=2))
    assert sorted(completion.text for completion in samples) == ["one two", "three"]
    assert {completion.usage.input_tokens for completion in samples} == {3}
