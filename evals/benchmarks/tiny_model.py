"""A causal model with a few thousand weights and a tokenizer trained on a few lines, in a transformers folder.

The real training code runs with it in a second, without a network.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: What the tokenizer is trained on; it knows every byte besides.
LINES = (
    "Them: hello, how are you today? what can I do for you?",
    "Me: fine thanks, and you? one plum cake please",
    "(Me thinking: wants to be polite and get the cake quickly)",
    "Them: it will rain tomorrow in the city, take an umbrella with you",
    "Me: ok, thank you so much, good bye!",
)
#: A chat template: each message begins with its role in brackets, on a line of its own.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def tiny_model(folder: Path, chat_template: bool = False) -> Path:
    """Write a small Llama with random but fixed weights and its tokenizer into a folder.

    Args:
        folder: made if missing.
        chat_template: whether the tokenizer has one.

    Returns:
        The folder.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<end>", "<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokens.train_from_iterator(LINES, trainer)
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<end>", pad_token="<pad>")
    if chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    model = tiny_llama(
        vocab_size=len(tokenizer), max_position_embeddings=1024, initializer_range=0.1, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_llama(**settings: Any) -> Any:
    """Return a Llama with random but fixed weights; `settings` are the rest of its configuration, such as `vocab_size`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        tie_word_embeddings=False, **settings,
    )  # fmt: skip
    before = torch.random.get_rng_state()
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    torch.random.set_rng_state(before)
    return model


@contextmanager
def one_thread() -> Generator[None]:
    """Compute in one thread; for a tiny model, synchronising threads costs more than it saves."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
