"""What labels are judged by, from a pass over the data set: features, given labels, and inputs to be compared.

A network that was trained on large images sees little in small ones. Whether it sees more in the same images enlarged is tried on
a few hundred rows; where it does, a second pass takes all features from enlarged images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import evidence as labels_judged
from ..data.batch_rows import rows_of
from ..evidence.tied_tokens import TiedTokens, tied_tokens
from ..models.features import Layers, last_linear, mean_of_tokens, token_mask, watched
from ..models.modes import eval_mode
from ..models.outputs import logits_of
from ..models.sharding import all_agree, is_sharded, reshard
from .agreement import for_each
from .input_reader import InputReader, image_input
from .records import MicroBatch, Run
from .shared_tokens import look_without

#: Images of this many pixels a side or fewer are tried at so many times their size, on so many rows.
SMALL, ENLARGED, TRIED = 112, 2, 256
#: Of fewer rows nothing is told, so nothing is tried.
FEWEST_TRIED = 50


@dataclass(frozen=True)
class Gathered:
    """All N rows, in their order.

    Attributes:
        features: one or two kinds, (N, D) each.
        labels: (N,).
        inputs: vectors to be compared, uint8 (N, V).
        shape: of an image's vector, (H, W, channels).
        kinds: which of `_features`' the features are.
        tokens: whether inputs tell which tokens of a text are there.
        small: where the features are of enlarged images, those of the images as they are, (N, D); None otherwise.
        groups: tokens of texts that are tied to one label.
        without: the same kinds of features without these tokens; empty where there are none.
    """

    features: list[Tensor]
    labels: Tensor
    inputs: Tensor | None
    shape: tuple[int, ...] | None
    kinds: tuple[int, ...] = (0,)
    tokens: bool = False
    small: Tensor | None = None
    groups: tuple[TiedTokens, ...] = ()
    without: tuple[Tensor, ...] = ()


def look_at_all(
    model: nn.Module, batches: Iterable[MicroBatch], read: Any, run: Run, size: int, *, compare: bool, enlarge: bool
) -> Gathered | str:
    """Returns features, labels and inputs of every sample, equal on all processes; or why there are no features.

    Args:
        model: unwrapped.
        batches: the data set, each sample once, which can be gone through twice; of several processes, each its share.
        read: a model's outputs with a micro-batch's targets.
        run: of the training.
        size: N.
        compare: whether inputs are gathered.
        enlarge: whether small images may be enlarged.
    """
    trial = _Trial(run, size) if enlarge and size >= FEWEST_TRIED else None
    gathered = _one_pass(model, batches, read, run, size, compare, trial)
    if not isinstance(gathered, str) and gathered.inputs is not None and gathered.tokens:
        return _without_tied(model, batches, read, run, gathered)
    if isinstance(gathered, str) or trial is None or not trial.tells_more(gathered):
        return gathered
    large = _one_pass(model, _enlarged(batches), read, run, size, False, None, large=True)
    return gathered if isinstance(large, str) else replace(gathered, features=large.features, small=gathered.features[0])


@torch.no_grad()
def _without_tied(model: nn.Module, batches: Iterable[MicroBatch], read: Any, run: Run, gathered: Gathered) -> Gathered:
    """The rows of texts with, beside their features, those without the tokens that are tied to one label."""
    assert gathered.inputs is not None
    labels = gathered.labels.cpu().numpy()
    groups = tied_tokens(gathered.inputs.cpu().numpy() > 0, labels, run.classes)
    with eval_mode(model), watched(model) as layers:

        def kinds(batch: MicroBatch) -> list[Tensor]:
            try:
                found = _features(model, batch, read, layers, False)
            finally:
                layers.linear.clear()
                layers.hidden = None
            return [found[i] for i in gathered.kinds]  # type: ignore[misc]

        without = look_without(model, batches, run, groups, gathered.features, kinds)
    return replace(gathered, groups=tuple(groups), without=tuple(without))


@torch.no_grad()
def _one_pass(
    model: nn.Module, batches: Iterable[MicroBatch], read: Any, run: Run, size: int, compare: bool, trial: _Trial | None,
    large: bool = False,
) -> Gathered | str:  # fmt: skip
    """One forward of every sample. large: of enlarged images, which the user never gave."""
    rows = _Rows(run, size, compare)
    sharded = is_sharded(model)
    with eval_mode(model), watched(model) as layers:

        def look(batch: MicroBatch) -> None:
            problem: Exception | None = None
            try:
                rows.add(batch, *_features(model, batch, read, layers, large))
            except Exception as error:
                problem = error
            finally:
                layers.linear.clear()
                layers.hidden = None
            if trial is not None and (sharded or problem is None):  # of sharded weights all processes try, or none
                trial.see(model, batch, None if problem is not None else rows.features[-1], layers)
            if problem is not None:
                raise problem

        try:
            for_each(run, batches, look, each=sharded, kinds=(_NoFeaturesError,))
        except _NoFeaturesError as error:
            return f"{error}"
    return rows.gathered()


def _features(
    model: nn.Module, batch: MicroBatch, read: Any, layers: Layers, large: bool
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """The batch's features (B, D), and the means over its tokens (B, T), where the model has some; in half precision."""
    try:
        outputs = model(**batch.inputs)
    except Exception as error:
        if not large:
            raise
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ValueError(
            f"the network fails on some of the images at {ENLARGED} times their size ({words}): "
            "leave them as they are, method_settings={'enlarge': False}."
        ) from error
    read(outputs, batch)  # a module without a config tells its number of classes only here
    logits = logits_of(outputs)
    assert logits is not None, "read has refused outputs without"
    try:
        features = last_linear(layers, outputs, logits)[1].half()
    except ValueError as error:
        raise _NoFeaturesError(f"{error}") from error
    if layers.hidden is None:
        return features, None
    mask = token_mask(model, layers.hidden, batch.inputs)
    return features, mean_of_tokens(layers.hidden.float(), mask).half()


