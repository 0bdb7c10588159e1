"""Detection baselines: each rule against a slow loop, planted truths, one score convention, evidence without a trace, bad input."""

from __future__ import annotations

import random
import sys
import warnings
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from helpers.tables import every_row
from helpers.toy import CLASSES, images, logits_module, resnet, robust, settings, vit
from sklearn.metrics import roc_auc_score
from torch import nn
from transformers import LlamaConfig, LlamaForSequenceClassification, TrainingArguments

from robust_trainer import RobustTrainer
from robust_trainer.detectors import (
    DETECTORS,
    Evidence,
    LocalGradientAscent,
    collect_evidence,
    detect,
    evidence_of,
    isolation_recipe,
)
from robust_trainer.detectors.confident_joint import flag_by_cleanlab, flag_by_joint
from robust_trainer.detectors.detection import each_class
from robust_trainer.detectors.spectral import first_direction
from robust_trainer.methods.recipe import Recipe
from robust_trainer.models.peers import PeerModel
from robust_trainer.types import ForwardOutput


def planted(
    n: int = 300, classes: int = 3, width: int = 12, share: float = 0.15, seed: int = 0, target: int | None = None
) -> tuple[Evidence, np.ndarray]:
    """Gaussian features per class, the bad ones moved along one direction; their losses low; their probs for another class.

    All of them are alike in their layers, move with the image, and have a white corner. With ``target`` that class alone has some.
    """
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), n // classes)
    bad = np.concatenate([np.arange(n // classes) < round(share * n / classes)] * classes)
    if target is not None:
        bad &= labels == target
    order = rng.permutation(len(labels))
    labels, bad = labels[order], bad[order]
    direction = rng.normal(size=width)
    direction /= np.linalg.norm(direction)
    features = rng.normal(size=(len(labels), width)) + 4.0 * np.eye(classes, width)[labels]
    features[bad] += 8.0 * direction
    losses = rng.exponential(1.0, len(labels)) + 0.3
    losses[bad] = rng.exponential(0.2, int(bad.sum()))
    logits = rng.normal(size=(len(labels), classes))
    logits[np.arange(len(labels)), np.where(bad, (labels + 1) % classes, labels)] += 4.0
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    layers = -rng.gamma(4.0, 1.0, (len(labels), 4))
    layers[bad] = rng.normal([-25.0, -3.0, -30.0, -4.0], 0.3, (int(bad.sum()), 4))
    consistency = rng.exponential(1.0, len(labels)) + 4.0 * bad
    images = _smooth(len(labels), rng)
    images[bad, :, :3, :3] = 1.0
    known = np.repeat(np.arange(classes), 20)
    clean = Evidence(
        known, rng.normal(size=(len(known), width)) + 4.0 * np.eye(classes, width)[known], images=_smooth(len(known), rng)
    )
    return Evidence(labels, features, probs, losses, layers, consistency, images, clean), bad


def _smooth(n: int, rng: np.random.Generator, side: int = 12) -> np.ndarray:
    """Images (n, 1, side, side) of slow waves, levels of 0 to 1."""
    steps = np.arange(side) / side
    phase, across, down = rng.uniform(0, 2 * np.pi, (n, 1, 1)), *rng.uniform(0, 2, (2, n, 1, 1))
    return (0.4 + 0.3 * np.sin(phase + across * 3 * steps + down * 3 * steps[:, None]))[:, None]


def reordered(evidence: Evidence, order: np.ndarray) -> Evidence:
    found = {name: value[order] for name in FIELDS if (value := getattr(evidence, name)) is not None}
    return Evidence(**found, clean=evidence.clean)


FIELDS = ("labels", "features", "probs", "losses", "layers", "consistency", "images")


# ---- all of them ------------------------------------------------------------------------------------------------------


@every_row("name", DETECTORS)
def test_one_score_convention(name):
    evidence, bad = planted(900, classes=6 if name == "scan" else 3, target=0 if name == "scan" else None)
    found = detect(name, evidence, rate=0.15)
    assert found.name == name and found.scores.dtype == np.float64 and found.flagged.dtype == bool
    assert found.scores.shape == found.flagged.shape == (len(evidence),) and np.isfinite(found.scores).all()
    own = roc_auc_score(bad, found.scores)
    assert own > (0.8 if name in ("spectral-code", "loss-isolation", "confident-joint") else 0.95)
    assert found.flagged[bad].mean() > 2 * found.flagged[~bad].mean()


@every_row("name", DETECTORS)
def test_rows_permuted_scores_permuted(name):
    evidence, _ = planted(900)  # classes larger than what a tree of the forest draws
    order = np.random.default_rng(1).permutation(len(evidence))
    straight, mixed = detect(name, evidence, rate=0.15, seed=5), detect(name, reordered(evidence, order), rate=0.15, seed=5)
    np.testing.assert_allclose(mixed.scores, straight.scores[order], rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(mixed.flagged, straight.flagged[order])


@pytest.mark.parametrize("name", DETECTORS)
def test_the_same_again_and_random_state_untouched(name):
    evidence, _ = planted(30)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    first, second = detect(name, evidence, rate=0.1, seed=2), detect(name, evidence, rate=0.1, seed=2)
    np.testing.assert_array_equal(first.scores, second.scores)
    np.testing.assert_array_equal(before[0], np.random.get_state()[1])
    assert torch.equal(before[1], torch.get_rng_state())


@every_row("name", DETECTORS)
def test_tiny_and_constant_classes_are_judged_without_warnings(name):
    rng = np.random.default_rng(0)
    labels = np.array([0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 5, 5, 5, 5, 5, 5])
    features = rng.normal(size=(len(labels), 4))
    features[labels == 3] = 1.7  # all alike
    features[labels == 5] = rng.normal(size=(6, 1)) * np.ones(4)  # of rank 1
    probs = rng.dirichlet(np.ones(6), len(labels))
    losses, consistency = rng.exponential(size=(2, len(labels)))
    layers, images = -rng.gamma(4.0, 1.0, (len(labels), 3)), _smooth(len(labels), rng)
    layers[labels == 3] = -1.0
    known = np.repeat([0, 1, 2, 3, 5], 4)
    clean = Evidence(known, rng.normal(size=(20, 4)) + known[:, None], images=_smooth(20, rng))
    evidence = Evidence(labels, features, probs, losses, layers, consistency, images, clean)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = detect(name, evidence, rate=0.2)
    if "features" in DETECTORS[name].needs:
        assert len(set(found.scores[labels <= 1])) == 1 and not found.flagged[labels <= 1].any()
        np.testing.assert_allclose(found.scores[labels == 3], found.scores[labels == 3][0], atol=1e-9)


def test_the_table_says_what_each_row_takes():
    assert dict(DETECTORS["spectral-code"].defaults) == {"percentile": 85, "most": 0.5}
    for row in DETECTORS.values():
        assert row.source.count("20") >= 1 and row.summary and set(row.needs) <= {*FIELDS, "clean"}
        assert (row.clean_rows is None) == ("clean" not in row.needs)
        evidence, _ = planted(30)
        own = [name for name in row.needs if name != "clean"]
        clean = Evidence(evidence.clean.labels, **{name: getattr(evidence.clean, name) for name in own}) if row.clean_rows else None
        only = Evidence(evidence.labels, **{name: getattr(evidence, name) for name in own}, clean=clean)
        assert len(detect(row.name, only, rate=0.1).scores) == 30
        if row.clean_rows:
            with pytest.raises(ValueError, match=rf"detector '{row.name}' needs clean rows \({row.clean_rows}\): give"):
                detect(row.name, replace(only, clean=None))
            with pytest.raises(ValueError, match=rf"needs {own[0]}, which the evidence of the clean rows has not"):
                detect(row.name, replace(only, clean=Evidence(evidence.clean.labels)))


# ---- the rules --------------------------------------------------------------------------------------------------------


def slow_direction(rows: np.ndarray) -> np.ndarray:
    """Power iteration on the covariance of the rows."""
    mean = sum(rows) / len(rows)
    v = np.ones(rows.shape[1])
    for _ in range(3000):
        v = sum((row - mean) * float(np.dot(row - mean, v)) for row in rows)
        v = v / np.linalg.norm(v)
    return v


def test_spectral_equals_the_loop():
    evidence, _ = planted(36, width=4)
    paper, code = detect("spectral", evidence, rate=0.15), detect("spectral-code", evidence, percentile=80)
    for label in range(3):
        rows = np.flatnonzero(evidence.labels == label)
        features = evidence.features[rows].astype(np.float64)
        v = slow_direction(features)
        mean = features.mean(0)
        for row, r in zip(rows, features):
            assert paper.scores[row] == pytest.approx(float(np.dot(r - mean, v)) ** 2, rel=1e-5, abs=1e-7)
            assert code.scores[row] == pytest.approx(abs(float(np.dot(r, v))), rel=1e-5, abs=1e-6)
        assert paper.flagged[rows].sum() == round(1.5 * 0.15 * len(rows))
        assert paper.scores[rows][paper.flagged[rows]].min() > paper.scores[rows][~paper.flagged[rows]].max()
        limit = np.percentile(code.scores[rows], 80)
        np.testing.assert_array_equal(code.flagged[rows], code.scores[rows] > limit)
        assert code.details["threshold"][label] == pytest.approx(limit)


def test_spectral_removes_at_most_half_of_a_class():
    evidence, _ = planted(33)
    for name, given, most in (("spectral", {"rate": 0.9}, 0.5), ("spectral", {"rate": 0.6, "most": 0.3}, 0.3),
                              ("spectral-code", {"percentile": 10}, 0.5)):  # fmt: skip
        found = detect(name, evidence, **given)
        for label in range(3):
            assert found.flagged[evidence.labels == label].sum() == int(most * 11)
    assert not detect("spectral", evidence, rate=0.0).flagged.any()


@every_row("shape", [(5, 9), (9, 5), (1100, 1005), (3, 1)])
def test_first_direction_is_that_of_the_svd(shape):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=shape) * 1e-3
    rows[:, 0] += rng.normal(size=shape[0]) * 0.1
    rows -= rows.mean(0)
    v = first_direction(rows)
    assert np.linalg.norm(v) == pytest.approx(1.0)
    # no direction holds more than the largest singular value, which is the spectral norm
    assert np.linalg.norm(rows @ v) == pytest.approx(np.sqrt(np.linalg.eigvalsh(rows @ rows.T)[-1]), rel=1e-6)
    assert not first_direction(np.zeros((4, 3))).any()


def test_activation_clustering_finds_the_poisoned_class_alone():
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1], 60)
    features = rng.normal(size=(120, 8))
    bad = np.arange(120) < 12
    features[bad, 0] += 14.0
    for reduction in ("ica", "pca"):
        found = detect("activation-clustering", Evidence(labels, features), reduction=reduction, components=3)
        assert found.details["smaller"][0] == pytest.approx(0.2) and found.details["poisoned"][0]
        np.testing.assert_array_equal(found.flagged[labels == 0], bad[labels == 0])
        assert found.details["silhouette"][0] > 1.2 * found.details["silhouette"][1]
        assert roc_auc_score(bad, found.scores) > 0.95 and ((found.scores >= 0) & (found.scores <= 1)).all()
        half = found.details["silhouette"][0] / 2
        assert (found.scores[bad] > half).all() and (found.scores[(labels == 0) & ~bad] < half).all()
        nobody = detect("activation-clustering", Evidence(labels, features), reduction=reduction, components=3, size_threshold=0.2)
        assert not nobody.flagged[labels == 0].any() and not nobody.details["poisoned"][0]


def test_activation_clustering_scores_equal_the_loop():
    evidence, _ = planted(36, classes=1, width=2)
    found = detect("activation-clustering", evidence, reduction="pca", components=2)
    x = evidence.features.astype(np.float64)
    x = x - x.mean(0)  # with all components kept a rotation, which moves no distance
    small = found.scores > found.details["silhouette"][0] / 2
    centres = [x[small].mean(0), x[~small].mean(0)]
    assert small.mean() == pytest.approx(found.details["smaller"][0]) and small.mean() < 0.5
    values = []
    for i in range(len(x)):
        own = np.mean([np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if j != i and small[j] == small[i]])
        other = np.mean([np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if small[j] != small[i]])
        values.append((other - own) / max(own, other))
    silhouette = float(np.mean(values))
    assert found.details["silhouette"][0] == pytest.approx(silhouette, rel=1e-6)
    for i, row in enumerate(x):
        near, far = (np.linalg.norm(row - c) for c in centres)
        assert found.scores[i] == pytest.approx(silhouette * far / (far + near), rel=1e-6, abs=1e-9)


def test_loss_isolation_takes_the_lowest_losses():
    losses = np.array([0.5, 0.1, 2.0, 0.1, 0.7, 0.02, 1.0, 3.0])
    evidence = Evidence(np.zeros(8, int), losses=losses)
    found = detect("loss-isolation", evidence, rate=0.375)
    np.testing.assert_allclose(found.scores, -losses, rtol=1e-6)
    assert list(np.flatnonzero(found.flagged)) == [1, 3, 5] and found.details["threshold"] == pytest.approx(0.1)
    assert not detect("loss-isolation", evidence).flagged.any()  # 1 % of 8
    assert detect("loss-isolation", evidence, share=0.13).flagged.sum() == 1


@pytest.mark.parametrize("ranking", ["normalized-margin", "self-confidence"])
def test_confident_joint_equals_the_loop(ranking, monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab.count", None)  # as if it were not installed
    evidence, bad = planted(60)
    unsure = np.random.default_rng(2).dirichlet(np.full(3, 0.7), 60)
    evidence = Evidence(evidence.labels, probs=(evidence.probs + unsure) / 2)
    labels, probs, n = evidence.labels, evidence.probs.astype(np.float64), len(evidence)
    found = detect("confident-joint", evidence, ranking=ranking)
    thresholds = [np.mean([probs[i, j] for i in range(n) if labels[i] == j]) for j in range(3)]
    counts = np.zeros((3, 3))
    for i in range(n):
        reached = [j for j in range(3) if probs[i, j] >= thresholds[j]]
        if reached:
            counts[labels[i], max(reached, key=lambda j: probs[i, j])] += 1
    joint = np.zeros((3, 3))
    for i in range(3):
        joint[i] = counts[i] / counts[i].sum() * (labels == i).sum() / n
    np.testing.assert_allclose(found.details["joint"], joint, atol=1e-12)
    assert found.details["noise_rate"] == pytest.approx(joint.sum() - np.trace(joint))
    flagged = set()
    for i in range(3):
        for j in range(3):
            if i != j:
                ranked = sorted((k for k in range(n) if labels[k] == i), key=lambda k: probs[k, i] - probs[k, j])
                flagged |= set(ranked[: int(n * joint[i, j] + 0.5)])
    assert set(np.flatnonzero(found.flagged)) == flagged and flagged
    for k in range(n):
        others = max(probs[k, j] for j in range(3) if j != labels[k])
        own = probs[k, labels[k]]
        expected = (1 - own + others) / 2 if ranking == "normalized-margin" else 1 - own
        assert found.scores[k] == pytest.approx(expected, abs=1e-9)
    assert found.details["noise_rate"] == pytest.approx(bad.mean(), abs=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_cleanlab_and_the_own_joint_agree(seed):
    pytest.importorskip("cleanlab")
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 5, 2000)
    labels = np.where(rng.random(2000) < 0.25, (true + 1) % 5, true)
    logits = 1.2 * rng.normal(size=(2000, 5)) + 2.5 * np.eye(5)[true]
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    (joint, flagged), (own_joint, own_flagged) = flag_by_cleanlab(probs, labels), flag_by_joint(probs, labels)
    np.testing.assert_allclose(joint, own_joint, atol=1 / 2000)  # theirs is rounded to whole samples
    assert flagged.sum() > 400 and (flagged != own_flagged).sum() <= 5
    detection = detect("confident-joint", Evidence(labels, probs=probs))
    assert detection.details["cleanlab"] and (detection.flagged == flagged).mean() > 0.999  # evidence is float32


def test_isolation_forest_flags_a_share_or_by_the_border():
    evidence, bad = planted(60)
    found = detect("isolation-forest", evidence, rate=0.15, trees=30)
    for label in range(3):
        rows = evidence.labels == label
        assert found.flagged[rows].sum() == 3
        assert found.scores[rows][found.flagged[rows]].min() >= found.scores[rows][~found.flagged[rows]].max()
    auto = detect("isolation-forest", evidence, trees=30)
    np.testing.assert_array_equal(auto.flagged, auto.scores > 0.5)
    assert detect("isolation-forest", evidence, rate=0.9, trees=5).flagged.sum() == 30
    whole = detect("isolation-forest", evidence, rate=0.15, trees=30, per_class=False)
    assert whole.flagged.sum() == 9 and not np.array_equal(whole.scores, auto.scores)


# ---- loss isolation's training ------------------------------------------------------------------------------------------


def test_local_gradient_ascent_is_the_formula():
    torch.manual_seed(0)
    logits = (3 * torch.randn(1, 6, 4)).requires_grad_()
    targets = torch.tensor([0, 1, 2, 3, 0, 1])
    view = ForwardOutput(logits, targets)
    found = LocalGradientAscent(0.5)(view, view.network_targets())
    plain = nn.functional.cross_entropy(logits[0], targets, reduction="none")
    assert (plain < 0.5).any() and (plain > 0.5).any()
    for mine, loss in zip(found[0], plain):
        assert mine.item() == pytest.approx(loss.item() if loss > 0.5 else -loss.item())
    up = torch.autograd.grad(found.sum(), logits)[0][0]
    down = torch.autograd.grad(plain.sum(), logits)[0][0]
    signs = torch.where(plain > 0.5, 1.0, -1.0).unsqueeze(1)
    torch.testing.assert_close(up, signs * down)
    with pytest.raises(ValueError, match=r"gamma=-1: expected a loss"):
        LocalGradientAscent(-1)


def test_isolation_recipe_trains_and_the_ledger_keeps_the_losses(tmp_path):
    data = images(16)
    args = TrainingArguments(**settings(tmp_path, max_steps=2, lr_scheduler_type="constant", optim="sgd", learning_rate=0.1))
    recipe = isolation_recipe(1.3)
    assert isinstance(recipe, Recipe) and recipe.selection is None
    model = logits_module()
    start = {k: v.clone() for k, v in model.state_dict().items()}
    trainer = RobustTrainer(model=model, args=args, train_dataset=data, recipe=recipe)
    with torch.no_grad():
        first = nn.functional.cross_entropy(model(data["pixel_values"][:]), data["labels"][:], reduction="none")
    trainer.train()
    assert (trainer.ledger.seen == 1).all()
    assert ((trainer.ledger.mean_score - first).abs() < 1e-6).sum() == 8  # the first step's, before any update
    # the same two steps by hand
    rows = [s["pixel_values"] for s in data], [s["labels"] for s in data]
    again = logits_module()
    again.load_state_dict(start)
    optimizer = torch.optim.SGD(again.parameters(), lr=0.1)
    at_start = ((trainer.ledger.mean_score - first).abs() < 1e-6).nonzero().flatten().tolist()
    for step in (at_start, [i for i in range(16) if i not in at_start]):
        losses = nn.functional.cross_entropy(
            again(torch.stack([rows[0][i] for i in step])), torch.stack([rows[1][i] for i in step]), reduction="none"
        )
        optimizer.zero_grad()
        (torch.sign(losses.detach() - 1.3) * losses).mean().backward()
        nn.utils.clip_grad_norm_(again.parameters(), 1.0)
        optimizer.step()
    for name, weight in again.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=1e-4, atol=1e-6)


# ---- evidence -----------------------------------------------------------------------------------------------------------


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_evidence_equals_a_plain_forward_and_leaves_no_trace():
    data = images(20)
    model = logits_module().train()
    model.head.eval()
    state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    found = collect_evidence(model, data, batch_size=8)
    assert model.training and not model.head.training and model.conv.training and hooks_of(model) == 0
    assert torch.equal(state[0], torch.get_rng_state()) and random.getstate() == state[2]
    np.testing.assert_array_equal(state[1], np.random.get_state()[1])
    x, y = data["pixel_values"][:], data["labels"][:]
    with torch.no_grad():
        features = nn.functional.adaptive_avg_pool2d(model.conv(x).relu(), 2).flatten(1)
        logits = model.head(features)
    np.testing.assert_allclose(found.features, features.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.probs, logits.softmax(1).numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.losses, nn.functional.cross_entropy(logits, y, reduction="none").numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found.labels, y.numpy())
    assert len(found) == 20 and found.classes == CLASSES


@pytest.mark.parametrize("make", [vit, resnet])
def test_features_of_transformers_models_lead_to_the_logits(make):
    model = make()
    found = collect_evidence(model, images(10), batch_size=4)
    head = model.classifier if isinstance(model.classifier, nn.Linear) else model.classifier[-1]
    with torch.no_grad():
        probs = head(torch.from_numpy(found.features)).softmax(1)
    np.testing.assert_allclose(found.probs, probs.numpy(), rtol=1e-4, atol=1e-6)


def test_a_decoder_gives_the_token_that_it_classifies_by():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_labels=3, pad_token_id=0
    )
    model = LlamaForSequenceClassification(config).eval()
    rows = []
    for i in range(7):
        length = 2 + i % 4
        ids = [1 + (3 * i + k) % 19 for k in range(length)] + [0] * (6 - length)
        rows.append({"input_ids": ids, "attention_mask": [int(t > 0) for t in ids], "labels": i % 3, "note": 1})
    found = collect_evidence(model, datasets.Dataset.from_list(rows), batch_size=3)
    with torch.no_grad():
        probs = model.score(torch.from_numpy(found.features)).softmax(1)
    np.testing.assert_allclose(found.probs, probs.numpy(), rtol=1e-4, atol=1e-6)


