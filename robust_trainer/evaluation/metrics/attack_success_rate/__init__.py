"""The module of `evaluate` that computes attack success rate."""
