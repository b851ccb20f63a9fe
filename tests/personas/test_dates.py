"""Dates of logs in their usual forms, and what is no date."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.personas.dates import find_date, read_date, to_timestamp

NOON = "2026-05-01T12:00:00+00:00"


@pytest.mark.parametrize(
    "value",
    [
        1777636800, 1777636800.0, 1777636800000, 1777636800000000, "1777636800", "1777636800000", " 1777636800.0 ", NOON,
        "Fri, 01 May 2026 12:00:00 GMT", "Fri May 01 12:00:00 +0000 2026", "2026-05-01 12:00:00 UTC", "2026-05-01T12:00:00Z",
        20260501120000, "20260501120000", "2026-05-01t12:00:00z", "May 1, 2026, 12:00 PM",
        {"$date": "2026-05-01T12:00:00Z"}, {"$date": "2026-05-01T14:00:00.000+0200"}, {"$date": 1777636800000},
        {"$date": {"$numberLong": "1777636800000"}}, {"$numberLong": "1777636800"}, {"$numberDouble": "1777636800.0"},
        {"$timestamp": {"t": 1777636800, "i": 1}},
    ],
)  # fmt: skip
def test_the_usual_forms_of_a_date_are_read(value: object) -> None:
    assert to_timestamp(read_date(value)) == to_timestamp(NOON)


def test_a_clock_of_twelve_hours_is_read_as_such() -> None:
    assert read_date("Jan 5, 2026, 10:00 PM") == "2026-01-05T22:00:00"
    assert read_date("5 Jan 2026 12:30:05 a.m. +0000") == "2026-01-05T00:30:05+00:00"


def test_eight_digits_are_a_day_and_no_seconds() -> None:
    assert to_timestamp(read_date("20260501")) == to_timestamp("2026-05-01")


@pytest.mark.parametrize(
    "value", [5, 12.5, -1777636800, True, float("nan"), float("inf"), 10**400, "noon", "", [], {}, "9" * 40]
)
def test_anything_else_is_no_date(value: object) -> None:
    with pytest.raises(ValueError, match=r"is not? "):
        read_date(value)


def test_an_extended_date_is_in_milliseconds_whatever_its_size() -> None:
    assert read_date({"$date": {"$numberLong": "5000000"}}) == "1970-01-01T01:23:20+00:00"
    assert read_date({"$date": -1}) == "1969-12-31T23:59:59.999000+00:00"
    assert find_date({"createdAt": {"$date": {"$numberLong": "1777636800000"}}}) == NOON


@pytest.mark.parametrize(
    "value",
    [{"$date": "noon"}, {"$date": {}}, {"$date": None}, {"$date": 10**40}, {"$numberLong": "x"}, {"$timestamp": 5},
     {"$timestamp": {"i": 1}}, {"$oid": "6633b7c0a1b2c3d4e5f60718"}, {"$date": 1777636800000, "zone": 2}, {"date": NOON}],
)  # fmt: skip
def test_another_object_is_no_date(value: object) -> None:
    with pytest.raises(ValueError, match=r"is not? "):
        read_date(value)


def test_creation_counts_before_the_last_change_and_what_is_no_date_is_passed_over() -> None:
    assert find_date({"updated_at": "2027-01-01", "Created-At": "2026-05-01"}) == "2026-05-01"
    assert find_date({"time": 12.5, "ts": "1777636800"}) == NOON
    assert find_date({"time": "noon", "text": "2026-05-01"}) is None


@given(st.one_of(st.text(max_size=30), st.integers(), st.floats(), st.text(alphabet="0123456789-:TZ+. ", max_size=30)))
def test_any_value_is_a_date_or_a_value_error(value: object) -> None:
    with suppress(ValueError):
        assert isinstance(to_timestamp(read_date(value)), float)
