"""Tokens of texts that are tied to one label: words of a class, or a trigger. What the rest of their texts says tells which.

A trigger of a text is plain to see in a sentence encoder's features, which then agree with the label that comes with it; nobody is
doubted. Without these tokens the text is the one that it was: it says another class, as clearly as other texts say theirs, and is
as much like others as these. What is left of the texts of a class whose word was taken out says little and is like nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .neighbours import normalise
from .ridge import LeaveOneOutRidge

#: Tokens in fewer rows, or in a smaller share of all, tell nothing; in a larger one they are no trigger.
FEWEST, LEAST, MOST = 20, 0.01, 0.5
#: So large a share of a token's rows has one label, so many standard deviations more than by chance.
PURE, BEYOND = 0.75, 4.0
#: A token goes with another one that so large a share of its rows has, so many times the others' share.
TOGETHER, TIMES = 0.8, 2.0
#: Groups that are looked at.
GROUPS = 12
#: Most rows of a trigger say another class without it, so many standard deviations more than others do.
DOUBTED, SURELY = 0.5, 5.0
#: How clearly (the margin between the two likeliest classes) and how like others, in shares of what is usual. Of MiniLM on 1,000
#: texts of CLINC150 and SST-2 words of a class have 0.1 to 0.7 and 0.5 to 0.8, triggers 0.7 to 1.1 and 1.0 to 1.1.
AS_CLEAR, AS_LIKE = 0.6, 0.85
#: Other rows' labels must be predicted that well, beyond chance (kappa), or what is said of any row means little.
TELLING = 0.4
#: So many rows of its label a trigger's tokens are not in.
OUTSIDE = 5
#: Rows that others are compared with, and that say what is usual.
COMPARED = 5_000


@dataclass(frozen=True)
class TiedTokens:
    """Tokens that go together and with one label.

    Attributes:
        tokens: which of the V tokens, bool (V,).
        rows: the rows that have them, bool (N,).
        label: that most of these have.
    """

    tokens: np.ndarray
    rows: np.ndarray
    label: int


def tied_tokens(present: np.ndarray, labels: np.ndarray, classes: int) -> list[TiedTokens]:
    """Returns the groups of tokens that are tied to one label, those first that bring it the most rows beyond chance.

    Args:
        present: which tokens each row has, bool (N, V).
        labels: given class numbers (N,) in [0, C).
        classes: C.
    """
    size = len(labels)
    counts = present.sum(0)
    eligible = np.flatnonzero((counts >= max(FEWEST, LEAST * size)) & (counts <= MOST * size))
    if not len(eligible):
        return []
    found = present[:, eligible].astype(np.float32)
    of_class = np.stack([found[labels == c].sum(0) for c in range(classes)])  # exact: sums of ones
    label, most, own = of_class.argmax(0), of_class.max(0), counts[eligible]
    share = np.bincount(labels, minlength=classes)[label] / size
    excess = most - own * share
    tied = (most >= PURE * own) & (excess >= BEYOND * np.sqrt(np.maximum(own * share * (1 - share), 1e-9)))
    order = [i for i in np.argsort(-excess, kind="stable") if tied[i]]
    groups, seen, covered = list[TiedTokens](), np.zeros(present.shape[1], dtype=bool), np.zeros(size, dtype=bool)
    for i in order:
        if len(groups) == GROUPS:
            break
        if seen[eligible[i]]:
            continue
        group = _group(present, int(eligible[i]), int(label[i]))
        seen |= group.tokens
        if (covered | group.rows).mean() <= MOST:
            covered |= group.rows
            groups.append(group)
    return groups


def _group(present: np.ndarray, token: int, label: int) -> TiedTokens:
    """A token with those that nearly all of its rows have and few others do, and the rows that have nearly all of them."""
    rows = present[:, token]
    inside, outside = present[rows].mean(0), present[~rows].mean(0)
    tokens = (inside >= TOGETHER) & (inside >= TIMES * outside)
    tokens[token] = True
    return TiedTokens(tokens, rows & (present[:, tokens].mean(1) >= TOGETHER), label)


def triggers_among(groups: list[TiedTokens], without: Tensor, labels: np.ndarray, classes: int, seed: int = 0) -> list[TiedTokens]:
    """Returns those groups whose rows say another class than their label, and say it like other rows, once the tokens are gone.

    The purest are judged first, and their rows are none of the others' any more: usual words of a trigger's sentence are in other
    texts, too.

    Args:
        groups: of `tied_tokens`.
        without: features of all rows (N, D), of the groups' rows without the groups' tokens.
        labels: given class numbers (N,) in [0, C).
        classes: C.
        seed: of the rows that are compared, of many.
    """
    features = normalise(without)
    found, taken = list[TiedTokens](), np.zeros(len(labels), dtype=bool)
    for group in sorted(groups, key=lambda g: (-float((labels[g.rows] == g.label).mean()), int(g.rows.sum()))):
        rest = replace(group, rows=group.rows & ~taken)
        if int(rest.rows.sum()) >= FEWEST and _is_trigger(rest, ~group.rows & ~taken, features, labels, classes, seed):
            found.append(rest)
            taken |= rest.rows
    return found


def _is_trigger(group: TiedTokens, free: np.ndarray, features: Tensor, labels: np.ndarray, classes: int, seed: int) -> bool:
    """Whether the group's rows, judged by those that are free (N,), say other classes as these do. features: (N, D) of length 1."""
    others = np.flatnonzero(free)
    if len(others) < 2 * FEWEST or int((labels[others] == group.label).sum()) < OUTSIDE:
        return False  # a word that all texts of a class have is no trigger, and without these nothing is known of the class
    if len(others) > COMPARED:
        others = np.sort(np.random.default_rng(seed).choice(others, COMPARED, replace=False))
    rest, given = features[others], torch.from_numpy(labels[others]).to(features.device)
    targets = torch.nn.functional.one_hot(given, classes).float()
    ridge = LeaveOneOutRidge(rest)
    penalty = ridge.best_penalty(targets)
    usual = ridge.left_out(targets, penalty)
    doubts = float((usual.argmax(1) != given).float().mean())
    shares = [np.bincount(x.cpu().numpy(), minlength=classes) / len(others) for x in (given, usual.argmax(1))]
    chance = float(shares[0] @ shares[1])
    if 1.0 - doubts - chance < TELLING * (1.0 - chance):
        return False
    rows = torch.from_numpy(np.flatnonzero(group.rows)).to(features.device)
    said = ridge.predict(targets, penalty, features[rows])
    wrong = float((said.argmax(1).cpu().numpy() != labels[group.rows]).mean())
    error = np.sqrt(max(doubts * (1 - doubts), 1.0 / len(others)) / len(rows))
    if wrong < DOUBTED or wrong - doubts < SURELY * error:
        return False
    if float(_margin(said).median()) < AS_CLEAR * float(_margin(usual).median()):
        return False
    alike = rest @ rest.T
    alike.fill_diagonal_(-2.0)
    return float((features[rows] @ rest.T).amax(1).median()) >= AS_LIKE * float(alike.amax(1).median())


def _margin(scores: Tensor) -> Tensor:
    first = scores.topk(2, dim=1).values
    return first[:, 0] - first[:, 1]
