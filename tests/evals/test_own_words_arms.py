"""Arms with own words: what is scored is what is written, the same words for the twin and its peers, and tuning."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from conftest import scripted
from usertwin.evals import ReplayConfig, evaluate
from usertwin.evals.arm_names import ARMS as BASE_ARMS
from usertwin.evals.arm_names import QUOTING_ARMS, base_arm, check_arms, describe_arm, uses_words
from usertwin.evals.replay.evaluate import twin_arm
from usertwin.evals.reports.labels import arm_label
from usertwin.evals.tuning.tune import tune
from usertwin.memory import ChatModel, Settings
from usertwin.memory.models.embedding import FakeEmbedder
from usertwin.memory.models.scoring import FakeScorer
from usertwin.memory.models.token_writer import NextToken, WrittenTokens, sample_token
from usertwin.memory.own_words.own_words import DEFAULT_WEIGHTS
from usertwin.memory.twin.record import default_home
from usertwin.personas import UsageError
from usertwin.simulator import SimulatedUser

ARMS = ("no_memory", "no_memory+words", "recalled_pairs", "recalled_pairs+words", "openevals", "openevals+words")
PLAIN = Settings(k=4, window=3, traces="none", reasons=False)
WITH_WORDS = replace(PLAIN, words=DEFAULT_WEIGHTS)


class WordWriter:
    """A token writer whose tokens are words; the model alone would write "zzz" for ever."""

    def __init__(self) -> None:
        self._words = ["<end>", "zzz"]
        self.vocabulary_size = 2000
        self.asked: list[str] = []

    def encode(self, turns: Sequence[str]) -> list[list[int]]:
        """See `TokenWriter.encode`."""
        return [[*map(self._id, turn.split()), 0] for turn in turns]

    def _id(self, word: str) -> int:
        if word not in self._words:
            self._words.append(word)
        return self._words.index(word)

    async def write(
        self, messages: Sequence[tuple[str, str]], next_token: NextToken, *, n: int, seed: int, max_tokens: int,
        temperature: float, stop: Sequence[str], use_cache: bool,
    ) -> list[WrittenTokens]:  # fmt: skip
        """See `TokenWriter.write`."""
        self.asked += [messages[-1][1]] * n
        return [self._write(next_token, random.Random(seed + number), max_tokens) for number in range(n)]

    def _write(self, next_token: NextToken, rng: random.Random, max_tokens: int) -> WrittenTokens:
        tokens: list[int] = []
        while len(tokens) < max_tokens:
            probabilities = next_token(tokens, {1: 1e-9})
            token = sample_token(probabilities, 1.0, rng)
            if token == 0:
                break
            tokens.append(token)
        return WrittenTokens(
            " ".join(self._words[token] for token in tokens), input_tokens=10, cached_tokens=0, output_tokens=len(tokens),
            at_limit=len(tokens) == max_tokens,
        )  # fmt: skip


def writing_model() -> ChatModel:
    """A scripted model that also writes token by token."""
    return replace(scripted("what a scripted reply"), style="transcript", token_writer=WordWriter())


def measure(arms: Sequence[str] = ARMS, model: ChatModel | None = None, settings: Settings = PLAIN) -> dict[str, Any]:
    """Measure Ann's twin."""
    config = ReplayConfig(arms=tuple(arms), generate=3)
    with SimulatedUser.load("ann", model=model or writing_model(), settings=settings) as user:
        return asyncio.run(evaluate(user, FakeScorer(), FakeEmbedder(), folder=default_home() / "ann", config=config))


# Names ----------------------------------------------------------------------------------------------------------------


def test_every_arm_where_a_model_writes_has_a_form_with_own_words() -> None:
    checked = check_arms(["openevals+words", "recalled_pairs+words", "openevals", "chosen"])
    assert checked == ("recalled_pairs+words", "recon", "openevals", "openevals+words")
    assert base_arm("openevals+words") == "openevals"
    assert uses_words("openevals+words")
    assert "own words" in describe_arm("openevals+words")
    assert "own words" not in describe_arm("openevals")


@pytest.mark.parametrize("arm", ["verbatim+words", "medoid+words", "nobody+words", "+words", "recon+words+words"])
def test_an_arm_without_a_model_has_no_own_words(arm: str) -> None:
    with pytest.raises(UsageError, match="there is no arm"):
        check_arms([arm])


def test_titles_fit_into_a_column_and_differ() -> None:

    with_words = [f"{base}+words" for base in BASE_ARMS if base not in QUOTING_ARMS]
    titles = [arm_label(arm).title for arm in (*BASE_ARMS, *with_words)]
    assert len(set(titles)) == len(titles)
    assert max(map(len, titles)) <= 22


