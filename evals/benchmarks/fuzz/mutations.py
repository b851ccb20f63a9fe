"""Seeded mutations of valid examples: values of a JSON tree, lines of TOML, cells and pages of SQLite, bytes.

Design: most mutations keep the format valid, because a parser refuses the others at once and the code behind it is never run.
"""

from __future__ import annotations

import copy
import gzip
import json
import random
import sqlite3
import zlib
from collections.abc import Callable, MutableMapping, MutableSequence
from pathlib import Path
from typing import Any, TypeAlias

_Holder: TypeAlias = MutableMapping[str, Any] | MutableSequence[Any]

_DEEP: Any = json.loads("[" * 60 + "]" * 60)
#: Values that readers may not expect, in JSON and in Python.
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    0,
    1,
    2**31,
    2**63,
    -(2**64),
    10**30,
    0.5,
    -0.0,
    1e308,
    -1e308,
    5e-324,
    float("nan"),
    float("inf"),
    "",
    " ",
    "x",
    "0",
    "1.5",
    "\x00",
    "\ud800",
    "\u202eabc",
    "\x1b[2J",
    "[/]",
    "[red]x",
    "a/b",
    "../../x",
    "~nobody/x",
    "é" * 300,
    "x" * 20_000,
    "2026-05-01",
    "9999-12-31T23:59:59-23:59",
    "1777600000000",
    "openai:m@http://h",
    "local+x",
    "[\u2028]",
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"value": 1.0, "n": 1},
    [["a", "b"]],
    _DEEP,
)
#: Tokens that no serializer writes: put into a text in place of a value.
_RAW_TOKENS = (
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 5000,
    b"-" + b"9" * 400,
    b"[" * 1200,
    b"[" * 1200 + b"]" * 1200,
    b'{"a":' * 1200,
    b"'",
    b'"\\ud800"',
    b'"\\u0000"',
    b"\xff",
    b"\xef\xbb\xbf",
    b"nul",
    b",",
    b":",
    b"\x00",
    b"1_000",
    b"0x10",
    b"1979-05-27T07:32:00Z",
    b"inf",
    b"nan",
    b'"""',
    b"[[x]]",
)


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return bytes with one to three changes at random places: bits, cuts, copies, odd tokens."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        place, end = sorted((rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)))
        kind = rng.randrange(7)
        if kind == 0 and content:
            place = min(place, len(content) - 1)
            content = content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]
        elif kind == 1:
            content = content[:place]
        elif kind == 2:
            content = content[:place] + content[min(end, place + 64) :]
        elif kind == 3:
            content = content[:place] + rng.choice(_RAW_TOKENS) + content[place:]
        elif kind == 4:
            content = content[:end] + content[place : min(end, place + 256)] + content[end:]
        elif kind == 5:
            content = content[:place] + rng.randbytes(rng.randrange(1, 16)) + content[place:]
        else:
            content = _replace_token(content, rng)
    return content


def _replace_token(content: bytes, rng: random.Random) -> bytes:
    """Replace what stands between two separators with an odd token."""
    places = [place for place in range(len(content)) if content[place] in b":=,[ \n"]
    if not places:
        return rng.choice(_RAW_TOKENS)
    start = rng.choice(places) + 1
    ends = [place for place in places if place >= start]
    return content[:start] + rng.choice(_RAW_TOKENS) + content[ends[0] if ends else len(content) :]


def mutate_value(value: Any, rng: random.Random) -> Any:
    """Return a copy of a JSON value with one to three parts replaced, removed, renamed, repeated or exchanged."""
    box: list[Any] = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(box))
        holder, key = rng.choice(places)
        kind = rng.randrange(6)
        if kind <= 2:
            holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))
        elif kind == 3 and holder is not box:
            del holder[key]
        elif kind == 4:
            other, place = rng.choice(places)
            holder[key] = copy.deepcopy(other[place])
        elif isinstance(holder, MutableMapping):
            holder[rng.choice(("", "x", "text", "value", "n", "settings", "\ud800", f"{key}s"))] = holder.pop(key)
        elif holder is not box:
            holder.insert(key, copy.deepcopy(holder[key]))
    return box[0]


