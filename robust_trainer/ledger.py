"""The sample ledger: what training learned about every training sample, one row per position in the data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import datasets

_SCORES = ("last_score", "mean_score", "ema_score")
_COUNTS = ("seen", "kept", "label", "predicted", "epoch", "doubt")


class SampleLedger:
    """Scores and decisions per sample: 37 bytes a row, kept on the training device, equal on every process.

    Columns: last_score, mean_score (running mean over all epochs), ema_score, seen and kept (counts), label (given),
    predicted (class, at the last visit), epoch (of the last visit), keep (decision in force, methods with memory), doubt (visits
    where the filter left the sample out, minus those where it kept it, since it drops at least half of its final share).
    A sample that a distributed sampler repeats within an epoch is recorded once.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu", ema_decay: float = 0.5):
        self.ema_decay = ema_decay
        # two tables, so that a step reads and writes each once; the columns are views of them
        self._scores = torch.zeros(size, len(_SCORES), device=device)
        self._counts = torch.zeros(size, len(_COUNTS), dtype=torch.int32, device=device)
        self._counts[:, 2:5] = -1
        self.columns: dict[str, Tensor] = {name: self._scores[:, i] for i, name in enumerate(_SCORES)}
        self.columns.update({name: self._counts[:, i] for i, name in enumerate(_COUNTS)})
        self.columns["keep"] = torch.ones(size, dtype=torch.bool, device=device)
        self.truth: Tensor | None = None

    def __len__(self) -> int:
        return self.columns["seen"].numel()

    def __getattr__(self, name: str) -> Tensor:
        columns = self.__dict__.get("columns", {})
        if name in columns:
            return columns[name]
        raise AttributeError(name)

    @torch.no_grad()
    def record(
        self, index: Tensor, scores: Tensor, weights: Tensor, labels: Tensor, predicted: Tensor, epoch: int, judging: bool = True
    ) -> None:
        """Writes one step: all of shape (B,), gathered over the processes. Without a host sync.

        judging: whether being left out counts as distrust, which it does not while a ramp has hardly begun.
        """
        counts, remembered = self._counts[index], self._scores[index]
        fresh = (counts[:, 4] != epoch).unsqueeze(1)  # not yet seen in this epoch
        seen, scores = counts[:, 0], scores.float()
        mean, ema = remembered[:, 1], remembered[:, 2]
        mean = mean + (scores - mean) / (seen + 1)
        ema = torch.where(seen == 0, scores, self.ema_decay * ema + (1.0 - self.ema_decay) * scores)
        kept = counts[:, 1] + (weights > 0)
        doubt = counts[:, 5] + (1 - 2 * (weights > 0).int()) * int(judging)
        now = torch.full_like(seen, epoch)
        new_counts = torch.stack([seen + 1, kept, labels.to(seen.dtype), predicted.to(seen.dtype), now, doubt], 1)
        # plain assignment, so that a sample that occurs twice in one step counts once
        self._counts[index] = torch.where(fresh, new_counts, counts)
        self._scores[index] = torch.where(fresh, torch.stack([scores, mean, ema], 1), remembered)

    def memory(self, kind: str) -> Tensor:
        """The remembered scores (N,): ``mean`` or ``ema``."""
        return self.columns[f"{kind}_score"]

    def distrusted(self) -> Tensor:
        """Which samples were left out in more than half of the visits that `doubt` counts, bool (N,)."""
        return self.columns["doubt"] > 0

    def detection(self) -> dict[str, float]:
        """AUROC, precision and recall of distrust against the known truth; empty when the truth is not known.

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

    def to_dataset(self) -> datasets.Dataset:
        """One row per sample, in data-set order: index, the columns, distrusted, and is_corrupted where it is known."""
        import datasets

        c = {name: column.cpu().numpy() for name, column in self.columns.items()}
        rows: dict[str, np.ndarray] = {"index": np.arange(len(self), dtype=np.int64)}
        rows.update({k: c[k] for k in ("label", "predicted", "seen", "kept", "last_score", "mean_score", "ema_score")})
        rows["distrusted"] = self.distrusted().cpu().numpy()
        if self.truth is not None:
            rows["is_corrupted"] = self.truth.cpu().numpy()
        return datasets.Dataset.from_dict(rows)

    def to_parquet(self, path: str | Path) -> Path:
        """Writes `to_dataset` as one parquet file and returns its path."""
        self.to_dataset().to_parquet(str(path))
        return Path(path)

    def state(self) -> dict[str, Tensor]:
        """The columns as CPU tensors for a checkpoint."""
        return {f"ledger.{name}": column.cpu() for name, column in self.columns.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restores `state`. Raises ``ValueError`` when it was made on a data set of another size."""
        size = state["ledger.seen"].numel()
        if size != len(self):
            raise ValueError(
                f"the checkpoint's ledger has {size} rows but train_dataset has {len(self)}: resume with the same data set."
            )
        for name, column in self.columns.items():
            column.copy_(state[f"ledger.{name}"])


def auroc(scores: Tensor, positive: Tensor) -> float | None:
    """Area under the ROC curve of scores (N,) for bool labels (N,), ties counted half; None without both classes or with NaN."""
    from sklearn.metrics import roc_auc_score

    if bool(positive.all()) or not bool(positive.any()) or not bool(torch.isfinite(scores).all()):
        return None
    return float(roc_auc_score(positive.cpu().numpy(), scores.cpu().numpy()))
