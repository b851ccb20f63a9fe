"""HOW CLOSE: held-out replay, measures, statistics, reports; and the doors of the program, command line and pytest plugin."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .metrics import chrf, embedding_similarities
    from .replay import ARMS, CONTRASTS, evaluate
    from .statistics import Estimate, mean, ratio

__all__ = ["ARMS", "CONTRASTS", "Estimate", "chrf", "embedding_similarities", "evaluate", "mean", "ratio"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are asked for: the pytest plugin below is loaded in every run of every user."""
    from importlib import import_module

    for module in ("metrics", "replay", "statistics"):
        found = import_module(f".{module}", __name__)
        if name in __all__ and hasattr(found, name):
            return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
