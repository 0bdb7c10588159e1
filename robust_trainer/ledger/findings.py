"""What a run found out about its labels and what it did about them, in figures and in words: read from the ledger's columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evidence.decision import DOUBTED, WHOLE
from ..reporting.safe_text import plain
from ..selection.noise_rate import RateEstimate
from .class_counts import NAME
from .ledger import SampleLedger

#: Fewer doubted rows of a class do not tell how its wrong labels are spread.
FEWEST = 10
#: Of a class's wrong labels so many are one and the same: the class is taken for one other; or for a few others.
ONE_OTHER, FEW_OTHERS = 0.6, 0.35
#: Of the rows with a shared pattern so many have one label: a trigger with one target class.
ONE_TARGET = 0.8
#: Classes and pairs of classes that are listed; and those that a sentence names.
LISTED, NAMED = 10, 3


@dataclass(frozen=True)
class LabelFindings:
    """What was found about N given labels, and what training did with the rows.

    Attributes:
        rows: N.
        known: whether features said anything about the labels; if not, nothing was done.
        rate: the share of wrong labels with its interval.
        carriers: rows that share a pattern, such as a trigger.
        targets: (class, rows) of the labels that these have, the commonest first.
        spread: how the other wrong labels are spread: ``one``, each class is taken for one other; ``few``, for a few others;
            ``all``, for any other; ``two``, there are but two classes; '' where too few are doubted to tell.
        pairs: (right class as suggested, given class, rows), the commonest first.
        classes: (given class, its rows, those of them that are doubted), the most doubted first.
        left_out: rows that are not trained on.
        relabelled: rows that are trained as the suggested class.
        weighted: rows that count for less than a whole one, `WHOLE`.
        names: of the classes.
    """

    rows: int
    known: bool
    rate: RateEstimate
    carriers: int
    targets: tuple[tuple[int, int], ...]
    spread: str
    pairs: tuple[tuple[int, int, int], ...]
    classes: tuple[tuple[int, int, int], ...]
    left_out: int
    relabelled: int
    weighted: int
    names: Sequence[str] = ()

    @property
    def found(self) -> str:
        """What was found, in a sentence; safe to print."""
        if not self.known:
            return "The features say too little about the labels, or too few rows are there: no label is doubted."
        rate = self.rate
        share = f"About {100 * rate.rate:.1f} % of the labels are wrong ({100 * rate.low:.1f} to {100 * rate.high:.1f} %)"
        parts = []
        if self.carriers:
            label, most = self.targets[0]
            one = most >= ONE_TARGET * self.carriers
            what = f"nearly all labelled {self._name(label)}" if one else f"with labels of {len(self.targets)} classes"
            parts.append(f"{self.carriers:,} rows share a pattern, as triggers are, {what}")
        shown = ", ".join(f"{self._name(right)} labelled {self._name(given)} ({n:,})" for right, given, n in self.pairs[:NAMED])
        other = "other wrong labels" if self.carriers else "wrong labels"
        told = {
            "one": f"{other} turn each class into one other: {shown}", "few": f"{other} turn a class into a few others: {shown}",
            "all": f"{other} are spread over the classes", "two": f"{other}: {shown}",
        }  # fmt: skip
        parts += [told[self.spread]] if self.spread else []
        return f"{'; '.join([share, *parts])}."

    @property
    def done(self) -> str:
        """What was done, in a sentence."""
        if not self.known:
            return "All rows are trained on as they are."
        out, other, less = (100 * n / max(self.rows, 1) for n in (self.left_out, self.relabelled, self.weighted))
        return (
            f"{out:.1f} % of the rows are left out, {other:.1f} % are trained as the suggested class, {less:.1f} % count for less."
        )

    @property
    def kind(self) -> str:
        """What is suspected: ``unknown``, ``none``, ``trigger``, ``wrong labels`` or ``trigger, wrong labels``."""
        if not self.known:
            return "unknown"
        kinds = ["trigger"] * bool(self.carriers) + ["wrong labels"] * bool(self.spread)
        return ", ".join(kinds) or ("none" if self.rate.rate < 0.01 else "wrong labels")

    def record(self) -> dict[str, Any]:
        """Returns all of it for results.json: shares in [0, 1], classes by name."""
        n = max(self.rows, 1)
        return {
            "known": self.known, "rate": self.rate.rate, "low": self.rate.low, "high": self.rate.high, "kind": self.kind,
            "spread": self.spread, "carriers": self.carriers, "left_out": self.left_out / n, "relabelled": self.relabelled / n,
            "weighted": self.weighted / n, "found": self.found, "done": self.done,
            "classes": [{"class": self._name(c), "samples": rows, "doubted": bad} for c, rows, bad in self.classes],
            "pairs": [{"suggested": self._name(s), "given": self._name(g), "samples": rows} for s, g, rows in self.pairs],
        }  # fmt: skip

    def _name(self, number: int) -> str:
        return plain(self.names[number], NAME) if number < len(self.names) else str(number)


def label_findings(ledger: SampleLedger, rate: RateEstimate | None) -> LabelFindings | None:
    """Returns what a run found about its labels; None for a run that judged none.

    Args:
        ledger: of the run.
        rate: share of wrong labels, as the run estimated it; None where nothing is known of the labels.
    """
    if "label_wrong" not in ledger.columns:
        return None
    columns = {name: ledger.columns[name].cpu().numpy() for name in ("label_wrong", "weight", "target", "suggested", "carrier")}
    label = (ledger.columns["label"] if ledger.given is None else ledger.given).cpu().numpy().astype(np.int64)
    known, carrier = rate is not None, columns["carrier"].astype(bool)
    doubted = (columns["label_wrong"] > DOUBTED) & (label >= 0)
    moved = (columns["target"] != label) & (columns["target"] >= 0) & (label >= 0) & (columns["weight"] > 0)
    out = columns["weight"] == 0
    classes = int(max(label.max(initial=0), columns["suggested"].max(initial=0))) + 1
    targets = _counted(label[carrier & (label >= 0)])
    other = doubted & ~carrier & (columns["suggested"] != label) & (columns["suggested"] >= 0)
    pairs = _counted(columns["suggested"][other].astype(np.int64) * classes + label[other])
    rows, bad = (np.bincount(label[chosen], minlength=classes) for chosen in (label >= 0, doubted))
    order = np.argsort(-bad / np.maximum(rows, 1), kind="stable")
    return LabelFindings(
        rows=len(label), known=known, rate=rate or RateEstimate(0.0, 0.0, 1.0, len(label)),
        carriers=int(carrier.sum()), targets=tuple(targets),
        spread=_spread(columns["suggested"][other], label[other], int((rows > 0).sum())),
        pairs=tuple((code // classes, code % classes, n) for code, n in pairs[:LISTED]),
        classes=tuple((int(c), int(rows[c]), int(bad[c])) for c in order[:LISTED] if bad[c]),
        left_out=int(out.sum()), relabelled=int(moved.sum()), weighted=int((~out & ~moved & (columns["weight"] < WHOLE)).sum()),
        names=tuple(ledger.run.get("names") or ()),
    )  # fmt: skip


def _counted(codes: np.ndarray) -> list[tuple[int, int]]:
    """Each number that occurs, and how often; the commonest first."""
    values, counts = np.unique(codes, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(int(values[i]), int(counts[i])) for i in order]


def _spread(right: np.ndarray, given: np.ndarray, classes: int) -> str:
    """How wrong labels are spread, as `LabelFindings.spread`."""
    tops, n = 0, 0
    for c in np.unique(right):
        counts = np.bincount(given[right == c])
        if counts.sum() >= FEWEST:
            tops, n = tops + int(counts.max()), n + int(counts.sum())
    if not n:
        return ""
    if classes == 2:
        return "two"
    return "one" if tops >= ONE_OTHER * n else "few" if tops >= FEW_OTHERS * n else "all"
