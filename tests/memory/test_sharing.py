"""memory/training/prefix_sharing.py: what is read once gives the same figures and gradient, and what cannot be shared is read as ever."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_training import a_plan, rows_of, trained, weights_of

from usertwin.memory.models.transformers_scorer import MIN_SHARED_TOKENS
from usertwin.memory.training import checkpoints
from usertwin.memory.training.policy import load_base, lora_config
from usertwin.memory.training.prefix_sharing import shared_prefix_forward

pytest.importorskip("trl")
pytestmark = pytest.mark.usefixtures("in_one_thread")

FIELDS = ("loss", "log_probs", "entropy", "mean_logits", "is_top1", "label_mask")


@pytest.fixture(scope="module")
def policy(base: Path) -> Any:
    """The tiny model as trl's trainers make it, with an adapter that already does something; and what its layers have read."""
    from peft import get_peft_model
    from trl.trainer.utils import add_fused_lm_head

    model, _ = load_base(base)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    model = get_peft_model(model, lora_config(2))
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn_like(weight) / 10
    inner: Any = model.get_base_model()
    read = list[tuple[int, ...]]()
    inner.model.layers[0].register_forward_pre_hook(lambda _, args: read.append(tuple(args[0].shape[:2])))
    return SimpleNamespace(model=model, inner=inner, read=read)


