"""The verdict on every given label before training: how probably it is wrong, and which class it should be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..selection.noise_rate import RateEstimate
from .label_model import LabelModel, fit_label_model, fit_probabilities, neighbours_votes
from .neighbours import Neighbours, normalise
from .patterns import FEWEST, Pattern, find_pattern
from .telling import how_telling, order_alone
from .tied_tokens import TOGETHER, TiedTokens

#: Fewer rows, or rows per class, say nothing.
FEWEST_ROWS, FEWEST_OF_CLASS = 50, 2.0
#: Rows times classes that are held at a time; beyond, labels are not judged (4 bytes each, some five tables of them).
MOST_CELLS = 400_000_000
#: Rows that are compared with one another to find a pattern, fewer where they have more than so many numbers together.
COMPARED, NUMBERS = 20_000, 60_000_000
#: A later look counts alone where its features predict so much more of the labels, as those of a network from scratch do; less is
#: what any network gains by being trained on the labels, wrong ones among them.
BETTER = 0.05
#: Patterns that are looked for, one after another.
MOST_PATTERNS = 3
#: A pattern counts where so large a share of its carriers is doubted, or carriers so many times as often as others, or where they
#: are so many standard deviations apart from these: rare strokes of digits are up to 19, a blended image on photographs is 66.
DOUBTED_CARRIERS, FAR_ENRICHED, FAR_APART = 0.4, 10.0, 20.0
#: Of texts that carry a pattern so large a share has one token.
SHARED = 0.5
#: Doubted rows of one label are looked at by themselves where they are more than expected by so many of its square roots.
FAR_MORE_OF_LABEL = 4.0
#: Rows' inputs as vectors, or a reader of them by row number.
Inputs = np.ndarray | Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class LabelEvidence:
    """What features, neighbours and a shared pattern say of N given labels; not trained for, so nothing has seen the labels' task.

    Attributes:
        wrong: probability that the given label is wrong, (N,) float32 in [0, 1]; 1 where a pattern is carried.
        suggested: the likeliest class, (N,) int64; the given one where nothing is known.
        confidence: its probability, (N,) float32.
        carriers: whether the row carries a shared pattern, such as a trigger, (N,) bool.
        rate: the share of wrong labels, patterns included.
        rest: the same among the rows without a pattern.
        transition: probability of each given label (column) for each right one (row), (C, C); of rows without a pattern.
        agreement: share of the rows whose label is the one that their features predict.
        chance: the same for predictions that know nothing but how frequent classes are.
        informative: whether the features predict enough of the labels to say which are wrong; where not, nothing is doubted, and of
            features that say little ``wrong`` is an order below 1/2.
        patterns: those found, the strongest first.
        told: what was found, in one sentence.
        predicted: the class that the linear model says of the row, fitted to the given labels without it, (N,) int64.
        support: share of the nearest neighbours' votes that go to the given label, (N,) float32 in [0, 1]; of given probabilities
            the label's; NaN where unknown.
        neighbours: of each row, by its features; None where labels were not judged.
    """

    wrong: np.ndarray
    suggested: np.ndarray
    confidence: np.ndarray
    carriers: np.ndarray
    rate: RateEstimate
    rest: RateEstimate
    transition: np.ndarray
    agreement: float
    chance: float
    informative: bool
    patterns: tuple[Pattern, ...]
    told: str
    predicted: np.ndarray
    support: np.ndarray
    neighbours: Neighbours | None = None

    def __len__(self) -> int:
        return len(self.wrong)


def judge_labels(
    features: np.ndarray | Tensor | None,
    labels: np.ndarray,
    classes: int,
    *,
    probs: np.ndarray | None = None,
    inputs: Inputs | None = None,
    shape: tuple[int, ...] | None = None,
    carriers: np.ndarray | None = None,
    rest: RateEstimate | None = None,
    others: Sequence[Tensor] = (),
    triggers: Sequence[TiedTokens] = (),
    seed: int = 0,
) -> LabelEvidence:
    """Returns the evidence on N given labels.

    A noise transition and a linear model on the features (`fit_label_model`) say how probably each label is wrong. Who is
    doubted is compared with the others in the inputs themselves: a pattern that they share (`find_pattern`), a trigger for
    instance, makes its carriers' labels wrong, and the model is fitted again without them.

    Args:
        features: (N, D) of a network that has not seen the labels, any scale; None where probs are given.
        labels: given class numbers (N,) in [0, C).
        classes: C.
        probs: (N, C), in the place of the linear model and the neighbours: probabilities of another model's, which has not seen the
            row's label (out-of-fold).
        inputs: the rows' inputs as vectors (N, V) in [0, 1], or levels of 0 to 255 as uint8, for patterns; or what returns those of
            the row numbers (n,) that it is given, float32 with NaN for what cannot be read. Of many rows so many are compared,
            drawn by the seed, and the others are held against what these share. None: no pattern is looked for.
        shape: of an input, (H, W, channels), where they are images.
        carriers: rows that an earlier look found to carry a pattern, (N,) bool, for where none is found now. None: none are known.
        rest: the share of wrong labels among the others where it is known from features that no label has touched: those of a
            network that was trained on the labels agree with wrong ones, too. None: it is estimated.
        others: further features of the rows, (N, D) each, any scale: their neighbours, too, say who is doubted where patterns are
            looked for. Features in which a trigger is plain to see agree with its labels; others may not.
        triggers: tokens that were found to be a trigger of texts (`tied_tokens.triggers_among`), with the rows that have them.
        seed: of every draw.

    Raises:
        ValueError: for shapes that do not fit, and labels out of range.
    """
    labels = np.asarray(labels)
    given_rows = features if probs is None else probs
    if given_rows is None:
        raise ValueError("features and probs are both None: give one of them.")
    if labels.ndim != 1 or len(labels) != len(given_rows) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels are {labels.shape} {labels.dtype}, expected {len(given_rows)} class numbers, one for each feature row."
        )
    if probs is not None:
        _check_probs(probs, classes)
    if len(labels) and not (0 <= labels.min() and labels.max() < classes):
        raise ValueError(f"labels reach from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}.")
    if inputs is not None and not callable(inputs) and len(inputs) != len(labels):
        raise ValueError(f"inputs have {len(inputs)} rows and labels {len(labels)}: give one row for each label.")
    labels = labels.astype(np.int64)
    present = len(np.unique(labels))
    if len(labels) < FEWEST_ROWS or present < 2 or len(labels) < FEWEST_OF_CLASS * present:
        few = f"{len(labels):,} rows of {present:,} {'class' if present == 1 else 'classes'} are too few to judge labels by"
        needed = f"at least {FEWEST_ROWS} rows, 2 classes and {FEWEST_OF_CLASS:.0f} rows a class are needed"
        return _nothing(labels, classes, f"{few}: {needed}.")
    if len(labels) * classes > MOST_CELLS:
        return _nothing(labels, classes, f"{len(labels):,} rows times {classes:,} classes are too many to judge labels by.")
    rows = normalise(given_rows) if probs is None else torch.from_numpy(np.asarray(probs, dtype=np.float32))
    given = torch.from_numpy(labels).to(rows.device)
    fit = fit_label_model if probs is None else fit_probabilities
    model = fit(rows, given, classes, seed, rest)
    voted = [neighbours_votes(normalise(other), given, classes, seed).argmax(1) for other in others] if inputs is not None else []
    found, patterns = _carriers(model, voted, labels, classes, inputs, shape, triggers, seed)
    carriers = found if carriers is None or found.any() else carriers
    predicted = model.first.argmax(1).cpu().numpy()
    support = model.votes.gather(1, given.unsqueeze(1)).squeeze(1).cpu().numpy()
    near, what = model.neighbours, "features" if probs is None else "probabilities"
    telling = how_telling(model, labels, classes)
    if not telling.enough and not carriers.any():
        told = telling.told(what)
        nothing = _nothing(labels, classes, told, telling.agreement, telling.chance)
        return replace(nothing, predicted=predicted, support=support, neighbours=near, wrong=order_alone(model, given, telling))
    rate = without = model.rate
    known = torch.from_numpy(carriers).to(rows.device)
    told = ""
    if carriers.any():
        kept = ~known
        model = fit(rows[kept], given[kept], classes, seed, rest)
        others_telling = how_telling(model, labels[~carriers], classes)
        posterior = torch.empty(len(labels), classes, device=rows.device)
        posterior[kept] = model.posterior
        posterior[~kept] = model.predict(rows[~kept])
        share, without = float(carriers.mean()), model.rate
        if not others_telling.enough:
            posterior[kept] = torch.nn.functional.one_hot(given[kept], classes).float()
            without = RateEstimate(0.0, 0.0, without.high, without.n)
            told = f" Of the other rows: {others_telling.told(what)}"
        low, middle, high = (share + (1.0 - share) * r for r in (without.low, without.rate, without.high))
        rate = RateEstimate(middle, low, high, len(labels))
    else:
        posterior = model.posterior
    confidence, suggested = posterior.max(1)
    wrong = (1.0 - posterior.gather(1, given.unsqueeze(1)).squeeze(1)).clamp(0.0, 1.0).cpu().numpy()
    wrong[carriers] = 1.0
    told = _told(rate, carriers, telling.agreement, what) + told
    return LabelEvidence(
        wrong=wrong.astype(np.float32), suggested=suggested.cpu().numpy(), confidence=confidence.cpu().numpy(), carriers=carriers,
        rate=rate, rest=without, transition=_transition(posterior[~known], given[~known], classes),
        agreement=telling.agreement, chance=telling.chance, informative=True, patterns=patterns, told=told, predicted=predicted,
        support=support, neighbours=near,
    )  # fmt: skip


def with_earlier(
    evidence: LabelEvidence, agreement: float, wrong: np.ndarray, suggested: np.ndarray, confidence: np.ndarray
) -> LabelEvidence:
    """Returns a later look's evidence together with an earlier one's.

    A later look whose features predict far more of the labels counts alone; one that predicts fewer than the earlier,
    although its network was trained on them, does not count. Between the two the log odds of a wrong label are the mean of both.
    Where both suggest one class its probability is the larger one, else the more probable class is suggested, with the mean of its
    probability and none.

    Args:
        evidence: the later look's.
        agreement: share of the labels that the earlier look's features predicted.
        wrong: the earlier probability that the label is wrong (N,).
        suggested: the class that was suggested (N,).
        confidence: its probability (N,).
    """
    if evidence.agreement > agreement + BETTER:
        return evidence
    if evidence.agreement < agreement:
        known = np.where(evidence.carriers, 1.0, wrong).astype(np.float32)
        return replace(evidence, agreement=agreement, wrong=known, suggested=suggested, confidence=confidence)
    odds = [np.log(p / (1.0 - p)) for p in (np.clip(w.astype(np.float64), 1e-3, 1.0 - 1e-3) for w in (wrong, evidence.wrong))]
    both = 1.0 / (1.0 + np.exp(-(odds[0] + odds[1]) / 2.0))
    one = suggested == evidence.suggested
    more = np.maximum(confidence, evidence.confidence)
    return replace(
        evidence, wrong=np.where(evidence.carriers, 1.0, both).astype(np.float32),
        suggested=np.where(one | (evidence.confidence >= confidence), evidence.suggested, suggested),
        confidence=np.where(one, more, more / 2.0).astype(np.float32),
    )  # fmt: skip


def _check_probs(probs: np.ndarray, classes: int) -> None:
    """Raises ``ValueError`` for what are no probabilities of the classes."""
    if probs.ndim != 2 or probs.shape[1] != classes or probs.dtype.kind not in "fiub":
        raise ValueError(f"probs are {probs.shape} {probs.dtype}, expected ({len(probs)}, {classes}): a column for each class.")
    bad = ~(np.isfinite(probs).all(1) & (probs >= -1e-6).all(1) & (abs(probs.sum(1, dtype=np.float64) - 1.0) < 1e-2))
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"probs: row {row} is {probs[row][:5]}, expected numbers from 0 to 1 that sum to 1: apply a softmax.")


def _carriers(
    model: LabelModel,
    voted: Sequence[Tensor],
    labels: np.ndarray,
    classes: int,
    inputs: Inputs | None,
    shape: tuple[int, ...] | None,
    triggers: Sequence[TiedTokens],
    seed: int,
) -> tuple[np.ndarray, tuple[Pattern, ...]]:
    """Who carries a trigger of texts, or a pattern that doubted rows share, (N,) bool, and the patterns."""
    carriers, patterns = np.zeros(len(labels), dtype=bool), list[Pattern]()
    for trigger in triggers:
        carriers |= trigger.rows
        patterns.append(as_pattern(trigger, classes))
    if inputs is None or patterns:
        return carriers, tuple(patterns)
    read: Callable[[np.ndarray], np.ndarray] = inputs if callable(inputs) else inputs.__getitem__
    most = max(min(COMPARED, NUMBERS // max(read(np.arange(1)).shape[1], 1)), 1)
    compared = np.arange(len(labels))
    if len(labels) > most:
        compared = np.sort(np.random.default_rng(seed).choice(len(labels), most, replace=False))
    vectors = read(compared)
    readable = np.isfinite(vectors).all(1)
    compared, vectors = compared[readable], vectors[readable]
    tokens = shape is None and bool(np.isin(vectors, (0, vectors.max(initial=0))).all())  # which of them a text has
    others = np.setdiff1d(np.arange(len(labels)), compared) if len(labels) > most else compared[:0]
    own_of = (model.doubts, model.first.argmax(1), model.votes.argmax(1), *voted)
    # several judges of whom to doubt: a linear model learns a trigger that neighbours do not see, and the other way round
    judges = [own.cpu().numpy() for own in own_of]
    while len(patterns) < MOST_PATTERNS:
        free = ~carriers[compared]
        rows, found = compared[free], None
        sets = [(own, (own != labels)[rows]) for own in judges]
        for own, doubted in (*sets, *_of_one_label(sets, labels[rows])):
            found = find_pattern(vectors[free], own[rows], doubted, classes, shape, seed)
            if found is not None and _convinces(found, doubted) and (not tokens or _is_shared(found, vectors[free])):
                break
            found = None
        if found is None:
            break
        carriers[rows[found.carries]] = True
        for part in np.array_split(others, -(-len(others) // most) or 1):
            carriers[part] |= found.carried_by(read(part), own[part]) if len(part) else False
        patterns.append(found)
    return carriers, tuple(patterns)


def as_pattern(trigger: TiedTokens, classes: int) -> Pattern:
    """Returns a trigger as a pattern in which tokens rows have: the difference is its tokens, the cut that nearly all are there.

    Args:
        trigger: of `triggers_among`.
        classes: C.
    """
    tokens = trigger.tokens.astype(np.float32)
    nothing = np.zeros((classes, len(tokens)), np.float32)
    return Pattern(trigger.rows, tokens, np.inf, np.inf, nothing, tokens / tokens.sum(), TOGETHER - 1e-6)


def _of_one_label(sets: Sequence[tuple[np.ndarray, np.ndarray]], labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each judge the doubted rows of a label that far more of them have than of all rows: among all a trigger may be hidden."""
    shares = np.bincount(labels) / max(len(labels), 1)
    for own, doubted in sets:
        expected = shares * doubted.sum()
        excess = (np.bincount(labels[doubted], minlength=len(shares)) - expected) / np.sqrt(np.maximum(expected, 1.0))
        if excess.max(initial=0.0) > FAR_MORE_OF_LABEL:
            yield own, doubted & (labels == int(excess.argmax()))


