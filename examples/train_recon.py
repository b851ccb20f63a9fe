"""Recon-GRPO on one page: a model learns to write reasoning from which a person's real next turn can be predicted.

For a pair of a person (context c and the action a* that the person took) the policy samples a group of traces from both. A
frozen copy of it, which sees the context and a trace but never the action, scores each trace: the rise of the log-probability
of a* over a filler of the same length, without words copied from a* ("guarded gain", nats per token of a*). A trace that a
guard rejects earns 0. Traces above the mean of their group become more likely.

Left out, compared with `usertwin train --method grpo`:
  - several pairs and optimiser steps per batch: here the ratio is always 1, and the clip only shows its place; no KL term
  - held-out people: here ten pairs of one person repeat, so the printed numbers show training, not skill
  - an independent scorer: here it is the policy's own base
  - reward terms for length, format and copied words; sampling at temperature 0.8 instead of 1
  - audits that stop a leaking training, checkpoints, resuming, a model card

Notation: suffixes name the axes. G traces of a group, T tokens of a trace, P tokens of the prompt, V tokens of the vocabulary.

Run it: pip install 'usertwin[train]' && python examples/train_recon.py   (two steps; downloads the tiny model once)
To see it learn: python examples/train_recon.py --steps 60 --out adapter  (about ten seconds a step on two cores, 5 GB)
Pairs differ more than steps do: compare a round of all pairs with a later round, in words as well as in gain.
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
from usertwin.memory.models.transformers_scorer import cache_argument, get_cache
from usertwin.memory.recon.fidelity import gains
from usertwin.memory.recon.guards import LEAK_REASONS, rejection_reason
from usertwin.memory.recon.propose import TRACE_TOKENS, parse_trace, prompt_template, proposal_prompt
from usertwin.memory.text.words import word_tokens
from usertwin.personas import Pair, load_log, split_pairs
from usertwin.simulator import load_scorer

SPEAKER = "60576dcf-5b39-4420-a850-33ff7d108047"
LEARNING_RATE = 5e-4
CLIP_RATIO = 0.2  # how far one step may move the probability of a token
CLIP_GAIN = 0.5  # nats per token; a larger gain is mostly noise of a short action
EXAMPLES = prompt_template("propose_transcript").text


def encode_prompt(policy: Any, prompt_1P: Tensor, group: int) -> tuple[Tensor, Any]:
    """Encode a prompt once; return the logits of the next token and the key-value cache, repeated for each trace."""
    output = policy(prompt_1P, use_cache=True, logits_to_keep=1)
    past = get_cache(output)
    past.batch_repeat_interleave(group)
    return output.logits[:, -1].float().expand(group, -1), past


@torch.no_grad()
def sample_traces(policy: Any, prompt_1P: Tensor, group: int, ends_E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sample a group of traces; return tokens, their log-probabilities, and the mask of tokens up to the end of each trace."""
    logits_GV, past = encode_prompt(policy, prompt_1P, group)
    unfinished_G = torch.ones(group, dtype=torch.bool)
    tokens: list[Tensor] = []
    logprobs: list[Tensor] = []
    mask: list[Tensor] = []
    while len(tokens) < TRACE_TOKENS["transcript"] and bool(unfinished_G.any()):
        logprobs_GV = logits_GV.log_softmax(-1)
        token_G1 = torch.multinomial(logprobs_GV.exp(), 1)
        tokens.append(token_G1)
        logprobs.append(logprobs_GV.gather(1, token_G1))
        mask.append(unfinished_G[:, None])  # the end token belongs to the trace; later tokens do not
        unfinished_G = unfinished_G & ~torch.isin(token_G1[:, 0], ends_E)
        logits_GV = policy(token_G1, **cache_argument(past)).logits[:, -1].float()
    return torch.cat(tokens, 1), torch.cat(logprobs, 1), torch.cat(mask, 1)


def logprobs_of(policy: Any, prompt_1P: Tensor, tokens_GT: Tensor) -> Tensor:
    """Return the log-probability of each token of the traces, with gradients through prompt and traces."""
    first_GV, past = encode_prompt(policy, prompt_1P, len(tokens_GT))
    later_GTV = policy(tokens_GT, **cache_argument(past)).logits[:, :-1].float()
    logprobs_GTV = torch.cat([first_GV[:, None], later_GTV], 1).log_softmax(-1)
    return logprobs_GTV.gather(2, tokens_GT[..., None])[..., 0]


