"""Label noise and corrupted targets, against slow loops over samples and the laws they are drawn from."""

import json
import logging
import math
import pickle
from collections import Counter

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from helpers.processes import alone
from helpers.tables import every_row
from PIL import Image as Pillow

from robust_trainer.corruptions import (
    CLASS_MAPS,
    NOISES,
    TARGET_KINDS,
    PatchTrigger,
    corrupt_labels,
    corrupt_target_array,
    corrupt_targets,
    noise_transition,
    nominal_rates,
    poison,
    realised_rates,
    realised_transition,
    use_noisy_labels,
)
from robust_trainer.corruptions.label_noise.instance import flip_rates, instance_noise_map
from robust_trainer.corruptions.label_noise.regression import linear_weights
from robust_trainer.data.features import FeatureReader
from robust_trainer.data.randomness import cut_index, key_cuts, key_quantile, sample_keys, shares, stream_seed, uniforms

TRIANGLE = [[0.5, 0.3, 0.2, 0.0], [0.0, 1.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25], [0.1, 0.0, 0.9, 0.0]]


def toy(n=400, classes=4, d=6, sizes=None):
    """Integer labels in a shuffled order, and d features that say nothing."""
    random = np.random.default_rng(1)
    labels = np.repeat(np.arange(classes), sizes) if sizes else np.arange(n) % classes
    features = Features({"x": List(Value("float32")), "label": ClassLabel(names=[f"c{i}" for i in range(classes)])})
    rows = {"x": random.normal(3, 2, (len(labels), d)).tolist(), "label": random.permutation(labels).tolist()}
    return Dataset.from_dict(rows, features=features)


def settings(noise, rate=0.3):
    extra = {"class_map": {0: 1, 2: 3}} if noise == "asymmetric" else {}
    if noise == "transition":
        return {"transition_matrix": TRIANGLE}
    return {"rate": rate, **extra, **({"feature_columns": "x"} if noise == "instance" else {})}


def counts(dataset, classes=4):
    found = Counter(zip(dataset["clean_label"], dataset["label"]))
    return np.array([[found[i, j] for j in range(classes)] for i in range(classes)])


def within(found, n, p, z=4.5):
    """Whether a count lies within z standard deviations of Binomial(n, p)."""
    return abs(found - n * p) <= z * math.sqrt(n * p * (1 - p)) + 1e-9


# ---- keys


def test_key_ranges_hold_what_they_say():
    keys = sample_keys(3, np.arange(1000))
    cuts = key_cuts(keys, [0, 300, 0, 700, 0])
    slow = [next(t for t, cut in enumerate(cuts) if k < cut or t == 3) for k in keys.tolist()]
    assert cut_index(keys, cuts).tolist() == slow and Counter(slow) == {1: 300, 3: 700}
    law = cut_index(keys, key_quantile(np.cumsum([0.0, 0.25, 0.75, 0.0])))
    assert set(law) == {1, 2} and within((law == 1).sum(), 1000, 0.25)
    assert key_quantile([0.0, 0.5, 1.0, 1 - 1e-16]).tolist() == [0, 2**63, 2**64 - 1, 2**64 - 1]
    u = uniforms(0, np.arange(10**5))
    assert 0 <= u.min() and u.max() < 1 and abs(u.mean() - 0.5) < 0.005 and abs(u.var() - 1 / 12) < 0.002
    other = uniforms(stream_seed(0, 1), np.arange(10**5))
    assert abs(np.corrcoef(u, other)[0, 1]) < 0.015


def test_shares_are_the_largest_remainders():
    assert shares(10, [1, 1, 1]).tolist() == [4, 3, 3] and shares(7, [0.5, 0.3, 0.2]).tolist() == [4, 2, 1]
    assert shares(0, [1, 0]).tolist() == [0, 0] and shares(30, [0.1] * 10).tolist() == [3] * 10
    ties = [tuple(shares(10, [1] * 4, seed)) for seed in range(50)]
    assert set(map(sum, ties)) == {10} and len(set(ties)) == 6  # every pair of classes gets its turn


# ---- matrices


