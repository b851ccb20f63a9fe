"""Training a trace synthesizer (LoRA) with Recon rewards."""
