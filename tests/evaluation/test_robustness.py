"""evaluate_robustness: exact truth on linear models, accounting, names, nothing left in the model, resuming."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers.robustness_toy import PIXELS, TOY, Bit, Flip, bits, fitted, linear_case
from helpers.toy import images, logits_module, resnet

import robust_trainer.attacks.autoattack as autoattack
from robust_trainer.attacks import progress, records
from robust_trainer.attacks.autoattack import NAMES, autoattack_members, check_name, make_attack, make_attacks
from robust_trainer.attacks.square import Square
from robust_trainer.evaluation.robustness import evaluate_robustness


@pytest.mark.parametrize("norm, eps, classes", [("linf", 0.03, 2), ("l2", 0.1, 3), ("linf", 0.02, 5)])
def test_linear_models_have_their_exact_robustness(norm, eps, classes):
    model, data, space, truth = linear_case(classes)
    attacks = {
        2: ["pgd-50", "pgd-50-t", "apgd-ce", "fab"],
        3: ["cw-50-t", "fab-t"],
        5: ["cw-50-t", "apgd-t", "autoattack"],
    }[classes]
    found = evaluate_robustness(model, data, attacks, eps, norm, progress=False, **space)
    expected = truth(eps, norm)
    assert 0.1 < expected.mean() < 0.9 and found.clean_accuracy == 22 / 24
    for name in (*attacks, "worst case"):
        assert np.array_equal(found.per_sample[name], expected), name
    assert found.worst_case == pytest.approx(expected.mean()) and found.n == 24


def test_the_model_is_left_as_it_was():
    model = resnet().train()
    model.resnet.encoder.eval()
    frozen = next(model.parameters()).requires_grad_(False)
    last = list(model.parameters())[-1]
    last.grad = torch.full_like(last, 7.0)

    def state():
        return (
            [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()],
            [p.grad for p in model.parameters() if p is not last], {k: v.clone() for k, v in model.state_dict().items()},
        )  # fmt: skip

    before, cpu = state(), torch.get_rng_state()
    evaluate_robustness(model, images(16), ["pgd-2", "apgd-ce"], 8 / 255, max_samples=9, **TOY)

    @dataclass
    class Raises(Flip):
        def __call__(self, forward, x, y, draws):
            assert not any(m.training for m in model.modules())
            forward(x)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        evaluate_robustness(model, images(16), [Raises("raises", eps=0.1)], 0.1, **TOY)
    after = state()
    assert before[:3] == after[:3] and not frozen.requires_grad and bool((last.grad == 7).all())
    assert all(torch.equal(v, after[3][k]) for k, v in before[3].items()) and torch.equal(cpu, torch.get_rng_state())
    counting = Bit()
    evaluate_robustness(counting, bits(), Flip("flip"), 0.3, **PIXELS)
    assert float(counting.seen) == 0


def test_accounting_visits_and_worst_case():
    """Wrong ones are broken and unvisited; each attack sees all the others; the worst case is their conjunction."""
    first, second = Flip("first", frozenset({0, 1, 2})), Flip("second", frozenset({2, 3}))
    found = evaluate_robustness(Bit(), bits(20, wrong=(5, 6)), [first, second], 0.3, batch_size=7, **PIXELS)
    others = [i for i in range(20) if i not in (5, 6)]
    assert first.visited == second.visited == others
    assert found.accuracies == {"first": 15 / 20, "second": 16 / 20} and found.worst_case == 14 / 20 and found.clean_accuracy == 0.9
    assert found.per_sample["worst case"].nonzero()[0].tolist() == [i for i in others if i > 3]
    rows = found.rows()[1]
    assert [r[:2] for r in rows] == [["clean", "90.00"], ["first", "75.00"], ["second", "80.00"], ["worst case", "70.00"]]
    assert "linf, eps 0.3" in found.table() and set(found.seconds) == {"first", "second"}
    assert json.loads(json.dumps(found.to_dict()))["accuracies"]["second"] == 0.8


def test_autoattack_visits_survivors_only(monkeypatch):
    made = {}

    def stub(name, eps, norm, classes):
        wins = {"apgd-ce": {0, 1}, "fab": {1, 2}, "square": {3}, "pgd-2": {0}}[name]
        return made.setdefault(name, Flip(name, frozenset(wins)))

    monkeypatch.setattr(autoattack, "make_attack", stub)
    found = evaluate_robustness(Bit(), bits(8, wrong=(7,)), ["pgd-2", "autoattack"], 0.3, **PIXELS)
    assert made["pgd-2"].visited == made["apgd-ce"].visited == [0, 1, 2, 3, 4, 5, 6]  # named alone: not only pgd's survivors
    assert made["fab"].visited == [2, 3, 4, 5, 6] and made["square"].visited == [3, 4, 5, 6]
    assert found.accuracies["autoattack"] == found.worst_case == 3 / 8
    assert any("masked-gradients" in told for told in found.warnings)  # square alone broke sample 3 of 8


def test_the_attacks_that_exist_for_so_many_classes():
    assert autoattack_members(10) == autoattack_members(4) == ("apgd-ce", "apgd-t", "fab-t", "square")
    assert autoattack_members(3) == autoattack_members(2) == ("apgd-ce", "fab", "square")
    for classes, targets in ((10, 9), (4, 3), (100, 9)):
        (group,) = make_attacks(["autoattack"], "8/255", "linf", classes)
        by_name = dict(group.members)
        assert by_name["apgd-t"].targets == by_name["fab-t"].targets == targets and by_name["fab-t"].targeted
        assert by_name["apgd-ce"].steps == 100 and by_name["square"].queries == 5000
    (group,) = make_attacks("autoattack", "8/255", "linf", 3)
    assert not dict(group.members)["fab"].targeted
    for classes in (2, 3, 4):  # and they run there
        model, data, space, _ = linear_case(classes, 4)
        names = [n for n in ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t") if classes >= {"apgd-t": 4, "apgd-dlr": 3}.get(n, 2)]
        evaluate_robustness(model, data, names, 0.01, progress=False, **space)
    with pytest.raises(ValueError, match="apgd-t needs at least 4 classes, the model has 3"):
        make_attack("apgd-t", 0.1, classes=3)


def test_names_become_attacks():
    many = make_attack("PGD-50x10", "8/255")
    assert (many.steps, many.restarts, many.step_size, many.loss, many.name) == (50, 10, 2 / 255, "ce", "pgd-50x10")
    assert make_attack("cw-5", 0.1).loss == "margin" and make_attack("cw-5", 0.1).step_size == pytest.approx(0.05)
    towards = make_attack("pgd-20-tx2", "8/255", classes=5)
    assert (towards.targeted, towards.targets, towards.restarts, towards.name, towards.loss) == (True, 4, 2, "pgd-20-tx2", "ce")
    assert make_attack("cw-7-t", 0.1).targets == 9 and make_attack("cw-7-t", 0.1).loss == "margin" and not many.targeted
    one = make_attack("fgsm", 0.1, "l2")
    assert (one.steps, one.step_size, one.random_start, one.norm) == (1, 0.1, False, "l2")
    assert make_attack("apgd-dlr", 0.1).loss == "dlr" and make_attack("fab-tx2", 0.1).restarts == 2
    for name in NAMES:
        assert check_name(name.replace("K", "7"))


def test_batch_size_order_and_subset_do_not_matter():
    model, data = fitted(logits_module()), images(40, noisy=0.0)
    names = ["pgd-3x2", "apgd-ce"]
    whole = evaluate_robustness(model, data, names, 0.055, batch_size=40, **TOY)
    assert 0.2 < whole.worst_case < whole.clean_accuracy - 0.1
    for size in (7, 16):
        other = evaluate_robustness(model, data, names, 0.055, batch_size=size, **TOY)
        assert all(np.array_equal(whole.per_sample[k], v) for k, v in other.per_sample.items()), size
    part = evaluate_robustness(model, data, names, 0.055, max_samples=15, seed=0, **TOY)
    assert part.n == 15 and sorted(set(part.index.tolist())) == part.index.tolist() != list(range(15))
    assert all(np.array_equal(whole.per_sample[k][part.index], v) for k, v in part.per_sample.items())
    other = evaluate_robustness(model, data, [Flip("f", eps=0.05)], 0.05, max_samples=15, seed=1, **TOY)
    assert not np.array_equal(part.index, other.index)


def test_resumes_where_it_was_killed(tmp_path):
    path = tmp_path / "found.jsonl"
    straight = evaluate_robustness(Bit(), bits(), [Flip("flip", frozenset({1, 8, 15}))], 0.3, batch_size=6, **PIXELS)
    killed = Flip("flip", frozenset({1, 8, 15}), fails_at=13)
    with pytest.raises(KeyboardInterrupt):
        evaluate_robustness(Bit(), bits(), [killed], 0.3, batch_size=6, resume_from=path, **PIXELS)
    assert killed.visited == list(range(18))  # the third batch was begun
    with path.open("a") as file:
        file.write('{"index": [12, 13], "cle')  # killed while writing
    again = Flip("flip", frozenset({1, 8, 15}))
    resumed = evaluate_robustness(Bit(), bits(), [again], 0.3, batch_size=5, resume_from=path, **PIXELS)
    assert again.visited == list(range(12, 20))
    assert resumed.accuracies == straight.accuracies == {"flip": 0.85}
    assert all(np.array_equal(straight.per_sample[k], v) for k, v in resumed.per_sample.items())
    third = Flip("flip", frozenset({1, 8, 15}), fails_at=0)
    assert evaluate_robustness(Bit(), bits(), [third], 0.3, resume_from=path, **PIXELS).worst_case == 0.85 and not third.visited

    other_model, other_data = Bit(), bits(20, wrong=(0,))
    with torch.no_grad():
        other_model.scale.mul_(2)
    for kwargs, told in [
        (dict(eps=0.2, attacks=[Flip("flip", eps=0.2)]), "written with attacks="),
        (dict(seed=4), "with seed=0, not 4"), (dict(max_samples=5), "with samples=20, not 5"),
        (dict(model=other_model), "for another model"), (dict(dataset=other_data), "for other data"),
        (dict(image_mean=[0.01]), "for"),
    ]:  # fmt: skip
        given = dict(model=Bit(), dataset=bits(), attacks=[again], eps=0.3, resume_from=path) | PIXELS | kwargs
        with pytest.raises(ValueError, match=told):
            evaluate_robustness(**given)
    path.write_text("something else\n")
    with pytest.raises(ValueError, match="holds no records"):
        evaluate_robustness(Bit(), bits(), [again], 0.3, resume_from=path, **PIXELS)


def test_a_batch_resumes_with_its_next_attack(tmp_path, monkeypatch):
    """Killed in AutoAttack's last member of the second batch: neither that batch's other members nor the first batch run again."""
    made = {}

    def stub(name, eps, norm, classes):
        wins = {"apgd-ce": {0, 6}, "fab": {1, 7}, "square": {2, 8}, "pgd-1": {6, 9}}[name]
        return made.setdefault(name, Flip(name, frozenset(wins)))

    monkeypatch.setattr(autoattack, "make_attack", stub)
    names, path = ["pgd-1", "autoattack"], tmp_path / "found.jsonl"
    straight = evaluate_robustness(Bit(), bits(12, wrong=(11,)), names, 0.3, batch_size=6, **PIXELS)
    for save_every, again in ((0.0, []), (1e9, [6, 7, 8, 9, 10])):
        monkeypatch.setattr(records, "SAVE_EVERY", save_every)
        path.unlink(missing_ok=True)
        made.clear()
        autoattack.make_attack("square", 0.3, "linf", 2).fails_at = 8
        with pytest.raises(KeyboardInterrupt):
            evaluate_robustness(Bit(), bits(12, wrong=(11,)), names, 0.3, batch_size=6, resume_from=path, **PIXELS)
        made.clear()
        resumed = evaluate_robustness(Bit(), bits(12, wrong=(11,)), names, 0.3, batch_size=6, resume_from=path, **PIXELS)
        assert made["pgd-1"].visited == again and made["square"].visited == [8, 9, 10]
        assert all(np.array_equal(straight.per_sample[k], v) for k, v in resumed.per_sample.items())
        made.clear()
        other = evaluate_robustness(Bit(), bits(12, wrong=(11,)), names, 0.3, batch_size=5, resume_from=path, **PIXELS)
        assert not made["pgd-1"].visited and other.worst_case == resumed.worst_case == straight.worst_case == 4 / 12


def test_the_bar_tells_what_a_long_attack_does(monkeypatch, capsys):
    monkeypatch.setattr(progress, "TELL_EVERY", 0.0)
    model, data = fitted(logits_module()), images(12, noisy=0.0)
    evaluate_robustness(model, data, ["pgd-3x2", Square(0.01, queries=40)], 0.01, batch_size=6, **{**TOY, "progress": True})
    shown = capsys.readouterr().err
    assert "square: 100%" in shown and "24/24" in shown  # two attacks on 12 samples
    assert "images in forward 41 of at most 42" in shown and "pgd-3x2" in shown and "robust 100.0 %" in shown
    evaluate_robustness(model, data, ["pgd-1"], 0.01, **TOY)
    assert not capsys.readouterr().err
