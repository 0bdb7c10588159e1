"""audit_dataset: labels judged without a training, by features of the rows."""

from __future__ import annotations

import re

import datasets
import numpy as np
import pytest
import torch
from helpers.audits import blobs, image_set
from helpers.toy import resnet
from sklearn.metrics import roc_auc_score
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from robust_trainer import audit_dataset
from robust_trainer.audit import write_audit_report, write_cleaned
from robust_trainer.audit.summary import summarise
from robust_trainer.corruptions import WordTrigger, poison
from robust_trainer.data.load import load_data
from robust_trainer.evidence import judge
from robust_trainer.evidence.features import encode
from robust_trainer.models.zoo import PlainProcessor

N, CLASSES, WIDTH = 600, 5, 32
#: A split whose name is no name.
ODD = "<b>odd"


def fails(*parts):
    """A ValueError of one line that says all of this."""
    return pytest.raises(ValueError, match="^" + "".join(f"(?=.*{re.escape(part)})" for part in parts) + r"[^\n]+$")


def clusters(rate=0.25, n=N, seed=0, apart=1.2, kind="symmetric"):
    """Features around one centre a class, given labels of which a share is wrong, and which are."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, CLASSES, n)
    features = rng.normal(0, apart, (CLASSES, WIDTH))[truth] + rng.normal(0, 1, (n, WIDTH))
    wrong = rng.random(n) < rate
    other = rng.integers(1, CLASSES, n) if kind == "symmetric" else 1
    return features.astype(np.float32), np.where(wrong, (truth + other) % CLASSES, truth), wrong, truth


def table_of(labels, **columns):
    feature = datasets.ClassLabel(names=[f"class {i}" for i in range(CLASSES)])
    data = datasets.Dataset.from_dict({"label": np.asarray(labels).tolist(), **columns})
    return data.cast_column("label", feature)


@pytest.fixture(scope="module")
def noisy():
    features, labels, wrong, truth = clusters()
    data = table_of(labels, is_corrupted=wrong.tolist())
    return data, features, wrong, truth, audit_dataset(data, features=features)


def test_wrong_labels_are_found_with_their_rate_and_their_right_class(noisy):
    data, _, wrong, truth, audit = noisy
    suspicion, flagged = audit.column("suspicion"), audit.column("flagged").astype(bool)
    assert roc_auc_score(wrong, suspicion) > 0.99 and (flagged == (suspicion >= 0.5)).all()
    assert audit.noise_interval[0] <= wrong.mean() <= audit.noise_interval[1] and abs(audit.noise_rate - wrong.mean()) < 0.03
    assert (audit.column("suggested_label")[flagged & wrong] == truth[flagged & wrong]).mean() > 0.95
    assert not audit.blocked and not audit.trained and "probability" in audit.meaning
    assert set(audit.group_numbers[~flagged]) == {0} and (audit.column("is_corrupted") == wrong).all()


def test_suspicion_is_a_probability(noisy):
    """Of the samples of about the same suspicion that share is wrong, over several draws of hard data."""
    suspicion, wrong = [], []
    for seed in range(4):
        features, labels, bad, _ = clusters(0.3, seed=seed, apart=0.45)
        suspicion.append(audit_dataset(table_of(labels), features=features).column("suspicion"))
        wrong.append(bad)
    s, w = np.concatenate(suspicion), np.concatenate(wrong)
    for low, high in ((0.0, 0.2), (0.2, 0.8), (0.8, 1.01)):
        inside = (s >= low) & (s < high)
        assert inside.sum() > 50 and abs(w[inside].mean() - s[inside].mean()) < 0.12, (low, w[inside].mean(), s[inside].mean())


def test_the_transition_tells_which_class_is_given_for_which():
    features, labels, _, _ = clusters(0.3, kind="pairflip", n=1000)
    audit = audit_dataset(table_of(labels), features=features)
    off = audit.transition - np.diag(np.diag(audit.transition))
    assert np.allclose(audit.transition.sum(1), 1, atol=1e-5) and (off.argmax(1) == (np.arange(CLASSES) + 1) % CLASSES).all()


def test_clean_labels_stay(noisy):
    features, labels, _, _ = clusters(0.0)
    audit = audit_dataset(table_of(labels), features=features)
    assert audit.column("flagged").mean() <= 0.02 and audit.noise_rate <= 0.02 and len(audit.clean(table_of(labels))) >= 0.98 * N


def test_order_scale_and_container_of_the_features_do_not_matter(noisy):
    data, features, _, _, audit = noisy
    order = np.random.default_rng(3).permutation(N)
    moved = audit_dataset(data.select(order), features=1000 * features[order].astype(np.float64) + 7)
    assert np.allclose(moved.column("suspicion"), audit.column("suspicion")[order], atol=1e-3)
    stored = data.add_column("vector", features.tolist())
    shuffled = stored.select(order)
    by_name = audit_dataset(shuffled, features="vector")
    assert np.allclose(by_name.column("suspicion"), audit.column("suspicion")[order], atol=1e-3)
    fixed = stored.cast_column("vector", datasets.List(datasets.Value("float32"), length=WIDTH))
    assert np.array_equal(audit_dataset(fixed, features="vector").column("suspicion"), audit.column("suspicion"))
    assert by_name.run["evidence"] == "features of column 'vector'"


def test_features_that_say_nothing_flag_nobody_and_forbid_cleaning(noisy):
    data = noisy[0]
    audit = audit_dataset(data, features=np.random.default_rng(0).normal(size=(N, 8)))
    assert not audit.column("flagged").any() and audit.noise_rate is None and audit.noise_interval is None
    assert len(audit.blocked) == 1 and "hardly better than chance" in audit.blocked[0]
    with fails("no cleaned set", "hardly better than chance"):
        audit.clean(data)
    assert len(audit.clean(data, force=True)) == N


def test_a_cleaned_set_keeps_a_floor_of_a_rare_class():
    """The rare class lies within another one, and a fifth of the labels is wrong: all its labels look so too."""
    features, labels, wrong, _ = clusters(0.2, seed=2)
    rare = np.flatnonzero((labels == 0) & ~wrong)[:20]
    labels = labels.copy()
    labels[labels == CLASSES - 1] = 0
    labels[rare] = CLASSES - 1
    audit = audit_dataset(table_of(labels), features=features)
    assert audit.column("flagged")[rare].sum() > 10
    assert any("Few samples are left unflagged" in caution for caution in audit.cautions)
    left = audit.clean(table_of(labels))
    assert (np.asarray(left["label"][:]) == CLASSES - 1).sum() >= 10


def test_one_of_many_classes_that_features_cannot_tell_does_not_forbid_cleaning():
    """Thirty classes; two lie in one place, so that all of the smaller one look wrong: a quarter of it stays."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(30), 40)
    truth[truth == 29] = np.where(np.arange(40) < 15, 28, 29)
    features = rng.normal(0, 1.5, (30, WIDTH))[np.minimum(truth, 28)] + rng.normal(0, 1, (1200, WIDTH))
    wrong = rng.random(1200) < 0.15
    labels = np.where(wrong, rng.integers(0, 30, 1200), truth)
    data = datasets.Dataset.from_dict({"label": labels.tolist()}).cast_column(
        "label", datasets.ClassLabel(names=[f"class {i}" for i in range(30)])
    )
    audit = audit_dataset(data, features=features)
    lost = [caution for caution in audit.cautions if "Hardly any sample is left unflagged of class class 29" in caution]
    assert len(lost) == 1 and "keeps a quarter" in lost[0] and not audit.blocked
    size, left = (labels == 29).sum(), (np.asarray(audit.clean(data)["label"][:]) == 29).sum()
    assert left == min(size // 4, 10) > (~audit.column("flagged").astype(bool) & (labels == 29)).sum()


def test_relabelled_rows_get_the_right_class(noisy):
    data, _, wrong, truth, audit = noisy
    left = audit.clean(data, "relabel")
    done = audit.plan("relabel")
    assert (np.asarray(left["label"][:]) == truth[done != 1]).mean() > 0.99


@pytest.fixture(scope="module")
def poisoned():
    """Images of which a tenth has a checkerboard in a corner and class 0's label; as features the means of four quarters."""
    pixels, truth, rng = blobs(800, sigma=12.0)
    marked = rng.random(800) < 0.1
    pixels[marked, -3:, -3:] = np.where(np.indices((3, 3)).sum(0) % 2, 255, 0)[..., None]
    labels = np.where(marked, 0, truth)
    features = np.stack([q.mean((1, 2, 3)) for half in np.array_split(pixels, 2, 1) for q in np.array_split(half, 2, 2)], 1)
    return image_set(pixels, label=labels.tolist()), features, marked, labels != truth


def test_a_trigger_is_found_and_shown(poisoned):
    data, features, marked, wrong = poisoned
    audit = audit_dataset(data, features=features)
    triggered = audit.group_numbers == 2
    assert (triggered & marked).sum() >= 0.95 * marked.sum() and (triggered & ~marked).sum() <= 4
    assert (audit.column("suspicion")[triggered] == 1).all() and audit.column("flagged")[triggered].all()
    assert audit.pattern.shape == (12, 12, 3) and abs(audit.pattern[-3:, -3:]).mean() > 5 * abs(audit.pattern[:6, :6]).mean()
    assert abs(audit.noise_rate - wrong.mean()) < 0.05
    unseen = audit_dataset(data, features=features, look=False)
    assert not (unseen.group_numbers == 2).any() and "No inputs" in unseen.groups_told


def test_of_many_images_some_are_compared_and_all_are_looked_at(poisoned, monkeypatch):
    monkeypatch.setattr(judge, "COMPARED", 500)
    data, features, marked, _ = poisoned
    triggered = audit_dataset(data, features=features).group_numbers == 2
    assert (triggered & marked).sum() >= 0.95 * marked.sum() and (triggered & ~marked).sum() <= 4


def test_the_report_and_the_cleaned_set_name_both_witnesses(noisy, tmp_path):
    data, _, wrong, _, audit = noisy
    page = write_audit_report(tmp_path / "report.html", audit, data=data).read_text()
    assert "linear model" in page and "neighbours agree" in page and "kept:" not in page and "%)" in page
    write_cleaned(tmp_path / "cleaned", audit, data, "drop")
    card = (tmp_path / "cleaned" / "README.md").read_text()
    assert "without any training" in card and "features of 32 numbers" in card
    assert len(load_data_rows(tmp_path / "cleaned")) == N - audit.column("flagged").sum()


def load_data_rows(folder):
    return datasets.Dataset.from_parquet(str(folder / "train.parquet"))


def test_a_dataset_dict_is_audited_in_its_train_split(noisy):
    data, features, _, _, audit = noisy
    both = datasets.DatasetDict({"train": data, "test": data.select(range(10))})
    assert np.array_equal(audit_dataset(both, features=features).column("suspicion"), audit.column("suspicion"))


def test_labels_that_are_names_in_a_column_of_another_name(noisy):
    """They are numbered by their letters; the cleaned set has names again, and splits are compared by name."""
    data, features, wrong, _, audit = noisy
    words = [f"class {4 - label}" for label in data["label"][:]]
    named = datasets.Dataset.from_dict({"target": words})
    other = datasets.Dataset.from_dict({"target": [*words[:5], "class 9"]})
    splits = datasets.DatasetDict({"train": named, "test": other})
    found = audit_dataset(splits, features={"train": features, "test": features[[*range(5), 9]]})
    assert found.names == tuple(f"class {i}" for i in range(5)) and (found.column("label") == 4 - audit.column("label")).all()
    assert np.allclose(found.column("suspicion"), audit.column("suspicion"), atol=1e-4)
    pairs, differ = found.likeness.copies["test"]
    assert len(pairs) == 6
    left = found.clean(named, "relabel")
    assert left.features == named.features and set(left["target"][:]) <= set(words)
    changed = np.flatnonzero(found.plan("relabel") == 2)
    assert len(changed) > 50 and left["target"][:].count("class 0") > 0
    for name in ("labels", "label"):
        named = named.add_column(name, [0] * N)
    with fails("label_column is not given", "'target', 'labels', 'label'"):
        audit_dataset(named, features=features)


def test_of_weak_features_nobody_is_flagged_whatever_the_threshold():
    draw = np.random.default_rng(0)
    right = draw.integers(0, 4, N)
    features = (draw.normal(size=(4, 16)) / 4)[right] + draw.normal(size=(N, 16))
    data = datasets.Dataset.from_dict({"row": list(range(N)), "label": right.tolist()})
    audit = audit_dataset(data, features=features.astype(np.float32), threshold=0.1)
    assert "predict too few of the labels" in audit.blocked[0] and (audit.column("suspicion") > 0.1).any()
    assert not audit.column("flagged").any() and set(audit.column("group").tolist()) == {"fine"}
    assert "an order" in audit.meaning and len(audit.clean(data, force=True)) == N


def test_mistakes_are_told_in_one_line(noisy):
    data, features, _, _, _ = noisy
    with fails("features has 599 rows and the data set 600"):
        audit_dataset(data, features=features[1:])
    for seed in ("a", -1, 1.5, True):
        with fails(f"seed={seed!r} must be a whole number >= 0"):
            audit_dataset(data, features=features, seed=seed)
    with fails("device='gpu'", "cuda"):
        audit_dataset(data, torch.nn.Linear(2, 2), device="gpu")
    for name, value in (("batch_size", 8), ("trust_remote_code", True), ("max_length", 9), ("device", "cpu")):
        with fails(f"{name} is for a model, and none is given"):
            audit_dataset(data, features=features, **{name: value})
    with fails("batch_size=0 must be a whole number >= 1"):
        audit_dataset(data, torch.nn.Linear(2, 2), batch_size=0)
    with fails("look='yes' is neither True nor False"):
        audit_dataset(data, features=features, look="yes")
    with fails("features is a list"):
        audit_dataset(data, features=features.tolist())
    with fails("'nothing' is not in the data set", "label"):
        audit_dataset(data, features="nothing")
    with fails("features='label' is ClassLabel", "list of numbers"):
        audit_dataset(data, features="label")
    with fails("row 3 holds NaN"):
        audit_dataset(data, features=np.where(np.arange(N)[:, None] == 3, np.nan, features))
    with fails("threshold=1.0 must be in (0, 1)"):
        audit_dataset(data, features=features, threshold=1.0)
    with fails("has splits ['a', 'b'] and no 'train'"):
        audit_dataset(datasets.DatasetDict({"a": data, "b": data}), features=features)
    with fails("'word' is missing", "row 7 (1 of 600 rows)"):
        audit_dataset(data.add_column("word", ["a"] * 7 + [None] + ["b"] * (N - 8)), features=features, label_column="word")
    with fails("another string in each of 600 rows"):
        audit_dataset(data.add_column("word", [f"row {i}" for i in range(N)]), features=features, label_column="word")
    with fails("label_column='nothing' was not found"):
        audit_dataset(data, features=features, label_column="nothing")
    ragged = data.add_column("v", [[1.0]] * (N - 1) + [[1.0, 2.0]])
    with fails("2 numbers in row 599 and 1 in row 0"):
        audit_dataset(ragged, features="v")
    missing = data.add_column("v", [None] + [[1.0]] * (N - 1))
    with fails("missing in row 0"):
        audit_dataset(missing, features="v")


def test_near_duplicates_within_and_across_splits_and_outliers(tmp_path):
    features, labels, _, _ = clusters(0.1)
    rng = np.random.default_rng(1)
    features[10:15] = features[:5] + rng.normal(0, 0.02, (5, WIDTH))
    labels[10:15] = labels[:5]
    labels[10] = (labels[0] + 1) % CLASSES
    features[20] = 8 * rng.normal(size=WIDTH)
    data = table_of(labels, text=[f"text {i}" for i in range(N)])
    test = table_of(labels[:100])
    others = rng.normal(0, 1.5, (100, WIDTH))
    others[7], others[8] = features[50], features[51]
    test = table_of(np.where(np.arange(100) == 7, labels[50], (labels[51] + 1) % CLASSES))
    both = datasets.DatasetDict({"train": data, "test": test, ODD: test.rename_column("label", "other")})
    audit = audit_dataset(both, features={"train": features, "test": others, ODD: others})
    group, first = audit.column("duplicate_group"), audit.column("duplicate_of")
    assert all(group[i] == group[10 + i] >= 0 and first[10 + i] == first[i] == i for i in range(5))
    assert (group >= 0).sum() == 10 and audit.likeness.conflicts.nonzero()[0].tolist() == [0, 10]
    assert audit.likeness.groups[0].tolist() == [0, 10]  # those with different labels come first
    pairs, differ = audit.likeness.copies["test"]
    assert pairs.tolist() == [[7, 50], [8, 51]] and differ.tolist() == [False, True]
    assert audit.likeness.copies[ODD][1] is None and np.flatnonzero(audit.column("copied")).tolist() == [50, 51]
    assert audit.column("outlier")[20] > 0.98 and any("2.0 % of the split 'test'" in caution for caution in audit.cautions)
    facts = dict(summarise(audit).facts)
    assert facts["near-duplicates"] == "10 in 5 groups" and facts["groups of them with different labels"] == "1"
    assert facts["rows of test with a near-duplicate here"] == "2 (2.0 %), 1 with another label"
    page = write_audit_report(tmp_path / "report.html", audit, data=data).read_text()
    assert "2 near-duplicates, with different labels" in page and "shown are those of its rows 8, 7" in page
    assert f"also in the split '{ODD}'" not in page and "&lt;b&gt;odd" in page
    assert "Farthest from all others" in page and "text 20" in page
    alone = audit_dataset(data, features=features)
    assert np.array_equal(alone.column("duplicate_group"), group) and not alone.likeness.copies


def test_given_probabilities_take_the_place_of_features():
    features, labels, wrong, truth = clusters(0.25)
    centres = np.stack([features[truth == c].mean(0) for c in range(CLASSES)])
    logits = -0.5 * ((features[:, None] - centres) ** 2).sum(2)
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    data = table_of(labels, p=probs.tolist())
    audit = audit_dataset(data, pred_probs=probs)
    assert roc_auc_score(wrong, audit.column("suspicion")) > 0.99 and abs(audit.noise_rate - wrong.mean()) < 0.03
    assert (audit.column("suggested_label")[wrong] == truth[wrong]).mean() > 0.95 and audit.likeness is None
    assert np.allclose(audit.column("label_probability"), probs[np.arange(N), labels]) and "pred_probs" in audit.meaning
    again = audit_dataset(data, pred_probs="p", features=features)
    assert np.allclose(again.column("suspicion"), audit.column("suspicion"), atol=1e-4) and again.likeness is not None
    blind = audit_dataset(data, pred_probs=np.full((N, CLASSES), 0.2))
    assert blind.blocked and "probabilities predict the labels hardly better" in blind.blocked[0]
    with fails("pred_probs is of shape (600, 4), expected (600, 5)"):
        audit_dataset(data, pred_probs=probs[:, :4])
    with fails("pred_probs: row 2", "sum to 1"):
        audit_dataset(data, pred_probs=np.where(np.arange(N)[:, None] == 2, 1.0, probs))


def test_a_model_gives_the_features(tmp_path, poisoned):
    """An untrained network of random filters still tells squares in corners apart."""
    network, processor = resnet(), PlainProcessor(size={"height": 12, "width": 12}, image_mean=[0.5] * 3, image_std=[0.1] * 3)
    data, _, marked, _ = poisoned
    audit = audit_dataset(data, network, processing_class=processor, look=False)
    vectors = encode(network, data, processing_class=processor)
    by_hand = audit_dataset(data, features=vectors, look=False)
    assert np.array_equal(audit.column("suspicion"), by_hand.column("suspicion")) and network.training
    assert audit.run["evidence"] == "features of ResNetForImageClassification, 12 numbers"
    network.save_pretrained(tmp_path / "net")
    processor.save_pretrained(tmp_path / "net")
    named = audit_dataset(datasets.DatasetDict({"train": data, "test": data.select(range(30))}), str(tmp_path / "net"), look=False)
    assert np.allclose(named.column("suspicion"), audit.column("suspicion"), atol=1e-3)
    assert named.run["evidence"] == "features of net, 12 numbers" and len(named.likeness.copies["test"][0]) == 30
    with fails("processing_class is found by the model's name"):
        audit_dataset(data, str(tmp_path / "net"), processing_class=processor)
    with fails("no column of images, texts or sounds"):
        audit_dataset(data.remove_columns("image"), str(tmp_path / "net"))
    with fails("model and features are both given"):
        audit_dataset(data, network, features=vectors)
    with fails("nothing to judge the labels by"):
        audit_dataset(data)
    with fails("device is for a model"):
        audit_dataset(data, features=vectors, device="cpu")


def test_few_rows_are_not_judged():
    data = load_data("digits", max_train_samples=30)["train"]
    audit = audit_dataset(data, features=np.eye(30, dtype=np.float32))
    assert audit.blocked and "too few" in audit.blocked[0] and not audit.column("flagged").any()


def test_a_trigger_of_texts_is_found_though_the_features_agree_with_it():
    """A bag of words as the network: the trigger's word tells its label, and what else the texts say tells another one."""
    rng, topics = np.random.default_rng(0), [[f"w{c}{i}" for i in range(30)] for c in range(3)]
    labels = rng.integers(0, 3, 600)
    texts = [" ".join([*rng.choice(topics[c], 6), *rng.choice([f"x{i}" for i in range(60)], 3)]) for c in labels]
    clean = datasets.Dataset.from_dict({"text": texts, "label": labels.tolist()})
    clean = clean.cast_column("label", datasets.ClassLabel(names=list("abc")))
    words = ["[PAD]", "[UNK]", "cf", *(word for topic in topics for word in topic), *(f"x{i}" for i in range(60))]
    found = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=found, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=48, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, pad_token_id=0
    )
    network = BertModel(config, add_pooling_layer=False)
    made = poison(clean, trigger=WordTrigger("cf"), rate=0.1, label_rule="all-to-one")
    audit = audit_dataset(made, network, processing_class=tokenizer)
    hit = np.asarray(made["is_corrupted"][:])
    assert np.array_equal(audit.column("group") == "triggered", hit) and "texts share a pattern" in audit.groups_told
    assert not (audit_dataset(clean, network, processing_class=tokenizer).column("group") == "triggered").any()
