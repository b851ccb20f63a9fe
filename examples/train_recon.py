"""Recon-GRPO on one page: a model learns to write reasoning from which a person's real next turn can be predicted.

For one moment of a person (context c, and the action a* that they really took) the policy writes a group of traces, having
seen both. A frozen copy of it, which sees the context and a trace but never the action, says how much more likely the trace
makes a* than as many words that say nothing would, not counting words that the trace has from a* ("novel gain", nats per token
of a*). A trace that a guard rejects is worth nothing. Traces worth more than the mean of their group are made more likely.

What `usertwin train --method grpo` has and this leaves out:
  - one pair a step and one optimiser step on it: the ratio is always 1, the clip only shows where it belongs; no KL term
  - one person, some ten pairs again and again, nothing held out: the numbers printed are of training, not of skill
  - the scorer is the policy's own base; a better judge of traces is a model that had no part in them
  - traces are sampled at temperature 1, and no term rewards their length, their form or few of the action's words
  - no audit that stops the training when traces begin to give the action away, no checkpoints, no resuming, no model card

Notation: suffixes name the axes. G traces of a group, T tokens of a trace, P tokens of the prompt, V tokens of the vocabulary.

Run it: pip install 'usertwin[train]' && python examples/train_recon.py   (two steps; fetches the tiny model once)
To see it learn: python examples/train_recon.py --steps 60 --out adapter  (some ten seconds a step on two cores, 5 GB)
Pairs differ more than steps do: compare a round of all pairs with a later round, and look at the words as well as the gain.
"""

from __future__ import annotations

import argparse
import copy
import random
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from usertwin.memory import Scorer
from usertwin.memory.models.transformers_scorer import cache_of, with_cache
from usertwin.memory.recon.fidelity import gains
from usertwin.memory.recon.guards import LEAKS, rejection_reason
from usertwin.memory.recon.propose import TRACE_TOKENS, as_trace, prompt_for, prompt_template
from usertwin.memory.text.words import word_tokens
from usertwin.personas import Pair, load_log, split_pairs
from usertwin.simulator import load_scorer

SPEAKER = "60576dcf-5b39-4420-a850-33ff7d108047"
LEARNING_RATE = 5e-4
CLIP_RATIO = 0.2  # how far one step may move the likelihood of a token
CLIP_GAIN = 0.5  # nats per token; a greater gain is luck with a short action more often than a better trace
EXAMPLES = prompt_template("propose_transcript").text


def read_prompt(policy: Any, prompt_1P: Tensor, group: int) -> tuple[Tensor, Any]:
    """The logits of what comes first after a prompt, and its keys and values: read once, repeated for each trace."""
    read = policy(prompt_1P, use_cache=True, logits_to_keep=1)
    past = cache_of(read)
    past.batch_repeat_interleave(group)
    return read.logits[:, -1].float().expand(group, -1), past


