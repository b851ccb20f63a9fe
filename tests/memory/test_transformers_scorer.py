"""memory/models/scoring.py: likelihoods are those of a plain forward pass, and are computed once."""

from __future__ import annotations

import copy
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from math import log
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import MAX_POSITIONS, tiny
from usertwin.memory.models import scoring
from usertwin.memory.models.score_cache import CachedScorer
from usertwin.memory.models.scoring import FakeScorer, Likelihood
from usertwin.memory.models.transformers_scorer import TransformersScorer
from usertwin.personas import ModelError

pytestmark = pytest.mark.usefixtures("in_one_thread")


class Counting(FakeScorer):
    """A fake scorer that remembers what it was asked."""

    def __init__(self, name: str = "fake:") -> None:
        self.name = name
        self.asked: list[tuple[str, str]] = []

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        self.asked += items
        return super().score(items)


def plain(prompt: str, continuation: str) -> float:
    """The same number by the plainest way: all logits of one text."""
    import torch

    model, tokenizer = tiny()
    before, after = tokenizer(prompt).input_ids or [tokenizer.eos_token_id], tokenizer(continuation).input_ids
    with torch.inference_mode():
        logits = model(torch.tensor([before + after])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(before) + place - 1, token]) for place, token in enumerate(after))


def assert_same(found: Likelihood, nats: float) -> None:
    assert abs(found.nats - nats) <= 1e-4 * max(1, found.tokens)


def test_bits_are_nats_over_log_two() -> None:
    assert Likelihood(-3 * log(2), 5).bits == pytest.approx(3.0)


# The transformers scorer ---------------------------------------------------------------------------------------------


def test_one_text_scores_as_in_a_plain_forward_pass() -> None:
    (found,) = TransformersScorer("tiny", tiny).score([("Them: hello\nMe:", " good day\n")])
    assert found.tokens == len(" good day\n")
    assert_same(found, plain("Them: hello\nMe:", " good day\n"))


@settings(max_examples=30, deadline=None)
@given(
    shared=st.text("ab \n", max_size=70),
    items=st.lists(st.tuples(st.text("abé ", max_size=30), st.text("abcé ", min_size=1, max_size=15)), min_size=1, max_size=6),
)
def test_together_is_one_by_one(shared: str, items: list[tuple[str, str]]) -> None:
    scorer = TransformersScorer("tiny", tiny)
    texts = [(shared + prompt, continuation) for prompt, continuation in items]
    for found, (prompt, continuation) in zip(scorer.score(texts), texts, strict=True):
        assert_same(found, plain(prompt, continuation))


def test_a_shared_beginning_is_computed_once() -> None:
    prompts = ["x" * 100 + letter for letter in "abcdefgh"]
    found, seen = scored_and_counted([(prompt, " done") for prompt in prompts])
    assert sum(seen) == 100 + 8 * (len("a done") - 1)
    for likelihood, prompt in zip(found, prompts, strict=True):
        assert_same(likelihood, plain(prompt, " done"))
    assert len({likelihood.nats for likelihood in found}) == 8


def scored_and_counted(items: Sequence[tuple[str, str]]) -> tuple[list[Likelihood], list[int]]:
    """What the tiny model makes of items, and how many tokens went through it in each of its calls, padding included.

    The last token of a continuation is not among them: it is predicted, and nothing after it is.
    """
    model, _ = tiny()
    seen: list[int] = []
    scorer = TransformersScorer("tiny", tiny)
    scorer.score([("x", "y")])  # the first call also looks at the model
    hook = model.base_model.register_forward_hook(lambda _module, arguments, _out: seen.append(arguments[0].numel()))
    try:
        return scorer.score(items), seen
    finally:
        hook.remove()


