"""The front door: the sample's index, and the value range and normalisation of image inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .perturbations import Ball
from .recipe import MULTI, SINGLE, UNSUPERVISED

#: Key of the positions in a batch; named so that no user column is called the same.
INDEX = "_robust_index"


class _Example(NamedTuple):
    """An example and its position: not a mapping, so that nothing between data set and collator takes it apart."""

    example: Any
    position: int


class Indexed(Dataset):
    """A map-style data set whose examples carry their position; everything else is the wrapped data set's."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "dataset" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["dataset"], name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> _Example:
        return _Example(self.dataset[index], int(index))

    def __getitems__(self, indices: Sequence[int]) -> list[_Example]:
        fetch = getattr(self.dataset, "__getitems__", None)
        rows = fetch(indices) if fetch is not None else [self.dataset[i] for i in indices]
        return [_Example(row, int(i)) for row, i in zip(rows, indices)]


@dataclass
class IndexCollator:
    """The user's collator, with the positions added (B,), and what it made checked before it travels.

    Runs on the host (in the data loader's workers where there are any), so the checks cost the device nothing.
    Raises ``ValueError`` for labels that are missing, not integers or outside [0, classes), and for NaN or infinite inputs;
    where the problem is no single-label classification, for targets that are no finite numbers, or outside [0, 1] for labels.
    """

    collate: Callable[[list[Any]], Mapping[str, Any]]
    label_names: Sequence[str]
    classes: int | None
    main_input: str | None = None
    problem: str = SINGLE

    def __call__(self, features: list[_Example]) -> dict[str, Any]:
        index = [f.position for f in features]
        try:
            batch = self.collate([f.example for f in features])
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise _collation_error(error, [f.example for f in features], index) from error
        if not isinstance(batch, Mapping):
            raise ValueError(f"data_collator returned {type(batch).__name__}, expected a mapping: return a dict of tensors.")
        if self.problem != UNSUPERVISED:
            check_labels(batch, self.label_names, self.classes, index, features[0].example, self.problem)
        for key, value in batch.items():
            if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value.sum())):
                # an attention mask may hold -inf; the model's main input may not
                wrong = ~torch.isfinite(value) if key == self.main_input else torch.isnan(value)
                rows = wrong.reshape(len(index), -1).any(1)
                bad = [index[i] for i in rows.nonzero().flatten().tolist()]
                if bad:
                    raise ValueError(f"'{key}' is NaN or infinite in training rows {bad[:5]}: repair or remove these rows.")
        return {**batch, INDEX: torch.tensor(index, dtype=torch.long)}


def check_labels(
    batch: Mapping[str, Any],
    names: Sequence[str],
    classes: int | None,
    index: Sequence[int],
    example: Any = None,
    problem: str = SINGLE,
) -> None:
    """Raises a one-line ``ValueError`` where the batch's labels are missing, of the wrong kind or out of range."""
    name = next((n for n in names if n in batch), None)
    if name is None:
        text = next((n for n in names if isinstance(example, Mapping) and isinstance(example.get(n), str)), None)
        if text is not None:
            raise ValueError(
                f"'{text}' holds strings (row {index[0]}: {example[text]!r}), expected class numbers: "
                f"use dataset.class_encode_column('{text}')."
            )
        raise ValueError(
            f"no labels in the batch: expected one of {list(names)}, got {list(batch)}; rename the label column or set label_names."
        )
    labels = batch[name]
    if problem != SINGLE:
        return _check_targets(name, labels, classes, index, problem)
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dim() != 1:
        kind = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(
            f"'{name}' is {kind}, expected integer class labels of shape (B,): robust methods need one class number per sample; "
            "encode names with dataset.class_encode_column(...), one-hot rows with argmax; for numbers to predict or several "
            "labels a sample set problem_type='regression' or 'multi_label_classification'."
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        value = low if low < 0 else high
        row = index[int((labels == value).nonzero()[0])]
        upper = "C" if classes is None else classes
        raise ValueError(f"'{name}' is {value} in training row {row}, expected [0, {upper}): repair the label or num_labels.")


def _check_targets(name: str, targets: Any, outputs: int | None, index: Sequence[int], problem: str) -> None:
    """Targets of regression, (B,) or (B, K) finite numbers, or of multi-label classification, (B, K) in [0, 1]."""
    kind = f"{targets.dtype} of shape {tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
    multi = problem == MULTI
    width = targets.shape[1] if isinstance(targets, Tensor) and targets.dim() == 2 else 1
    if not multi and isinstance(targets, Tensor) and not targets.is_floating_point():
        raise ValueError(
            f"'{name}' is {kind}, class numbers it seems, but problem_type='regression': cast the column to float, or set "
            "problem_type='single_label_classification'."
        )
    if not isinstance(targets, Tensor) or targets.dim() not in ((2,) if multi else (1, 2)) or width != (outputs or width):
        raise ValueError(
            f"'{name}' is {kind}, expected {'numbers in [0, 1]' if multi else 'numbers'} of shape (B, {outputs or 'K'}) for "
            f"problem_type={problem!r}: repair the labels, num_labels or problem_type."
        )
    wrong = ~torch.isfinite(targets.float()) | ((targets < 0) | (targets > 1) if multi else False)
    bad = [index[i] for i in wrong.reshape(len(index), -1).any(1).nonzero().flatten().tolist()]
    if bad:
        told = "outside [0, 1]" if multi else "NaN or infinite"
        raise ValueError(f"'{name}' is {told} in training rows {bad[:5]}: repair or remove these rows.")


def _collation_error(error: Exception, examples: list[Any], index: list[int]) -> ValueError:
    """The likeliest cause of a failed collation, in one line."""
    if examples and isinstance(examples[0], Mapping):
        for key in examples[0]:
            values = [e.get(key) for e in examples]
            missing = next((i for v, i in zip(values, index) if v is None), None)
            if missing is not None:
                return ValueError(f"'{key}' is None in training row {missing}: repair or remove the row.")
            if all(isinstance(v, Tensor | np.ndarray) for v in values):
                shapes = {tuple(v.shape): i for v, i in zip(values, index)}
                if len(shapes) > 1:
                    told = ", ".join(f"{s} (row {i})" for s, i in list(shapes.items())[:3])
                    return ValueError(f"'{key}' has mixed sizes in one batch: {told}; resize the images to one size first.")
            if any(isinstance(v, str) for v in values):
                return ValueError(
                    f"'{key}' holds strings (row {index[0]}: {values[0]!r}), expected numbers: "
                    "encode labels with dataset.class_encode_column(...)."
                )
    return ValueError(f"the data collator failed on training rows {index[:5]}: {error}")


@lru_cache(maxsize=64)
def _channel_tensor(values: tuple[float, ...], device: torch.device, dims: int) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, *[1] * (dims - 2))


