"""Scores against the truth: figures, ROC and precision-recall curves; a histogram where the truth is not known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from ..reporting.figures import BLUE, GREY, RED, new_figure, open_axes, save_figure

_COLOURS = ("#2471a3", "#c0392b", "#1e8449", "#b9770e", "#6c3483", "#566573")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)))
#: Scores are drawn on a logarithmic axis where the largest is this many times the smallest.
WIDE = 30.0


def measure(truth: np.ndarray | None, scores: np.ndarray, predicted: np.ndarray) -> dict[str, float] | None:
    """Returns auc, average_precision, precision and recall, fractions; None where the truth is unknown or holds one kind alone.

    Args:
        truth: (n,) of 0 and 1, None where unknown.
        scores: (n,), higher is more abnormal.
        predicted: (n,) of 0 and 1.
    """
    if truth is None or len(np.unique(truth)) < 2:
        return None
    hits = float((predicted * truth).sum())
    return {
        "auc": float(roc_auc_score(truth, scores)), "average_precision": float(average_precision_score(truth, scores)),
        "precision": hits / max(int(predicted.sum()), 1), "recall": hits / int(truth.sum()),
    }  # fmt: skip


def plot_curves(
    truth: Any, scores: Mapping[str, Any], path: str | Path, *, thresholds: Mapping[str, float] | None = None,
    title: str | None = None,
) -> Path:  # fmt: skip
    """Draws the ROC curve and the precision-recall curve of each detector side by side as one PNG and returns its path.

    Args:
        truth: (n,) of 0 and 1, both of them.
        scores: Name -> (n,), higher is more abnormal.
        path: File to write.
        thresholds: Name -> the score beyond which a row counts as abnormal, marked by a circle. AUC is the area under the ROC
            curve, AP the average precision (scikit-learn).
        title: Heading, None for none.

    Raises:
        ValueError: Where the truth holds one kind alone, and for scores that do not fit it.
    """
    known = np.asarray(truth)
    if not scores or sorted(np.unique(known)) != [0, 1]:
        held = np.unique(known)[:3].tolist()
        raise ValueError(f"truth holds {held} and scores {len(scores)} detectors: curves need 0, 1 and one detector or more.")
    figure = new_figure(9.6, 4.7, title)
    left, right = figure.subplots(1, 2)
    share = float(known.mean())
    left.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (2, 2)))
    right.axhline(share, color=GREY, linewidth=1, linestyle=(0, (2, 2)))
    left.annotate("chance", (0.08, 0.08), xytext=(4, -2), textcoords="offset points", color=GREY, fontsize=8, va="top")
    above = share < 0.9
    right.annotate(f"chance: {share:.2g}", (0.012, share), xytext=(0, 3 if above else -3), textcoords="offset points",
                   color=GREY, fontsize=8, va="bottom" if above else "top")  # fmt: skip
    for number, (name, values) in enumerate(scores.items()):
        values = np.asarray(values, dtype=np.float64)
        style = {"color": _COLOURS[number % len(_COLOURS)], "linestyle": _DASHES[number // len(_COLOURS) % len(_DASHES)]}
        style |= {"linewidth": 1.8, "zorder": 3, "clip_on": False}
        label = str(name).replace("$", r"\$")
        fall_out, hits, _ = roc_curve(known, values)
        left.plot(fall_out, hits, label=f"{label}   AUC {roc_auc_score(known, values):.3f}", **style)
        precision, recall, _ = precision_recall_curve(known, values)
        precision[-1] = precision[-2]  # scikit-learn ends every curve at precision 1
        right.plot(recall, precision, drawstyle="steps-post", label=f"{label}   AP {average_precision_score(known, values):.3f}",
                   **style)  # fmt: skip
        if thresholds is not None and name in thresholds and (beyond := values > thresholds[name]).any():
            caught = float((beyond & (known == 1)).sum())
            mark = {"marker": "o", "markersize": 7, "color": "white", "markeredgecolor": style["color"], "markeredgewidth": 1.8}
            left.plot((beyond & (known == 0)).sum() / (known == 0).sum(), caught / known.sum(), zorder=5, clip_on=False, **mark)
            right.plot(caught / known.sum(), caught / beyond.sum(), zorder=5, clip_on=False, **mark)
    left.set(xlabel="false positive rate", ylabel="true positive rate (recall)", title="ROC")
    right.set(xlabel="recall", ylabel="precision", title="precision and recall")
    for axes, place in ((left, "lower right"), (right, "best")):
        axes.set(xlim=(0, 1), ylim=(0, 1.0), aspect="equal")
        axes.legend(loc=place, frameon=True, framealpha=0.85, edgecolor="none", fontsize=9)
    if thresholds:
        figure.supxlabel("circle: at the detector's threshold", fontsize=8, color=GREY)
    return _written(figure, path)


def plot_scores(
    scores: Any, threshold: float, path: str | Path, *, truth: Any = None, name: str = "detector", title: str | None = None
) -> Path:
    """Draws a histogram of scores (n,) with the threshold as one PNG and returns its path; curves if the truth holds both kinds.

    Counts are on a logarithmic axis; so are scores that are positive and far apart. Of others the far tail is one bar.

    Args:
        scores: (n,), higher is more abnormal.
        threshold: The score beyond which a row counts as abnormal.
        path: File to write.
        truth: (n,) of 0 and 1, None where unknown.
        name: Of the detector.
        title: Heading, None for none.


    Raises:
        ValueError: For scores that are empty or not finite.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"scores of {len(values)} rows, {int((~np.isfinite(values)).sum())} of them not finite: nothing to draw.")
    if truth is not None and len(np.unique(np.asarray(truth))) == 2:
        return plot_curves(truth, {name: values}, path, thresholds={name: threshold}, title=title)
    figure = new_figure(7.2, 4.2, title)
    axes = figure.add_subplot()
    shown, edges, logarithmic, cut = _bins(values, threshold)
    beyond = values > threshold
    parts = [shown[~beyond], shown[beyond]]
    labels = [f"normal: {int((~beyond).sum())} rows", f"abnormal: {int(beyond.sum())} rows"]
    axes.hist(parts, edges.tolist(), stacked=True, color=[BLUE, RED], label=labels, alpha=0.85, edgecolor="white", linewidth=0.4)
    axes.axvline(threshold, color="#333333", linewidth=1.4, linestyle=(0, (4, 2)), label=f"threshold {threshold:.4g}")
    if cut:
        axes.annotate(f"{cut} from here on", (edges[-2], 0.6), xytext=(-4, 0), textcoords="offset points", color=RED, fontsize=8,
                      ha="right", xycoords=("data", "axes fraction"))  # fmt: skip
    axes.set(xlabel="score (higher is more abnormal)", ylabel="rows", xlim=(edges[0], edges[-1]), yscale="log",
             xscale="log" if logarithmic else "linear")  # fmt: skip
    axes.set_ylim(bottom=0.7)
    axes.legend(loc="upper right", framealpha=0.85, edgecolor="none", fontsize=9)
    return _written(figure, path)


