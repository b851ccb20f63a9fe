"""Which held-out turns a report shows in full: typical ones, the best, and the worst failures.

The one design choice: all three are taken from one order of all turns, so that what is shown is not picked by hand; it is the
mean of two ranks, how like the real turn the reply is and how much less the real turn costs than without a memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from usertwin.evals.records.measured_turns import MeasuredTurn

#: How many turns are shown of each kind.
SHOWN = 3


def example_turns(turns: Sequence[MeasuredTurn], twin: str, *, shown: int = SHOWN) -> dict[str, list[MeasuredTurn]]:
    """Turns to show: "typical" (from the middle of the order), "best" and "worst", of different people where there are some.

    Args:
        turns: what was measured; those without a reply of the twin are passed over.
        twin: the twin's arm.
        shown: how many of each kind.

    Returns:
        The turns by kind; no turn twice. Empty lists if nothing was written.
    """
    ordered = _from_best(turns, twin)
    best = _different(ordered, min(shown, (len(ordered) + 2) // 3))
    ordered = [turn for turn in ordered if turn not in best]
    worst = _different(ordered[::-1], min(shown, (len(ordered) + 1) // 2))
    ordered = [turn for turn in ordered if turn not in worst]
    middle = (len(ordered) - 1) / 2
    by_middle = [ordered[place] for place in sorted(range(len(ordered)), key=lambda place: abs(place - middle))]
    return {"typical": _different(by_middle, shown), "best": best, "worst": worst}


def bits_gained(turn: MeasuredTurn, twin: str) -> float | None:
    """How many bits per character less the real turn costs the twin than the model without a memory; None if not scored."""
    if twin not in turn.bits or "no_memory" not in turn.bits or not turn.characters:
        return None
    return (turn.bits["no_memory"] - turn.bits[twin]) / turn.characters


def _from_best(turns: Sequence[MeasuredTurn], twin: str) -> list[MeasuredTurn]:
    """The turns that have a reply, the closest first; a measure that a turn lacks puts it into the middle."""
    written = [turn for turn in turns if turn.replies.get(twin)]
    likeness = [turn.similarity[twin][0] if turn.similarity.get(twin) else None for turn in written]
    ranks = zip(_ranks(likeness), _ranks([bits_gained(turn, twin) for turn in written]), strict=True)
    total = [sum(two) for two in ranks]
    return [written[place] for place in sorted(range(len(written)), key=lambda place: -total[place])]


def _ranks(values: Sequence[float | None]) -> list[float]:
    """For each value the share of the others that are lower; 0.5 where there is none."""
    known = sorted(value for value in values if value is not None)
    place = {value: number for number, value in enumerate(known)}
    return [0.5 if value is None or len(known) < 2 else place[value] / (len(known) - 1) for value in values]


def _different(ordered: Sequence[MeasuredTurn], most: int) -> list[MeasuredTurn]:
    """The first so many: first of different people, then of different conversations, then any."""
    found: list[MeasuredTurn] = []
    for same in (_same_person, _same_conversation, _same_turn):
        for turn in ordered:
            if len(found) < most and not any(same(turn, other) for other in found):
                found.append(turn)
    return found


def _same_person(one: MeasuredTurn, other: MeasuredTurn) -> bool:
    return one.person == other.person


def _same_conversation(one: MeasuredTurn, other: MeasuredTurn) -> bool:
    return one.where == other.where


def _same_turn(one: MeasuredTurn, other: MeasuredTurn) -> bool:
    return one.where == other.where and one.position == other.position
