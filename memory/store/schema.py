"""A triple as a row of SQLite, and back.

The one design choice: a row carries two checksums, one over what happened (and its embedding) and one over why, so that
a damaged byte is noticed by whoever reads the row, and a trace can be set without touching the rest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from usertwin.memory.triples import Provenance, Triple
from usertwin.personas import Turn
from usertwin.personas.pairs import Pair

_PAIR = ("id", "speaker", "conversation", "position", "moment", "context", "action", "goal", "ends", "role", "kind")
_WHY = ("reasoning", "score", "provenance")
#: All columns but the number, in the order of `encode`. The embedding is last: whoever wants the text need not read past it.
COLUMNS = (*_PAIR, *_WHY, "checksum", "why_checksum", "embedding")
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE triples (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, speaker TEXT NOT NULL, conversation TEXT NOT NULL,
    position INTEGER NOT NULL, moment REAL NOT NULL, context TEXT NOT NULL, action TEXT NOT NULL, goal TEXT NOT NULL,
    ends INTEGER NOT NULL, role TEXT NOT NULL, kind TEXT NOT NULL, reasoning TEXT, score REAL, provenance TEXT,
    checksum INTEGER NOT NULL, why_checksum INTEGER NOT NULL, embedding BLOB NOT NULL) STRICT;
CREATE INDEX triples_traced ON triples (number) WHERE reasoning IS NOT NULL;
"""
INSERT = f"INSERT INTO triples (number, {', '.join(COLUMNS)}) VALUES (?{', ?' * len(COLUMNS)})"
SELECT = f"SELECT number, {', '.join(COLUMNS)} FROM triples"
SET_WHY = "UPDATE triples SET reasoning = ?, score = ?, provenance = ?, why_checksum = ? WHERE id = ?"


class DamagedRowError(ValueError):
    """A row is not what was written."""


def encode(number: int, triple: Triple, embedding: bytes) -> tuple[Any, ...]:
    """A triple and its embedding (float32) as the values of `INSERT`, its number first."""
    import orjson

    pair = triple.pair
    context = orjson.dumps([[t.speaker, t.role, t.text, t.time] for t in pair.context]).decode()
    happened = (
        triple.id, pair.speaker, pair.conversation_id, pair.position, _real(pair.when), context, pair.action, pair.goal,
        int(pair.ends), pair.answers_role, pair.kind,
    )  # fmt: skip
    why = _why(triple)
    return (number, *happened, *why, _sum((number, *happened), embedding), _sum((happened[0], *why)), embedding)


def encode_trace(triple: Triple) -> tuple[Any, ...]:
    """The values of `SET_WHY`."""
    why = _why(triple)
    return (*why, _sum((triple.id, *why)), triple.id)


def decode(row: Sequence[Any]) -> Triple:
    """The triple of a row of `SELECT`. DamagedRowError if it is not what was written."""
    try:
        values = check(row)
        _, speaker, conversation, position, moment, context, action, goal, ends, _, _, reasoning, score, provenance = values
        pair = _pair(speaker, conversation, position, moment, context, action, goal, ends)
        return Triple(pair, reasoning, score, Provenance.from_json(json.loads(provenance)) if provenance else None)
    except DamagedRowError:
        raise
    except (ValueError, TypeError) as error:
        raise DamagedRowError(f"triple {row[0]} cannot be read ({error})") from None


def from_format_1(row: Sequence[Any]) -> Triple:
    """The triple of a row of format 1: number, speaker to provenance, embedding; it had no checksums."""
    _, speaker, conversation, position, moment, context, action, goal, ends, reasoning, score, provenance, _ = row
    pair = _pair(speaker, conversation, position, moment, context, action, goal, ends)
    return Triple(pair, reasoning, score, Provenance.from_json(json.loads(provenance)) if provenance else None)


def check(row: Sequence[Any]) -> tuple[Any, ...]:
    """What a row of `SELECT` says about its triple. DamagedRowError if one of its checksums does not hold."""
    happened, why = tuple(row[1 : 1 + len(_PAIR)]), tuple(row[1 + len(_PAIR) : 1 + len(_PAIR) + len(_WHY)])
    checksum, why_checksum, embedding = row[-3:]
    if (
        not isinstance(embedding, bytes)
        or _sum((row[0], *happened), embedding) != checksum
        or _sum((row[1], *why)) != why_checksum
    ):
        raise DamagedRowError(f"triple {row[0]} is not what was written")
    return (*happened, *why)


def _pair(
    speaker: str, conversation: str, position: int, moment: float, context: str, action: str, goal: str, ends: int
) -> Pair:
    import orjson

    return Pair(
        speaker=speaker,
        context=tuple(Turn(*turn) for turn in orjson.loads(context)),
        action=action,
        goal=goal,
        conversation_id=conversation,
        position=position,
        when=moment,
        ends=bool(ends),
    )


def is_whole(row: Sequence[Any], dimension: int) -> bool:
    """Whether a row is what was written, and can be."""
    try:
        check(row)
    except DamagedRowError:
        return False
    return len(row[-1]) == 4 * dimension


def _why(triple: Triple) -> tuple[str | None, float | None, str | None]:
    provenance = json.dumps(triple.provenance.to_json()) if triple.provenance else None
    score = triple.score if triple.score is None or triple.score == triple.score else None  # SQLite has no NaN
    return triple.reasoning, None if score is None else _real(score), provenance


def _real(value: float) -> float:
    return float(value) + 0.0  # SQLite keeps no -0.0


def _sum(values: tuple[Any, ...], more: bytes = b"") -> int:
    """A checksum as the signed 64-bit number that SQLite can hold."""
    import xxhash

    return int(xxhash.xxh3_64_intdigest(repr(values).encode() + more)) - 2**63