def test_matrices_are_the_formulas():
    for c, rate in ((4, 0.3), (10, 0.45), (2, 0.0)):
        eye = np.eye(c)
        slow = [[1 - rate if i == j else rate / (c - 1) for j in range(c)] for i in range(c)]
        np.testing.assert_allclose(noise_transition("symmetric", c, rate), slow)
        np.testing.assert_allclose(noise_transition("symmetric-redraw", c, rate).diagonal(), 1 - (c - 1) / c * rate)
        slow = [(1 - rate) * eye[i] + rate * eye[(i + 1) % c] for i in range(c)]
        np.testing.assert_allclose(noise_transition("pairflip", c, rate), slow)
    found = noise_transition("asymmetric", 10, 0.4, class_map="nrat")
    for source in range(10):
        target = {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}.get(source)
        row = np.eye(10)[source] if target is None else 0.6 * np.eye(10)[source] + 0.4 * np.eye(10)[target]
        np.testing.assert_allclose(found[source], row)
    assert CLASS_MAPS["nrat"] == CLASS_MAPS["cifar10"]
    named = noise_transition("asymmetric", 3, 0.4, class_map={"a": "c"}, class_names=["a", "b", "c"])
    np.testing.assert_allclose(named, [[0.6, 0, 0.4], [0, 1, 0], [0, 0, 1]])
    for noise in ("symmetric", "symmetric-redraw", "pairflip"):
        np.testing.assert_allclose(noise_transition(noise, 7, 0.35).sum(axis=1), 1)
    np.testing.assert_allclose(noise_transition("transition", 2, transition_matrix=[[0.5, 0.5 + 1e-7], [0, 1]]).sum(axis=1), 1)


# ---- exact counts


@every_row("n, rate", [(400, 0.0), (400, 0.3), (37, 0.1), (1001, 0.333), (7, 0.99)])
@every_row("noise", ["symmetric", "pairflip", "instance"])
def test_exact_counts_overall(noise, n, rate):
    noisy = corrupt_labels(toy(n), noise, **settings(noise, rate))
    wrong = [y != c for y, c in zip(noisy["label"], noisy["clean_label"])]
    assert sum(wrong) == round(rate * n) and noisy["is_corrupted"][:] == wrong
    assert noisy["clean_label"][:] == toy(n)["label"][:] and noisy["x"][:] == toy(n)["x"][:]
    assert noisy.features["clean_label"] == noisy.features["label"] == toy().features["label"]


def test_exact_counts_per_class():
    sizes = [100, 51, 7, 242]
    noisy = counts(corrupt_labels(toy(sizes=sizes), "asymmetric", rate=0.3, class_map={0: 1, 2: 3, 3: 2}))
    assert noisy.tolist() == [[70, 30, 0, 0], [0, 51, 0, 0], [0, 0, 5, 2], [0, 0, 73, 169]]
    over = counts(corrupt_labels(toy(sizes=sizes), "asymmetric", rate=0.25, class_map={0: 1, 2: 3, 3: 2}, rate_of="all"))
    assert over.sum() - np.trace(over) == 100 and over[1].tolist() == [0, 51, 0, 0]
    for noise in ("symmetric", "pairflip"):
        even = counts(corrupt_labels(toy(sizes=sizes), noise, rate=0.3, stratified=True))
        assert even.sum() - np.trace(even) == 120
        assert all(abs(size - even[c, c] - 0.3 * size) < 1 for c, size in enumerate(sizes))


def test_transition_counts_are_the_largest_remainders():
    sizes = [100, 51, 7, 242]
    found = counts(corrupt_labels(toy(sizes=sizes), "transition", transition_matrix=TRIANGLE, seed=5))
    assert found.sum(axis=1).tolist() == sizes
    assert (abs(found - np.array(sizes)[:, None] * TRIANGLE) < 1).all() and found[1].tolist() == [0, 51, 0, 0]
    assert found[0].tolist() == [50, 30, 20, 0] and sorted(found[2]) == [1, 2, 2, 2]
    uniform = noise_transition("symmetric", 20, 0.3)  # 30 * 0.3 / 19 each: nobody has a whole sample, all remainders tie
    column = counts(corrupt_labels(toy(600, 20), "transition", transition_matrix=uniform), 20)
    assert (column.sum(axis=1) == 30).all() and (abs(column.diagonal() - 21) < 1).all()
    given = column.sum(axis=0) - column.diagonal()
    assert given.min() > 1 and given.max() < 20  # about 9 each; without keyed ties the first classes had all


def test_pairflip_is_the_multi_target_rule():
    for stratified in (False, True):
        one = corrupt_labels(toy(), "pairflip", rate=0.35, seed=4, stratified=stratified)
        two = poison(toy(), trigger=None, rate=0.35, label_rule="multi-target", seed=4, stratified=stratified)
        assert all(one[c][:] == two[c][:] for c in ("label", "clean_label", "is_corrupted"))


# ---- laws


