"""MongoDB's extended JSON: values that JSON has no type for, each written as an object such as {"$date": ...}.

Both modes are read, canonical and relaxed, and the forms of earlier versions; see
https://www.mongodb.com/docs/manual/reference/mongodb-extended-json/.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def plain_value(value: Any) -> Any:
    """Return the text or number that an object of extended JSON stands for, dates as ISO 8601; any other value unchanged."""
    if isinstance(value, str) or not isinstance(value, Mapping) or len(cast("Mapping[Any, Any]", value)) != 1:
        return value
    [(name, inner)] = cast("Mapping[Any, Any]", value).items()
    inner = plain_value(inner)
    try:
        match name:
            case "$oid" | "$uuid" | "$symbol" | "$numberDecimal" if isinstance(inner, str):
                return inner
            case "$numberLong" | "$numberInt":
                return int(inner)
            case "$numberDouble":
                return float(inner)
            case "$date" if isinstance(inner, str):
                return inner
            case "$date":  # milliseconds since 1970
                return (_EPOCH + timedelta(milliseconds=inner)).isoformat()
            case "$timestamp":
                return (_EPOCH + timedelta(seconds=inner["t"])).isoformat()
            case _:
                return value
    except (ValueError, TypeError, LookupError, OverflowError):  # no value of that type
        return value
