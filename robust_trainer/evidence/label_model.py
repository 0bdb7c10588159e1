"""What each label should be, and which labels are given for which: a noise transition fitted to leave-one-out predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from ..selection.noise_rate import RateEstimate
from .neighbours import Neighbours, find_neighbours, normalise
from .rate import wrong_label_rate
from .ridge import LeaveOneOutRidge

#: Neighbours that are found and, of these, the nearest whose labels help the linear model.
NEIGHBOURS, NEAREST = 50, 20
#: Sharpness of the softmax over linear scores; the weight of the neighbours' votes beside them, and what keeps their log finite.
SHARPNESS, VOTE_WEIGHT, VOTE_FLOOR = tuple(np.geomspace(2.0, 60.0, 9)), 0.5, 0.02
#: Sharpness of a softmax over the log of given probabilities, 1 being their own; the least of these whose log is taken.
TEMPERS, LEAST_PROB = tuple(np.geomspace(0.25, 4.0, 9)), 1e-4
#: No class is less likely than this part of 1 / C.
FLOOR = 0.005
#: Labels counted before any is seen, of each class: right ones, and ones spread over the classes by their frequency.
RIGHT, SPREAD = 2.0, 0.5
STEPS = 15
#: Rounds of predictions and fits that say who is doubted, and after which the rate is looked at once more.
ROUNDS, LATE_ROUNDS = 2, 3
#: Features tell far more where they explain so many times the variance of the labels. A pretrained network's explain 1.4 to 3 times
#: as much of photographs at 128 pixels as of the same at 64, a small one's from scratch 1.0 to 1.4 times of digits enlarged.
FAR_MORE = 1.3
#: Rows that the transition and the sharpness are fitted on.
FITTED = 10_000
#: Up to so many rows neighbours are searched among all of them, beyond among so many.
EXACT, SEARCHED = 200_000, 50_000


@dataclass(frozen=True)
class LabelModel:
    """What N rows' labels should be.

    Attributes:
        probs: probability of each class before a row's own label is looked at, (N, C).
        posterior: the same after it was looked at, (N, C).
        transition: probability of each given label (column) for each right one (row), (C, C).
        rate: share of wrong labels.
        first: leave-one-out predictions made from the given labels alone, (N, C).
        votes: shares of the NEIGHBOURS nearest rows' given labels, (N, C).
        doubts: the classes that the transition says before it is scaled to the rate, (N,): whom to compare with whom.
        neighbours: of each row, NEIGHBOURS of them; None where probabilities were given.
    """

    probs: Tensor
    posterior: Tensor
    transition: Tensor
    rate: RateEstimate
    first: Tensor
    votes: Tensor
    doubts: Tensor
    neighbours: Neighbours | None
    _sharpness: float
    _ridge: LeaveOneOutRidge | None = None
    _features: Tensor | None = None
    _penalty: float = 1.0

    def predict(self, others: Tensor) -> Tensor:
        """Returns each class's probability for rows that the model was not made of, (Q, C).

        Args:
            others: features (Q, D), normalised as those of the model; or given probabilities (Q, C), where it was made of such.
        """
        if not len(others):
            return self.probs[:0]
        if self._ridge is None or self._features is None:
            return _tempered(others, self._sharpness)
        near = find_neighbours(self._features, NEAREST, queries=others, normalised=True)
        scores = self._ridge.predict(self.posterior, self._penalty, others)
        return _probabilities(scores, soft_votes(near, self.posterior, NEAREST), self._sharpness)


def fit_label_model(features: Tensor, labels: Tensor, classes: int, seed: int = 0, rate: RateEstimate | None = None) -> LabelModel:
    """Returns the model of N rows' labels, from their features and the labels given to them.

    Twice: leave-one-out predictions of a ridge regression and of the nearest neighbours, as probabilities, with a noise transition
    fitted to the given labels by expectation maximisation; the second time from the first's posterior in the labels' place. Then
    the transition is moved towards or away from the identity until the mean posterior says the rate of `wrong_label_rate`.

    That rate is of the first predictions, which nothing but the given labels has touched. Where many rows of one class are wrong
    and alike, as those with a trigger are, these predictions agree with them, and those of a third round may not: where the
    interval of their rate lies above the first's, it is the rate, and the third round's posterior counts.

    Args:
        features: (N, D) of length 1 (`neighbours.normalise`).
        labels: int64 (N,) in [0, C).
        classes: C, >= 2.
        seed: of the rows that the transition is fitted on, of many.
        rate: the share of wrong labels where it is known; None: it is estimated.

    References:
        Dawid and Skene 1979, "Maximum likelihood estimation of observer error-rates using the EM algorithm"; Zhu, Song and Liu
        2021, "Clusterability as an alternative to anchor points when learning with noisy labels" (neighbours that share a label).
    """
    ridge, near = LeaveOneOutRidge(features), _neighbours(features, seed)
    targets = torch.nn.functional.one_hot(labels, classes).float()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:FITTED].to(labels.device)
    every = soft_votes(near, targets, NEIGHBOURS)
    rounds = [_one_round(ridge, near, targets, labels, order)]
    while len(rounds) < (ROUNDS if rate is not None else LATE_ROUNDS):
        rounds.append(_one_round(ridge, near, rounds[-1].posterior, labels, order))
    first, last = rounds[0].scores, rounds[ROUNDS - 1]
    if rate is None:
        rate, late = (rate_of(r.scores, labels, classes) for r in (rounds[0], rounds[-1]))
        if late.low > rate.high:
            rate, last = late, rounds[-1]
    transition = scale_transition(last.probs, labels, last.transition, rate.rate)
    return LabelModel(
        last.probs, _posterior(last.probs, labels, transition), transition, rate, first, every, last.posterior.argmax(1), near,
        last.sharpness, ridge, features, last.penalty,
    )  # fmt: skip


@dataclass(frozen=True)
class _Round:
    """Leave-one-out predictions from some posterior (N, C), and the transition that explains the given labels by them."""

    scores: Tensor
    probs: Tensor
    posterior: Tensor
    transition: Tensor
    sharpness: float
    penalty: float


def _one_round(ridge: LeaveOneOutRidge, near: Neighbours, posterior: Tensor, labels: Tensor, order: Tensor) -> _Round:
    penalty = ridge.best_penalty(posterior)
    scores, votes = ridge.left_out(posterior, penalty), soft_votes(near, posterior, NEAREST)
    fits = [_fit_transition(_probabilities(scores[order], votes[order], a), labels[order]) for a in SHARPNESS]
    best = max(range(len(fits)), key=lambda i: fits[i][1])
    probs = _probabilities(scores, votes, SHARPNESS[best])
    return _Round(scores, probs, _posterior(probs, labels, fits[best][0]), fits[best][0], SHARPNESS[best], penalty)


def fit_probabilities(
    given_probs: Tensor, labels: Tensor, classes: int, seed: int = 0, rate: RateEstimate | None = None
) -> LabelModel:
    """Returns the model of N rows' labels from probabilities of the classes in the place of features: otherwise `fit_label_model`.

    Args:
        given_probs: (N, C), of a model that has not seen the row's own label, as in cross-validation.
        labels: int64 (N,) in [0, C).
        classes: C, >= 2.
        seed: of the rows that the transition is fitted on, of many.
        rate: the share of wrong labels where it is known; None: it is estimated.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:FITTED].to(labels.device)
    fits = [_fit_transition(_tempered(given_probs[order], a), labels[order]) for a in TEMPERS]
    best = max(range(len(fits)), key=lambda i: fits[i][1])
    transition, probs = fits[best][0], _tempered(given_probs, TEMPERS[best])
    doubts = _posterior(probs, labels, transition).argmax(1)
    rate = rate_of(given_probs.clamp_min(LEAST_PROB).log(), labels, classes) if rate is None else rate
    transition = scale_transition(probs, labels, transition, rate.rate)
    posterior = _posterior(probs, labels, transition)
    return LabelModel(probs, posterior, transition, rate, given_probs, given_probs, doubts, None, TEMPERS[best])


