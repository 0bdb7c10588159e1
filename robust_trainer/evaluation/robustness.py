"""How robust a saved or trained model is: accuracy under each attack, and the worst case per sample."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate
from transformers import default_data_collator

from ..attacks.autoattack import Named, check_name, make_attacks, read_eps
from ..attacks.base import Attack, Draws
from ..attacks.preflight import after, before, check_inputs, merge
from ..attacks.progress import Progress
from ..attacks.records import Records, processes
from ..attacks.target import Target
from ..data.class_names import names_of
from ..data.fingerprint import fingerprint
from ..data.indexing import INDEX, IndexCollator, Indexed
from ..data.labels import check_label_column, check_labels
from ..data.randomness import keyed_seed
from ..perturbations.norms import NORMS, find_norm
from ..problems import SINGLE_LABEL
from ..reporting.console import show

logger = logging.getLogger(__name__)
DEFAULT_ATTACKS = ("pgd-20", "cw-20", "autoattack")
#: The radius where none is given, in [0, 1] pixels; l_2 has no usual one.
DEFAULT_EPS = {"linf": 8 / 255}
CLEAN, WORST = "clean", "worst case"


@dataclass
class Robustness:
    """What `evaluate_robustness` found; accuracies are shares of all n samples in [0, 1].

    Args:
        accuracies: Attack -> share still right under it.
        worst_case: Share right under every one of them.
        per_sample: 'clean', each attack and 'worst case' -> (n,) booleans "right", in the order of ``index``, the samples'
            positions in the data set.
        seconds: Attack -> time, summed over processes.
        members: Attack -> what was run, with settings.
    """

    clean_accuracy: float
    accuracies: dict[str, float]
    worst_case: float
    n: int
    eps: float
    norm: str
    seconds: dict[str, float]
    per_sample: dict[str, np.ndarray]
    warnings: list[str] = field(default_factory=list)
    seed: int = 0
    members: dict[str, list[str]] = field(default_factory=dict)
    index: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def to_dict(self) -> dict[str, Any]:
        """The figures and settings for JSON, without the single samples."""
        names = ("clean_accuracy", "accuracies", "worst_case", "n", "eps", "norm", "seed", "seconds", "members", "warnings")
        return {**{name: getattr(self, name) for name in names}, "seconds": {k: round(v, 2) for k, v in self.seconds.items()}}

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """The heading and the rows of the table, in percent."""
        figures = [(CLEAN, self.clean_accuracy), *self.accuracies.items(), (WORST, self.worst_case)]
        heading = ["attack", "robust accuracy %", "seconds", "n"]
        seconds = {**self.seconds, WORST: sum(self.seconds.values())}
        return heading, [
            [name, f"{100 * value:.2f}", f"{seconds[name]:.1f}" if name in seconds else "-", str(self.n)] for name, value in figures
        ]

    def table(self) -> str:
        """The table as text, with the radius in its first line and the warnings below."""
        warnings = "".join(f"\nwarning: {text}" for text in self.warnings)
        return f"{self.norm}, eps {show_eps(self.eps)}\n{show(*self.rows())}{warnings}"


def show_eps(eps: float) -> str:
    """The radius as people write it: 8/255 where it is so many 255ths, else the number.

    Args:
        eps: Radius in [0, 1] pixels.
    """
    return f"{round(eps * 255)}/255" if abs(eps * 255 - round(eps * 255)) < 1e-6 and eps <= 1 else f"{eps:g}"


def evaluate_robustness(
    model: nn.Module,
    dataset: Any,
    attacks: Sequence[str | Attack] | str | Attack = DEFAULT_ATTACKS,
    eps: float | str | None = None,
    norm: str = "linf",
    *,
    processing_class: Any = None,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    batch_size: int = 64,
    max_samples: int | None = None,
    seed: int = 0,
    data_collator: Callable[[list[Any]], Mapping[str, Any]] | None = None,
    label_names: Sequence[str] = ("labels", "label"),
    resume_from: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Robustness:
    """Returns the `Robustness` of an image classifier: clean accuracy, accuracy under each attack, and the worst case per sample.

    A sample that the model gets wrong is not attacked and counts as broken. Each attack visits all others on its own; within
    'autoattack' the later members only visit the earlier ones' survivors (Croce & Hein 2020, sec. 5). The worst case is right only
    where every attack asked for failed, so it is at most each attack's accuracy.

    Raises one-line ``ValueError``s for bad settings, inputs that leave [0, 1] once the normalisation is undone, labels out of
    range, fewer than two classes, and a ``resume_from`` that was written with other settings, model or data.

    Args:
        model: As for `Target`, which also tells how the normalisation is known; it is used on the device where it lies and left as
            it was.
        dataset: Examples with the model's input, normalised as the model takes it, and labels (B,), or (input, label) pairs.
        attacks: Names of `attacks.autoattack.NAMES` or `Attack`s.
        eps: Radius in [0, 1] pixels, a number or a text; default 8/255 for norm 'linf'; norm 'l2' needs one.
        norm: ``linf`` or ``l2``.
        processing_class: The image processor, which tells the normalisation.
        image_mean: Per-channel mean of the normalisation, where no processor tells it.
        image_std: Per-channel standard deviation, likewise.
        batch_size: Images per forward pass.
        max_samples: So many samples, drawn by ``seed`` without replacement; default all.
        seed: Of that choice and of the attacks, whose random numbers are keyed by (seed, attack, sample): batch size, order and
            number of processes do not matter beyond rounding.
        data_collator: Examples to a batch; default: transformers' own.
        label_names: Names that the labels may have.
        resume_from: A file (JSON lines) written batch by batch, and within a batch attack by attack where they take long; where it
            exists, its samples are not attacked again, and a batch that was begun goes on with its next attack, given the same
            batch_size. Under several processes (accelerate launch, torchrun) each takes a share and all return the whole.
        progress: Show a progress bar.
    """
    if norm not in DEFAULT_EPS and eps is None:
        usual = find_norm(norm).usual
        raise ValueError(f"norm={norm!r} needs eps, the radius in [0, 1] pixels: give for instance eps={usual}.")
    radius = read_eps(DEFAULT_EPS[norm] if eps is None else eps, norm)
    names: list[str | Attack] = list(attacks) if isinstance(attacks, Sequence) and not isinstance(attacks, str) else [attacks]
    for name in names:
        if not callable(name):
            check_name(name)
    for what, number in (("batch_size", batch_size), ("max_samples", max_samples)):
        if number is not None and (not isinstance(number, int | np.integer) or number < 1):
            raise ValueError(f"{what}={number!r} must be a whole number of at least 1: give for instance 64.")
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is {type(model).__name__}, expected a torch module: load the model first.")
    if not hasattr(dataset, "__len__"):
        raise ValueError(f"dataset is {type(dataset).__name__} without a length: give a map-style data set, for instance a list.")
    label_names = [label_names] if isinstance(label_names, str) else label_names
    if len(dataset) == 0:
        raise ValueError("dataset has 0 samples: give some to attack.")
    target = Target(model, processing_class=processing_class, image_mean=image_mean, image_std=image_std)
    order = np.arange(len(dataset))
    if max_samples is not None and max_samples < len(order):
        order = np.sort(np.random.default_rng(seed).permutation(len(order))[:max_samples])
    rank, world = processes()
    weights = fingerprint(target.model) if resume_from is not None else None
    with torch.inference_mode(False), torch.no_grad(), target:
        reader = _Reader(target, dataset, data_collator, label_names)
        _, x, y = next(reader.batches(order[: min(batch_size, 64)], batch_size))
        classes = reader.find_classes(x, y)
        reader.check_column(classes, names_of(getattr(model, "config", None)))
        groups = make_attacks(names, radius, norm, classes)
        warnings = before(target, x, y)
        for warning in warnings if rank == 0 else ():  # now: the attacks may take hours
            logger.warning(warning)
        members = {group.name: [repr(attack) for _, attack in group.members] for group in groups}
        settings: dict[str, Any] = {"attacks": members, "eps": radius, "norm": norm, "seed": seed, "samples": len(order)}
        if weights is not None:
            settings |= {"data": f"{len(dataset)} {reader.fingerprint(order)}", "model": f"{weights} {target.space}"}
        records = Records(settings, resume_from, rank, world)
        done = records.done
        todo = np.array([i for i in order.tolist() if i not in done], dtype=np.int64)[rank::world]
        with Progress(len(todo) * sum(len(group.members) for group in groups), progress and rank == 0) as bar:
            seen = left = 0
            for index, x, y in reader.batches(todo, batch_size):
                row = _attack(target, groups, index, x, y, seed, bar, records)
                records.add(row)
                seen, left = seen + len(index), left + sum(_survived(row))
                bar.robust(left / seen)
    result = _result(records.all(), order, groups)
    result.eps, result.norm, result.seed, result.members = radius, norm, seed, members
    for warning in result.warnings if rank == 0 else ():
        logger.warning(warning)
    result.warnings = warnings + result.warnings
    return result


def _attack(
    target: Target, groups: Sequence[Named], index: list[int], x: Tensor, y: Tensor, seed: int, bar: Progress, records: Records
) -> dict[str, Any]:
    """One batch through every attack, or through those that an interrupted evaluation left: the row for `Records`."""
    row = records.begun.get(tuple(index))
    if row is None:
        row = {"index": index, "clean": target.right(x, y).int().tolist(), "broken": {}, "seconds": {}}
    row = {**row, "broken": {**row["broken"]}, "seconds": {**row["seconds"]}}
    begin = tuple(row.pop("next", (0, 0)))
    clean = torch.tensor(row["clean"], device=y.device).bool()
    for number, group in enumerate(groups):
        broken = torch.tensor(row["broken"].get(group.name, [-1] * len(y)), device=y.device)
        for place, (name, attack) in enumerate(group.members):
            left = (clean & (broken < 0)).nonzero().flatten()
            if len(left) and (number, place) >= begin:
                start = time.perf_counter()
                draws = Draws(keyed_seed("attack", seed, name), [index[i] for i in left.tolist()], target.device)
                forward = bar.watched(target, attack, name if len(group.members) == 1 else f"{group.name}: {name}")
                with torch.enable_grad():
                    x_adv = attack(forward, x[left], y[left], draws).detach()
                _check_within(name, x[left], x_adv, attack.eps, attack.norm)
                broken[left[~target.right(x_adv, y[left])]] = place
                row["broken"][group.name] = broken.tolist()
                row["seconds"][group.name] = round(row["seconds"].get(group.name, 0) + time.perf_counter() - start, 4)
                records.keep({**row, "next": [number, place + 1]})
            bar.visited(len(y))
        row["broken"].setdefault(group.name, broken.tolist())
        row["seconds"].setdefault(group.name, 0.0)
    return row


def _survived(row: Mapping[str, Any]) -> list[bool]:
    """Which of a row's samples are right without and under every attack."""
    by_sample = zip(*row["broken"].values())
    return [bool(clean) and all(by < 0 for by in broken) for clean, broken in zip(row["clean"], by_sample)]


