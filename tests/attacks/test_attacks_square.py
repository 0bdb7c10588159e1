import math

import pytest
import torch
from helpers.linear_attack import Linear, distance_to_boundary, length, near_the_middle
from helpers.tables import every_row
from helpers.toy import Logits

from robust_trainer.attacks.base import Draws
from robust_trainer.attacks.square import Square, pyramid


def margin(model, image, label):
    """max_{k != y} z_k - z_y of one image."""
    logits = model(image[None])[0].tolist()
    return max(v for k, v in enumerate(logits) if k != label) - logits[label]


def slow_linf(model, x, y, draws, eps, queries, p_init):
    """Algorithm 1 with 2 of the paper on one image: the same uniform numbers, pixel by pixel."""
    channels, height, width = x.shape
    halvings = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
    best = x.clone()
    stripes = draws.uniform(channels, width)[0]
    for c in range(channels):
        for j in range(width):
            for i in range(height):
                best[c, i, j] = (x[c, i, j] + (eps if stripes[c, j] >= 0.5 else -eps)).clamp(0, 1)
    highest = margin(model, best, y)
    for query in range(queries):
        if highest > 0:
            break
        p = p_init
        for after in halvings:
            if query > after:
                p /= 2
        side = min(max(round(math.sqrt(p * height * width)), 1), height, width)
        u = draws.uniform(2 + channels)[0]
        top, left = int(u[0] * (height - side + 1)), int(u[1] * (width - side + 1))
        new = best.clone()
        for c in range(channels):
            change = eps if u[2 + c] >= 0.5 else -eps
            for i in range(top, top + side):
                for j in range(left, left + side):
                    new[c, i, j] = (x[c, i, j] + change).clamp(0, 1)
        found = margin(model, new, y)
        if found > highest:
            best, highest = new, found
    return best


@pytest.mark.parametrize("shape,index", [((3, 8, 8), 3), ((1, 5, 9), 8)])
def test_linf_equals_the_slow_search(shape, index):
    model = Linear(4, shape)
    x, y = near_the_middle(model, 3, shape)
    x[:, :, :2] = x[:, :, :2].round()
    y = model(x).argmax(1)
    eps = 0.55 * float(distance_to_boundary(model, x, y, "linf").max())
    ours = Square(eps, queries=130, p_init=0.3)(model, x, y, Draws(index, range(3)))
    slow = [slow_linf(model, x[i], int(y[i]), Draws(index, [i]), eps, 130, 0.3) for i in range(3)]
    assert torch.equal(ours, torch.stack(slow))
    assert (ours != x).flatten(1).any(1).all()


