"""A transformers model as a chat model: it says what plain generation says, in one reading, by seeds that disturb nobody."""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tiny_model import tiny_model

from conftest import PLACES, tiny
from usertwin.memory.models.chat import ChatModel, Sample, sample
from usertwin.personas import ModelError, UsageError
from usertwin.simulator import load_model
from usertwin.simulator.backends.load import prompt_style_of
from usertwin.simulator.backends.transformers_chat import TransformersChat

pytestmark = pytest.mark.usefixtures("in_one_thread")

PROMPT = "Them: hello\nMe:"


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets this test name models that are not scripted."""
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder without a chat template."""
    return tiny_model(tmp_path_factory.mktemp("models") / "plain")


@pytest.fixture(scope="module")
def templated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder with one."""
    return tiny_model(tmp_path_factory.mktemp("models") / "templated", chat_template=True)


def chat(**options: Any) -> TransformersChat:
    return TransformersChat(called="tiny", load=tiny, **options)


def asked(prompt: str = PROMPT, **options: Any) -> list[Sample]:
    """What the model of bytes says, by the one place where models are asked."""
    model = ChatModel("tiny", chat(), "transcript")
    return asyncio.run(sample(model, [("user", prompt)], **({"max_tokens": 12} | options)))


def likeliest(tokens: int, prompt: str = PROMPT) -> list[int]:
    """The likeliest continuation, by transformers' own means and nothing else."""
    import torch

    model, tokenizer = tiny()
    ids = torch.tensor([tokenizer(prompt).input_ids])
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return written[0, ids.shape[1] :].tolist()


def plainly(prompt: str, tokens: int) -> str:
    """The same as text."""
    _, tokenizer = tiny()
    return tokenizer.decode(likeliest(tokens, prompt), skip_special_tokens=True)


# What it says --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [PROMPT, "a", "one two three four five, " * 4])
@pytest.mark.parametrize("n", [1, 3])
def test_at_temperature_zero_it_says_what_plain_generation_says_for_each_of_n(prompt: str, n: int) -> None:
    assert {one.text for one in asked(prompt, n=n, temperature=0.0)} == {plainly(prompt, 12)}


def test_an_empty_prompt_is_continued_too() -> None:
    assert asked("", temperature=0.0)[0].usage.input_tokens == 1