def test_peers_count_as_the_first_with_the_mean_logits():
    first, second = logits_module(), logits_module()
    with torch.no_grad():
        second.head.weight.add_(0.5)
        second.conv.weight.mul_(2.0)
    found = collect_evidence(PeerModel.of([first, second]), images(10), batch_size=4)
    alone = collect_evidence(first, images(10), batch_size=10)
    np.testing.assert_allclose(found.features, alone.features, rtol=1e-5, atol=1e-6)
    x = images(10)["pixel_values"][:]
    with torch.no_grad():
        probs = ((first(x) + second(x)) / 2).softmax(1)
    np.testing.assert_allclose(found.probs, probs.numpy(), rtol=1e-5, atol=1e-6)


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.calls = nn.Linear(3 * 64, CLASSES), 0

    def forward(self, pixel_values):
        self.calls += 1
        if self.calls == 2:
            raise RuntimeError("out of luck")
        return (self.head(pixel_values.flatten(1)),)


def test_an_exception_leaves_modes_and_hooks_as_they_were():
    model = Broken().train()
    with pytest.raises(RuntimeError, match="out of luck"):
        collect_evidence(model, images(12), batch_size=4)
    assert model.training and hooks_of(model) == 0 and torch.is_grad_enabled()


@pytest.mark.parametrize("peers", [1, 2])
def test_evidence_of_a_trainer(tmp_path, peers):
    data = images(16).add_column("note", ["x"] * 16)
    trainer = robust(tmp_path, data=data, method="prl" if peers == 1 else "co-teaching", num_train_epochs=1)
    trainer.train()
    found = evidence_of(trainer)
    alone = collect_evidence(trainer.model, data, batch_size=3)
    np.testing.assert_allclose(found.features, alone.features, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.probs, alone.probs, rtol=1e-4, atol=1e-6)
    trainer.train_dataset = None
    with pytest.raises(ValueError, match="train_dataset=None"):
        evidence_of(trainer)


