"""memory/training/policy.py: a trace ends where a line does, looking changes nothing, and prompts are those of a proposer."""

from __future__ import annotations

import builtins
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any

import pytest
from tiny_model import tiny_model

from conftest import PAIR
from usertwin.memory.models.chat import PromptStyle
from usertwin.memory.recon.propose import TRACE_TOKENS, parse_trace, proposal_prompt
from usertwin.memory.training.policy import (
    check_chat_template,
    check_installed,
    empty_base,
    stop_tokens,
    load_base,
    lora_config,
    policy_prompt,
    completion_text,
    write_traces,
)
from usertwin.personas import ModelError, Turn, UsageError

pytestmark = pytest.mark.usefixtures("in_one_thread")

PAIRS = [
    replace(PAIR, context=(*PAIR.context, Turn("Bob", "agent", " ".join(["well"] * words))), position=words)
    for words in (1, 40, 3, 17, 8)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a chat template."""
    return tiny_model(tmp_path_factory.mktemp("base"), chat_template=True)


@pytest.fixture(scope="module")
def base(folder: Path) -> tuple[Any, Any]:
    """The base and its tokenizer."""
    return load_base(folder)


class Greedy:
    """A model that writes what is likeliest, so that nothing is drawn."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._model(*args, **options)

    def generate(self, **options: Any) -> Any:
        return self._model.generate(**{**options, "do_sample": False, "temperature": None, "top_k": None, "top_p": None})


# What is asked -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["backward", "forward"])
def test_a_policy_is_asked_as_a_proposer_is(how: Any) -> None:
    assert policy_prompt(PAIR, "transcript", how) == proposal_prompt("transcript", PAIR, "the person", how)
    told = [{"role": "user", "content": proposal_prompt("instruction", PAIR, "the person", how)}]
    assert policy_prompt(PAIR, "instruction", how) == told


def test_only_backward_prompts_have_the_action() -> None:
    styles: tuple[PromptStyle, ...] = ("transcript", "instruction")
    for style in styles:
        assert PAIR.action in str(policy_prompt(PAIR, style, "backward"))
        assert PAIR.action not in str(policy_prompt(PAIR, style, "forward"))


def test_the_text_of_a_completion_is_itself_or_that_of_its_message() -> None:
    assert completion_text(" was calm\n") == " was calm\n"
    assert completion_text([{"role": "assistant", "content": "I was calm."}]) == "I was calm."


# Where a trace ends --------------------------------------------------------------------------------------------------


def test_every_token_that_holds_a_lines_end_ends_a_trace_of_a_transcript_and_no_other(base: tuple[Any, Any]) -> None:
    _, tokenizer = base
    ends = stop_tokens(tokenizer, "transcript")
    assert ends[0] == tokenizer.eos_token_id
    texts = {token: tokenizer.decode([token]) for token in range(len(tokenizer))}
    assert set(ends[1:]) == {token for token, text in texts.items() if "\n" in text}
    assert len(ends) == len(set(ends)) > 1


def test_only_its_own_end_ends_an_instructed_trace(base: tuple[Any, Any]) -> None:
    assert stop_tokens(base[1], "instruction") == [base[1].eos_token_id]


# What is written -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["transcript", "instruction"])
def test_a_trace_is_written_for_each_pair_in_order_and_the_same_for_the_same_seed(base: tuple[Any, Any], style: PromptStyle) -> None:
    pairs = PAIRS if style == "transcript" else PAIRS[:1]
    written = write_traces(*base, pairs, style, "backward", seed=3)
    assert len(written) == len(pairs)
    assert all(0 < tokens <= TRACE_TOKENS[style] for _, _, tokens in written)
    assert all(ended or tokens == TRACE_TOKENS[style] for _, ended, tokens in written)
    assert write_traces(*base, pairs, style, "backward", seed=3) == written


def test_another_seed_writes_something_else(base: tuple[Any, Any]) -> None:
    one, other = (write_traces(*base, PAIRS, "transcript", "backward", seed=seed) for seed in (1, 2))
    assert one != other


def test_looking_leaves_the_generator_and_the_model_as_they_were(base: tuple[Any, Any]) -> None:
    import torch

    model, tokenizer = base
    for training in (True, False):
        model.train(training)
        before = torch.random.get_rng_state()
        write_traces(model, tokenizer, PAIRS[:2], "transcript", "backward")
        assert torch.equal(torch.random.get_rng_state(), before)
        assert model.training is training
        assert all(one.grad is None for one in model.parameters())


def test_what_was_drawn_before_does_not_change_what_is_written(base: tuple[Any, Any]) -> None:
    import torch

    torch.manual_seed(1)
    one = write_traces(*base, PAIRS[:2], "transcript", "backward", seed=5)
    torch.manual_seed(2)
    assert write_traces(*base, PAIRS[:2], "transcript", "backward", seed=5) == one


def test_prompts_of_different_lengths_together_are_continued_as_each_alone_is(base: tuple[Any, Any]) -> None:
    model, tokenizer = Greedy(base[0]), base[1]
    together = write_traces(model, tokenizer, PAIRS, "transcript", "backward")
    alone = [write_traces(model, tokenizer, [pair], "transcript", "backward")[0] for pair in PAIRS]
    assert together == alone
    assert len({tokens for _, _, tokens in together} | {trace for trace, _, _ in together}) > 2  # they do differ


def test_more_pairs_than_are_continued_at_once_keep_their_order(base: tuple[Any, Any]) -> None:
    model, tokenizer = Greedy(base[0]), base[1]
    few = write_traces(model, tokenizer, PAIRS, "transcript", "backward")
    assert write_traces(model, tokenizer, PAIRS * 4, "transcript", "backward") == few * 4


def test_nothing_to_look_at_is_nothing_written(base: tuple[Any, Any]) -> None:
    assert write_traces(*base, [], "transcript", "backward") == []


class Saying:
    """A model that writes these tokens, and pads them as transformers does."""

    training = False

    def __init__(self, model: Any, rows: list[list[int]], pad: int) -> None:
        self._model, self._rows, self._pad = model, rows, pad

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._model(*args, **options)

    def generate(self, *, input_ids: Any, **options: Any) -> Any:
        import torch

        longest = max(map(len, self._rows))
        padded = [row + [self._pad] * (longest - len(row)) for row in self._rows]
        return torch.cat([input_ids, torch.tensor(padded)], dim=1)


def test_a_trace_is_read_up_to_its_end_and_says_whether_it_came_to_it(base: tuple[Any, Any]) -> None:
    model, tokenizer = base
    said = [" was calm.\n", " was calm, and the", " was calm, and the\nMe: hello"]
    rows = [tokenizer(text).input_ids for text in said] + [[tokenizer.eos_token_id]]
    saying = Saying(model, rows, tokenizer.pad_token_id)
    pairs = [replace(PAIR, action="a" * (place + 1)) for place in range(4)]  # by length, they stay in order
    found = write_traces(saying, tokenizer, pairs, "transcript", "backward")
    assert [trace for trace, _, _ in found] == ["I was calm.", "I was calm", "I was calm", ""]
    assert [trace for trace, _, _ in found[:3]] == [parse_trace("transcript", text) for text in said]
    assert [found[place][1] for place in (0, 2, 3)] == [True, True, True]
    assert [tokens for _, _, tokens in found][0::3] == [len(rows[0]), 1]
    assert found[2][2] == len(tokenizer(" was calm, and the\n").input_ids)


# A base --------------------------------------------------------------------------------------------------------------


def test_a_base_is_loaded_in_its_precision_and_pads_on_the_left(folder: Path) -> None:
    import torch

    model, tokenizer = load_base(folder, "bfloat16")
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token is not None


def test_a_base_without_weights_has_the_same_layers(folder: Path, base: tuple[Any, Any]) -> None:
    empty = empty_base(folder)
    shapes = {name: one.shape for name, one in empty.named_parameters()}
    assert shapes == {name: one.shape for name, one in base[0].named_parameters()}
    assert all(one.is_meta for one in empty.parameters())


@pytest.mark.parametrize("load", [load_base, empty_base])
def test_a_folder_without_a_model_is_named(load: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="transformers cannot load this model"):
        load(tmp_path)


def test_a_base_without_a_chat_template_cannot_be_instructed(base: tuple[Any, Any], tmp_path: Path) -> None:
    bare = load_base(tiny_model(tmp_path))[1]
    check_chat_template(base[1], "local", "instruction")
    check_chat_template(bare, "local", "transcript")
    with pytest.raises(UsageError, match=r'the base "local" has no chat template, .* pass --style transcript'):
        check_chat_template(bare, "local", "instruction")


def test_an_adapter_has_no_dropout_and_twice_its_rank_for_alpha_unless_told() -> None:
    assert (lora_config(8).r, lora_config(8).lora_alpha, lora_config(8).lora_dropout) == (8, 16, 0.0)
    assert lora_config(8, 8).lora_alpha == 8


@pytest.mark.parametrize(
    ("missing", "asked", "told"),
    [("trl", {}, r"usertwin\[train\]"), ("datasets", {}, r"usertwin\[train\]"),
     ("vllm", {"vllm": True}, "--vllm needs .* pip install vllm"),
     ("tensorboard", {"tensorboard": True}, "--tensorboard needs .* pip install tensorboard")],
)  # fmt: skip
def test_what_is_not_installed_is_named_with_its_command(
    missing: str, asked: dict[str, bool], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == missing else builtins.object())
    with pytest.raises(UsageError, match=told):
        check_installed(**asked)
    if asked:
        check_installed()  # nobody needs it who does not ask for it
