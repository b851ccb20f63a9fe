"""The SQLite schema of a memory, and the conversion of a triple to a row and back.

Each row has two checksums: one over the pair and its embedding, one over the trace. A damaged byte is noticed when the row is
read, and a trace can be set without touching the rest. The column `moment` is `Pair.when`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from usertwin.memory.triples import Provenance, Triple
from usertwin.personas import Turn
from usertwin.personas.pairs import Pair

_PAIR = ("id", "speaker", "conversation", "position", "moment", "context", "action", "goal", "ends", "role", "kind")
_TRACE = ("reasoning", "score", "provenance")
#: All columns but the number, in the order of `encode`. The embedding is last, so that reading the text does not read past it.
COLUMNS = (*_PAIR, *_TRACE, "checksum", "why_checksum", "embedding")
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
SET_TRACE = "UPDATE triples SET reasoning = ?, score = ?, provenance = ?, why_checksum = ? WHERE id = ?"


class DamagedRowError(ValueError):
    """A row differs from what was written."""


def encode(number: int, triple: Triple, embedding: bytes) -> tuple[Any, ...]:
    """Return the values of `INSERT` for a triple, its number and its embedding (float32 bytes)."""
    import orjson

    pair = triple.pair
    context = orjson.dumps([[t.speaker, t.role, t.text, t.time] for t in pair.context]).decode()
    values = (
        triple.id, pair.speaker, pair.conversation_id, pair.position, _real(pair.when), context, pair.action, pair.goal,
        int(pair.ends_conversation), pair.previous_role, pair.kind,
    )  # fmt: skip
    trace = _trace_values(triple)
    return (number, *values, *trace, _checksum((number, *values), embedding), _checksum((triple.id, *trace)), embedding)


def encode_trace(triple: Triple) -> tuple[Any, ...]:
    """Return the values of `SET_TRACE`."""
    trace = _trace_values(triple)
    return (*trace, _checksum((triple.id, *trace)), triple.id)


def decode(row: Sequence[Any]) -> Triple:
    """Return the triple of a row of `SELECT`. DamagedRowError if the row differs from what was written."""
    try:
        _, speaker, conversation, position, moment, context, action, goal, ends, _, _, *trace = check(row)
        return _triple(speaker, conversation, position, moment, context, action, goal, ends, *trace)
    except DamagedRowError:
        raise
    except (ValueError, TypeError) as error:
        raise DamagedRowError(f"triple {row[0]} cannot be read ({error})") from None


def decode_format_1(row: Sequence[Any]) -> Triple:
    """Return the triple of a row of format 1 (number, speaker to provenance, embedding), which had no checksums."""
    return _triple(*row[1:-1])


def check(row: Sequence[Any]) -> tuple[Any, ...]:
    """Return the values of a row of `SELECT` from `id` to `provenance`. DamagedRowError if a checksum does not match."""
    values, trace = tuple(row[1 : 1 + len(_PAIR)]), tuple(row[1 + len(_PAIR) : 1 + len(_PAIR) + len(_TRACE)])
    checksum, trace_checksum, embedding = row[-3:]
    if (
        not isinstance(embedding, bytes)
        or _checksum((row[0], *values), embedding) != checksum
        or _checksum((row[1], *trace)) != trace_checksum
    ):
        raise DamagedRowError(f"triple {row[0]} differs from what was written")
    return (*values, *trace)


def is_intact(row: Sequence[Any], dimension: int) -> bool:
    """Return whether a row is as it was written, with an embedding of the right length."""
    try:
        check(row)
    except DamagedRowError:
        return False
    return len(row[-1]) == 4 * dimension


def _triple(
    speaker: str, conversation: str, position: int, moment: float, context: str, action: str, goal: str, ends: int,
    reasoning: str | None, score: float | None, provenance: str | None,
) -> Triple:  # fmt: skip
    import orjson

    pair = Pair(
        speaker=speaker, context=tuple(Turn(*turn) for turn in orjson.loads(context)), action=action, goal=goal,
        conversation_id=conversation, position=position, when=moment, ends_conversation=bool(ends),
    )  # fmt: skip
    return Triple(pair, reasoning, score, Provenance.from_json(json.loads(provenance)) if provenance else None)


def _trace_values(triple: Triple) -> tuple[str | None, float | None, str | None]:
    provenance = json.dumps(triple.provenance.to_json()) if triple.provenance else None
    score = triple.score if triple.score is None or triple.score == triple.score else None  # SQLite has no NaN
    return triple.reasoning, None if score is None else _real(score), provenance


def _real(value: float) -> float:
    return float(value) + 0.0  # SQLite stores no -0.0


def _checksum(values: tuple[Any, ...], extra: bytes = b"") -> int:
    """Return a checksum as a signed 64-bit number, the largest integer that SQLite can hold."""
    import xxhash

    return int(xxhash.xxh3_64_intdigest(repr(values).encode() + extra)) - 2**63
