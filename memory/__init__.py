"""What a person did and why: triples, the memory that recalls them, Recon, and learning a twin from a log."""

from .models.chat import ChatModel
from .models.embedding import Embedder
from .models.scoring import Scorer
from .recon.fidelity import LikelihoodGain
from .recon.synthesizer import Synthesizer
from .store.ranking import Ranking
from .store.triple_store import TripleStore
from .triples import Provenance, Recalled, Triple
from .twin.forget import open_memory
from .twin.learn import alearn
from .twin.recipe import Recipe
from .twin.record import Settings, TwinRecord, existing_twin, list_twins

__all__ = [
    "ChatModel",
    "Embedder",
    "LikelihoodGain",
    "Provenance",
    "Ranking",
    "Recalled",
    "Recipe",
    "Scorer",
    "Settings",
    "Synthesizer",
    "Triple",
    "TripleStore",
    "TwinRecord",
    "alearn",
    "existing_twin",
    "list_twins",
    "open_memory",
]