def _places(holder: _Holder) -> Any:
    """Yield every part of a JSON value as its holder and its key."""
    waiting: list[Any] = [holder]
    while waiting:
        inner = waiting.pop()
        for key in list(inner) if isinstance(inner, MutableMapping) else range(len(inner)):
            yield inner, key
            if isinstance(inner[key], list | dict) and inner[key]:
                waiting.append(inner[key])


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """Return a JSON text with a changed value, and sometimes with changed bytes."""
    if rng.random() < 0.25:
        return mutate_bytes(content, rng)
    return json.dumps(mutate_value(json.loads(content), rng)).encode()


def mutate_lines(content: bytes, rng: random.Random) -> bytes:
    """Return JSON lines of which one or more were changed, repeated, removed or exchanged."""
    if rng.random() < 0.15:
        return mutate_bytes(content, rng)
    lines = content.splitlines()
    for _ in range(rng.choice((1, 1, 2))):
        place = rng.randrange(len(lines)) if lines else 0
        if not lines or rng.random() < 0.1:
            lines.insert(place, rng.choice(_RAW_TOKENS))
        elif rng.random() < 0.1:
            lines.insert(place, rng.choice(lines))
        else:
            try:
                lines[place] = mutate_json(lines[place], rng)
            except (ValueError, RecursionError):  # it was changed before
                lines[place] = mutate_bytes(lines[place], rng)
    return b"\n".join(lines) + rng.choice((b"\n", b"\n", b""))


def mutate_toml(content: bytes, rng: random.Random) -> bytes:
    """Return a TOML text with changed, repeated, removed or exchanged lines and values."""
    if rng.random() < 0.2:
        return mutate_bytes(content, rng)
    lines = content.decode().splitlines()
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.randrange(len(lines))
        key, equals, _ = lines[place].partition("=")
        kind = rng.randrange(5)
        if equals and kind <= 2:
            odd = rng.choice((*ODD_VALUES, *_RAW_TOKENS))
            lines[place] = f"{key}= {odd.decode('latin-1') if isinstance(odd, bytes) else json.dumps(odd)}"
        elif kind == 3:
            lines.insert(place, rng.choice(lines))
        elif len(lines) > 1:
            lines.pop(place)
    return "\n".join(lines).encode()


def mutate_gzip(mutate: Callable[[bytes, random.Random], bytes]) -> Callable[[bytes, random.Random], bytes]:
    """Return a mutation of the content of a gzip file, and sometimes of its compressed bytes."""

    def mutated(content: bytes, rng: random.Random) -> bytes:
        try:
            inner = gzip.decompress(content)
        except (OSError, EOFError, zlib.error):
            return mutate_bytes(content, rng)
        return mutate_bytes(content, rng) if rng.random() < 0.3 else gzip.compress(mutate(inner, rng), 1, mtime=0)

    return mutated


def mutate_sqlite(path: Path, rng: random.Random) -> None:
    """Change cells, tables or bytes of a SQLite file."""
    if rng.random() < 0.4:
        path.write_bytes(_mutate_pages(path.read_bytes(), rng))
        return
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        names = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        ).fetchall()
        [table] = rng.choice(names)
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info('{table}')")]
        odd = rng.choice(ODD_VALUES)
        cell = odd if isinstance(odd, float | str | None) or (isinstance(odd, int) and abs(odd) < 2**63) else json.dumps(odd)
        if isinstance(cell, str):
            cell = cell.encode("utf-8", "surrogatepass") if rng.random() < 0.3 else cell.encode("utf-8", "replace").decode()
        kind = rng.randrange(6)
        where = f"rowid = (SELECT rowid FROM '{table}' LIMIT 1 OFFSET {rng.randrange(8)})"
        if kind <= 3:
            connection.execute(
                f"UPDATE '{table}' SET \"{rng.choice(columns)}\" = ?" + (f" WHERE {where}" if kind else ""), [cell]
            )
        elif kind == 4:
            connection.execute(f"DROP TABLE '{table}'")
        else:
            connection.execute(f"DELETE FROM '{table}' WHERE {where}")
    except sqlite3.Error:  # the schema or an earlier change refuses this one
        pass
    finally:
        connection.close()


def _mutate_pages(content: bytes, rng: random.Random) -> bytes:
    kind, page = rng.randrange(4), 4096 * rng.randrange(max(1, len(content) // 4096))
    if kind == 0:
        return content[:page] + bytes(4096) + content[page + 4096 :]
    if kind == 1:
        return content[: rng.randrange(len(content) + 1)]
    return mutate_bytes(content, rng)
