"""The model card: the figures of the report as Markdown with the Hub's front matter, safe on names that nobody vetted."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..reporting.atomic_files import write_text
from ..reporting.results import environment as this_environment
from ..reporting.results import table
from ..reporting.safe_text import plain
from .result import GROUPS, Audit
from .summary import CLASSES, FILTER, NAME, VALUE, settings, summarise, versions

#: Pairs of classes in the card.
PAIRS = 10
_MARKS = re.compile(r"([\\`*_\[\]|~$#])")


def write_model_card(
    path: str | Path, audit: Audit, *, content: Mapping[str, Any] | None = None, command: str = "",
    environment: Mapping[str, Any] | None = None, model_name: str = "Robustly trained model", pipeline_tag: str | None = None,
) -> Path:  # fmt: skip
    """Writes the card of a model and the audit of its training data, whole or not at all, and returns its path.

    Args:
        path: File to write.
        audit: Of the training data.
        content: The run's `results.results`.
        command: What made it, as it was typed; default the content's.
        environment: Default the content's, else this one.
        model_name: Heading of the card.
        pipeline_tag: Of the Hub; default ``audit.run["pipeline_tag"]``, else image-classification where content is given (the
            command line trains nothing else), else none. The front matter has no metrics: the Hub's need a data set of its own.
            Every figure is the report's.
    """
    summary = summarise(audit)
    environment = environment or (content or {}).get("environment") or this_environment()
    command = plain(command or (content or {}).get("command", ""), 4 * VALUE)
    name = escape(plain(model_name, NAME)) or "Model"
    parts = [_front(pipeline_tag or audit.run.get("pipeline_tag") or ("image-classification" if content else None)), f"# {name}"]
    parts += ["Trained with robust_trainer, which also audited the training data.", f"**{escape(summary.headline)}**"]
    if content is not None:
        heading, rows = table(content["runs"])
        parts += ["## Results", "Accuracies in percent, on the test data.", _table(heading, rows)]
        parts += [FILTER] if "distrusted" in heading else []
    parts += ["## Training data", _table(("figure", "value"), summary.facts), *map(escape, audit.cautions), escape(summary.meaning)]
    parts += ["### Groups", _table(("group", "samples", "%"), summary.groups)]
    parts += [escape(plain(audit.groups_told, 2 * VALUE))] if audit.groups_told else []
    if summary.known:
        parts += ["### Against the known truth", _table(("figure", "value"), summary.known)]
    if summary.classes:
        parts += ["### Classes", f"By the given label, most flagged first; at most {CLASSES}."]
        classes = summary.classes[:CLASSES]
        parts += [_table(("class", "samples", "flagged", "%", *GROUPS[1:], "most often suggested"),
                         [(c.name, c.n, c.flagged, c.rate, *c.groups[1:], c.suggestion) for c in classes])]  # fmt: skip
    if summary.pairs:
        caption = f"Flagged samples whose label another class is suggested for; at most {PAIRS} pairs. "
        caption += "%: the estimated share of all samples of the suggested class that are labelled so."
        parts += ["### Most frequent suggestions", caption]
        pairs = [(p.given, p.suggested, p.n, p.share) for p in summary.pairs[:PAIRS]]
        parts += [_table(("given", "suggested", "flagged", "%"), pairs)]
    parts += ["## Settings", _table(("setting", "value"), settings(audit, content))]
    parts += ["## Made with", _table(("", "version"), versions(environment))]
    # not in a fence: there neither HTML nor backticks can be escaped
    parts += [f"<pre><code>{html.escape(command)}</code></pre>"] if command else []
    return write_text(path, "\n\n".join(parts) + "\n")


def escape(text: Any) -> str:
    """Returns a one-line text such that neither Markdown nor HTML reads anything into it.

    Args:
        text: Anything.
    """
    return _MARKS.sub(r"\\\1", html.escape(str(text), quote=False))


def _front(pipeline_tag: str | None) -> str:
    """The YAML front matter; a tag that is no word of the Hub's kind is left out."""
    front: dict[str, Any] = {"library_name": "transformers"}
    if pipeline_tag and re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", pipeline_tag):
        front["pipeline_tag"] = pipeline_tag
    front["tags"] = ["robust-trainer", "robust-training", "data-audit"]
    return "---\n" + yaml.safe_dump(front, sort_keys=False) + "---"


def _table(heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    shown = [["---" if i == 1 else escape(plain(cell, VALUE)) for cell in line] for i, line in enumerate(lines)]
    return "\n".join("| " + " | ".join(line) + " |" for line in shown)
