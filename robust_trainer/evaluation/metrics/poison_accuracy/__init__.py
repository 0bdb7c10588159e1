"""The module of `evaluate` that computes poison accuracy."""