def slow_l2_step(x, best, u, side, eps):
    """One query of Algorithm 3 on one image, pixel by pixel."""
    channels, height, width = x.shape
    top, left, top_2, left_2 = (int(u[i] * (n - side + 1)) for i, n in enumerate((height, width, height, width)))
    tile = torch.zeros(side, side)
    for i in range(side):
        for j in range(side):
            first = i < side // 2
            h = side // 2 if first else side - side // 2
            r, n = (i if first else i - side // 2), max(h // 2, side // 2)
            away = max(abs(r - h // 2), abs(j - side // 2))
            tile[i, j] = (1 if first else -1) * sum(1 / (n + 1 - k) ** 2 for k in range(n - away + 1))
    tile = tile / tile.norm()
    if u[4] >= 0.5:
        tile = tile.T
    delta = best - x
    unused = max(eps**2 - float(delta.norm()) ** 2, 0)
    new = delta.clone()
    new[:, top_2 : top_2 + side, left_2 : left_2 + side] = 0
    for c in range(channels):
        old = delta[c, top : top + side, left : left + side]
        shape = tile * (1 if u[5 + c] >= 0.5 else -1) + (old / old.norm() if old.norm() > 0 else 0)
        union = sum(
            float(delta[c, i, j]) ** 2
            for i in range(height)
            for j in range(width)
            if (top <= i < top + side and left <= j < left + side) or (top_2 <= i < top_2 + side and left_2 <= j < left_2 + side)
        )
        new[c, top : top + side, left : left + side] = shape / shape.norm() * math.sqrt(union + unused / channels)
    return (x + new / new.norm() * eps).clamp(0, 1)


@every_row("shape,side", [((3, 8, 8), 3), ((2, 7, 9), 5), ((1, 6, 4), 4), ((2, 2, 5), 2)])
def test_an_l2_query_equals_the_slow_one(shape, side):
    attack, draws = Square(0.7, norm="l2"), Draws(0, range(20))
    x = torch.rand(20, *shape, generator=torch.Generator().manual_seed(0))
    best = attack._grid(x, draws)
    numbers = draws.uniform(5 + shape[0])
    new = attack._windows(x, best, numbers, side)
    slow = [slow_l2_step(x[i], best[i], numbers[i], side, 0.7) for i in range(20)]
    torch.testing.assert_close(new, torch.stack(slow), atol=2e-6, rtol=1e-5)
    assert (new != best).flatten(1).any(1).all()


def test_the_side_follows_the_schedule():
    sides = [Square(0.1).side(q, 28, 28) for q in (0, 10, 11, 50, 51, 201, 501, 1001, 2001, 4001, 4999)]
    p = [0.8, 0.8, 0.4, 0.4, 0.2, 0.1, 0.05, 0.025, 0.0125, 0.00625, 0.00625]
    assert sides == [max(round(math.sqrt(v * 784)), 1) for v in p]
    assert Square(0.1, queries=1000, rescaled=True).side(6, 28, 28) == Square(0.1).side(51, 28, 28)
    assert [Square(0.1, norm="l2").side(q, 28, 28) for q in (0, 11, 4999)] == [25, 19, 3]
    assert Square(0.1).side(0, 3, 40) == 3 and Square(0.1, norm="l2").side(0, 2, 2) == 2


@every_row("side", [1, 2, 3, 5, 6, 25])
def test_the_pyramid_has_unit_norm_and_two_signs(side):
    tile = pyramid(side)
    assert tile.shape == (side, side) and abs(float(tile.norm()) - 1) < 1e-6
    assert (tile[: side // 2] > 0).all() and (tile[side // 2 :] < 0).all()


@pytest.mark.parametrize("norm,share", [("linf", 0.8), ("l2", 0.45)])
def test_breaks_a_linear_model_where_and_only_where_it_can_be_broken(norm, share):
    model = Linear(4, (1, 6, 6))
    x, y = near_the_middle(model, 60, (1, 6, 6))
    truth = distance_to_boundary(model, x, y, norm)
    eps = float(truth.quantile(0.6))
    x_adv = Square(eps, norm=norm, queries=500)(model, x, y, Draws(0, range(60)))
    broken = model(x_adv).argmax(1) != y
    assert not broken[truth > eps * (1 + 1e-4)].any()
    weak = truth < share * eps
    assert weak.sum() >= 10 and broken[weak].float().mean() >= 0.95
    assert (length(x_adv - x, norm) <= eps * (1 + 1e-6) + 6e-8).all()


@every_row("norm,eps", [("linf", 0.1), ("l2", 0.5)])
@every_row("shape,classes", [((3, 8, 8), 4), ((1, 3, 3), 2), ((2, 13, 4), 3), ((1, 1, 1), 5), ((1, 28, 11), 10)])
def test_any_image_stays_in_the_ball_and_the_box(norm, eps, shape, classes):
    torch.manual_seed(0)
    model = Logits(classes, shape[0]).eval()
    x = torch.rand(8, *shape)
    x[:4] = x[:4].round()
    y = model(x).argmax(1)
    y[3] = (y[3] + 1) % classes
    before, attack = x.clone(), Square(eps, norm=norm, queries=70, restarts=2)
    seen = []

    def forward(pixels):
        assert not torch.is_grad_enabled()
        seen.append(pixels)
        return model(pixels)

    x_adv = attack(forward, x, y, Draws(0, range(8)))
    assert 1 < len(seen) <= 1 + 2 * (1 + 70)
    for image in (x_adv, *seen):
        assert image.isfinite().all() and image.min() >= 0 and image.max() <= 1
    assert (length(x_adv - x, norm) <= eps * (1 + 1e-6) + 6e-8).all()
    assert torch.equal(x_adv[3], x[3]) and torch.equal(x, before)
    with torch.no_grad():
        for i in range(8):
            assert margin(model, x_adv[i], int(y[i])) >= margin(model, x[i], int(y[i])) - 1e-6
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("norm,eps", [("linf", 0.75), ("l2", 0.55)])
def test_a_batch_equals_its_samples(norm, eps):
    model = Linear(5, (2, 6, 5))
    x, y = near_the_middle(model, 8, (2, 6, 5))
    eps = float(distance_to_boundary(model, x, y, norm).median()) / eps
    attack = Square(eps, norm=norm, queries=130, restarts=2)
    together = attack(model, x, y, Draws(7, range(8)))
    assert torch.equal(together, torch.cat([attack(model, x[i : i + 1], y[i : i + 1], Draws(7, [i])) for i in range(8)]))
    back = attack(model, x.flip(0), y.flip(0), Draws(7, range(7, -1, -1)))
    assert torch.equal(together, back.flip(0))
    assert 0 < (model(together).argmax(1) != y).sum() < 8
    assert not torch.equal(together, attack(model, x, y, Draws(8, range(8))))


def test_calls_end_when_all_are_broken_and_wrong_rows_cost_none():
    model = Linear(3)
    x, y = near_the_middle(model, 6, (1, 4, 4))
    model.calls = 0
    Square(1e-7, queries=33, restarts=3)(model, x, y, Draws(0, range(6)))
    assert model.calls == 1 + 3 * 34
    model.calls = 0
    Square(0.5, queries=5000)(model, x, y, Draws(0, range(6)))
    once = model.calls
    assert once < 500
    Square(0.5, queries=5000, restarts=3)(model, x, y, Draws(0, range(6)))
    assert model.calls == 2 * once
    model.calls = 0
    assert torch.equal(Square(0.5)(model, x, (y + 1) % 3, Draws(0, range(6))), x)
    assert model.calls == 1


@every_row("norm", ["linf", "l2"])
def test_constant_models_and_bad_settings(norm):
    x, y = torch.rand(3, 1, 3, 3), torch.tensor([0, 0, 1])
    for logits in (torch.zeros(3), torch.tensor([1.0, 0.0, 0.0])):
        out = Square(0.1, norm=norm, queries=20)(lambda t, z=logits: z.expand(len(t), 3), x, y, Draws(0, range(3)))
        assert out.isfinite().all() and torch.equal(out, x)
    for kwargs, words in (({"eps": -1}, "eps=-1"), ({"norm": "l1"}, "norm='l1'"), ({"queries": 0}, "queries=0"),
                          ({"p_init": 1.5}, "p_init=1.5")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            Square(**{"eps": 0.1, "norm": norm, **kwargs})
    assert Square(0.1).name == "square"