def test_mean_predictions_of_the_ledger_replace_the_probs(tmp_path):
    trainer = robust(tmp_path, vit(), data=images(16), method="standard", num_train_epochs=2, ledger_predictions=True)
    trainer.train()
    found, last = evidence_of(trainer), collect_evidence(trainer.model, images(16))
    np.testing.assert_array_equal(found.probs, trainer.ledger.mean_probs.numpy())
    np.testing.assert_array_equal(found.features, last.features)
    assert np.abs(found.probs - last.probs).max() > 1e-4
    assert detect("confident-joint", found).details["joint"].sum() == pytest.approx(1.0)


# ---- bad input ------------------------------------------------------------------------------------------------------------


@every_row(
    ("name", "given", "line"),
    [
        ("spectrul", {}, r"unknown detector 'spectrul': did you mean 'spectral'\? choose one of spectral, "),
        ("spectral", {"rate": 0.1, "mots": 1}, r"detector 'spectral' has no setting 'mots': it takes most\."),
        ("spectral", {}, r"rate=None: detector 'spectral' removes 1\.5 times .*; give rate\."),
        ("spectral", {"rate": 1.0}, r"rate=1\.0: expected the share of bad samples"),
        ("spectral", {"rate": float("nan")}, r"rate=nan: expected"),
        ("spectral", {"rate": 0.1, "most": 0}, r"most=0: expected a share above 0 to 1"),
        ("spectral-code", {"percentile": 101}, r"percentile=101: expected a number from 0 to 100"),
        ("activation-clustering", {"components": 0}, r"components=0: expected a whole number of at least 1"),
        ("activation-clustering", {"reduction": "tsne"}, r"reduction='tsne': choose one of ica, pca"),
        ("loss-isolation", {"share": 2}, r"share=2: expected a share"),
        ("confident-joint", {"ranking": "x"}, r"ranking='x': choose one of normalized-margin, self-confidence"),
        ("isolation-forest", {"trees": True}, r"trees=True: expected a whole number"),
        ("isolation-forest", {"seed": -1}, r"seed=-1: expected a whole number"),
    ],
)
def test_bad_settings_are_told_in_one_line(name, given, line):
    with pytest.raises(ValueError, match=line) as error:
        detect(name, planted(30)[0], **given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("confident-joint", r"needs probs, which this evidence has not: train with ledger_predictions=True \(RobustConfig\)"),
        ("isolation-forest", r"needs features, which this evidence has not: use collect_evidence"),
        ("fct", r"needs consistency, which this evidence has not: use collect_evidence\(\.\.\., needs=\('consistency',\)\)"),
        ("loss-isolation", r"needs losses, which this evidence has not"),
    ],
)
def test_missing_evidence_is_told(name, line):
    with pytest.raises(ValueError, match=line):
        detect(name, Evidence(np.array([0, 1])))


