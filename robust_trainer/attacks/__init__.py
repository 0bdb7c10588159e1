"""Attacks for evaluation only: stronger and slower than what training perturbs with."""

from .apgd import APGD
from .autoattack import NAMES, make_attack, make_attacks, read_eps
from .base import Attack, Draws, Forward
from .fab import FAB
from .pgd import PGD
from .square import Square
from .target import Target

__all__ = [
    "APGD", "FAB", "NAMES", "PGD", "Attack", "Draws", "Forward", "Square", "Target", "make_attack", "make_attacks", "read_eps",
]  # fmt: skip