def _check_within(name: str, x: Tensor, x_adv: Tensor, eps: float, norm: str) -> None:
    if x_adv.shape != x.shape:
        raise ValueError(f"attack {name!r} returned shape {tuple(x_adv.shape)} for images {tuple(x.shape)}: return images like x.")
    delta = (x_adv - x).flatten(1)
    size = float(NORMS[norm].size(delta).max())
    low, high = float(x_adv.min()), float(x_adv.max())
    if not (size <= eps * (1 + 1e-4) + 1e-6 and low >= -1e-6 and high <= 1 + 1e-6):
        raise ValueError(
            f"attack {name!r} returned images {size:.4g} away in {norm} (eps={eps:.4g}) within [{low:.4g}, {high:.4g}]: "
            "project them onto the ball and onto [0, 1]."
        )


def _result(rows: list[dict[str, Any]], order: np.ndarray, groups: Sequence[Named]) -> Robustness:
    place = {int(i): p for p, i in enumerate(order)}
    clean = np.zeros(len(order), dtype=bool)
    broken = {group.name: np.full(len(order), -1) for group in groups}
    seconds = dict.fromkeys(broken, 0.0)
    for row in rows:
        at = [place[i] for i in row["index"]]
        clean[at] = np.array(row["clean"], dtype=bool)
        for name, by in row["broken"].items():
            broken[name][at] = by
            seconds[name] += row["seconds"][name]
    right = {name: clean & (by < 0) for name, by in broken.items()}
    worst = np.logical_and.reduce([clean, *right.values()])
    by_member = [(member, broken[g.name] == i) for g in groups for i, (member, _) in enumerate(g.members)]
    return Robustness(
        clean_accuracy=float(clean.mean()), accuracies={name: float(mask.mean()) for name, mask in right.items()},
        worst_case=float(worst.mean()), n=len(order), eps=0.0, norm="", seconds=seconds,
        per_sample={CLEAN: clean, **right, WORST: worst}, warnings=after(merge(by_member), clean), index=order,
    )  # fmt: skip