@dataclass(frozen=True)
class InputSpace:
    """The map between model inputs and [0, 1] pixels, x_model = (x_pixel - mean) / std, per channel of (B, C, H, W)."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError(f"image_mean has {len(self.mean)} values and image_std {len(self.std)}: give one per channel.")
        if min(self.std) <= 0:
            raise ValueError(f"image_std={list(self.std)} must be positive in every channel.")

    def _as(self, values: tuple[float, ...], x: Tensor) -> Tensor:
        return _channel_tensor(values, x.device, x.dim())

    def to_pixels(self, x: Tensor) -> Tensor:
        """Pixels, float32, of the model's inputs x (B, C, ...)."""
        return x.float() * self._as(self.std, x) + self._as(self.mean, x)

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """The model's inputs of pixels (B, C, ...), of their dtype."""
        return (pixels - self._as(self.mean, pixels)) / self._as(self.std, pixels)

    def check(self, x: Tensor) -> None:
        """Raises ``ValueError`` where x (B, C, ...) does not fit mean and std, or leaves [0, 1] once they are undone."""
        if x.dim() < 3 or len(self.mean) not in (1, x.shape[1]):
            raise ValueError(
                f"image_mean has {len(self.mean)} values but the inputs have shape {tuple(x.shape)}, (B, C, H, W): "
                "give one mean and std per channel."
            )
        pixels = self.to_pixels(x.detach())
        low, high = float(pixels.min()), float(pixels.max())
        if low < -0.02 or high > 1.02:
            raise ValueError(
                f"inputs span [{low:.3g}, {high:.3g}] once image_mean={list(self.mean)} and image_std={list(self.std)} are "
                "undone, expected [0, 1] pixels: pass the mean and std that the preprocessing really uses."
            )

    def ball(self, norm: str, eps: float) -> Ball:
        """The ball of radius eps pixels around each image."""
        return Ball(norm, eps)

    def to_pixel_gradient(self, grad: Tensor) -> Tensor:
        """The gradient with respect to pixels, from the one with respect to the model's input."""
        return grad / self._as(self.std, grad)

    def clip(self, x: Tensor, delta: Tensor) -> Tensor:
        """``delta`` in pixels, shortened so that x + delta stays in [0, 1] pixels."""
        pixels = self.to_pixels(x)
        # a pixel that rounding put a hair outside [0, 1] must not be moved by a zero delta
        return torch.minimum(torch.maximum(delta, (0.0 - pixels).clamp_max(0.0)), (1.0 - pixels).clamp_min(0.0))

    def add(self, x: Tensor, delta: Tensor) -> Tensor:
        """x + delta clipped to [0, 1] pixels, in the model's units and x's dtype, for delta in pixels; exactly x at delta 0."""
        std, mean = self._as(self.std, x), self._as(self.mean, x)
        start = x.float()
        out = start + delta / std
        # a pixel that rounding put a hair outside the range may stay there
        torch.maximum(out, torch.minimum(start, (0.0 - mean) / std), out=out)
        torch.minimum(out, torch.maximum(start, (1.0 - mean) / std), out=out)
        return out.to(x.dtype)


def input_space(processor: Any, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> InputSpace | None:
    """The `InputSpace` of an image processor, or of an explicit mean and std, which win; None where neither tells.

    Raises ``ValueError`` when only one of mean and std is given.
    """
    if (mean is None) != (std is None):
        raise ValueError(f"image_mean={mean} and image_std={std} belong together: give both or neither.")
    if isinstance(mean, int | float) or isinstance(std, int | float):
        raise ValueError(f"image_mean={mean} and image_std={std} must be lists, one number per channel: give [{mean}] for one.")
    if mean is not None and std is not None:
        return InputSpace(tuple(map(float, mean)), tuple(map(float, std)))
    processor = getattr(processor, "image_processor", processor)
    settings = getattr(processor, "data_config", None)  # timm models through transformers' wrapper
    if isinstance(settings, Mapping) and "mean" in settings:
        return InputSpace(tuple(map(float, settings["mean"])), tuple(map(float, settings["std"])))
    if getattr(processor, "do_normalize", None) is None and not hasattr(processor, "image_mean"):
        return None
    if getattr(processor, "do_normalize", True):
        found_mean, found_std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
        if found_mean is None or found_std is None:
            return None
        as_list = lambda v: (float(v),) if isinstance(v, int | float) else tuple(map(float, v))  # noqa: E731
        found = InputSpace(as_list(found_mean), as_list(found_std))
    else:
        found = InputSpace()
    if not getattr(processor, "do_rescale", True):
        return None  # the inputs may be 0..255 or 0..1: only the user knows
    return found
