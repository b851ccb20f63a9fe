"""The report as one HTML file that needs no network and prints well.

Design: the template escapes every text from people and models. The page has no script, and its content policy forbids loading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from math import ceil, floor, log10
from typing import Any

from usertwin.evals.arm_names import describe_arm
from usertwin.evals.records.measured_turns import MeasuredTurn

from .cells import SIGNS
from .example_turns import bits_gained, example_turns
from .labels import (
    MIN_PEOPLE,
    arm_label,
    arm_title,
    contrast_title,
    contrasts_of,
    in_order,
    interval_basis,
    is_rival,
    measure_label,
    number,
    plural,
    verdict,
)
from .summary import answer_of, question_of, summary_of
from .tables import forest_grid, power_sentence, sections_of
from .templates import template

_EXAMPLE_KINDS = {
    "typical": ("Typical turns", "from the middle of the ranking"),
    "best": ("Best turns", "from the top of the ranking"),
    "worst": ("Worst failures", "from its bottom"),
}
#: Turns of context shown with an example, and with a recalled pair.
_CONTEXT, _RECALLED_CONTEXT = 4, 2


def render_html(result: Mapping[str, Any], turns: Sequence[MeasuredTurn]) -> str:
    """Return the report of a run (the content of `result.json`) as one HTML document, with examples from its turns."""
    answer, people = answer_of(result), len(result["people"])
    sizes = {
        "person" if people == 1 else "people": people, "conversations": result["conversations"],
        "held-out turns": result["turns"], "arms": len(result["arms"]),
    }  # fmt: skip
    return template("report.html").render(
        **common_values(result), verdict="unknown" if answer is None else verdict(answer), plot=forest_plot(result),
        tiles=[(f"{size:,}", noun) for noun, size in sizes.items()], examples=_examples(result, turns),
        measured_at=str(result.get("measured_at", ""))[:10], suite_text=result.get("suite_text"),
        spoken={"closer": "the twin is closer", "further": "the twin is less close"},
    )  # fmt: skip


def common_values(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that the HTML and the Markdown template have in common."""
    return {
        "name": result.get("name") or "a run", "summary": result.get("summary") or summary_of(result),
        "warnings": result.get("warnings", ()), "forest": forest_grid(result), "power": power_sentence(result),
        "sections": sections_of(result), "method": _method(result), "signs": SIGNS,
    }  # fmt: skip


