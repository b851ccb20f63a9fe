"""The transformers scorer: scores equal those of a plain_nats forward pass, and shared prefixes are computed once."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from math import log
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import MAX_POSITIONS, tiny
from usertwin.memory.models import transformers_scorer
from usertwin.memory.models.score_cache import CachedScorer
from usertwin.memory.models.scoring import FakeScorer, Likelihood
from usertwin.memory.models.transformers_scorer import TransformersScorer

pytestmark = pytest.mark.usefixtures("in_one_thread")


def plain_nats(prompt: str, continuation: str) -> float:
    """Return the log-probability in nats from the logits of the whole text."""
    import torch

    model, tokenizer = tiny()
    before, after = tokenizer(prompt).input_ids or [tokenizer.eos_token_id], tokenizer(continuation).input_ids
    with torch.inference_mode():
        logits = model(torch.tensor([before + after])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(before) + place - 1, token]) for place, token in enumerate(after))


def assert_close(score: Likelihood, nats: float) -> None:
    assert abs(score.nats - nats) <= 1e-4 * max(1, score.tokens)


def test_bits_are_nats_over_log_two() -> None:
    assert Likelihood(-3 * log(2), 5).bits == pytest.approx(3.0)


# The transformers scorer ---------------------------------------------------------------------------------------------


def test_single_score_equals_a_plain_forward_pass() -> None:
    (score,) = TransformersScorer("tiny", tiny).score([("Them: hello\nMe:", " good day\n")])
    assert score.tokens == len(" good day\n")
    assert_close(score, plain_nats("Them: hello\nMe:", " good day\n"))


@settings(max_examples=30, deadline=None)
@given(
    shared=st.text("ab \n", max_size=70),
    items=st.lists(st.tuples(st.text("abé ", max_size=30), st.text("abcé ", min_size=1, max_size=15)), min_size=1, max_size=6),
)
def test_batched_scores_equal_single_scores(shared: str, items: list[tuple[str, str]]) -> None:
    scorer = TransformersScorer("tiny", tiny)
    texts = [(shared + prompt, continuation) for prompt, continuation in items]
    for score, (prompt, continuation) in zip(scorer.score(texts), texts, strict=True):
        assert_close(score, plain_nats(prompt, continuation))


def test_shared_prefix_is_computed_once() -> None:
    prompts = ["x" * 100 + letter for letter in "abcdefgh"]
    scores, token_counts = scored_and_counted([(prompt, " done") for prompt in prompts])
    assert sum(token_counts) == 100 + 8 * (len("a done") - 1)
    for likelihood, prompt in zip(scores, prompts, strict=True):
        assert_close(likelihood, plain_nats(prompt, " done"))
    assert len({likelihood.nats for likelihood in scores}) == 8


def scored_and_counted(items: Sequence[tuple[str, str]]) -> tuple[list[Likelihood], list[int]]:
    """Return the tiny model's scores, and the number of tokens in each forward pass, padding included.

    The last token of a continuation is never an input: nothing after it is predicted.
    """
    model, _ = tiny()
    token_counts: list[int] = []
    scorer = TransformersScorer("tiny", tiny)
    scorer.score([("x", "y")])  # the first call also probes the model's head
    hook = model.base_model.register_forward_hook(lambda _module, arguments, _out: token_counts.append(arguments[0].numel()))
    try:
        return scorer.score(items), token_counts
    finally:
        hook.remove()


def test_prompt_with_several_continuations_is_computed_once() -> None:
    """As in forced choices: eight actions for each prompt, here interleaved."""
    prompts = ["q" * 60, "r" * 90, "s" * 40]
    items = [(prompt, f" act {number}") for number in range(8) for prompt in prompts] + [("t" * 50, " alone")]
    scores, token_counts = scored_and_counted(items)
    together = sum(len(prompt) - 1 + 8 * (len("q act 1") - 1) for prompt in prompts)
    assert sum(token_counts) == together + len("t" * 50 + " alone") - 1
    for likelihood, item in zip(scores, items, strict=True):
        assert_close(likelihood, plain_nats(*item))


def test_prompt_with_several_continuations_extends_the_shared_prefix() -> None:
    prompts = ["x" * 50 + letter * 40 for letter in "ab"]
    items = [(prompt, action) for prompt in prompts for action in (" yes", " no!")] + [("x" * 50 + "c", " yes")]
    scores, token_counts = scored_and_counted(items)
    assert sum(token_counts) == 50 + 2 * (39 + 2 * (len("a yes") - 1)) + len("c yes") - 1
    for likelihood, item in zip(scores, items, strict=True):
        assert_close(likelihood, plain_nats(*item))


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["a" * 40, "a" * 35 + "b" * 35, "b" * 80, "c"]), st.text("ab ", max_size=9)), max_size=9)
)
def test_scores_of_repeated_prompts_equal_a_plain_forward_pass(items: list[tuple[str, str]]) -> None:
    for score, item in zip(TransformersScorer("tiny", tiny).score(items), items, strict=True):
        assert_close(score, plain_nats(*item))


# Batches -------------------------------------------------------------------------------------------


def every_split(order: list[int]) -> Iterator[list[list[int]]]:
    """Yield every way to cut a list into consecutive parts."""
    if not order:
        yield []
    for end in range(1, len(order) + 1):
        yield from ([order[:end], *rest] for rest in every_split(order[end:]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=7), st.integers(0, 40))
def test_batches_hold_each_row_once_at_the_least_cost(lengths: list[int], call: int) -> None:
    def cost(groups: list[list[int]]) -> int:
        return sum(call + len(group) * max(lengths[i] for i in group) for group in groups)

    def fits(group: list[int]) -> bool:
        return len(group) == 1 or len(group) * max(lengths[i] for i in group) <= 100

    batches = transformers_scorer._batches(lengths, 0, max_tokens=100, call_cost=call)
    assert sorted(index for group in batches for index in group) == list(range(len(lengths)))
    assert all(map(fits, batches))
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    assert cost(batches) == min(cost(groups) for groups in every_split(order) if all(map(fits, groups)))


def test_long_shared_prefix_limits_the_rows_of_a_batch() -> None:
    few = transformers_scorer._batches(
        [10] * 8, transformers_scorer._MAX_CACHED_TOKENS // 2 - 10, max_tokens=1000, call_cost=32
    )
    assert sorted(map(len, few)) == [2, 2, 2, 2]
    assert transformers_scorer._batches([10] * 8, 0, max_tokens=1000, call_cost=32) == [list(range(8))]


def test_equal_prompts_and_a_prompt_that_is_a_prefix_share_too() -> None:
    items = [("y" * 60, "a"), ("y" * 60, "b"), ("y" * 60 + "z", "c")]
    for score, item in zip(TransformersScorer("tiny", tiny).score(items), items, strict=True):
        assert_close(score, plain_nats(*item))


def test_several_batches_keep_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usertwin.memory.models.transformers_scorer._BATCH_TOKENS", 64)
    items = [(letter * length, f" {length}") for letter, length in zip("abcdefgh", (9, 70, 3, 40, 1, 90, 20, 5), strict=True)]
    for score, item in zip(TransformersScorer("tiny", tiny).score(items), items, strict=True):
        assert_close(score, plain_nats(*item))


def test_long_prompt_is_truncated_at_the_start() -> None:
    text = "".join(chr(97 + i * 7 % 26) for i in range(3 * MAX_POSITIONS))
    (cut,) = TransformersScorer("tiny", tiny).score([(text, " end")])
    assert_close(cut, plain_nats(text[-(MAX_POSITIONS - 4) :], " end"))


def test_long_continuation_leaves_room_for_the_prompt() -> None:
    (score,) = TransformersScorer("tiny", tiny).score([("p" * MAX_POSITIONS, "c" * MAX_POSITIONS)])
    assert score.tokens == MAX_POSITIONS // 2
    assert_close(score, plain_nats("p" * (MAX_POSITIONS // 2), "c" * (MAX_POSITIONS // 2)))


def test_empty_prompt_is_the_start_of_a_text() -> None:
    alone, beside = TransformersScorer("tiny", tiny).score([("", "hello"), ("abc", "hello")])
    assert_close(alone, plain_nats("", "hello"))
    assert_close(beside, plain_nats("abc", "hello"))


def test_empty_continuation_has_log_probability_zero() -> None:
    scorer = TransformersScorer("tiny", tiny)
    assert scorer.score([("abc", "")]) == [Likelihood(0.0, 0)]
    assert scorer.score([("abc", ""), ("abc", "d")])[0] == Likelihood(0.0, 0)


def test_weights_are_loaded_once_on_first_use() -> None:
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


def test_bfloat16_scorer_has_its_own_name_and_nearly_equal_scores() -> None:
    rounded = TransformersScorer("tiny", lambda: copy.deepcopy(tiny()), "bfloat16")
    assert rounded.name == "tiny, bfloat16"
    items = [("Them: hello\nMe:", " good day\n"), ("Them: bye\nMe:", " bye then\n")]
    scores, exact = rounded.score(items), TransformersScorer("tiny", tiny).score(items)
    assert {str(weights.dtype) for weights in rounded.loaded[0].parameters()} == {"torch.bfloat16"}
    token_pairs = (zip(a.token_nats, b.token_nats, strict=True) for a, b in zip(scores, exact, strict=True))
    gaps = [abs(a - b) for pairs in token_pairs for a, b in pairs]
    assert 0 < max(gaps) <= 0.5
    assert sum(gaps) / len(gaps) <= 0.1
    # Logits have the precision of bfloat16, log-probabilities that of float32.
    assert any(nats != as_bfloat16(nats) for score in scores for nats in score.token_nats)


def as_bfloat16(number: float) -> float:
    """Return the number rounded to bfloat16."""
    import torch

    return torch.tensor(number).bfloat16().item()


# Tokens -------------------------------------------------------------------------------------------------------


def assert_token_fields_are_consistent(score: Likelihood, continuation: str, *, complete: bool = True) -> None:
    assert len(score.token_nats) == len(score.token_ends) == score.tokens
    assert sum(score.token_nats) == pytest.approx(score.nats, abs=1e-6)
    assert all(nats <= 0 for nats in score.token_nats)
    assert list(score.token_ends) == sorted(score.token_ends)
    assert all(0 < end <= len(continuation) for end in score.token_ends)
    if complete and continuation:
        assert score.token_ends[-1] == len(continuation)


@settings(max_examples=30, deadline=None)
@given(
    items=st.lists(
        st.tuples(st.text("ab \n", max_size=40), st.text("aé 日😀\n", min_size=1, max_size=12)), min_size=1, max_size=5
    )
)
def test_each_token_has_its_nats_and_its_end(items: list[tuple[str, str]]) -> None:
    for score, (_, continuation) in zip(TransformersScorer("tiny", tiny).score(items), items, strict=True):
        assert_token_fields_are_consistent(score, continuation)
        assert set(score.token_ends) == set(range(1, len(continuation) + 1))  # byte tokens never span two characters


def test_token_nats_equal_a_plain_forward_pass() -> None:
    (score,) = TransformersScorer("tiny", tiny).score([("hello", " dé")])
    known = "hello"
    for letter, nats in zip(" d", score.token_nats, strict=False):
        assert nats == pytest.approx(plain_nats(known, letter), abs=1e-4)
        known += letter
    assert sum(score.token_nats[2:]) == pytest.approx(plain_nats("hello d", "é"), abs=1e-4)
    assert score.token_ends == (1, 2, 3, 3)


def test_truncated_continuation_reports_the_scored_tokens() -> None:
    text = "é" * MAX_POSITIONS
    (score,) = TransformersScorer("tiny", tiny).score([("p", text)])
    assert_token_fields_are_consistent(score, text, complete=False)
    assert score.token_ends[-1] == MAX_POSITIONS // 4  # half of the context length, two bytes a character


def test_token_of_several_characters_ends_at_the_last_one() -> None:
    """Uses a word tokenizer: with byte tokens, every character ends a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model, _ = tiny()
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<end>", "?", "tea", "slow", "."])}, unk_token="?"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<end>")
    (score,) = TransformersScorer("words", lambda: (model, words)).score([("tea", " slow tea.")])
    assert score.token_ends == (5, 9, 10)
    assert score.tokens == 3


