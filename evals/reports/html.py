"""The report as one HTML file: it opens by double click, without a network, on a phone and on paper.

The one design choice: a template draws what `tables.py` and `examples.py` give, with everything that people and models said
put in as text; there is no script in the page, and a policy in its head forbids it to load anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from math import ceil, floor, log10
from typing import Any

from usertwin.evals.records.measured_turns import MeasuredTurn, Memory

from .example_turns import bits_gained, example_turns
from .labels import arm_name, contrasts_of, counted, in_order, measure_name, number, plural, verdict
from .summary import best_alternative, summary_of
from .tables import forest_grid, power_lines, sections_of
from .templates import template

_KINDS = {
    "typical": ("Typical", "from the middle of the order"),
    "best": ("Best", "where the twin is nearest"),
    "worst": ("Worst failures", "where it is furthest off"),
}
#: So many turns before the real one are shown with an example, and so many before a memory.
_CONTEXT, _MEMORY_CONTEXT = 4, 2


def render_html(result: Mapping[str, Any], turns: Sequence[MeasuredTurn]) -> str:
    """The report of a run, as one file without links to anything else.

    Args:
        result: what `result.json` holds.
        turns: what was measured at each turn, for the examples.

    Returns:
        The HTML document.
    """
    found = best_alternative(result)
    return template("report.html").render(
        name=result.get("name") or "a run",
        measured_at=str(result.get("measured_at", ""))[:10],
        summary=result.get("summary") or summary_of(result),
        verdict="same" if found is None else verdict(found[1]),
        tiles=_tiles(result),
        warnings=result.get("warnings", ()),
        forest=forest_grid(result),
        plot=forest_plot(result),
        power=power_lines(result),
        sections=sections_of(result),
        examples=_examples(result, turns),
        method=method_of(result),
        suite_text=result.get("suite_text"),
        signs={"closer": "✓", "further": "✗", "holds": "✓", "fails": "✗"},
        spoken={"closer": "the twin is closer", "further": "the twin is further off"},
    )


def _tiles(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The numbers that everything rests on."""
    return [
        (counted(len(result["people"])), "person" if len(result["people"]) == 1 else "people"),
        (counted(result["conversations"]), "conversations"),
        (counted(result["turns"]), "held-out turns"),
        (counted(len(result["arms"])), "arms"),
    ]


def forest_plot(result: Mapping[str, Any]) -> dict[str, Any]:
    """Where the boxes of the forest plot stand, in percent of its width.

    Returns:
        `zero`: where no difference is; `ticks`: (place, label); `boxes`: for each arm `dot`, and `left` and `width` of its
        interval (None without one), and its verdict.
    """
    compared = contrasts_of(result)
    ends = [one[key] for one in compared.values() for key in ("value", "low", "high") if one.get(key) is not None]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    step = _step(high - low)
    low, high = floor(low / step) * step, ceil(high / step) * step
    span = (high - low) or step
    digits = max(0, -floor(log10(step)))

    def place(value: float) -> float:
        return round(100 * (value - low) / span, 2)

    boxes: list[dict[str, Any]] = []
    for one in compared.values():
        interval = one.get("low") is not None and one.get("high") is not None
        boxes.append(
            {
                "dot": place(one["value"]),
                "left": place(one["low"]) if interval else None,
                "width": round(place(one["high"]) - place(one["low"]), 2) if interval else None,
                "verdict": verdict(one),
            }
        )
    labels = [low + number_ * step for number_ in range(round(span / step) + 1)]
    return {"zero": place(0.0), "ticks": [(place(at), number(at, digits, signed=True)) for at in labels], "boxes": boxes}


def _step(span: float) -> float:
    """A round distance between ticks that makes three to five of them."""
    if span < 1e-12:  # nothing to be seen; a fourth of the least floats is 0, which has no logarithm
        return 0.01
    power = 10.0 ** floor(log10(span / 4))
    return next(power * times for times in (1, 2, 5, 10) if span / (power * times) <= 4)


