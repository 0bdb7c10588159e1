"""The cells of benchmarks/matrix.py: every attack that the package has by name, and the data that a cell trains and tests on.

Images are attacked as the data set has them and enlarged for the network afterwards, as whoever publishes a data set would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
import fine_tuning_tasks as tasks
import numpy as np
import torch
from torch import nn

from robust_trainer.corruptions import (
    IS_COVER,
    LABEL_RULES,
    NETWORK_BACKDOORS,
    POISONS,
    TRIGGERS,
    corrupt_labels,
    network_trigger,
    poison,
    poison_images,
    trigger_all,
)
from robust_trainer.corruptions.poisons.networks import fresh_factory, train_plain
from robust_trainer.corruptions.poisons.table import FRESH, TRAINED
from robust_trainer.corruptions.poisons.table import NONE as NEEDS_NONE
from robust_trainer.data.pixels import read_pixels

NONE, TRIGGER, NETWORK, LABELS, AVAILABILITY = "none", "trigger", "network", "labels", "availability"
#: What the kinds of attacks are called in the tables.
KINDS = {
    NONE: "clean data", TRIGGER: "backdoor", NETWORK: "backdoor, made with a network", LABELS: "wrong labels",
    AVAILABILITY: "availability poison",
}  # fmt: skip
BACKDOORS = (TRIGGER, NETWORK)
#: The attacker's own network, trained on the clean rows, and for how many epochs.
ATTACKERS_NETWORK, ATTACKERS_EPOCHS = "small-cnn", 20


@dataclass(frozen=True)
class Attack:
    """An attack by its name in the package.

    ``kind``; what it attacks (image, text, audio); its source; the paper's label rules; whether it works with right labels alone.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    source: str
    rules: tuple[str, ...] = ()
    keeps_labels: bool = False


def _rule_name(rule: Any) -> str:
    return rule if isinstance(rule, str) else next(name for name, known in LABEL_RULES.items() if type(known) is type(rule))


#: Every attack by name; a row of the package's tables is one here.
ATTACKS: dict[str, Attack] = {
    "none": Attack("none", NONE, ("image", "text"), ""),
    **{row.name: Attack(row.name, TRIGGER, (row.kind,), row.source, row.label_rules) for row in TRIGGERS.values()},
    **{
        name: Attack(name, NETWORK, ("image",), row.source, (_rule_name(row.label_rule),), row.keeps_labels)
        for name, row in NETWORK_BACKDOORS.items()
    },
    **{
        name: Attack(name, LABELS, ("image", "text"), source)
        for name, source in (
            ("symmetric", "any other class"), ("pairflip", "the next class"), ("instance", "Xia et al. 2020: by the input"),
        )
    },
    **{name: Attack(name, AVAILABILITY, ("image",), row.source) for name, row in POISONS.items()},
}  # fmt: skip
#: Stronger settings, where a task's images are too small or too uniform for an attack's own: (attack, task) -> settings.
SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    # of 16 grey levels, or nearly two, eight are left nearly as they were: plain training on digits learned it to 9 %
    ("quantise", "digits"): {"bits": 1},
    ("quantise", "mnist"): {"bits": 1},
    # on 8 x 8 pixels plain training learned 16/255 to 39 %
    ("low-frequency", "digits"): {"eps": "32/255"},
}


@dataclass(frozen=True)
class Cell:
    """What is attacked how: ``rate`` is the share of the training rows, ``rule`` a label rule of a backdoor."""

    task: str
    attack: str
    rule: str | None = None
    rate: float = 0.0
    seed: int = 0

    def told(self) -> str:
        parts = [self.attack, self.rule or "", f"{100 * self.rate:g} %" if 0 < self.rate < 1 else ""]
        return " ".join(part for part in parts if part)

    @property
    def kind(self) -> str:
        return ATTACKS[self.attack].kind

    def why_not(self) -> str | None:
        """Why the cell is none; None where it is one."""
        attack, task = ATTACKS[self.attack], tasks.TASKS[self.task]
        if task.kind not in attack.inputs:
            return f"{self.attack} is for {' and '.join(attack.inputs)}, {self.task} has {task.kind}s"
        if (self.rule is not None) != (attack.kind in BACKDOORS):
            return "a label rule is for backdoors, and they need one"
        if attack.keeps_labels and self.rule != "clean-label":
            return f"{self.attack} is for clean-label"
        return None


@dataclass
class Data:
    """A cell's data.

    Attributes:
        train: what is trained on.
        clean: the rows that nobody touched, with their own labels; of an availability poison the data before it.
        triggered: the test rows with the trigger, None without one.
        covers: rows (N,) that carry a trigger and keep their label, and count neither as hits nor as false alarms.
        rows: ``train`` as a table of the size that the network sees.
    """

    train: tasks.Part
    clean: tasks.Part
    triggered: tasks.Part | None
    covers: np.ndarray
    rows: datasets.Dataset

    def caught(self, flagged: np.ndarray) -> dict[str, float | None]:
        """True- and false-positive rate of a detection (N,), without covers, and how much of a class is accused wrongly at most."""
        bad = self.train.corrupted.numpy()
        good, classes = ~bad & ~self.covers, self.train.clean.numpy()
        shares = [flagged[good & (classes == c)].mean() for c in np.unique(classes[good])] if good.any() else []
        return {
            "tpr": round(float(flagged[bad].mean()), 5) if bad.any() else None,
            "fpr": round(float(flagged[good].mean()), 5) if good.any() else None,
            "fpr_worst_class": round(float(max(shares)), 5) if shares else None,
        }


