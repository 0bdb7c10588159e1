"""benchmarks/crafted_toy.py: stacked networks, the attack on them, the data, and runs that are found again and told."""

import importlib
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parents[2] / "benchmarks"
TINY = "--set samples=24 tests=20 width=6 steps=8 seeds=2 mus=1 radii=0,3 attack_steps=2 train_attack_steps=2 side=0".split()


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("crafted_toy")


def single(stack, number):
    """Network ``number`` of a stack without caps."""
    layers = []
    for weight, bias in zip(stack.weights, stack.biases):
        layer = nn.Linear(*weight.shape[1:])
        with torch.no_grad():
            layer.weight.copy_(weight[number].T)
            layer.bias.copy_(bias[number, 0])
        layers += [nn.ReLU(), layer] if layers else [layer]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("batch", [0, 5])
def test_a_stack_trains_as_its_networks_do_alone(toy, batch):
    stack = toy.Stack([3, 8, 8, 2], [1, 2, 3])
    alone = [single(stack, i) for i in range(3)]
    x = torch.randn(3, 20, 3)
    y = (x[..., 0] > 0).long()
    setup = toy.Setup(steps=25, rate=1e-2, batch=batch)
    draws = [[torch.Generator().manual_seed(i) for i in range(3)] for _ in range(2)]
    first = toy.train(stack, x, y, torch.ones(3, 20), setup, None, draws[0])
    for i, model in enumerate(alone):
        optimizer = (
            torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9) if batch else torch.optim.Adam(model.parameters(), lr=1e-2)
        )
        for _ in range(25):
            rows = torch.randint(20, (batch,), generator=draws[1][i]) if batch else torch.arange(20)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[i, rows]), y[i, rows]).backward()
            optimizer.step()
        for layer, weight, bias in zip(model[::2], stack.weights, stack.biases):
            torch.testing.assert_close(layer.weight.T, weight[i], atol=1e-5, rtol=0)
            torch.testing.assert_close(layer.bias, bias[i, 0], atol=1e-5, rtol=0)
        fits = bool((model(x[i]).argmax(1) == y[i]).all())
        assert (first[i].item() == 25) == fits  # looked at after steps 0 and 25


def test_samples_of_weight_0_teach_nothing(toy):
    x, y = torch.randn(2, 12, 3), torch.randint(2, (2, 12))
    weight = torch.ones(2, 12)
    weight[:, 8:] = 0.0
    stacks = [toy.Stack([3, 6, 2], [1, 2]) for _ in range(2)]
    toy.train(stacks[0], x, y, weight, toy.Setup(steps=10), None, [])
    toy.train(stacks[1], x[:, :8], y[:, :8], torch.ones(2, 8), toy.Setup(steps=10), None, [])
    for one, two in zip(stacks[0].weights, stacks[1].weights):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=0)


@pytest.mark.parametrize("divide", [False, True])
def test_spectral_norms(toy, divide):
    caps = torch.tensor([0.25, 3.0, math.inf])[: 2 if divide else 3]
    stack = toy.Stack([4, 16, 16, 2], range(len(caps)), caps, hidden_cap=0.5, divide=divide)
    x = torch.randn(len(caps), 30, 4)
    toy.train(stack, x, (x[..., 0] > 0).long(), torch.ones(x.shape[:2]), toy.Setup(steps=60, rate=1e-2), None, [])
    norms = [torch.linalg.matrix_norm(layer, 2) for layer in stack.layers()]
    free = torch.linalg.matrix_norm(stack.weights[-1], 2)
    expected = caps if divide else torch.minimum(caps, free)
    torch.testing.assert_close(norms[-1], expected, rtol=1e-3, atol=0)
    assert all((norm < 0.5005).all() for norm in norms[:-1])
    if divide:
        assert all((norm > 0.4995).all() for norm in norms[:-1])
    else:
        torch.testing.assert_close(norms[-1][2], free[2])


def test_attack_on_linear_networks_is_exact(toy):
    stack = toy.Stack([5, 2], range(4))
    x, y = torch.randn(4, 200, 5), torch.randint(2, (4, 200))
    eps = torch.tensor([0.0, 0.1, 0.5, 2.0])
    signed = stack.weights[0][..., 1] - stack.weights[0][..., 0]
    gap = (x * signed[:, None]).sum(-1) + (stack.biases[0][..., 1] - stack.biases[0][..., 0])
    exact = gap * (2 * y - 1) - eps[:, None] * signed.abs().sum(1, keepdim=True)
    clear = exact.abs() > 1e-4
    found = toy.robust(stack.forward, x, y, eps, steps=7)
    assert torch.equal(found[clear], (exact > 0)[clear]) and 0 < found.sum() < found.numel() and clear.float().mean() > 0.99
    last, before = toy.attack(stack.forward, x, y, eps, steps=7)
    assert ((last - x).abs().amax((1, 2)) <= eps + 1e-6).all()
    assert (found <= before).all() and (before <= toy.right_at(stack.forward, x, y)).all()


