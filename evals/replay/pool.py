"""Other people's pairs from a twin's log: the memory of a crowd, for the arms `pooled` and `pooled_with_own`.

Design: what is pooled for a person depends on their held-out turns, but its embeddings do not. So the pools of a corpus share
one file of embeddings, in the run's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

from usertwin.memory import Embedder, Triple, TripleStore, TwinRecord
from usertwin.personas import ChatLog, Pair
from usertwin.personas.files import write_private
from usertwin.personas.pairs import extract_pairs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: The most pairs of other people that are pooled for a person: the latest before the person's first held-out turn.
POOL_PAIRS = 5_000
#: Pairs that are embedded and saved together.
_CHUNK = 1024


def other_peoples_pairs(log: ChatLog, record: TwinRecord, first: float, *, limit: int = POOL_PAIRS) -> list[Pair]:
    """Return the latest pairs of everybody else with the person's role in a log, oldest first.

    Nothing of the person's held-out conversations, and in a dated log nothing from the time `first` on. Undated conversations
    count as earlier than whatever is held out.
    """
    speaker, held_out = record.recipe.speaker, {*record.validation, *record.test}
    roles: dict[str, str] = {}
    for conversation in log.conversations:
        for turn in conversation.turns:
            if not turn.private:
                roles.setdefault(turn.speaker, turn.role)
    pairs: list[Pair] = []
    for place in range(len(log.conversations) - 1, -1, -1):
        conversation = log.conversations[place]
        if conversation.conversation_id in held_out:
            continue
        speakers = dict.fromkeys(turn.speaker for turn in conversation.turns if not turn.private)
        for other in speakers:
            if other != speaker and roles[other] == roles.get(speaker):
                own = extract_pairs(conversation, other, window=record.recipe.window, fallback_when=place)
                pairs += [pair for pair in own if not pair.abandoned and (not record.dated or pair.when < first)]
        if len(pairs) >= limit:
            break
    return sorted(pairs, key=lambda pair: pair.when)[-limit:]


class StoredEmbedder:
    """An embedder that keeps its embeddings in a file, which `save` writes; a damaged file counts as none."""

    def __init__(self, embedder: Embedder, path: Path) -> None:
        import numpy as np

        self.name, self._embedder, self._path = embedder.name, embedder, path
        self._vectors: dict[bytes, NDArray[np.float32]] = {}
        with suppress(OSError, ValueError, KeyError, BadZipFile), np.load(path, allow_pickle=False) as stored:
            if str(stored["embedder"]) == embedder.name:
                self._vectors = dict(zip(map(bytes, stored["keys"]), stored["vectors"], strict=True))

    @property
    def dimension(self) -> int:
        """See `Embedder.dimension`."""
        return self._embedder.dimension

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `Embedder.embed`."""
        import numpy as np

        keys = [sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._vectors}
        if missing:
            self._vectors |= zip(missing, self._embedder.embed(list(missing.values())), strict=True)
        return np.stack([self._vectors[key] for key in keys]) if keys else self._embedder.embed([])

    def save(self) -> None:
        """Write the embeddings."""
        import numpy as np

        content, keys = BytesIO(), np.array([np.frombuffer(key, np.uint8) for key in self._vectors], np.uint8)
        np.savez(content, embedder=np.array(self.name), keys=keys, vectors=np.stack(list(self._vectors.values())))
        write_private(self._path, content.getvalue())


def open_pool(pairs: Sequence[Pair], embedder: Embedder, path: Path | None = None) -> TripleStore | None:
    """Return a memory of these pairs, which must be closed; None without pairs. Embeddings are kept in the file `path`."""
    if not pairs:
        return None
    stored = None if path is None else StoredEmbedder(embedder, path)
    pool = TripleStore(None, stored or embedder)
    for start in range(0, len(pairs), _CHUNK):  # a stopped run keeps the embeddings of finished chunks
        pool.add([Triple(pair) for pair in pairs[start : start + _CHUNK]])
        if stored is not None:
            stored.save()
    return pool