@every_row("exact", [True, False])
def test_symmetric_gives_every_other_label_alike_and_never_its_own(exact):
    noisy = corrupt_labels(toy(12000), "symmetric", rate=0.4, seed=2, exact=exact)
    found = counts(noisy)
    wrong = found.sum() - np.trace(found)
    assert wrong == 4800 if exact else within(wrong, 12000, 0.4)
    for i in range(4):
        assert within(3000 - found[i, i], 3000, 0.4)
        assert all(within(found[i, j], 3000 - found[i, i], 1 / 3) for j in range(4) if j != i)


@every_row("exact", [True, False])
def test_redraw_has_the_smaller_effective_rate(exact):
    noisy = corrupt_labels(toy(12000), "symmetric-redraw", rate=0.4, seed=2, exact=exact)
    rates = realised_rates(noisy, nominal=nominal_rates(toy(12000), "symmetric-redraw", rate=0.4))
    assert rates["nominal"] == pytest.approx(0.3) and rates["mislabelled"] == rates["overall"]
    if exact:  # 4800 redrawn
        assert within(rates["corrupted"], 4800, 0.75)
    assert within(rates["corrupted"], 12000, 0.3) and rates["overall"] < 0.35


@every_row("noise", [n for n in NOISES if n != "instance"])
def test_probability_form_realises_its_matrix(noise):
    matrix = noise_transition(noise, 4, **{k: v for k, v in settings(noise).items()})
    noisy = corrupt_labels(toy(8000), noise, exact=False, seed=1, **settings(noise))
    found = realised_transition(noisy)
    assert all(within(2000 * found[i, j], 2000, matrix[i][j]) for i in range(4) for j in range(4))
    np.testing.assert_allclose(found, counts(noisy) / 2000)
    assert (found[np.array(matrix) == 0] == 0).all()


def test_nrat_rates_are_half_of_nominal_and_simultaneous():
    noisy = corrupt_labels(toy(1000, 10), "asymmetric", rate=0.4, class_map="nrat")
    found = counts(noisy, 10)
    assert realised_rates(noisy)["overall"] == 0.2
    for source, target in CLASS_MAPS["nrat"].items():
        assert found[source, source] == 60 and found[source, target] == 40  # the authors' sequence: 25 cats, 41 dogs
    assert all(found[c, c] == 100 for c in (0, 1, 6, 7, 8))


@every_row("noise", ["symmetric", "pairflip", "instance"])
def test_rates_are_nested_for_one_seed(noise):
    def rows(rate):
        return set(np.flatnonzero(corrupt_labels(toy(), noise, exact=True, **settings(noise, rate))["is_corrupted"]))

    if noise != "instance":  # whose order depends on the rate
        assert rows(0.1) < rows(0.2) < rows(0.6)
    assert rows(0.0) == set()
    other = corrupt_labels(toy(), noise, seed=9, **settings(noise))
    assert other["label"][:] != corrupt_labels(toy(), noise, **settings(noise))["label"][:]


# ---- one outcome, however it is computed


@every_row("noise", NOISES)
@every_row("exact", [True, False])
def test_batches_and_shards_do_not_matter(noise, exact, monkeypatch):
    from robust_trainer.corruptions.label_noise import labels

    made, real = [], labels.map_columns
    monkeypatch.setattr(labels, "map_columns", lambda d, function, *a, **k: made.append(function) or real(d, function, *a, **k))
    clean = toy(60)
    whole = corrupt_labels(clean, noise, exact=exact, **settings(noise))
    again = corrupt_labels(clean, noise, exact=exact, batch_size=7, **settings(noise))
    assert again["label"][:] == whole["label"][:] and again["is_corrupted"][:] == whole["is_corrupted"][:]
    function = pickle.loads(pickle.dumps(made[0]))
    for shard in np.split(np.random.default_rng(0).permutation(60), 4):
        rows = clean.select(shard)[:]
        assert function(rows, shard.tolist())["label"] == [whole["label"][i] for i in shard]


def test_processes_do_not_matter(tmp_path):
    def labels(n):
        return [corrupt_labels(toy(60), noise, num_proc=n, **settings(noise))["label"][:] for noise in ("symmetric", "instance")]

    assert labels(None) == alone(lambda: labels(2), tmp_path)  # map forks


