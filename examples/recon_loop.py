"""The Recon loop in its simplest form, for one pair of a real person: propose, reconstruct, score, select.

The library (memory/recon/synthesizer.py) adds guards, provenance, a cache and concurrency.
Run it: python examples/recon_loop.py (downloads the default model once)
"""

import asyncio

from usertwin.personas import load_log, split_pairs
from usertwin.simulator import load_model, load_scorer

SPEAKER = "60576dcf-5b39-4420-a850-33ff7d108047"
EXAMPLE = """Them: Your parcel left our warehouse this morning.
Me: great, thats all then
Before I wrote that, I felt relieved that the waiting was over, and I wanted to close the matter quickly and kindly.

"""


async def main() -> None:
    """Print four traces for a pair, ranked by how much they raise the log-probability of the action."""
    pair = split_pairs(load_log("chitchat"), SPEAKER).corpus[40]
    context = "\n".join(f"{'Me' if t.speaker == SPEAKER else 'Them'}: {' '.join(t.text.split())}" for t in pair.context[-4:])
    action = " ".join(pair.action.split())

    # propose: sample traces from a model that sees the action.
    prompt = f"{EXAMPLE}{context}\nMe: {action}\nBefore I wrote that, I"
    model = load_model("local").chat
    completions = [await model.ainvoke(prompt, max_tokens=40, stop=["\n"], seed=seed) for seed in range(4)]
    traces = ["I" + str(completion.text) for completion in completions]

    # reconstruct: the prompt for the action, without a trace and with each one. It does not contain the action.
    without_trace = f"{context}\nMe:"
    with_traces = [f"{context}\n(Me thinking: {trace})\nMe:" for trace in traces]

    # score: the gain in log-probability of the real action, in nats per token.
    base, *likelihoods = load_scorer("local").score([(text, f" {action}\n") for text in [without_trace, *with_traces]])
    gains = [(likelihood.nats - base.nats) / likelihood.tokens for likelihood in likelihoods]

    # select: the trace with the largest gain.
    print(f"{context}\nMe: {action}\n")
    for gain, trace in sorted(zip(gains, traces, strict=True), reverse=True):
        print(f"{gain:+.3f}  {trace}")


if __name__ == "__main__":
    asyncio.run(main())
