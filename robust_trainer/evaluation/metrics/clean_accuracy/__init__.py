"""The module of `evaluate` that computes clean accuracy."""