@torch.no_grad()
def sample_traces(policy: Any, prompt_1P: Tensor, group: int, ends_E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A group of traces: their tokens, the log-probability of each when it was sampled, and which are the trace's own."""
    logits_GV, past = read_prompt(policy, prompt_1P, group)
    goes_on_G = torch.ones(group, dtype=torch.bool)
    tokens: list[Tensor] = []
    logprobs: list[Tensor] = []
    mask: list[Tensor] = []
    while len(tokens) < TRACE_TOKENS["transcript"] and bool(goes_on_G.any()):
        logprobs_GV = logits_GV.log_softmax(-1)
        token_G1 = torch.multinomial(logprobs_GV.exp(), 1)
        tokens.append(token_G1)
        logprobs.append(logprobs_GV.gather(1, token_G1))
        mask.append(goes_on_G[:, None])  # the token that ends a trace is its own; what is sampled after it is not
        goes_on_G = goes_on_G & ~torch.isin(token_G1[:, 0], ends_E)
        logits_GV = policy(token_G1, **with_cache(past)).logits[:, -1].float()
    return torch.cat(tokens, 1), torch.cat(logprobs, 1), torch.cat(mask, 1)


def logprobs_of(policy: Any, prompt_1P: Tensor, tokens_GT: Tensor) -> Tensor:
    """The log-probability of each token of the traces, with gradients, the prompt's share in them included."""
    first_GV, past = read_prompt(policy, prompt_1P, len(tokens_GT))
    later_GTV = policy(tokens_GT, **with_cache(past)).logits[:, :-1].float()
    logprobs_GTV = torch.cat([first_GV[:, None], later_GTV], 1).log_softmax(-1)
    return logprobs_GTV.gather(2, tokens_GT[..., None])[..., 0]


def judge(scorer: Scorer, pair: Pair, traces: Sequence[str]) -> tuple[Tensor, Tensor, list[str | None]]:
    """What each trace is worth: its reward from 0 to 1, its novel gain (0 if rejected), and the guard that rejects it."""
    rejected = [rejection_reason(trace, pair, EXAMPLES) for trace in traces]
    passing = [trace for trace, why in zip(traces, rejected, strict=True) if why is None]
    novel = iter([told["novel"] for told in gains(scorer, pair, passing)])
    novel_G = torch.tensor([next(novel) if why is None else 0.0 for why in rejected])
    passes_G = torch.tensor([why is None for why in rejected])
    rewards_G = (0.5 + 0.5 * novel_G.clamp(-CLIP_GAIN, CLIP_GAIN) / CLIP_GAIN) * passes_G
    return rewards_G, novel_G, rejected


def advantages_of(rewards_G: Tensor) -> Tensor:
    """How much better each trace is than its group, in standard deviations of the group."""
    return (rewards_G - rewards_G.mean()) / (rewards_G.std(correction=0) + 1e-4)


def loss_of(logprobs_GT: Tensor, sampled_GT: Tensor, advantages_G: Tensor, mask_GT: Tensor) -> Tensor:
    """The clipped policy gradient: each token of a trace shares in the trace's advantage, each counts alike."""
    ratio_GT = (logprobs_GT - sampled_GT).exp()
    clipped_GT = ratio_GT.clamp(1 - CLIP_RATIO, 1 + CLIP_RATIO)
    gained_GT = torch.minimum(ratio_GT * advantages_G[:, None], clipped_GT * advantages_G[:, None])
    return -gained_GT[mask_GT].sum() / mask_GT.sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", default="chitchat", help="a file of conversations, or a built-in log (chitchat)")
    parser.add_argument("--speaker", default=SPEAKER, help="whose reasoning is to be written")
    parser.add_argument("--base", default="local", help='what to begin from: "local" or "transformers:DIR"')
    parser.add_argument("--steps", type=int, default=2, help="optimiser steps (2)")
    parser.add_argument("--group", type=int, default=8, help="traces a step (8)")
    parser.add_argument("--pairs", type=int, default=10, help="pairs, which take turns (10)")
    parser.add_argument("--seed", type=int, default=0, help="of the pairs, the adapter and the sampling (0)")
    parser.add_argument("--out", help="a folder for the trained adapter; none is kept without it")
    options = parser.parse_args()
    torch.manual_seed(options.seed)

    # The data: moments of the past. Those that a twin is measured on are never looked at.
    corpus = split_pairs(load_log(options.log), options.speaker).corpus
    past = [pair for pair in corpus if not pair.abandoned]
    pairs = random.Random(options.seed).sample(past, min(options.pairs, len(past)))

    # The models: the scorer stays as it is, and the policy is a copy of it with a LoRA adapter, which alone is trained.
    scorer: Any = load_scorer(options.base)
    frozen, tokenizer = scorer.scorer.loaded
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    policy: Any = get_peft_model(copy.deepcopy(frozen), lora)
    optimiser = torch.optim.AdamW([weight for weight in policy.parameters() if weight.requires_grad], lr=LEARNING_RATE)
    ends = {token for token in range(len(tokenizer)) if "\n" in tokenizer.decode([token])} | {tokenizer.eos_token_id}
    ends_E = torch.tensor(sorted(ends))  # a trace is a line

    for step in range(options.steps):
        pair = pairs[step % len(pairs)]
        prompt_1P = tokenizer(prompt_for("transcript", pair, "Me", "backward"), return_tensors="pt").input_ids

        # propose
        tokens_GT, sampled_GT, mask_GT = sample_traces(policy, prompt_1P, options.group, ends_E)
        written_G = [tokens_T[mask_T] for tokens_T, mask_T in zip(tokens_GT, mask_GT, strict=True)]
        texts = [tokenizer.decode(written_T, skip_special_tokens=True) for written_T in written_G]
        traces = [as_trace("transcript", text) for text in texts]

        # reconstruct and score
        rewards_G, novel_G, rejected = judge(scorer, pair, traces)

        # learn
        logprobs_GT = logprobs_of(policy, prompt_1P, tokens_GT)
        loss = loss_of(logprobs_GT, sampled_GT, advantages_of(rewards_G), mask_GT)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

        # Some guards are against telling the action, the others against bad writing.
        leaks = sum(why in LEAKS for why in rejected) / len(traces)
        words = sum(len(word_tokens(trace)) for trace in traces) / len(traces)
        print(f"step {step}  reward {rewards_G.mean():.3f}  novel gain {novel_G.mean():+.4f}  "
              f"leak rate {leaks:.2f}  words {words:.1f}", flush=True)  # fmt: skip

    if options.out:
        policy.save_pretrained(options.out)


if __name__ == "__main__":
    main()