def batch_of(prompts: list[list[int]], completions: list[list[int]], left: bool) -> dict[str, Any]:
    """Rows as trl pads them: on the right, but for the prompts of GRPO, which it pads on the left."""
    longest = max(map(len, prompts))
    rows = [
        ([1] * (longest - len(prompt)) if left else []) + prompt + completion
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    width = max(map(len, rows))
    ids, read, labels = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
    ids += 1
    labels -= 100
    for place, (row, prompt, completion) in enumerate(zip(rows, prompts, completions, strict=True)):
        before = len(row) - len(completion)
        ids[place, : len(row)] = torch.tensor(row)
        read[place, before - len(prompt) : len(row)] = 1
        labels[place, before : len(row)] = torch.tensor(completion)
    return {"input_ids": ids, "attention_mask": read, "labels": labels}


def asked(policy: Any, batch: dict[str, Any], once: bool) -> tuple[dict[str, Any], list[Any], int]:
    """What the policy gives, the gradient of it, and how many tokens it read."""
    policy.read.clear()
    policy.model.zero_grad()
    with shared_prefix_forward(policy.inner) if once else nullcontext():
        given_back = policy.model(**batch, fused_lm_head=True, use_cache=False)
        # A loss that depends on which row, and which token: the sum alone would hide rows that are mixed up.
        weights = torch.linspace(0.5, 1.5, given_back.log_probs.numel()).view_as(given_back.log_probs)
        (given_back.log_probs * weights).sum().backward()
    gradient = [weight.grad.clone() for weight in policy.model.parameters() if weight.grad is not None]
    return {name: given_back[name] for name in FIELDS}, gradient, sum(rows * width for rows, width in policy.read)


def assert_same(policy: Any, batch: dict[str, Any]) -> int:
    """That reading once changes nothing; returns how many tokens it spared."""
    (one, gradient, all_read), (other, same_gradient, read) = (asked(policy, batch, once) for once in (False, True))
    for name in FIELDS:
        assert one[name].shape == other[name].shape
        assert torch.allclose(one[name].float(), other[name].float(), atol=1e-4), name
    assert len(gradient) == len(same_gradient) == 2 * 2 * 7
    assert all(torch.allclose(a, b, atol=1e-3, rtol=1e-4) for a, b in zip(gradient, same_gradient, strict=True))
    return all_read - read


tokens = st.integers(2, 300)


@settings(max_examples=30, deadline=None)
@given(
    begin=st.lists(tokens, min_size=MIN_SHARED_TOKENS - 4, max_size=60),
    own=st.lists(st.tuples(st.lists(tokens, max_size=9), st.lists(tokens, min_size=1, max_size=6)), min_size=1, max_size=4),
    left=st.booleans(),
)
def test_reading_once_changes_neither_what_is_given_nor_its_gradient(
    policy: Any, begin: list[int], own: list[tuple[list[int], list[int]]], left: bool
) -> None:
    batch = batch_of([begin + more for more, _ in own], [completion for _, completion in own], left)
    assert assert_same(policy, batch) >= 0


@pytest.mark.parametrize("left", [False, True])
def test_what_all_rows_begin_with_is_read_once(policy: Any, left: bool) -> None:
    begin = list(range(2, 102))
    completions = [[7, 8, 9], [10], [11, 12], [13, 14, 15, 16]]
    assert assert_same(policy, batch_of([[*begin, 5]] * 4, completions, left)) == 3 * 100


def test_no_label_is_foretold_from_what_is_shared(policy: Any) -> None:
    """Completions that begin alike: their labels are each row's own, from the last token of the prompt on."""
    prompt = list(range(2, 52))
    assert assert_same(policy, batch_of([prompt] * 3, [[60, 61, 62], [60, 61, 63], [60, 61]], left=False)) == 2 * 49


@pytest.mark.parametrize(
    "prompts",
    [
        pytest.param([list(range(2, 52))], id="one row"),
        pytest.param([list(range(2, 52)), list(range(3, 53))], id="nothing in common"),
        pytest.param([list(range(2, 2 + MIN_SHARED_TOKENS))] * 2, id="too little in common"),
    ],
)
def test_what_cannot_be_shared_is_read_as_ever(policy: Any, prompts: list[list[int]]) -> None:
    assert assert_same(policy, batch_of(prompts, [[60, 61]] * len(prompts), left=False)) == 0


def test_rows_padded_by_different_lengths_are_read_as_ever(policy: Any) -> None:
    begin = list(range(2, 52))
    assert assert_same(policy, batch_of([begin, [*begin, 5]], [[60], [61]], left=True)) == 0


def test_where_activations_are_computed_anew_each_row_is_read_from_its_start(policy: Any) -> None:
    batch = batch_of([list(range(2, 52))] * 2, [[60, 61], [62]], left=False)
    policy.inner.gradient_checkpointing_enable({"use_reentrant": False})
    policy.inner.enable_input_require_grads()
    try:
        policy.model.train()
        assert assert_same(policy, batch) == 0
    finally:
        policy.inner.gradient_checkpointing_disable()
        policy.inner.disable_input_require_grads()
        policy.model.eval()


def test_a_model_is_as_it_was_afterwards_and_generates_as_ever_meanwhile(policy: Any) -> None:
    own = policy.inner.forward
    ids = torch.tensor([list(range(2, 52))] * 2)
    how: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    expected = policy.model.generate(input_ids=ids, **how)
    with shared_prefix_forward(policy.inner):
        assert torch.equal(policy.model.generate(input_ids=ids, **how), expected)
    assert policy.inner.forward == own


@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_every_trainer_reads_less_and_makes_the_same_adapter(
    base: Path, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaModel

    read, own = list[int](), LlamaModel.forward

    def counted(self: Any, input_ids: Any = None, **told: Any) -> Any:
        read.append(input_ids.numel())
        return own(self, input_ids=input_ids, **told)

    monkeypatch.setattr(LlamaModel, "forward", counted)
    trained(base, tmp_path / "once", a_plan(method=method, at_once=2))
    once = sum(read)
    monkeypatch.setattr(checkpoints, "reading_once", lambda model: nullcontext())
    read.clear()
    trained(base, tmp_path / "plain", a_plan(method=method, at_once=2))
    assert once < 0.9 * sum(read)
    first, other = weights_of(tmp_path / "once"), weights_of(tmp_path / "plain")
    assert all(torch.allclose(first[name], other[name], atol=1e-4) for name in first)
    assert rows_of(tmp_path / "once").keys() == rows_of(tmp_path / "plain").keys()
