"""Prompt templates: filling, versions, and values that are never parsed as template code."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

import usertwin.memory
import usertwin.simulator
from usertwin.memory.text.prompt_template import PromptTemplate


def template(folder: Path, text: str, name: str = "greet.txt") -> PromptTemplate:
    path = folder / name
    path.write_text(text, "utf-8")
    return PromptTemplate(path)


def test_placeholders_and_conditions_are_filled(tmp_path: Path) -> None:
    goal, lines = "{% if goal %}\nGoal: {{ goal }}\n{% endif %}\n", "{% for line in lines %}\n- {{ line }}\n{% endfor %}\n"
    greet = template(tmp_path, "Dear {{ name }},\n" + goal + lines + "\n")
    assert greet.fill(name="Ann", goal="", lines=["a", "b"]) == "Dear Ann,\n- a\n- b"
    assert greet.fill(name="Ann", goal="go", lines=[]) == "Dear Ann,\nGoal: go"


def test_missing_value_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(jinja2.UndefinedError, match="name"):
        template(tmp_path, "Dear {{ name }}").fill(other="x")


@given(st.text() | st.sampled_from(["{{ 7 * 7 }}", "{% for x in y %}", "{# gone #}", "<b> & 'c'", "a\r\nb\n\n"]))
def test_values_are_inserted_verbatim(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    assert template(tmp_path_factory.mktemp("t"), "[{{ value }}]").fill(value=value) == f"[{value}]"


def test_version_is_the_name_and_a_hash_of_the_text(tmp_path: Path) -> None:
    version = template(tmp_path, "Dear {{ name }}").version
    assert version.startswith("greet/")
    assert len(version) == len("greet/") + 8
    (tmp_path / "copy").mkdir()
    assert template(tmp_path / "copy", "Dear {{ name }}").version == version
    assert template(tmp_path, "Dear {{ name }}!").version != version
    assert template(tmp_path, "Dear {{ name }}", "other.txt").version == version.replace("greet", "other")


@pytest.mark.parametrize(
    "path",
    [path for part in (usertwin.memory, usertwin.simulator) for path in sorted(Path(part.__file__).parent.rglob("*.txt"))],
)
def test_every_prompt_file_is_a_valid_template(path: Path) -> None:
    text = path.read_text("utf-8")
    jinja2.Environment(autoescape=True).parse(text)
    assert "{{" in text
    assert PromptTemplate(path).version.startswith(f"{path.stem}/")
