"""What tracking found, told: rows of the log, best against last, the table and the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.lines import Line2D

from ..reporting.figures import BLUE, COLOURS, GREY, MARKERS, RED, epoch_axes, new_figure, save_figure

#: The names in ``trainer.state.log_history``: accuracies on the clean test set and on held-out data, fractions in [0, 1].
NATURAL, ROBUST = "natural_accuracy", "robust_accuracy"
HELD_NATURAL, HELD_ROBUST = "held_out_natural_accuracy", "held_out_robust_accuracy"
_KINDS = {"best_on_test": "best on test (oracle)", "best_by_held_out": "best by held-out", "last": "last"}


def tracked(log_history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Returns the entries of ``trainer.state.log_history`` that `RobustnessCallback` wrote, one a step, in order.

    Args:
        log_history: Of ``trainer.state``.
    """
    names = (NATURAL, ROBUST, HELD_NATURAL, HELD_ROBUST, "epoch", "step")
    entries = [entry for entry in log_history if NATURAL in entry and ROBUST in entry]
    return list({entry["step"]: {k: entry[k] for k in names if k in entry} for entry in entries}.values())


def best(rows: Sequence[Mapping[str, float]], key: str) -> dict[str, float] | None:
    """Returns the row with the highest ``key``, the earliest of equals; None where no row has it.

    Args:
        rows: Of `tracked`.
        key: Name of a figure.
    """
    candidates = [row for row in rows if key in row]
    return dict(max(candidates, key=lambda row: row[key])) if candidates else None