def test_the_same_seed_says_the_same_and_another_something_else() -> None:
    first, again, other = (asked(seed=seed)[0].text for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_what_an_answer_says_does_not_depend_on_how_many_are_asked_for_with_it() -> None:
    together = [one.text for one in asked(n=3, seed=4)]
    assert together == [asked(seed=seed)[0].text for seed in (4, 5, 6)]
    assert len(set(together)) == 3


def test_torchs_global_generator_is_neither_read_nor_moved() -> None:
    import torch

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = asked(seed=3)[0].text
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert asked(seed=3)[0].text == first


def test_first_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    """Over 600 draws no letter is further off than five standard errors; a wrong noise or temperature is off by far more."""
    import torch

    model, tokenizer = tiny()
    with torch.inference_mode():
        logits = model(torch.tensor([tokenizer(PROMPT).input_ids])).logits[0, -1].double()
    likely = (logits / 1.5).softmax(-1)
    draws = chat()._continued(tokenizer(PROMPT).input_ids, 1, 1.5, range(600), [])  # pyright: ignore[reportPrivateUsage]
    counts = Counter(row[0] for row in draws)
    for token in likely.argsort(descending=True)[:8].tolist():
        p = float(likely[token])
        assert abs(counts[token] / 600 - p) <= 5 * (p * (1 - p) / 600) ** 0.5
    assert len(counts) > 8


# Where it ends, and what it cost -------------------------------------------------------------------------------------------


def test_a_stop_cuts_the_text_and_ends_the_writing() -> None:
    whole = plainly(PROMPT, 12)
    [found] = asked(temperature=0.0, stop=["never there", "ou"])
    assert found.text == whole[: whole.index("ou")]
    _, tokenizer = tiny()
    least = next(n for n in range(13) if "ou" in tokenizer.decode(likeliest(12)[:n]))
    assert found.usage.output_tokens == least < 12


def test_rows_that_end_early_cost_only_what_they_wrote() -> None:
    texts = asked(n=4, seed=0, temperature=1.0, max_tokens=40)
    stop = texts[0].text[1]
    found = asked(n=4, seed=0, temperature=1.0, max_tokens=40, stop=[stop])
    assert [one.text for one in found] == [one.text.partition(stop)[0] for one in texts]
    assert sum(one.usage.output_tokens for one in found) < sum(one.usage.output_tokens for one in texts)
    assert found[0].usage.input_tokens == len(PROMPT)


def test_the_end_of_text_ends_an_answer_whether_the_model_or_the_tokenizer_calls_it_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny()
    written = likeliest(12)
    monkeypatch.setattr(model.generation_config, "eos_token_id", [written[3]])
    assert asked(temperature=0.0)[0].usage.output_tokens == written.index(written[3]) + 1
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    other = copy.deepcopy(tokenizer)
    other.eos_token = tokenizer.convert_ids_to_tokens(written[2])
    told = ChatModel("tiny", TransformersChat(called="tiny", load=lambda: (model, other)), "transcript")
    [found] = asyncio.run(sample(told, [("user", PROMPT)], max_tokens=12, temperature=0.0))
    assert found.usage.output_tokens == written.index(written[2]) + 1


def test_a_prompt_that_does_not_fit_is_a_sentence() -> None:
    with pytest.raises(ModelError, match=rf'the model "tiny" holds {PLACES} tokens, and the prompt takes 155 beside the 12'):
        asked("x" * 155)


# By its name ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("real")
def test_a_folder_is_prompted_as_its_tokenizer_allows(folder: Path, templated: Path) -> None:
    assert prompt_style_of(f"transformers:{folder}") == ("transcript", True)
    assert prompt_style_of(f"transformers:{templated}") == ("instruction", True)
    assert prompt_style_of(f"transformers:{templated}", "transcript") == ("transcript", True)
    assert load_model(f"transformers:{templated}").style == "instruction"


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("call", [load_model, lambda name, style: prompt_style_of(name, style)])
def test_to_tell_a_model_without_a_template_what_to_do_is_refused_before_it_is_loaded(folder: Path, call: Any) -> None:
    with pytest.raises(UsageError, match=r"has no chat template.*use --style transcript"):
        call(f"transformers:{folder}", style="instruction")


@pytest.mark.usefixtures("real")
def test_a_folder_without_a_model_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no transformers model; name a folder"):
        load_model(f"transformers:{tmp_path}")


def test_the_switch_forbids_it_like_any_other(folder: Path) -> None:
    with pytest.raises(ModelError, match="USERTWIN_ONLY_SCRIPTED"):
        load_model(f"transformers:{folder}")


@pytest.mark.usefixtures("real")
def test_messages_are_written_by_the_template_of_the_tokenizer(templated: Path) -> None:
    model: Any = load_model(f"transformers:{templated}").chat
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

    tokens = model._tokens([SystemMessage("be kind"), HumanMessage("hello"), AIMessage("hi"), HumanMessage("bye")])
    _, tokenizer = model.loaded
    said = tokenizer.decode(tokens)
    assert said.startswith("<|system|>\nbe kind")
    assert [said.find(f"<|{role}|>") >= 0 for role in ("user", "assistant")] == [True, True]
    assert said.rstrip().endswith("<|assistant|>")


@pytest.mark.usefixtures("real")
def test_all_samples_of_a_named_model_come_of_one_call_and_the_event_loop_goes_on_meanwhile(folder: Path) -> None:
    model = load_model(f"transformers:{folder}")

    async def both() -> tuple[list[Sample], int]:
        asking = asyncio.create_task(sample(model, [("user", PROMPT)], n=4, max_tokens=30))
        turns = 0
        while not asking.done():
            turns += 1
            await asyncio.sleep(0)
        return await asking, turns

    found, turns = asyncio.run(both())
    assert turns > 20  # the loop went round while the model wrote
    assert [one.usage.input_tokens > 0 for one in found] == [True, False, False, False]  # the prompt was read once