def test_margin_points_where_the_cross_entropy_does(toy):
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    y = torch.randint(4, (2, 3))
    (one,) = torch.autograd.grad(toy.margin(logits, y).sum(), logits)
    (two,) = torch.autograd.grad(nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum"), logits)
    torch.testing.assert_close(nn.functional.normalize(one, dim=-1), nn.functional.normalize(two, dim=-1))
    sure = torch.tensor([[[60.0, -60.0, -59.0]]], requires_grad=True)  # the cross-entropy is 0 here in float32
    assert torch.autograd.grad(toy.margin(sure, torch.tensor([[0]])).sum(), sure)[0].norm() > 1


@pytest.mark.parametrize("kind, wrong", [("opposite", [1, 1, 1, 0, 0, 0]), ("third", [2] * 6), ("third-pgd", [2] * 6)])
@pytest.mark.parametrize("r", [None, 0.0, 2.5])
def test_data(toy, kind, wrong, r):
    setup = toy.Setup(d=7, samples=40, poisons=3, tests=10)
    x, y, weight, fresh, truth = toy.data(setup, kind, 1.5, r, torch.Generator().manual_seed(0))
    assert x.shape == (46, 7) and fresh.shape == (10, 7)
    assert torch.equal(y[:40], (x[:40].sum(1) >= 0).long()) and torch.equal(truth, (fresh.sum(1) >= 0).long())
    assert (x[:20].mean() + 1.5).abs() < 0.3 and (x[20:40].mean() - 1.5).abs() < 0.3
    assert y[40:].tolist() == wrong and weight.tolist() == [1.0] * 40 + [float(r is not None)] * 6
    means = torch.tensor([-1.5] * 3 + [1.5] * 3).unsqueeze(1)
    torch.testing.assert_close((x[40:] - means).norm(dim=1), torch.full((6,), r or 0.0), atol=1e-5, rtol=0)
    again = toy.data(setup, kind, 1.5, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(again[0][:40], x[:40]) and torch.equal(again[3], fresh)  # r moves the poisons alone


def test_hash(toy):
    x = torch.cat([torch.randn(50, 2) * 4, torch.tensor([[0.0, -0.0], [-1e-6, 941 / 1024], [-941 / 1024, 940.9 / 1024]])])
    slow = [[int(b) for v in row for b in format(math.floor(v * 2**10) % 941, "010b")] for row in x.double().tolist()]
    assert toy.hashed(x, 10).tolist() == slow
    with pytest.raises(ValueError, match="bits=9 cannot hold the numbers below 941: give at least 10"):
        toy.hashed(x, 9)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_runs_resume_and_report(toy, tmp_path, capsys):
    out, page = tmp_path / "runs.jsonl", tmp_path / "docs" / "page.md"
    names = ["means", "training-pgd", "cap", "plane-hash"]
    command = ["--out", str(out), *TINY]
    toy.main([*command, "--experiments", *names])
    rows = rows_of(out)
    assert len({row["key"] for row in rows}) == len(rows) == 2 * 3 * (2 + 2 + 3 + 1)
    assert {row["experiment"] for row in rows} == set(names) and all(row["machine"]["torch"] for row in rows)
    assert all((row["poisons_fitted"] is None) == (row["r"] is None) for row in rows)
    assert all(value <= row["natural"] for row in rows for value in row["adversarial"].values())
    toy.main([*command, "--experiments", *names])
    assert rows_of(out) == rows  # found, not run again
    apart = tmp_path / "apart.jsonl"
    toy.main(["--out", str(apart), *TINY, "--experiments", "training-pgd", "--stack", "1"])
    read = lambda found: {row["key"]: (row["natural"], row["adversarial"], row["fit"]) for row in found}  # noqa: E731
    assert read(rows_of(apart)).items() <= read(rows).items()  # a network does not depend on its stack

    toy.main(["--out", str(out), "--report", "--page", str(page)])
    told = page.read_text()
    assert "## Section 4.5" in told and "| no poisons |" in told
    assert len(list((page.parent / "figures").glob("crafted_toy_*.png"))) == 3  # no map without its points
    page.write_text(told.replace("# Mislabelled", "Own words.\n\n# Mislabelled", 1))
    toy.main(["--out", str(apart), "--report", "--page", str(page)])
    assert page.read_text().startswith("Own words.\n\n# Mislabelled") and "## Section 4.5" not in page.read_text()

    with pytest.raises(SystemExit):
        toy.main([*command, "colour=3"])
    assert "--set colour: unknown; choose of d, samples" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"kinds=\['fourth'\] are unknown"):
        toy.Setup(kinds=("fourth",))
    toy.main([*command, "rate=0.5", "--experiments", "cap"])
    with pytest.raises(SystemExit, match="cap was run with several setups"):
        toy.main(["--out", str(out), "--report", "--page", str(page)])