def _all_alike(run: Run, mark: Any) -> bool:
    """Whether all processes have the same: batches of differently large images may tell one of another size than the other."""
    if run.processes == 1:
        return True
    marks: list[Any] = [None] * run.processes
    torch.distributed.all_gather_object(marks, mark)
    return all(other == mark for other in marks)


class _NoFeaturesError(ValueError):
    """Why a network has no features that labels could be judged by: no reason to end a training."""


class _Rows:
    """What the rows of this process's share give, as they come.

    Args:
        run: of the training.
        size: rows of the data set.
        compare: whether inputs are gathered.
    """

    def __init__(self, run: Run, size: int, compare: bool):
        self.run, self.size, self.compare = run, size, compare
        self.features: list[Tensor] = []
        self.tokens: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.index: list[Tensor] = []
        self.inputs: list[Tensor] = []
        self.reader: InputReader | None = None

    def add(self, batch: MicroBatch, features: Tensor, tokens: Tensor | None) -> None:
        """Takes up a micro-batch."""
        self.features.append(features)
        if tokens is not None:
            self.tokens.append(tokens)
        self.labels.append(self.run.problem.classes_of(batch.targets))
        self.index.append(batch.positions)
        if self.compare and self.reader is None:
            self.reader = InputReader.of(batch.inputs, self.size)
            self.compare = self.reader is not None
        if self.reader is not None:
            self.inputs.append(self.reader.read(batch.inputs))

    def gathered(self) -> Gathered | str:
        """Returns the rows of all processes; why there are no features."""
        run = self.run
        order = run.gather(torch.cat(self.index))
        places = torch.empty(self.size, dtype=torch.long, device=order.device)
        places[order] = torch.arange(len(order), device=order.device)  # a sample that several processes have counts once
        kinds = [self.features, *([self.tokens] if len(self.tokens) == len(self.features) else [])]
        candidates = [run.gather(torch.cat(parts))[places] for parts in kinds]
        classes = run.gather(torch.cat(self.labels))[places].long()
        reader = self.reader if _all_alike(run, None if self.reader is None else (self.reader.name, self.reader.shape)) else None
        vectors = run.gather(torch.cat(self.inputs))[places] if self.inputs and reader is not None else None
        finite = tuple(kind for kind, rows in enumerate(candidates) if bool(rows.isfinite().all()))
        candidates = [candidates[kind] for kind in finite]
        if not candidates:
            return "the network's features are not finite in half precision."
        if reader is not None and vectors is not None:
            vectors = reader.levels(vectors)
        shape, tokens = (None, False) if reader is None else (reader.shape, reader.name == "input_ids")
        return Gathered(candidates, classes, vectors, shape, finite, tokens)