def test_a_prompt_of_several_continuations_is_computed_once_among_others() -> None:
    """Forced choices: a prompt, eight actions, and the next prompt; here in any order."""
    prompts = ["q" * 60, "r" * 90, "s" * 40]
    items = [(prompt, f" act {number}") for number in range(8) for prompt in prompts] + [("t" * 50, " alone")]
    found, seen = scored_and_counted(items)
    together = sum(len(prompt) - 1 + 8 * (len("q act 1") - 1) for prompt in prompts)
    assert sum(seen) == together + len("t" * 50 + " alone") - 1
    for likelihood, item in zip(found, items, strict=True):
        assert_same(likelihood, plain(*item))


def test_a_prompt_of_several_continuations_goes_on_from_what_all_prompts_share() -> None:
    prompts = ["x" * 50 + letter * 40 for letter in "ab"]
    items = [(prompt, action) for prompt in prompts for action in (" yes", " no!")] + [("x" * 50 + "c", " yes")]
    found, seen = scored_and_counted(items)
    assert sum(seen) == 50 + 2 * (39 + 2 * (len("a yes") - 1)) + len("c yes") - 1
    for likelihood, item in zip(found, items, strict=True):
        assert_same(likelihood, plain(*item))


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["a" * 40, "a" * 35 + "b" * 35, "b" * 80, "c"]), st.text("ab ", max_size=9)), max_size=9)
)
def test_however_prompts_repeat_each_score_is_that_of_a_plain_forward_pass(items: list[tuple[str, str]]) -> None:
    for found, item in zip(TransformersScorer("tiny", tiny).score(items), items, strict=True):
        assert_same(found, plain(*item))


# How rows are put together -------------------------------------------------------------------------------------------


def every_split(order: list[int]) -> Iterator[list[list[int]]]:
    """Every way to cut a list into runs."""
    if not order:
        yield []
    for end in range(1, len(order) + 1):
        yield from ([order[:end], *rest] for rest in every_split(order[end:]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=7), st.integers(0, 40))
def test_batches_hold_each_row_once_and_cost_the_least(lengths: list[int], call: int) -> None:
    def cost(groups: list[list[int]]) -> int:
        return sum(call + len(group) * max(lengths[i] for i in group) for group in groups)

    def fits(group: list[int]) -> bool:
        return len(group) == 1 or len(group) * max(lengths[i] for i in group) <= 100

    found = scoring._batches(lengths, 0, most=100, call=call)
    assert sorted(index for group in found for index in group) == list(range(len(lengths)))
    assert all(map(fits, found))
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    assert cost(found) == min(cost(groups) for groups in every_split(order) if all(map(fits, groups)))