def summarise(
    rows: Sequence[Mapping[str, float]], kept: Mapping[str, float] | None = None,
    final: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Returns best_on_test, best_by_held_out, last, highest_natural, and ``gap``, their differences to last; fractions.

    Args:
        rows: Of `tracked`. A row holds epoch, step, natural and robust (the test set, while training), held_out_natural and
            held_out_robust where measured, and ``final``, the figures of the end by attack, where evaluated. best_on_test is the
            highest robust accuracy on the test set (Best as NRAT reports it), best_by_held_out (None without held-out data)
            that on held-out data, ``kept`` if given. gap: best - last by row and figure, and highest_natural: max natural accuracy
            - last; positive values are overfitting.
        kept: The row of the best checkpoint by held-out data.
        final: Figures of the end, by row and attack.

    Raises:
        ValueError: Without rows.
    """
    if not rows:
        raise ValueError("history is empty: train first, with a RobustnessCallback among the callbacks.")
    chosen = {"best_on_test": best(rows, ROBUST), "best_by_held_out": kept or best(rows, HELD_ROBUST), "last": rows[-1]}
    out: dict[str, Any] = {}
    for name, row in chosen.items():
        out[name] = None if row is None else {k.removesuffix("_accuracy"): v for k, v in row.items()}
        if out[name] is not None and final and name in final:
            out[name]["final"] = dict(final[name])
    top, last = best(rows, NATURAL), out["last"]
    assert top is not None
    out["highest_natural"] = {"epoch": top["epoch"], "step": top["step"], "natural": top[NATURAL]}
    gap: dict[str, Any] = {"highest_natural": top[NATURAL] - last["natural"]}
    for name in ("best_on_test", "best_by_held_out"):
        if (row := out[name]) is not None:
            gap[name] = {k: row[k] - last[k] for k in ("natural", "robust")}
            if "final" in row and "final" in last:
                gap[name]["final"] = {k: v - last["final"][k] for k, v in row["final"].items()}
    return {**out, "gap": gap}


def table(summary: Mapping[str, Any], attacks: Sequence[str] = ("robust",), samples: int | None = None) -> str:
    """Returns a summary as text, percent with two decimals: best, last and gap in rows, natural and each attack in columns.

    Args:
        summary: Of `summarise`.
        attacks: Names of the attacks of the robust column.
        samples: Test images, for the heading.
    """
    last = summary["last"]
    finals = list(last.get("final", {}))
    head = ["", "epoch", "natural", "+".join(attacks), *finals]
    lines = [head]
    for name, label in _KINDS.items():
        if (row := summary[name]) is not None:
            lines.append([label, f"{row['epoch']:g}", *_percents(row, finals)])
    for name in ("best_on_test", "best_by_held_out"):
        if name in summary["gap"]:
            lines.append([f"gap: {_KINDS[name]} - last", "", *_percents(summary["gap"][name], finals)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = [line[0].ljust(widths[0]) + "".join("  " + cell.rjust(w) for cell, w in zip(line[1:], widths[1:])) for line in lines]
    over = f"while training{f', {samples} images' if samples else ''}"
    if finals:
        left = sum(widths[:2]) + 2
        text.insert(0, " " * left + over.rjust(widths[2] + widths[3] + 4) + "  at the end")
    top = summary["highest_natural"]
    text.append(
        f"natural accuracy was highest at epoch {top['epoch']:g}: {100 * top['natural']:.2f} %, "
        f"{100 * summary['gap']['highest_natural']:.2f} points above the last."
    )
    return "\n".join(line.rstrip() for line in text)


def _percents(row: Mapping[str, Any], finals: Sequence[str]) -> list[str]:
    final = row.get("final", {})
    return [f"{100 * v:.2f}" if v is not None else "-" for v in (row["natural"], row["robust"], *(final.get(k) for k in finals))]


# ---- curves --------------------------------------------------------------------------------------------------------------


def plot_curves(
    histories: Mapping[str, Sequence[tuple[float, float, float]]], path: str | Path, *, title: str | None = None
) -> Path:
    """Draws natural (dashed) and robust (solid) accuracy of several methods over epochs as one PNG and returns its path.

    Args:
        histories: Name -> points (epoch, natural, robust), accuracies in [0, 1]; a diamond marks each method's best robust
            accuracy.
        path: File to write.
        title: Heading, None for none.

    Raises:
        ValueError: Where there is no point.
    """
    drawn = {name: sorted(points) for name, points in histories.items() if points}
    if not drawn:
        raise ValueError(f"histories has no points ({list(histories)}): give name -> [(epoch, natural, robust), ...].")
    figure = new_figure(6.6, 4.6)
    axes = epoch_axes(figure, "accuracy (%)")
    handles = []
    for i, (name, points) in enumerate(drawn.items()):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        epochs, natural, robust = ([100 * v if j else v for v in column] for j, column in enumerate(zip(*points)))
        every = max(1, len(points) // 12)
        axes.plot(epochs, natural, color=colour, linestyle=(0, (4, 2)), linewidth=1.4, alpha=0.75)
        axes.plot(epochs, robust, color=colour, marker=marker, markersize=4, markevery=every, linewidth=1.8)
        top = max(range(len(robust)), key=lambda k: robust[k])
        axes.plot([epochs[top]], [robust[top]], "D", color="white", markeredgecolor=colour, markeredgewidth=1.8, markersize=7)
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=5, linewidth=1.8, label=name))
    style = {"color": "#444444", "linewidth": 1.5}
    handles += [
        Line2D([], [], linestyle=(0, (4, 2)), label="natural", **style),  # type: ignore[arg-type]
        Line2D([], [], label="robust", **style),  # type: ignore[arg-type]
        Line2D([], [], linestyle="none", marker="D", markersize=7, color="white", markeredgecolor="#444444", label="best robust"),
    ]
    flat = [point for points in drawn.values() for point in points]
    _limits(axes, [point[0] for point in flat], [v for point in flat for v in point[1:]])
    figure.legend(handles=handles, loc="outside upper center", ncols=min(4, len(handles)), frameon=False, title=title)
    return save_figure(figure, path)


def plot_history(
    rows: Sequence[Mapping[str, float]], path: str | Path, *, kept: Mapping[str, float] | None = None,
    attacks: Sequence[str] = ("robust",),
) -> Path:  # fmt: skip
    """Draws one training: natural and robust accuracy over epochs, best and last marked, the gap between them; returns the path.

    Args:
        rows: Of `tracked`.
        path: File to write.
        kept: The row of the best checkpoint by held-out data.
        attacks: How the robust curve is called.
    """
    if not rows:
        raise ValueError("history is empty: there is nothing to draw.")
    figure = new_figure(7.0, 4.4)
    axes = epoch_axes(figure, "accuracy (%)")
    epochs = [row["epoch"] for row in rows]
    every = max(1, len(rows) // 15)
    lines = ((NATURAL, "natural", BLUE, "o"), (ROBUST, f"robust ({'+'.join(attacks)})", RED, "s"))
    for key, label, colour, marker in lines:
        axes.plot(epochs, [100 * row[key] for row in rows], color=colour, marker=marker, markersize=3.5, markevery=every,
                  linewidth=1.8, label=label)  # fmt: skip
    if all(HELD_ROBUST in row for row in rows):
        axes.plot(epochs, [100 * row[HELD_ROBUST] for row in rows], color=GREY, linewidth=1.2, linestyle=(0, (2, 2)),
                  zorder=1, label="robust, held-out (given labels)")  # fmt: skip
    last, oracle = rows[-1], best(rows, ROBUST)
    kept = kept or best(rows, HELD_ROBUST)
    assert oracle is not None
    axes.plot(oracle["epoch"], 100 * oracle[ROBUST], linestyle="none", marker="*", markersize=15, color="white",
              markeredgecolor=RED, markeredgewidth=1.5, zorder=4, label="best on test (oracle)")  # fmt: skip
    if kept is not None:
        axes.axvline(kept["epoch"], color=GREY, linewidth=1, alpha=0.6, zorder=0)
        axes.plot([kept["epoch"]] * 2, [100 * kept[NATURAL], 100 * kept[ROBUST]], linestyle="none", marker="D", markersize=7.5,
                  color="#f4d03f", markeredgecolor="#444444", zorder=5, label="best by held-out")  # fmt: skip
    axes.plot([last["epoch"]] * 2, [100 * last[NATURAL], 100 * last[ROBUST]], linestyle="none", marker="o", markersize=5.5,
              color="#444444", zorder=5, label="last")  # fmt: skip
    top = best(rows, NATURAL)
    assert top is not None
    span = max(epochs) - min(epochs) or 1.0
    for key, peak, colour in ((NATURAL, top, BLUE), (ROBUST, oracle, RED)):
        _gap(axes, peak, last, key, colour, span)
    _limits(axes, epochs, [row[key] for row in rows for key in (NATURAL, ROBUST, HELD_ROBUST) if key in row], right=0.17)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return save_figure(figure, path)


def _gap(axes: Any, peak: Mapping[str, float], last: Mapping[str, float], key: str, colour: str, span: float) -> None:
    """The fall from a curve's highest point to its last, right of the curve, in percentage points."""
    high, low = 100 * peak[key], 100 * last[key]
    x = last["epoch"] + 0.05 * span
    text = f"gap {high - low:.1f}"
    if peak["step"] != last["step"]:
        axes.plot([peak["epoch"], x], [high, high], color=colour, linewidth=0.9, linestyle=":", zorder=1)
    if high - low >= 1.5:
        arrow = {"arrowstyle": "<->", "color": colour, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8}
        axes.annotate("", (x, low), (x, high), arrowprops=arrow)
    axes.annotate(text, (x, (high + low) / 2), xytext=(6, 0), textcoords="offset points", color=colour, va="center", fontsize=9)


def _limits(axes: Any, epochs: Sequence[float], values: Sequence[float], right: float = 0.03) -> None:
    """Room for the curves: percent from the lowest to the highest, and a share of the width free at the right."""
    low, high = 100 * min(values), 100 * max(values)
    room = max(2.0, 0.08 * (high - low))
    axes.set_ylim(max(-1.0, low - room), min(101.0, high + room))
    span = max(epochs) - min(epochs) or 1.0
    axes.set_xlim(min(epochs) - 0.03 * span, max(epochs) + right * span)
    axes.set_xticks([tick for tick in axes.get_xticks() if min(epochs) - 0.03 * span <= tick <= max(epochs)])
