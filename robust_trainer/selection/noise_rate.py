"""``noise_rate="auto"``: the share of wrongly labelled samples, estimated while training, without clean data.

Some samples are held out of the updates at first, so that no prediction for them has seen their label. Where labels are wrong
independently of the sample within a class, and the right one is the commonest in each, such a prediction disagrees with the label
at least as often as labels are wrong: model errors only add to it; so for every set of samples chosen without looking at labels.
The estimate is the tightest of these upper bounds, over sets of confidently predicted samples. It errs high, the safe side; not so
where hard samples are mislabelled above all, or where the model learns to predict the wrong label (a backdoor's trigger).
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, replace

import torch
from torch import Tensor

KINDS = ("held-out", "confident-joint")
#: The most samples that are held out, and the largest share of the data set.
MOST, SHARE = 3000, 0.4
#: The sets: the most confident part of the samples within each predicted class.
SETS = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
#: The estimate is Z standard errors above the disagreement of its set; the interval reaches WIDE of them to both sides.
Z, WIDE = 1.0, 2.5
#: A set counts where its standard error is at most this, or the smallest of many would win by luck; for the interval, 1.5 of it.
PRECISION = 0.02
#: An epoch is still where the estimate has not sunk by STEP since it last did; PATIENCE of them in a row end the holding out.
STEP, PATIENCE = 0.01, 4
#: Where the estimate is above this part of the disagreement of labels with predictions drawn at random, nothing is learned yet.
BLIND = 0.9


@dataclass(frozen=True)
class RateEstimate:
    """An estimate of the share of wrongly labelled samples.

    Attributes:
        rate: the share, in [0, 1].
        low: lower end of its interval.
        high: upper end.
        n: number of samples that it rests on.
    """

    rate: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.rate:.2f} ({self.low:.2f} to {self.high:.2f})"


class RateEstimator:
    """Follows the held-out samples' predictions; one estimate per epoch.

    The first estimate comes with the first still epoch: while it sinks the model is learning, and to trim by it would be to trim
    what is hard. Later it may sink, as trimming makes the model better, and never rises, until it is ``settled``: nobody is held
    out, nothing changes. Settled and ``falling``: time was up before it stopped sinking, the truth may be far lower. ``blind``:
    predictions agree with labels hardly more often than chance; there is no estimate as long as that holds.

    Args:
        size: number of samples of the data set.
        classes: number of classes.
        device: where probabilities and labels are.
        kind: one of KINDS: ``held-out`` (`tightest_bound`) or ``confident-joint`` (from the same predictions; counts model errors
            as noise on hard data).
        seed: which samples are held out.
        max_epochs: of the run; after half of them holding out ends, whatever happened.
        spared: positions of samples that are not held out, less than half of all; None for none.

    Raises:
        ValueError: for an unknown kind.

    References:
        Northcutt, Jiang and Chuang 2021, "Confident learning" (``confident-joint``).
    """

    def __init__(
        self, size: int, classes: int, device: torch.device | str, kind: str = KINDS[0], seed: int = 0,
        max_epochs: float = math.inf, spared: Tensor | None = None,
    ):  # fmt: skip
        if kind not in KINDS:
            raise ValueError(f"unknown estimator {kind!r}: choose one of {', '.join(KINDS)}.")
        self.size, self.classes, self.kind = size, classes, kind
        self.half = max(1.0, max_epochs / 2)
        self.started = self.settled = self.falling = self.blind = self.warned = False
        self.best: RateEstimate | None = None
        self._asked, self._still, self._level = 0, 0, math.inf
        held = max(min(MOST, int(SHARE * size)), 1)
        row = torch.full((size,), held, dtype=torch.int16)  # everybody else shares one more row, which nobody reads
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        if spared is not None:
            order = order[~torch.isin(order, spared.cpu())]
        row[order[:held]] = torch.arange(held, dtype=torch.int16)
        self._row = row.to(device)
        self._probs = torch.zeros(held + 1, classes, device=device)
        self._facts = torch.tensor([[0, -1, -1]], dtype=torch.int32, device=device).repeat(held + 1, 1)  # visits, label, epoch

    def hold_out(self, index: Tensor) -> Tensor:
        """Returns which samples have weight 0 now, bool (B,). Without a host sync.

        Args:
            index: positions in the data set (B,).
        """
        return torch.zeros_like(index, dtype=torch.bool) if self.settled else self._row[index] < len(self._probs) - 1

    @torch.no_grad()
    def update(self, index: Tensor, probs: Tensor, labels: Tensor, epoch: int) -> None:
        """Takes in one step, gathered over the processes. Without a host sync.

        A sample that occurs again in an epoch counts once; its k-th visit weighs k.

        Args:
            index: positions in the data set (B,).
            probs: probabilities (B, C), predicted before the update.
            labels: the given labels (B,).
            epoch: number of the epoch, from 0.
        """
        if self.settled:
            return
        rows = self._row[index].long()
        facts, mean = self._facts[rows], self._probs[rows]
        probs, visits = probs.to(mean.dtype), facts[:, 0]
        fresh = ((facts[:, 2] != epoch) & probs.isfinite().all(1)).unsqueeze(1)
        new_facts = torch.stack([visits + 1, labels.to(facts.dtype), torch.full_like(visits, epoch)], 1)
        # plain assignment, so that a sample that occurs twice in one step counts once
        self._facts[rows] = torch.where(fresh, new_facts, facts)
        self._probs[rows] = torch.where(fresh, mean + (probs - mean) * (2.0 / (visits.unsqueeze(1) + 2.0)), mean)

    @torch.no_grad()
    def estimate(self, epoch: int) -> RateEstimate | None:
        """Returns the estimate so far, None while it is too early; asked again in an epoch, the same answer.

        Args:
            epoch: number of finished epochs.
        """
        seen = self._facts[:-1, 0] > 0
        if not self.settled and epoch > self._asked and bool(seen.any()):
            probs, labels = self._probs[:-1][seen], self._facts[:-1, 1][seen].long()
            bound = tightest_bound if self.kind == "held-out" else _off_diagonal
            now, was = bound(probs, labels, self.classes, self.size), self.best
            self.falling = now.rate < self._level - STEP
            self._level = now.rate if self.falling or not self.started else self._level
            self.best = was if was is not None and self.started and was.rate <= now.rate else now
            self._asked, self._still = epoch, 0 if self.falling else self._still + 1
            over = epoch > self.half - 1.0 or self.best.rate < STEP  # no time or no room to sink any further
            labelled, predicted = (torch.bincount(c, minlength=self.classes) / len(labels) for c in (labels, probs.argmax(1)))
            self.blind = self.best.rate > BLIND * float(1.0 - (labelled * predicted).sum())
            self.started = self.started or (not self.blind and (over or self._still > 0))
            self.settled = over or self._still >= PATIENCE
        return self.best if self.started else None

    def state(self) -> dict[str, Tensor]:
        """Returns everything that a resumed run needs, as CPU tensors."""
        best = (math.nan,) * 4 if self.best is None else astuple(self.best)
        flags = (self.started, self.settled, self.falling, self.blind, self._asked, self._still, self._level)
        numbers = torch.tensor([*flags, *best], dtype=torch.float64)
        tensors = {"row": self._row, "probs": self._probs, "facts": self._facts, "numbers": numbers}
        return {f"rate.{name}": tensor.clone().cpu() for name, tensor in tensors.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restores what `state` returned.

        Raises:
            ValueError: when it was made on a data set of another size.
        """
        if (was := (len(state["rate.row"]), state["rate.probs"].shape[1])) != (self.size, self.classes):
            has = f"{was[0]} rows and {was[1]} classes, not {self.size} and {self.classes}"
            raise ValueError(f"the checkpoint's noise rate is of {has}: resume with the same data set.")
        for name, tensor in (("row", self._row), ("probs", self._probs), ("facts", self._facts)):
            tensor.copy_(state[f"rate.{name}"])
        *flags, asked, still, self._level, rate, low, high, n = state["rate.numbers"].tolist()
        self.started, self.settled, self.falling, self.blind = map(bool, flags)
        self._asked, self._still = int(asked), int(still)
        self.best = None if math.isnan(rate) else RateEstimate(rate, low, high, int(n))