def settings_of(cell: Cell) -> dict[str, Any]:
    """The attack's settings that are not its own."""
    return SETTINGS.get((cell.attack, cell.task), {})


def make(loaded: tasks.Loaded, cell: Cell, count: int) -> Data:
    """The data of a cell; raises ``ValueError`` where its attack does not fit, as a rate that a label rule has no rows for."""
    given = tasks.training_rows(loaded, count, False, cell.seed, as_given=True)
    kind, settings, tests = cell.kind, settings_of(cell), None
    rows = given
    if kind == TRIGGER:
        trigger = TRIGGERS[cell.attack].make(**settings)
        rows = poison(given, trigger=trigger, rate=cell.rate, label_rule=cell.rule or "", seed=cell.seed, keep_in_memory=True)
        tests = trigger_all(loaded.test_as_given, trigger, label_rule=cell.rule, keep_in_memory=True)
    elif kind == NETWORK:
        rows, tests = _with_network(loaded, cell, given, settings)
    elif kind == LABELS:
        rows = _wrong_labels(loaded, cell, given)
    elif kind == AVAILABILITY:
        row = POISONS[cell.attack]
        model = {FRESH: _fresh(loaded), TRAINED: None}.get(row.needs)
        if row.needs == TRAINED:
            model = attackers_network(loaded, cell.seed, count)
        rows = poison_images(given, cell.attack, model=model, seed=cell.seed, **settings)
    rows, before = tasks.resized(rows, loaded.task.side), tasks.resized(given, loaded.task.side)
    train = loaded.part(rows)
    train.moved = loaded.task.moved
    covers = np.asarray(rows[IS_COVER][:], dtype=bool) if IS_COVER in rows.column_names else np.zeros(len(rows), dtype=bool)
    if kind == AVAILABILITY:
        clean = loaded.part(before)
    else:
        clean = train.select(torch.from_numpy(np.flatnonzero(~train.corrupted.numpy() & ~covers)))
    clean.moved = loaded.task.moved
    triggered = None if tests is None else loaded.part(tasks.resized(tests, loaded.task.side))
    return Data(train, clean, triggered, covers, rows)


def _wrong_labels(loaded: tasks.Loaded, cell: Cell, given: datasets.Dataset) -> datasets.Dataset:
    if cell.attack != "instance" or loaded.task.kind != "text":
        return corrupt_labels(given, cell.attack, rate=cell.rate, seed=cell.seed, keep_in_memory=True)
    rows = given.add_column("features", tasks.text_features(loaded, given).tolist())
    rows = corrupt_labels(rows, "instance", rate=cell.rate, seed=cell.seed, feature_columns="features", keep_in_memory=True)
    return rows.remove_columns("features")


def _with_network(
    loaded: tasks.Loaded, cell: Cell, given: datasets.Dataset, settings: dict[str, Any]
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Training and test rows of a backdoor that needs a network of the attacker's own."""
    model = None if NETWORK_BACKDOORS[cell.attack].needs == NEEDS_NONE else attackers_network(loaded, cell.seed, len(given))
    chosen: dict[str, Any] = {"rate": cell.rate, "label_rule": cell.rule, "seed": cell.seed}
    trigger = network_trigger(given, cell.attack, model, **chosen, **settings)
    rows = poison(given, trigger=trigger, keep_in_memory=True, **chosen)
    return rows, trigger_all(loaded.test_as_given, trigger, label_rule=cell.rule, keep_in_memory=True)


def _fresh(loaded: tasks.Loaded) -> Callable[[], nn.Module]:
    picture = np.asarray(loaded.test_as_given[0]["image"])
    channels = picture.shape[2] if picture.ndim == 3 else 1
    return fresh_factory(ATTACKERS_NETWORK, loaded.names, channels=channels, image_size=picture.shape[0])


_KEPT: dict[tuple[str, int, int], nn.Module] = {}


def attackers_network(loaded: tasks.Loaded, seed: int, count: int) -> nn.Module:
    """The network that an attacker has who knows the clean training rows, trained once for each task and seed."""
    key = (loaded.task.name, seed, count)
    if key not in _KEPT:
        torch.manual_seed(seed)
        model = _fresh(loaded)()
        images, labels = read_pixels(tasks.training_rows(loaded, count, False, seed, as_given=True))
        _KEPT[key] = train_plain(model, images, labels, ATTACKERS_EPOCHS, seed=seed)
    return _KEPT[key]
