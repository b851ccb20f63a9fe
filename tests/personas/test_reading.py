"""JSON and TOML files of every damaged kind are one sentence, and values are of their type or refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from usertwin.personas import LogError, UsageError
from usertwin.personas.reading import STRICT, as_type, parse_json, parse_toml, read_file


@dataclass(frozen=True)
class Point:
    """A shape."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    x: float
    tags: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is not JSON"),
        (b"{", "it is not JSON"),
        (b"\xff", "it is not UTF-8 text (byte 0)"),
        (b"NaN", "NaN is no number in JSON"),
        (b"[-Infinity]", "-Infinity is no number in JSON"),
        (b"1e999", "'1e999' is too large a number"),
        (b"1" * 5000, "it holds a number of 5000 digits"),
        (b"-" + b"1" * 400, "it holds a number of 401 digits"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' occurs twice"),
        (b"[" * 100_000 + b"]" * 100_000, "it is nested too deeply"),
        (b"[" * 500 + b"]" * 500, "it is nested too deeply"),
        (b'{"a":' * 300 + b"1" + b"}" * 300, "it is nested too deeply"),
    ],
)  # fmt: skip
def test_json_of_every_damaged_kind_is_a_sentence(content: bytes, reason: str) -> None:
    with pytest.raises(ValueError) as failed:
        parse_json(content)
    assert str(failed.value).startswith(reason)
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a = ", "it is not TOML"),
        ("a = 1\na = 2", "it is not TOML"),
        (f"a = {'1' * 5000}", "it holds a number with too many digits"),
        (f"a = {'[' * 10_000}", "it is nested too deeply"),
        (f"a = {'[' * 200}{']' * 200}", "it is nested too deeply"),
        ('a = "x\\u0000y"', "it holds a NUL character"),
    ],
)  # fmt: skip
def test_toml_of_every_damaged_kind_is_a_sentence(content: str, reason: str) -> None:
    with pytest.raises(ValueError) as failed:
        parse_toml(content)
    assert str(failed.value).startswith(reason)


def test_a_byte_order_mark_is_skipped() -> None:
    assert parse_json(b"\xef\xbb\xbf[1]") == [1]
    assert parse_toml(b"\xef\xbb\xbfa = 1") == {"a": 1}


def test_a_value_becomes_its_type_and_nothing_else_is_converted() -> None:
    assert as_type(Point, {"x": 1, "tags": ["a"]}) == Point(1.0, ("a",))
    wrong: dict[str, Any] = {"x: ": {"x": "1"}, "tags.0: ": {"x": 1, "tags": [1]}, "y: ": {"x": 1, "y": 2}, "x: f": {}}
    for place, value in wrong.items():
        with pytest.raises(ValueError, match=f"^{place}"):
            as_type(Point, value)
    with pytest.raises(ValueError, match="not finite"):
        as_type(Point, {"x": float("nan")})


def test_a_file_that_cannot_be_read_names_the_file_and_the_way_out(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(LogError) as failed:
            read_file(path, parse_json, way_out="make it again", error=LogError)
        return str(failed.value)

    assert message(tmp_path / "none") == f"{tmp_path}/none: no such file; make it again"
    assert message(tmp_path) == f"{tmp_path}: cannot be read (is a directory); make it again"
    assert message(tmp_path / ("x" * 5000)).endswith(": cannot be read (the name is too long); make it again")
    assert "is no file name" in message(Path("a\0b"))
    (tmp_path / "damaged").write_text("{")
    assert message(tmp_path / "damaged").startswith(f"{tmp_path}/damaged: it is not JSON (")
    with pytest.raises(UsageError, match="nowhere is named"):
        read_file(tmp_path / "none", parse_json, way_out="", error=UsageError, missing="nowhere is named")


def test_half_a_surrogate_pair_spoils_no_value() -> None:
    assert as_type(tuple[str, ...], ["\ud800", "ü"]) == ("?", "ü")