def test_format_other_columns_and_first_truth_are_kept():
    images = [Pillow.fromarray(np.full((4, 4), 20 * i, np.uint8)) for i in range(12)]
    features = Features({"image": Image(), "label": Value("int64")})
    clean = Dataset.from_dict({"image": images, "label": [0, 1, 2] * 4}, features=features).with_format("numpy", columns=["label"])
    noisy = corrupt_labels(clean, "instance", rate=0.5)
    assert list(noisy[0]) == ["label"]
    raw = [d.with_format(None).cast_column("image", Image(decode=False))["image"][:] for d in (clean, noisy)]
    assert raw[0] == raw[1]
    triggered = poison(noisy.with_format(None), trigger=PatchTrigger(), rate=0.25, seed=3)
    assert triggered["clean_label"][:] == [0, 1, 2] * 4 and 6 <= sum(triggered["is_corrupted"]) <= 9
    again = corrupt_labels(triggered, "symmetric", rate=0.25, seed=4)
    assert again["clean_label"][:] == [0, 1, 2] * 4
    assert all(now for now, before in zip(again["is_corrupted"], triggered["is_corrupted"]) if before)


# ---- instance-dependent


def test_instance_rows_are_the_slow_loop():
    data, seed = toy(30), 3
    reader = FeatureReader.of(data, "x").standardised(data)
    noise = instance_noise_map(reader, 0.3, 30, 4, seed, "label", False)
    x, labels = np.array(data["x"]), data["label"][:]
    p = noise.probabilities(reader(data[:], range(30)), np.array(labels), np.arange(30))
    mean = [sum(column) / 30 for column in x.T]
    deviation = [math.sqrt(sum((v - m) ** 2 for v in column) / 30) for column, m in zip(x.T, mean)]
    for i, y in enumerate(labels):
        random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, 4, y, 0])))
        w = random.standard_normal((6, 4)).astype(np.float32)
        a = [sum((x[i][k] - mean[k]) / deviation[k] * float(w[k][j]) for k in range(6)) for j in range(4)]
        total = sum(math.exp(a[j]) for j in range(4) if j != y)
        q = float(flip_rates(0.3, seed, [i])[0])
        slow = [1 - q if j == y else q * math.exp(a[j]) / total for j in range(4)]
        np.testing.assert_allclose(p[i], slow, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(p.sum(axis=1), 1)


def test_instance_weights_do_not_depend_on_the_block(monkeypatch):
    from robust_trainer.corruptions.label_noise import instance

    data = toy(30)
    whole = corrupt_labels(data, "instance", rate=0.5, feature_columns="x")
    parts = [b.shape for _, b in instance._blocks(0, 1, 10**6, 4)]
    assert sum(rows for rows, _ in parts) == 10**6 and max(rows for rows, _ in parts) * 4 <= 2**19
    instance._block.cache_clear()
    assert corrupt_labels(data, "instance", rate=0.5, feature_columns="x")["label"][:] == whole["label"][:]


@every_row("rate", [0.05, 0.2, 0.5, 0.95])
def test_flip_rates_are_the_truncated_normal(rate):
    q = flip_rates(rate, 0, np.arange(20000))
    assert 0 <= q.min() and q.max() <= 1
    random = np.random.default_rng(0).normal(rate, 0.1, 400000)
    random = np.sort(random[(random >= 0) & (random <= 1)])
    for level in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert np.quantile(q, level) == pytest.approx(random[int(level * len(random))], abs=0.006)


def test_instance_noise_has_its_mean_rate_and_depends_on_the_instance():
    data = toy(6000)
    drawn = corrupt_labels(data, "instance", rate=0.3, feature_columns="x", exact=False)
    assert within(sum(drawn["is_corrupted"]), 6000, flip_rates(0.3, 0, np.arange(6000)).mean())
    assert abs(np.mean(drawn["is_corrupted"]) - 0.3) < 0.03
    exact = corrupt_labels(data, "instance", rate=0.3, feature_columns="x")
    assert sum(exact["is_corrupted"]) == 1800 and exact["label"][:] != drawn["label"][:]
    q = flip_rates(0.3, 0, np.arange(6000))
    hit = np.array(exact["is_corrupted"][:])
    high = q > 0.3  # the chance to be chosen grows with q
    assert hit[high].mean() == pytest.approx(q[high].mean(), abs=0.03)
    assert hit[~high].mean() == pytest.approx(q[~high].mean(), abs=0.03)
    reader = FeatureReader.of(data, "x").standardised(data)
    noise = instance_noise_map(reader, 0.3, 6000, 4, 0, "label", True)
    law = noise.targets(reader(data[:], range(6000)), np.array(data["label"][:]))
    given = np.array(exact["label"][:])
    expected = law[hit].sum(axis=0)
    for c in range(4):
        spread = math.sqrt((law[hit, c] * (1 - law[hit, c])).sum())
        assert abs((given[hit] == c).sum() - expected[c]) < 4.5 * spread
    assert np.median(law.max(axis=1)) > 0.7  # not symmetric noise: a sample has its class


def test_features_of_images_and_numbers_are_standardised():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (20, 5, 4, 3), dtype=np.uint8)
    features = Features({"image": Image(), "a": Value("float64"), "b": List(Value("int64")), "label": Value("int64")})
    rows = {"image": [Pillow.fromarray(i) for i in images], "a": random.normal(9, 3, 20).tolist(), "b": [[7, i] for i in range(20)],
            "label": [0, 1] * 10}  # fmt: skip
    data = Dataset.from_dict(rows, features=features)
    reader = FeatureReader.of(data, ["image", "a", "b"]).standardised(data, batch_size=6)
    x = reader(data.cast_column("image", Image(decode=False))[:], range(20))
    assert x.shape == (20, 5 * 4 * 3 + 3) and (x[:, 61] == 0).all()  # the constant 7
    pixels = x[:, :60].reshape(20, 5, 4, 3)
    plain = images / 255
    expected = (plain - plain.mean(axis=(0, 1, 2))) / plain.std(axis=(0, 1, 2))
    np.testing.assert_allclose(pixels, expected, atol=1e-9)
    for column in (60, 62):
        assert x[:, column].mean() == pytest.approx(0, abs=1e-9) and x[:, column].std() == pytest.approx(1)
    mixed = data.select([0, 1]).map(lambda row: {"b": [1, 2, 3] if row["label"] else [1, 2]})
    with pytest.raises(ValueError, match=r"'b' in row 1 has shape \(3,\), row 0 has \(2,\)"):
        corrupt_labels(mixed, "instance", rate=0.2, feature_columns=["b"])


