"""Hostile agents: each must end its conversation with the right stop reason, and the run must go on."""
