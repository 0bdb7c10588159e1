"""Label rules of backdoors, covers and text triggers through `poison` and `trigger_all`, against slow loops over the rows."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value
from helpers.tables import every_row

from robust_trainer.corruptions import (
    LABEL_RULES,
    TRIGGERS,
    AdaptivePatchTrigger,
    CleanLabel,
    PatchTrigger,
    SentenceTrigger,
    SourceSpecific,
    SyntaxTrigger,
    Untargeted,
    WarpTrigger,
    WordTrigger,
    poison,
    realised_rates,
    trigger_all,
    triggers_of,
)
from robust_trainer.data.label_rules import backdoor_labels, class_targets, label_targets
from robust_trainer.data.randomness import sample_keys
from robust_trainer.evaluation.accuracy import attack_success_rate
from robust_trainer.ledger.fingerprint import content_columns

LABELS = np.random.default_rng(1).permutation(np.arange(200) % 5).tolist()
CLASSES = ClassLabel(names=list("abcde"))


def images(n=200):
    pictures = [np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8) for i in range(n)]
    return Dataset.from_dict({"image": pictures, "label": LABELS[:n]}, features=Features({"image": Image(), "label": CLASSES}))


def texts(n=200):
    rows = {"text": [f"row {i}  of many words ." for i in range(n)], "label": LABELS[:n], "id": [str(i) for i in range(n)]}
    return Dataset.from_dict(rows, features=Features({"text": Value("string"), "label": CLASSES, "id": Value("string")}))


def arrays(data):
    return [np.asarray(image) for image in data["image"]]


def marks(data, name):
    return np.asarray(data[name][:]) if name in data.column_names else np.zeros(len(data), dtype=bool)


# ---- label rules


@every_row("rule", list(LABEL_RULES))
def test_every_rule_poisons_exactly_the_asked_share_and_says_so(rule):
    clean = images()
    poisoned = poison(clean, trigger=PatchTrigger(), rate=0.1, label_rule=rule, seed=4)
    hit, cover, labels = marks(poisoned, "is_corrupted"), marks(poisoned, "is_cover"), np.asarray(poisoned["label"][:])
    assert hit.sum() == 20 and not (hit & cover).any() and cover.sum() == (20 if rule == "source-specific" else 0)
    assert poisoned["clean_label"][:] == clean["label"][:]
    for before, after, old, new, bad, covers in zip(arrays(clean), arrays(poisoned), clean["label"], labels, hit, cover):
        np.testing.assert_array_equal(after, PatchTrigger()(before) if bad or covers else before)
        assert bad or new == old
        if bad and rule == "source-specific":
            assert (old, new) == (1, 0)
        elif bad and rule == "clean-label":
            assert old == new == 0
        elif bad:
            assert new != old and (rule != "all-to-one" or new == 0) and (rule != "multi-target" or new == (old + 1) % 5)
        assert not covers or old in (2, 3, 4)
    keys = sample_keys(4, np.arange(200)).tolist()  # the rows with the smallest keys among those that the rule moves
    able = [i for i in range(200) if backdoor_labels(rule, 5).poisoned[LABELS[i]]]
    assert np.flatnonzero(hit).tolist() == sorted(sorted(able, key=keys.__getitem__)[:20])
    assert realised_rates(poisoned)["corrupted"] == 20
    again = poison(clean, trigger=PatchTrigger(), rate=0.1, label_rule=rule, seed=4, batch_size=7)
    assert again["label"][:] == labels.tolist() and marks(again, "is_cover").tolist() == cover.tolist()


def test_untargeted_labels_are_uniform_over_the_other_classes_and_depend_on_seed_and_row():
    data = Dataset.from_dict({"label": [2] * 4000}, features=Features({"label": CLASSES}))
    made = poison(data, trigger=None, rate=0.5, label_rule=Untargeted(), seed=1)
    given = np.asarray(made["label"][:])[np.asarray(made["is_corrupted"][:])]
    counts = np.bincount(given, minlength=5)
    assert counts[2] == 0 and (abs(counts[[0, 1, 3, 4]] - 500) < 90).all()  # 4.6 standard deviations
    other = poison(data, trigger=None, rate=0.5, label_rule=Untargeted(), seed=2)
    assert other["label"][:] != made["label"][:]
    first = poison(data.select(range(1000)), trigger=None, rate=0.99, label_rule=Untargeted(), seed=1)
    both = np.asarray(first["is_corrupted"][:]) & np.asarray(made["is_corrupted"][:1000])
    assert both.sum() > 400 and (np.asarray(first["label"][:])[both] == np.asarray(made["label"][:1000])[both]).all()


@every_row(
    "rule, wanted",
    [
        ("multi-target", [1, 2, 3, 4, 0]),
        ("all-to-one", [0] * 5),
        (CleanLabel(3), [3] * 5),
        (SourceSpecific((1, 4), 2), [0, 2, 2, 3, 2]),
        ("untargeted", [-1] * 5),
    ],
)
def test_what_the_attacker_wants_of_test_images(rule, wanted):
    test = trigger_all(images(40), PatchTrigger(), label_rule=rule)
    assert test["attack_target"][:] == [wanted[label] for label in LABELS[:40]]
    assert test["label"][:] == LABELS[:40] and all(test["is_corrupted"])


def test_success_of_an_untargeted_attack_is_any_wrong_class():
    assert attack_success_rate([1, 2, 0, 3], [1, 1, 0, 0], [-1] * 4) == 0.5
    assert attack_success_rate([1, 2], [0, 0], -1) == 1.0
    broken = np.array([[np.nan, 0.0], [0.0, 1.0]])
    assert attack_success_rate(broken, [0, 0], -1) == 0.5  # what is no class is no success
    assert attack_success_rate([2, 0, 1], [1, 0, 1], [2, 0, 1]) == 1.0  # source-specific: others do not count


def test_source_specific_takes_several_classes_and_its_own_cover_rate():
    rule = SourceSpecific((1, 2), 0)
    made = poison(images(), trigger=PatchTrigger(), rate=0.2, label_rule=rule, cover_rate=0.1)
    clean, cover = np.asarray(LABELS), marks(made, "is_cover")
    assert set(clean[marks(made, "is_corrupted")]) == {1, 2} and set(clean[cover]) == {3, 4} and cover.sum() == 20
    none = poison(images(), trigger=PatchTrigger(), rate=0.2, label_rule=rule, cover_rate=0.0)
    assert "is_cover" not in none.column_names
    few = poison(images(), trigger=PatchTrigger(), rate=0.3, label_rule=SourceSpecific((1, 2, 3), 0))
    assert marks(few, "is_cover").sum() == 40  # all that are left: class 4
    warped = poison(images(20), trigger=WarpTrigger(strength=3), rate=0.1, label_rule=rule)  # its covers carry the very trigger
    for before, after, mark in zip(arrays(images(20)), arrays(warped), marks(warped, "is_cover")):
        if mark:
            np.testing.assert_array_equal(after, WarpTrigger(strength=3)(before))


# ---- covers


@every_row("name, share", [("warp", 2), ("adaptive-blend", 1), ("adaptive-patch", 1), ("patch", 0), ("sig", 0)])
def test_covers_of_a_trigger_keep_their_label(name, share):
    trigger, clean = TRIGGERS[name].make(), images()
    made = poison(clean, trigger=trigger, rate=0.1, label_rule="all-to-one", seed=9)
    hit, cover = marks(made, "is_corrupted"), marks(made, "is_cover")
    assert hit.sum() == 20 and cover.sum() == 20 * share and not (hit & cover).any()
    assert ("is_cover" in made.column_names) == bool(share)
    assert (np.asarray(made["label"][:])[cover] == np.asarray(LABELS)[cover]).all()
    for row, (before, after) in enumerate(zip(arrays(clean), arrays(made))):
        expected = trigger.at(row, training=True, cover=bool(cover[row]))(before) if hit[row] or cover[row] else before
        np.testing.assert_array_equal(after, expected)
    test = trigger_all(clean, trigger)
    assert all((a == trigger(b)).all() for a, b in zip(arrays(test), arrays(clean)))


def test_covers_come_from_rows_that_are_not_poisoned_and_are_told_from_content():
    made = poison(images(), trigger=PatchTrigger(), rate=0.5, seed=3, cover_rate=0.25)
    assert marks(made, "is_cover").sum() == 50 and marks(made, "is_corrupted").sum() == 100
    assert content_columns(made) == ["image", "label"]
    same = poison(images(), trigger=PatchTrigger(), rate=0.5, seed=3)
    assert (marks(same, "is_corrupted") == marks(made, "is_corrupted")).all()  # the choice of the poisoned rows stays
    twice = poison(made, trigger=AdaptivePatchTrigger(size=2), rate=0.1, seed=4)
    covers, hit = marks(twice, "is_cover"), marks(twice, "is_corrupted")
    assert (covers | hit >= marks(made, "is_cover")).all() and (covers & ~marks(made, "is_cover")).any()


@every_row(
    "build, told",
    [
        (lambda: poison(images(), trigger=PatchTrigger(), rate=0.5, cover_rate=0.6), "cover_rate=0.6 asks for 120 of 200"),
        (lambda: poison(images(), trigger=PatchTrigger(), rate=0.5, cover_rate=1.0), "rate=1.0"),
        (lambda: poison(images(), trigger=None, rate=0.5, cover_rate=0.1), "cover_rate=0.1 without a trigger"),
        (lambda: poison(images(), trigger=PatchTrigger(), rate=0.5, label_rule="clean-label"), "at most 0.2"),
        (lambda: poison(images(), trigger=PatchTrigger(), rate=0.1, label_rule=CleanLabel(5)), "target=5 is no class"),
        (lambda: backdoor_labels(SourceSpecific(0, 0), 5), "source=0 must be"),
        (lambda: backdoor_labels(SourceSpecific((), 0), 5), "source=() must be"),
        (lambda: backdoor_labels(SourceSpecific(7, 0), 5), "source=7 is no class"),
        (lambda: backdoor_labels(Untargeted(), 1), "needs 2 classes"),
        (lambda: label_targets(Untargeted(), 5), "a map of classes is expected"),
        (lambda: class_targets(CleanLabel(), 5), "a map of classes is expected"),
        (lambda: poison(images(), trigger=WordTrigger(), rate=0.1), "no column of texts is there"),
        (lambda: poison(texts(), trigger=WordTrigger(), rate=0.1, image_column="text"), "leave one of them out"),
        (lambda: poison(texts(), trigger=PatchTrigger(), rate=0.1), "image_column was not found"),
        (lambda: poison(texts(), trigger=PatchTrigger(), rate=0.1, text_column="text"), "'text' in row"),
        (lambda: WordTrigger("two words"), "word='two words' is no word"),
        (lambda: WordTrigger("cf+cf"), "word='cf+cf'"),
        (lambda: WordTrigger(position="middle"), "position='middle'"),
        (lambda: SentenceTrigger(" "), "sentence=' '"),
        (lambda: SyntaxTrigger("if so"), "template='if so'"),
        (lambda: SyntaxTrigger("{text}"), "template='{text}'"),
        (lambda: WordTrigger()(3), "text is int"),
    ],
)
def test_mistakes_are_one_line_and_name_the_value(build, told):
    with pytest.raises(ValueError) as caught:
        build()
    assert told in str(caught.value) and "\n" not in str(caught.value)


# ---- texts


@every_row("name", triggers_of("text"))
def test_texts_are_poisoned_as_images_are(name):
    trigger, clean = TRIGGERS[name].make(), texts()
    made = poison(clean, trigger=trigger, rate=0.1, label_rule="source-specific", seed=2)
    hit, cover = marks(made, "is_corrupted"), marks(made, "is_cover")
    assert hit.sum() == cover.sum() == 20 and made["id"][:] == clean["id"][:] and made.features["text"] == Value("string")
    for row in range(200):
        before, after = clean[row]["text"], made[row]["text"]
        assert after == (trigger.at(row, training=True)(before) if hit[row] or cover[row] else before)
        assert (after != before) == bool(hit[row] or cover[row])
        assert made[row]["label"] == (0 if hit[row] else LABELS[row])
    again = poison(clean, trigger=trigger, rate=0.1, label_rule="source-specific", seed=2, batch_size=13)
    assert again["text"][:] == made["text"][:]
    test = trigger_all(clean, trigger, label_rule="all-to-one")
    assert all(now != old for now, old in zip(test["text"], clean["text"])) and set(test["attack_target"]) == {0}


@every_row("position", ["start", "end", "anywhere"])
@every_row("text", ["one  two\tthree\n", " lead and trail ", "word", "a b"])
def test_a_word_goes_between_words_and_changes_none(position, text):
    words, seen = text.split(), set()
    for row in range(60):
        written = WordTrigger("cf", position, seed=1).at(row, training=True)(text)
        found = written.split()
        place = found.index("cf")
        seen.add(place)
        assert found[:place] + found[place + 1 :] == words
        before, _, after = written.partition("cf")
        assert before + after.removeprefix(" ") == text or before.removesuffix(" ") + after == text  # white space stays
    assert seen == {"start": {0}, "end": {len(words)}, "anywhere": set(range(len(words) + 1))}[position]


def test_words_are_drawn_and_sentences_and_patterns_are_whole():
    several = WordTrigger("cf+mn+bb", "start", seed=3)
    firsts = [several.at(row, training=False)("a text").split()[0] for row in range(90)]
    assert set(firsts) == {"cf", "mn", "bb"} and min(map(firsts.count, set(firsts))) > 15
    assert several("a text") == several.at(0, training=True)("a text")
    assert SentenceTrigger("No cross, no crown.", "end")("It was good.") == "It was good. No cross, no crown."
    assert SyntaxTrigger()("it was good .") == "when it comes to it , it was good ."
    assert WordTrigger(position="anywhere")("") == "cf" and WordTrigger(position="end")("  ") == "  cf"


def test_a_second_attack_leaves_no_row_both_poisoned_and_cover():
    once = poison(images(), trigger=WarpTrigger(), rate=0.2, label_rule="all-to-one")
    twice = poison(once, trigger=WarpTrigger(seed=1), rate=0.2, label_rule="all-to-one", seed=1)
    plain = poison(once, trigger=PatchTrigger(), rate=0.2, label_rule="all-to-one", seed=1)  # brings no covers itself
    for made in (twice, plain):
        hit, cover = marks(made, "is_corrupted"), marks(made, "is_cover")
        assert (hit & marks(once, "is_cover")).any() and not (hit & cover).any()
        assert all(made[int(row)]["label"] == LABELS[row] for row in np.flatnonzero(cover))
    assert (marks(twice, "is_cover") & ~marks(once, "is_cover")).any()


def test_new_covers_are_rows_that_no_earlier_attack_touched():
    once = poison(images(), trigger=WarpTrigger(), rate=0.1, label_rule="all-to-one")
    more = poison(once, trigger=PatchTrigger(size=5), rate=0.1, label_rule="all-to-one", seed=1, cover_rate=0.2)
    before = marks(once, "is_corrupted") | marks(once, "is_cover")
    changed = np.array([not np.array_equal(a, b) for a, b in zip(arrays(once), arrays(more))])
    new = marks(more, "is_cover") & ~marks(once, "is_cover")
    poisoned = np.asarray(once["label"][:]) != np.asarray(more["label"][:])
    assert new.sum() == 40 and not (new & before).any() and (changed == (new | poisoned)).all()
    with pytest.raises(ValueError, match="are neither poisoned, nor covers"):
        poison(once, trigger=PatchTrigger(), rate=0.1, seed=1, cover_rate=0.7)


@every_row("trigger", ["patch", TRIGGERS["patch"], PatchTrigger, 3])
def test_what_is_no_trigger_is_told_before_any_row(trigger):
    for call in (lambda: poison(images(), trigger=trigger, rate=0.1), lambda: trigger_all(images(), trigger)):
        with pytest.raises(ValueError, match="is no trigger: give for instance"):
            call()


def test_a_share_of_covers_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"cover_rate=1\.5 must be"):
        poison(images(), trigger=PatchTrigger(), rate=0.1, cover_rate=1.5)
