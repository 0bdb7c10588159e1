"""What was done to a data set with an availability poison: as a record, and as a data card to go with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets

from ...perturbations.norms import NORMS
from ...reporting.atomic_files import write_text
from ...reporting.safe_text import plain
from .poison_images import realised_norms
from .table import find_poison, make_ball


def poison_record(
    clean: datasets.Dataset,
    poisoned: datasets.Dataset,
    poison: str,
    *,
    norm: str = "linf",
    eps: float | str | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    model: str = "none",
    model_accuracy: float | None = None,
    check: Mapping[str, Any] | None = None,
    image_column: str | None = None,
) -> dict[str, Any]:
    """Returns what there is to know of a poisoned data set, ready for JSON: poison, norm, eps, realised norms, model, seed, rows.

    Args:
        clean: the data set as it was.
        poisoned: what became of it.
        poison: a name of `POISONS`.
        norm: of the ball.
        eps: its radius in [0, 1] pixels; None: the norm's usual one.
        seed: of the crafting.
        settings: that differ from the poison's own.
        model: the attacked model in words.
        model_accuracy: its accuracy on clean test images, in [0, 1].
        check: what `self_check` returned.
        image_column: default the one that holds images.
    """
    row, ball = find_poison(poison), make_ball(norm, eps)
    return {
        "poison": row.name, "summary": row.summary, "source": row.source, "norm": ball.norm, "eps": ball.eps, "seed": seed,
        "settings": {**row.settings, **(settings or {})}, "realised": realised_norms(clean, poisoned, image_column),
        "model": model, "model_accuracy": model_accuracy, "rows": len(poisoned), "self_check": dict(check) if check else None,
    }  # fmt: skip


def write_card(folder: str | Path, record: Mapping[str, Any], *, data: str = "", labels: str = "true", load: str = "") -> Path:
    """Writes README.md, a data card with front matter, into a folder and returns its path.

    Args:
        folder: is made where it is missing.
        record: of `poison_record`.
        data: the clean data set in words.
        labels: what became of the labels.
        load: the line of Python that loads the data; default ``load_from_disk`` of the folder.
    """
    card = _card(record, data, labels, load or 'data = load_from_disk("path/to/this/folder")')
    return write_text(Path(folder) / "README.md", card)


def _card(record: Mapping[str, Any], data: str, labels: str, load: str) -> str:
    norms, check = record["realised"], record["self_check"]
    accuracy = "" if record["model_accuracy"] is None else f", {100 * record['model_accuracy']:.1f} % accurate on clean test images"
    rows = {
        "poison": f"{record['poison']}: {record['summary']}",
        "source": record["source"],
        "clean data": data or "not told",
        "rows": f"{record['rows']}, every training image is perturbed",
        "labels": labels,
        "norm and radius": f"{record['norm']}, {_eps(record['eps'])} in [0, 1] pixels",
        "perturbation as stored, linf": f"max {_eps(norms['linf_max'])}, mean {norms['linf_mean']:.5f}",
        **{
            f"perturbation as stored, {name}": f"max {norms[f'{name}_max']:.5f}, mean {norms[f'{name}_mean']:.5f}"
            for name in NORMS
            if name != "linf"
        },
        "model": record["model"] + accuracy,
        "seed": str(record["seed"]),
        "settings": json.dumps(record["settings"]) if record["settings"] else "defaults",
    }
    table = "\n".join(f"| {name} | {_cell(text)} |" for name, text in rows.items())
    checked = (
        "Not run."
        if check is None
        else f"{check['told'][0].upper()}{check['told'][1:]}\n\nChance level: {100 * check['chance']:.1f} %. Seed {check['seed']}, "
        f"{check['test_rows']} test images, the same network and initial weights in both trainings."
    )
    return f"""---
pretty_name: {json.dumps(f"{data or 'images'}, poisoned by {record['poison']}")}
task_categories:
- image-classification
tags:
- data-poisoning
- availability-attack
- robust-trainer
---

# Images poisoned by {record["poison"]}

**Training on this data damages a model.** It is made for evaluating defences: methods that should learn well in spite of it.

| | |
|---|---|
{table}

Images are 8-bit PNG, rounded to the nearest level, which moves a pixel by at most 0.5/255. An linf radius of a whole number of
255ths is kept exactly; an l2 radius may be exceeded by a hair, as the table tells. The test split is clean. Columns: `image`,
`label`, `is_poisoned` (true in every training row) and, where labels were changed, `is_corrupted` and `clean_label`.

## Load

```python
from datasets import load_from_disk

{load}
```

## Self-check

{checked}
"""


def _cell(text: str) -> str:
    return plain(text, 1000).replace("|", "\\|")


def _eps(eps: float) -> str:
    levels = eps * 255
    return f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-6 and eps <= 1 else f"{eps:g}"
