"""The trained classifier: it finds what can be found, cannot find what is not there, and never has seen whom it judges."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from usertwin.evals.metrics.discriminator import PairedReply, area_under_curve, discriminate, surface

WORDS = ("river", "stone", "cloud", "apple", "train", "house", "light", "paper", "glass", "bread", "sound", "green")


def said(rng: random.Random, end: str = "") -> str:
    return " ".join(rng.choices(WORDS, k=6)) + end


def moments(people: int, each: int, reply_end: str, seed: int = 0) -> list[PairedReply]:
    rng = random.Random(seed)
    return [
        PairedReply(f"p{person}", f"c{turn // 4}", said(rng), said(rng, reply_end))
        for person in range(people)
        for turn in range(each)
    ]


def test_replies_that_are_written_otherwise_are_told_apart() -> None:
    found = discriminate(moments(4, 12, " indeed!"))
    assert found is not None
    assert found.auc == 1.0
    assert (found.folds_by, found.folds) == ("person", 4)


def test_replies_that_are_written_alike_cannot_be_told_apart() -> None:
    found = discriminate(moments(6, 40, "", seed=3))
    assert found is not None
    assert found.auc == pytest.approx(0.5, abs=0.08)


def test_no_person_is_judged_by_a_classifier_that_has_seen_them() -> None:
    """Two people mark replies in ways that contradict each other: what is learned from one misleads about the other."""
    rng = random.Random(1)
    ends = {"Ann": ("", "!"), "Bob": ("!", "")}
    found = discriminate(
        [PairedReply(p, f"c{i}", said(rng, real), said(rng, reply)) for p, (real, reply) in ends.items() for i in range(20)]
    )
    assert found is not None
    assert found.auc < 0.1


def test_of_one_person_no_conversation_is_split() -> None:
    """Conversations contradict each other, so whoever has seen none of one errs."""
    rng = random.Random(2)
    found = discriminate(
        [
            PairedReply("Ann", talk, said(rng, real), said(rng, reply))
            for talk, real, reply in (("x", "", "!"), ("y", "!", ""))
            for _ in range(8)
        ]
    )
    assert found is not None
    assert (found.folds_by, found.folds) == ("conversation", 2)
    assert found.auc < 0.1


def test_scores_are_by_moment_in_order() -> None:
    found = discriminate(moments(3, 8, " indeed!"))
    assert found is not None
    assert len(found.reals) == len(found.replies) == 24
    assert all(real < reply for real, reply in zip(found.reals, found.replies, strict=True))


def test_the_same_moments_are_told_the_same() -> None:
    assert discriminate(moments(3, 8, "!")) == discriminate(moments(3, 8, "!"))


@pytest.mark.parametrize("few", [[], moments(3, 3, "!"), moments(1, 4, "!") * 5], ids=["none", "nine", "one conversation"])
def test_from_too_little_nothing_is_learned(few: list[PairedReply]) -> None:
    assert discriminate(few) is None


def test_silence_and_odd_texts_are_judged_too() -> None:
    odd = ["", " ", "\n", "\x00", "😀", "a", "¿", "1", "٣", "..."]
    found = discriminate([PairedReply(f"p{i % 2}", "c", text, "") for i, text in enumerate(odd)])
    assert found is not None
    assert all(np.isfinite([*found.reals, *found.replies]))


def test_the_surface_tells_length_marks_and_manner() -> None:
    plain, loud = surface("ok"), surface("HI, please come?! :)")
    assert len(plain) == len(loud)
    assert all(high > low for low, high in zip(plain[:5], loud[:5], strict=True))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=12))
def test_the_area_is_sklearns_with_every_conversation_as_often_as_it_was_drawn(rows: list[tuple[int, int, int]]) -> None:
    number = {name: place for place, name in enumerate(dict.fromkeys(row[2] for row in rows))}
    where = [number[row[2]] for row in rows]
    area = area_under_curve([row[0] for row in rows], [row[1] for row in rows], where)
    drawn = np.random.default_rng(len(rows)).integers(0, 3, (5, len(number))).astype(float)
    drawn[:, 0] += 1
    weights = [[line[place] for place in where] * 2 for line in drawn]
    scores, labels = [row[0] for row in rows] + [row[1] for row in rows], [0] * len(rows) + [1] * len(rows)
    expected = [roc_auc_score(labels, scores, sample_weight=weight) for weight in weights]
    assert area(drawn) == pytest.approx(expected)
