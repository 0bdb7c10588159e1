"""What a forward pass tells of each sample's label, and how the ledger follows it: margins, forgetting, the rival class."""

from __future__ import annotations

import torch
from torch import Tensor

from ..problems.base import full_precision

#: Weight of the past in the rival's confidence: a class has to be predicted in a few visits to become the rival.
RIVAL_DECAY = 0.7
#: The rival's confidence is kept in so many parts of 1.
QUANTA = 30_000
#: The columns of `trace`.
LOGIT_MARGIN, MARGIN, CHALLENGER, CHALLENGER_PROB, RIVAL_PROB = range(5)


@torch.no_grad()
def trace(logits: Tensor, labels: Tensor, rivals: Tensor) -> Tensor:
    """Returns five numbers per sample, (B, 5): columns LOGIT_MARGIN, MARGIN, CHALLENGER, CHALLENGER_PROB, RIVAL_PROB.

    The margin of the label's logit over the largest other; the same of probabilities, in [-1, 1]; the likeliest other class; its
    probability; the rival's. Logits and probabilities are means over the networks.

    Args:
        logits: (M, B, C).
        labels: the samples' labels (B,).
        rivals: the ledger's (B,), -1 for none yet.

    References:
        Pleiss et al. 2020, "Identifying mislabeled data using the area under the margin ranking", eq. 1.
    """
    z = full_precision(logits)
    p, z = z.softmax(-1).mean(0), z.mean(0)
    if z.shape[1] < 2:
        return z.new_zeros(len(z), 5).index_fill_(1, torch.tensor([CHALLENGER], device=z.device), -1.0)
    labels = labels.unsqueeze(1)
    others = p.scatter(1, labels, -1.0)
    likeliest, challenger = others.max(1)
    logit_margin = z.gather(1, labels).squeeze(1) - z.scatter(1, labels, -torch.inf).amax(1)
    rival = p.gather(1, rivals.long().clamp_min(0).unsqueeze(1)).squeeze(1)
    own = p.gather(1, labels).squeeze(1)
    return torch.stack([logit_margin, own - likeliest, challenger.to(p.dtype), likeliest, rival], 1)


def forgotten(events: Tensor, seen: Tensor, was_right: Tensor, right: Tensor) -> Tensor:
    """Returns the forgetting counts (B,) after a visit: how often a sample went from right to wrong; -1 until it was right once.

    Args:
        events: the counts before (B,).
        seen: visits before (B,).
        was_right: at the visit before, bool (B,).
        right: at this one, bool (B,).

    References:
        Toneva et al. 2019, "An empirical study of example forgetting", definition 2.
    """
    first = torch.where(right, torch.zeros_like(events), torch.full_like(events, -1))
    later = events + (was_right & ~right).to(events.dtype)
    return torch.where((events < 0) | (seen == 0), first, later)


def follow_rival(rival: Tensor, confidence: Tensor, seen: Tensor, margins: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the rival class (B,) and its confidence (B,) in QUANTA after a visit.

    The rival is the class, other than the label, that the model has lately thought likeliest; its confidence is the moving average
    of its probability, taken as 0 for the time before it took over, so a lower bound.

    Args:
        rival: before (B,), -1 for none yet.
        confidence: before (B,), in QUANTA.
        seen: visits before (B,).
        margins: of `trace` (B, 5).
    """
    share = torch.where(seen == 0, 0.0, RIVAL_DECAY)
    now = share * confidence.to(margins.dtype) / QUANTA + (1.0 - share) * margins[:, RIVAL_PROB]
    bid = (1.0 - share) * margins[:, CHALLENGER_PROB]
    challenger = margins[:, CHALLENGER].to(rival.dtype)
    changes = (seen == 0) | ((challenger != rival) & (bid > now))
    now = torch.where(changes, bid, now).nan_to_num(0.0).clamp(0.0, 1.0)
    return torch.where(changes, challenger, rival), (now * QUANTA).round().to(confidence.dtype)
