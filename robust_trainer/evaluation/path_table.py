"""Path lengths of a data set as a table: ordered, in buckets, written, read and plotted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..reporting.atomic_files import replacing
from ..reporting.figures import drawable, literal, new_figure, save_figure
from ..reporting.safe_text import plain
from ..reporting.untrusted import Column, Table

_MEND = "write one with to_parquet"
_WHOLE = Column("integer", -1, 2**31)
_COLUMNS = {
    "path_length": _WHOLE, "path_margin": Column("number"), "label": _WHOLE, "target": _WHOLE, "path_ended": _WHOLE,
}  # fmt: skip
#: ``steps`` of a sample that has no path, since its label is the target already.
NO_PATH = -1


#: Classes up to which `PathLengths.plot` tells them apart.
MOST_CLASSES = 20


@dataclass(frozen=True, eq=False)
class PathLengths:
    """Path lengths of N samples, in the order of the data set.

    steps (N,): steps until the prediction is another than the label (untargeted) or is the target; 0: it is so at the start;
    ``max_steps`` + 1: not within so many; -1: the label is the target. margin (N,): z_y - max_{k != y} z_k (targeted:
    max_{k != t} z_k - z_t) at the start, in logits. labels, targets (N,): targets -1 for untargeted. ended (N,): the prediction at
    the end. step_size in [0, 1] pixels; the l_inf (l_2) distance to the boundary is at most ``steps * step_size``.
    run: the id of the run whose model and data they are of, None where it is not known.
    """

    steps: np.ndarray
    margin: np.ndarray
    labels: np.ndarray
    targets: np.ndarray
    ended: np.ndarray
    step_size: float
    norm: str
    max_steps: int
    class_names: tuple[str, ...] = ()
    run: str | None = None

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def reached(self) -> np.ndarray:
        """Whether the prediction flipped, (N,)."""
        return (self.steps >= 0) & (self.steps <= self.max_steps)

    @property
    def order(self) -> np.ndarray:
        """Rows that have a path, the closest to the boundary first: by steps, then by the margin at the start."""
        rows = np.flatnonzero(self.steps != NO_PATH)
        return rows[np.lexsort((self.margin[rows], self.steps[rows]))]

    def closest(self, count: int = 5, label: int | None = None) -> np.ndarray:
        """The ``count`` rows closest to the boundary (of one class): the likeliest label errors of Crafting sec. 4.10.1.

        Args:
            count: How many.
            label: Of this class alone; None: of all.
        """
        order = self.order
        return order[:count] if label is None else order[self.labels[order] == label][:count]

    def farthest(self, count: int = 5, label: int | None = None) -> np.ndarray:
        """The ``count`` rows farthest from the boundary (of one class), the farthest first.

        Args:
            count: How many.
            label: Of this class alone; None: of all.
        """
        order = self.order[::-1]
        return order[:count] if label is None else order[self.labels[order] == label][:count]

    def buckets(self, count: int, label: int | None = None, by: str = "samples") -> list[np.ndarray]:
        """Rows in ``count`` disjoint buckets of rising path length (Crafting sec. 4.10.3).

        by ``samples``: as many in each; ``steps``: ranges of equal width from the shortest to the longest path, so buckets may be
        empty.

        Args:
            count: How many.
            label: Of this class alone; None: of all.
            by: ``samples`` or ``steps``.


        Raises:
            ValueError: For more buckets than samples.
        """
        rows = self.closest(len(self), label)
        if not isinstance(count, int) or not 1 <= count <= max(len(rows), 1):
            raise ValueError(f"count={count!r} buckets of {len(rows)} samples: give a whole number from 1 to {max(len(rows), 1)}.")
        if by == "samples":
            return np.array_split(rows, count)
        if by != "steps":
            raise ValueError(f"by={by!r} is unknown: choose samples or steps.")
        ends = np.linspace(self.steps[rows].min(), self.steps[rows].max() + 1, count + 1)[1:-1]
        place = np.searchsorted(ends, self.steps[rows], side="right")
        return [rows[place == i] for i in range(count)]

    def to_pandas(self) -> pd.DataFrame:
        """One row per sample: index, label, target, path_length, path_margin, path_ended."""
        return pd.DataFrame(
            {
                "index": np.arange(len(self)), "label": self.labels, "target": self.targets, "path_length": self.steps,
                "path_margin": self.margin, "path_ended": self.ended,
            }
        )  # fmt: skip

    def to_parquet(self, path: str | Path) -> None:
        """Writes `to_pandas` and the settings, for `load_paths`.

        Args:
            path: File to write.
        """
        table = self.to_pandas()
        table.attrs = {
            "step_size": self.step_size, "norm": self.norm, "max_steps": self.max_steps, "class_names": list(self.class_names),
            "run": self.run,
        }  # fmt: skip
        with replacing(path) as new:
            table.to_parquet(new)

    def plot(self, path: str | Path) -> None:
        """Writes a picture: per class how many samples have which path length (figures 14 and 16).

        Args:
            path: File to write.
        """
        labels = self.labels[self.steps != NO_PATH]
        classes = np.unique(labels).tolist()
        figure = new_figure(7, 4, dpi=120)
        axes = figure.add_subplot()
        top = int(self.steps.max())
        bins = np.linspace(-0.5, top + 0.5, min(top + 2, 60)).tolist()
        for c in classes if len(classes) <= MOST_CLASSES else []:
            name = drawable(plain(self.class_names[c], 24)) if c < len(self.class_names) else str(c)
            axes.hist(self.steps[(self.labels == c) & (self.steps != NO_PATH)], bins, histtype="step", label=name, linewidth=1.3)
        if len(classes) > MOST_CLASSES:
            axes.hist(self.steps[self.steps != NO_PATH], bins, histtype="step", label=f"all {len(classes)}", linewidth=1.3)
        axes.set_xlabel(f"path length (steps of {self.step_size:g} in {self.norm}, [0, 1] pixels)")
        axes.set_ylabel("samples")
        literal(axes.legend(title="label", ncols=2 if len(classes) > 5 else 1, fontsize="small"))
        save_figure(figure, path)


def load_paths(path: str | Path) -> PathLengths:
    """Returns what `PathLengths.to_parquet` wrote.

    Args:
        path: File to read.

    Raises:
        ValueError: For another file.
    """
    try:
        table = Table(path, _MEND)
        facts = table.facts(b"PANDAS_ATTRS")
        steps, start, labels, targets, ended = table.columns(_COLUMNS).values()
        names, run = facts["class_names"], facts.get("run")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("its class names are no texts")
        if not isinstance(run, str | None) or not isinstance(facts["norm"], str):
            raise ValueError("its run or norm is no text")
        rest = (facts["step_size"], facts["norm"], facts["max_steps"], tuple(names), run)
        return PathLengths(steps, start, labels, targets, ended, *rest)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"paths={str(path)!r} is no file of path lengths ({plain(error, 150)}): {_MEND}.") from error
