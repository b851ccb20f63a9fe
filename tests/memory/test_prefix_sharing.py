"""memory/training/prefix_sharing.py: a shared prefix keeps outputs and gradients; other batches take the plain path."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_training import small_config, steps_of, trained, weights_of

from usertwin.memory.models.transformers_scorer import MIN_SHARED_TOKENS
from usertwin.memory.training import checkpoints
from usertwin.memory.training.policy import load_base, lora_config
from usertwin.memory.training.prefix_sharing import shared_prefix_forward

pytest.importorskip("trl")
pytestmark = pytest.mark.usefixtures("in_one_thread")

FIELDS = ("loss", "log_probs", "entropy", "mean_logits", "is_top1", "label_mask")


@pytest.fixture(scope="module")
def policy(base: Path) -> Any:
    """The tiny model as trl's trainers set it up, with a random adapter, and the shapes of the inputs of its first layer."""
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
    shapes = list[tuple[int, ...]]()
    inner.model.layers[0].register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape[:2])))
    return SimpleNamespace(model=model, inner=inner, shapes=shapes)


def batch_of(prompts: list[list[int]], completions: list[list[int]], left: bool) -> dict[str, Any]:
    """A batch padded as trl does it: on the right, and the prompts of GRPO on the left."""
    longest = max(map(len, prompts))
    rows = [
        ([1] * (longest - len(prompt)) if left else []) + prompt + completion
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    width = max(map(len, rows))
    ids, mask, labels = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
    ids += 1
    labels -= 100
    for place, (row, prompt, completion) in enumerate(zip(rows, prompts, completions, strict=True)):
        before = len(row) - len(completion)
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, before - len(prompt) : len(row)] = 1
        labels[place, before : len(row)] = torch.tensor(completion)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def run_step(policy: Any, batch: dict[str, Any], shared: bool) -> tuple[dict[str, Any], list[Any], int]:
    """The outputs of the policy, their gradient, and the number of tokens it encoded."""
    policy.shapes.clear()
    policy.model.zero_grad()
    with shared_prefix_forward(policy.inner) if shared else nullcontext():
        output = policy.model(**batch, fused_lm_head=True, use_cache=False)
        # The loss depends on row and token; a plain sum would hide swapped rows.
        weights = torch.linspace(0.5, 1.5, output.log_probs.numel()).view_as(output.log_probs)
        (output.log_probs * weights).sum().backward()
    gradient = [weight.grad.clone() for weight in policy.model.parameters() if weight.grad is not None]
    return {name: output[name] for name in FIELDS}, gradient, sum(rows * width for rows, width in policy.shapes)


def saved_tokens(policy: Any, batch: dict[str, Any]) -> int:
    """Check that prefix sharing changes nothing; return how many tokens it saves."""
    plain, plain_gradient, plain_tokens = run_step(policy, batch, shared=False)
    shared, shared_gradient, shared_tokens = run_step(policy, batch, shared=True)
    for name in FIELDS:
        assert plain[name].shape == shared[name].shape
        assert torch.allclose(plain[name].float(), shared[name].float(), atol=1e-4), name
    assert len(plain_gradient) == len(shared_gradient) == 2 * 2 * 7
    assert all(torch.allclose(a, b, atol=1e-3, rtol=1e-4) for a, b in zip(plain_gradient, shared_gradient, strict=True))
    return plain_tokens - shared_tokens


tokens = st.integers(2, 300)


@settings(max_examples=15, deadline=None)
@given(
    prefix=st.lists(tokens, min_size=MIN_SHARED_TOKENS - 4, max_size=60),
    rows=st.lists(st.tuples(st.lists(tokens, max_size=9), st.lists(tokens, min_size=1, max_size=6)), min_size=1, max_size=4),
    left=st.booleans(),
)
def test_prefix_sharing_changes_neither_outputs_nor_gradient(
    policy: Any, prefix: list[int], rows: list[tuple[list[int], list[int]]], left: bool
) -> None:
    batch = batch_of([prefix + rest for rest, _ in rows], [completion for _, completion in rows], left)
    assert saved_tokens(policy, batch) >= 0


@pytest.mark.parametrize("left", [False, True])
def test_a_shared_prefix_is_encoded_once(policy: Any, left: bool) -> None:
    prefix = list(range(2, 102))
    completions = [[7, 8, 9], [10], [11, 12], [13, 14, 15, 16]]
    assert saved_tokens(policy, batch_of([[*prefix, 5]] * 4, completions, left)) == 3 * 100


def test_no_label_is_predicted_from_the_shared_prefix(policy: Any) -> None:
    """Completions with the same beginning: every row encodes the last token of the prompt itself."""
    prompt = list(range(2, 52))
    assert saved_tokens(policy, batch_of([prompt] * 3, [[60, 61, 62], [60, 61, 63], [60, 61]], left=False)) == 2 * 49


@pytest.mark.parametrize(
    "prompts",
    [
        pytest.param([list(range(2, 52))], id="one row"),
        pytest.param([list(range(2, 52)), list(range(3, 53))], id="nothing in common"),
        pytest.param([list(range(2, 2 + MIN_SHARED_TOKENS))] * 2, id="too little in common"),
    ],
)
def test_a_batch_without_a_long_common_prefix_takes_the_plain_path(policy: Any, prompts: list[list[int]]) -> None:
    assert saved_tokens(policy, batch_of(prompts, [[60, 61]] * len(prompts), left=False)) == 0


def test_rows_with_different_padding_take_the_plain_path(policy: Any) -> None:
    prefix = list(range(2, 52))
    assert saved_tokens(policy, batch_of([prefix, [*prefix, 5]], [[60], [61]], left=True)) == 0


def test_gradient_checkpointing_takes_the_plain_path(policy: Any) -> None:
    batch = batch_of([list(range(2, 52))] * 2, [[60, 61], [62]], left=False)
    policy.inner.gradient_checkpointing_enable({"use_reentrant": False})
    policy.inner.enable_input_require_grads()
    try:
        policy.model.train()
        assert saved_tokens(policy, batch) == 0
    finally:
        policy.inner.gradient_checkpointing_disable()
        policy.inner.disable_input_require_grads()
        policy.model.eval()


def test_the_patch_is_removed_and_does_not_change_generation(policy: Any) -> None:
    plain = policy.inner.forward
    ids = torch.tensor([list(range(2, 52))] * 2)
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    expected = policy.model.generate(input_ids=ids, **options)
    with shared_prefix_forward(policy.inner):
        assert torch.equal(policy.model.generate(input_ids=ids, **options), expected)
    assert policy.inner.forward == plain


@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_every_trainer_encodes_fewer_tokens_and_trains_the_same_adapter(
    base: Path, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaModel

    tokens, plain_forward = list[int](), LlamaModel.forward

    def forward(self: Any, input_ids: Any = None, **options: Any) -> Any:
        tokens.append(input_ids.numel())
        return plain_forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    config = small_config(method=method, token_budget=40, epochs=0.5)
    trained(base, tmp_path / "shared", config)
    shared_tokens = sum(tokens)
    monkeypatch.setattr(checkpoints, "shared_prefix_forward", lambda model: nullcontext())
    tokens.clear()
    trained(base, tmp_path / "plain", config)
    assert shared_tokens < 0.9 * sum(tokens)
    shared, plain = weights_of(tmp_path / "shared"), weights_of(tmp_path / "plain")
    assert all(torch.allclose(shared[name], plain[name], atol=1e-4) for name in shared)
    assert steps_of(tmp_path / "shared").keys() == steps_of(tmp_path / "plain").keys()
