"""To which group a sample belongs: what the inputs say, beside the ledger, of those that training distrusted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..evidence.patterns import FEWEST, Pattern, find_pattern
from .inputs import Inputs, noise_levels
from .result import GROUPS

FINE, MISLABELLED, TRIGGERED, PERTURBED, UNCLEAR, UNSEEN = range(len(GROUPS))
#: Samples that are compared with one another, fewer where they have more than so many numbers together (1.2 GB of memory), and
#: doubted ones beyond them that are looked at.
COMPARED, NUMBERS, MORE = 20_000, 60_000_000, 50_000
#: A suggestion counts as evidence of a wrong label from this confidence on.
CONFIDENT = 0.5
#: An image is perturbed where its fine noise is so many robust deviations beyond that of the trusted ones, on a log scale.
NOISY = 4.0


@dataclass(frozen=True)
class Groups:
    """group (N,): numbers of GROUPS. carries (N,) bool: the pattern's carriers. told: what the groups rest on, in words."""

    group: np.ndarray
    carries: np.ndarray
    told: str
    pattern: Pattern | None = None


def make_groups(
    inputs: Inputs | None, label: np.ndarray, rival: np.ndarray, suggested: np.ndarray, confidence: np.ndarray, doubted: np.ndarray,
    leaning: np.ndarray, classes: int, seed: int = 0, seen: np.ndarray | None = None,
) -> Groups:  # fmt: skip
    """The groups of samples with given labels, rivals, suggestions and doubts (all (N,)).

    A doubted sample is ``triggered`` where it carries a shared pattern, else ``perturbed`` where it is an image far noisier than
    the trusted ones, else ``mislabelled`` where another class is suggested with confidence 1/2 or more, else ``unclear``. The
    pattern is looked for among the ``leaning``, of whom the model preferred another class on average; whoever carries it is
    ``triggered``, doubted or not. A sample of which nothing is known, and that carries none, is ``unseen``. Without inputs triggers
    are not told from wrong labels, so all doubted samples are ``unclear``.
    Of more than 20,000 samples (fewer if they are large) that many are compared, drawn by ``seed``.

    Args:
        inputs: The inputs, None where they are not looked at.
        label: Given labels (N,).
        rival: The strongest other class of each sample (N,), -1 for none.
        suggested: Suggested labels (N,).
        confidence: In the suggestion (N,), in [0, 1].
        doubted: Whether the label is doubted (N,).
        leaning: Whether the model leaned to another class (N,).
        classes: Number of classes C.
        seed: Seed of every draw.
        seen: Whether the sample was visited in training, or judged by its features before (N,), None: all were.
    """
    carries = np.zeros(len(label), dtype=bool)
    group = np.where(doubted, UNCLEAR, FINE)
    if seen is not None:
        group[~seen & ~doubted] = UNSEEN
    if inputs is None:
        return Groups(group, carries, "No inputs at hand: wrong labels, triggers and perturbations are not told apart.")
    known = np.flatnonzero(label >= 0) if classes else np.arange(len(label))
    compared, most = known, min(COMPARED, NUMBERS // int(np.prod(inputs.shape)))
    if len(known) > most:
        compared = np.sort(np.random.default_rng(seed).choice(known, most, replace=False))
    vectors = inputs.read(compared) if len(compared) else np.zeros((0, int(np.prod(inputs.shape))), np.float32)
    readable = np.isfinite(vectors).all(1)
    compared, vectors = compared[readable], vectors[readable]
    labels = np.where(leaning & (rival >= 0), rival, label) if classes else np.zeros(len(label), dtype=np.int64)
    shape = inputs.shape if inputs.kind == "images" else None
    pattern = find_pattern(vectors, labels[compared], leaning[compared], max(classes, 1), shape, seed)
    sentences = [f"Compared: the {inputs.kind} of {len(compared):,} of {len(label):,} samples."]
    more = np.setdiff1d(np.flatnonzero(leaning | doubted), compared)[: min(MORE, 2 * most)]
    more = more if pattern is not None or inputs.kind == "images" else more[:0]
    beyond = inputs.read(more) if len(more) else vectors[:0]
    group[doubted & (confidence >= CONFIDENT) & (suggested != label)] = MISLABELLED
    if inputs.kind == "images" and int(doubted[compared].sum()):
        quiet = np.log(noise_levels(vectors[~doubted[compared]], inputs.shape) + 1e-3)
        noisy = _beyond(quiet, np.log(noise_levels(np.concatenate([vectors, beyond]), inputs.shape) + 1e-3))
        rows = np.concatenate([compared, more])
        group[rows[noisy & doubted[rows]]] = PERTURBED
    if pattern is not None:
        carries[compared] = pattern.carries
        if len(more):
            carries[more] = pattern.carried_by(beyond, labels[more])
        group[carries] = TRIGGERED
        sentences.append(
            f"{int(carries.sum()):,} share a pattern (triggered): they are {pattern.apart:.0f} standard deviations apart from the "
            f"others, and the model preferred another class {min(pattern.enriched, 999):.1f} times as often."
        )
    else:
        few = int(leaning[compared].sum()) < FEWEST
        sentences.append("Too few are doubted to look for a shared pattern." if few else "Those that are doubted share no pattern.")
    return Groups(group, carries, " ".join(sentences), pattern)


def _beyond(usual: np.ndarray, values: np.ndarray) -> np.ndarray:
    if len(usual) < FEWEST:
        return np.zeros(len(values), dtype=bool)
    middle = np.median(usual)
    spread = max(1.4826 * float(np.median(np.abs(usual - middle))), 0.05)
    return values > middle + NOISY * spread
