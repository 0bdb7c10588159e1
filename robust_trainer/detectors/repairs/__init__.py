"""Repairs: a model without the backdoor, from one that was trained on poisoned rows or is to be.

Their public names are those of ``robust_trainer.detectors``.
"""