@given(st.text("ab é\n", max_size=20), st.text("ab é\n", max_size=20))
def test_fake_scorer_reports_each_word_and_its_end(prompt: str, continuation: str) -> None:
    (score,) = FakeScorer().score([(prompt, continuation)])
    assert sum(score.token_nats) == pytest.approx(score.nats)
    assert [continuation[:end].split()[-1] for end in score.token_ends] == continuation.split()


# The fake ------------------------------------------------------------------------------------------------------------


def test_fake_scorer_prefers_words_of_the_prompt() -> None:
    known, half, unknown, empty = FakeScorer().score(
        [("Wants TEA", "tea wants"), ("tea", "tea milk"), ("", "tea milk"), ("", "")]
    )
    assert (known.nats, known.tokens, known.token_ends) == (pytest.approx(-2 * log(20)), 2, (3, 9))
    assert known.nats > half.nats > unknown.nats
    assert empty == Likelihood(0, 1)


# The local model --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_local_scorer_prefers_likely_text_and_sharing_does_not_change_scores() -> None:
    from usertwin.simulator import load_scorer

    cached = load_scorer("local")
    assert isinstance(cached, CachedScorer)
    assert cached.name == "local"
    scorer = cached.scorer  # without the user's cache, so that every score is computed
    likely, unlikely = scorer.score([("The capital of France is", " Paris"), ("The capital of France is", " banana")])
    assert likely.nats / likely.tokens > unlikely.nats / unlikely.tokens + 2

    talk = "Them: Hello, this is the help desk of the railway. What can I do for you on this fine day?\n" * 2
    thoughts = ["", "(Me thinking: in a hurry)\n", "(Me thinking: wants to know when the train leaves, and is polite)\n"]
    items = [(f"{talk}{thought}Me:", " hi, when does the next train leave?\n") for thought in thoughts]
    together, single = scorer.score(items), [scorer.score([item])[0] for item in items]
    for batched, alone in zip(together, single, strict=True):
        assert batched.tokens == alone.tokens
        assert abs(batched.nats - alone.nats) <= 1e-3 * batched.tokens
    assert together[2].nats > together[0].nats


@pytest.mark.slow
def test_local_scorer_in_bfloat16_is_close_to_float32() -> None:
    """Measured over 20 prompts with recalled examples: 0.038 nats a token on average, 0.24 at most, 0.12 a turn (n=49)."""
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
    gaps = list[float]()
    for one, other in zip(exact.scorer.score(items), coarse.scorer.score(items), strict=True):
        gaps += [abs(a - b) for a, b in zip(one.token_nats, other.token_nats, strict=True)]
        assert abs(one.nats - other.nats) <= 1.0
    assert max(gaps) <= 0.4
    assert sum(gaps) / len(gaps) <= 0.1


def test_control_tokens_in_scored_texts_are_read_as_characters(base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    prompt, continuation, ends = transformers_scorer._encode(tokenizer, "<end>" * 10, "<end>" * 10, 1000)
    assert min(len(prompt), len(continuation)) > 10
    assert tokenizer.eos_token_id not in {*prompt, *continuation}
    assert ends[-1] == 50
