"""Text of untrusted data made safe to show."""

from __future__ import annotations

import unicodedata
from typing import Any

_JOINERS = "\u200c\u200d"  # zero width, but words of several scripts and emoji need them


def plain(value: Any, limit: int) -> str:
    """Returns a value as one line of at most ``limit`` characters.

    White space becomes one space. Control characters, bidi overrides and other invisible characters become U+FFFD, so that a text
    can neither reorder what is around it nor break UTF-8.

    Args:
        value: Anything.
        limit: Characters, of which the last is … where some are missing.
    """
    text = str(value)
    start = text[: 4 * limit]
    cut = " ".join((start if start.isprintable() else "".join(map(_visible, start))).split())
    return cut if len(cut) <= limit and len(text) <= 4 * limit else cut[: limit - 1] + "\u2026"


def _visible(character: str) -> str:
    if character.isspace() or character in _JOINERS:
        return character
    return "\ufffd" if unicodedata.category(character) in ("Cc", "Cf", "Cs") else character
