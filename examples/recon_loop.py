"""Recon on one page: propose, reconstruct, score, select, for one moment of a real person.

The library's version (memory/recon/synthesizer.py) adds guards, provenance, a cache and concurrency; this is the idea and nothing else.
Run it: python examples/recon_loop.py (fetches the tiny model once)
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
    pair = split_pairs(load_log("chitchat"), SPEAKER).corpus[40]
    context = "\n".join(f"{'Me' if t.speaker == SPEAKER else 'Them'}: {' '.join(t.text.split())}" for t in pair.context[-4:])
    action = " ".join(pair.action.split())

    # propose: what may have gone on in them? Whoever writes this sees what they did.
    prompt = f"{EXAMPLE}{context}\nMe: {action}\nBefore I wrote that, I"
    model = load_model("local").chat
    answers = [await model.ainvoke(prompt, max_tokens=40, stop=["\n"], seed=seed) for seed in range(4)]
    traces = ["I" + str(answer.text) for answer in answers]

    # reconstruct: the same moment, with a trace or without, up to where they spoke. What they did is not in it.
    alone = f"{context}\nMe:"
    told = [f"{context}\n(Me thinking: {trace})\nMe:" for trace in traces]

    # score: how much more likely is what they really did, in nats per token?
    likelihoods = load_scorer("local").score([(text, f" {action}\n") for text in [alone, *told]])
    gains = [(one.nats - likelihoods[0].nats) / one.tokens for one in likelihoods[1:]]

    # select: the trace with which it is predicted best.
    print(f"{context}\nMe: {action}\n")
    for gain, trace in sorted(zip(gains, traces, strict=True), reverse=True):
        print(f"{gain:+.3f}  {trace}")


if __name__ == "__main__":
    asyncio.run(main())
