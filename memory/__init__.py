"""WHAT THEY DID AND WHY: triples, the FAISS memory they are recalled from, Recon, and learning a twin from a log."""

from .embed import CachedEmbedder, Embedder, FakeEmbedder, SentenceTransformerEmbedder
from .ending import EndingModel, learn_ending
from .learn import Progress, append, learn
from .leaving import Leaving, learn_leaving
from .ranking import Ranking
from .recon import METHODS, Method, synthesize
from .sampling import ChatModel, Sample, Style, Usage, sample
from .scoring import CachedScorer, FakeScorer, Likelihood, Scorer, TransformersScorer
from .store import MemoryStats, TripleStore
from .triples import Provenance, Recalled, Triple
from .twin import Recipe, TwinRecord, default_home, existing_twin, list_twins, twin_folder

__all__ = [
    "METHODS",
    "CachedEmbedder",
    "CachedScorer",
    "ChatModel",
    "Embedder",
    "EndingModel",
    "FakeEmbedder",
    "FakeScorer",
    "Leaving",
    "Likelihood",
    "MemoryStats",
    "Method",
    "Progress",
    "Provenance",
    "Ranking",
    "Recalled",
    "Recipe",
    "Sample",
    "Scorer",
    "SentenceTransformerEmbedder",
    "Style",
    "TransformersScorer",
    "Triple",
    "TripleStore",
    "TwinRecord",
    "Usage",
    "append",
    "default_home",
    "existing_twin",
    "learn",
    "learn_ending",
    "learn_leaving",
    "list_twins",
    "sample",
    "synthesize",
    "twin_folder",
]