def _convinces(found: Pattern, doubted: np.ndarray) -> bool:
    """Whether a pattern's carriers are doubted for it: what a few doubted rows share with many others is how these look."""
    hits, carriers = int(doubted[found.carries].sum()), int(found.carries.sum())
    sure = hits >= DOUBTED_CARRIERS * carriers or found.enriched >= FAR_ENRICHED or found.apart >= FAR_APART
    return hits >= FEWEST and sure


def _is_shared(found: Pattern, vectors: np.ndarray) -> bool:
    """Whether some token is in most texts that carry a pattern and in few others: rare words, another in each, are no pattern."""
    present = vectors > 0
    inside, outside = present[found.carries].mean(0), present[~found.carries].mean(0)
    return bool(((inside >= SHARED) & (inside >= 2.0 * outside)).any())


def _transition(posterior: Tensor, labels: Tensor, classes: int) -> np.ndarray:
    """Which labels are given for which class, (C, C), as the posterior has it; a class that no row should be keeps its label.

    The model's own transition is scaled until its mean doubt is the rate, which tells next to nothing where predictions are sure.
    """
    counts = torch.zeros(classes, classes, device=posterior.device).index_add_(1, labels, posterior.T)
    total = counts.sum(1, keepdim=True)
    return torch.where(total > 0.5, counts / total.clamp_min(1e-9), torch.eye(classes, device=counts.device)).cpu().numpy()


def _nothing(labels: np.ndarray, classes: int, told: str, agreement: float = 0.0, chance: float = 0.0) -> LabelEvidence:
    """No doubt about any label."""
    n = len(labels)
    return LabelEvidence(
        wrong=np.zeros(n, np.float32), suggested=labels, confidence=np.zeros(n, np.float32), carriers=np.zeros(n, dtype=bool),
        rate=RateEstimate(0.0, 0.0, 1.0, n), rest=RateEstimate(0.0, 0.0, 1.0, n),
        transition=np.eye(classes, dtype=np.float32) if classes <= 20_000 else np.eye(0),
        agreement=agreement, chance=chance, informative=False, patterns=(), told=told,
        predicted=labels, support=np.full(n, np.nan, np.float32),
    )  # fmt: skip


def _told(rate: RateEstimate, carriers: np.ndarray, agreement: float, what: str) -> str:
    found = f"About {100 * rate.rate:.1f} % of the labels are wrong ({100 * rate.low:.0f} to {100 * rate.high:.0f} %)"
    shared = f", {int(carriers.sum()):,} of them on rows that share a pattern" if carriers.any() else ""
    return f"{found}{shared}; the {what} alone predict {agreement:.0%} of the given labels."
