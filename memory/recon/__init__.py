"""Recon: propose, guard, score and select reasoning traces.

The fidelities (S), guards (G) and control traces (C), with their labels in evals/EXPERIMENTS.md:

    S1  JudgeFidelity          the paper's score: a judge ranks reconstructions of the action (2N+2 calls for N proposals)
    S2  LikelihoodGain         by how much the log-likelihood of the action rises over filler text, in nats per token
    S3  EmbeddingRankFidelity  rank of the real action among the person's actions, by similarity to the reconstruction
    S4  ForcedChoice           how much more likely the action is to be chosen among other actions of the person
    S5  PriorCorrectedGain     the gain, with a penalty on traces that are likely only once the action is known
    G1  rejection_reason       quotes, new words, numbers and names of the action
    G2  LikelihoodGain         the guarded gain, without words that the trace copies from the action
    G3  kept_share             the share of the gain that remains when shared words are masked
    G4  reveals_action         the audit: the trace alone identifies the action; rejects nothing
    G5  paraphrases_action     a sentence with the meaning of the action
    G8  rejection_reason       form: empty, too long, malformed, announcing the reply, repeating the prompt
    C0 to C8                   the control traces of evals/traces/control_traces.py
"""
