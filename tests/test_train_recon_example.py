"""examples/train_recon.py: two steps run, and its gradients are those of GRPO."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from small_training import short_traces
from tiny_model import one_thread
from torch import Tensor

from usertwin.memory.models.scoring import FakeScorer
from usertwin.personas import Pair, Turn

pytest.importorskip("peft")

FILE = Path(__file__).resolve().parents[1] / "examples" / "train_recon.py"
PAIR = Pair(
    speaker="Ann",
    context=(Turn("desk", "agent", "Hello, what can I do?"),),
    action="two plum cakes for my sister please",
    goal="",
    conversation_id="talk",
    position=1,
    when=0.0,
)


@pytest.fixture(scope="module")
def loop() -> ModuleType:
    """The example, as a module."""
    spec = importlib.util.spec_from_file_location("train_recon", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def policy(base: Path) -> Any:
    """A tiny random model with a random LoRA adapter."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    return adapted.eval()


PROMPT_1P = torch.tensor([[5, 9, 40, 77, 123, 8]])
ENDS_E = torch.arange(0, 300, 20)  # many, so that traces end at different positions


def sampled(loop: ModuleType, policy: Any, group: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(11)
    return loop.sample_traces(policy, PROMPT_1P, group, ENDS_E)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def test_two_steps_train_the_adapter_and_print_finite_numbers(
    loop: ModuleType,
    base: Path,
    log_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from safetensors.torch import load_file

    out = tmp_path / "adapter"
    options = ["--log", str(log_file), "--speaker", "Ann", "--base", f"transformers:{base}", "--group", "4", "--out", str(out)]
    monkeypatch.delenv("USERTWIN_ONLY_SCRIPTED")
    monkeypatch.setattr(sys, "argv", [str(FILE), *options])
    with short_traces():
        loop.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert len(lines) == 2
    for line in lines:
        numbers = re.fullmatch(r"step \d  reward (\S+)  guarded gain (\S+)  leak rate (\S+)  words (\S+)", line)
        assert numbers is not None, line
        assert all(math.isfinite(float(number)) for number in numbers.groups())
    weights = load_file(out / "adapter_model.safetensors")
    trained = [weight for name, weight in weights.items() if "lora_B" in name]  # initialised with zeros
    assert trained
    assert all(bool(weight.isfinite().all()) and float(weight.abs().max()) > 0 for weight in trained)


def test_a_leaking_trace_has_the_lowest_advantage_of_its_group(loop: ModuleType) -> None:
    traces = [
        "I was hungry, and I wanted to treat somebody dear.",
        "I wanted two plum cakes for my sister, please.",
        "I felt shy and hoped that it would be quick.",
    ]
    rewards_G, gain_G, reasons = loop.score_traces(FakeScorer(), PAIR, traces)
    assert [reason is None for reason in reasons] == [True, False, True]
    advantages_G = loop.advantages_of(rewards_G)
    assert rewards_G[1] == gain_G[1] == 0
    assert int(advantages_G.argmin()) == 1
    assert advantages_G[1] < advantages_G[[0, 2]].min()


def test_copied_words_earn_nothing(loop: ModuleType) -> None:
    # FakeScorer finds a word of the prompt likely; only this trace puts "cakes" there.
    _, gain_G, reasons = loop.score_traces(FakeScorer(), PAIR, ["I thought of cakes and I was hungry then."])
    assert reasons == [None]
    assert float(gain_G[0]) == pytest.approx(0, abs=1e-9)


def test_a_group_of_rejected_traces_has_no_reward_and_no_advantage(loop: ModuleType) -> None:
    rewards_G, gain_G, reasons = loop.score_traces(FakeScorer(), PAIR, ["", ""])
    assert reasons == ["empty", "empty"]
    assert rewards_G.tolist() == gain_G.tolist() == loop.advantages_of(rewards_G).tolist() == [0, 0]


def test_log_probabilities_match_a_plain_forward_pass(loop: ModuleType, policy: Any) -> None:
    tokens_GT, sampled_GT, mask_GT = sampled(loop, policy)
    cached_GT = loop.logprobs_of(policy, PROMPT_1P, tokens_GT)
    for tokens_T, cached_T in zip(tokens_GT, cached_GT, strict=True):
        whole = torch.cat([PROMPT_1P[0], tokens_T])[None]
        plain_TV = policy(whole, use_cache=False).logits[0, PROMPT_1P.shape[1] - 1 : -1].log_softmax(-1)
        assert torch.allclose(cached_T, plain_TV.gather(1, tokens_T[:, None])[:, 0], atol=1e-4)
    assert torch.allclose(sampled_GT[mask_GT], cached_GT[mask_GT], atol=1e-4)


def test_the_gradient_matches_plain_forward_passes(loop: ModuleType, policy: Any) -> None:
    tokens_GT, _, _ = sampled(loop, policy, 3)
    weights = [weight for weight in policy.parameters() if weight.requires_grad]
    shared = torch.autograd.grad(loop.logprobs_of(policy, PROMPT_1P, tokens_GT).sum(), weights)
    whole = torch.cat([PROMPT_1P.expand(3, -1), tokens_GT], 1)
    plain_GTV = policy(whole, use_cache=False).logits[:, PROMPT_1P.shape[1] - 1 : -1].log_softmax(-1)
    plain = torch.autograd.grad(plain_GTV.gather(2, tokens_GT[..., None]).sum(), weights)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(shared, plain, strict=True))


def test_a_trace_is_masked_after_the_token_that_ends_it(loop: ModuleType, policy: Any) -> None:
    tokens_GT, _, mask_GT = sampled(loop, policy)
    lengths = mask_GT.sum(1).tolist()
    assert len(set(lengths)) > 1
    for tokens_T, mask_T, length in zip(tokens_GT, mask_GT, lengths, strict=True):
        assert mask_T.tolist() == [place < length for place in range(len(mask_T))]
        ends = torch.isin(tokens_T[:length], ENDS_E).tolist()
        assert not any(ends[:-1])
        assert ends[-1] or length == len(mask_T)


def test_masked_positions_carry_no_gradient(loop: ModuleType) -> None:
    logprobs_GT = torch.full((2, 4), -2.0, requires_grad=True)
    mask_GT = torch.tensor([[True, True, False, False], [True, True, True, False]])
    loop.loss_of(logprobs_GT, torch.full((2, 4), -2.0), torch.tensor([1.0, -1.0]), mask_GT).backward()
    assert logprobs_GT.grad is not None
    assert bool((logprobs_GT.grad[~mask_GT] == 0).all())
    assert bool((logprobs_GT.grad[mask_GT] != 0).all())


def test_a_nan_at_a_masked_position_does_not_reach_the_loss(loop: ModuleType) -> None:
    logprobs_GT = torch.tensor([[-1.0, math.nan]], requires_grad=True)
    loss = loop.loss_of(logprobs_GT, torch.tensor([[-1.0, -1.0]]), torch.tensor([1.0]), torch.tensor([[True, False]]))
    assert float(loss.detach()) == pytest.approx(-1.0)


def test_a_gradient_step_raises_good_traces_and_lowers_bad_ones(loop: ModuleType) -> None:
    logprobs_GT = torch.full((2, 3), -2.0, requires_grad=True)
    loop.loss_of(
        logprobs_GT, torch.full((2, 3), -2.0), torch.tensor([1.0, -1.0]), torch.ones(2, 3, dtype=torch.bool)
    ).backward()
    assert logprobs_GT.grad is not None
    assert bool((logprobs_GT.grad[0] < 0).all())
    assert bool((logprobs_GT.grad[1] > 0).all())


@pytest.mark.parametrize(("moved", "advantage", "pulls"), [
    (0.5, 1.0, False), (-0.5, 1.0, True), (0.5, -1.0, True), (-0.5, -1.0, False),
])  # fmt: skip
def test_a_ratio_beyond_the_clip_only_pulls_back(loop: ModuleType, moved: float, advantage: float, pulls: bool) -> None:
    logprobs_GT = torch.tensor([[-2.0 + moved]], requires_grad=True)
    loop.loss_of(logprobs_GT, torch.tensor([[-2.0]]), torch.tensor([advantage]), torch.tensor([[True]])).backward()
    assert logprobs_GT.grad is not None
    assert (float(logprobs_GT.grad[0, 0]) != 0) is pulls


def test_advantages_have_mean_zero_and_unit_spread_at_any_scale(loop: ModuleType) -> None:
    rewards_G = torch.tensor([0.2, 0.5, 0.9, 0.4])
    advantages_G = loop.advantages_of(rewards_G)
    assert float(advantages_G.mean()) == pytest.approx(0, abs=1e-6)
    assert float(advantages_G.std(correction=0)) == pytest.approx(1, abs=1e-3)
    assert torch.allclose(loop.advantages_of(10 * rewards_G + 3), advantages_G, atol=1e-2)


def test_steps_on_one_group_raise_its_best_trace(loop: ModuleType, policy: Any) -> None:
    tokens_GT, sampled_GT, mask_GT = sampled(loop, policy, 4)
    advantages_G = loop.advantages_of(torch.tensor([0.9, 0.1, 0.1, 0.1]))
    optimiser = torch.optim.AdamW([weight for weight in policy.parameters() if weight.requires_grad], lr=1e-3)
    for _ in range(3):
        optimiser.zero_grad()
        loss = loop.loss_of(loop.logprobs_of(policy, PROMPT_1P, tokens_GT), sampled_GT, advantages_G, mask_GT)
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        gained_GT = (loop.logprobs_of(policy, PROMPT_1P, tokens_GT) - sampled_GT) * mask_GT
    assert float(gained_GT[0].sum()) > 0
    assert float(gained_GT[1:].sum()) < float(gained_GT[0].sum())


def test_an_attainable_reward_rises(loop: ModuleType, policy: Any) -> None:
    optimiser = torch.optim.AdamW([weight for weight in policy.parameters() if weight.requires_grad], lr=5e-2)
    torch.manual_seed(5)
    rewards: list[float] = []
    with short_traces(8):
        for _ in range(16):
            tokens_GT, sampled_GT, mask_GT = loop.sample_traces(policy, PROMPT_1P, 32, ENDS_E)
            rewards_G = ((tokens_GT < 100) & mask_GT).sum(1) / mask_GT.sum(1)  # the share of the first third of the vocabulary
            logprobs_GT = loop.logprobs_of(policy, PROMPT_1P, tokens_GT)
            optimiser.zero_grad()
            loop.loss_of(logprobs_GT, sampled_GT, loop.advantages_of(rewards_G), mask_GT).backward()
            optimiser.step()
            rewards.append(float(rewards_G.mean()))
    assert sum(rewards[-4:]) > 1.1 * sum(rewards[:4])
