"""The transformers chat model: it matches plain generation, encodes the prompt once, and samples by its own seeds."""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from tiny_model import tiny_model

from conftest import MAX_POSITIONS, tiny
from usertwin.memory.models.chat import ChatModel, Sample, sample
from usertwin.personas import ModelError, UsageError
from usertwin.simulator import load_model
from usertwin.simulator.backends.load import prompt_style_of
from usertwin.simulator.backends.transformers_chat import TransformersChat

pytestmark = pytest.mark.usefixtures("in_one_thread")

PROMPT = "Them: hello\nMe:"


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow names of models that are not scripted."""
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder without a chat template."""
    return tiny_model(tmp_path_factory.mktemp("models") / "plain")


@pytest.fixture(scope="module")
def templated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder with a chat template."""
    return tiny_model(tmp_path_factory.mktemp("models") / "templated", chat_template=True)


def chat(**options: Any) -> TransformersChat:
    return TransformersChat(model_name="tiny", load=tiny, **options)


def complete(prompt: str = PROMPT, **options: Any) -> list[Sample]:
    """Return samples of the byte model."""
    model = ChatModel("tiny", chat(), "transcript")
    return asyncio.run(sample(model, [("user", prompt)], **({"max_tokens": 12} | options)))


def greedy_tokens(tokens: int, prompt: str = PROMPT) -> list[int]:
    """Return the greedy completion of plain transformers generation."""
    import torch

    model, tokenizer = tiny()
    ids = torch.tensor([tokenizer(prompt).input_ids])
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return written[0, ids.shape[1] :].tolist()


def greedy_text(prompt: str, tokens: int) -> str:
    """Return the same completion as text."""
    _, tokenizer = tiny()
    return tokenizer.decode(greedy_tokens(tokens, prompt), skip_special_tokens=True)


# Sampling ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [PROMPT, "a", "one two three four five, " * 4])
@pytest.mark.parametrize("n", [1, 3])
def test_temperature_zero_equals_greedy_generation_for_each_sample(prompt: str, n: int) -> None:
    assert {completion.text for completion in complete(prompt, n=n, temperature=0.0)} == {greedy_text(prompt, 12)}


def test_an_empty_prompt_is_accepted() -> None:
    assert complete("", temperature=0.0)[0].usage.input_tokens == 1


def test_samples_are_reproducible_by_seed() -> None:
    first, again, other = (complete(seed=seed)[0].text for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_a_sample_does_not_depend_on_the_batch() -> None:
    batch = [completion.text for completion in complete(n=3, seed=4)]
    assert batch == [complete(seed=seed)[0].text for seed in (4, 5, 6)]
    assert len(set(batch)) == 3


def test_torchs_global_generator_is_neither_read_nor_changed() -> None:
    import torch

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = complete(seed=3)[0].text
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert complete(seed=3)[0].text == first


def test_first_tokens_are_sampled_from_the_softmax() -> None:
    """600 draws, at most five standard errors off for each token; a wrong noise or temperature is off by far more."""
    import torch

    model, tokenizer = tiny()
    with torch.inference_mode():
        logits = model(torch.tensor([tokenizer(PROMPT).input_ids])).logits[0, -1].double()
    likely = (logits / 1.5).softmax(-1)
    draws = chat()._complete(tokenizer(PROMPT).input_ids, 1, 1.5, range(600), [])  # pyright: ignore[reportPrivateUsage]
    counts = Counter(row[0] for row in draws)
    for token in likely.argsort(descending=True)[:8].tolist():
        p = float(likely[token])
        assert abs(counts[token] / 600 - p) <= 5 * (p * (1 - p) / 600) ** 0.5
    assert len(counts) > 8


# Stopping and usage -----------------------------------------------------------------------------------------------------


def test_a_stop_text_cuts_the_completion_and_ends_generation() -> None:
    text = greedy_text(PROMPT, 12)
    [completion] = complete(temperature=0.0, stop=["never there", "ou"])
    assert completion.text == text[: text.index("ou")]
    _, tokenizer = tiny()
    length = next(n for n in range(13) if "ou" in tokenizer.decode(greedy_tokens(12)[:n]))
    assert completion.usage.output_tokens == length < 12


def test_usage_counts_only_the_tokens_before_the_stop() -> None:
    full = complete(n=4, seed=0, temperature=1.0, max_tokens=40)
    stop = full[0].text[1]
    stopped = complete(n=4, seed=0, temperature=1.0, max_tokens=40, stop=[stop])
    assert [completion.text for completion in stopped] == [completion.text.partition(stop)[0] for completion in full]
    assert sum(completion.usage.output_tokens for completion in stopped) < sum(
        completion.usage.output_tokens for completion in full
    )
    assert stopped[0].usage.input_tokens == len(PROMPT)


def test_the_end_tokens_of_model_and_tokenizer_both_end_a_completion(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny()
    written = greedy_tokens(12)
    monkeypatch.setattr(model.generation_config, "eos_token_id", [written[3]])
    assert complete(temperature=0.0)[0].usage.output_tokens == written.index(written[3]) + 1
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    other = copy.deepcopy(tokenizer)
    other.eos_token = tokenizer.convert_ids_to_tokens(written[2])
    model_and_tokenizer = ChatModel("tiny", TransformersChat(model_name="tiny", load=lambda: (model, other)), "transcript")
    [completion] = asyncio.run(sample(model_and_tokenizer, [("user", PROMPT)], max_tokens=12, temperature=0.0))
    assert completion.usage.output_tokens == written.index(written[2]) + 1


def test_a_limit_beyond_the_context_is_lowered_and_an_unfinished_completion_says_so() -> None:
    [completion] = complete("x" * 20, max_tokens=10_000, temperature=0.0, stop=[])
    assert completion.usage.output_tokens <= MAX_POSITIONS - 20
    [cut] = complete("x" * 20, max_tokens=2, temperature=0.0)
    assert cut.at_limit


def test_control_tokens_in_a_prompt_are_read_as_characters(templated: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(templated)
    assert len(tokenizer("<end>" * 10).input_ids) == 10  # as a control token
    for style, least in (("transcript", 20), ("instruction", 20)):
        model = TransformersChat(model_name="tiny", load=lambda: (None, tokenizer), style=style)  # pyright: ignore[reportArgumentType]
        with_tokens, plain = (model._tokenize([HumanMessage(text)]) for text in ("<end>" * 10, ""))
        assert len(with_tokens) - len(plain) >= least
        assert with_tokens.count(tokenizer.eos_token_id) == (plain if style == "instruction" else []).count(
            tokenizer.eos_token_id
        )
        assert model.count_tokens("<end>" * 10) > 10


def test_a_prompt_that_exceeds_the_context_is_a_model_error() -> None:
    message = rf'the context of the model "tiny" is {MAX_POSITIONS} tokens; the prompt has 155, and 12 are reserved'
    with pytest.raises(ModelError, match=message):
        complete("x" * 155)


# By name ----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("real")
def test_the_prompt_style_follows_the_chat_template(folder: Path, templated: Path) -> None:
    assert prompt_style_of(f"transformers:{folder}") == ("transcript", True)
    assert prompt_style_of(f"transformers:{templated}") == ("instruction", True)
    assert prompt_style_of(f"transformers:{templated}", "transcript") == ("transcript", True)
    assert load_model(f"transformers:{templated}").style == "instruction"


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("call", [load_model, lambda name, style: prompt_style_of(name, style)])
def test_instruction_style_without_a_chat_template_is_refused_before_loading(folder: Path, call: Any) -> None:
    with pytest.raises(UsageError, match=r"has no chat template.*use --style transcript"):
        call(f"transformers:{folder}", style="instruction")


@pytest.mark.usefixtures("real")
def test_a_folder_without_a_model_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no transformers model; name a folder"):
        load_model(f"transformers:{tmp_path}")


def test_only_scripted_forbids_transformers_models(folder: Path) -> None:
    with pytest.raises(ModelError, match="USERTWIN_ONLY_SCRIPTED"):
        load_model(f"transformers:{folder}")


@pytest.mark.usefixtures("real")
def test_messages_are_formatted_by_the_chat_template(templated: Path) -> None:
    model: Any = load_model(f"transformers:{templated}").chat
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

    tokens = model._tokenize([SystemMessage("be kind"), HumanMessage("hello"), AIMessage("hi"), HumanMessage("bye")])
    _, tokenizer = model.loaded
    text = tokenizer.decode(tokens)
    assert text.startswith("<|system|>\nbe kind")
    assert [text.find(f"<|{role}|>") >= 0 for role in ("user", "assistant")] == [True, True]
    assert text.rstrip().endswith("<|assistant|>")


@pytest.mark.usefixtures("real")
def test_samples_are_one_call_that_does_not_block_the_event_loop(folder: Path) -> None:
    model = load_model(f"transformers:{folder}")

    async def both() -> tuple[list[Sample], int]:
        asking = asyncio.create_task(sample(model, [("user", PROMPT)], n=4, max_tokens=30))
        turns = 0
        while not asking.done():
            turns += 1
            await asyncio.sleep(0)
        return await asking, turns

    samples, turns = asyncio.run(both())
    assert turns > 20  # the loop ran while the model generated
    # The prompt was encoded once.
    assert [completion.usage.input_tokens > 0 for completion in samples] == [True, False, False, False]
