"""What intervals are over, what few people cannot show, and the verdict on a difference."""

from __future__ import annotations

from typing import Any

import pytest

from usertwin.evals.reports.cells import p_values
from usertwin.evals.reports.labels import few_people_warnings, interval_basis, verdict


def result(conversations: tuple[int, ...], over: str | None, contrasts: int = 1) -> dict[str, Any]:
    """Return a result of people with these conversations; the intervals of an earlier version are over None."""
    people = {f"person {number}": {"conversations": own} for number, own in enumerate(conversations)}
    family = {"contrasts": [f"a - {number}" for number in range(contrasts)]}
    basis = {} if over is None else {"intervals_over": over}
    return {"people": people, "conversations": sum(conversations), "family": family} | basis


@pytest.mark.parametrize(
    ("conversations", "over", "basis"),
    [
        ((9, 9, 9, 9, 9), "people", "intervals: 95%, over people"),
        ((9, 4, 5), "conversations", "intervals: 95%, over conversations of these 3 people, not over people"),
        ((9, 3, 5), "conversations", "no intervals and no verdicts from 3 people of whom one has fewer than 4 conversations"),
        ((4, 3), "conversations", "no intervals and no verdicts from fewer than 8 conversations"),
        ((8,), "conversations", "intervals: 95%, over conversations"),
        ((7,), "conversations", "no intervals and no verdicts from fewer than 8 conversations"),
        ((8,), None, "intervals: 95%, over conversations"),
        ((9, 9, 9), None, "no intervals and no verdicts from fewer than 5 people"),
        ((9,) * 6, None, "intervals: 95%, over people"),
    ],
)
def test_a_report_says_what_its_intervals_are_over(conversations: tuple[int, ...], over: str | None, basis: str) -> None:
    assert interval_basis(result(conversations, over)) == basis


@pytest.mark.parametrize(
    ("people", "contrasts", "warning"),
    [
        (1, 1, "1 person: the intervals hold for this person, not for other people"),
        (4, 1, "4 people: the intervals hold for these people, not for other people; those over people need 5 people"),
        (5, 0, "5 people: their sign flips give no p below 6%, so no declared difference can be shown"),
        (6, 1, None),  # 2 / 2^6 = 3%
        (6, 2, "6 people: their sign flips give no p below 6% after Holm's correction for 2 contrasts, so no declared "
         "difference can be shown"),
        (8, 5, None),
        (8, 7, "8 people: their sign flips give no p below 5% after Holm's correction for 7 contrasts, so no declared "
         "difference can be shown"),
    ],
)  # fmt: skip
def test_a_suite_says_what_its_people_cannot_show(people: int, contrasts: int, warning: str | None) -> None:
    assert few_people_warnings(result((9,) * people, "people", contrasts)) == ([] if warning is None else [warning])


@pytest.mark.parametrize(
    ("tests", "outcome"),
    [
        ({}, "unknown"), ({"p": None, "p_holm": None}, "unknown"), ({"p": 0.049}, "closer"), ({"p": 0.05}, "same"),
        ({"p": 0.01, "p_holm": 0.06}, "same"), ({"p": 0.01, "p_holm": 0.04}, "closer"), ({"p": 0.01, "p_holm": None}, "closer"),
    ],
)  # fmt: skip
def test_the_verdict_is_that_of_the_test_whatever_the_interval(tests: dict[str, float | None], outcome: str) -> None:
    for low, high in ((-0.2, -0.05), (-0.2, 0.1), (None, None)):
        assert verdict({"value": -0.1, "low": low, "high": high} | tests) == outcome
    turned = {"closer": "further"}.get(outcome, outcome)
    assert verdict({"value": 0.1, "low": -0.1, "high": 0.2} | tests) == turned


def test_a_p_outside_of_the_declared_family_is_said_to_be_unadjusted() -> None:
    assert p_values({"p": 0.012}) == p_values({"p": 0.012, "p_holm": None}) == "p = 0.012, not adjusted"
    assert p_values({"p": 0.012, "p_holm": 0.036}) == "p = 0.012, after Holm p = 0.036"
    assert p_values({"p": None, "p_holm": None}) == ""
