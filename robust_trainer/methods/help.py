"""What the settings' table says to people: a field's help, ``help(RobustConfig)``, ``docs/reference/settings.md``."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .schema import Setting
from .settings import FIELDS, PARTS, SETTINGS
from .table import METHODS

#: Where a default differs by the method, so many of its values are named.
_VALUES = 4


def tell(name: str, value: Any) -> str:
    """Returns a setting's value as people write it: ``8/255``, ``0.25``, ``ramp``.

    Args:
        name: of the setting.
        value: one that it may have.
    """
    if isinstance(value, float) and SETTINGS[name].pixels and 0 < value < 1:
        levels = round(value * 255, 6)
        if levels * 5 == int(levels * 5):
            return f"{levels:g}/255"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if value is None else str(value)


def default_of(setting: Setting) -> str:
    """Returns the setting's default in words; where it is the method's, the values in the order of how many rows have them.

    Args:
        setting: a row of the schema.
    """
    if setting.implicit:
        return tell(setting.name, setting.default)
    counts = Counter(tell(setting.name, row.settings[setting.name]) for row in METHODS.values() if setting.name in row.settings)
    values = [value for value, _ in counts.most_common(_VALUES)]
    return f"{' or '.join(values)}, by the method" if len(values) > 1 else (values or [tell(setting.name, setting.default)])[0]


def field_help(name: str) -> str:
    """Returns the help of a setting in one line: what it is, its range, its default.

    Args:
        name: of the setting.
    """
    setting = SETTINGS[name]
    # the names of choices are in the help of those that have few, in the reference and in the error
    expected = "" if setting.choices is not None else f", {setting.expected()}"
    return f"{_capitalised(setting.help)}{expected}. Default: {default_of(setting)}."


def fields_help() -> str:
    """Returns the ``Args:`` of `RobustConfig`'s docstring that are settings."""
    lines = []
    for name in FIELDS:
        setting = SETTINGS[name]
        text = f"{name}: {setting.help}; {setting.expected()}. Default: {default_of(setting)}."
        lines.append(textwrap.fill(text, 120, initial_indent=" " * 8, subsequent_indent=" " * 12))
    return "\n".join(lines)


def settings_reference() -> str:
    """Returns the text of ``docs/reference/settings.md``: every setting with its range, default, and the methods that take it."""
    lines = [
        "# Settings",
        "",
        "Every setting of every method, made from `robust_trainer/methods/settings.py`. Those in **bold** are fields of",
        "`RobustConfig` (`RobustConfig(noise_rate=0.2)`, `--noise_rate 0.2`); the others go through `method_settings`",
        '(`method_settings={"rate_decay_share": 0.3}`, `--set rate_decay_share=0.3`). All of them are keywords of `RobustTrainer`.',
        "A setting that a method does not take, is out of range, or has no effect beside the others is refused.",
    ]
    for part, title in PARTS.items():
        rows = [setting for setting in SETTINGS.values() if part == setting.parts[0]]
        takers = [name for name, row in METHODS.items() if part in row.parts]
        if not rows:
            continue
        lines += ["", f"## {title}", ""]
        if part != "anywhere":
            lines += [f"Taken by {_listed(takers)}.", ""]
        lines += ["| setting | what it is | values | default |", "|---|---|---|---|"]
        for setting in rows:
            name = f"**`{setting.name}`**" if setting.field else f"`{setting.name}`"
            others = [other for other in setting.parts[1:] if other != "anywhere"]
            more = f" (also: {', '.join(PARTS[other].lower() for other in others)})" if others else ""
            lines.append(f"| {name} | {setting.help}{more} | {setting.expected()} | {default_of(setting)} |")
    return "\n".join(lines) + "\n"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


if __name__ == "__main__":
    print(settings_reference(), end="")