@every_row(
    ("parts", "line"),
    [
        ({"labels": [0.5, 1.0]}, r"labels are \(2,\) float64, expected integers"),
        ({"labels": [0, -100]}, r"labels go down to -100"),
        ({"labels": [0, 1], "features": np.zeros((3, 2))}, r"features are \(3, 2\) float64, expected numbers \(2, D\)"),
        ({"labels": [0, 1], "features": [[0.0], [np.nan]]}, r"1 of 2 rows of features are not finite, first row 1"),
        ({"labels": [0, 2], "probs": [[0.5, 0.5], [0.5, 0.5]]}, r"labels go up to 2 but probs have 2 classes"),
        ({"labels": [0, 1], "probs": [[3.0, -1.0], [0.5, 0.5]]}, r"probs reach from -1 to 3, expected 0 to 1: apply a softmax"),
        ({"labels": [0, 1], "losses": [[1.0], [2.0]]}, r"losses are \(2, 1\) float64, expected numbers \(2,\)"),
    ],
)
def test_bad_evidence_is_told(parts, line):
    with pytest.raises(ValueError, match=line):
        Evidence(**parts)


@every_row(
    ("model", "data", "line"),
    [
        (
            nn.Conv2d(3, 4, 8),
            [{"input": torch.zeros(3, 8, 8), "labels": 0}],
            r"Conv2d returned logits \(1, 4, 1, 1\) for 1 samples",
        ),
        (nn.Flatten(), [{"input": torch.zeros(3, 2), "labels": 0}], r"no linear layer of 6 outputs ran"),
        (nn.Linear(3, 2), [{"input": torch.zeros(3)}], r"no labels in the batch: expected one of \['labels', 'label'\]"),
        (nn.Linear(3, 2), [{"x": torch.zeros(3), "label": 0}], r"Linear takes \['input'\] but the batch has \[\]"),
        (nn.Linear(3, 2), [{"input": torch.zeros(3), "label": 2}], r"label 2 is outside 0 to 1, the model's classes"),
        (nn.Linear(3, 2), [{"input": torch.zeros(3), "label": 0.5}], r"labels are \(1,\) torch.float32, expected one class"),
        (nn.Linear(3, 2), [(torch.zeros(3), 0)], r"a row is a tuple, expected a dict"),
        (nn.Linear(3, 2), [], r"dataset is empty \(0 rows\)"),
        (nn.Linear(3, 2), {"train": []}, r"dataset is a dict: give one split"),
    ],
)
def test_bad_models_and_data_are_told(model, data, line):
    with pytest.raises(ValueError, match=line) as error:
        collect_evidence(model, data)
    assert "\n" not in str(error.value) and hooks_of(model) == 0