class _Reader:
    """Batches of a data set as (positions, pixels in [0, 1], labels), checked on the way."""

    def __init__(self, target: Target, dataset: Any, collate: Any, label_names: Sequence[str]):
        self.target, self.label_names = target, tuple(label_names)
        name = target.input_name
        columns = getattr(dataset, "column_names", None) or []
        labels = [n for n in self.label_names if n in columns]
        if name in columns and labels and getattr(dataset, "format", {}).get("type") != "custom":
            dataset = dataset.select_columns([name, labels[0]])  # pictures and texts beside them need no collation
        self.dataset = dataset
        self.collate = IndexCollator(collate or _collate, self.label_names, None, name)

    def batches(self, positions: np.ndarray, batch_size: int) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        loader = DataLoader(
            Indexed(self.dataset), batch_size, sampler=positions.tolist(), collate_fn=self._read, generator=torch.Generator()
        )
        for batch in loader:
            inputs, labels = self._split(batch)
            yield batch[INDEX].tolist(), self.target.pixels(inputs), labels.to(self.target.device)

    def _read(self, features: list[Any]) -> dict[str, Any]:
        try:
            return self.collate(features)
        except ValueError as error:
            raise ValueError(str(error).replace("training row", "row")) from error

    def _split(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        name = self.target.input_name
        if name not in batch:
            tokens = " Token ids cannot be attacked: give an image model." if "input_ids" in batch else ""
            raise ValueError(
                f"no '{name}' in the batch, only {[k for k in batch if k != INDEX]}: let a transform make it from the images, as "
                f"ImageTransform(processor).apply_to(dataset).{tokens}"
            )
        check_inputs(batch[name], name)
        return batch[name], next(batch[n] for n in self.label_names if n in batch)

    def find_classes(self, x: Tensor, y: Tensor) -> int:
        """The number of classes K of the model's logits; labels are checked against it from now on."""
        classes = int(self.target.judge(x[:1]).shape[1])
        if classes < 2:
            raise ValueError(f"the model returns {classes} logit per image: an attack needs at least 2 classes.")
        self.collate.classes = classes
        name = self.label_names[0]
        try:
            check_labels({name: y}, [name], classes, list(range(len(y))))
        except ValueError:
            raise ValueError(
                f"labels reach {int(y.max())} but the model knows classes [0, {classes}): repair the labels or num_labels."
            ) from None
        return classes

    def check_column(self, classes: int, names: Sequence[str] | None) -> None:
        """Checks all labels of a `datasets.Dataset`, before hours are spent on those that come first."""
        if isinstance(self.dataset, datasets.Dataset):
            made: Any = lambda row: self._read(Indexed(self.dataset).__getitems__([row]))  # noqa: E731
            check_label_column(self.dataset, "dataset", self.label_names, classes, SINGLE_LABEL, made, names)

    def fingerprint(self, order: np.ndarray) -> str:
        """What tells up to 8 of the samples, evenly spread, from others: images and labels."""
        probe = order[np.unique(np.linspace(0, len(order) - 1, 8).astype(int))]
        return fingerprint(*(t for _, x, y in self.batches(probe, 8) for t in (x, y)))


def _collate(features: list[Any]) -> Mapping[str, Any]:
    """Uses transformers' default collation; (image, label) pairs of plain torch data sets too."""
    if isinstance(features[0], tuple | list) and len(features[0]) == 2:
        inputs, labels = default_collate(features)
        return {"pixel_values": inputs, "labels": labels}
    return default_data_collator(features)
