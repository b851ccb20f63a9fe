"""Budgets: which limit is reached, what is refused, and their JSON."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from conftest import scripted
from usertwin.memory.models.budget import Budget
from usertwin.memory.models.chat import FREE, Ledger, Price, Usage
from usertwin.personas import UsageError
from usertwin.personas.reading import as_type


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        (Budget(), ""),
        (Budget(dollars=1.5), "$1.50 of $1.50 are spent"),
        (Budget(dollars=1.51), ""),
        (Budget(tokens=1_500), "1,500 of 1,500 tokens are spent"),
        (Budget(tokens=1_501), ""),
        (Budget(seconds=60.0), "60 of 60 seconds have passed"),
        (Budget(seconds=60.5), ""),
        (Budget(dollars=9, tokens=9, seconds=9), "1,500 of 9 tokens are spent"),
    ],
)
def test_the_limit_that_is_reached_is_named(budget: Budget, reason: str) -> None:
    ledger = Ledger(3, 0, Usage(1_000, 400, 500), 1.5)
    assert budget.reason(ledger, 100.0, now=160.0) == reason
    assert budget.is_spent(ledger, 100.0, now=160.0) == bool(reason)


def test_the_clock_is_the_monotonic_one() -> None:
    now = time.monotonic()
    assert not Budget(seconds=3600).is_spent(Ledger(), now)
    assert Budget(seconds=3600).is_spent(Ledger(), now - 3600)


@pytest.mark.parametrize("limits", [{"dollars": 0}, {"tokens": -1}, {"seconds": float("nan")}, {"dollars": float("inf")}])
def test_a_limit_that_is_not_positive_is_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"the budget of {next(iter(limits))} is .*; it must be a positive number"):
        Budget(**limits)


def test_money_is_limited_only_where_all_prices_are_known() -> None:
    unpriced = scripted("x")
    models = [replace(unpriced, price=price) for price in (Price(1.0, 1.0), FREE)]
    Budget(dollars=1.0).refuse_unpriced(models)
    Budget(tokens=5).refuse_unpriced([*models, unpriced])
    with pytest.raises(UsageError, match='the price of "scripted:test" is unknown, so a budget in dollars cannot be kept'):
        Budget(dollars=1.0).refuse_unpriced([*models, unpriced])


def test_a_budget_is_a_json_object() -> None:
    budget = Budget(dollars=2.5, seconds=60)
    raw = json.loads(json.dumps(budget.to_json()))
    assert raw == {"dollars": 2.5, "tokens": None, "seconds": 60}
    assert as_type(Budget, raw) == budget
    with pytest.raises(ValueError, match="must be a positive number"):
        as_type(Budget, raw | {"tokens": 0})
