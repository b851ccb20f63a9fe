"""memory/training/policy.py: prompts are those of a proposer, line breaks end traces, audits do not disturb training."""

from __future__ import annotations

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
    completion_text,
    empty_base,
    load_base,
    lora_config,
    policy_prompt,
    stop_tokens,
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
    """The folder of a base with a chat template."""
    return tiny_model(tmp_path_factory.mktemp("base"), chat_template=True)


@pytest.fixture(scope="module")
def base(folder: Path) -> tuple[Any, Any]:
    """The base and its tokenizer."""
    return load_base(folder)


class GreedyModel:
    """A model that decodes greedily."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._model(*args, **options)

    def generate(self, **options: Any) -> Any:
        return self._model.generate(**{**options, "do_sample": False, "temperature": None, "top_k": None, "top_p": None})


# Prompts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["backward", "forward"])
def test_the_prompt_is_that_of_a_proposer(mode: Any) -> None:
    assert policy_prompt(PAIR, "transcript", mode) == proposal_prompt("transcript", PAIR, "the person", mode)
    messages = [{"role": "user", "content": proposal_prompt("instruction", PAIR, "the person", mode)}]
    assert policy_prompt(PAIR, "instruction", mode) == messages


def test_only_backward_prompts_contain_the_action() -> None:
    styles: tuple[PromptStyle, ...] = ("transcript", "instruction")
    for style in styles:
        assert PAIR.action in str(policy_prompt(PAIR, style, "backward"))
        assert PAIR.action not in str(policy_prompt(PAIR, style, "forward"))


def test_the_text_of_a_completion_is_itself_or_the_content_of_its_message() -> None:
    assert completion_text(" was calm\n") == " was calm\n"
    assert completion_text([{"role": "assistant", "content": "I was calm."}]) == "I was calm."


# Ends of traces -------------------------------------------------------------------------------------------------------


def test_exactly_the_tokens_with_a_line_break_end_a_transcript_trace(base: tuple[Any, Any]) -> None:
    _, tokenizer = base
    ends = stop_tokens(tokenizer, "transcript")
    assert ends[0] == tokenizer.eos_token_id
    texts = {token: tokenizer.decode([token]) for token in range(len(tokenizer))}
    assert set(ends[1:]) == {token for token, text in texts.items() if "\n" in text}
    assert len(ends) == len(set(ends)) > 1


def test_only_the_end_of_sequence_ends_an_instruction_trace(base: tuple[Any, Any]) -> None:
    assert stop_tokens(base[1], "instruction") == [base[1].eos_token_id]


# Sampling -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["transcript", "instruction"])
def test_every_pair_gets_a_trace_that_depends_only_on_the_seed(base: tuple[Any, Any], style: PromptStyle) -> None:
    pairs = PAIRS if style == "transcript" else PAIRS[:1]
    written = write_traces(*base, pairs, style, "backward", seed=3)
    assert len(written) == len(pairs)
    assert all(0 < tokens <= TRACE_TOKENS[style] for _, _, tokens in written)
    assert all(ended or tokens == TRACE_TOKENS[style] for _, ended, tokens in written)
    assert write_traces(*base, pairs, style, "backward", seed=3) == written


def test_another_seed_gives_other_traces(base: tuple[Any, Any]) -> None:
    first, other = (write_traces(*base, PAIRS, "transcript", "backward", seed=seed) for seed in (1, 2))
    assert first != other


def test_sampling_restores_the_random_state_and_the_mode_of_the_model(base: tuple[Any, Any]) -> None:
    import torch

    model, tokenizer = base
    for training in (True, False):
        model.train(training)
        before = torch.random.get_rng_state()
        write_traces(model, tokenizer, PAIRS[:2], "transcript", "backward")
        assert torch.equal(torch.random.get_rng_state(), before)
        assert model.training is training
        assert all(weight.grad is None for weight in model.parameters())


def test_earlier_random_draws_do_not_change_the_traces(base: tuple[Any, Any]) -> None:
    import torch

    torch.manual_seed(1)
    first = write_traces(*base, PAIRS[:2], "transcript", "backward", seed=5)
    torch.manual_seed(2)
    assert write_traces(*base, PAIRS[:2], "transcript", "backward", seed=5) == first


def test_a_batch_of_different_lengths_gives_the_traces_of_single_prompts(base: tuple[Any, Any]) -> None:
    model, tokenizer = GreedyModel(base[0]), base[1]
    together = write_traces(model, tokenizer, PAIRS, "transcript", "backward")
    alone = [write_traces(model, tokenizer, [pair], "transcript", "backward")[0] for pair in PAIRS]
    assert together == alone
    assert len({tokens for _, _, tokens in together} | {trace for trace, _, _ in together}) > 2  # they do differ


def test_more_than_one_batch_keeps_its_order(base: tuple[Any, Any]) -> None:
    model, tokenizer = GreedyModel(base[0]), base[1]
    few = write_traces(model, tokenizer, PAIRS, "transcript", "backward")
    assert write_traces(model, tokenizer, [*PAIRS * 3, *PAIRS[:2]], "transcript", "backward") == [*few * 3, *few[:2]]


def test_no_pairs_give_no_traces(base: tuple[Any, Any]) -> None:
    assert write_traces(*base, [], "transcript", "backward") == []


class FixedModel:
    """A model that generates fixed tokens, padded as transformers does."""

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


def test_a_trace_ends_at_its_first_stop_token(base: tuple[Any, Any]) -> None:
    model, tokenizer = base
    texts = [" was calm.\n", " was calm, and the", " was calm, and the\nMe: hello"]
    rows = [tokenizer(text).input_ids for text in texts] + [[tokenizer.eos_token_id]]
    fixed = FixedModel(model, rows, tokenizer.pad_token_id)
    pairs = [replace(PAIR, action="a" * (place + 1)) for place in range(4)]  # sorted by length, so the order stays
    traces = write_traces(fixed, tokenizer, pairs, "transcript", "backward")
    assert [trace for trace, _, _ in traces] == ["I was calm.", "I was calm", "I was calm", ""]
    assert [trace for trace, _, _ in traces[:3]] == [parse_trace("transcript", text) for text in texts]
    assert [traces[place][1] for place in (0, 2, 3)] == [True, True, True]
    assert [tokens for _, _, tokens in traces][0::3] == [len(rows[0]), 1]
    assert traces[2][2] == len(tokenizer(" was calm, and the\n").input_ids)


# Loading and checks ---------------------------------------------------------------------------------------------------


def test_a_base_is_loaded_in_the_given_precision_and_pads_on_the_left(folder: Path) -> None:
    import torch

    model, tokenizer = load_base(folder, "bfloat16")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token is not None


def test_an_empty_base_has_the_same_layers(folder: Path, base: tuple[Any, Any]) -> None:
    empty = empty_base(folder)
    shapes = {name: weight.shape for name, weight in empty.named_parameters()}
    assert shapes == {name: weight.shape for name, weight in base[0].named_parameters()}
    assert all(weight.is_meta for weight in empty.parameters())


@pytest.mark.parametrize("load", [load_base, empty_base])
def test_a_folder_without_a_model_is_refused(load: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="transformers cannot load this model"):
        load(tmp_path)


def test_the_instruction_style_needs_a_chat_template(base: tuple[Any, Any], tmp_path: Path) -> None:
    bare = load_base(tiny_model(tmp_path))[1]
    check_chat_template(base[1], "local", "instruction")
    check_chat_template(bare, "local", "transcript")
    with pytest.raises(UsageError, match=r'--base: "local" has no chat template, .* pass --style transcript'):
        check_chat_template(bare, "local", "instruction")


def test_an_adapter_has_no_dropout_and_alpha_is_twice_the_rank_by_default() -> None:
    assert (lora_config(8).r, lora_config(8).lora_alpha, lora_config(8).lora_dropout) == (8, 16, 0.0)
    assert lora_config(8, 8).lora_alpha == 8


@pytest.mark.parametrize(
    ("missing", "features", "message"),
    [("trl", {}, r"usertwin\[train\]"), ("peft", {}, r"usertwin\[train\]"), ("datasets", {}, r"usertwin\[train\]"),
     ("vllm", {"vllm": True}, "--vllm: vllm is not installed; .* pip install vllm"),
     ("tensorboard", {"tensorboard": True}, "--report-to tensorboard: .* not installed; .* pip install tensorboard")],
)  # fmt: skip
def test_a_missing_package_is_named_with_its_install_command(
    missing: str, features: dict[str, bool], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(UsageError, match=message):
        check_installed(**features)
    if features:
        check_installed()  # an unused feature needs no package
