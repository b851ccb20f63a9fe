"""HOW CLOSE: held-out replay, measures, statistics, reports; and the doors of the program, command line and pytest plugin."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .metrics.closeness import CONTRASTS
    from .metrics.measures import MEASURES, Measure
    from .metrics.reply_similarity import chrf, embedding_similarities
    from .metrics.statistics import Estimate, mean, ratio
    from .records.measured_turns import MeasuredTurn
    from .replay.arms import ARMS
    from .replay.replay import Protocol, evaluate
    from .suites.config import Suite, read_suite
    from .suites.run import Run

__all__ = [
    "ARMS",
    "CONTRASTS",
    "MEASURES",
    "Estimate",
    "Measure",
    "MeasuredTurn",
    "Protocol",
    "Run",
    "Suite",
    "chrf",
    "embedding_similarities",
    "evaluate",
    "mean",
    "ratio",
    "read_suite",
]


def __getattr__(name: str) -> Any:
    """Import the public names when they are asked for: the pytest plugin below is loaded in every run of every user."""
    from importlib import import_module

    modules = ("arms", "closeness", "measures", "metrics", "record", "replay", "running", "statistics", "suite")
    for module in modules if name in __all__ else ():  # a module of ours is none of their business
        found = import_module(f".{module}", __name__)
        if hasattr(found, name):
            return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
