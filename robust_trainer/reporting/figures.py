"""Figures without a display: an empty figure, axes in percent over epochs, and how a figure becomes a file or a data URI.

Whoever draws imports this module, and matplotlib with it; nothing that a training needs does.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.legend import Legend
from matplotlib.ticker import MaxNLocator

from .atomic_files import replacing

BLUE, RED, GREEN, GREY = "#2471a3", "#c0392b", "#1e8449", "#7f8c8d"
#: Lines are told apart by marker as well as colour.
COLOURS = (RED, BLUE, GREEN, "#b9770e", "#6c3483", "#566573")
MARKERS = ("o", "s", "^", "D", "v", "P")


def new_figure(width: float, height: float, title: str | None = None, dpi: int = 130) -> Figure:
    """Returns an empty figure that needs neither a display nor a global back end.

    Args:
        width: In inches.
        height: In inches.
        title: Above all axes, taken literally; None for none.
        dpi: Pixels per inch.
    """
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title.replace("$", r"\$"), fontsize=11)
    return figure


def epoch_axes(figure: Figure, ylabel: str) -> Axes:
    """Returns new axes of the figure with whole epochs on the x axis, a faint grid and no box.

    Args:
        figure: The figure.
        ylabel: What the y axis shows.
    """
    axes = figure.add_subplot()
    axes.set(xlabel="epoch", ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    open_axes(axes)
    return axes


def open_axes(axes: Axes) -> None:
    """Gives the axes a faint grid and takes the box's top and right side away.

    Args:
        axes: The axes.
    """
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def literal(legend: Legend) -> None:
    """Makes a legend show its texts as they are: names of classes and methods are anyone's, and ``$`` would be mathematics.

    Args:
        legend: The legend.
    """
    for text in legend.get_texts():
        text.set_parse_math(False)


def drawable(text: str) -> str:
    """Returns the text with '?' for what the figures' font cannot draw and for a leading underscore, which legends hide.

    Args:
        text: Any text.
    """
    glyphs = get_font(findfont(FontProperties())).get_charmap()
    known = "".join(c if ord(c) in glyphs else "?" for c in text)
    return "?" + known[1:] if known.startswith("_") else known


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes the figure as PNG, whole or not at all, and returns its path.

    Args:
        figure: The figure.
        path: File to write.
    """
    with replacing(path) as new:
        figure.savefig(new, format="png")
    return Path(path)


def figure_uri(figure: Figure) -> str:
    """Returns the figure as a PNG data URI.

    Args:
        figure: The figure.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def percent_lines(lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Returns a figure of lines over epochs as a PNG data URI.

    Args:
        lines: Name -> points (epoch, percent); a line without points has no entry in the legend.
    """
    figure = new_figure(5.2, 3.4)
    axes = epoch_axes(figure, "%")
    axes.set(ylim=(0, 100))
    for i, (name, points) in enumerate(lines.items()):
        if points:
            axes.plot(
                *zip(*points), label=name, color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)],
                markersize=4, markevery=max(1, len(points) // 12), linewidth=1.8, clip_on=False,
            )  # fmt: skip
    literal(figure.legend(loc="outside upper center", ncols=3, frameon=False))
    return figure_uri(figure)