def _neighbours(features: Tensor, seed: int) -> Neighbours:
    """The NEIGHBOURS nearest rows; of many rows, without the library for such searches, the nearest of a part of them."""
    if len(features) <= EXACT or find_spec("faiss") is not None:
        return find_neighbours(features, NEIGHBOURS, normalised=True)
    among = torch.zeros(len(features), dtype=torch.bool)
    among[torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:SEARCHED]] = True
    return find_neighbours(features, NEIGHBOURS, normalised=True, among=among, index="exact")


def neighbours_votes(features: Tensor, labels: Tensor, classes: int, seed: int = 0) -> Tensor:
    """Returns the shares of the NEIGHBOURS nearest rows' labels, (N, C).

    Args:
        features: (N, D) of length 1 (`neighbours.normalise`).
        labels: int64 (N,) in [0, C).
        classes: C.
        seed: of the rows that are searched, of many.
    """
    return soft_votes(_neighbours(features, seed), torch.nn.functional.one_hot(labels, classes).float(), NEIGHBOURS)


def most_telling(candidates: Sequence[Tensor], labels: Tensor, classes: int) -> Tensor:
    """Returns those features of which a ridge regression predicts the labels with the least leave-one-out squared error, (N, D).

    Args:
        candidates: one or more features of the same N rows, any scale.
        labels: int64 (N,).
        classes: C.
    """
    if len(candidates) == 1:
        return candidates[0]
    targets = torch.nn.functional.one_hot(labels, classes).float()

    def error(features: Tensor) -> float:
        ridge = LeaveOneOutRidge(normalise(features))
        return float((ridge.left_out(targets, ridge.best_penalty(targets)) - targets).square().sum(dtype=torch.float64))

    return min(candidates, key=error)