# ---- real noisy labels


def test_a_noisy_column_becomes_the_label():
    data = toy(40).add_column("worse_label", np.random.default_rng(0).integers(0, 4, 40))
    noisy = use_noisy_labels(data, "worse_label")
    assert noisy["label"][:] == data["worse_label"][:] and noisy["clean_label"][:] == data["label"][:]
    assert noisy["is_corrupted"][:] == [a != b for a, b in zip(data["worse_label"], data["label"])]
    assert noisy.features["label"] == data.features["label"] and "worse_label" in noisy.column_names
    array = use_noisy_labels(toy(40), np.array(data["worse_label"][:]), batch_size=7)
    assert array["label"][:] == noisy["label"][:] and array.column_names == ["x", "label", "is_corrupted", "clean_label"]
    as_word = Features({**data.features, "worse_label": Value("string")})
    words = data.map(lambda row: {"worse_label": f"c{row['worse_label']}"}, features=as_word)
    assert use_noisy_labels(words, "worse_label")["label"][:] == noisy["label"][:]
    hub = data.rename_column("label", "clean")
    made = use_noisy_labels(hub, "worse_label", "clean")
    assert made["label"][:] == noisy["label"][:] and made["clean_label"][:] == data["label"][:]
    assert realised_rates(made)["overall"] == pytest.approx(1 - np.trace(counts(noisy)) / 40)


# ---- reporting


def test_rates_are_logged_and_returned_per_class(caplog):
    with caplog.at_level(logging.INFO, logger="robust_trainer"):
        noisy = corrupt_labels(toy(), "asymmetric", rate=0.25, class_map={"c0": "c1"})
    assert "nominal rate 0.0625, realised 0.0625 (25 of 400 samples); per clean class: c0 0.2500 of 0.2500" in caplog.text
    nominal = nominal_rates(toy(), "asymmetric", rate=0.25, class_map={"c0": "c1"})
    rates = realised_rates(noisy, nominal)
    assert rates["nominal_per_class"] == {"c0": 0.25, "c1": 0.0, "c2": 0.0, "c3": 0.0} == rates["per_class"]
    assert json.loads(json.dumps(rates))["nominal"] == 0.0625
    other = noisy.rename_column("label", "fine")
    assert realised_rates(other)["mislabelled"] is None
    assert realised_rates(other, label_column="fine")["mislabelled"] == 0.0625
    np.testing.assert_array_equal(realised_transition(other, label_column="fine"), realised_transition(noisy))
    assert realised_transition(use_noisy_labels(toy().select(range(3)), [0, 1, 2])).shape == (4, 4)


# ---- regression


def regression(n=60, k=3, name="label", dtype="float64"):
    random = np.random.default_rng(0)
    target = List(Value(dtype)) if k else Value(dtype)
    y = random.normal(size=(n, k) if k else n).astype(dtype)
    return Dataset.from_dict(
        {"x": random.normal(size=(n, 5)).tolist(), name: y.tolist()}, features=Features({"x": List(Value("float64")), name: target})
    )


