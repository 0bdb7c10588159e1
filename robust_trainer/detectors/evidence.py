"""What detectors judge by: labels, features, probabilities, losses of every training sample, and more where it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.labels import check_model_names
from ..models.features import last_linear, watched
from ..models.modes import scoring_mode
from .layers import watched_layers, watching
from .moves import moved
from .passes import Pass, checked_logits

#: Fields that cost more than the one forward of all others, and are collected where they are asked for.
EXTRA = ("layers", "consistency", "images")
_SHAPES = {
    "features": "D", "probs": "C", "losses": "", "layers": "L", "consistency": "", "images": "channels, H, W",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of N samples, in the data set's order; what a detector does not need may be None.

    Args:
        labels: the given ones (N,), int64.
        features: the input of the model's last linear layer, (N, D) float32.
        probs: predicted probabilities (N, C) float32 (confident-joint: out-of-sample ones, or running means over training).
        losses: the cross-entropy of the given labels in nats, (N,) float32 (loss-isolation: early in training).
        layers: of every hidden layer the log-likelihood of the sample's least likely activation, (N, L) float32, in nats, in the
            order in which the layers run.
        consistency: the mean squared change of the features when the image is turned and shifted, (N,) float32.
        images: as the model takes them, (N, channels, H, W) float16, which is half of what the model's own inputs take.
        clean: the same of rows that are known to be clean, by the same model; their labels are right.

    Raises:
        ValueError: for shapes that do not fit, labels out of range and numbers that are not finite.
    """

    labels: np.ndarray
    features: np.ndarray | None = None
    probs: np.ndarray | None = None
    losses: np.ndarray | None = None
    layers: np.ndarray | None = None
    consistency: np.ndarray | None = None
    images: np.ndarray | None = None
    clean: Evidence | None = None

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) == 0:
            raise ValueError(f"labels are {labels.shape} {labels.dtype}, expected integers (N,) with N of at least 1.")
        if labels.min() < 0:
            raise ValueError(f"labels go down to {labels.min()}, expected classes from 0: drop or mend these rows.")
        object.__setattr__(self, "labels", labels.astype(np.int64))
        for name, axes in _SHAPES.items():
            numbers = getattr(self, name)
            if numbers is None:
                continue
            array = np.asarray(numbers)
            dims = 1 + len(axes.split(", ")) if axes else 1
            if array.ndim != dims or len(array) != len(labels) or array.size == 0 or array.dtype.kind not in "fiu":
                expected = f"({len(labels)}, {axes})" if axes else f"({len(labels)},)"
                raise ValueError(f"{name} are {array.shape} {array.dtype}, expected numbers {expected}, a row for each label.")
            array = array.astype(np.float16 if name == "images" else np.float32, copy=False)
            broken = ~np.isfinite(array.reshape(len(array), -1)).all(1)
            if broken.any():
                rows = f"{int(broken.sum())} of {len(array)} rows of {name} are not finite, first row {int(broken.argmax())}"
                raise ValueError(f"{rows}: training diverged? Train with a smaller learning rate.")
            object.__setattr__(self, name, array)
        if self.probs is not None and labels.max() >= self.probs.shape[1]:
            raise ValueError(f"labels go up to {labels.max()} but probs have {self.probs.shape[1]} classes: give one column each.")
        if self.probs is not None and (self.probs.min() < -1e-4 or self.probs.max() > 1 + 1e-4):
            raise ValueError(f"probs reach from {self.probs.min():g} to {self.probs.max():g}, expected 0 to 1: apply a softmax.")
        if self.clean is not None:
            _check_clean(self, self.clean)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        """Returns the number of classes: the columns of probs, without them the largest label and one."""
        return int(self.labels.max()) + 1 if self.probs is None else self.probs.shape[1]


def _check_clean(own: Evidence, clean: Any) -> None:
    if not isinstance(clean, Evidence):
        raise ValueError(f"clean is a {type(clean).__name__}: expected an Evidence, of rows that are known to be clean.")
    for name in _SHAPES:
        mine, other = getattr(own, name), getattr(clean, name)
        if mine is not None and other is not None and mine.shape[1:] != other.shape[1:]:
            raise ValueError(f"{name} of the clean rows are {other.shape}, else {mine.shape}: use the same model and size.")


