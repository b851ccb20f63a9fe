"""Recon: propose, guard, score and select reasoning traces."""