def score_traces(scorer: Scorer, pair: Pair, traces: Sequence[str]) -> tuple[Tensor, Tensor, list[str | None]]:
    """Return for each trace its reward in [0, 1], its guarded gain (0 if rejected), and the guard that rejects it."""
    reasons = [rejection_reason(trace, pair, EXAMPLES) for trace in traces]
    accepted = [trace for trace, reason in zip(traces, reasons, strict=True) if reason is None]
    guarded_gains = iter([parts["guarded_gain"] for parts in gains(scorer, pair, accepted)])
    gain_G = torch.tensor([next(guarded_gains) if reason is None else 0.0 for reason in reasons])
    accepted_G = torch.tensor([reason is None for reason in reasons])
    rewards_G = (0.5 + 0.5 * gain_G.clamp(-CLIP_GAIN, CLIP_GAIN) / CLIP_GAIN) * accepted_G
    return rewards_G, gain_G, reasons


def advantages_of(rewards_G: Tensor) -> Tensor:
    """Return how far each reward is above the mean of its group, in standard deviations of the group."""
    return (rewards_G - rewards_G.mean()) / (rewards_G.std(correction=0) + 1e-4)


def loss_of(logprobs_GT: Tensor, sampled_GT: Tensor, advantages_G: Tensor, mask_GT: Tensor) -> Tensor:
    """Return the clipped policy gradient loss: every token carries the advantage of its trace, all tokens weigh the same."""
    ratio_GT = (logprobs_GT - sampled_GT).exp()
    clipped_GT = ratio_GT.clamp(1 - CLIP_RATIO, 1 + CLIP_RATIO)
    objective_GT = torch.minimum(ratio_GT * advantages_G[:, None], clipped_GT * advantages_G[:, None])
    return -objective_GT[mask_GT].sum() / mask_GT.sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", default="chitchat", help="file of conversations, or chitchat")
    parser.add_argument("--speaker", default=SPEAKER, help="person whose reasoning to write")
    parser.add_argument("--base", default="local", help='base model: "local" or "transformers:DIR"')
    parser.add_argument("--steps", type=int, default=2, help="optimiser steps (2)")
    parser.add_argument("--group", type=int, default=8, help="traces per step (8)")
    parser.add_argument("--pairs", type=int, default=10, help="pairs, used in rotation (10)")
    parser.add_argument("--seed", type=int, default=0, help="seed of pairs, adapter and sampling (0)")
    parser.add_argument("--out", help="folder to save the trained adapter in")
    options = parser.parse_args()
    torch.manual_seed(options.seed)

    # Data: pairs of the corpus part. The test part, on which twins are measured, stays unused.
    corpus = split_pairs(load_log(options.log), options.speaker).corpus
    past = [pair for pair in corpus if not pair.abandoned]
    pairs = random.Random(options.seed).sample(past, min(options.pairs, len(past)))

    # Models: the scorer stays frozen; the policy is a copy of it with a LoRA adapter, and only the adapter is trained.
    scorer: Any = load_scorer(options.base)
    frozen, tokenizer = scorer.scorer.loaded
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    policy: Any = get_peft_model(copy.deepcopy(frozen), lora)
    optimiser = torch.optim.AdamW([weight for weight in policy.parameters() if weight.requires_grad], lr=LEARNING_RATE)
    ends = {token for token in range(len(tokenizer)) if "\n" in tokenizer.decode([token])} | {tokenizer.eos_token_id}
    ends_E = torch.tensor(sorted(ends))  # a trace is one line

    for step in range(options.steps):
        pair = pairs[step % len(pairs)]
        prompt_1P = tokenizer(proposal_prompt("transcript", pair, "Me", "backward"), return_tensors="pt").input_ids

        # propose
        tokens_GT, sampled_GT, mask_GT = sample_traces(policy, prompt_1P, options.group, ends_E)
        traces_GT = [tokens_T[mask_T] for tokens_T, mask_T in zip(tokens_GT, mask_GT, strict=True)]
        texts = [tokenizer.decode(trace_T, skip_special_tokens=True) for trace_T in traces_GT]
        traces = [parse_trace("transcript", text) for text in texts]

        # reconstruct and score
        rewards_G, gain_G, reasons = score_traces(scorer, pair, traces)

        # learn
        logprobs_GT = logprobs_of(policy, prompt_1P, tokens_GT)
        loss = loss_of(logprobs_GT, sampled_GT, advantages_of(rewards_G), mask_GT)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

        leaks = sum(reason in LEAK_REASONS for reason in reasons) / len(traces)
        words = sum(len(word_tokens(trace)) for trace in traces) / len(traces)
        print(f"step {step}  reward {rewards_G.mean():.3f}  guarded gain {gain_G.mean():+.4f}  "
              f"leak rate {leaks:.2f}  words {words:.1f}", flush=True)  # fmt: skip

    if options.out:
        policy.save_pretrained(options.out)


if __name__ == "__main__":
    main()