def collect_evidence(
    model: nn.Module,
    dataset: Any,
    *,
    needs: Iterable[str] = (),
    clean: Any = None,
    collate: Callable[[list[Any]], Any] | None = None,
    batch_size: int = 256,
    label_names: Sequence[str] = ("labels", "label"),
    device: torch.device | str | None = None,
    seed: int = 0,
) -> Evidence:
    """Returns the evidence from one pass of a classifier over a data set, in evaluation mode, in its order.

    Features: the input of the last linear layer that ran and is as wide as the logits; where it runs on every token (decoders that
    classify texts), at the token that gives the logits. probs: softmax of the logits. losses: cross-entropy of the given labels.
    A data set that augments at random gives one such view.

    Where asked for: ``layers`` (`LayerWatch`; models without batch normalisation take one more pass), ``consistency`` (a second
    forward on images turned and shifted) and ``images``. The last two stay None where the model takes no images.

    Guarantee: mode, hooks and random state are as before, also after an exception.

    Args:
        model: returns logits, a tuple that they head, or a transformers output; of a `PeerModel` the features are the first
            network's, the logits the mean. Keys of a batch that its forward does not name are left out.
        dataset: map-style, one split.
        needs: fields of `Evidence` that are to be collected, such as ``DETECTORS["flare"].needs``.
        clean: a data set of rows that are known to be clean, in the form of ``dataset``, for detectors that need them.
        collate: rows -> batch; None: transformers' default.
        batch_size: rows of a batch, >= 1.
        label_names: columns under one of which the labels stand.
        device: where batches go; None: where the model is, which is not moved.
        seed: of the turns and shifts.

    Raises:
        ValueError: for a model without such a layer, for no or unfit labels, for an unknown need, and where a number is not finite.
    """
    needs = {needs} if isinstance(needs, str) else set(needs)
    if unknown := sorted(needs - {"labels", "clean", *_SHAPES}):
        raise ValueError(f"needs names {unknown[0]!r}: choose from {', '.join(_SHAPES)}.")
    extra = [name for name in EXTRA if name in needs]
    reading = Pass(dataset, collate, batch_size, label_names, device)
    check_model_names(dataset, model, label_names)
    known = None
    if clean is not None:
        check_model_names(clean, model, label_names)
        known = _read(model, Pass(clean, collate, batch_size, label_names, device), [e for e in extra if e != "consistency"], seed)
    return replace(_read(model, reading, extra, seed), clean=known)


def _read(model: nn.Module, reading: Pass, extra: list[str], seed: int) -> Evidence:
    generator = torch.Generator().manual_seed(seed)
    parts: dict[str, list[Tensor]] = {name: [] for name in ("labels", "features", "probs", "losses", *extra)}
    watch = watched_layers(model) if "layers" in extra else None
    with ExitStack() as within:
        within.enter_context(scoring_mode(model))
        layers = within.enter_context(watched(model))
        if watch is not None:
            within.enter_context(watching(watch))
        if watch is not None and watch.own_statistics:
            watch.counting = True
            for inputs, _ in reading.inputs(model):
                watch.mask = inputs.get("attention_mask")
                model(**inputs)
            watch.counting = False
        for inputs, labels in reading.inputs(model):
            if watch is not None:
                watch.mask = inputs.get("attention_mask")
            outputs = model(**inputs)
            logits = checked_logits(outputs, model, labels)
            features = last_linear(layers, outputs, logits)[1]
            parts["labels"].append(labels.long().cpu())
            parts["features"].append(features.cpu())
            parts["probs"].append(logits.softmax(-1).cpu())
            parts["losses"].append(F.cross_entropy(logits, labels.long().to(logits.device), reduction="none").cpu())
            if watch is not None:
                parts["layers"].append(watch.take().cpu())
            layers.linear.clear()
            image = next((k for k, v in inputs.items() if isinstance(v, Tensor) and v.dim() == 4 and v.is_floating_point()), None)
            if "images" in extra and image is not None:
                parts["images"].append(inputs[image].detach().half().cpu())
            if "consistency" in extra and image is not None:
                again = model(**{**inputs, image: moved(inputs[image], generator)})
                other = last_linear(layers, again, checked_logits(again, model, labels))[1]
                parts["consistency"].append((other - features).square().mean(1).cpu())
                layers.linear.clear()
                if watch is not None:
                    watch.take()
    arrays: dict[str, Any] = {name: torch.cat(found).numpy() for name, found in parts.items() if found}
    return Evidence(**arrays)


def evidence_of(trainer: Any, *, needs: Iterable[str] = (), clean: Any = None) -> Evidence:
    """Returns `collect_evidence` of a trained Trainer on its own training set, with its collator.

    The batch size is ``args.per_device_eval_batch_size``. Where a `RobustTrainer`'s ledger has mean predictions over the training
    (``ledger_predictions=True``) they are the probs.

    Args:
        trainer: a `RobustTrainer` or any `transformers.Trainer`, after `train`.
        needs: as of `collect_evidence`.
        clean: as of `collect_evidence`.

    Raises:
        ValueError: without a training set that has a length.
    """
    if trainer.train_dataset is None:
        raise ValueError("train_dataset=None: give the trainer the data set that is to be judged.")
    evidence = collect_evidence(
        trainer.model,
        trainer.train_dataset,
        needs=needs,
        clean=clean,
        collate=trainer._get_collator_with_removed_columns(trainer.data_collator),
        batch_size=trainer.args.per_device_eval_batch_size,
        label_names=tuple(dict.fromkeys([*(trainer.label_names or []), "labels", "label"])),
        device=trainer.args.device,
    )
    means = getattr(getattr(trainer, "ledger", None), "mean_probs", None)
    return evidence if means is None else replace(evidence, probs=means.detach().float().cpu().numpy())
