"""evaluate_robustness: exact truth on linear models, accounting, nothing left in the model, resuming, several processes."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import accelerate
import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from toy import CLASSES, NORMALISATION, images, logits_module, resnet, vit
from transformers import BertConfig, BertForSequenceClassification

import robust_trainer.attacks.autoattack as autoattack
from robust_trainer.attacks.autoattack import NAMES, autoattack_members, check_name, make_attack, make_attacks, read_eps
from robust_trainer.attacks.target import Target
from robust_trainer.peers import PeerModel
from robust_trainer.robustness import Robustness, evaluate_robustness, show_eps
from robust_trainer.units import fraction

PIXELS = dict(image_mean=[0.0], image_std=[1.0], progress=False)
TOY = dict(NORMALISATION, progress=False)


class Linear(nn.Module):
    def __init__(self, classes: int, size: int, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.map = nn.Linear(size, classes)
        with torch.no_grad():
            self.map.weight.mul_(3)

    def forward(self, x):
        return self.map(x.flatten(1))


class Bit(nn.Module):
    """Class 1 where the second pixel is above one half; counts what it sees in a buffer, also in eval mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.scale = nn.Parameter(torch.tensor(4.0))

    def forward(self, pixel_values):
        self.seen += len(pixel_values)
        z = self.scale * (pixel_values[:, 0, 0, 1] - 0.5)
        return torch.stack([-z, z], 1)


@dataclass
class Flip:
    """A stand-in attack on `Bit`: turns the second pixel of the images whose first pixel holds one of the wanted numbers."""

    name: str
    wins: frozenset = frozenset()
    visited: list = field(default_factory=list, compare=False, repr=False)
    fails_at: int | None = field(default=None, compare=False, repr=False)
    eps: float = 0.3
    norm: str = "linf"

    def __call__(self, forward, x, y, draws):
        numbers = (x[:, 0, 0, 0] * 100).round().int().tolist()
        self.visited += numbers
        if self.fails_at in numbers:
            raise KeyboardInterrupt
        out = x.clone()
        wins = torch.tensor([n in self.wins for n in numbers])
        out[wins, 0, 0, 1] = 1 - x[wins, 0, 0, 1]
        return out


def bits(n: int = 20, wrong: tuple[int, ...] = ()) -> datasets.Dataset:
    labels = np.arange(n) % 2
    x = np.zeros((n, 1, 2, 2), dtype=np.float32)
    x[:, 0, 0, 0] = np.arange(n) / 100
    x[:, 0, 0, 1] = np.where(labels == 1, 0.6, 0.4)
    given = [1 - v if i in wrong else v for i, v in enumerate(labels)]
    return datasets.Dataset.from_dict({"pixel_values": x, "labels": given}).with_format("torch")


def linear_case(classes: int, n: int = 24):
    """Model, normalised data, its mean and std, and the closed form: right iff every margin > eps x dual norm."""
    rng = np.random.default_rng(classes)
    model = Linear(classes, 27)
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.25])
    pixels = rng.uniform(0.3, 0.7, (n, 3, 3, 3))
    inputs = ((pixels - mean[:, None, None]) / std[:, None, None]).astype(np.float32)
    logits = model(torch.tensor(inputs)).detach().double().numpy()
    labels = logits.argmax(1)
    labels[:2] = (labels[:2] + 1) % classes
    weight = model.map.weight.detach().double().numpy().reshape(classes, 3, 3, 3) / std[:, None, None]

    def truth(eps: float, norm: str) -> np.ndarray:
        right = []
        for z, label in zip(logits, labels):
            ok = True
            for other in range(classes):
                difference = (weight[label] - weight[other]).ravel()
                dual = np.abs(difference).sum() if norm == "linf" else np.sqrt((difference**2).sum())
                ok = ok and (other == label or z[label] - z[other] > eps * dual)
            right.append(ok)
        return np.array(right)

    data = datasets.Dataset.from_dict({"pixel_values": inputs, "label": labels}).with_format("torch")
    return model, data, dict(image_mean=mean.tolist(), image_std=std.tolist()), truth


@pytest.mark.parametrize(
    "norm, eps, classes", [("linf", 0.03, 2), ("l2", 0.15, 2), ("linf", 0.02, 3), ("l2", 0.1, 3), ("linf", 0.02, 5), ("l2", 0.1, 5)]
)
def test_linear_models_have_their_exact_robustness(norm, eps, classes):
    model, data, space, truth = linear_case(classes)
    attacks = {2: ["pgd-20", "apgd-ce", "fab"], 3: ["cw-50", "fab-t"], 5: ["cw-50", "apgd-t", "autoattack"]}[classes]
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


def fitted(model: nn.Module, steps: int = 60) -> nn.Module:
    """The toy model after some steps on its blobs, so that the attacks have something to break."""
    batch = images(96, seed=1, noisy=0.0)[:]
    x, y = batch["pixel_values"], batch["labels"]
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.zero_grad()
    return model.eval()


