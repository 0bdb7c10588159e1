"""Availability poisons: small perturbations of every training image that spoil what is learned from them."""
