"""Text of untrusted data made safe to show."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

#: White space that moves the cursor or ends a line in some programs only.
_ENDS = "\r\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029"
_UNSAFE = re.compile("[^\t\n\x20-\x7e\xae-\u01ff]")  # what is worth a closer look
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


def visible(value: Any) -> str:
    """Returns a value as text of any number of lines, with U+FFFD for what a terminal or a page would act upon.

    Line ends and tabs stay; ANSI and OSC sequences lose their escape character, bidi overrides and other invisible characters go.

    Args:
        value: Anything.
    """
    text = str(value)
    return "".join(c if c in "\n\t" else "\ufffd" if c in _ENDS else _visible(c) for c in text) if _UNSAFE.search(text) else text


def _visible(character: str) -> str:
    if character.isspace() or character in _JOINERS:
        return character
    return "\ufffd" if unicodedata.category(character) in ("Cc", "Cf", "Cs") else character
