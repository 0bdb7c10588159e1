"""Crafted label noise: which labels to flip with a given budget."""
