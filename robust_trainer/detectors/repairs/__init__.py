"""Repairs: a model without the backdoor, from one that was trained on poisoned rows or is to be. Names are `robust_trainer.detectors`'."""
