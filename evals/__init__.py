"""Evaluation of twins (replay, measures, statistics, reports), the command line, and the pytest plugin."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arm_names import ARMS
    from .metrics.closeness import CONTRASTS
    from .metrics.measures import MEASURES, Measure
    from .metrics.reply_similarity import chrf, embedding_similarities
    from .metrics.statistics import Estimate, mean, ratio
    from .records.measured_turns import MeasuredTurn
    from .replay.evaluate import evaluate
    from .replay.replay import ReplayConfig
    from .suites.config import Suite, read_suite
    from .suites.run import SuiteRun

__all__ = [
    "ARMS",
    "CONTRASTS",
    "MEASURES",
    "Estimate",
    "Measure",
    "MeasuredTurn",
    "ReplayConfig",
    "Suite",
    "SuiteRun",
    "chrf",
    "embedding_similarities",
    "evaluate",
    "mean",
    "ratio",
    "read_suite",
]


_MODULES = {
    "ARMS": "arm_names",
    "CONTRASTS": "metrics.closeness",
    "Estimate": "metrics.statistics",
    "MEASURES": "metrics.measures",
    "Measure": "metrics.measures",
    "MeasuredTurn": "records.measured_turns",
    "ReplayConfig": "replay.replay",
    "SuiteRun": "suites.run",
    "Suite": "suites.config",
    "chrf": "metrics.reply_similarity",
    "embedding_similarities": "metrics.reply_similarity",
    "evaluate": "replay.evaluate",
    "mean": "metrics.statistics",
    "ratio": "metrics.statistics",
    "read_suite": "suites.config",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, since every pytest run of a user loads the plugin of this package."""
    from importlib import import_module

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
