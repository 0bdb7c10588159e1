"""Reports and model cards as a browser would read them."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

from helpers.audits import ENVIRONMENT

from robust_trainer.audit.model_card import write_model_card
from robust_trainer.audit.report import write_audit_report


class Parsed(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.handlers = [], [], []
        self.feed(page)
        self.text = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.handlers += [name for name, value in attributes if name.startswith("on") or "javascript:" in (value or "")]

    def handle_data(self, data):
        self.text.append(data)


def report(tmp_path, audit, **options):
    """The page, and what a browser would make of it."""
    path = write_audit_report(tmp_path / "a.html", audit, **{"environment": ENVIRONMENT, **options})
    page = path.read_text(encoding="utf-8")
    parsed = Parsed(page)
    assert path.stat().st_size <= 5_000_000 and "script" not in parsed.tags and not parsed.handlers
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert all(re.match(r"data:image/(png|jpeg);base64,", source) for source in sources)
    assert not re.search(r"https?://|@import|url\(", page)
    return page, parsed


def card(tmp_path, audit, **options):
    path = write_model_card(tmp_path / "card/README.md", audit, **{"environment": ENVIRONMENT, **options})
    return path.read_text(encoding="utf-8")


def tables(text):
    """Rows of the card's tables, cells without the escapes."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [[html.unescape(re.sub(r"\\(.)", r"\1", cell)) for cell in row] for row in rows]


def run(method="prl-at-memory", **changes):
    record = {
        "method": method, "settings": {"noise_rate": 0.25}, "model": "small-cnn", "parameters": 10, "seed": 0, "epochs": 2.0,
        "batch_size": 32, "learning_rate": 0.003, "train_samples": 4, "seconds": 1.0,
        "curves": [
            {"epoch": e, "loss": 1.0, "clean_accuracy": 0.9, "poison_accuracy": 0.8, "kept_clean": 0.9, "kept_corrupted": 0.1}
            for e in (1.0, 2.0)
        ],
        "final": {"clean_accuracy": 0.981, "poison_accuracy": 0.972, "attack_success_rate": 0.013, "n": 4},
        "mean_last_k": {"clean_accuracy": 0.9, "poison_accuracy": 0.8, "k": 2},
        "detection": {"precision": 0.5, "recall": 1.0, "auroc": 0.99}, "distrusted": 3,
    }  # fmt: skip
    return {**record, **changes}


def content(*runs, corruption=True):
    told = {"corrupt": "blend", "trigger": "blend <0.1>", "seed": 0, "nominal": 0.25, "overall": 0.25, "corrupted": 1, "n": 4}
    return {
        "command": "robust-trainer demo --seed 0", "options": {"dataset": "digits", "model": "small-cnn"}, "train_samples": 4,
        "corruption": told if corruption else None, "test_samples": 4, "runs": list(runs),
        "environment": {"robust_trainer": "0.1.0", "date": "2030-01-01 00:00 UTC", "torch": "9.9", "cores": 2},
    }  # fmt: skip