def tells_more(features: Tensor, others: Tensor, labels: Tensor, classes: int) -> bool:
    """Returns whether one set of features predicts the labels far better than another, beyond chance.

    Far better: the share of the labels' variance that a ridge regression explains, leaving out each row in turn, is `FAR_MORE`
    times that of the others. Beyond chance: the mean difference of the rows' errors is more than two of its standard errors.

    Args:
        features: (N, D), any scale, N >= 2.
        others: of the same rows.
        labels: int64 (N,).
        classes: C.
    """
    targets = torch.nn.functional.one_hot(labels, classes).float()
    errors = []
    for rows in (features, others):
        ridge = LeaveOneOutRidge(normalise(rows))
        errors.append((ridge.left_out(targets, ridge.best_penalty(targets)) - targets).square().sum(1).double())
    n = len(labels)
    spread = ((targets - targets.mean(0)) * (n / (n - 1))).square().sum(dtype=torch.float64)  # of a mean without the row
    explained = [float(1.0 - error.sum() / spread.clamp_min(1e-9)) for error in errors]
    less = errors[1] - errors[0]
    return explained[0] > FAR_MORE * max(explained[1], 0.0) and bool(less.mean() > 2.0 * less.std() / n**0.5)


def rate_of(scores: Tensor, labels: Tensor, classes: int) -> RateEstimate:
    """Returns the share of wrong labels from scores that have not seen them.

    Args:
        scores: (N, C), higher is likelier.
        labels: (N,).
        classes: C.
    """
    if len(labels) == 0:
        return RateEstimate(0.0, 0.0, 1.0, 0)
    top = scores.topk(2, 1)
    margins = (top.values[:, 0] - top.values[:, 1]).cpu().numpy()
    return wrong_label_rate(margins, (top.indices[:, 0] != labels).cpu().numpy(), classes)