def test_rows_that_share_a_long_beginning_are_held_only_a_few_at_once() -> None:
    few = scoring._batches([10] * 8, scoring._HELD_TOKENS // 2 - 10, most=1000, call=32)
    assert sorted(map(len, few)) == [2, 2, 2, 2]
    assert scoring._batches([10] * 8, 0, most=1000, call=32) == [list(range(8))]


def test_equal_prompts_and_a_prompt_that_another_begins_with_share_too() -> None:
    items = [("y" * 60, "a"), ("y" * 60, "b"), ("y" * 60 + "z", "c")]
    for found, item in zip(TransformersScorer("tiny", tiny).score(items), items, strict=True):
        assert_same(found, plain(*item))


def test_more_than_one_batch_keeps_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usertwin.memory.models.scoring._BATCH_TOKENS", 64)
    items = [(letter * length, f" {length}") for letter, length in zip("abcdefgh", (9, 70, 3, 40, 1, 90, 20, 5), strict=True)]
    for found, item in zip(TransformersScorer("tiny", tiny).score(items), items, strict=True):
        assert_same(found, plain(*item))


def test_a_prompt_that_does_not_fit_loses_its_beginning() -> None:
    text = "".join(chr(97 + i * 7 % 26) for i in range(3 * MAX_POSITIONS))
    (cut,) = TransformersScorer("tiny", tiny).score([(text, " end")])
    assert_same(cut, plain(text[-(MAX_POSITIONS - 4) :], " end"))


def test_a_continuation_that_does_not_fit_leaves_room_for_the_prompt() -> None:
    (found,) = TransformersScorer("tiny", tiny).score([("p" * MAX_POSITIONS, "c" * MAX_POSITIONS)])
    assert found.tokens == MAX_POSITIONS // 2
    assert_same(found, plain("p" * (MAX_POSITIONS // 2), "c" * (MAX_POSITIONS // 2)))


def test_an_empty_prompt_is_the_start_of_a_text() -> None:
    alone, beside = TransformersScorer("tiny", tiny).score([("", "hello"), ("abc", "hello")])
    assert_same(alone, plain("", "hello"))
    assert_same(beside, plain("abc", "hello"))


def test_an_empty_continuation_costs_nothing() -> None:
    scorer = TransformersScorer("tiny", tiny)
    assert scorer.score([("abc", "")]) == [Likelihood(0.0, 0)]
    assert scorer.score([("abc", ""), ("abc", "d")])[0] == Likelihood(0.0, 0)


def test_weights_are_loaded_once_and_only_when_needed() -> None:
    loads: list[int] = []

    def load() -> tuple[Any, Any]:
        loads.append(1)
        return tiny()

    scorer = TransformersScorer("tiny", load)
    assert scorer.score([]) == []
    assert loads == []
    scorer.score([("a", "b")])
    scorer.score([("a", "c")])
    assert loads == [1]


def test_in_bfloat16_a_scorer_says_so_and_reckons_nearly_the_same() -> None:
    coarse = TransformersScorer("tiny", lambda: copy.deepcopy(tiny()), "bfloat16")
    assert coarse.name == "tiny, bfloat16"
    items = [("Them: hello\nMe:", " good day\n"), ("Them: bye\nMe:", " bye then\n")]
    found, exact = coarse.score(items), TransformersScorer("tiny", tiny).score(items)
    assert {str(one.dtype) for one in coarse.loaded[0].parameters()} == {"torch.bfloat16"}
    gaps = [abs(a - b) for one, other in zip(found, exact, strict=True) for a, b in zip(one.token_nats, other.token_nats, strict=True)]
    assert 0 < max(gaps) <= 0.5
    assert sum(gaps) / len(gaps) <= 0.1
    # Logits have eight binary digits; the nats made of them have those of float32.
    assert any(nats != as_bfloat16(nats) for one in found for nats in one.token_nats)


def as_bfloat16(number: float) -> float:
    """A number as bfloat16 has it."""
    import torch

    return torch.tensor(number).bfloat16().item()


def test_scores_of_two_precisions_do_not_mix_in_a_cache(tmp_path: Path) -> None:
    items = [("Them: hello\nMe:", " good day\n")]
    path = tmp_path / "scores.sqlite"
    coarse = CachedScorer(TransformersScorer("tiny", lambda: copy.deepcopy(tiny()), "bfloat16"), path, "same file").score(items)
    assert CachedScorer(TransformersScorer("tiny", tiny), path, "same file").score(items) != coarse
    assert CachedScorer(Never("tiny, bfloat16"), path, "same file").score(items) == coarse


# Token by token -------------------------------------------------------------------------------------------------------


def assert_each_token_is_told(found: Likelihood, continuation: str, *, whole: bool = True) -> None:
    assert len(found.token_nats) == len(found.token_ends) == found.tokens
    assert sum(found.token_nats) == pytest.approx(found.nats, abs=1e-6)
    assert all(nats <= 0 for nats in found.token_nats)
    assert list(found.token_ends) == sorted(found.token_ends)
    assert all(0 < end <= len(continuation) for end in found.token_ends)
    if whole and continuation:
        assert found.token_ends[-1] == len(continuation)


@settings(max_examples=30, deadline=None)
@given(
    items=st.lists(
        st.tuples(st.text("ab \n", max_size=40), st.text("aé 日😀\n", min_size=1, max_size=12)), min_size=1, max_size=5
    )
)
def test_each_token_has_its_nats_and_the_character_where_it_ends(items: list[tuple[str, str]]) -> None:
    for found, (_, continuation) in zip(TransformersScorer("tiny", tiny).score(items), items, strict=True):
        assert_each_token_is_told(found, continuation)
        assert set(found.token_ends) == set(range(1, len(continuation) + 1))  # its tokens are bytes: none spans two characters


def test_each_token_has_the_nats_of_a_plain_forward_pass() -> None:
    (found,) = TransformersScorer("tiny", tiny).score([("hello", " dé")])
    known = "hello"
    for letter, nats in zip(" d", found.token_nats, strict=False):
        assert nats == pytest.approx(plain(known, letter), abs=1e-4)
        known += letter
    assert sum(found.token_nats[2:]) == pytest.approx(plain("hello d", "é"), abs=1e-4)
    assert found.token_ends == (1, 2, 3, 3)


def test_of_a_continuation_that_is_cut_the_tokens_that_were_scored_are_told() -> None:
    text = "é" * MAX_POSITIONS
    (found,) = TransformersScorer("tiny", tiny).score([("p", text)])
    assert_each_token_is_told(found, text, whole=False)
    assert found.token_ends[-1] == MAX_POSITIONS // 4  # half of the places, two bytes a character


def test_a_token_of_several_characters_ends_where_the_last_of_them_does() -> None:
    """A tokenizer of words, as a character's end is only a token's where tokens are bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model, _ = tiny()
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<end>", "?", "tea", "slow", "."])}, unk_token="?"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<end>")
    (found,) = TransformersScorer("words", lambda: (model, words)).score([("tea", " slow tea.")])
    assert found.token_ends == (5, 9, 10)
    assert found.tokens == 3


@given(st.text("ab é\n", max_size=20), st.text("ab é\n", max_size=20))
def test_the_fake_tells_each_word_and_where_it_ends(prompt: str, continuation: str) -> None:
    (found,) = FakeScorer().score([(prompt, continuation)])
    assert sum(found.token_nats) == pytest.approx(found.nats)
    assert [continuation[:end].split()[-1] for end in found.token_ends] == continuation.split()


# The cache -----------------------------------------------------------------------------------------------------------


def test_each_content_is_computed_once(tmp_path: Path) -> None:
    scorer = Counting()
    cached = CachedScorer(scorer, tmp_path / "deep" / "scores.sqlite")
    items = [("a b", "a"), ("c", "c d"), ("a b", "a")]
    first = cached.score(items)
    assert first == FakeScorer().score(items)
    assert scorer.asked == [("a b", "a"), ("c", "c d")]
    assert cached.score([("new", "new"), *reversed(items)])[1:] == list(reversed(first))
    assert scorer.asked[2:] == [("new", "new")]


def test_what_was_computed_survives_reopening(tmp_path: Path) -> None:
    before = CachedScorer(Counting(), tmp_path / "scores.sqlite").score([("a", "a b c")])
    scorer = Counting()
    assert CachedScorer(scorer, tmp_path / "scores.sqlite").score([("a", "a b c")]) == before
    assert scorer.asked == []


def test_the_single_tokens_survive_the_cache(tmp_path: Path) -> None:
    items = [("Them: hello\nMe:", " good dày 😀\n"), ("", "a"), ("abc", "")]
    fresh = TransformersScorer("tiny", tiny).score(items)
    assert CachedScorer(TransformersScorer("tiny", tiny), tmp_path / "scores.sqlite").score(items) == fresh
    assert CachedScorer(Never("tiny"), tmp_path / "scores.sqlite").score(items) == fresh
    assert [found.token_ends[-1:] for found in fresh] == [(len(" good dày 😀\n"),), (1,), ()]


class Never(FakeScorer):
    """A scorer that must not be asked."""

    def __init__(self, name: str) -> None:
        self.name = name

    def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
        raise AssertionError(f"asked for {items}")


def test_a_cache_of_an_earlier_version_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    old = sqlite3.connect(path)
    old.execute("CREATE TABLE scores (key BLOB PRIMARY KEY, nats REAL NOT NULL, tokens INTEGER NOT NULL) STRICT, WITHOUT ROWID")
    old.execute("INSERT INTO scores VALUES (zeroblob(32), -1.5, 3)")
    old.commit()
    old.close()
    scorer = Counting()
    found = CachedScorer(scorer, path).score([("a", "a b")])
    assert found == FakeScorer().score([("a", "a b")])
    assert CachedScorer(Never("fake:"), path).score([("a", "a b")]) == found
    now = sqlite3.connect(path)
    assert [name for (name,) in now.execute("SELECT name FROM sqlite_master WHERE type = 'table'")] == ["likelihoods"]
    now.close()


def test_an_old_cache_may_be_opened_by_two_at_once(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    old = sqlite3.connect(path)
    old.execute("CREATE TABLE scores (key BLOB PRIMARY KEY, nats REAL NOT NULL, tokens INTEGER NOT NULL)")
    old.commit()
    old.close()
    one, two = CachedScorer(Counting(), path), CachedScorer(Counting(), path)
    assert one.score([("a", "b")]) == two.score([("a", "b")]) == CachedScorer(Never("fake:"), path).score([("a", "b")])


def test_two_scorers_in_one_file_do_not_mix(tmp_path: Path) -> None:
    one, two = Counting("one"), Counting("two")
    CachedScorer(one, tmp_path / "scores.sqlite").score([("a", "b")])
    CachedScorer(two, tmp_path / "scores.sqlite").score([("a", "b")])
    assert two.asked == [("a", "b")]
    assert CachedScorer(one, tmp_path / "scores.sqlite").name == "one"


def test_other_weights_under_the_same_name_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    for weights in ("", "one", "two"):
        scorer = Counting()
        CachedScorer(scorer, path, weights).score([("a", "b")])
        CachedScorer(scorer, path, weights).score([("a", "b")])
        assert scorer.asked == [("a", "b")]


def test_where_a_prompt_ends_is_part_of_the_key(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    names = [("a", "b", "cd"), ("a", "bc", "d"), ("ab", "c", "d"), ("a", "", "bcd"), ("", "ab", "cd"), ("a", "b\x00", "cd")]
    for name, prompt, continuation in names:
        scorer = Counting(name)
        CachedScorer(scorer, path).score([(prompt, continuation)])
        assert scorer.asked == [(prompt, continuation)]


_TEXTS = st.text(st.characters() | st.characters(categories=["Cs"]), max_size=12)


@settings(max_examples=40, deadline=None)
@given(calls=st.lists(st.lists(st.tuples(_TEXTS, _TEXTS), max_size=6), max_size=4))
def test_a_cached_score_is_the_score(calls: list[list[tuple[str, str]]], tmp_path_factory: pytest.TempPathFactory) -> None:
    scorer = Counting()
    cached = CachedScorer(scorer, tmp_path_factory.mktemp("cache") / "scores.sqlite")
    for items in calls:
        assert cached.score(items) == FakeScorer().score(items)
    assert len(scorer.asked) == len(set(scorer.asked))


def test_the_cache_holds_no_text(tmp_path: Path) -> None:
    cached = CachedScorer(FakeScorer(), tmp_path / "scores.sqlite")
    cached.score([("my secret prompt", "my secret answer")])
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert held.startswith(b"SQLite")
    assert b"secret" not in held


def test_a_scorer_that_fails_leaves_the_cache_usable(tmp_path: Path) -> None:
    class Failing(FakeScorer):
        def score(self, items: Sequence[tuple[str, str]]) -> list[Likelihood]:
            raise ModelError("no weights")

    cached = CachedScorer(Failing(), tmp_path / "scores.sqlite")
    with pytest.raises(ModelError, match="no weights"):
        cached.score([("a", "b")])
    cached.scorer = FakeScorer()
    assert cached.score([("a", "b")]) == FakeScorer().score([("a", "b")])


def test_a_cache_serves_several_threads(tmp_path: Path) -> None:
    scorer = Counting()
    cached = CachedScorer(scorer, tmp_path / "scores.sqlite")
    items = [(f"p{i}", f"c{i}") for i in range(20)]
    threads = [threading.Thread(target=cached.score, args=(items[i:] + items[:i],)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(scorer.asked) == sorted(items)


def test_a_file_that_is_no_cache_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "scores.sqlite"
    path.write_bytes(b"this is no database, but it is longer than a header" * 40)
    with pytest.raises(ModelError, match=r"scores\.sqlite: the cache of scores cannot be used .*delete that file"):
        CachedScorer(FakeScorer(), path)
    with pytest.raises(ModelError, match="cannot be used"):
        CachedScorer(FakeScorer(), path / "below" / "a-file.sqlite")


# The fake ------------------------------------------------------------------------------------------------------------


def test_the_fake_finds_words_of_the_prompt_likely() -> None:
    known, half, unknown, empty = FakeScorer().score(
        [("Wants TEA", "tea wants"), ("tea", "tea milk"), ("", "tea milk"), ("", "")]
    )
    assert (known.nats, known.tokens, known.token_ends) == (pytest.approx(-2 * log(20)), 2, (3, 9))
    assert known.nats > half.nats > unknown.nats
    assert empty == Likelihood(0, 1)


# The real one --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_local_scorer_prefers_the_likely_and_shares_exactly() -> None:
    from usertwin.simulator import load_scorer

    cached = load_scorer("local")
    assert isinstance(cached, CachedScorer)
    assert cached.name == "local"
    scorer = cached.scorer  # without the user's cache: what is compared has to be computed
    likely, unlikely = scorer.score([("The capital of France is", " Paris"), ("The capital of France is", " banana")])
    assert likely.nats / likely.tokens > unlikely.nats / unlikely.tokens + 2

    talk = "Them: Hello, this is the help desk of the railway. What can I do for you on this fine day?\n" * 2
    thoughts = ["", "(Me thinking: in a hurry)\n", "(Me thinking: wants to know when the train leaves, and is polite)\n"]
    items = [(f"{talk}{thought}Me:", " hi, when does the next train leave?\n") for thought in thoughts]
    together, single = scorer.score(items), [scorer.score([item])[0] for item in items]
    for one, other in zip(together, single, strict=True):
        assert one.tokens == other.tokens
        assert abs(one.nats - other.nats) <= 1e-3 * one.tokens
    assert together[2].nats > together[0].nats


@pytest.mark.slow
def test_the_local_scorer_in_bfloat16_agrees_with_itself_in_float32() -> None:
    """Over 20 prompts with recalled moments it was 0.038 nats a token apart on average, 0.24 at most, and 0.12 a turn of 49."""
    from usertwin.simulator import load_scorer

    exact, coarse = load_scorer("local"), load_scorer("local", "bfloat16")
    assert (exact.name, coarse.name) == ("local", "local, bfloat16")
    talk = "Them: Hello, this is the help desk. What can I do for you?\nMe: hi, I need a train to Rome\n\nThem: {}\nMe:"
    items = [
        (talk.format("Which day would you like to travel?"), " tomorrow morning please\n"),
        (talk.format("Do you need anything else?"), " no thats all thank you bye\n"),
        (talk.format("How are you today?"), " banana banana giraffe\n"),
    ]
    assert isinstance(exact, CachedScorer)
    assert isinstance(coarse, CachedScorer)
    apart = list[float]()
    for one, other in zip(exact.scorer.score(items), coarse.scorer.score(items), strict=True):
        apart += [abs(a - b) for a, b in zip(one.token_nats, other.token_nats, strict=True)]
        assert abs(one.nats - other.nats) <= 1.0
    assert max(apart) <= 0.4
    assert sum(apart) / len(apart) <= 0.1
