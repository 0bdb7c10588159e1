"""The figures of an audit in words, once, for the report and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..reporting.html import options_told, settings_told
from ..reporting.safe_text import plain
from .result import GROUPS, Audit

#: Said of the suspicion where the audit says nothing.
MEANING = (
    "Suspicion ranks the samples from 0 (nothing found) to 1 (most suspicious) by what the model made of them while it was "
    "trained. It is a reason to look at a sample, not a probability that it is wrong."
)
#: Said under the table of the run's results.
FILTER = "distrusted, precision, recall and AUROC: of the filter while it trained, not of this audit's flags."
#: Classes in the table, pairs of classes in the list, characters of a name and of a setting.
CLASSES, PAIRS, NAME, VALUE = 50, 20, 60, 1000
#: Samples closest to the boundary that are held against the known truth.
CLOSEST = 50
ROWS = 100  # of settings


@dataclass(frozen=True)
class ClassRow:
    """A class: its number, name, samples, flagged, samples of `GROUPS`, and what its flagged samples most often should be."""

    number: int
    name: str
    n: int
    flagged: int
    groups: tuple[int, ...]
    suggestion: str

    @property
    def rate(self) -> str:
        """The share of its samples that is flagged, in percent."""
        return share(self.flagged, self.n)


@dataclass(frozen=True)
class Pair:
    """Flagged samples given one class where another is suggested; share: of all that should be ``suggested``, '-' if unknown."""

    given: str
    suggested: str
    n: int
    share: str


@dataclass(frozen=True)
class Summary:
    """facts and groups: name and value in words. classes: those with samples, most flagged first. pairs: most frequent first.

    Args:
        known: What the flags are worth against the known truth, () where there is none.
    """

    n: int
    flagged: int
    facts: tuple[tuple[str, str], ...]
    groups: tuple[tuple[str, int, str], ...]
    known: tuple[tuple[str, str], ...]
    classes: tuple[ClassRow, ...]
    pairs: tuple[Pair, ...]
    meaning: str

    @property
    def headline(self) -> str:
        """The audit in one sentence."""
        if not self.flagged:
            return f"None of the {count(self.n)} samples is flagged."
        verb = "is" if self.flagged == 1 else "are"
        return f"{count(self.flagged)} of {count(self.n)} samples ({share(self.flagged, self.n)} %) {verb} flagged."


def count(n: int) -> str:
    """Returns a number of samples, with commas from 10,000 on.

    Args:
        n: A number.
    """
    return f"{n:,}" if n >= 10_000 else str(n)


def share(part: int, whole: int) -> str:
    """Returns a share in percent, '-' of nothing.

    Args:
        part: So many.
        whole: Of so many.
    """
    return "-" if not whole else f"{100 * part / whole:.1f}"


def class_name(audit: Audit, number: int) -> str:
    """Returns a class's name, safe to print; its number where it has none; 'no class' for -1.

    Args:
        audit: The audit.
        number: Number of the class.
    """
    if number < 0:
        return "no class"
    name = plain(audit.names[number], NAME) if number < len(audit.names) else ""
    return name or str(number)


def summarise(audit: Audit) -> Summary:
    """Returns the figures of an audit. Reads whole columns, without a loop over the samples.

    Args:
        audit: The audit.
    """
    label, suggested = (audit.column(name).astype(np.int64) for name in ("label", "suggested_label"))
    group = audit.group_numbers
    flagged = audit.column("flagged").astype(bool)
    n, flagged_count = len(audit), int(flagged.sum())
    by_group = np.bincount(group, minlength=len(GROUPS))[: len(GROUPS)].tolist()
    rate = _rate(audit)
    facts = [
        ("samples", count(n)), ("flagged", f"{count(flagged_count)} ({share(flagged_count, n)} %)"), ("estimated noise rate", rate),
        ("flagged from a suspicion of", f"{audit.threshold:.3f}"),
    ]  # fmt: skip
    if audit.trained:
        facts.append(("distrusted while training", count(int(audit.column("distrusted").sum()))))
    named = label >= 0
    if 0 < named.sum() < n:
        facts.append(("samples without a known class", count(int((~named).sum()))))
    facts += [*_boundary(audit), *_likeness(audit)]
    pairs, suggestions = _pairs(audit, label, suggested, flagged & named)
    return Summary(
        n, flagged_count, tuple(facts), tuple((name, by_group[i], share(by_group[i], n)) for i, name in enumerate(GROUPS)),
        _known(audit, flagged), _classes(audit, label[named], flagged[named], group[named], suggestions), pairs,
        plain(audit.meaning or MEANING, 2 * VALUE),
    )  # fmt: skip


def settings(audit: Audit, content: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Returns what the run was made with, name and value, cut to what can be shown.

    Args:
        audit: The audit.
        content: The run's `results.results`, None for none.
    """
    rows: list[tuple[str, Any]] = []
    known = {"names", "label_rate", *(("method", "settings", "seed", "rows") if content is not None else ())}
    if content is not None:
        rows += [(name, value) for name, value in options_told(content) if name != "command"]
        rows += [(f"method {name}", value) for name, value in settings_told(content["runs"])]
    rows += [(name, _flat(value)) for name, value in audit.run.items() if name not in known]
    return [(plain(name, NAME), plain(value, VALUE)) for name, value in rows[:ROWS]]


