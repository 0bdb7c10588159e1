"""The audit's plots: the histogram of suspicion, and which class is given for which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..reporting.figures import BLUE, RED, drawable, figure_uri, new_figure, open_axes
from ..reporting.safe_text import plain
from .samples import SIDE, encode

#: The diagonal of the heat map.
DIAGONAL = "#d5d8dc"
#: Classes whose names are written at the heat map; of more, the numbers.
NAMED = 50
BINS = 50


def histogram(suspicion: np.ndarray, threshold: float, corrupted: np.ndarray | None = None) -> str:
    """Returns the histogram of suspicion (N,) in [0, 1] with the cut, as a PNG data URI.

    Args:
        suspicion: (N,) in [0, 1].
        threshold: From which a sample is flagged.
        corrupted: Bool (N,) where the truth is known; then both kinds are drawn, one over the other. The counts are logarithmic
            where the tallest bar is more than 50 times the median one.
    """
    values = suspicion[np.isfinite(suspicion)]
    edges = np.linspace(0.0, 1.0, BINS + 1)
    counts = np.histogram(values, edges)[0]
    shown = counts[counts > 0]
    figure = new_figure(5.6, 3.4)
    axes = figure.add_subplot()
    if corrupted is None:
        axes.stairs(counts, edges, fill=True, color=BLUE, label="samples")
    else:
        known = corrupted[np.isfinite(suspicion)]
        for part, colour, label in ((~known, BLUE, "known clean"), (known, RED, "known corrupted")):
            bars = np.histogram(values[part], edges)[0]
            axes.stairs(bars, edges, fill=True, color=colour, alpha=0.45)
            axes.stairs(bars, edges, color=colour, linewidth=1.6, label=label)
    if np.isfinite(threshold):
        axes.axvline(threshold, color="#1b2631", linestyle="--", linewidth=1.4, label=f"flagged from {threshold:.3f}")
    if shown.size and shown.max() > 50 * np.median(shown):
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.5)
    axes.set(xlabel="suspicion", ylabel="samples", xlim=(-0.01, 1.01))
    open_axes(axes)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure_uri(figure)


def path_histogram(steps: np.ndarray, max_steps: int, corrupted: np.ndarray | None = None) -> str:
    """Returns the histogram of path lengths (N,) as a PNG data URI; ``max_steps`` + 1, not reached, is a bar of its own.

    Args:
        steps: Path lengths (N,), in steps.
        max_steps: The most steps that were tried.
        corrupted: As in `histogram`.
    """
    reached = steps[steps <= max_steps]
    top = int(reached.max(initial=0))
    wide = max(1, -(-(top + 1) // BINS))
    edges = np.arange(0, top + wide + 1, wide) - 0.5
    last = edges[-1] + 0.5 * wide
    missed = int((steps > max_steps).sum())
    figure = new_figure(5.6, 3.4)
    axes = figure.add_subplot()
    for part, colour, label in _kinds(corrupted, len(steps)):
        counts = np.histogram(steps[part & (steps <= max_steps)], edges)[0]
        axes.stairs(counts, edges, fill=True, color=colour, alpha=1.0 if corrupted is None else 0.45, label=label)
        if missed:
            height = int((part & (steps > max_steps)).sum())
            axes.bar([last + 0.5 * wide], [height], width=wide, color=colour, alpha=0.45, hatch="//")
    axes.set(xlabel="path length, in steps" + (f" (hatched: more than {max_steps})" if missed else ""), ylabel="samples")
    open_axes(axes)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure_uri(figure)


def _kinds(corrupted: np.ndarray | None, n: int) -> list[tuple[np.ndarray, str, str]]:
    """Which samples are drawn in which colour, and how they are called."""
    if corrupted is None:
        return [(np.ones(n, dtype=bool), BLUE, "samples")]
    return [(~corrupted, BLUE, "known clean"), (corrupted, RED, "known corrupted")]


def heat_map(transition: np.ndarray, names: Sequence[str]) -> str:
    """Returns the transition (C, C) as a PNG data URI: rows should be, columns are given; the diagonal is left grey.

    Args:
        transition: (C, C), rows sum to 1.
        names: Of the classes.
    """
    values = 100 * off_diagonal(transition)
    np.fill_diagonal(values, np.nan)
    figure = new_figure(6.4, 5.6)
    axes = figure.add_subplot()
    axes.set_facecolor(DIAGONAL)
    top = np.nanmax(values, initial=0.0)
    image = axes.imshow(values, cmap="Reds", vmin=0, vmax=max(top, 1e-9), interpolation="nearest" if len(values) <= 400 else "auto")
    figure.colorbar(image, ax=axes, label="% of the class", shrink=0.8)
    if len(values) <= NAMED:
        for axis, rotation in ((axes.xaxis, 90), (axes.yaxis, 0)):
            axis.set_ticks(range(len(values)), [drawable(plain(name, 24)) for name in names], fontsize=6, rotation=rotation)
            for label in axis.get_ticklabels():
                label.set_parse_math(False)
    unit = "" if len(values) <= NAMED else " (class number)"
    axes.set(xlabel="given label" + unit, ylabel="should be" + unit)
    return figure_uri(figure)


def off_diagonal(transition: np.ndarray) -> np.ndarray:
    """Returns a copy of the transition (C, C) with 0 in the diagonal and for what is no number.

    Args:
        transition: (C, C), rows sum to 1.
    """
    values = np.nan_to_num(np.array(transition, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    np.fill_diagonal(values, 0.0)
    return values


def pattern_picture(pattern: np.ndarray | None) -> tuple[str, float] | None:
    """Returns a pattern as a data URI, grey for no difference, and the largest difference, which is stretched to black or white.

    Args:
        pattern: (H, W, channels); the answer is None for None, and for other than 1 or 3 channels.
    """
    if pattern is None or pattern.ndim != 3 or pattern.shape[-1] not in (1, 3):
        return None
    values = np.nan_to_num(pattern.astype(np.float64))
    largest = float(np.abs(values).max(initial=0.0))
    if not largest:
        return None
    levels = np.rint(127.5 + 127.5 * values / largest).astype(np.uint8)
    image = Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)
    image.thumbnail((SIDE, SIDE))
    return encode(image), largest


def cells(transition: np.ndarray) -> list[list[tuple[str, str]]]:
    """Returns per cell of the transition its percent in words and its CSS.

    Red for wrong labels, darker for more; the diagonal is grey-blue. The text is dark or white, whichever is readable on the cell.

    Args:
        transition: (C, C), rows sum to 1.
    """
    off = off_diagonal(transition)
    top = max(off.max(initial=0.0), 1e-9)
    values = np.nan_to_num(np.asarray(transition, dtype=np.float64))
    return [
        [_cell(float(values[i, j]), 0.25 if i == j else float(off[i, j] / top), i == j) for j in range(len(off))]
        for i in range(len(off))
    ]  # fmt: skip


def _cell(value: float, depth: float, diagonal: bool) -> tuple[str, str]:
    end = (36, 113, 163) if diagonal else (169, 50, 38)
    mixed = [round(255 + min(max(depth, 0.0), 1.0) * (part - 255)) for part in end]
    light = 0.299 * mixed[0] + 0.587 * mixed[1] + 0.114 * mixed[2]
    words = "\u00b7" if value <= 0 else "<0.1" if value < 0.0005 else f"{100 * value:.1f}"
    return words, f"background: rgb({mixed[0]}, {mixed[1]}, {mixed[2]}); color: {'#1b2631' if light > 150 else '#fff'}"