def tightest_bound(probs: Tensor, labels: Tensor, classes: int, size: int) -> RateEstimate:
    """Returns the tightest upper bound on the noise rate, over SETS.

    In a set, classes are weighed by their true shares: one with more noise is predicted less often.

    Args:
        probs: out-of-sample probabilities (n, C).
        labels: the given labels (n,).
        classes: C.
        size: number of samples of the data set, of which these are a part.
    """
    predicted = probs.argmax(1)
    doubt = probs.scatter(1, predicted.unsqueeze(1), 0.0).sum(1)  # 1 - confidence, exact near 0
    order = torch.argsort(doubt, stable=True)
    order = order[torch.argsort(predicted[order], stable=True)]
    predicted, labels = predicted[order].cpu(), labels[order].cpu()
    count, labelled = torch.bincount(predicted, minlength=classes), torch.bincount(labels, minlength=classes)
    # a class predicted less than half as often as given is not learned yet: what is missing counts as wrong
    missing = float((labelled / 2 - count).clamp_min(0).sum() / len(labels))
    place = (torch.arange(len(order)) - (count.cumsum(0) - count)[predicted] + 0.5) / count[predicted]
    best, low = RateEstimate(1.0, 1.0, 1.0, 0), 1.0
    for part in SETS:
        inside = place <= part
        rows, given = predicted[inside], labels[inside]
        members = torch.bincount(rows, minlength=classes).double().clamp_min(1e-9)
        share = _true_shares(rows, given, members, count * (members >= 1), labelled / len(labels))
        n = min(float(1.0 / (share.square() / members).sum()), len(labels)) if inside.any() else 0.0  # as if drawn by the shares
        right = torch.bincount(rows[rows == given], minlength=classes)
        rate = 1.0 - (1.0 - missing) * float((share * right / members).sum())
        (middle, error), (wide_middle, wide) = _wilson(rate, n, Z), _wilson(rate, n, WIDE)
        rough = 0.0 if part == SETS[-1] else error / Z / PRECISION
        if rough > 1.5:
            continue
        low = min(low, max(wide_middle - wide, 0.0))
        bound = min(middle + error * math.sqrt(max(1.0 - n / size, 0.0)), 1.0)  # the error is that of the rest of the data set
        if rough <= 1.0 and (bound < best.rate or not best.n):
            best = RateEstimate(bound, 0.0, min(max(wide_middle + wide, bound), 1.0), int(inside.sum()))
    return replace(best, low=min(low, best.rate))


