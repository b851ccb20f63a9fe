"""Features of a text in its context: cosines, and shares of words in common."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usertwin.evals.metrics.context_features import context_features
from usertwin.evals.records.measured_turns import ContextFit
from usertwin.memory.text.transcript import ME

FIT = ContextFit(latest=0.1, context=0.2, own=0.3, goal=0.4)
CHAT = (("Bob", "Is your garden green?"), (ME, "My engine is loud"), ("Bob", "Which engines do you like?"))


@pytest.mark.parametrize(
    ("text", "goal", "shares"),
    [
        ("the engine", "", (1.0, 1.0, 0.0)),  # "engines" has the same stem, "the" is no content word
        ("garden tools", "", (0.0, 0.5, 0.0)),
        ("a loud parrot", "buy a parrot", (0.0, 0.0, 0.5)),  # the person's own words do not count
        ("", "buy a parrot", (0.0, 0.0, 0.0)),
    ],
)
def test_shares_are_of_the_texts_content_words_by_stem(text: str, goal: str, shares: tuple[float, ...]) -> None:
    assert context_features(text, CHAT, goal, FIT) == (0.1, 0.2, 0.3, 0.4, *shares)


@given(st.text(max_size=20), st.lists(st.tuples(st.sampled_from([ME, "Bob"]), st.text(max_size=9)), max_size=4), st.text())
def test_any_text_has_seven_features_and_shares_from_0_to_1(text: str, context: list[tuple[str, str]], goal: str) -> None:
    features = context_features(text, context, goal, FIT)
    assert len(features) == 7
    assert all(0 <= share <= 1 for share in features[4:])