def soft_votes(near: Neighbours, shares: Tensor, k: int) -> Tensor:
    """Returns the similarity-weighted mean of the k nearest rows' class shares, (N, C); zeros where nobody is similar.

    Args:
        near: neighbours of N rows.
        shares: (rows searched, C).
        k: neighbours that vote.
    """
    out = []
    size = max(1, 2**24 // max(k * shares.shape[1], 1))
    for index, similarity in zip(near.index[:, :k].split(size), near.similarity[:, :k].split(size)):
        weight = similarity.to(shares.device).clamp_min(0.0)
        sums = torch.bmm(weight.unsqueeze(1), shares[index.to(shares.device)]).squeeze(1)
        out.append(sums / weight.sum(1, keepdim=True).clamp_min(1e-9))
    return torch.cat(out) if out else shares[:0]


def _tempered(given_probs: Tensor, sharpness: float) -> Tensor:
    """Given probabilities made sharper or softer."""
    p = (sharpness * given_probs.clamp_min(LEAST_PROB).log()).softmax(1)
    return p * (1.0 - FLOOR) + FLOOR / p.shape[1]


def _probabilities(scores: Tensor, votes: Tensor, sharpness: float) -> Tensor:
    p = (sharpness * scores + VOTE_WEIGHT * torch.log(votes + VOTE_FLOOR)).softmax(1)
    return p * (1.0 - FLOOR) + FLOOR / p.shape[1]


def _posterior(probs: Tensor, labels: Tensor, transition: Tensor) -> Tensor:
    joint = probs * transition.T[labels]
    return joint / joint.sum(1, keepdim=True).clamp_min(1e-12)


def _fit_transition(probs: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """The transition (C, C) of highest posterior density for these labels, and the log of that density."""
    classes = probs.shape[1]
    counts = torch.bincount(labels, minlength=classes).to(probs.dtype)
    eye = torch.eye(classes, device=probs.device)
    prior = SPREAD * (counts / counts.sum()).expand(classes, classes) + RIGHT * eye
    transition = 0.6 * eye + 0.4 / classes
    for _ in range(STEPS):
        found = torch.zeros_like(eye).index_add_(1, labels, _posterior(probs, labels, transition).T) + prior
        transition = found / found.sum(1, keepdim=True)
    likelihood = torch.log((probs * transition.T[labels]).sum(1).clamp_min(1e-12)).sum(dtype=torch.float64)
    return transition, float(likelihood + (prior * torch.log(transition.clamp_min(1e-12))).sum(dtype=torch.float64))


def scale_transition(probs: Tensor, labels: Tensor, transition: Tensor, rate: float) -> Tensor:
    """Returns the transition between the identity and beyond by which the mean posterior of a wrong label is the rate, or near it.

    Beyond what was fitted no class loses more than half of its right labels: else one whose labels were doubted most, few rows
    perhaps, would have none left, and all of them be doubted.

    Args:
        probs: (N, C).
        labels: (N,).
        transition: (C, C).
        rate: in [0, 1]; 0 gives the identity.
    """
    eye = torch.eye(len(transition), device=transition.device)
    if rate <= 0.0:
        return eye
    right = transition.diagonal()
    most = ((1.0 - right / 2) / (1.0 - right).clamp_min(1e-6)).unsqueeze(1)  # a larger one would blur the search below

    def moved(times: float) -> Tensor:
        return (eye + most.clamp_max(times) * (transition - eye)).clamp_min(0.0)

    low, high = 0.0, float(most.max())
    for _ in range(30):
        middle = (low + high) / 2
        wrong = float(1.0 - _posterior(probs, labels, moved(middle)).gather(1, labels.unsqueeze(1)).mean())
        low, high = (low, middle) if wrong > rate else (middle, high)
    return moved(low)
