"""Backdoors: triggers, and what poisons a data set with them."""
