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
from ..models.features import last_linear, mean_of_tokens, watched
from ..models.modes import eval_mode
from ..models.outputs import logits_of
from ..models.sharding import all_agree, is_sharded, reshard
from .input_reader import InputReader, image_input
from .records import MicroBatch, Run

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
        small: where the features are of enlarged images, those of the images as they are, (N, D); None otherwise.
    """

    features: list[Tensor]
    labels: Tensor
    inputs: Tensor | None
    shape: tuple[int, ...] | None
    small: Tensor | None = None


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
    if isinstance(gathered, str) or trial is None or not trial.tells_more(gathered):
        return gathered
    large = _one_pass(model, _enlarged(batches), read, run, size, False, None)
    return gathered if isinstance(large, str) else replace(gathered, features=large.features, small=gathered.features[0])


@torch.no_grad()
def _one_pass(
    model: nn.Module, batches: Iterable[MicroBatch], read: Any, run: Run, size: int, compare: bool, trial: _Trial | None
) -> Gathered | str:
    """One forward of every sample."""
    features, tokens, labels, index, inputs = [], [], [], [], []
    reader: InputReader | None = None
    with eval_mode(model), watched(model) as layers:
        for batch in batches:
            outputs = model(**batch.inputs)
            read(outputs, batch)  # a module without a config tells its number of classes only here
            logits = logits_of(outputs)
            assert logits is not None, "read has refused outputs without"
            try:
                features.append(last_linear(layers, outputs, logits)[1].half())
            except ValueError as error:
                return f"{error}"
            if layers.hidden is not None:
                tokens.append(mean_of_tokens(layers.hidden.float(), batch.inputs.get("attention_mask")).half())
            layers.linear.clear()
            layers.hidden = None
            labels.append(run.problem.classes_of(batch.targets))
            index.append(batch.positions)
            if trial is not None:
                trial.see(model, batch, features[-1], layers)
            if compare and reader is None:
                reader = InputReader.of(batch.inputs, size)
                compare = reader is not None
            if reader is not None:
                inputs.append(reader.read(batch.inputs))
    order = run.gather(torch.cat(index))
    places = torch.empty(size, dtype=torch.long, device=order.device)
    places[order] = torch.arange(len(order), device=order.device)  # a sample that several processes have counts once
    kinds = [features, *([tokens] if len(tokens) == len(features) else [])]
    candidates = [run.gather(torch.cat(parts))[places] for parts in kinds]
    classes = run.gather(torch.cat(labels))[places].long()
    vectors = run.gather(torch.cat(inputs))[places] if inputs and reader is not None else None
    candidates = [rows for rows in candidates if bool(rows.isfinite().all())]
    if not candidates:
        return "the network's features are not finite in half precision."
    if reader is not None and vectors is not None:
        vectors = reader.levels(vectors)
    return Gathered(candidates, classes, vectors, reader.shape if reader is not None else None)


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
    size = len(inputs[name])
    inputs = {k: v[rows] if isinstance(v, Tensor) and v.dim() and len(v) == size else v for k, v in inputs.items()}
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

    def see(self, model: nn.Module, batch: MicroBatch, features: Tensor, layers: Any) -> None:
        """Runs the batch's drawn rows through the model once more, enlarged.

        Args:
            model: in evaluation mode, watched.
            batch: a micro-batch.
            features: its own, (B, D).
            layers: of the watched model; empty, and left so.
        """
        name, sharded = image_input(batch.inputs), is_sharded(model)
        fits = not self._failed and name is not None and max(batch.inputs[name].shape[2:]) <= SMALL
        if not (all_agree(fits, self.run.device) if sharded else fits):
            self._failed = True
            return
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