# Measurement ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("repeats_count", "ann")
def test_own_words_make_the_persons_turns_more_likely_under_every_arm_and_change_nothing_else() -> None:
    plain, both = measure(["no_memory", "recalled_pairs", "openevals"]), measure()
    assert list(both["arms"]) == list(ARMS)
    for arm in ("no_memory", "recalled_pairs", "openevals"):
        bits = {name: both["arms"][name]["bits_per_char"]["value"] for name in (arm, f"{arm}+words")}
        assert bits[f"{arm}+words"] < bits[arm]
        assert plain["arms"][arm]["bits_per_char"] == both["arms"][arm]["bits_per_char"]
    assert {"recalled_pairs - openevals", "recalled_pairs - openevals+words"} <= set(both["family"]["contrasts"])


@pytest.mark.usefixtures("repeats_count", "ann")
def test_replies_with_own_words_are_written_from_the_same_mixture_and_only_where_the_model_can() -> None:
    written = measure()
    assert "chrf" in written["arms"]["recalled_pairs+words"]
    assert written["arms"]["recalled_pairs+words"]["chrf"] != written["arms"]["recalled_pairs"]["chrf"]
    assert written["arms"]["openevals+words"]["chrf"]["value"] > written["arms"]["openevals"]["chrf"]["value"]
    silent = measure(model=replace(scripted("what a scripted reply"), style="transcript"))
    assert "chrf" not in silent["arms"]["recalled_pairs+words"]
    assert silent["arms"]["recalled_pairs+words"]["bits_per_char"] == written["arms"]["recalled_pairs+words"]["bits_per_char"]


@pytest.mark.usefixtures("repeats_count", "ann")
def test_a_twin_that_uses_own_words_is_measured_with_them() -> None:
    with SimulatedUser.load("ann", model=writing_model(), settings=WITH_WORDS) as user:
        assert twin_arm(user) == "recalled_pairs+words"
        result = asyncio.run(
            evaluate(user, FakeScorer(), FakeEmbedder(), folder=default_home() / "ann", config=ReplayConfig(generate=2))
        )
    assert result["twin_arm"] == "recalled_pairs+words"
    assert "recalled_pairs+words - no_memory" in result["paired"]


@pytest.mark.usefixtures("repeats_count", "ann")
def test_where_the_arm_with_own_words_is_not_asked_for_the_twin_is_the_same_without_them() -> None:
    assert measure(["no_memory", "recalled_pairs"], settings=WITH_WORDS)["twin_arm"] == "recalled_pairs"


# Writing --------------------------------------------------------------------------------------------------------------


def test_a_twin_writes_from_its_own_words_and_forgets_them_with_its_memory(ann: str) -> None:
    model = writing_model()
    with SimulatedUser.load(ann, model=model, settings=WITH_WORDS) as user:
        said = {word for triple in user.store.triples() for word in triple.pair.action.split()}
        answers = [user.respond([{"role": "assistant", "content": "Hello"}], seed=seed).action for seed in range(4)]
        assert all(set(answer.split()) <= said | {"zzz"} for answer in answers)
        assert any(set(answer.split()) & said for answer in answers)
        assert answers[0] == user.respond([{"role": "assistant", "content": "Hello"}], seed=0).action
        user.store.forget(after=float("-inf"))
        assert user.writer.next_token is not None
        assert set(user.writer.next_token([], {1: 1.0})) == {1}


def test_without_weights_the_twin_writes_with_the_model_alone(ann: str) -> None:
    with SimulatedUser.load(ann, model=writing_model(), settings=PLAIN) as user:
        assert user.respond([{"role": "assistant", "content": "Hello"}]).action == "what a scripted reply"


# Tuning ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("repeats_count", "two_clusters_suffice")
def test_tuning_keeps_own_words_where_they_pay(ann: str) -> None:
    with SimulatedUser.load(ann, model=writing_model()) as user:
        settings = asyncio.run(tune(user, FakeScorer(), folder=default_home() / ann))
        assert settings.measured is not None
        gain = settings.measured["words"]
        assert settings.words is not None
        assert gain["high"] < 0
        assert settings.words != DEFAULT_WEIGHTS
        assert all(0 <= weight < 1 for weight in settings.words.own)


class CertainScorer(FakeScorer):
    """A scorer that knows every turn by heart: nothing can be added to it."""

    def score(self, items: Sequence[tuple[str, str]]) -> list[Any]:
        """See `Scorer.score`."""
        return [replace(likelihood, nats=-1e-9 * likelihood.tokens, token_nats=(-1e-9,) * likelihood.tokens)
                for likelihood in super().score(items)]  # fmt: skip


@pytest.mark.usefixtures("repeats_count", "two_clusters_suffice")
def test_tuning_leaves_own_words_out_where_they_do_not_pay(ann: str) -> None:
    with SimulatedUser.load(ann, model=writing_model()) as user:
        settings = asyncio.run(tune(user, CertainScorer(), folder=default_home() / ann))
    assert settings.words is None
    assert settings.measured is not None
    assert settings.measured["words"]["value"] > 0
