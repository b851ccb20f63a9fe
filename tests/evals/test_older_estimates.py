"""Results of earlier versions get the intervals and tests that the present rules allow."""

from __future__ import annotations

from typing import Any

import pytest
from scipy.stats import t

from usertwin.evals.metrics.older_estimates import with_present_tests

BITS = {"value": -1.0, "low": -1.2, "high": -0.8, "n": 9}
BARE = BITS | {"low": None, "high": None}


def older(conversations: int, p: float | None = None, **more: Any) -> dict[str, Any]:
    """Return a result with an interval of an arm, of a difference, and of one that holds zero."""
    clear = BITS | {"p": p, "p_holm": None, "visible": 0.1}
    unclear = {"value": 0.1, "low": -0.1, "high": 0.2, "n": 9, "p": None}
    paired = {"a - b": {"bits_per_char": clear}, "a - c": {"chrf": unclear}}
    return {"arms": {"a": {"bits_per_char": BITS}}, "paired": paired, "conversations": conversations, "seed": 3, **more}


def test_a_result_that_says_what_its_intervals_are_over_is_not_changed() -> None:
    result = older(3, people={"Ann": older(2), "Bob": older(1)}, intervals_over="conversations")
    assert with_present_tests(result) == result


def test_few_conversations_of_one_person_lose_their_interval() -> None:
    result = with_present_tests(older(7, p=0.01))
    assert result["arms"] == {"a": {"bits_per_char": BARE}}
    assert result["paired"]["a - b"] == {"bits_per_char": BARE | {"p": None, "p_holm": None, "visible": None}}
    assert (result["conversations"], result["seed"]) == (7, 3)


def test_one_persons_differences_are_tested_by_their_interval() -> None:
    result = with_present_tests(older(8, people={"Ann": older(8)}, family={"contrasts": ["a - b", "a - d"]}))
    assert result["arms"] == older(8)["arms"]
    declared, other = result["paired"]["a - b"]["bits_per_char"], result["paired"]["a - c"]["chrf"]
    p = 2 * float(t.cdf(-1.0 / (0.2 / t.ppf(0.975, 7)), 7))
    assert (declared["p"], declared["p_holm"]) == (pytest.approx(p), pytest.approx(p))
    assert other["p"] > 0.05  # the interval holds zero
    assert "p_holm" not in other
    assert result["people"]["Ann"]["paired"]["a - b"]["bits_per_char"]["p"] == pytest.approx(p)
    assert with_present_tests(older(8, p=0.02))["paired"]["a - b"]["bits_per_char"]["p"] == 0.02


@pytest.mark.parametrize("people", [2, 4, 5, 9])
def test_people_were_resampled_however_few(people: int) -> None:
    """The intervals over fewer than five are withheld; those of each person are over conversations, and stay."""
    own = {f"p{number}": older(8) for number in range(people)}
    result = with_present_tests(older(8 * people, p=0.01, people=own))
    assert (result["arms"]["a"]["bits_per_char"]["low"] is None) is (people < 5)
    assert result["paired"]["a - b"]["bits_per_char"]["p"] == (None if people < 5 else 0.01)
    assert result["people"]["p0"]["arms"] == older(8)["arms"]