def forest_plot(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return positions in the forest plot, in percent of its width.

    `zero` is the line of no difference; `ticks` are (position, label); `boxes` have for each arm its `dot`, the `left` and
    `width` of its interval (None without one), and its `verdict`.
    """
    compared = contrasts_of(result).values()
    ends = [paired[key] for paired in compared for key in ("value", "low", "high") if paired.get(key) is not None]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    step = _step(high - low)
    low, high = floor(low / step) * step, ceil(high / step) * step
    span = (high - low) or step

    def position(value: float) -> float:
        return round(100 * (value - low) / span, 2)

    boxes: list[dict[str, Any]] = []
    for paired in compared:
        left, right = (None if paired.get(end) is None else position(paired[end]) for end in ("low", "high"))
        width = None if left is None or right is None else round(right - left, 2)
        boxes.append({"dot": position(paired["value"]), "left": left, "width": width, "verdict": verdict(paired)})
    ticks, digits = [low + count * step for count in range(round(span / step) + 1)], max(0, -floor(log10(step)))
    labels = [(position(tick), number(tick, digits, signed=True)) for tick in ticks]
    return {"zero": position(0.0), "ticks": labels, "boxes": boxes}


def _step(span: float) -> float:
    """A round distance between ticks that makes three to five of them."""
    if span < 1e-12:  # too small to see; and a quarter of the smallest float is 0, which has no logarithm
        return 0.01
    power = 10.0 ** floor(log10(span / 4))
    return next(power * times for times in (1, 2, 5, 10) if span / (power * times) <= 4)


def _examples(result: Mapping[str, Any], turns: Sequence[MeasuredTurn]) -> list[dict[str, Any]]:
    """The example turns by kind, each beside the reply of an arm that the question compares, or of another alternative."""
    twin, arms = str(result["twin_arm"]), in_order(result["arms"])
    asked = (arm for contrast in question_of(result) for arm in contrast.split(" - ") if arm != twin)
    rivals = list(dict.fromkeys([*asked, *filter(is_rival, arms)]))
    examples = example_turns(turns, twin)
    return [
        {"title": title, "description": description, "turns": [_example(turn, twin, rivals) for turn in examples[kind]]}
        for kind, (title, description) in _EXAMPLE_KINDS.items()
        if examples[kind]
    ]


def _example(turn: MeasuredTurn, twin: str, rivals: Sequence[str]) -> dict[str, Any]:
    rival = next((arm for arm in rivals if turn.replies.get(arm)), None)
    gained, similarity = bits_gained(turn, twin), turn.similarity.get(twin)
    facts = [f"cosine to the real turn {number(similarity[0], 2)}"] if similarity else []
    if gained is not None:
        facts.append(f"{number(-gained, 2, signed=True)} bits per character against no memory")
    return {
        "person": turn.person, "speaker": turn.person.partition("/")[2] or turn.person, "goal": turn.goal,
        "place": _place(turn.conversation_id, turn.position), "context": turn.context[-_CONTEXT:],
        "real": turn.action, "twin": turn.replies[twin][0], "reasoning": turn.reasoning.get(twin, ""),
        "rival": None if rival is None else (arm_label(rival).title, turn.replies[rival][0]), "facts": "; ".join(facts),
        "recalled": [
            {
                "similarity": number(pair.similarity, 2), "place": _place(pair.conversation_id, pair.position),
                "context": pair.context[-_RECALLED_CONTEXT:], "action": pair.action, "reasoning": pair.reasoning or "",
            }
            for pair in turn.recalled
        ],
    }  # fmt: skip


def _place(conversation_id: str, position: int) -> str:
    return f"conversation {conversation_id}, turn {position}"


def _method(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The method as terms and sentences: n, arms, intervals, tests, models, versions, seed."""
    people, twin = len(result["people"]), str(result["twin_arm"])
    method = {
        "Data": f"{plural(result['turns'], 'held-out turn')} of {plural(people, 'person', 'people')} in "
        f"{plural(result['conversations'], 'conversation')} that the twins never saw; split by conversation and by time",
        "Arms": " ".join(f"{arm_title(arm, twin)}: {describe_arm(arm)}" for arm in in_order(result["arms"])),
        "(twin)": "the arm that shows the model what the twin itself is shown",
        "Intervals": f"{interval_basis(result)}; Student's t, over conversations with jackknife standard errors; for shares "
        "Wilson's interval with the effective number of cases; every person has the same weight; differences are paired",
        "Tests": f"two-sided: sign flips of people's mean differences from {MIN_PEOPLE} people on, else Student's t over "
        "conversations; sign flips of n people give no p below 2/2ⁿ, so five people show no difference",
        "Verdicts": "by p below 0.05, for the contrasts declared beforehand after Holm's correction, for others not adjusted; "
        "an interval is not adjusted, so it may exclude zero where no difference is shown",
    }
    if family := result.get("family"):
        contrasts = "; ".join(contrast_title(name, "against") for name in family["contrasts"])
        method["Declared beforehand"] = (
            f"{plural(len(family['contrasts']), 'contrast')} in one measure ({family['measure']}), Holm's correction over "
            f"them, alpha {family['alpha']}: {contrasts}"
        )
    measures = [measure_label(name) for name in dict.fromkeys(chain.from_iterable(result["arms"].values()))]
    method |= {
        "Measures": "; ".join(f"{measure.title}: {measure.source}" for measure in measures if measure.source),
        **{name.capitalize(): _listed(result.get(name)) for name in ("models", "settings", "versions")},
        "Seed": str(result["seed"]), "Measured at": str(result.get("measured_at", "")),
    }  # fmt: skip
    return [(term, text) for term, text in method.items() if text]


def _listed(values: Mapping[str, Any] | None) -> str:
    return "; ".join(f"{name}: {'none' if value is None else value}" for name, value in (values or {}).items())
