"""The budget of a run: the most money, tokens and seconds that it may spend."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any, ClassVar

from usertwin.personas import UsageError
from usertwin.personas.reading import STRICT

from .ledger import Ledger, Priced


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of a run; None for no limit. A running call is finished, so a run ends slightly above its budget.

    Attributes:
        dollars: US dollars of all model calls.
        tokens: input and output tokens of all model calls.
        seconds: wall time.

    Raises:
        UsageError: a limit is not a positive number.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    dollars: float | None = None
    tokens: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            limit = getattr(self, item.name)
            if limit is not None and not (isfinite(limit) and limit > 0):
                raise UsageError(f"the budget of {item.name} is {limit}; it must be a positive number")

    def refuse_unpriced(self, models: Iterable[Priced]) -> None:
        """Raise UsageError if money is limited and the price of a model is unknown: the limit could not be kept."""
        if self.dollars is None:
            return
        for model in models:
            if model.price is None:
                name = getattr(model, "name", "a model")
                raise UsageError(f'the price of "{name}" is unknown, so a budget in dollars cannot be kept; state its price')

    def reason(self, ledger: Ledger, started: float, *, now: float | None = None) -> str:
        """Return which limit is reached, such as "1,204 of 1,000 tokens are spent"; "" if none is.

        Args:
            ledger: what the run has spent.
            started: when the run began, by `time.monotonic`.
            now: the present time by that clock.
        """
        seconds = (time.monotonic() if now is None else now) - started
        tokens = ledger.usage.input_tokens + ledger.usage.output_tokens
        if self.dollars is not None and ledger.dollars is not None and ledger.dollars >= self.dollars:
            return f"${ledger.dollars:,.2f} of ${self.dollars:,.2f} are spent"
        if self.tokens is not None and tokens >= self.tokens:
            return f"{tokens:,} of {self.tokens:,} tokens are spent"
        if self.seconds is not None and seconds >= self.seconds:
            return f"{seconds:,.0f} of {self.seconds:,.0f} seconds have passed"
        return ""

    def is_spent(self, ledger: Ledger, started: float, *, now: float | None = None) -> bool:
        """Return whether a limit is reached; the arguments are those of `reason`."""
        return bool(self.reason(ledger, started, now=now))

    def to_json(self) -> dict[str, Any]:
        """Return the budget as a JSON object."""
        return asdict(self)
