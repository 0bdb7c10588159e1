"""The report: one HTML file with the table, the curves and the most suspicious samples; it needs no network and no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from ..data.decode import ImageError, decode_image
from .atomic_files import write_text
from .figures import drawable, percent_lines
from .results import percent, table
from .safe_text import plain, visible

#: Figures: per-epoch column -> title and what to read from it.
PLOTS: Mapping[str, tuple[str, str]] = {
    "clean_accuracy": ("Clean accuracy", "On the untouched test data; higher is better."),
    "poison_accuracy": ("Poison accuracy", "On the test data with the trigger, against their true labels; higher is better."),
    "eval_accuracy": ("Accuracy", "On the evaluation data; higher is better."),
    "robust_accuracy": ("Robust accuracy", "On inputs perturbed by the attack that was trained against; higher is better."),
    "kept_clean": ("Kept of the clean samples", "The share of the clean training samples that was trained on; higher is better."),
    "kept_corrupted": (
        "Kept of the corrupted samples", "The share of the corrupted training samples that was trained on; lower is better."
    ),
    "kept_fraction": ("Kept of all samples", "The share of the training samples that was trained on."),
}  # fmt: skip
_THUMBNAIL = 96  # pixels, the longer side of an image in the report
TEXT = 400  # characters of a text in the report

#: Classes in the table of those of which few samples are kept.
FEW = 50


def write_report(
    path: str | Path, content: Mapping[str, Any], *, suspects: Sequence[Mapping[str, Any]] = (), suspects_of: str = "",
    title: str = "Robust training",
) -> Path:  # fmt: skip
    """Writes the report of `results.results` as one HTML file and returns its path.

    Args:
        path: File to write.
        content: The run's `results.results`.
        suspects: Rows of `results.suspects`, shown as pictures or texts in that order.
        suspects_of: The method whose ledger they come from.
        title: Heading of the page.
    """
    runs = content["runs"]
    heading, rows = table(runs)
    shown = [
        {**row, "image": image_uri(row["image"]) if row.get("text") is None else "", "text": plain(row.get("text") or "", TEXT)}
        for row in suspects
    ]
    page = template("report.html").render(
        title=title, content=content, runs=runs, heading=heading, rows=rows, figures=figures(runs),
        suspects=shown, texts=any(row.get("text") is not None for row in suspects), suspects_of=suspects_of,
        options=options_told(content), settings=settings_told(runs), few=few_kept(runs), labels=labels_told(runs),
    )  # fmt: skip
    return write_text(path, page)


def few_kept(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, int, int]]:
    """Returns the classes of which a run kept hardly anybody: method, class, samples and kept ones; at most FEW of them.

    Args:
        runs: Records of trainings.
    """
    rows = [
        (run_name(run), row["class"], row["samples"], row["kept"]) for run in runs for row in run.get("classes", ()) if row["few"]
    ]
    return rows[:FEW]


def run_name(run: Mapping[str, Any]) -> str:
    """Returns a run's method, and before it the name of its data where several data sets are compared.

    Args:
        run: Record of a training.
    """
    return f"{run['data']}: {run['method']}" if "data" in run else run["method"]


def labels_told(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns what each run that judged its labels found and did: name, the sentences, and the classes that are hit most.

    Args:
        runs: Records of trainings.
    """
    return [
        {
            "name": run_name(run), "found": labels["found"], "done": labels["done"],
            "classes": [(row["class"], row["samples"], row["doubted"]) for row in labels.get("classes", ())],
            "pairs": [(row["suggested"], row["given"], row["samples"]) for row in labels.get("pairs", ())],
        }
        for run in runs if (labels := run.get("labels"))
    ]  # fmt: skip


def figures(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Returns the figures that the runs have values for, of each data set its own: title, what to read from it, the PNG's data URI.

    Args:
        runs: Records of trainings.
    """
    out = []
    for data in dict.fromkeys(run.get("data") for run in runs):
        own = [run for run in runs if run.get("data") == data]
        shown = {name for run in own for row in run["curves"] for name in row}
        if {"kept_clean", "kept_corrupted"} & shown:
            shown.discard("kept_fraction")
        for name, (title, reading) in PLOTS.items():
            lines = {
                drawable(plain(run["method"], 60)): [(row["epoch"], 100 * row[name]) for row in run["curves"] if name in row]
                for run in own
            }
            if name in shown:
                told = title if data is None else f"{title}: {data}"
                out.append({"title": told, "reading": reading, "uri": percent_lines(lines)})
    return out


def image_uri(image: Any) -> str:
    """Returns a small copy of the picture that the model sees (longer side at most 96 pixels) as a PNG data URI.

    Args:
        image: A cell, as `decode_image` takes it; '' where it cannot be read.
    """
    try:
        small = decode_image(image, stretch=True)
    except ImageError:
        return ""
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def options_told(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what `results.results` says of command, data, model and corruption: name and value.

    Args:
        content: The run's `results.results`.
    """
    rows: list[tuple[str, Any]] = [("command", content["command"])]
    rows += [(name, content["options"][name]) for name in ("dataset", "model") if name in content["options"]]
    rows += [("training samples", content["train_samples"]), ("test samples", content["test_samples"])]
    corruption = content.get("corruption")
    for name, each in (content.get("corruptions") or {}).items():
        told = each.get("trigger") or each.get("noise")
        rows.append((f"data {name}", f"{told}; {percent(each['overall'])} % of the training samples ({each['corrupted']})"))
    if corruption:
        named = {"trigger": "trigger", "noise": "label noise", "seed": "corruption seed"}
        rows += [(label, corruption[name]) for name, label in named.items() if name in corruption]
        nominal = corruption.get("nominal")
        rate = f"{percent(corruption['overall'])} % realised ({corruption['corrupted']} samples)"
        rows.append(("corruption rate", rate if nominal is None else f"{percent(nominal)} % nominal, {rate}"))
    elif not content.get("corruptions"):
        rows.append(("corruption", "none known"))
    return [(name, str(value)) for name, value in rows]


def settings_told(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Returns per run the method and what it was trained with.

    Args:
        runs: Records of trainings.
    """
    out = []
    for run in runs:
        settings = {name: run[name] for name in ("seed", "epochs", "batch_size", "learning_rate", "parameters")} | run["settings"]
        out.append((run_name(run), ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
                                             for name, value in settings.items() if value is not None)))  # fmt: skip
    return out


@cache
def template(name: str) -> jinja2.Template:
    """Returns a template of the package; whatever is filled in is escaped, and has nothing in it that a page would act upon.

    Args:
        name: File name of the template.
    """
    loader = jinja2.PackageLoader("robust_trainer.reporting", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["percent"] = percent
    environment.finalize = lambda value: visible(value) if type(value) is str else value  # Markup is the templates' own
    return environment.get_template(name)
