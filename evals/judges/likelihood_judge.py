"""A judge by likelihood: how often a reply fits the person's past better, to a model outside the action model's family.

At each turn the reply with the higher gain wins (see replay/outside_gain.py). The gains are in the records of the turns, so
every figure is computed from these. Whether the judge recognizes the person at all is checked with the real turns, which must
win.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from usertwin.evals.metrics.statistics import mean_over_people
from usertwin.evals.records.measured_turns import REAL_TURN, MeasuredTurn

#: Gains that differ by less are equal, in bits per character: a scorer rounds differently in batches of another size.
TIE = 1e-5


def likelihood_wins(turns: Sequence[MeasuredTurn], twin: str, *, model: str, seed: int = 0) -> dict[str, Any] | None:
    """Return how often the twin's first reply gains more than that of each other arm; None without gains of the twin's arm.

    A win rate is a mean over people, a tie counts 0.5. `win` has its interval, and `p` is that of the rate being a half.

    Returns:
        `model`; `contrasts`, by "TWIN - ARM". Two checks of the judge: `real`, by arm, of the real turn against the reply, with
        `holds`: whether the interval lies above 0.5 (None without an interval); `identical`, of the twin's reply against
        itself, which is exactly 0.5. `usable`: whether the real turn wins against the twin's reply; if not, `warnings` say so.
    """
    arms = list(dict.fromkeys(arm for turn in turns for arm in turn.outside_gain if arm != REAL_TURN))
    identical = _win_rate(turns, twin, twin, seed)
    real = {arm: row for arm in arms if (row := _win_rate(turns, REAL_TURN, arm, seed))}
    if identical is None or twin not in real:
        return None
    for row in real.values():
        row["holds"] = None if row["win"]["low"] is None else row["win"]["low"] > 0.5
    usable = real[twin]["win"]["value"] > 0.5 and real[twin]["holds"] is not False
    warning = f'the model "{model}" does not prefer the real turn to the twin\'s reply: do not use its win rates'
    contrasts = {f"{twin} - {arm}": _win_rate(turns, twin, arm, seed) for arm in arms if arm != twin}
    return {
        "model": model,
        "contrasts": {name: row for name, row in contrasts.items() if row},
        "real": real,
        "identical": identical["win"],
        "usable": usable,
        "warnings": [] if usable else [warning],
    }


def _win_rate(turns: Sequence[MeasuredTurn], first: str, second: str, seed: int) -> dict[str, Any] | None:
    """Return how often one text gains more than another, at the turns with both; None without such turns."""
    measured = [turn for turn in turns if {first, second} <= turn.outside_gain.keys()]
    rate = mean_over_people(
        [_win(turn.outside_gain[first], turn.outside_gain[second]) for turn in measured],
        [turn.person for turn in measured], [turn.conversation_id for turn in measured], share=True,
        measured=len({turn.person for turn in turns}),
    )  # fmt: skip
    if rate is None:
        return None
    return {"win": rate.estimate().to_json(), "p": rate.p(0.5, seed=seed)}


def _win(first: float, second: float) -> float:
    return 0.5 if abs(first - second) < TIE else float(first > second)
