"""Whom to train on: scores, rules, schedules, shares of the classes, the noise rate."""
