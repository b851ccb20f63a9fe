"""The discriminator: it detects differences, finds none where there are none, and scores out of fold."""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from usertwin.evals.metrics.discriminator import DiscriminatorScores, PairedReply, discriminate, surface_features

WORDS = ("river", "stone", "cloud", "apple", "train", "house", "light", "paper", "glass", "bread", "sound", "green")


def auc(scores: DiscriminatorScores) -> float:
    return float(roc_auc_score([0] * len(scores.reals) + [1] * len(scores.replies), [*scores.reals, *scores.replies]))


def said(rng: random.Random, end: str = "") -> str:
    return " ".join(rng.choices(WORDS, k=6)) + end


def moments(people: int, each: int, reply_end: str, seed: int = 0) -> list[PairedReply]:
    rng = random.Random(seed)
    return [
        PairedReply(f"p{person}", f"c{turn // 4}", said(rng), said(rng, reply_end))
        for person in range(people)
        for turn in range(each)
    ]


def test_different_writing_is_detected() -> None:
    result = discriminate(moments(4, 12, " indeed!"))
    assert result is not None
    assert auc(result) == 1.0
    assert (result.folds_by, result.folds) == ("person", 4)


def test_equal_writing_has_auc_near_one_half() -> None:
    result = discriminate(moments(6, 40, "", seed=3))
    assert result is not None
    assert auc(result) == pytest.approx(0.5, abs=0.08)


def test_folds_keep_people_together() -> None:
    """Two people mark replies in contradicting ways: a classifier trained on one misjudges the other."""
    rng = random.Random(1)
    ends = {"Ann": ("", "!"), "Bob": ("!", "")}
    result = discriminate(
        [PairedReply(p, f"c{i}", said(rng, real), said(rng, reply)) for p, (real, reply) in ends.items() for i in range(20)]
    )
    assert result is not None
    assert auc(result) < 0.1


def test_folds_of_one_person_keep_conversations_together() -> None:
    """Conversations contradict each other, so a classifier that has not seen one misjudges it."""
    rng = random.Random(2)
    result = discriminate(
        [
            PairedReply("Ann", talk, said(rng, real), said(rng, reply))
            for talk, real, reply in (("x", "", "!"), ("y", "!", ""))
            for _ in range(8)
        ]
    )
    assert result is not None
    assert (result.folds_by, result.folds) == ("conversation", 2)
    assert auc(result) < 0.1


def test_scores_are_in_the_order_of_the_pairs() -> None:
    result = discriminate(moments(3, 8, " indeed!"))
    assert result is not None
    assert len(result.reals) == len(result.replies) == 24
    assert all(real < reply for real, reply in zip(result.reals, result.replies, strict=True))


def test_the_same_pairs_have_the_same_scores() -> None:
    assert discriminate(moments(3, 8, "!")) == discriminate(moments(3, 8, "!"))


@pytest.mark.parametrize("few", [[], moments(3, 3, "!"), moments(1, 4, "!") * 5], ids=["none", "nine", "one conversation"])
def test_too_few_pairs_give_no_scores(few: list[PairedReply]) -> None:
    assert discriminate(few) is None


def test_empty_and_odd_texts_have_scores() -> None:
    odd = ["", " ", "\n", "\x00", "😀", "a", "¿", "1", "٣", "..."]
    result = discriminate([PairedReply(f"p{i % 2}", "c", text, "") for i, text in enumerate(odd)])
    assert result is not None
    assert all(np.isfinite([*result.reals, *result.replies]))


def test_surface_features_cover_length_punctuation_and_style() -> None:
    plain, loud = surface_features("ok"), surface_features("HI, please come?! :)")
    assert len(plain) == len(loud)
    assert all(high > low for low, high in zip(plain[:5], loud[:5], strict=True))


def test_features_that_separate_are_used_beside_the_text() -> None:
    pairs = [replace(pair, real_features=(0.5, 0.0), reply_features=(0.4, 0.0)) for pair in moments(6, 20, "", seed=4)]
    result = discriminate(pairs)
    assert result is not None
    assert auc(result) > 0.9


def test_the_auc_compares_within_folds() -> None:
    """Across the two folds every reply scores below every real turn of the other fold; within them, all score above."""
    scores = DiscriminatorScores((1.0, 1.0, 11.0), (2.0, 2.0, 12.0), (0, 0, 1), "person")
    assert auc(scores) == pytest.approx(7 / 9)
    assert scores.auc([0, 1, 2]) == 1.0
    assert scores.folds == 2


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=12))
def test_the_auc_is_the_mean_over_folds_weighted_by_pairs(rows: list[tuple[int, int, int]]) -> None:
    reals, replies, fold = ([row[part] for row in rows] for part in range(3))
    scores = DiscriminatorScores(tuple(map(float, reals)), tuple(map(float, replies)), tuple(fold), "person")
    wins = {
        number: [(reply > real) + 0.5 * (reply == real) for real, _, a in rows for _, reply, b in rows if a == b == number]
        for number in fold
    }
    expected = sum(fold.count(number) * fmean(own) for number, own in wins.items()) / len(rows)
    assert scores.auc(range(len(rows))) == pytest.approx(expected)
