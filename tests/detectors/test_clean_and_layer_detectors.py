"""Detectors that need clean rows, all hidden layers or moved images: each rule, and the evidence, against a slow loop or a law."""

from __future__ import annotations

import math

import datasets
import numpy as np
import pytest
import torch
from helpers.toy import CLASSES, images, logits_module, resnet, settings, vit
from scipy.stats import norm
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from robust_trainer.detectors import Evidence, collect_evidence, detect, evidence_of
from robust_trainer.detectors.flare import stable_split
from robust_trainer.detectors.frequency import ARTEFACTS, FrequencyNetwork, artefacts, spectrum
from robust_trainer.detectors.moves import SHIFT, TURN, moved
from robust_trainer.detectors.repairs.backdoor_removal import apart
from robust_trainer.detectors.scan import covariances
from robust_trainer.models.peers import PeerModel

# ---- SCAn -------------------------------------------------------------------------------------------------------------


def contaminated(sizes=(80, 80, 80, 80, 80), bad: int = 20, width: int = 6, seed: int = 0):
    """Classes of one Gaussian each; of class 0 the last rows are of another one."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    centres = 5.0 * rng.normal(size=(len(sizes) + 1, width))
    features = centres[labels] + rng.normal(size=(len(labels), width))
    poisoned = np.zeros(len(labels), dtype=bool)
    poisoned[sizes[0] - bad : sizes[0]] = True
    features[poisoned] += centres[-1] - centres[0]
    known = np.repeat(np.arange(len(sizes)), 40)
    clean = Evidence(known, centres[known] + rng.normal(size=(len(known), width)))
    return Evidence(labels, features, clean=clean), poisoned


def test_scan_flags_the_second_group_of_the_contaminated_class_alone():
    evidence, bad = contaminated()
    found = detect("scan", evidence)
    np.testing.assert_array_equal(found.flagged, bad)
    assert found.details["statistic"][0] > math.exp(2) > max(found.details["statistic"][k] for k in range(1, 5))
    assert found.scores[bad].min() > found.scores[~bad].max() and found.details["components"] == 6
    assert not detect("scan", evidence, threshold=1e9).flagged.any()
    assert not detect("scan", Evidence(evidence.labels[~bad], evidence.features[~bad], clean=evidence.clean)).flagged.any()


def test_scan_flags_the_group_without_clean_rows_though_it_be_the_larger():
    evidence, bad = contaminated(bad=60)
    assert bad.sum() > 80 / 2
    np.testing.assert_array_equal(detect("scan", evidence).flagged, bad)


def test_scan_finds_nobody_where_all_classes_are_contaminated_alike():
    """The limit of its test, which the page on detectors tells: the statistic is relative to the median of the classes."""
    rng = np.random.default_rng(0)
    evidence, _ = contaminated(bad=0)
    bad = np.arange(400) % 80 < 20
    features = evidence.features + np.where(bad, 1.0, 0.0)[:, None] * (8.0 * rng.normal(size=6))
    assert not detect("scan", Evidence(evidence.labels, features, clean=evidence.clean)).flagged.any()


def test_the_covariances_are_those_of_the_loop():
    evidence, _ = contaminated()
    x, y = evidence.clean.features.astype(np.float64), evidence.clean.labels
    identity, variation = covariances(x, y)
    x = x - x.mean(0)

    def covariance(rows):
        mean = sum(rows) / len(rows)
        found = sum(np.outer(row - mean, row - mean) for row in rows) / (len(rows) - 1)
        return found + np.eye(6) * 1e-3 * np.trace(found) / 6

    mu = [sum(x[y == k]) / 40 for k in y]
    s_mu, s_e = covariance(mu), covariance([row - m for row, m in zip(x, mu)])
    for _ in range(100):
        # S_e (n S_mu + S_e)^-1 S_mu S_e^-1 sum_i r_i, as the paper writes it
        gain = s_e @ np.linalg.inv(40 * s_mu + s_e) @ s_mu @ np.linalg.inv(s_e)
        mu = [gain @ sum(x[y == k]) for k in y]
        s_mu, s_e = covariance(mu), covariance([row - m for row, m in zip(x, mu)])
    np.testing.assert_allclose(identity, s_mu, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(variation, s_e, rtol=1e-3, atol=1e-3)


def test_scan_ratio_is_the_likelihood_ratio():
    evidence, bad = contaminated()
    found = detect("scan", evidence)
    clean = evidence.clean
    identity, variation = covariances(clean.features.astype(np.float64), clean.labels)
    rows = np.concatenate([evidence.features[:80], clean.features[clean.labels == 0]]).astype(np.float64)
    rows = rows - clean.features.astype(np.float64).mean(0)
    second = np.concatenate([bad[:80], np.zeros(40, dtype=bool)])
    inverse = np.linalg.inv(variation)
    mu = identity @ np.linalg.inv(identity + variation / len(rows)) @ rows.mean(0)
    total = 0.0
    for row, other in zip(rows, second):
        own = rows[second].mean(0) if other else rows[~second].mean(0)
        total += (row - mu) @ inverse @ (row - mu) - (row - own) @ inverse @ (row - own)
    assert found.details["ratio"][0] == pytest.approx(total / len(rows), rel=2e-2)


# ---- moved images -----------------------------------------------------------------------------------------------------


def test_moved_images_are_turned_and_shifted(monkeypatch):
    picture = torch.zeros(1, 1, 9, 9)
    picture[0, 0, 2, 4] = 1.0

    def by(turn, right, down):
        draws = torch.tensor([[turn, right, down]])
        monkeypatch.setattr(torch, "rand", lambda *size, generator=None: (draws + 1) / 2)
        return moved(picture, torch.Generator())

    torch.testing.assert_close(by(0.0, 0.0, 0.0), picture)
    turned = by(1.0, 0.0, 0.0)  # by 180 degrees
    torch.testing.assert_close(turned, picture.flip(2, 3), atol=1e-4, rtol=0)
    quarter = by(0.5, 0.0, 0.0)
    assert float(quarter[0, 0, 4, 2] + quarter[0, 0, 4, 6]) == pytest.approx(1.0, abs=1e-4)
    shifted = by(0.0, 1.0 / (SHIFT * 9), 0.0)  # by one pixel
    torch.testing.assert_close(shifted[..., :-1], picture[..., 1:], atol=1e-5, rtol=0)
    assert TURN == math.pi and SHIFT == 0.2


def test_what_comes_in_at_the_edges_is_the_darkest_level():
    found = moved(torch.full((8, 3, 6, 10), -1.7), torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, torch.full((8, 3, 6, 10), -1.7))


def test_consistency_is_the_mean_squared_change_of_the_features():
    data, model = images(10), logits_module().train()
    state = torch.get_rng_state()
    found = collect_evidence(model, data, needs=("consistency", "images"), batch_size=4, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    generator, x = torch.Generator().manual_seed(3), data["pixel_values"][:]
    with torch.no_grad():
        for start in range(0, 10, 4):
            part = x[start : start + 4]
            pair = [nn.functional.adaptive_avg_pool2d(model.conv(v).relu(), 2).flatten(1) for v in (part, moved(part, generator))]
            for i, (a, b) in enumerate(zip(*pair)):
                slow = sum(float(p - q) ** 2 for p, q in zip(a, b)) / len(a)
                assert found.consistency[start + i] == pytest.approx(slow, rel=1e-4)
    np.testing.assert_allclose(found.images, x.numpy(), atol=2e-3)
    again = collect_evidence(model, data, needs="consistency", batch_size=4, seed=4)
    assert again.images is None and np.abs(again.consistency - found.consistency).max() > 0
    flagged = detect("fct", found, rate=0.3).flagged
    assert set(np.flatnonzero(flagged)) == set(np.argsort(-found.consistency)[:3])


def test_the_loss_that_moves_classes_apart_is_the_mean_cosine():
    torch.manual_seed(0)
    features, labels = torch.randn(12, 5), torch.tensor([0, 0, 2, 2, 2, 5, 5, 5, 5, 0, 2, 5])
    centres = [features[labels == k].mean(0) for k in (0, 2, 5)]
    slow = sum(float(nn.functional.cosine_similarity(a, b, 0)) for a in centres for b in centres if a is not b) / 9
    assert float(apart(features, labels)) == pytest.approx(slow, rel=1e-5)


# ---- layers -----------------------------------------------------------------------------------------------------------


def test_layers_of_batch_normalisation_are_the_lowest_log_likelihoods():
    model, data = resnet().train(), images(9)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.2, 2.0)
    found = collect_evidence(model, data, needs=("layers",), batch_size=4)
    inputs = {}
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    handles = [m.register_forward_pre_hook(lambda m, a, name=name: inputs.__setitem__(name, a[0])) for name, m in norms.items()]
    with torch.no_grad():
        model.eval()(pixel_values=data["pixel_values"][:])
    for handle in handles:
        handle.remove()
    assert found.layers.shape == (9, len(norms)) and len(norms) >= 5
    for k, name in enumerate(inputs):  # in the order in which they ran
        a, m = inputs[name].numpy(), norms[name]
        for i in range(9):
            lowest = min(
                norm.logpdf(a[i, c], float(m.running_mean[c]), math.sqrt(float(m.running_var[c]) + m.eps)).min()
                for c in range(a.shape[1])
            )
            assert found.layers[i, k] == pytest.approx(lowest, rel=1e-4)


def test_layers_of_other_models_are_by_the_data_sets_own_statistics():
    model, data = vit(), images(9)
    found = collect_evidence(model, data, needs=("layers",), batch_size=4)
    outputs = {}
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    handles = [m.register_forward_hook(lambda m, a, o, name=name: outputs.__setitem__(name, o)) for name, m in norms.items()]
    with torch.no_grad():
        model.eval()(pixel_values=data["pixel_values"][:])
    for handle in handles:
        handle.remove()
    assert found.layers.shape == (9, len(norms))
    for k, name in enumerate(outputs):
        a = outputs[name].numpy().astype(np.float64)
        mean, deviation = a.mean((0, 1)), a.std((0, 1))
        lowest = [min(norm.logpdf(a[i, :, c], mean[c], deviation[c]).min() for c in range(a.shape[2])) for i in range(9)]
        np.testing.assert_allclose(found.layers[:, k], lowest, rtol=1e-3)
    assert collect_evidence(logits_module(), data, needs=("layers",)).layers.shape == (9, 1)  # its convolution, not its head
    pair = PeerModel.of([logits_module(), logits_module()])
    assert collect_evidence(pair, data, needs=("layers",)).layers.shape == (9, 1)
    with pytest.raises(ValueError, match=r"Linear has no hidden layer"):
        collect_evidence(nn.Linear(3, 2), [{"input": torch.zeros(3), "labels": 0}], needs=("layers",))


def test_padding_is_no_activation():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_labels=2)
    model = BertForSequenceClassification(config).eval()

    def rows(length):
        found = []
        for i in range(6):
            ids = [1 + (3 * i + k) % 19 for k in range(4)] + [0] * (length - 4)
            found.append({"input_ids": ids, "attention_mask": [int(t > 0) for t in ids], "labels": i % 2})
        return datasets.Dataset.from_list(found)

    short, long = (collect_evidence(model, rows(n), needs=("layers", "images", "consistency")) for n in (4, 9))
    np.testing.assert_allclose(long.layers, short.layers, rtol=1e-3, atol=1e-4)
    assert short.images is None and short.consistency is None  # texts are no images


# ---- frequency --------------------------------------------------------------------------------------------------------


def test_the_spectrum_is_the_cosine_transform():
    image = np.random.default_rng(0).random((1, 1, 5, 4)).astype(np.float32)
    found = spectrum(image)[0, 0].numpy()
    for u in range(5):
        for v in range(4):
            total = sum(
                255 * image[0, 0, y, x] * math.cos(math.pi * (2 * y + 1) * u / 10) * math.cos(math.pi * (2 * x + 1) * v / 8)
                for y in range(5)
                for x in range(4)
            )
            total *= math.sqrt((2 if u else 1) / 5) * math.sqrt((2 if v else 1) / 4)
            assert found[u, v] == pytest.approx(math.copysign(math.log1p(abs(total)), total), rel=1e-3, abs=1e-3)


def test_artefacts_change_the_image_and_stay_in_range():
    rng = np.random.default_rng(0)
    clean = rng.uniform(0.2, 0.7, (40, 3, 20, 16)).astype(np.float32)
    for make in ARTEFACTS:
        found = make(clean[0], clean[1], rng)
        assert found.shape == clean[0].shape and found.dtype in (np.float32, np.float64) and (found != clean[0]).any()
    kept = clean.copy()
    found = artefacts(clean, rng)
    assert found.shape == clean.shape and found.min() >= 0 and found.max() <= 1 and (clean == kept).all()
    assert all((a != b).any() for a, b in zip(found, clean))
    for side in (8, 28, 64):
        assert FrequencyNetwork(1, side, 2)(torch.zeros(2, 1, side, side)).shape == (2, 2)


def test_frequency_finds_a_trigger_that_it_has_not_seen_and_no_smooth_one():
    rng = np.random.default_rng(1)
    side, n = 12, 400
    steps = np.arange(side) / side

    def waves(count):
        phase, across, down = rng.uniform(0, 2 * np.pi, (count, 1, 1)), *rng.uniform(0, 2, (2, count, 1, 1))
        return (0.4 + 0.3 * np.sin(phase + across * 3 * steps + down * 3 * steps[:, None]))[:, None]

    x, bad = waves(n), np.arange(n) < 40
    x[bad, :, 4:7, 4:7] = np.indices((3, 3)).sum(0) % 2  # a checkerboard, not in a corner
    clean = Evidence(np.zeros(120, int), images=waves(120))
    found = detect("frequency", Evidence(np.zeros(n, int), images=x, clean=clean), epochs=10)
    assert found.flagged[bad].mean() > 0.9 and found.flagged[~bad].mean() < 0.15
    other = Evidence(np.zeros(120, int), images=4 * clean.images - 2)
    scaled = detect("frequency", Evidence(np.zeros(n, int), images=4 * x - 2, clean=other), epochs=10)
    assert (scaled.flagged == found.flagged).mean() > 0.95  # whatever the model's normalisation is


# ---- trainers and bad input -------------------------------------------------------------------------------------------


def test_a_plain_trainer_gives_evidence_too(tmp_path):
    data = images(24)
    trainer = Trainer(model=vit(), args=TrainingArguments(**settings(tmp_path, max_steps=1)), train_dataset=data)
    trainer.train()
    found = evidence_of(trainer, needs=("layers", "consistency"), clean=images(12, seed=1, noisy=0.0))
    alone = collect_evidence(trainer.model, data)
    np.testing.assert_allclose(found.features, alone.features, rtol=1e-4, atol=1e-6)
    assert found.layers.shape == (24, 5) == (24, found.clean.layers.shape[1])
    assert found.consistency.shape == (24,) and found.clean.consistency is None and found.clean.classes == CLASSES


def test_bad_evidence_and_settings_are_told():
    with pytest.raises(ValueError, match=r"needs names 'image': choose from features, probs, losses, layers"):
        collect_evidence(logits_module(), images(4), needs=("image",))
    with pytest.raises(ValueError, match=r"clean is a list: expected an Evidence"):
        Evidence([0, 1], clean=[0])
    with pytest.raises(ValueError, match=r"features of the clean rows are \(2, 4\), else \(2, 3\): use the same model"):
        Evidence([0, 1], np.zeros((2, 3)), clean=Evidence([0, 1], np.zeros((2, 4))))
    with pytest.raises(ValueError, match=r"images are \(2, 3\) float64, expected numbers \(2, channels, H, W\)"):
        Evidence([0, 1], images=np.zeros((2, 3)))
    evidence, _ = contaminated()
    with pytest.raises(ValueError, match=r"threshold=-1: expected a number of at least 0"):
        detect("scan", evidence, threshold=-1)
    with pytest.raises(ValueError, match=r"components=0: expected a whole number"):
        detect("scan", evidence, components=0)
    few = Evidence(evidence.labels, evidence.features, clean=Evidence([0, 1, 2], np.zeros((3, 6))))
    with pytest.raises(ValueError, match=r"0 classes have 2 clean rows: detector 'scan' needs some of every class"):
        detect("scan", few)
    flat = Evidence([0, 1], images=np.ones((2, 1, 4, 4)), clean=Evidence([0], images=np.ones((1, 1, 4, 4))))
    with pytest.raises(ValueError, match=r"all clean images are one level"):
        detect("frequency", flat)
    with pytest.raises(ValueError, match=r"epochs=0: expected a whole number"):
        detect("frequency", flat, epochs=0)


# ---- FLARE ------------------------------------------------------------------------------------------------------------


def layered(n: int = 600, bad: int = 60, layers: int = 6, spread: float = 0.3, seed: int = 0, late: bool = False):
    """Log-likelihoods of layers, of rows alike but for the bad ones; with ``late`` the last layers say of all rows the same."""
    rng = np.random.default_rng(seed)
    found = -rng.gamma(6.0, 1.0, (n, layers))
    poisoned = np.arange(n) < bad
    found[poisoned] = rng.normal(-60.0, spread, (bad, layers))
    if late:  # four values each, which make groups of their own
        found[:, 4:] = -rng.gamma(6.0, 1.0, (n, layers - 4)) - 100.0 ** rng.integers(0, 4, (n, layers - 4))
    order = rng.permutation(n)
    return Evidence(rng.integers(0, 4, n), layers=found[order]), poisoned[order]


def test_flare_flags_the_dense_group_whatever_the_labels_are():
    evidence, bad = layered()
    found = detect("flare", evidence)
    np.testing.assert_array_equal(found.flagged, bad)
    assert found.details["clusters"] == (540, 60) and found.details["layers"] == 6 and found.scores[bad].min() >= 0.5
    other = Evidence(np.zeros(600, int), layers=evidence.layers)
    np.testing.assert_array_equal(detect("flare", other).flagged, bad)
    np.testing.assert_array_equal(detect("flare", Evidence(evidence.labels, layers=3 * evidence.layers)).flagged, bad)


@pytest.mark.parametrize("seed", range(4))
def test_flare_flags_hardly_anybody_of_one_group(seed):
    evidence, _ = layered(bad=0, seed=seed)
    assert detect("flare", evidence).flagged.mean() <= 0.03
    assert not detect("flare", Evidence([0, 1] * 8, layers=evidence.layers[:16])).flagged.any()  # too few for two groups
    assert not detect("flare", Evidence(np.zeros(60, int), layers=np.full((60, 3), -2.0))).flagged.any()


def test_flare_finds_the_group_in_the_first_layers_alone():
    evidence, bad = layered(n=800, bad=80, layers=7, late=True)
    np.testing.assert_array_equal(detect("flare", evidence).flagged, bad)


def test_flare_leaves_layers_out_from_the_last_down_to_half_of_them(monkeypatch):
    evidence, bad = layered(layers=7)
    tried = []

    def split(rows, *given, found=5):
        tried.append(rows.shape[1])
        return stable_split(rows, *given) if rows.shape[1] == found else None

    monkeypatch.setattr("robust_trainer.detectors.flare.stable_split", split)
    found = detect("flare", evidence, components=7)
    assert tried == [7, 6, 5] and found.details["layers"] == 5
    np.testing.assert_array_equal(found.flagged, bad)
    monkeypatch.setattr("robust_trainer.detectors.flare.stable_split", lambda *given: split(*given, found=3))
    found = detect("flare", evidence, components=7)
    assert tried[3:] == [7, 6, 5, 4] and found.details == {"layers": None, "cut": None, "clusters": ()}
    assert not found.flagged.any()


def test_the_stable_split_is_that_of_single_linkage():
    """Two groups far apart: the split is born at their mutual reachability distance, which a loop finds."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(size=(80, 2)), rng.normal(size=(30, 2)) * 0.2 + [15.0, 0.0]])
    cut, groups = stable_split(rows, 10, 5, 0.3)
    distance = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    core = np.sort(distance, 1)[:, 4]  # HDBSCAN counts a row as its own first neighbour
    gap = min(max(distance[i, j], core[i], core[j]) for i in range(80) for j in range(80, 110))
    assert 0.95 * gap * 0.999 <= cut <= gap
    assert (groups[:80] == 0).sum() >= 79 and (groups[80:] == 1).all()
    assert stable_split(rows[:80], 10, 5, 0.3) is None or stable_split(rows[:80], 10, 5, 0.3)[1].max() >= 1


def test_flare_settings_are_checked():
    evidence, _ = layered(60, 10)
    for given, line in (
        ({"stability": 0}, r"stability=0: expected a number above 0"),
        ({"smallest": 2}, r"smallest=2: expected a share"),
        ({"neighbours": 0}, r"neighbours=0: expected a whole number"),
        ({"components": 0.5}, r"components=0\.5: expected a whole number"),
    ):
        with pytest.raises(ValueError, match=line):
            detect("flare", evidence, **given)