def test_low_precision_is_attacked_with_float32_gradients():
    model, data = fitted(logits_module()), images(40, noisy=0.0)
    x, y = data[:]["pixel_values"] * 0.5 + 0.5, data[:]["labels"]
    low = fitted(logits_module()).to(torch.bfloat16)
    names = ["pgd-10", "apgd-ce"]
    exact, found = (evaluate_robustness(m, data, names, 0.055, **TOY) for m in (model, low))
    assert 0 < exact.worst_case < 1 and found.worst_case <= exact.worst_case + 2 / 40
    assert next(low.parameters()).dtype == torch.bfloat16
    with Target(low, **NORMALISATION) as target:
        adversarial = make_attack("apgd-ce", 0.055)
        from robust_trainer.attacks.base import Draws

        x_adv = adversarial(target, x, y, Draws(0, range(40)))
        leaf = x_adv.requires_grad_()
        logits = target(leaf)
        assert logits.dtype == torch.float32 and torch.equal(logits.argmax(1), target.judge(x_adv).argmax(1))
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y), leaf)
        assert grad.dtype == torch.float32 and not grad.flatten(1).eq(0).all(1).any()
    with Target(model, **NORMALISATION) as target:
        leaf32 = x_adv.detach().requires_grad_()
        (grad32,) = torch.autograd.grad(nn.functional.cross_entropy(target(leaf32), y), leaf32)
    assert nn.functional.cosine_similarity(grad.flatten(), grad32.flatten(), 0) > 0.999


def test_accelerates_autocast_is_off_for_gradients_and_on_for_judging():
    plain, data = fitted(logits_module()), images(12)
    x, y = data[:]["pixel_values"] * 0.5 + 0.5, data[:]["labels"]
    AcceleratorState._reset_state(reset_partial_state=True)  # another test may have left one
    try:
        wrapped = accelerate.Accelerator(mixed_precision="bf16", cpu=True).prepare_model(fitted(logits_module()))
        grads, judged = [], []
        for model in (plain, wrapped):
            with Target(model, **NORMALISATION) as target:
                leaf = x.clone().requires_grad_()
                logits = target(leaf)
                grads.append(torch.autograd.grad(logits.gather(1, y[:, None]).sum(), leaf)[0])
                judged.append(target.judge(x))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert torch.equal(grads[0], grads[1]) and not torch.equal(judged[0], judged[1])


