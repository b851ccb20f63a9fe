"""The model that is trained: a base with a LoRA adapter, and the texts it writes while it is trained.

The one design choice: the policy is prompted exactly as a proposer is (propose.py), so that an adapter serves wherever its base
proposes traces; where the prompt is a transcript, every token that holds a line's end ends a trace, in training as in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from usertwin.memory.models.chat import Style
from usertwin.memory.models.scoring import Precision
from usertwin.memory.models.transformers_scorer import cache_of, repeated, shared_prefix, with_cache
from usertwin.memory.recon.propose import TEMPERATURE, TRACE_TOKENS, ProposalMode, as_trace, prompt_for
from usertwin.personas import ModelError, Pair, UsageError

_INSTALL = "training needs packages that are not installed; install them with: pip install 'usertwin[train]'"
#: Prompts that are continued at once; the keys and values of more crowd a processor's caches.
_BATCH = 16


def check_installed(*, vllm: bool = False, tensorboard: bool = False) -> None:
    """UsageError, with the command, if what training needs, or what was asked for besides, is not installed."""
    from importlib.util import find_spec

    if any(find_spec(package) is None for package in ("trl", "peft", "datasets")):
        raise UsageError(_INSTALL)
    for package, wanted in (("vllm", vllm), ("tensorboard", tensorboard)):
        if wanted and find_spec(package) is None:
            raise UsageError(f"--{package} needs a package that is not installed; install it with: pip install {package}")


def load_base(folder: str | Path, precision: Precision = "float32") -> tuple[Any, Any]:
    """A base model, on a GPU if there is one, and its tokenizer, which pads on the left. ModelError if it cannot be loaded."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, logging

    logging.disable_progress_bar()
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left")
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, precision), local_files_only=True)
    except Exception as error:
        raise ModelError(f"{folder}: transformers cannot load this model ({error})") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def empty_base(folder: str | Path) -> Any:
    """A base model without weights: what can be told from its layers' shapes costs neither time nor memory.

    ModelError if it cannot be made.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    except Exception as error:
        raise ModelError(f"{folder}: transformers cannot load this model ({error})") from error


def check_chat_template(tokenizer: Any, name: str, style: Style) -> None:
    """UsageError if a model is to follow instructions and has no form for them."""
    if style == "instruction" and getattr(tokenizer, "chat_template", None) is None:
        raise UsageError(
            f'the base "{name}" has no chat template, so it cannot be told what to do; pass --style transcript, or take a base '
            "that was trained on instructions"
        )


def lora(rank: int = 16, alpha: int | None = None) -> Any:
    """The adapter's shape: on every linear layer, without dropout, since what is sampled is to be what is trained."""
    from peft import LoraConfig

    return LoraConfig(
        r=rank, lora_alpha=alpha or 2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )


def ends_of(tokenizer: Any, style: Style) -> list[int]:
    """The tokens that end a trace: the model's own end, and for a transcript all those that hold a line's end."""
    own = [tokenizer.eos_token_id]
    if style == "instruction":
        return own
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return own + [token for token, text in enumerate(texts) if "\n" in text and token not in own]


def prompt_of(pair: Pair, style: Style, how: ProposalMode) -> Any:
    """What a trace is asked for with, as trl takes prompts: a text, or messages."""
    text = prompt_for(style, pair, "the person", how)
    return text if style == "transcript" else [{"role": "user", "content": text}]


def text_of(completion: Any) -> str:
    """The text of a completion as trl gives it: itself, or the content of its message."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def write_traces(
    model: Any, tokenizer: Any, pairs: Sequence[Pair], style: Style, how: ProposalMode, *, seed: int = 0
) -> list[tuple[str, bool, int]]:
    """One trace of the policy for each pair: (the trace, whether it came to its end by itself, tokens it took).

    What is drawn here leaves the generator that training draws from where it was, so that looking changes nothing.
    """
    import torch

    if not pairs:
        return []
    ends, most = ends_of(tokenizer, style), TRACE_TOKENS[style]
    prompts = [prompt_of(pair, style, how) for pair in pairs]
    if style == "instruction":
        prompts = [tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in prompts]
    encoded: list[list[int]] = tokenizer(prompts, add_special_tokens=style == "transcript").input_ids
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    found: dict[int, tuple[str, bool, int]] = {}
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode():
        torch.manual_seed(seed)
        begun, past = _begun(model, encoded)
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            asked = _padded([encoded[i] for i in batch], begun, tokenizer.pad_token_id).to(device)
            written = model.generate(
                input_ids=asked, attention_mask=_read(asked, [len(encoded[i]) for i in batch], begun),
                **with_cache(repeated(past, len(batch))), do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0,
                max_new_tokens=most, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, use_cache=True,
            )[:, asked.shape[1] :]  # fmt: skip
            for i, row in zip(batch, written.tolist(), strict=True):
                end = next((place for place, token in enumerate(row) if token in ends), None)
                kept = row if end is None else row[: end + 1]
                text = tokenizer.decode(kept, skip_special_tokens=True)
                found[i] = as_trace(style, text), end is not None, len(kept)
    model.train(training)
    return [found[i] for i in range(len(pairs))]


def _begun(model: Any, encoded: Sequence[Sequence[int]]) -> tuple[int, Any]:
    """How many first tokens all prompts share, and their keys and values: the examples of a prompt are half of what is read."""
    import torch

    shared = shared_prefix(encoded) if len(encoded) > 1 else 0
    if not shared:
        return 0, None
    ids = torch.tensor([encoded[0][:shared]], device=next(model.parameters()).device)
    return shared, cache_of(model(input_ids=ids, use_cache=True, logits_to_keep=1))


def _padded(encoded: Sequence[Sequence[int]], begun: int, pad: int) -> Any:
    """Prompts as one tensor (rows, tokens): what they share, then what is not read, then the rest of each."""
    import torch

    width = max(map(len, encoded))
    return torch.tensor([[*one[:begun], *[pad] * (width - len(one)), *one[begun:]] for one in encoded])


def _read(asked: Any, lengths: Sequence[int], begun: int) -> Any:
    """Which tokens of such a tensor are read: 1, and 0 where it was filled up."""
    import torch

    found = torch.ones_like(asked)
    for row, length in enumerate(lengths):
        found[row, begun : begun + asked.shape[1] - length] = 0
    return found
