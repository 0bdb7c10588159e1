"""Which name a typo meant."""

import pytest

from robust_trainer.reporting.suggest import did_you_mean, edit_distance, nearest


@pytest.mark.parametrize(
    "a,b,distance",
    [
        ("", "abc", 3),
        ("kitten", "sitting", 3),
        ("co-plr", "co-prl", 1),
        ("co-plr", "co-spl", 2),
        ("ca", "abc", 3),
        ("same", "same", 0),
    ],
)
def test_the_distance_counts_a_swap_once_and_is_symmetric(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


@pytest.mark.parametrize(
    "word,names,meant",
    [
        ("co-plr", ["co-spl", "co-prl", "prl"], "co-prl"),
        ("noise_rat", ["noise_rate", "max_drop_rate"], "noise_rate"),
        ("train_datset", ["eval_dataset", "train_dataset"], "train_dataset"),
        ("PRL_AT", ["prl", "prl-at"], "prl-at"),
        ("path", ["shortest-path", "class-graph"], "shortest-path"),
        ("path", ["shortest-path", "longest-path"], None),
        ("zebra", ["prl", "spl"], None),
        ("pr", ["spl", "prl"], "prl"),
        ("l1", ["linf", "l2"], None),
        ("", ["a"], None),
        ("x", [], None),
    ],
)
def test_the_name_that_was_meant(word, names, meant):
    assert nearest(word, names) == meant


def test_what_a_message_says():
    assert did_you_mean("--nose", ["--noise"]) == "did you mean '--noise'? "
    assert did_you_mean(3, ["prl"]) == ""
    assert did_you_mean("plr", ["prl"], "'{}-simclr'") == "did you mean 'prl-simclr'? "