def _examples(result: Mapping[str, Any], turns: Sequence[MeasuredTurn]) -> list[dict[str, Any]]:
    """What is shown of the examples, by kind."""
    twin, found = str(result["twin_arm"]), best_alternative(result)
    rivals = [arm for arm in in_order(result["arms"]) if arm_name(arm).rival]
    peers = ([found[0]] if found else []) + rivals
    shown = example_turns(turns, twin)
    return [
        {"title": _KINDS[kind][0], "said": _KINDS[kind][1], "turns": [_example(turn, twin, peers) for turn in some]}
        for kind, some in shown.items()
        if some
    ]


def _example(turn: MeasuredTurn, twin: str, peers: Sequence[str]) -> dict[str, Any]:
    peer = next((arm for arm in peers if turn.replies.get(arm)), None)
    gained, similarity = bits_gained(turn, twin), turn.similarity.get(twin)
    facts = [f"cosine to the real turn {number(similarity[0], 2)}"] if similarity else []
    if gained is not None:
        facts.append(f"{number(-gained, 2, signed=True)} bits per character against no memory")
    return {
        "person": turn.person,
        "who": turn.person.partition("/")[2] or turn.person,
        "where": f"conversation {turn.conversation_id}, turn {turn.position}",
        "goal": turn.goal,
        "context": turn.context[-_CONTEXT:],
        "real": turn.action,
        "twin": turn.replies[twin][0],
        "peer": None if peer is None else (arm_name(peer).title, turn.replies[peer][0]),
        "reasoning": turn.reasoning.get(twin, ""),
        "facts": "; ".join(facts),
        "memories": [_memory(memory) for memory in turn.recalled],
    }


def _memory(memory: Memory) -> dict[str, Any]:
    return {
        "similarity": number(memory.similarity, 2),
        "where": f"conversation {memory.conversation_id}, turn {memory.position}",
        "context": memory.context[-_MEMORY_CONTEXT:],
        "action": memory.action,
        "reasoning": memory.reasoning or "",
    }


def method_of(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How it was measured, as terms and sentences: n, seed, models, versions, what the intervals are."""
    people = len(result["people"])
    family = result.get("family") or {}
    told = {
        "Measured on": f"{plural(result['turns'], 'held-out turn')} of {plural(people, 'person', 'people')} in "
        f"{plural(result['conversations'], 'conversation')} that the twins never saw; split by conversation and by time",
        "The twin": f"{arm_name(result['twin_arm']).title}: {arm_name(result['twin_arm']).said}",
        "Arms": "; ".join(f"{arm_name(arm).title}: {arm_name(arm).said}" for arm in in_order(result["arms"])),
        "Intervals": "95%, from resampling people and then the conversations of each (two-level bootstrap), every person "
        "counting the same; differences are paired"
        + (
            "; of few people they are too narrow, so look at the test beside them"
            if people > 1
            else "; with one person, conversations alone are resampled"
        ),
        "Tests": "sign-flip permutation of the people's mean differences, two-sided"
        + ("" if people > 1 else "; with one person there is no such test"),
    }
    if family:
        named = "; ".join(_contrast(name) for name in family["contrasts"])
        told["Declared beforehand"] = (
            f"{plural(len(family['contrasts']), 'contrast')} in one measure ({family['measure']}), Holm's correction over "
            f"them, alpha {family['alpha']}: {named}"
        )
    measures = [measure_name(name) for name in dict.fromkeys(chain.from_iterable(result["arms"].values()))]
    told |= {
        "Measures": "; ".join(f"{one.title}: {one.source}" for one in measures if one.source),
        "Models": _listed(result.get("models")),
        "Settings": _listed(result.get("settings")),
        "Versions": _listed(result.get("versions")),
        "Seed": str(result["seed"]),
        "Measured at": str(result.get("measured_at", "")),
    }
    return [(term, text) for term, text in told.items() if text]


def _contrast(name: str) -> str:
    return " against ".join(arm_name(arm).title for arm in name.split(" - "))


def _listed(values: Mapping[str, Any] | None) -> str:
    return "; ".join(f"{name}: {'none' if value is None else value}" for name, value in (values or {}).items())
