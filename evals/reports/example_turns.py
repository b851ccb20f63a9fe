"""Selection of the held-out turns that a report shows in full: typical ones, the best, and the worst failures.

Design: all three come from one ranking of all turns, so no example is picked by hand. The rank is the mean of two ranks:
similarity of reply and real turn, and bits gained over no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from usertwin.evals.records.measured_turns import MeasuredTurn

#: Turns shown of each kind.
_SHOWN = 3


def example_turns(turns: Sequence[MeasuredTurn], twin: str) -> dict[str, list[MeasuredTurn]]:
    """Return "typical" (from the middle of the ranking), "best" and "worst" turns, of different people where possible.

    No turn is in two lists. Turns without a reply of the twin are skipped.
    """
    ranked = _best_first(turns, twin)
    best = _diverse(ranked, min(_SHOWN, (len(ranked) + 2) // 3))
    ranked = [turn for turn in ranked if turn not in best]
    worst = _diverse(ranked[::-1], min(_SHOWN, (len(ranked) + 1) // 2))
    ranked = [turn for turn in ranked if turn not in worst]
    middle = (len(ranked) - 1) / 2
    from_middle = [ranked[place] for place in sorted(range(len(ranked)), key=lambda place: abs(place - middle))]
    return {"typical": _diverse(from_middle, _SHOWN), "best": best, "worst": worst}


def bits_gained(turn: MeasuredTurn, twin: str) -> float | None:
    """Return the bits per character that the twin saves over no memory at a turn; None if not scored."""
    if twin not in turn.bits or "no_memory" not in turn.bits or not turn.characters:
        return None
    return (turn.bits["no_memory"] - turn.bits[twin]) / turn.characters


def _best_first(turns: Sequence[MeasuredTurn], twin: str) -> list[MeasuredTurn]:
    """The turns with a reply, the closest first; a missing measure counts as the middle rank."""
    written = [turn for turn in turns if turn.replies.get(twin)]
    similarity = [turn.similarity[twin][0] if turn.similarity.get(twin) else None for turn in written]
    gains = [bits_gained(turn, twin) for turn in written]
    totals = [sum(ranks) for ranks in zip(_ranks(similarity), _ranks(gains), strict=True)]
    return [written[place] for place in sorted(range(len(written)), key=lambda place: -totals[place])]


def _ranks(values: Sequence[float | None]) -> list[float]:
    """For each value the share of the other values below it; 0.5 for None."""
    known = sorted(value for value in values if value is not None)
    place = {value: number for number, value in enumerate(known)}
    return [0.5 if value is None or len(known) < 2 else place[value] / (len(known) - 1) for value in values]


def _diverse(ranked: Sequence[MeasuredTurn], count: int) -> list[MeasuredTurn]:
    """The first turns of different people, then of different conversations, then any others, up to `count`."""
    keys: tuple[Callable[[MeasuredTurn], object], ...] = (
        lambda turn: turn.person, lambda turn: turn.cluster, lambda turn: (turn.cluster, turn.position),
    )  # fmt: skip
    picked: list[MeasuredTurn] = []
    for key in keys:
        for turn in ranked:
            if len(picked) < count and key(turn) not in map(key, picked):
                picked.append(turn)
    return picked
