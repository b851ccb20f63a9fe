"""The trained model: a base with a LoRA adapter, its prompts, and the traces it writes for audits.

The policy is prompted like a proposer (propose.py), so its adapter works wherever its base proposes traces. In the transcript
style every token with a line break ends a trace, in training as at inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from usertwin.memory.concurrency import LOADING
from usertwin.memory.models.chat import PromptStyle
from usertwin.memory.models.scoring import Precision
from usertwin.memory.models.transformers_scorer import cache_argument, get_cache, repeat_cache, shared_prefix_length
from usertwin.memory.recon.propose import TEMPERATURE, TRACE_TOKENS, ProposalMode, parse_trace, proposal_prompt
from usertwin.personas import ModelError, Pair, UsageError

_INSTALL = "training needs trl, peft and datasets; install them with: pip install 'usertwin[train]'"
#: Prompts per call of `generate`; the key-value cache of more does not fit into a CPU's caches.
_BATCH = 16


def check_installed(*, vllm: bool = False, tensorboard: bool = False) -> None:
    """Raise UsageError with the install command if a package for training, or for an optional feature in use, is missing."""
    from importlib.util import find_spec

    if any(find_spec(package) is None for package in ("trl", "peft", "datasets")):
        raise UsageError(_INSTALL)
    for option, package, wanted in (("--vllm", "vllm", vllm), ("--report-to tensorboard", "tensorboard", tensorboard)):
        if wanted and find_spec(package) is None:
            raise UsageError(f"{option}: {package} is not installed; install it with: pip install {package}")


def load_base(folder: str | Path, precision: Precision = "float32") -> tuple[Any, Any]:
    """Return a base model, on a GPU if there is one, and its tokenizer, which pads on the left.

    Raises:
        ModelError: transformers cannot load it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.disable_progress_bar()
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left")
        with LOADING:
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, precision), local_files_only=True)
    except Exception as error:
        raise ModelError(f"{folder}: transformers cannot load this model ({error}); check the folder") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def empty_base(folder: str | Path) -> Any:
    """Return a base model without weights; the shapes of its layers cost neither time nor memory.

    Raises:
        ModelError: transformers cannot read its configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    except Exception as error:
        raise ModelError(f"{folder}: transformers cannot load this model ({error}); check the folder") from error


def check_chat_template(tokenizer: Any, name: str, style: PromptStyle) -> None:
    """Raise UsageError if the style is "instruction" and the tokenizer has no chat template."""
    if style == "instruction" and getattr(tokenizer, "chat_template", None) is None:
        raise UsageError(
            f'--base: "{name}" has no chat template, so it cannot follow instructions; pass --style transcript, or name an '
            "instruction-tuned model"
        )


def lora_config(rank: int = 16, alpha: int | None = None) -> Any:
    """Return peft's configuration of the adapter: every linear layer, no dropout, so that sampling and training agree."""
    from peft import LoraConfig

    return LoraConfig(
        r=rank, lora_alpha=alpha or 2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def stop_tokens(tokenizer: Any, style: PromptStyle) -> list[int]:
    """Return the tokens that end a trace: the end of sequence, and in a transcript every token with a line break."""
    ends = [tokenizer.eos_token_id]
    if style == "instruction":
        return ends
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return ends + [token for token, text in enumerate(texts) if "\n" in text and token not in ends]


def policy_prompt(pair: Pair, style: PromptStyle, proposal_mode: ProposalMode) -> Any:
    """Return the prompt of a pair as trl takes it: a text, or a list of messages."""
    text = proposal_prompt(style, pair, "the person", proposal_mode)
    return text if style == "transcript" else [{"role": "user", "content": text}]


def completion_text(completion: Any) -> str:
    """Return the text of a completion of trl: the completion itself, or the content of its last message."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def write_traces(
    model: Any, tokenizer: Any, pairs: Sequence[Pair], style: PromptStyle, proposal_mode: ProposalMode, *, seed: int = 0
) -> list[tuple[str, bool, int]]:
    """Sample one trace of the policy for each pair.

    The random state and the mode of the model are restored, so an audit does not change the training.

    Returns:
        For each pair: the trace, whether it ended by itself, and its number of tokens.
    """
    import torch

    if not pairs:
        return []
    ends, max_tokens = stop_tokens(tokenizer, style), TRACE_TOKENS[style]
    prompts = [policy_prompt(pair, style, proposal_mode) for pair in pairs]
    if style == "instruction":
        prompts = [tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True) for prompt in prompts]
    encoded: list[list[int]] = tokenizer(prompts, add_special_tokens=style == "transcript").input_ids
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    traces: dict[int, tuple[str, bool, int]] = {}
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode():
        torch.manual_seed(seed)
        shared, past = _encode_prefix(model, encoded)
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            ids, mask = _padded([encoded[i] for i in batch], shared, tokenizer.pad_token_id)
            sampled = model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), **cache_argument(repeat_cache(past, len(batch))),
                do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0, max_new_tokens=max_tokens, eos_token_id=ends,
                pad_token_id=tokenizer.pad_token_id, use_cache=True,
            )[:, ids.shape[1] :]  # fmt: skip
            for i, row in zip(batch, sampled.tolist(), strict=True):
                end = next((place for place, token in enumerate(row) if token in ends), None)
                tokens = row if end is None else row[: end + 1]
                text = tokenizer.decode(tokens, skip_special_tokens=True)
                traces[i] = parse_trace(style, text), end is not None, len(tokens)
    model.train(training)
    return [traces[i] for i in range(len(pairs))]


def _encode_prefix(model: Any, encoded: Sequence[Sequence[int]]) -> tuple[int, Any]:
    """Return the length of the common prefix of all prompts, and its key-value cache; half of all prompt tokens are shared."""
    import torch

    shared = shared_prefix_length(encoded) if len(encoded) > 1 else 0
    if not shared:
        return 0, None
    ids = torch.tensor([encoded[0][:shared]], device=next(model.parameters()).device)
    return shared, get_cache(model(input_ids=ids, use_cache=True, logits_to_keep=1))


def _padded(encoded: Sequence[Sequence[int]], shared: int, pad: int) -> tuple[Any, Any]:
    """Return token ids and attention mask (rows, tokens): the common prefix, the padding, then the rest of each prompt."""
    import torch

    width = max(map(len, encoded))
    ids = torch.tensor([[*row[:shared], *[pad] * (width - len(row)), *row[shared:]] for row in encoded])
    mask = torch.ones_like(ids)
    for place, row in enumerate(encoded):
        mask[place, shared : shared + width - len(row)] = 0
    return ids, mask