@every_row("kind", TARGET_KINDS)
@every_row("k", [0, 1, 3])
@every_row("rate", [0.0, 0.35])
def test_targets_are_the_formulas(kind, k, rate):
    data = regression(60, k)
    x, y = np.array(data["x"]), np.array(data["label"]).reshape(60, -1)
    if kind == "pairflip" and k < 2:
        with pytest.raises(ValueError, match="at least 2"):
            corrupt_targets(data, kind, rate=rate)
        return
    extra = {"feature_columns": "x"} if kind in ("linadv", "mixture") else {}
    made = corrupt_targets(data, kind, rate=rate, seed=7, **extra)
    assert made.features["clean_label"] == made.features["label"] == data.features["label"]
    assert made["clean_label"][:] == data["label"][:] and sum(made["is_corrupted"]) == round(rate * 60)
    noisy, weights = np.array(made["label"]).reshape(60, -1), linear_weights(7, 5, max(k, 1))
    seen = Counter()
    for i, hit in enumerate(made["is_corrupted"]):
        if not hit:
            assert (noisy[i] == y[i]).all()
            continue
        laws = {
            "linadv": np.allclose(noisy[i], [sum(x[i][j] * weights[j][c] for j in range(5)) for c in range(max(k, 1))]),
            "signflip": (noisy[i] == -y[i]).all(),
            "pairflip": k > 1 and noisy[i].tolist() == [y[i][c - 1] for c in range(k)],
            "maximum": noisy[i].tolist() == [max(y[:, c]) for c in range(max(k, 1))],
        }
        drawn = [-5 + 10 * uniforms(stream_seed(7, 1000 + c), [i])[0] for c in range(max(k, 1))]
        laws["uninoise"] = np.allclose(noisy[i], drawn)
        (which,) = [name for name, holds in laws.items() if holds]
        seen[which] += 1
    if kind == "mixture" and rate:
        assert set(seen) == {"linadv", "signflip", "uninoise", "pairflip"} - ({"pairflip"} if k < 2 else set())
        assert max(seen.values()) - min(seen.values()) <= 1
    elif rate:
        assert seen == {kind: 21}
    shape = (60, k) if k else 60
    array, mask = corrupt_target_array(x, y.reshape(shape), kind, rate=rate, seed=7)
    np.testing.assert_array_equal(array, np.array(made["label"]))
    assert mask.tolist() == made["is_corrupted"][:]


def test_uniform_noise_fills_its_range_and_weights_are_normal():
    y, mask = corrupt_target_array(None, np.zeros((4000, 2)), "uninoise", rate=0.5, low=1, high=3)
    drawn = y[mask]
    assert drawn.shape == (2000, 2) and 1 <= drawn.min() < 1.01 and 2.99 < drawn.max() < 3
    assert abs(drawn.mean() - 2) < 0.05 and abs(np.corrcoef(drawn.T)[0, 1]) < 0.1 and (y[~mask] == 0).all()
    w = linear_weights(0, 200, 50, 2.0)
    assert abs(w.mean()) < 0.05 and w.std() == pytest.approx(2, abs=0.05)
    assert (linear_weights(0, 200, 50) * 2 == w).all() and (linear_weights(1, 200, 50) * 2 != w).any()


def test_targets_do_not_depend_on_batches_and_keep_dtype_name_and_first_truth():
    data = regression(name="pose", dtype="float32")
    whole = corrupt_targets(data, "mixture", rate=0.5, target_column="pose", feature_columns="x")
    for other in ({"batch_size": 7}, {"num_proc": 2}):
        again = corrupt_targets(data, "mixture", rate=0.5, target_column="pose", feature_columns="x", **other)
        assert again["pose"][:] == whole["pose"][:]
    assert whole["clean_pose"][:] == data["pose"][:] and whole.features["pose"] == List(Value("float32"))
    twice = corrupt_targets(whole, "signflip", rate=0.5, seed=1, target_column="pose")
    assert twice["clean_pose"][:] == data["pose"][:] and 30 < sum(twice["is_corrupted"]) <= 60
    rates = realised_rates(whole, 0.5)
    assert rates["overall"] == 0.5 and rates["per_class"] == {} and rates["n"] == 60
    single = corrupt_targets(regression(k=0), "signflip", rate=0.1)
    assert realised_rates(single)["per_class"] == {} and realised_rates(single)["corrupted"] == 6
    y, mask = corrupt_target_array(None, np.ones(10, np.float32), "signflip", rate=0.5)
    assert y.dtype == np.float32 and y.shape == (10,) and mask.sum() == 5


# ---- bad input