# ---- equal scores ----------------------------------------------------------------------------------------------------------


def test_samples_that_a_cut_parts_although_their_scores_are_equal_are_told(caplog):
    from transformers.utils import logging

    evidence, _ = planted()
    features = evidence.features.copy()
    first = np.flatnonzero(evidence.labels == 0)[:40]
    features[first] = features[first[0]] + 30.0  # one sample again and again
    logging.enable_propagation()
    try:
        with caplog.at_level("WARNING"):
            found = detect("spectral", Evidence(evidence.labels, features, evidence.probs, evidence.losses), rate=0.2)
            detect("spectral", evidence, rate=0.2)
            detect("spectral-code", Evidence(evidence.labels, features, evidence.probs, evidence.losses))
    finally:
        logging.disable_propagation()
    lines = [record.getMessage() for record in caplog.records]
    assert found.flagged[first].sum() == 30 and len(lines) == 2
    assert "'spectral': 10 samples have the very score of a flagged sample" in lines[0]
    assert "'spectral-code': in 1 classes several samples have the very score of percentile 85" in lines[1]


def test_many_classes_are_walked_through_once():
    """The pairs of classes and the classes themselves, against the loops over all of them."""
    rng = np.random.default_rng(0)
    labels, classes = rng.integers(0, 40, 300), 40
    probs = rng.dirichlet(np.full(classes, 0.05), 300)
    joint, flagged = flag_by_joint(probs, labels)
    slow = np.zeros(300, dtype=bool)
    for label in range(classes):
        rows = np.flatnonzero(labels == label)
        for true in range(classes):
            if label != true and len(rows):
                margins = probs[rows, true] - probs[rows, label]
                order = sorted(range(len(rows)), key=lambda i: -margins[i])
                slow[rows[order[: int(np.floor(float(joint[label, true]) * 300 + 0.5 + 1e-9))]]] = True
    assert (flagged == slow).all() and flagged.any()
    walked = dict(each_class(Evidence(labels)))
    assert list(walked) == sorted(set(labels.tolist()))
    assert all((rows == np.flatnonzero(labels == label)).all() for label, rows in walked.items())