def versions(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the environment, name and value, cut to what can be shown.

    Args:
        environment: Of `results.environment`.
    """
    return [(plain(name, NAME), plain(value, VALUE)) for name, value in list(environment.items())[:ROWS]]


def _rate(audit: Audit) -> str:
    """The noise rate with its interval."""
    if audit.noise_rate is None:
        return "- (no classes)" if audit.trained else "unknown"
    interval = audit.noise_interval
    between = "" if interval is None else f" ({100 * interval[0]:.1f} to {100 * interval[1]:.1f} %)"
    return f"{100 * audit.noise_rate:.1f} %{between}"


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_flat(inner)}" for name, inner in value.items() if inner is not None)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _known(audit: Audit, flagged: np.ndarray) -> tuple[tuple[str, str], ...]:
    if "is_corrupted" not in audit.table.column_names:
        return ()
    corrupted = audit.column("is_corrupted").astype(bool)
    hits, flagged_count, all_of_them = int((flagged & corrupted).sum()), int(flagged.sum()), int(corrupted.sum())
    known = (
        ("corrupted", f"{count(all_of_them)} ({share(all_of_them, len(corrupted))} %)"),
        ("flagged of the corrupted (recall)", f"{count(hits)} ({share(hits, all_of_them)} %)"),
        ("corrupted of the flagged (precision)", f"{count(hits)} ({share(hits, flagged_count)} %)"),
    )
    if audit.paths is None:
        return known
    comparison = []
    by_suspicion = np.argsort(-audit.column("suspicion"), kind="stable")[:CLOSEST]
    for rows, name in ((audit.paths.closest(CLOSEST), "closest to the boundary"), (by_suspicion, "most suspicious")):
        right = int(corrupted[rows].sum())
        comparison.append((f"corrupted of the {len(rows)} {name}", f"{right} ({share(right, len(rows))} %)"))
    return (*known, *comparison)


def _boundary(audit: Audit) -> list[tuple[str, str]]:
    """What the path lengths say of all samples."""
    if audit.paths is None:
        return []
    steps = audit.paths.steps[audit.paths.order]
    if not len(steps):
        return []
    at = int((steps == 0).sum())
    middle = int(np.quantile(steps, 0.5, method="lower"))
    shown = f"more than {audit.paths.max_steps}" if middle > audit.paths.max_steps else str(middle)
    beyond = f"{count(at)} ({share(at, len(steps))} %)"
    return [("median path to the boundary", f"{shown} steps"), ("beyond the boundary already", beyond)]


def _likeness(audit: Audit) -> list[tuple[str, str]]:
    """What the near-duplicates are, in this split and in others."""
    if (alike := audit.likeness) is None:
        return []
    groups = alike.groups
    odd = sum(bool(alike.conflicts[rows[0]]) for rows in groups)
    facts = [("near-duplicates", f"{count(int((alike.group >= 0).sum()))} in {count(len(groups))} groups")]
    facts += [("groups of them with different labels", count(odd))] if groups else []
    for split, (pairs, differ) in alike.copies.items():
        other = "" if differ is None or not differ.any() else f", {count(int(differ.sum()))} with another label"
        told = f"{count(len(pairs))} ({share(len(pairs), alike.sizes[split])} %){other}"
        facts.append((f"rows of {plain(split, NAME)} with a near-duplicate here", told))
    return facts


def _classes(
    audit: Audit, label: np.ndarray, flagged: np.ndarray, group: np.ndarray, suggestions: Mapping[int, str]
) -> tuple[ClassRow, ...]:
    classes = max(len(audit.names), int(label.max(initial=-1)) + 1)
    sizes, hits = np.bincount(label, minlength=classes), np.bincount(label[flagged], minlength=classes)
    width = len(GROUPS)
    groups = np.bincount(label * width + np.minimum(group, width - 1), minlength=classes * width).reshape(classes, width)
    order = [int(c) for c in np.argsort(-hits, kind="stable") if sizes[c]]
    return tuple(
        ClassRow(c, class_name(audit, c), int(sizes[c]), int(hits[c]), tuple(groups[c].tolist()), suggestions.get(c, "-"))
        for c in order
    )


def _pairs(
    audit: Audit, label: np.ndarray, suggested: np.ndarray, chosen: np.ndarray
) -> tuple[tuple[Pair, ...], dict[int, str]]:  # fmt: skip
    """The most frequent pairs among the flagged samples, and per given class the most common suggestion."""
    chosen = chosen & (suggested >= 0) & (suggested != label)
    label, suggested = label[chosen], suggested[chosen]
    classes = int(max(label.max(initial=0), suggested.max(initial=0))) + 1
    codes, counts = np.unique(label * classes + suggested, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    codes, counts = codes[order], counts[order]
    pairs = tuple(
        Pair(class_name(audit, c // classes), class_name(audit, c % classes), k, _share_of(audit, c % classes, c // classes))
        for c, k in zip(codes[:PAIRS].tolist(), counts[:PAIRS].tolist())
    )
    labels, first = np.unique(codes // classes, return_index=True)
    common = {g: f"{class_name(audit, int(codes[i]) % classes)} ({counts[i]})" for g, i in zip(labels.tolist(), first.tolist())}
    return pairs, common


def _share_of(audit: Audit, true: int, label: int) -> str:
    if audit.transition is None or max(true, label) >= len(audit.transition):
        return "-"
    value = float(audit.transition[true, label])
    return f"{100 * value:.1f}" if np.isfinite(value) else "-"
