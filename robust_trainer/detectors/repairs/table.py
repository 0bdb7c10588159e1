"""Every repair of a backdoored model as one row of a table, and `repair`, which asks one by its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import TrainingArguments

from ...models.peers import PeerModel
from ...reporting.suggest import did_you_mean
from .anti_backdoor import anti_backdoor_learning
from .backdoor_removal import backdoor_removal
from .fine_pruning import fine_prune
from .repaired import Repaired


@dataclass(frozen=True)
class Repair:
    """One repair: what it needs, and its settings with their defaults.

    Attributes:
        name: the key in `REPAIRS`.
        summary: what it does, in a few words.
        source: author, year and title.
        starts_from: the model that it takes: ``trained``, on the poisoned rows, or ``untrained``, as training finds it.
        clean_rows: what clean data it needs; None where it needs none.
        function: ``(model, data, args, clean, rate, collate, seed, *, setting=default, ...) -> Repaired``.
    """

    name: str
    summary: str
    source: str
    starts_from: str
    clean_rows: str | None
    function: Callable[..., Repaired]

    @property
    def defaults(self) -> Mapping[str, Any]:
        """Returns the settings that the repair takes, with their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _fine_pruning(
    model: nn.Module, data: Any, args: TrainingArguments, clean: Any, rate: float | None,
    collate: Callable[[list[Any]], Any] | None, seed: int,
    *, rule: str = "last-conv", prune_share: float | None = None, max_drop: float = 0.1,
) -> Repaired:  # fmt: skip
    found = fine_prune(
        model, clean, args, rule=rule, clean_fraction=1.0, prune_share=prune_share, max_drop=max_drop, collate=collate, seed=seed
    )
    details = {name: value for name, value in vars(found).items() if name not in ("model", "rows")}
    return Repaired("fine-pruning", found.model, None, details)


_ROWS = (
    Repair(
        "fine-pruning", "prunes units that clean samples leave idle, then fine-tunes on these samples",
        "Liu, Dolan-Gavitt and Garg 2018, Fine-pruning: defending against backdooring attacks on deep neural networks", "trained",
        "rows of all classes, about 5 % of the training set", _fine_pruning,
    ),
    Repair(
        "abl", "isolates what is learned first, trains on the rest, unlearns what was isolated",
        "Li et al. 2021, Anti-backdoor learning: training clean models on poisoned data", "untrained", None,
        anti_backdoor_learning,
    ),
    Repair(
        "d-br", "unlearns rows whose features move most with the image, relearns those whose features move least",
        "Chen, Wu and Wang 2022, Effective backdoor defense by exploiting sensitivity of poisoned samples", "trained", None,
        backdoor_removal,
    ),
)  # fmt: skip
#: Every repair by its name.
REPAIRS: Mapping[str, Repair] = {row.name: row for row in _ROWS}


def repair(
    name: str,
    model: nn.Module,
    data: Any,
    args: TrainingArguments,
    *,
    clean: Any = None,
    rate: float | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
    seed: int = 0,
    **settings: Any,
) -> Repaired:
    """Returns a repaired copy of a model, by a row of `REPAIRS`; the model that is given is left as it is.

    Args:
        name: a key of `REPAIRS`.
        model: a classifier, trained on ``data`` or untrained, as the row's ``starts_from`` says.
        data: the training rows, poisoned ones among them; map-style, rows are dicts.
        args: of the plain `Trainer`, which does all training of a repair; its epochs are the length of a whole training.
        clean: clean rows, for repairs that need them (``REPAIRS[name].clean_rows``); the others refuse them.
        rate: the expected share of poison in [0, 1), for repairs that ask for it.
        collate: as the Trainer's ``data_collator``.
        seed: for what is drawn.
        settings: the repair's own (``REPAIRS[name].defaults``).

    Raises:
        ValueError: for an unknown name or setting, a value out of range, clean rows that are missing or of no use, a `PeerModel`.
    """
    if not isinstance(name, str) or name not in REPAIRS:
        raise ValueError(f"unknown repair {name!r}: {did_you_mean(name, REPAIRS)}choose one of {', '.join(REPAIRS)}.")
    row = REPAIRS[name]
    unknown = [setting for setting in settings if setting not in row.defaults]
    if unknown:
        raise ValueError(f"repair {name!r} has no setting {unknown[0]!r}: it takes {', '.join(row.defaults)}.")
    if row.clean_rows is not None and clean is None:
        raise ValueError(f"clean=None: repair {name!r} needs clean rows ({row.clean_rows}).")
    if row.clean_rows is None and clean is not None:
        raise ValueError(f"clean was given, but repair {name!r} uses no clean rows: leave it out.")
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1):
        raise ValueError(f"rate={rate!r}: expected the share of poison, from 0 to below 1.")
    if not isinstance(args, TrainingArguments):
        raise ValueError(f"args is a {type(args).__name__}: expected TrainingArguments, of the training that the repair does.")
    if isinstance(model, PeerModel):
        raise ValueError("model is a PeerModel of several networks: a repair takes one, such as model.peers[0].")
    return row.function(model, data, args, clean, rate, collate, seed, **settings)