def _true_shares(true: Tensor, given: Tensor, members: Tensor, count: Tensor, labelled: Tensor) -> Tensor:
    """The classes' true shares (C,) that explain those of the labels (C,); EM, cut short.

    By the samples (n,), not by a matrix of the classes' square: a sample of true class t and label g is 1 / members[t] of t's row.
    """
    share, part = count.double() / count.sum().clamp_min(1), 1.0 / members[true]
    for _ in range(5):
        told = torch.zeros_like(share).scatter_add_(0, given, share[true] * part).clamp_min(1e-12)
        share = share * torch.zeros_like(share).scatter_add_(0, true, part * (labelled.double() / told)[given])
        share = share / share.sum().clamp_min(1e-12)
    return share


def confident_joint(probs: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, float]:
    """Returns the joint distribution (C, C) of given (row) and true label, and the share of wrong labels: what is off the diagonal.

    Class j's threshold is the mean of p_j over the samples labelled j; a sample counts for the likeliest of the classes whose
    threshold it reaches, if any; each row is then scaled to the number of samples of that label. A row without counts goes to the
    diagonal.

    Args:
        probs: out-of-sample probabilities (N, C).
        labels: the given labels (N,).
        classes: C.

    References:
        Northcutt, Jiang and Chuang 2021, "Confident learning: estimating uncertainty in dataset labels", eq. 1 to 3.
    """
    n, probs = torch.bincount(labels, minlength=classes).double(), probs.double()
    total = probs.new_zeros(classes).scatter_add_(0, labels, probs.gather(1, labels.unsqueeze(1)).squeeze(1))
    threshold = torch.where(n > 0, total / n.clamp_min(1.0), torch.inf)
    best, likeliest = torch.where(probs >= threshold, probs, -1.0).max(1)
    pairs = (labels * classes + likeliest)[best >= 0]
    joint = torch.bincount(pairs, minlength=classes * classes).view(classes, classes).double()
    rows = joint.sum(1, keepdim=True)
    joint = torch.where(rows > 0, joint / rows.clamp_min(1.0), torch.eye(classes, dtype=joint.dtype, device=joint.device))
    joint = joint * (n / n.sum()).unsqueeze(1)
    return joint, max(float(1.0 - joint.diagonal().sum()), 0.0)


def _off_diagonal(probs: Tensor, labels: Tensor, classes: int, size: int) -> RateEstimate:
    present, labels = labels.cpu().unique(return_inverse=True)  # a class that no label has counts for nothing
    rate = confident_joint(probs.cpu()[:, present], labels, len(present))[1]
    middle, error = _wilson(rate, len(labels), WIDE)
    return RateEstimate(rate, max(middle - error, 0.0), min(middle + error, 1.0), len(labels))


def _wilson(share: float, n: float, z: float) -> tuple[float, float]:
    """Middle and half width of Wilson's interval for a share of n."""
    share, whole = min(max(share, 0.0), 1.0), n + z * z
    return (share * n + z * z / 2) / whole, z * math.sqrt(n * share * (1.0 - share) + z * z / 4) / whole
