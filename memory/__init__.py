"""WHAT THEY DID AND WHY: triples, the FAISS memory they are recalled from, Recon, and learning a twin from a log."""

from .models.answer_cache import AnswerCache
from .models.chat import ChatModel, Ledger, Price, Sample, Style, Usage, sample
from .models.embedding import CachedEmbedder, Embedder, FakeEmbedder, SentenceTransformerEmbedder
from .models.score_cache import CachedScorer
from .models.scoring import FakeScorer, Likelihood, Scorer
from .models.transformers_scorer import TransformersScorer
from .progress import Progress
from .recon.distractors import Distractors
from .recon.fidelity import Choice, Fidelity, Gain, Prior, Scored
from .recon.judged_fidelity import Judged, Ranked, fidelity_by_name
from .recon.synthesizer import METHODS, Method, Synthesizer, select
from .store.ranking import Ranking
from .store.triple_store import MemoryStats, TripleStore
from .triples import Candidate, Provenance, Recalled, Triple
from .twin.abandonment import Leaving, learn_leaving
from .twin.append import append
from .twin.last_turn import EndingModel, learn_ending
from .twin.learn import learn
from .twin.recipe import Recipe
from .twin.record import Settings, TwinRecord, default_home, existing_twin, list_twins, twin_folder

__all__ = [
    "METHODS",
    "AnswerCache",
    "CachedEmbedder",
    "CachedScorer",
    "Candidate",
    "ChatModel",
    "Choice",
    "Distractors",
    "Embedder",
    "EndingModel",
    "FakeEmbedder",
    "FakeScorer",
    "Fidelity",
    "Gain",
    "Judged",
    "Leaving",
    "Ledger",
    "Likelihood",
    "MemoryStats",
    "Method",
    "Price",
    "Prior",
    "Progress",
    "Provenance",
    "Ranked",
    "Ranking",
    "Recalled",
    "Recipe",
    "Sample",
    "Scored",
    "Scorer",
    "SentenceTransformerEmbedder",
    "Settings",
    "Style",
    "Synthesizer",
    "TransformersScorer",
    "Triple",
    "TripleStore",
    "TwinRecord",
    "Usage",
    "append",
    "default_home",
    "existing_twin",
    "fidelity_by_name",
    "learn",
    "learn_ending",
    "learn_leaving",
    "list_twins",
    "sample",
    "select",
    "twin_folder",
]
