"""Two runs beside each other: what was changed, what came of it, and whether the two can be compared at all.

The one design choice: a difference of two averages says little, so where both runs hold the same held-out turns the twins are
compared turn by turn; and bits under different scorers are not subtracted, because their difference means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from usertwin.evals.records.measured_turns import MeasuredTurn

from .labels import PRIMARY, arm_name, beside, chance, in_order, interval, measure_name, number, plural, verdict

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

#: What a run was made with; whatever differs in there is told.
_MADE_WITH = ("models", "settings", "versions", "seed", "twin_arm")
#: What means nothing under another scorer.
_BY_SCORER = frozenset({PRIMARY, "choice"})


def compare(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    old_turns: Sequence[MeasuredTurn] = (),
    new_turns: Sequence[MeasuredTurn] = (),
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two runs.

    Args:
        old: what `result.json` of the first run holds.
        new: of the second.
        old_turns: what was measured at each turn of the first run.
        new_turns: of the second.
        seed: for the resampling.

    Returns:
        `names`; `differs`: {what: [old, new]} of models, settings, versions and seeds; `comparable`: whether averages of the
        two can be compared, and `why_not`; `arms`: {ARM: {MEASURE: {"old", "new", "difference"}}}, estimates or None, and new
        minus old or None; `twin`: the twins' difference in bits per character, new minus old, paired turn by turn, below 0 the
        new one is closer: value, low, high, n, p, visible, people; None if no turn is in both.
    """
    why_not = _why_not(old, new)
    same_scorer, same_people = _scorer(old) == _scorer(new), set(old["people"]) == set(new["people"])
    arms: dict[str, dict[str, Any]] = {}
    for arm in in_order({**old["arms"], **new["arms"]}):
        measured = old["arms"].get(arm, {}), new["arms"].get(arm, {})
        arms[arm] = {
            name: _both(
                measured[0].get(name), measured[1].get(name), subtract=same_people and (same_scorer or name not in _BY_SCORER)
            )
            for name in dict.fromkeys([*measured[0], *measured[1]])
        }
    twin = _paired(old, new, old_turns, new_turns, seed) if same_scorer else None
    return {
        "names": [str(old.get("name", "old")), str(new.get("name", "new"))],
        "differs": _differs(old, new),
        "comparable": not why_not,
        "why_not": why_not,
        "arms": arms,
        "twin": twin,
    }


def _scorer(result: Mapping[str, Any]) -> Any:
    return result.get("models", {}).get("scorer")


def _why_not(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Sentences that say why averages in bits cannot be compared."""
    found: list[str] = []
    if _scorer(old) != _scorer(new):
        found.append(f"bits of different scorers ({_scorer(old)}, {_scorer(new)}) cannot be compared")
    if set(old["people"]) != set(new["people"]):
        only = sorted(set(old["people"]) ^ set(new["people"]))
        found.append(
            f"the runs measured different people ({', '.join(only)} in one only), so their averages cannot be compared"
        )
    return found


def _both(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None, *, subtract: bool) -> dict[str, Any]:
    difference = new["value"] - old["value"] if old is not None and new is not None and subtract else None
    return {"old": old, "new": new, "difference": difference}


def _differs(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What the runs were made with that is not the same, by dotted name."""
    ours, theirs = _flat(old), _flat(new)
    return {
        key: [ours.get(key), theirs.get(key)] for key in dict.fromkeys([*ours, *theirs]) if ours.get(key) != theirs.get(key)
    }


def _flat(result: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in _MADE_WITH:
        value = result.get(part)
        if isinstance(value, Mapping):
            found |= {f"{part}.{key}": inner for key, inner in value.items()}
        else:
            found[part] = value
    return found


def _paired(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    old_turns: Sequence[MeasuredTurn],
    new_turns: Sequence[MeasuredTurn],
    seed: int,
) -> dict[str, Any] | None:
    """The twins' difference at the turns that both runs measured; a turn of which the text is another is not the same turn."""
    from usertwin.evals.metrics.statistics import mean_over_people, sign_flip

    before, after = str(old["twin_arm"]), str(new["twin_arm"])
    known = {(*turn.where, turn.position, turn.action): turn for turn in old_turns if before in turn.bits}
    same = [
        (known[key], turn)
        for turn in new_turns
        if after in turn.bits and (key := (*turn.where, turn.position, turn.action)) in known
    ]
    found = mean_over_people(
        [turn.bits[after] - one.bits[before] for one, turn in same],
        [turn.person for _, turn in same],
        [turn.conversation_id for _, turn in same],
        denominators=[float(turn.characters) for _, turn in same],
        seed=seed,
    )
    if found is None:
        return None
    drawn, each = found
    return {**drawn.estimate().to_json(), "p": sign_flip(each, seed=seed), "visible": drawn.visible, "people": len(each)}


def comparison_table(found: Mapping[str, Any]) -> RenderableType:
    """What `compare` gives, for the terminal: every arm and measure, then what differs, then the verdict."""
    from rich.console import Group
    from rich.text import Text

    table = _table(found)
    for arm, measures in found["arms"].items():
        table.add_section()
        for place, (name, one) in enumerate(measures.items()):
            digits, title = measure_name(name).digits, measure_name(name).title
            change = "–" if one["difference"] is None else number(one["difference"], digits, signed=True)
            cells = (_cell(one["old"], digits), _cell(one["new"], digits), Text(change))
            table.add_row(Text(arm_name(arm).title if place == 0 else "", style="bold"), Text(title), *cells)
    lines = [f"{key}: {old} → {new}" for key, (old, new) in found["differs"].items()] or ["nothing: models, settings, versions"]
    told = [
        Text("What differs: " + "; ".join(lines)),
        *(Text(f"Not comparable: {why}.", style="bold") for why in found["why_not"]),
    ]
    return Group(table, *told, Text(verdict_of(found), style="bold"))


def verdict_of(found: Mapping[str, Any]) -> str:
    """One sentence about the two twins."""
    twin, (old, new) = found["twin"], found["names"]
    if twin is None:
        return "The twins cannot be compared turn by turn: no held-out turn was measured in both runs under the same scorer."
    told = {"closer": f"The twin of {new} is closer", "further": f"The twin of {old} is closer", "same": "Not told apart"}
    numbers = f"{number(twin['value'], 3, signed=True)} bits per character, new minus old"
    tests = "".join(f", {text}" for text in (chance(twin["p"]),) if text)
    people = plural(twin["people"], "person", "people")
    seen = "" if twin["visible"] is None else f"; with this n, differences under {number(twin['visible'], 3)} are invisible"
    sure = f"{interval(twin, 3, signed=True)}{tests}, n={twin['n']} turns of {people} in both runs"
    return f"{told[verdict(twin)]}: {numbers} ({sure}){seen}."


def _table(found: Mapping[str, Any]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title="Two runs", title_justify="left")
    for title in ("arm", "measure"):
        table.add_column(title)
    for name in (*found["names"], "difference"):
        table.add_column(Text(name), justify="right")
    return table


def _cell(estimate: Mapping[str, Any] | None, digits: int) -> Any:
    from rich.text import Text

    if estimate is None:
        return Text("–")
    return Text.assemble(number(estimate["value"], digits), "\n", (beside(estimate, digits), "dim"))