def _bins(values: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray, bool, int]:
    """The values to draw, the bars' edges, whether the axis is logarithmic, and how many values the last bar holds from beyond it.

    The threshold is an edge, so that each bar has one colour.
    """
    low, high = float(min(values.min(), threshold)), float(max(values.max(), threshold))
    logarithmic = low > 0 and high / low > WIDE
    cut = high
    if not logarithmic:
        tail = max(threshold, float(np.quantile(values, 0.9)))
        cut = min(high, tail + 4 * (tail - float(np.median(values)))) if tail > low else high
    room = np.log if logarithmic else np.asarray
    first, middle, last = (float(room(x)) for x in (low, threshold, cut))
    if first == last:
        return values, np.linspace(low - 0.5, high + 0.5, 12), False, 0
    pad = 0.01 * (last - first)
    first, last = first - pad, last + pad
    below, above = max(1, round(50 * (middle - first) / (last - first))), max(1, round(50 * (last - middle) / (last - first)))
    points = np.concatenate([np.linspace(first, middle, below + 1)[:-1], np.linspace(middle, last, above + 1)])
    edges = np.unique(np.exp(points) if logarithmic else points)
    edges[np.abs(edges - threshold).argmin()] = np.nextafter(threshold, np.inf)  # the threshold itself is normal
    return np.minimum(values, cut), edges, logarithmic, int((values > cut).sum())


def _written(figure: Any, path: str | Path) -> Path:
    for axes in figure.axes:
        open_axes(axes)
    return save_figure(figure, path)
