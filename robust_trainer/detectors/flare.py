"""FLARE: poisoned rows are alike in which hidden layers their activations are unlikely, so they form a dense group of their own."""

from __future__ import annotations