def _enlarged(batches: Iterable[MicroBatch]) -> Iterator[MicroBatch]:
    """The batches' images enlarged, in parts of two rows or more that need no more memory than a batch as it is."""
    for batch in batches:
        parts = max(min(ENLARGED**2, len(batch) // 2), 1)
        for rows in torch.arange(len(batch), device=batch.targets.device).tensor_split(parts):
            yield replace(batch, inputs=_larger(batch.inputs, rows), targets=batch.targets[rows], index=batch.positions[rows])


def _larger(inputs: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """These rows, bool (B,) or numbers, of a batch's inputs, with its images `ENLARGED` times as large."""
    name = image_input(inputs)
    assert name is not None, "only images are enlarged"
    inputs = rows_of(inputs, rows, len(inputs[name]))
    large = nn.functional.interpolate(inputs[name].float(), scale_factor=ENLARGED, mode="bilinear", align_corners=False)
    return {**inputs, name: large.to(inputs[name].dtype)}


@contextmanager
def _numbers_checked(model: nn.Module) -> Iterator[None]:
    """Within it an embedding of a number beyond its last raises ``IndexError``: on a GPU that would end the program."""

    def check(module: nn.Embedding, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and bool((inputs[0] >= module.num_embeddings).any()):
            raise IndexError("no embedding has this number")

    handles = [m.register_forward_pre_hook(check) for m in model.modules() if isinstance(m, nn.Embedding)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class _Trial:
    """Whether features of enlarged images tell more of the labels: tried on rows that the seed draws, the same on all processes.

    Args:
        run: of the training.
        size: rows of the data set.
    """

    run: Run
    size: int
    _slot: Tensor = field(init=False)
    _rows: Tensor = field(init=False)
    _found: list[tuple[Tensor, Tensor]] = field(init=False, default_factory=list)
    _failed: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        drawn = torch.randperm(self.size, generator=torch.Generator().manual_seed(self.run.seed))[:TRIED]
        self._rows = drawn.to(self.run.device)
        self._slot = torch.full((self.size,), -1, dtype=torch.long, device=self.run.device)
        self._slot[self._rows] = torch.arange(len(drawn), device=self.run.device)

    def see(self, model: nn.Module, batch: MicroBatch, features: Tensor | None, layers: Any) -> None:
        """Runs the batch's drawn rows through the model once more, enlarged.

        Args:
            model: in evaluation mode, watched.
            batch: a micro-batch.
            features: its own, (B, D), None where this process failed to get them.
            layers: of the watched model; empty, and left so.
        """
        name, sharded = image_input(batch.inputs), is_sharded(model)
        fits = not self._failed and features is not None and name is not None and max(batch.inputs[name].shape[2:]) <= SMALL
        if not (all_agree(fits, self.run.device) if sharded else fits):
            self._failed = True
            return
        assert features is not None, "where it is None nothing fits"
        slots = self._slot[batch.positions]
        rows = slots >= 0
        if not bool(rows.any()):
            if not sharded:
                return
            rows[0] = True  # the others' forward needs this process's part of the weights
        try:
            with _numbers_checked(model):
                outputs = model(**_larger(batch.inputs, rows))
            logits = logits_of(outputs)
            assert logits is not None, "the model returned logits before"
            large = last_linear(layers, outputs, logits)[1]
        except Exception:  # whatever a model of one size of images raises
            self._failed = True
            reshard(model)
            return
        finally:
            layers.linear.clear()
            layers.hidden = None
        if bool((slots[rows] < 0).any()):
            return
        self._failed = large.shape[1] != features.shape[1] or not bool(large.isfinite().all())
        self._found.append((slots[rows], large.float()))

    def tells_more(self, gathered: Gathered) -> bool:
        """Returns whether enlarged images tell more of the labels; equal on all processes.

        Args:
            gathered: of all rows, as they are.
        """
        run = self.run
        width = gathered.features[0].shape[1]
        failed = run.total(torch.tensor(float(self._failed), device=run.device))
        if bool(failed > 0):
            return False
        sums = run.total(self._sums(width))
        large = sums[:, :-1] / sums[:, -1:].clamp_min(1.0)  # a row that several processes have counts once
        rows = self._rows.to(gathered.labels.device)
        small, labels = gathered.features[0][rows], gathered.labels[rows]
        return labels_judged.tells_more(large, small, labels, run.classes)

    def _sums(self, width: int) -> Tensor:
        """The drawn rows' features as this process saw them, (TRIED, D), and in a last column how often it saw the row."""
        sums = torch.zeros(len(self._rows), width + 1, device=self.run.device)
        for slots, large in self._found:
            sums.index_add_(0, slots, torch.cat([large, large.new_ones(len(large), 1)], 1))
        return sums
