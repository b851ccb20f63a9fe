"""The tiny model of the benchmarks, for the tests."""

from usertwin.evals.benchmarks.tiny_model import CHAT_TEMPLATE, LINES, one_thread, tiny_llama, tiny_model

__all__ = ["CHAT_TEMPLATE", "LINES", "one_thread", "tiny_llama", "tiny_model"]