def test_any_model_without_a_wrapper():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = logits_module()

        def forward(self, images):
            return self.inner(images), images

    processor = SimpleNamespace(do_normalize=True, do_rescale=True, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    pairs = [(row["pixel_values"], int(row["labels"])) for row in images(6)]
    for model in (vit(), resnet(), Pair(), PeerModel.of([logits_module(), logits_module()]), logits_module().double()):
        found = evaluate_robustness(model, images(6), "pgd-1", processing_class=processor, progress=False)
        again = evaluate_robustness(model, pairs, ["pgd-1"], "8/255", **TOY)
        assert isinstance(found, Robustness) and found.eps == 8 / 255 and found.accuracies == again.accuracies
    peers = PeerModel.of([vit(), vit()])
    with torch.autocast("cpu", dtype=torch.bfloat16), Target(logits_module(), **NORMALISATION) as target:
        x = torch.rand(64, 3, 8, 8)
        assert torch.equal(target(x).argmax(1), target.judge(x).argmax(1)) and not torch.equal(target(x), target.judge(x))
    with Target(peers, **NORMALISATION) as target:
        x = images(6)[:]["pixel_values"]
        mean = (peers.peers[0](x).logits + peers.peers[1](x).logits) / 2
        assert torch.allclose(target(x * 0.5 + 0.5), mean, atol=1e-5)


class Softmax(Linear):
    def forward(self, x):
        return super().forward(x).softmax(1)


class Rounded(Linear):
    def forward(self, x):
        return super().forward((x * 20).round() / 20)


class Noisy(Linear):
    def forward(self, x):
        return super().forward(x + 0.01 * torch.rand_like(x))


@pytest.mark.parametrize(
    "kind, page", [(Softmax, "probabilities"), (Rounded, "zero-gradients"), (Noisy, "randomised-output"), (Linear, "")]
)
def test_warnings_before(kind, page, caplog):
    x = torch.rand(12, 3, 3, 3)
    model = kind(4, 27)
    data = list(zip(x, model(x).argmax(1).tolist()))
    with caplog.at_level(logging.WARNING):
        found = evaluate_robustness(model, data, ["pgd-2"], 0.02, **PIXELS)
    assert len(found.warnings) == bool(page) and found.warnings == [r.message for r in caplog.records]
    docs = (Path(__file__).parents[1] / "docs/robustness.md").read_text()
    for told in found.warnings:
        assert f"docs/robustness.md#{page})" in told and f"\n### {page.replace('-', ' ').capitalize()}\n" in docs


def test_square_tells_masked_gradients():
    x = torch.rand(12, 3, 6, 6)
    model = Rounded(4, 108)
    data = list(zip(x, model(x).argmax(1).tolist()))
    found = evaluate_robustness(model, data, ["pgd-2", "square"], 0.1, **PIXELS)
    assert found.accuracies["pgd-2"] > found.accuracies["square"]
    assert any("square, which sees no gradient" in told and "#masked-gradients" in told for told in found.warnings)
    from robust_trainer.attacks.preflight import after

    two, one = np.array([True, True, False]), np.array([True, False, False])
    assert "one step" in after({"fgsm": two, "pgd-20": one}, two)[0] and not after({"fgsm": one, "pgd-20": two}, two)


@dataclass
class Far(Flip):
    def __call__(self, forward, x, y, draws):
        return (x + 2 * self.eps).clamp(0, 1)


def token_model():
    return BertForSequenceClassification(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    )


def bad_bits(**columns) -> datasets.Dataset:
    return datasets.Dataset.from_dict({**bits(4).with_format(None)[:], **columns}).with_format("torch")


BAD = [
    (dict(eps="8"), r"did you mean 8/255\?"), (dict(eps="0"), "must be positive"), (dict(eps=-0.1), "must be positive"),
    (dict(eps=float("nan")), "no finite number"), (dict(eps="eight"), "no finite number"), (dict(eps="8/0"), "no finite number"),
    (dict(norm="l1"), "norm='l1' is unknown"), (dict(norm="l2", eps=None), "norm='l2' needs eps"),
    (dict(attacks=["pdg-20"]), "did you mean 'pgd-20'"), (dict(attacks=["autoatack"]), "did you mean 'autoattack'"),
    (dict(attacks=["pgd"]), "did you mean 'pgd-20'"), (dict(attacks=["pgd-0"]), "has 0 steps"),
    (dict(attacks=["pgd-5x0"]), "has 0 restarts"), (dict(attacks=["fgsmx3"]), "takes no restarts"),
    (dict(attacks=["nonsense"]), "choose from fgsm, pgd-K"), (dict(attacks=[]), "attacks is empty"), (dict(attacks=[3]), "neither"),
    (dict(attacks=["pgd-1", "pgd-1"]), "given twice"), (dict(attacks=["apgd-t"]), "apgd-t needs at least 4 classes"),
    (dict(attacks=[Flip("flip", eps=0.2)]), "has eps=0.2 in linf"), (dict(attacks=[Far("far", eps=0.1)], eps=0.1), "project them"),
    (dict(batch_size=0), "batch_size=0"), (dict(max_samples=0), "max_samples=0"), (dict(dataset=[]), "has 0 samples"),
    (dict(image_mean=None, image_std=None), "normalisation of the images is unknown"), (dict(image_std=None), "belong together"),
    (dict(image_mean=[0.5], image_std=[0.9]), r"expected \[0, 1\] pixels"),
    (dict(dataset=bad_bits(labels=[0, 1, 2, 0])), "labels reach 2"),
    (dict(dataset=bad_bits(labels=[0, -1, 1, 0])), "'labels' is -1 in row 1"),
    (dict(dataset=bad_bits(labels=[0.5, 1, 1, 0])), "expected integer class labels"),
    (dict(dataset=bits(4).remove_columns("labels")), "no labels"),
    (dict(dataset=bits(4).rename_column("pixel_values", "values")), "no 'pixel_values' in the batch"),
    (dict(dataset=bad_bits(pixel_values=[[1, 2, 3]] * 4)), "token ids"),
    (dict(dataset=bad_bits(pixel_values=[[[[1, 2]]]] * 4)), "let the image processor rescale"),
    (dict(dataset=bad_bits(pixel_values=[[0.5, 0.5]] * 4)), "expected images"), (dict(model=token_model()), "takes token ids"),
    (dict(model=nn.Sequential(nn.Flatten(), nn.Linear(4, 1))), "at least 2 classes"),
    (dict(model=nn.Identity()), "expected (1, K)"),
]  # fmt: skip


@pytest.mark.parametrize("kwargs, told", BAD, ids=[told[:24] for _, told in BAD])
def test_bad_input_is_told_in_one_line(kwargs, told):
    given = dict(model=Bit(), dataset=bits(4), attacks=["pgd-1"], eps=0.3) | PIXELS | kwargs
    with pytest.raises(ValueError, match=told.replace("(1, K)", r"\(1, K\)")) as error:
        evaluate_robustness(**given)
    assert "\n" not in str(error.value)


def test_numbers_as_people_write_them():
    assert fraction("eps", "8/255") == 8 / 255 and fraction("eps", " 0.03 ") == 0.03 and fraction("eps", 1e-2) == 0.01
    assert fraction("step_size", "-1/2") == -0.5 and fraction("eps", np.float32(0.5)) == 0.5 and fraction("eps", 2) == 2.0
    for wrong in ("", "1/2/3", "8 /", None, True, [1], "inf", float("inf"), "1/0"):
        with pytest.raises(ValueError, match="eps=.* is no finite number: give for instance 8/255 or 0.03."):
            fraction("eps", wrong)
    assert read_eps("128/255", "l2") == 128 / 255 and read_eps(3, "l2") == 3.0 and read_eps(1) == 1.0
    assert (show_eps(8 / 255), show_eps(0.03), show_eps(3.0)) == ("8/255", "0.03", "3")
    assert CLASSES == 4
