"""Upgrade of figures that an earlier version wrote: old keys and arm names become the present ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from usertwin.evals.arm_names import with_current_arms

_KEYS = {
    "settling": "user_models",
    "lessons": "examples",
    "at_once": "without_thoughts",
    "at_once_against": "without_thoughts_against",
    "known_by_heart": "memorized",
    "told": "predicted",
    "left": "observed",
    "novel": "guarded_gain",
    "gives_away": "reveals_action",
    "led": "forced",
    "led_similarity": "forced_similarity",
}
#: Fields of a measured turn that are no longer read. "own_action" was of another held-out turn: a control that could not fail.
_DROPPED_FIELDS = {"own_action"}
#: Values that changed, by key.
_VALUES = {"fidelity": {"novel": "guarded_gain"}}


def upgrade(raw: Any) -> Any:
    """Return a JSON value, such as the content of `result.json`, with present keys and arm names.

    A value of the present version is returned unchanged.
    """
    return with_current_arms(_with_current_keys(raw))


def without_dropped_fields(raw: Any) -> Any:
    """Return the JSON object of a measured turn without fields that are no longer read; any other value unchanged."""
    return {name: value for name, value in raw.items() if name not in _DROPPED_FIELDS} if isinstance(raw, Mapping) else raw


def _with_current_keys(raw: Any) -> Any:
    if isinstance(raw, list):
        return [_with_current_keys(value) for value in raw]
    if not isinstance(raw, Mapping):
        return raw
    return {
        _KEYS.get(key, key): _VALUES.get(key, {}).get(value, value) if isinstance(value, str) else _with_current_keys(value)
        for key, value in raw.items()
    }
