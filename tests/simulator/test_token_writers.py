"""Token writers: a transformers model and llama.cpp write from the probabilities of a function of ours."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from math import exp
from typing import Any

import pytest

from conftest import tiny
from usertwin.memory.models.chat import ChatModel, Ledger, Sample, sample
from usertwin.memory.models.token_writer import NextToken, WrittenTokens
from usertwin.memory.text.transcript import action_completion
from usertwin.personas import ModelError
from usertwin.simulator import load_model
from usertwin.simulator.backends.llama_token_writer import LlamaTokenWriter
from usertwin.simulator.backends.transformers_chat import TransformersChat

pytestmark = pytest.mark.usefixtures("in_one_thread")


def unchanged(history: Sequence[int], model: Mapping[int, float]) -> dict[int, float]:
    """Return the model's own probabilities."""
    return dict(model)


def always(tokens: Sequence[int]) -> NextToken:
    """Return a function that makes one sequence of tokens certain."""
    return lambda history, model: {tokens[len(history) % len(tokens)]: 1.0}


def write(writer: Any, next_token: NextToken, prompt: str = "ab", **options: Any) -> list[WrittenTokens]:
    """Write completions of a prompt."""
    given = {"n": 1, "seed": 0, "max_tokens": 6, "temperature": 1.0, "stop": ["\n"], "use_cache": False} | options
    return asyncio.run(writer.write([("user", prompt)], next_token, **given))


# transformers ---------------------------------------------------------------------------------------------------------


def chat() -> TransformersChat:
    """Return the tests' tiny model, whose tokens are bytes."""
    return TransformersChat(model_name="tiny", load=tiny)


def test_what_a_function_makes_certain_is_written_up_to_the_stop_text() -> None:
    model = chat()
    [tokens] = model.encode(["hello you"])
    [written] = write(model, always(tokens), max_tokens=30)
    assert written.text == " hello you"
    assert not written.at_limit
    assert (written.output_tokens, len(tokens)) == (len(" hello you\n"), len(action_completion("hello you")))
    [cut] = write(model, always(tokens), max_tokens=4)
    assert (cut.text, cut.at_limit) == (" hel", True)


def test_the_function_gets_the_turn_so_far_and_the_models_probabilities() -> None:
    import torch

    model, tokenizer = tiny()
    seen: list[tuple[list[int], dict[int, float]]] = []

    def record(history: Sequence[int], probabilities: Mapping[int, float]) -> dict[int, float]:
        seen.append((list(history), dict(probabilities)))
        return {7 + len(history): 1.0}

    write(chat(), record, max_tokens=3)
    assert [history for history, _ in seen] == [[], [7], [7, 8]]
    prompt = tokenizer("ab").input_ids
    for history, probabilities in seen:
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *history]])).logits[0, -1]
        expected = logits.softmax(-1)
        assert probabilities == pytest.approx({token: float(expected[token]) for token in probabilities}, rel=1e-4)
        assert min(probabilities.values()) >= float(expected.topk(len(probabilities)).values[-1]) * 0.999


def test_drawn_tokens_follow_the_functions_probabilities() -> None:
    _, tokenizer = tiny()
    first, second = tokenizer("AB").input_ids
    shares = {first: 0.7, second: 0.3}
    written = write(chat(), lambda history, model: shares, n=400, max_tokens=1)
    counts = Counter(completion.text for completion in written)
    assert set(counts) == {"A", "B"}
    assert counts["A"] / 400 == pytest.approx(0.7, abs=0.08)


def test_completions_are_reproducible_by_seed_and_completion_i_has_seed_plus_i() -> None:
    model = chat()
    first, second, third = (completion.text for completion in write(model, unchanged, n=3, seed=5))
    assert [first] == [completion.text for completion in write(model, unchanged, seed=5)]
    assert [second, third] == [completion.text for completion in write(model, unchanged, n=2, seed=6)]


def test_sample_uses_the_writer_if_there_are_probabilities_of_ours_and_counts_its_tokens() -> None:
    model, ledger = chat(), Ledger()
    [tokens] = model.encode(["so what"])
    with_writer = ChatModel("tiny", model, "transcript", token_writer=model)

    async def ask(next_token: NextToken | None) -> list[Sample]:
        return await sample(with_writer, [("user", "ab")], max_tokens=30, stop=["\n"], next_token=next_token, ledger=ledger)

    [written] = asyncio.run(ask(always(tokens)))
    assert written.text == " so what"
    assert (ledger.calls, ledger.usage.output_tokens) == (1, len(tokens))
    assert asyncio.run(ask(None))[0].text != " so what"


# llama.cpp ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_llama_writes_what_a_function_makes_certain_and_tells_its_own_probabilities() -> None:
    model = load_model("local")
    writer = model.token_writer
    assert isinstance(writer, LlamaTokenWriter)
    assert writer.vocabulary_size == 49152
    [tokens] = writer.encode(["Grüße, my friend 🙂"])
    [written] = write(writer, always(tokens), "Them: hi\nMe:", max_tokens=30)
    assert written.text == " Grüße, my friend 🙂\n"
    assert (written.at_limit, written.output_tokens) == (False, len(tokens))
    seen: list[Mapping[int, float]] = []

    def record(history: Sequence[int], probabilities: Mapping[int, float]) -> dict[int, float]:
        seen.append(probabilities)
        return dict(probabilities)

    texts = [write(writer, record, "Them: hi\nMe:", seed=3, max_tokens=8)[0].text for _ in range(2)]
    assert texts[0] == texts[1]
    assert all(0.3 < sum(probabilities.values()) <= 1 + 1e-6 for probabilities in seen)


@pytest.mark.slow
def test_llamas_probabilities_are_those_of_the_scorer() -> None:
    from usertwin.simulator import load_scorer

    prompt, action = "Them: how are you?\nMe: fine\nThem: what do you do today?\nMe:", "I go to work"
    model, scorer = load_model("local"), load_scorer("local")
    [likelihood] = scorer.score([(prompt, action_completion(action))])
    [tokens] = scorer.tokenize([action_completion(action)])  # pyright: ignore[reportAttributeAccessIssue]
    assert [tokens] == model.token_writer.encode([action])  # pyright: ignore[reportOptionalMemberAccess]
    seen: list[float] = []

    def follow(history: Sequence[int], probabilities: Mapping[int, float]) -> dict[int, float]:
        token = tokens[len(history)]
        seen.append(probabilities.get(token, 0.0))
        return {token: 1.0}

    write(model.token_writer, follow, prompt, max_tokens=30)
    known = [(ours, exp(nats)) for ours, nats in zip(seen, likelihood.token_nats, strict=True) if ours]
    assert len(known) >= len(tokens) - 2  # the others are not among the likely tokens
    assert all(
        ours == pytest.approx(theirs, rel=0.25) for ours, theirs in known
    )  # 4-bit weights and activations against float32


def test_a_server_that_does_not_answer_is_a_model_error() -> None:
    class Gone:
        url = "http://127.0.0.1:9/v1"

    with pytest.raises(ModelError, match="did not answer"):
        LlamaTokenWriter(Gone(), "transcript").encode(["x"])  # pyright: ignore[reportArgumentType]
