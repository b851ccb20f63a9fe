"""Writing token by token with probabilities of ours: what a local model offers for it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Protocol, TypeAlias

#: (token ids of the turn so far, the model's probabilities of likely tokens) -> probabilities of the next token. These may sum
#: to less than 1, since unlikely tokens are left out. One whose completions are recorded has an attribute `content`, the JSON
#: value of all that determines it beside the model.
NextToken: TypeAlias = Callable[[Sequence[int], Mapping[int, float]], Mapping[int, float]]


#: Most likely tokens of the model that `NextToken` gets.
LIKELY_TOKENS = 64


@dataclass(frozen=True, slots=True)
class WrittenTokens:
    """A completion: its text, the tokens of prompt, cached prompt and completion, and whether it ended at the limit."""

    text: str
    _: KW_ONLY
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    at_limit: bool


class TokenWriter(Protocol):
    """Writes completions from probabilities that a function computes from the model's."""

    @property
    def vocabulary_size(self) -> int:
        """The number of token ids."""
        ...

    def encode(self, turns: Sequence[str]) -> list[list[int]]:
        """Return the token ids that the model writes for each turn, with the one that ends it."""
        ...

    async def write(
        self, messages: Sequence[tuple[str, str]], next_token: NextToken, *, n: int, seed: int, max_tokens: int,
        temperature: float, stop: Sequence[str], use_cache: bool,
    ) -> list[WrittenTokens]:  # fmt: skip
        """Return n completions of a prompt; completion i gets seed + i.

        Without `use_cache` the prompt is computed anew, so that the seed determines the completions.
        """
        ...


def sample_token(probabilities: Mapping[int, float], temperature: float, rng: random.Random) -> int:
    """Return a token drawn from probabilities to the power of 1 / temperature; the most likely one at temperature 0."""
    tokens = sorted(probabilities)  # the order of a mapping must not change what a seed draws
    largest = max(probabilities.values())
    if temperature <= 0:
        return next(token for token in tokens if probabilities[token] == largest)
    weights = [(probabilities[token] / largest) ** (1 / temperature) for token in tokens]
    return rng.choices(tokens, weights)[0]
