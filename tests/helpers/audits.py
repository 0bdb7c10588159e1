"""Made-up ledgers and audits."""

from __future__ import annotations

import io

import datasets
import numpy as np
from PIL import Image

from robust_trainer.audit.result import GROUPS, Audit


def rows_of(n=300, classes=4, seed=0, **changes):
    """A ledger's rows: most areas above 0, some far below."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, n).astype(np.int32)
    rival = (label + rng.integers(1, max(classes, 2), n)) % max(classes, 1)
    aum = (rng.normal(3, 3, n) * (1 + label)).astype(np.float32)
    rows = {
        "index": np.arange(n), "label": label, "predicted": label, "seen": rng.integers(1, 5, n).astype(np.int32),
        "kept": np.ones(n, np.int32), "last_score": rng.random(n).astype(np.float32),
        "mean_score": rng.random(n).astype(np.float32), "ema_score": rng.random(n).astype(np.float32), "aum": aum,
        "margin": np.tanh(aum).astype(np.float32),
        "forgetting": np.zeros(n, np.int32), "rival": rival.astype(np.int32), "rival_confidence": rng.random(n).astype(np.float32),
        "distrusted": aum < 0,
    }  # fmt: skip
    return {**rows, **changes}


def numbers_rows(scores, seen=None):
    """The rows of a run whose targets are numbers."""
    n = len(scores)
    none, nan = np.full(n, -1, np.int32), np.full(n, np.nan, np.float32)
    seen = np.ones(n, np.int32) if seen is None else seen
    return rows_of(n, label=none, rival=none, aum=nan, margin=nan, mean_score=np.asarray(scores, np.float32), seen=seen)


SCRIPT = "<script>alert(1)</script>"


ENVIRONMENT = {"robust_trainer": "0.1.0", "torch": "9.9"}


def make_audit(n=240, classes=4, names=None, rate=0.25, truth=False, told="what groups rest on", **changes):
    """A share of the labels is the next class, and is what is flagged."""
    rng = np.random.default_rng(0)
    true = np.arange(n) % max(classes, 1)
    wrong = rng.permutation(n) < round(rate * n)
    given = np.where(wrong, (true + 1) % max(classes, 1), true)
    suspicion = np.where(wrong, rng.uniform(0.6, 1, n), rng.uniform(0, 0.4, n)).astype(np.float32)
    columns = {
        "index": np.arange(n), "label": given, "suggested_label": np.where(wrong, true, -1),
        "suggested_confidence": np.where(wrong, 0.9, 0).astype(np.float32), "suspicion": suspicion, "flagged": wrong,
        "distrusted": wrong, "seen": np.full(n, 4, np.int32), "kept": np.where(wrong, 1, 4).astype(np.int32),
        "mean_score": suspicion, "ema_score": suspicion, "last_score": suspicion,
        "aum": np.where(np.arange(n) % 5 == 0, np.nan, 1 - suspicion).astype(np.float32),
        "forgetting": np.where(wrong, -1, 0).astype(np.int32), "group": np.where(wrong, 1 + np.arange(n) % 4, 0),
    }  # fmt: skip
    if classes == 0:
        columns["label"] = columns["suggested_label"] = np.full(n, -1)
    if truth:
        columns["is_corrupted"] = wrong
    columns.update(changes)
    types = {name: datasets.Value(str(values.dtype)) for name, values in columns.items()}
    types["group"] = datasets.Value("string")
    words = {"group": [GROUPS[number] for number in columns["group"]]}
    table = datasets.Dataset.from_dict({**columns, **words}, features=datasets.Features(types))
    transition = None
    if classes > 1:
        transition = np.zeros((classes, classes))
        np.add.at(transition, (true, given), 1)
        transition /= np.maximum(transition.sum(1, keepdims=True), 1)
    names = tuple(f"class {i}" for i in range(classes)) if names is None else tuple(names)
    return Audit(table, names, 0.5, rate if classes else None, transition, told, {"method": "prl-at-memory", "fingerprint": "abc"})


def png(shape=(8, 8), seed=0):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def image_data(values, **columns):
    features = {"image": datasets.Image(), **{name: datasets.Value("string") for name in columns}}
    return datasets.Dataset.from_dict({"image": values, **columns}, features=datasets.Features(features))


def blobs(n=300, size=(12, 12), mode="RGB", seed=0, sigma=6.0):
    """Images of 4 classes, a class being a square in a corner: arrays uint8 (n, H, W[, 3]) and classes."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, n)
    x = np.full((n, *size), 100.0)
    for i, k in enumerate(truth):
        x[i, (k // 2) * size[0] // 2 :, (k % 2) * size[1] // 2 :] += 20
    x = x[..., None].repeat(3, -1) if mode == "RGB" else x
    return (x + rng.normal(0, sigma, x.shape)).clip(0, 255).astype(np.uint8), truth, rng


def image_set(pixels, **columns):
    features = {"image": datasets.Image(), **{name: datasets.Value("int64") for name in columns}}
    pictures = [Image.fromarray(p) if isinstance(p, np.ndarray) else p for p in pixels]
    return datasets.Dataset.from_dict({"image": pictures, **columns}, features=datasets.Features(features))


def labelled(n=200, seed=0):
    pixels, truth, _ = blobs(n, seed=seed)
    return image_set(pixels, label=truth.tolist()).cast_column("label", datasets.ClassLabel(names=list("abcd")))
