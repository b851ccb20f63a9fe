"""How a twin chooses its reply among several candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from usertwin.personas.reading import STRICT

#: What speaks for a candidate; see simulator/reranking/features.py.
Feature = Literal["agreement", "recalled", "context", "length", "style", "words", "quoted", "nearness"]
FEATURES: tuple[Feature, ...] = get_args(Feature)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reranking:
    """A rule for the best of several candidates.

    Attributes:
        samples: the number of replies that the model writes for a turn.
        quotes: whether the recalled answers are candidates too.
        weights: the weight of each feature in the score of a candidate; a feature that is missing counts nothing.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    samples: int
    quotes: bool
    weights: Mapping[Feature, float]

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError("a rule needs at least one written reply")


#: A rule for any person: fitted on validation turns of development people (evals/EXPERIMENTS.md).
DEFAULT_RERANKING = Reranking(
    samples=4, quotes=True,
    weights={"recalled": 0.055, "context": 0.008, "length": 0.017, "style": 0.012, "quoted": 0.01, "nearness": 0.034},
)  # fmt: skip
