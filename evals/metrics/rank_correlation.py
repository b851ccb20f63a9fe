"""The partial rank correlation of two measures, with an interval over conversations."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from .statistics import Estimate, Jackknife, turns_by_conversation


def partial_spearman(
    xs: Sequence[float], ys: Sequence[float], covariates: Sequence[Sequence[float]], conversations: Sequence[Hashable]
) -> Estimate | None:
    """Return the partial rank correlation of two measures given covariates, with an interval over conversations.

    All values are ranked; the correlation is that of the residuals of x and y after a least-squares fit on the covariates
    (Conover 1999). All sequences are by item. None for fewer than four items, or if x or y has no variance left.
    """
    if len(xs) < 4:
        return None
    import numpy as np
    from scipy.stats import rankdata

    columns = np.column_stack([xs, ys, *zip(*covariates, strict=True)])

    def correlation(items: np.ndarray) -> float:
        ranks = rankdata(columns[items], axis=0)
        design = np.column_stack([np.ones(len(items)), ranks[:, 2:]])
        residuals = ranks[:, :2] - design @ np.linalg.lstsq(design, ranks[:, :2], rcond=None)[0]
        spread = np.sqrt((residuals**2).sum(axis=0)).prod()
        return float((residuals[:, 0] * residuals[:, 1]).sum() / spread) if spread > 1e-9 else float("nan")

    value = correlation(np.arange(len(xs)))
    if np.isnan(value):
        return None
    places = {name: place for place, name in enumerate(dict.fromkeys(conversations))}
    of_item = np.array([places[name] for name in conversations])
    left_out = [correlation(np.flatnonzero(of_item != place)) for place in places.values()] if len(places) > 1 else [np.nan]
    estimate = Jackknife(value, np.array(left_out), turns_by_conversation(conversations)).inference().estimate()
    low, high = (None if end is None else min(1.0, max(-1.0, end)) for end in (estimate.low, estimate.high))
    return replace(estimate, low=low, high=high)
