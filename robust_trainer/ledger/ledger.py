"""The sample ledger: what training learned about every training sample, one row per position in the data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from ..reporting.parquet_files import write_parts
from .margins import LOGIT_MARGIN, MARGIN, QUANTA, follow_rival, forgotten
from .parts import Parts, WholeColumns

_SCORES = ("last_score", "mean_score", "ema_score", "aum", "margin")
_COUNTS = ("seen", "kept", "label", "predicted", "epoch", "doubt", "forgetting", "rival", "rival_confidence", "nonfinite")
_START = (0, 0, -1, -1, -1, 0, -1, -1, 0, 0)
#: Columns of labels that were judged by features.
JUDGED = ("label_wrong", "weight", "target", "suggested", "suggested_confidence", "carrier")
#: Rows that are made ready for a file at a time.
_WRITTEN = 100_000
#: Below this, class numbers and epochs fit into 16 bits.
_NARROW = 2**15


class SampleLedger:
    """Scores and decisions per sample: 41 bytes a row, kept on the training device, equal on every process.

    Of many rows (`parts.PARTS_FROM`) each of several processes keeps a part while they train. A column is brought together when it
    is read, which all processes must do; after training all rows are on every process again, in the host's memory.

    Columns: last_score, mean_score (running mean over all epochs), ema_score, seen and kept (counts), label (given),
    predicted (class, at the last visit), epoch (of the last visit), keep (decision in force, methods with memory), doubt (visits
    where the filter left the sample out, minus those where it kept it, since it drops at least half of its final share).
    nonfinite counts the visits in which score or outputs were NaN or infinite.
    For class labels also aum and margin (running means of the given label's margin in logits and in probabilities), forgetting,
    rival and rival_confidence (`margins`): of the step's first forward, so on the inputs as they came in methods that attack.

    Guarantee: a sample that a distributed sampler repeats within an epoch is recorded once.

    Attributes:
        truth: which samples are known to be corrupted, bool (N,), None where that is not known.
        given: the given labels (N,) where the data set tells them before training, else None.

    Args:
        size: rows of the data set.
        device: of the training.
        ema_decay: weight of the past in ``ema_score``, in [0, 1).
        wide: counts in 32 bits (61 bytes a row), for 2**15 classes or epochs and more.
        classes: to keep the running mean of each sample's predicted probabilities as well, ``mean_probs`` (N, classes), 4 bytes
            each; None: not kept.
        networks: M; of several, each one's loss at the last visit is kept, ``network_loss`` (N, M), 4 bytes each.
        judged: whether what was judged of the labels is kept as well (`step.evidence`), 22 bytes a row.
        run: facts about the training, for the files that the ledger is written to.
        parts: who holds which rows, None where all rows are here. ``keep``, what was judged and ``truth`` are whole everywhere.
    """

    def __init__(
        self,
        size: int,
        device: torch.device | str = "cpu",
        ema_decay: float = 0.5,
        wide: bool = False,
        classes: int | None = None,
        networks: int = 1,
        judged: bool = False,
        run: Mapping[str, Any] | None = None,
        parts: Parts | None = None,
    ):
        self.ema_decay = ema_decay
        self.run = dict(run or {})
        self._size, self._parts = size, parts
        self._gathered: dict[str, Tensor] = {}
        held = size if parts is None else parts.rows + 1  # the last takes visits of rows that others hold
        # two tables, so that a step reads and writes each once; the columns are views of them
        self._scores = torch.zeros(held, len(_SCORES), device=device)
        counts = torch.tensor(_START, dtype=torch.int32 if wide else torch.int16, device=device)
        self._counts = counts.repeat(held, 1)
        self._columns: dict[str, Tensor] = {}
        self._view_tables()
        if classes is not None:
            self._columns["mean_probs"] = torch.zeros(held, classes, device=device)
        if networks > 1:
            self._columns["network_loss"] = torch.zeros(held, networks, device=device)
        self._in_parts = frozenset(self._columns)
        self._columns["keep"] = torch.ones(size, dtype=torch.bool, device=device)
        if judged:
            numbers = {"label_wrong": 0.0, "weight": 1.0, "suggested_confidence": 0.0}
            self._columns.update({name: torch.full((size,), value, device=device) for name, value in numbers.items()})
            self._columns.update(
                {name: torch.full((size,), -1, dtype=torch.int32, device=device) for name in ("target", "suggested")}
            )
            self._columns["carrier"] = torch.zeros(size, dtype=torch.bool, device=device)
            self._columns["trusted"] = torch.ones(size, dtype=torch.bool, device=device)
        self.before_read: Callable[[], None] | None = None
        self.truth: Tensor | None = None
        self.given: Tensor | None = None

    def _view_tables(self) -> None:
        self._columns.update({name: self._scores[:, i] for i, name in enumerate(_SCORES)})
        self._columns.update({name: self._counts[:, i] for i, name in enumerate(_COUNTS)})

    @property
    def mean_probs(self) -> Tensor | None:
        """The running mean of each sample's predicted probabilities (N, C), None where it is not kept."""
        return self.columns.get("mean_probs")

    @property
    def in_parts(self) -> bool:
        """Whether this process holds a part of the rows alone."""
        return self._parts is not None

    @property
    def keeps_probs(self) -> bool:
        """Whether it keeps `mean_probs`."""
        return "mean_probs" in self._columns

    @property
    def columns(self) -> MutableMapping[str, Tensor]:
        """All columns by their names, with the visits of the steps so far."""
        if self.before_read is not None:
            self.before_read()
        if self._parts is None:
            return self._columns
        return WholeColumns(self._columns, self._in_parts, self._parts, self._gathered)

    def settle(self) -> None:
        """Takes up the visits that wait and lets go of the training that they came from: for a training that is over."""
        if self.before_read is not None:
            self.before_read()
        self.before_read = None

    @contextmanager
    def gathered(self, here: bool = True, names: Sequence[str] | None = None) -> Iterator[None]:
        """Within it all parts are together in the host's memory, so that this process can read them by itself.

        All processes must enter it. Where all rows are here already it does nothing.

        Args:
            here: whether this process wants them.
            names: of the columns, None for all.
        """
        if self._parts is not None and not self._gathered:
            columns = self.columns
            here = here or (names is None and "network_loss" in columns)  # all processes ask which network is the best
            found = ((name, columns[name]) for name in sorted(self._in_parts if names is None else names))
            self._gathered = {name: column.cpu() for name, column in found if here}
        try:
            yield
        finally:
            self._gathered = {}  # or one process would read these where the others bring a column together

    def unite(self) -> None:
        """Brings all parts together for good, all rows on every process. All processes must call it, after the last visit."""
        if self._parts is None:
            return
        with self.gathered():
            columns, self._parts = self._gathered, None
        self._scores, self._counts = (torch.stack([columns[n] for n in names], 1) for names in (_SCORES, _COUNTS))
        self._columns.update({name: columns[name] for name in self._in_parts})
        self._columns.update({name: column.cpu() for name, column in self._columns.items()})
        self._view_tables()

    @property
    def keep(self) -> Tensor:
        """The decision in force, bool (N,); no visit changes it."""
        return self._columns["keep"]

    def __len__(self) -> int:
        return self._size

    def rivals(self, index: Tensor) -> Tensor:
        """Returns the column ``rival`` at some rows (B,), without a host sync. All processes must ask, for B rows each.

        Args:
            index: positions (B,).
        """
        return self.rival[index] if self._parts is None else self._parts.looked_up(self._columns["rival"], index)

    @staticmethod
    def needs_wide(classes: int | None, epochs: float) -> bool:
        """Returns whether class numbers or epochs do not fit into 16 bits; a number of classes that is not known may not.

        Args:
            classes: None where unknown.
            epochs: of the training.
        """
        return not classes or classes >= _NARROW or epochs >= _NARROW - 1

    def __getattr__(self, name: str) -> Tensor:
        if name in self.__dict__.get("_columns", {}):
            return self.columns[name]
        raise AttributeError(name)

    @torch.no_grad()
    def record(
        self, index: Tensor, scores: Tensor, weights: Tensor, labels: Tensor, predicted: Tensor, epoch: int,
        filter_active: bool = True, margins: Tensor | None = None, probs: Tensor | None = None, losses: Tensor | None = None,
        finite: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Writes one step, gathered over the processes, without a host sync; a sample counts once an epoch.

        Args:
            index: positions (B,).
            scores: (B,).
            weights: (B,), above 0 for a sample that was trained on.
            labels: the samples' classes (B,), -1 for none.
            predicted: classes (B,), -1 for none.
            epoch: finished epochs.
            filter_active: whether being left out counts as distrust, which it does not while a ramp has hardly begun.
            margins: of `margins.trace` (B, 5), for class labels.
            probs: predicted probabilities (B, C), for a ledger that keeps their means.
            losses: of each of several networks (B, M).
            finite: whose outputs were finite in all of the step's forwards, above 0 (B,); None: whose score is.
        """
        if self._parts is not None:
            index = self._parts.places(index)
        counts, remembered = self._counts[index], self._scores[index]
        fresh = (counts[:, 4] != epoch).unsqueeze(1)  # not yet seen in this epoch
        seen, scores = counts[:, 0], scores.float()
        _, mean, ema, aum, margin = remembered.unbind(1)
        mean = mean + (scores - mean) / (seen + 1)
        ema = torch.where(seen == 0, scores, self.ema_decay * ema + (1.0 - self.ema_decay) * scores)
        kept = counts[:, 1] + (weights > 0)
        doubt = counts[:, 5] + (1 - 2 * (weights > 0).int()) * int(filter_active)
        labels, predicted = labels.to(seen.dtype), predicted.to(seen.dtype)
        events, rival, confidence = counts[:, 6], counts[:, 7], counts[:, 8]
        if margins is not None:
            margins = margins.float()
            aum = aum + (margins[:, LOGIT_MARGIN] - aum) / (seen + 1)
            margin = margin + (margins[:, MARGIN] - margin) / (seen + 1)
            events = forgotten(events, seen, counts[:, 3] == counts[:, 2], predicted == labels)
            rival, confidence = follow_rival(rival, confidence, seen, margins)
        now = torch.full_like(seen, epoch)
        nonfinite = counts[:, 9] + ~(scores.isfinite() if finite is None else scores.isfinite() & (finite > 0))
        new_counts = torch.stack([seen + 1, kept, labels, predicted, now, doubt, events, rival, confidence, nonfinite], 1)
        # plain assignment, so that a sample that occurs twice in one step counts once
        self._counts[index] = torch.where(fresh, new_counts.to(counts.dtype), counts)
        self._scores[index] = torch.where(fresh, torch.stack([scores, mean, ema, aum, margin], 1), remembered)
        if (every := self._columns.get("mean_probs")) is not None and probs is not None:
            means = every[index]
            every[index] = torch.where(fresh, means + (probs - means) / (seen + 1).unsqueeze(1), means)
        if (each := self._columns.get("network_loss")) is not None and losses is not None:
            each[index] = losses.float()

    def distrusted(self) -> Tensor:
        """Returns which samples were left out in more than half of the visits that `doubt` counts, bool (N,).

        Where labels were judged: those whose given label is not trusted, visited or not.
        """
        columns = self.columns
        return ~columns["trusted"] if "trusted" in columns else columns["doubt"] > 0

    def network_losses(self) -> list[float] | None:
        """Returns each of several networks' mean loss, at the last visits, on the samples that are not distrusted; else None.

        Where all that was seen is distrusted, on all that was seen; None before the first visit.
        """
        columns = self.columns
        if "network_loss" not in columns or not bool((seen := columns["seen"] > 0).any()):
            return None
        losses = columns["network_loss"]
        trusted = seen & ~self.distrusted()
        return losses[trusted if bool(trusted.any()) else seen].double().mean(0).tolist()

    def detection(self) -> dict[str, float]:
        """Returns AUROC, precision and recall of distrust against the known truth; empty when the truth is not known.

        AUROC: of the mean score. Samples never seen are left out.
        """
        if self.truth is None:
            return {}
        seen = self.columns["seen"] > 0
        truth = self.truth.to(seen.device)[seen]
        flagged = self.distrusted()[seen]
        positives, hits = int(truth.sum()), int((truth & flagged).sum())
        out = {"precision": hits / max(int(flagged.sum()), 1), "recall": hits / max(positives, 1)}
        area = auroc(self.columns["mean_score"][seen], truth)
        return out if area is None else {**out, "auroc": area}

    def rows(self, at: slice | Tensor = slice(None)) -> dict[str, np.ndarray]:
        """Returns the columns, one entry per sample in data-set order, with index, distrusted and, where it is known, is_corrupted.

        Counts as int32; rival_confidence in [0, 1]; aum and margin NaN where there was no class label or no visit.

        Args:
            at: positions (n,), or a stretch of them; all without.
        """
        return self._rows(self.columns, at)

    def _rows(self, columns: Mapping[str, Tensor], at: slice | Tensor) -> dict[str, np.ndarray]:
        c = {name: column[at].cpu().numpy() for name, column in columns.items()}
        rows: dict[str, np.ndarray] = {"index": torch.arange(len(self))[at].numpy()}
        rows.update({name: c[name].astype(np.int32) for name in ("label", "predicted", "seen", "kept")})
        rows.update({name: c[name] for name in ("last_score", "mean_score", "ema_score")})
        known = (c["seen"] > 0) & (c["rival"] >= 0)
        rows.update({name: np.where(known, c[name], np.float32(np.nan)) for name in ("aum", "margin")})
        rows.update({name: c[name].astype(np.int32) for name in ("forgetting", "rival", "nonfinite")})
        rows["rival_confidence"] = c["rival_confidence"].astype(np.float32) / QUANTA
        rows.update({name: c[name] for name in JUDGED if name in c})
        if "mean_probs" in c:
            rows["mean_probs"] = c["mean_probs"]
        rows["distrusted"] = ~c["trusted"] if "trusted" in c else c["doubt"] > 0
        if self.truth is not None:
            rows["is_corrupted"] = self.truth[at].cpu().numpy()
        return rows

    def to_dataset(self) -> datasets.Dataset:
        """Returns `rows` as a data set."""
        return datasets.Dataset.from_dict(self.rows())

    def distrusted_rows(self) -> datasets.Dataset:
        """Returns the rows of `to_dataset` that are distrusted, the likeliest wrong or else the highest mean score first."""
        columns = self.columns
        flagged = self.distrusted().nonzero().flatten()
        scores = columns["label_wrong" if "label_wrong" in columns else "mean_score"][flagged].cpu().numpy()
        order = torch.from_numpy(np.argsort(-scores, kind="stable")).to(flagged.device)
        return datasets.Dataset.from_dict(self._rows(columns, flagged[order]))

    def to_parquet(self, path: str | Path) -> Path:
        """Writes `to_dataset` as one parquet file, whole or not at all, with ``run`` in its metadata.

        Args:
            path: of the file.

        Returns:
            Its path.
        """
        columns = dict(self.columns)  # of a ledger in parts each is brought together once
        starts = range(0, max(len(self), 1), _WRITTEN)
        parts = (datasets.Dataset.from_dict(self._rows(columns, slice(start, start + _WRITTEN))) for start in starts)
        return write_parts(parts, datasets.Dataset.from_dict(self._rows(columns, slice(0))).features, path, self.run)

    def state(self) -> dict[str, Tensor]:
        """Returns the columns as CPU tensors for a checkpoint."""
        return {f"ledger.{name}": column.cpu() for name, column in self.columns.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restores `state`.

        Args:
            state: of a ledger with the same columns.

        Raises:
            ValueError: for one of a data set of another size, without some column, or with one of another shape.
        """
        missing = [name for name in self._columns if f"ledger.{name}" not in state]
        if missing:
            raise ValueError(
                f"the checkpoint's ledger has no {', '.join(missing)}: give the ledger's settings that it was made with, or start "
                "a new run (an earlier version kept fewer columns)."
            )
        size = state["ledger.seen"].numel()
        if size != len(self):
            raise ValueError(
                f"the checkpoint's ledger has {size} rows but train_dataset has {len(self)}: resume with the same data set."
            )
        for name, column in self._columns.items():
            saved, shape = state[f"ledger.{name}"], (size, *column.shape[1:])
            if saved.shape != shape or saved.is_floating_point() != column.is_floating_point():
                raise ValueError(
                    f"the checkpoint's ledger is damaged ({name} is {tuple(saved.shape)} of {saved.dtype}, expected "
                    f"{shape} of {column.dtype}): resume from another checkpoint."
                )
            if self._parts is not None and name in self._in_parts:
                saved = self._parts.mine(saved)
                column = column[: len(saved)]
            column.copy_(saved)


def auroc(scores: Tensor, positive: Tensor) -> float | None:
    """Returns the area under the ROC curve, ties counted half; None without both classes or with NaN.

    Args:
        scores: (N,), higher where positive is expected.
        positive: bool (N,).
    """
    if bool(positive.all()) or not bool(positive.any()) or not bool(torch.isfinite(scores).all()):
        return None
    values, known = scores.cpu().numpy(), positive.cpu().numpy().astype(bool)
    hits, rest = np.sort(values[known]), np.sort(values[~known])
    below, upto = (int(np.searchsorted(rest, hits, side).sum()) for side in ("left", "right"))
    return (below + upto) / 2 / (len(hits) * len(rest))  # scipy.stats costs a second to import