@every_row(
    "build, told",
    [
        (lambda: corrupt_labels(toy(), "symetric", rate=0.1), "noise='symetric' is unknown: choose one of symmetric,"),
        (lambda: corrupt_labels(toy(), "symmetric"), "rate=None"),
        (lambda: corrupt_labels(toy(), "symmetric", rate=1.0), "rate=1.0 must be a fraction in [0, 1)"),
        (lambda: corrupt_labels(toy(), "instance", rate=-0.1, feature_columns="x"), "rate=-0.1"),
        (lambda: corrupt_labels(toy(), "pairflip", rate=float("nan")), "rate=nan"),
        (lambda: corrupt_labels(toy(), "pairflip", rate=0.1, seed=-1), "seed=-1"),
        (lambda: corrupt_labels(toy(), "instance", rate=0.1, seed=0.5, feature_columns="x"), "seed=0.5"),
        (lambda: corrupt_labels(toy(), "pairflip", rate=0.1, class_map={0: 1}), "class_map is given"),
        (lambda: corrupt_labels(toy(), "pairflip", rate=0.1, feature_columns="x"), "feature_columns is given"),
        (lambda: corrupt_labels(toy(), "pairflip", rate=0.1, rate_of="all"), "rate_of='all'"),
        (lambda: corrupt_labels(toy(), "instance", rate=0.1, feature_columns="x", rate_of="all"), "rate_of='all'"),
        (lambda: corrupt_labels(toy(), "instance", rate=0.1, feature_columns="x", stratified=True), "stratified=True"),
        (lambda: corrupt_labels(toy(), "pairflip", rate=0.1, exact=False, stratified=True), "stratified=True"),
        (lambda: corrupt_labels(toy(), "asymmetric", rate=0.1), "class_map=None"),
        (lambda: corrupt_labels(toy(), "asymmetric", rate=0.1, class_map="cifar"), "choose cifar10 or nrat"),
        (lambda: corrupt_labels(toy(), "asymmetric", rate=0.1, class_map="nrat"), "10 classes, not 4"),
        (lambda: corrupt_labels(toy(), "asymmetric", rate=0.1, class_map={}), "non-empty"),
        (lambda: corrupt_labels(toy(), "asymmetric", rate=0.1, class_map={0: 4}), "unknown class 4: give an integer in [0, 4)"),
        (lambda: corrupt_labels(toy(), "asymmetric", rate=0.1, class_map={"cat": 1}), "unknown class 'cat'"),
        (lambda: corrupt_labels(toy(), "asymmetric", rate=0.1, class_map={2: 2}), "sends 2 to itself"),
        (lambda: corrupt_labels(toy(), "asymmetric", rate=0.1, class_map={0: 1, "c0": 2}), "class 0 twice"),
        (lambda: corrupt_labels(toy(), "asymmetric", rate=0.3, class_map={0: 1}, rate_of="all"), "give a rate below 0.25"),
        (lambda: corrupt_labels(toy(), "transition"), "transition_matrix=None"),
        (lambda: corrupt_labels(toy(), "transition", rate=0.1, transition_matrix=TRIANGLE), "rate=0.1 is given"),
        (lambda: corrupt_labels(toy(), "transition", transition_matrix=np.eye(3)), "shape (3, 3), expected (4, 4)"),
        (lambda: corrupt_labels(toy(), "transition", transition_matrix=np.eye(4) * 0.9), "row 0 sums to 0.9"),
        (lambda: corrupt_labels(toy(), "transition", transition_matrix=2 * np.eye(4) - 0.25), "[0, 1]=-0.25"),
        (lambda: corrupt_labels(toy(), "transition", transition_matrix=np.full((4, 4), np.nan)), "[0, 0]=nan"),
        (lambda: corrupt_labels(toy(), "transition", transition_matrix=[[1], [1, 2]]), "no array of numbers"),
        (lambda: corrupt_labels(Dataset.from_dict({"label": [0, 0]}), "symmetric", rate=0.1), "num_classes=1"),
        (lambda: corrupt_labels(Dataset.from_dict({"label": [0, 0], "x": [1., 2.]}), "instance", rate=0.1, feature_columns="x"),
         "num_classes=1"),
        (lambda: corrupt_labels(Dataset.from_dict({"label": ["a", "b"]}), "symmetric", rate=0.1), "class_encode_column"),
        (lambda: corrupt_labels(Dataset.from_dict({"label": [0.5, 1.5]}), "symmetric", rate=0.1), "'label' is Value('float64')"),
        (lambda: corrupt_labels(Dataset.from_dict({"label": [0, None, 1]}), "symmetric", rate=0.1), "None in row 1"),
        (lambda: corrupt_labels(Dataset.from_dict({"label": [0, 7]}), "symmetric", rate=0.1, num_classes=3), "7 in row 1"),
        (lambda: corrupt_labels(toy().remove_columns("label"), "symmetric", rate=0.1), "label_column is not given"),
        (lambda: corrupt_labels(toy().select([]), "symmetric", rate=0.1), "0 rows"),
        (lambda: corrupt_labels(toy(), "instance", rate=0.1), "feature_columns=None"),
        (lambda: corrupt_labels(toy(), "instance", rate=0.1, feature_columns=[]), "is empty"),
        (lambda: corrupt_labels(toy(), "instance", rate=0.1, feature_columns="label"), "choose from ['x']"),
        (lambda: corrupt_labels(toy().add_column("s", ["a"] * 400), "instance", rate=0.1, feature_columns="s"), "expected images"),
        (lambda: corrupt_labels(Dataset.from_dict({"x": [1.0, math.nan], "label": [0, 1]}), "instance", rate=0.1,
                                feature_columns="x"), "'x' in row 1: it holds NaN"),
        (lambda: corrupt_labels(toy(20, d=5), "instance", rate=0.1, feature_columns="x", num_classes=20000), "(an embedding)"),
        (lambda: use_noisy_labels(toy(), "worse"), "choose one of ['x', 'label']"),
        (lambda: use_noisy_labels(toy(), "label"), "clean labels itself"),
        (lambda: use_noisy_labels(toy(), [0, 1]), "shape (2,) but the data set has 400 rows"),
        (lambda: use_noisy_labels(toy(4), [0, 1, 2, 4]), "is 4 in row 3 (1 such rows), expected [0, 4)"),
        (lambda: use_noisy_labels(toy(4), [0, 1, 2, -1]), "is -1 in row 3"),
        (lambda: use_noisy_labels(toy(4), [0, 1, 2, 0.5]), "holds float64"),
        (lambda: use_noisy_labels(toy(4), [0, 1, None, 2]), "None in row 2"),
        (lambda: use_noisy_labels(toy(4), ["c0", "c1", "c9", "c2"]), "'c9' in row 2, expected one of c0"),
        (lambda: use_noisy_labels(toy(4).add_column("w", [0, 1, 2, 3]).cast_column("w", ClassLabel(names=list("bcde"))), "w"),
         "cast one to the other"),
        (lambda: realised_transition(toy()), "clean_label"),
        (lambda: realised_rates(corrupt_labels(toy(), "pairflip", rate=0.1), [0.1, 0.2]), "nominal has 2 rates"),
        (lambda: corrupt_targets(regression(), "sign", rate=0.1), "kind='sign' is unknown"),
        (lambda: corrupt_targets(regression(), "signflip", rate=1), "rate=1 must"),
        (lambda: corrupt_targets(regression(), "signflip", rate=0.1, seed="a"), "seed='a'"),
        (lambda: corrupt_targets(regression(), "linadv", rate=0.1), "feature_columns"),
        (lambda: corrupt_targets(regression(), "mixture", rate=0.1), "feature_columns"),
        (lambda: corrupt_targets(regression(), "linadv", rate=0.1, feature_columns="z"), "choose from ['x']"),
        (lambda: corrupt_targets(regression(), "linadv", rate=0.1, feature_columns="x", weight_std=0), "weight_std=0"),
        (lambda: corrupt_targets(regression(), "uninoise", rate=0.1, low=2, high=1), "low=2 and high=1"),
        (lambda: corrupt_targets(regression(), "signflip", rate=0.1, target_column="y"), "target_column='y'"),
        (lambda: corrupt_targets(toy(), "signflip", rate=0.1), "expected a float"),
        (lambda: corrupt_targets(Dataset.from_dict({"label": [[1.0], [1.0, 2.0]]}), "signflip", rate=0.1), "2 numbers in row 1"),
        (lambda: corrupt_targets(Dataset.from_dict({"label": [1.0, None]}), "signflip", rate=0.1), "None in row 1"),
        (lambda: corrupt_targets(Dataset.from_dict({"label": [1.0, math.inf]}), "signflip", rate=0.1), "infinite in row 1"),
        (lambda: corrupt_target_array(None, np.arange(3), "signflip", rate=0.1), "dtype int64"),
        (lambda: corrupt_target_array(np.ones((2, 3)), np.ones(3), "linadv", rate=0.1), "a row for each"),
    ],
)  # fmt: skip
def test_errors_are_one_line_and_name_the_value(build, told):
    with pytest.raises(ValueError) as caught:
        build()
    assert told in str(caught.value) and "\n" not in str(caught.value)
