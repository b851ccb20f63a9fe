"""Questions to a judge whose answers are known: when a check holds, and how its figures are written.

The judge of replies (model_judge.py) and the judge of reconstructions (listwise_checks.py) share these rules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from usertwin.evals.metrics.statistics import Estimate

#: What must hold: ties in at least `PASS_SHARE` of the pairs ("tied"), or an interval around chance, too ("tied_or_even"); a
#: share of at least `PASS_SHARE` ("closer"); an interval around, below or above chance.
Rule = Literal["tied", "tied_or_even", "closer", "even", "below", "above"]
#: The fewest pairs of a check that holds or fails, and the share of the pairs that "tied" and "closer" need.
ENOUGH, PASS_SHARE = 10, 0.95
#: A judge with a larger share of unreadable answers is unusable.
MAX_UNREADABLE = 0.5


@dataclass(frozen=True, slots=True)
class Check:
    """A check of a judge: the answer that must come out, in words and as a rule."""

    must: str
    rule: Rule

    def row(self, win: Estimate | None, ties: Estimate | None, chance: float = 0.5) -> dict[str, Any] | None:
        """Return the result as `SanityShape`; None without answers.

        Args:
            win: the share of the pairs that the text under test wins.
            ties: the share of ties.
            chance: the share that it wins by chance.
        """
        if win is None or ties is None:
            return None
        return {"win": win.to_json(), "ties": ties.to_json(), "must": self.must, "holds": self._holds(win, ties, chance)}

    def _holds(self, win: Estimate, ties: Estimate, chance: float) -> bool | None:
        """Return whether the check holds; None for too few pairs or conversations."""
        if win.low is None or win.high is None or win.n < ENOUGH:
            return None
        tied, even = ties.value >= PASS_SHARE, win.low <= chance <= win.high
        outcomes: dict[Rule, bool] = {
            "tied": tied, "tied_or_even": tied or even, "closer": win.value >= PASS_SHARE,
            "even": even, "below": win.high < chance, "above": win.low > chance,
        }  # fmt: skip
        return outcomes[self.rule]


def unreadable_answers(unreadable: int, answers: int) -> dict[str, Any]:
    """Return the share of unreadable answers, with their number."""
    return {"value": unreadable / answers if answers else 0.0, "n": answers}


def percentage(estimate: Mapping[str, Any]) -> str:
    """Return a share of pairs as text, with its interval if there is one: "75% (51% to 91%) of 20 pairs"."""
    ends = "" if estimate.get("low") is None else f" ({estimate['low']:.0%} to {estimate['high']:.0%})"
    return f"{estimate['value']:.0%}{ends} of {estimate['n']} pairs"
