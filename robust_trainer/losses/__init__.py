"""Losses on labels, on two forwards, and of semi-supervised training."""
