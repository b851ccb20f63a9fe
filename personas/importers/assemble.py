"""Threads become conversations: placeholders are dropped, silences cut, messages of one speaker joined, and ids made.

The id of a conversation without one is made of its first two turns and their time, and the id of a part of a thread of the time
at which it begins, so a later export of a conversation that grew gives the same id.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from itertools import pairwise
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from usertwin.personas.conversation import Conversation, Turn, replace_lone_surrogates
from usertwin.personas.dates import to_timestamp
from usertwin.personas.errors import UsageError

from .placeholders import is_placeholder
from .thread import EMPTY, PLACEHOLDER, Tally, Thread, shown

#: Seconds of silence at which a thread is cut, and within which messages of one speaker are one turn.
DEFAULT_GAP, DEFAULT_BURST = 4 * 3600.0, 120.0
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How threads become conversations.

    Attributes:
        gap: seconds of silence at which every conversation is cut; None for threads only, at `DEFAULT_GAP`; 0 for no cut.
        burst: seconds within which messages of one speaker are joined; None for threads only, `DEFAULT_BURST`; 0 for never.
        zone: the time zone of times that name none; None leaves them so, and they count as UTC.
    """

    gap: float | None = None
    burst: float | None = None
    zone: tzinfo | None = None


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as "4h", "90m", "30s" or "2d"; 0 for "none". UsageError for anything else."""
    plain = text.strip().lower()
    if plain == "none":
        return 0.0
    number, unit = (plain[:-1], plain[-1]) if plain[-1:] in _UNITS else (plain, "s")
    if not number.replace(".", "", 1).isdecimal() or len(number) > 9:
        raise UsageError(f'"{text}" is no duration; give a number with s, m, h or d, such as 4h, or none')
    return float(number) * _UNITS[unit]


def make_rules(*, gap: str | None = None, burst: str | None = None, timezone: str | None = None) -> Rules:
    """Return the rules that options give. UsageError names the option that is wrong."""
    seconds: dict[str, float | None] = {}
    for option, text in (("gap", gap), ("burst", burst)):
        try:
            seconds[option] = None if text is None else parse_duration(text)
        except UsageError as error:
            raise UsageError(f"--{option}: {error}") from None
    try:
        zone = None if timezone is None else ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UsageError(f'--timezone: "{timezone}" is no time zone; give one such as Europe/Berlin or UTC') from None
    return Rules(gap=seconds["gap"], burst=seconds["burst"], zone=zone)


def assemble(thread: Thread, rules: Rules, tally: Tally, *, is_thread: bool, joiner: str = "\n") -> Iterator[Conversation]:
    """Yield the conversations of a thread, in time order; none if no turn is left.

    Args:
        thread: the messages of a conversation, or of a channel if `is_thread`.
        rules: where it is cut and which messages are joined.
        tally: counts what is dropped, joined and cut.
        is_thread: whether the defaults of `rules` cut and join it.
        joiner: the text between joined messages.
    """
    turns = [turn for turn in thread.turns if _is_kept(turn, tally)]
    if rules.zone is not None:
        turns = [replace(turn, time=_in_zone(turn.time, rules.zone)) for turn in turns]
    if not turns:
        return
    turns, times = _in_order(turns, tally, thread.name, sort=is_thread)
    cuts = is_thread and not thread.whole
    gap = rules.gap if rules.gap is not None else DEFAULT_GAP if cuts else 0.0
    burst = rules.burst if rules.burst is not None else DEFAULT_BURST if is_thread else 0.0
    parts = _parts(times, gap)
    tally.cut += len(parts) > 1
    for start, end in parts:
        first = next((turn.time for turn in turns[start:end] if turn.time), None)
        name = replace_lone_surrogates(thread.name) if thread.name else ""
        if len(parts) > 1 or (cuts and first):
            name = f"{name}@{first}"
        started = first if len(parts) > 1 or thread.started_at is None else thread.started_at
        if rules.zone is not None:
            started = _in_zone(started, rules.zone)
        joined = _joined(turns[start:end], times[start:end], burst, joiner, tally) if burst else turns[start:end]
        yield Conversation(name, tuple(joined), started, thread.extra)


def _is_kept(turn: Turn, tally: Tally) -> bool:
    text = turn.text
    if not text or text.isspace():
        tally.drop(EMPTY)
    elif is_placeholder(text):
        tally.drop(PLACEHOLDER, shown(text))
    else:
        return True
    return False


def _in_zone(time: str | None, zone: tzinfo) -> str | None:
    if time is None or (parsed := datetime.fromisoformat(time)).tzinfo is not None:
        return time
    return parsed.replace(tzinfo=zone).isoformat()


def _in_order(
    turns: list[Turn], tally: Tally, name: str | None, *, sort: bool
) -> tuple[list[Turn], list[float | None]]:  # fmt: skip
    """Return the turns and their times, oldest first: a conversation that runs backwards is turned round, a thread sorted."""
    times: list[float | None] = []
    known: list[float] = []
    for turn in turns:
        time = to_timestamp(turn.time)
        times.append(time)
        if time is not None:
            known.append(time)
    if len(known) < 2 or all(first <= second for first, second in pairwise(known)):
        return turns, times
    backwards = len(known) == len(turns) and all(first >= second for first, second in pairwise(known))
    if backwards:
        turns, times = turns[::-1], times[::-1]
    elif sort:
        last, filled = known[0], list[float]()
        for time in times:
            last = last if time is None else time
            filled.append(last)
        order = sorted(range(len(turns)), key=filled.__getitem__)
        turns, times = [turns[index] for index in order], [times[index] for index in order]
    else:
        return turns, times
    tally.note(f"{name or 'a conversation'}: its messages were not in the order of their times; they are now")
    return turns, times


def _parts(times: Sequence[float | None], gap: float) -> list[tuple[int, int]]:
    """Return the parts of a thread between silences, as slices."""
    if not gap:
        return [(0, len(times))]
    starts, last = [0], None
    for index, time in enumerate(times):
        if time is None:
            continue
        if last is not None and time - last > gap:
            starts.append(index)
        last = time
    return list(zip(starts, [*starts[1:], len(times)], strict=True))


def _joined(turns: Sequence[Turn], times: Sequence[float | None], burst: float, joiner: str, tally: Tally) -> list[Turn]:
    """Return the turns with those of one speaker in a row joined, if each follows the one before within the time window."""
    groups: list[list[Turn]] = []
    last: float | None = None
    for turn, time in zip(turns, times, strict=True):
        before = groups[-1][-1] if groups else None
        near = last is None or time is None or time - last <= burst
        if before is not None and before.speaker == turn.speaker and before.role == turn.role and near:
            groups[-1].append(turn)
            tally.merged += 1
        else:
            groups.append([turn])
        last = time
    return [
        group[0] if len(group) == 1 else replace(group[0], text=joiner.join(turn.text for turn in group)) for group in groups
    ]
