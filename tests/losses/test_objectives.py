import pytest
import torch
from helpers import reference
from helpers.tables import every_row

from robust_trainer.losses import standard as objectives
from robust_trainer.types import ForwardOutput

SHAPES = [(1, 2, 1), (7, 3, 1), (16, 10, 1), (5, 100, 2)]


def view(b, c, m=1, scale=4.0, dtype=torch.float64):
    g = torch.Generator().manual_seed(b * 31 + c)
    return ForwardOutput((torch.randn(m, b, c, generator=g, dtype=dtype) * scale), torch.randint(c, (b,), generator=g))


@every_row("smoothing", [0.0, 0.2])
@every_row("b,c,m", SHAPES)
def test_cross_entropy_equals_the_loop(b, c, m, smoothing):
    v = view(b, c, m)
    given = v.targets.expand(m, -1)
    mixed = objectives.HardBootstrap(0.8)(v)
    for targets in (given, mixed):
        losses = objectives.CrossEntropy(smoothing)(v, targets)
        for k in range(m):
            for i in range(b):
                t = reference.onehot(int(v.targets[i]), c) if targets is given else mixed[k, i].tolist()
                assert float(losses[k, i]) == pytest.approx(
                    reference.cross_entropy(v.logits[k, i].tolist(), t, smoothing), rel=1e-4, abs=1e-5
                )


@every_row("beta", [0.0, 0.8, 1.0])
def test_bootstrap_targets(beta):
    v = view(12, 4)
    mixed = objectives.HardBootstrap(beta)(v)
    for i in range(12):
        expected = torch.zeros(4)
        expected[v.targets[i]] += beta
        expected[v.logits[0, i].argmax()] += 1 - beta
        assert torch.allclose(mixed[0, i], expected)
