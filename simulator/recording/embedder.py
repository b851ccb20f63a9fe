"""An embedder whose vectors are recorded, or replayed without its weights."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING

from usertwin.memory import Embedder
from usertwin.memory.models.recording import Recording

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_KIND, _DIMENSION = "embedding", "the length of a vector"


class RecordedEmbedder:
    """An embedder with a recording. Vectors are stored exactly, as the bytes of little-endian 32-bit floats.

    Args:
        embedder: computes what is not recorded; None in a replay, which needs no embedder.
        recording: the recording.
        name: the embedder's name, if there is none.
    """

    def __init__(self, embedder: Embedder | None, recording: Recording, name: str = "") -> None:
        self.name = name if embedder is None else embedder.name
        self._embedder, self._recording = embedder, recording

    @property
    def dimension(self) -> int:
        """See `Embedder.dimension`. ReplayMiss if a replayed recording holds no vector."""
        known = self._recording.find(_KIND, self.name, [_DIMENSION])
        return int(self._keep_dimension(self._live.dimension) if known is None else known)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `Embedder.embed`. ReplayMiss if a text was not recorded."""
        import numpy as np

        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        vectors = {text: self._recording.find(_KIND, self.name, text) for text in dict.fromkeys(texts)}
        if missing := [text for text, vector in vectors.items() if vector is None]:
            matrix = self._live.embed(missing).astype("<f4")
            self._keep_dimension(matrix.shape[1])
            for text, vector in zip(missing, matrix, strict=True):
                vectors[text] = self._recording.keep(_KIND, self.name, text, base64.b64encode(vector.tobytes()).decode())
        return np.stack([np.frombuffer(base64.b64decode(vectors[text]), "<f4").astype(np.float32) for text in texts])

    @property
    def _live(self) -> Embedder:
        if self._embedder is None:
            raise self._recording.miss(_KIND, self.name, _DIMENSION)
        return self._embedder

    def _keep_dimension(self, dimension: int) -> int:
        return self._recording.keep(_KIND, self.name, [_DIMENSION], dimension)
