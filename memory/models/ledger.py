"""What model calls return and cost: token counts, prices, completions, and the ledger that sums them for a run."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million input tokens and a million output tokens."""

    input: float
    output: float

    def cost_of(self, usage: Usage) -> float:
        """Return the cost in US dollars; cached tokens count at full price."""
        return (usage.input_tokens * self.input + usage.output_tokens * self.output) / 1e6


#: The price of a local model.
FREE = Price(0.0, 0.0)


class Priced(Protocol):
    """A model with a price; None if it is unknown."""

    @property
    def price(self) -> Price | None:
        """The price."""
        ...


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts: input, the part of it from the prompt cache, and output."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens, self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sample:
    """A completion without reasoning, cut at the first stop sequence.

    `at_limit` tells that it ended at the limit of tokens, unfinished. `defect` tells why the text is not one whole answer (see
    memory/text/completions.py); "" if it is.
    """

    text: str
    usage: Usage
    at_limit: bool = False
    defect: str = ""


@dataclass(slots=True)
class Ledger:
    """Totals of completions, tokens and cost; threads may share it.

    Attributes:
        calls: completions that models generated; `usage` holds their tokens.
        cache_hits: completions that came from a completion cache or a recording.
        dollars: the cost of the calls; None if the price of a model is unknown.
        retries: requests that were repeated after a rate limit, an error of the server or a broken connection.
    """

    calls: int = 0
    cache_hits: int = 0
    usage: Usage = field(default_factory=Usage)
    dollars: float | None = 0.0
    _: KW_ONLY
    retries: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def record(self, model: Priced, samples: Sequence[Sample]) -> None:
        """Add the samples that a model generated."""
        usage = sum((sample.usage for sample in samples), Usage())
        cost = None if model.price is None else model.price.cost_of(usage)
        with self._lock:
            self.calls += len(samples)
            self.usage += usage
            self.dollars = None if cost is None or self.dollars is None else self.dollars + cost

    def record_hits(self, count: int) -> None:
        """Add completions that no model had to generate."""
        with self._lock:
            self.cache_hits += count

    def record_retry(self) -> None:
        """Add a repeated request."""
        with self._lock:
            self.retries += 1

    def add(self, other: Mapping[str, float | None]) -> None:
        """Add the totals of another ledger, given as its JSON object."""
        dollars = other["dollars"]
        with self._lock:
            self.calls += int(other["calls"] or 0)
            self.cache_hits += int(other["repeated"] or 0)
            self.usage += Usage(*(int(other[key] or 0) for key in ("input_tokens", "cached_tokens", "output_tokens")))
            self.dollars = None if dollars is None or self.dollars is None else self.dollars + dollars
            self.retries += int(other.get("retries") or 0)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; its key for `cache_hits` is "repeated", as in development snapshots before 0.1.0.

        "retries" is left out if it is 0: a traced pair has the same cost, however busy the server was.
        """
        totals = {"calls": self.calls, "repeated": self.cache_hits, **asdict(self.usage), "dollars": self.dollars}
        return totals | ({"retries": self.retries} if self.retries else {})
