"""JSON and TOML files are read here, once and strictly: each becomes a value of its type, or one sentence says what is wrong.

What is refused: text that is not UTF-8, NaN and Infinity, numbers of hundreds of digits, a key that occurs twice, values nested
too deeply, and every value of another type than the file's dataclass or TypedDict declares. A byte order mark is skipped.
"""

from __future__ import annotations

import errno
import json
import tomllib
from collections.abc import Callable
from functools import cache
from math import isinf
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import UsertwinError

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

_T = TypeVar("_T")
#: Digits of a number, nested levels, and characters of a value in a message, at most.
_MAX_DIGITS, _MAX_DEPTH, _SHOWN = 300, 100, 60
#: A dataclass with this `__pydantic_config__` refuses unknown fields.
STRICT = {"extra": "forbid"}
_TOO_DEEP = "it is nested too deeply"


def parse_json(content: str | bytes) -> Any:
    """Return the value of a strict JSON text. ValueError says what is wrong with it."""
    try:
        value = json.loads(
            decoded(content), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_float, parse_int=_int
        )
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise ValueError(f"it is not JSON ({error.msg} at {place})") from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _check_depth(value)
    return value


def parse_toml(content: str | bytes) -> dict[str, Any]:
    """Return the table of a TOML text, which holds settings. ValueError says what is wrong with it."""
    try:
        table = tomllib.loads(text := decoded(content), parse_float=_float)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"it is not TOML ({error})") from None
    except ValueError as error:
        raise ValueError("it holds a number with too many digits" if "digits" in str(error) else str(error)) from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _check_depth(table)
    if "\\" in text and "\\u0000" in json.dumps(table, default=str):
        raise ValueError("it holds a NUL character, which no name can have")
    return table


def as_type(shape: type[_T], value: Any) -> _T:
    """Return a JSON value as a dataclass, a TypedDict or another type. ValueError names the field that is wrong.

    Lists become tuples where a tuple is declared, and "?" stands for half of a surrogate pair, which no file can hold as text;
    otherwise nothing is converted, and a text is no number.
    """
    from pydantic import ValidationError

    try:
        text = json.dumps(value, default=str, allow_nan=False, ensure_ascii=False).encode("utf-8", "replace")
    except ValueError:
        raise ValueError("it holds a number that is not finite") from None
    try:
        return _adapter(shape).validate_json(text, strict=True)
    except ValidationError as error:
        raise ValueError(field_sentence(error)) from None


def field_sentence(error: ValidationError) -> str:
    """Return the first wrong field of a validation, and what is wrong with it."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = "" if first["type"] in {"missing", "value_error"} else f", not {shown(first['input'])}"
    return f"{place}: {message}{given}" if place else f"{message}{given}"


def shown(value: Any) -> str:
    """Return the beginning of a value as Python writes it, for a message."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or nested too deeply
        text = f"a very long {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def read_file(
    path: Path, parse: Callable[[bytes], _T], *, way_out: str, error: Callable[[str], UsertwinError], missing: str | None = None
) -> _T:
    """Return what `parse` makes of the bytes of a file.

    Args:
        path: the file.
        parse: raises ValueError for a file of another shape.
        way_out: what the user can do about a damaged file; it ends the message.
        error: the class of the error.
        missing: the message for a missing file; by default it says "no such file".

    Raises:
        UsertwinError: `error`, if the file is missing, cannot be read, or `parse` raises ValueError.
    """
    try:
        content = path.read_bytes()
    except OSError as failed:
        if isinstance(failed, FileNotFoundError | NotADirectoryError):
            raise error(missing or f"{path}: no such file; {way_out}") from None
        raise error(f"{path}: cannot be read ({reason(failed)}); {way_out}") from None
    except ValueError as failed:  # a NUL in its name
        raise error(f"{shown(str(path))}: is no file name ({failed}); {way_out}") from None
    try:
        return parse(content)
    except ValueError as failed:
        raise (failed if isinstance(failed, UsertwinError) else error(f"{path}: {failed}; {way_out}")) from None


def reason(error: OSError) -> str:
    """Return why the operating system refused, without the name of the file."""
    text = "the name is too long" if error.errno == errno.ENAMETOOLONG else error.strerror or str(error)
    return text[:1].lower() + text[1:]


@cache
def _adapter(shape: type[_T]) -> TypeAdapter[_T]:
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def decoded(content: str | bytes) -> str:
    """Return UTF-8 text without a byte order mark. ValueError names the first byte that is not UTF-8."""
    if isinstance(content, str):
        return content.removeprefix("\ufeff")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text (byte {error.start})") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {shown(next(name for name in names if names.count(name) > 1))} occurs twice")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


def _float(text: str) -> float:
    value = float(text)
    if isinf(value) and "inf" not in text.lower():
        raise ValueError(f"{shown(text)} is too large a number")
    return value


def _int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"it holds a number of {len(text)} digits")
    return int(text)


def _check_depth(value: Any) -> None:
    """Raise ValueError if a value is nested more deeply than any file of ours, so that no later step recurses too deeply."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise ValueError(_TOO_DEEP)
