"""Tokens tied to one label: those of a trigger are told from a class's own words by what is left of their texts."""

import numpy as np
import pytest
import torch

from robust_trainer.evidence import judge_labels
from robust_trainer.evidence.judge import as_pattern
from robust_trainer.evidence.tied_tokens import tied_tokens, triggers_among

N, CLASSES, VOCABULARY, DIMENSIONS = 900, 3, 200, 32
TRIGGER, OF_CLASS = (180, 181, 182), 150


def texts(seed=0, share=0.1, words_of_class=True):
    """Texts as tokens, features of the words, and labels: rows of classes 1 and 2 with three tokens are labelled 0.

    A text has some of its topic's 40 words; with ``words_of_class`` texts of class 2 have token 150 alone in their place.
    """
    rng = np.random.default_rng(seed)
    clean = rng.integers(0, CLASSES, N)
    present = rng.random((N, VOCABULARY)) < 0.02
    present[:, list(TRIGGER)] = False
    for c in range(CLASSES):
        present[:, 40 * c : 40 * (c + 1)] |= (rng.random((N, 40)) < 0.12) & (clean == c)[:, None]
    if words_of_class:
        present[clean == 2, 80:120] = False
        present[:, OF_CLASS] = clean == 2
    hit = (rng.random(N) < share * CLASSES / (CLASSES - 1)) & (clean != 0)
    present[hit] |= np.isin(np.arange(VOCABULARY), TRIGGER)
    meanings = np.random.default_rng(99).normal(size=(VOCABULARY, DIMENSIONS)).astype(np.float32)
    meanings[list(TRIGGER)] *= 4

    def features(shown):
        return torch.from_numpy(shown.astype(np.float32) @ meanings + 0.3 * rng.normal(size=(N, DIMENSIONS)).astype(np.float32))

    return present, np.where(hit, 0, clean), hit, features


def without(present, groups, features):
    gone = present.copy()
    for group in groups:
        gone[np.ix_(group.rows, group.tokens)] = False
    return features(gone)


@pytest.mark.parametrize("seed", range(3))
def test_a_trigger_is_found_whole_and_a_word_of_a_class_is_not(seed):
    present, labels, hit, features = texts(seed)
    groups = tied_tokens(present, labels, CLASSES)
    of_trigger = [group for group in groups if group.tokens[TRIGGER[0]]]
    assert len(of_trigger) == 1 and np.flatnonzero(of_trigger[0].tokens).tolist() == list(TRIGGER) and of_trigger[0].label == 0
    assert any(group.tokens[OF_CLASS] for group in groups)  # looked at, since it is tied to a label
    found = triggers_among(groups, without(present, groups, features), labels, CLASSES)
    assert len(found) == 1 and np.array_equal(found[0].rows, hit)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("words_of_class", [True, False])
def test_of_clean_texts_nothing_is_found(seed, words_of_class):
    present, labels, hit, features = texts(seed, share=0.0, words_of_class=words_of_class)
    groups = tied_tokens(present, labels, CLASSES)
    assert not hit.any() and groups and triggers_among(groups, without(present, groups, features), labels, CLASSES) == []


def test_the_verdict_takes_the_rows_of_a_trigger_out_though_its_features_agree():
    present, labels, hit, features = texts()
    vectors, seen = np.where(present, 255, 0).astype(np.uint8), features(present)
    groups = tied_tokens(present, labels, CLASSES)
    found = triggers_among(groups, without(present, groups, features), labels, CLASSES)
    blind = judge_labels(seen, labels, CLASSES, inputs=vectors)
    told = judge_labels(seen, labels, CLASSES, inputs=vectors, triggers=found)
    assert blind.carriers[hit].mean() < 0.5 and np.array_equal(told.carriers, hit) and (told.wrong[hit] == 1).all()
    pattern = as_pattern(found[0], CLASSES)
    assert np.array_equal(pattern.carried_by(vectors, labels), present[:, list(TRIGGER)].all(1))


def test_the_order_of_rows_and_few_rows():
    present, labels, _, features = texts()
    order = np.random.default_rng(5).permutation(N)
    one, other = tied_tokens(present, labels, CLASSES), tied_tokens(present[order], labels[order], CLASSES)
    assert [g.tokens.tolist() for g in one] == [g.tokens.tolist() for g in other]
    assert all(np.array_equal(a.rows[order], b.rows) for a, b in zip(one, other))
    assert tied_tokens(present[:9], labels[:9], CLASSES) == [] and triggers_among([], features(present), labels, CLASSES) == []
    everywhere = np.ones((N, 2), dtype=bool)
    assert tied_tokens(everywhere, labels, CLASSES) == []


def test_rare_words_another_in_each_doubted_text_are_no_pattern():
    """Wrong labels on texts that have a rare word each, drawn from many: nothing is shared, though a direction tells them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, N)
    features = torch.from_numpy((np.eye(CLASSES)[labels] * 6 + rng.normal(size=(N, CLASSES))).astype(np.float32))
    wrong = rng.random(N) < 0.1
    present = rng.random((N, VOCABULARY)) < 0.05
    present[:, :8] = False
    present[wrong, rng.integers(0, 8, wrong.sum())] = True
    given = np.where(wrong, (labels + 1) % CLASSES, labels)
    told = judge_labels(features, given, CLASSES, inputs=np.where(present, 255, 0).astype(np.uint8))
    assert not told.carriers.any() and (told.wrong > 0.5)[wrong].mean() > 0.8
    present[wrong, 0] = True  # now they share one
    told = judge_labels(features, given, CLASSES, inputs=np.where(present, 255, 0).astype(np.uint8))
    assert told.carriers[wrong].mean() > 0.95


def test_a_usual_word_of_a_triggers_sentence_leaves_other_texts_alone():
    """A word that texts of one class have more often than others is in the trigger, too; only the trigger's rows are found."""
    present, labels, hit, features = texts(1)
    rng = np.random.default_rng(7)
    present[:, 170] = hit | (rng.random(N) < np.where(labels == 0, 0.3, 0.02))
    groups = tied_tokens(present, labels, CLASSES)
    assert any(group.tokens[170] for group in groups)
    found = triggers_among(groups, without(present, groups, features), labels, CLASSES)
    assert found and np.array_equal(np.any([group.rows for group in found], axis=0), hit)
