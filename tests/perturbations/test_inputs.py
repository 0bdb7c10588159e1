"""Where a perturbation enters a text model, by itself: the unit, the mask, a ball for each token, the scale of the gradient."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from robust_trainer.data.images import InputSpace
from robust_trainer.data.randomness import RowDraws
from robust_trainer.perturbations.inputs import EmbeddingAdapter, EmbeddingSpace, PixelAdapter
from robust_trainer.perturbations.norms import NORMS
from robust_trainer.perturbations.pgd import Perturbation

WIDTH, WORDS = 9, 20
IN_L2 = torch.tensor([True, False, True, False, False])


class Text(nn.Module):
    """Word embeddings, their masked mean, a linear layer."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.words, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 3)

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, attention_mask=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        moved = self.words(input_ids) * mask.unsqueeze(-1)
        return self.head(moved.sum(1) / mask.sum(1, keepdim=True))


def micro_batch(rows, length, padding=0, mask=True, seed=1):
    """Token ids whose last ``padding`` columns are padding."""
    ids = torch.randint(WORDS, (rows, length), generator=torch.Generator().manual_seed(seed))
    real = torch.ones(rows, length, dtype=torch.long)
    real[:, length - padding :] = 0
    return SimpleNamespace(inputs={"input_ids": ids, **({"attention_mask": real} if mask else {})}, targets=torch.zeros(rows))


BATCHES = [micro_batch(3, 4, padding=1), micro_batch(2, 6, mask=False, seed=2)]


@pytest.mark.parametrize("norm", NORMS)
def test_a_unit_is_as_large_as_a_word(norm):
    """In every norm that of a vector of equal entries whose 2-norm is the vocabulary's mean; of peers the mean of theirs."""
    models = [Text(0), Text(1)]
    length = sum(float(m.words.weight.detach().norm(dim=1).mean()) for m in models) / 2
    adapter = EmbeddingAdapter.of(models)
    assert adapter.unit == pytest.approx(length) and adapter.width == WIDTH and len(adapter.embeddings) == 2
    _, space = adapter.join(BATCHES, norm)
    flat = torch.full((1, WIDTH), length / math.sqrt(WIDTH))
    assert space.unit == pytest.approx(float(NORMS[norm].size(flat)), rel=1e-6)


def test_units_differ_where_the_norms_do():
    adapter = EmbeddingAdapter.of([Text()])
    _, space = adapter.join(BATCHES, "hybrid", IN_L2)
    expected = torch.where(IN_L2, adapter.unit, adapter.unit / math.sqrt(WIDTH))
    assert space.unit.shape == (5, 1, 1) and torch.allclose(space.unit.flatten(), expected)
    delta = torch.ones(5, 6, WIDTH)
    moved = space.add(torch.zeros(5, 6, WIDTH), delta)
    assert torch.allclose(moved[:, 0, 0], expected) and torch.allclose(space.to_pixel_gradient(delta)[:, 0, 0], expected)


def test_micro_batches_are_joined_and_split_with_their_own_padding():
    adapter = EmbeddingAdapter.of([Text()])
    x, space = adapter.join(BATCHES, "l2")
    assert x.shape == (5, 6, WIDTH) and not x.any()
    assert space.mask.shape == (5, 6, 1)
    assert space.mask[:3, :, 0].tolist() == [[1, 1, 1, 0, 0, 0]] * 3 and bool((space.mask[3:] == 1).all())
    x = torch.randn(5, 6, WIDTH)
    first, second = adapter.split(x, BATCHES)
    assert torch.equal(first, x[:3, :4]) and torch.equal(second, x[3:])


@pytest.mark.parametrize("norm", NORMS)
def test_padding_is_not_moved_and_every_token_has_its_ball(norm):
    adapter = EmbeddingAdapter.of([Text()])
    x, space = adapter.join(BATCHES, norm)
    attack = Perturbation(0.3, steps=2, step_size=0.2, norm=norm, scope="sample", random_start=True)
    ball = attack.ball(space)
    assert ball.per_token
    delta = attack.start(x, space, ball, RowDraws(torch.arange(len(x)), 0))
    padded = space.mask.expand_as(x) == 0
    for _ in range(2):
        assert not delta[padded].any()
        delta = attack.step(x, delta, torch.randn_like(x), torch.tensor([1, 1, 0, 1, 1.0]), space, ball, lambda t: t)
    moved = attack.apply(x, delta, space)
    assert not moved[padded].any() and not moved[2].any()
    sizes = NORMS[norm].size(moved, per_token=True).squeeze(-1)[(space.mask.squeeze(-1) > 0) & (torch.arange(5) != 2)[:, None]]
    assert (sizes > 0).all() and sizes.max() <= 0.3 * space.unit * (1 + 1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_gradient_is_that_of_what_is_added(norm):
    """d loss / d delta = unit d loss / d x, told by a difference quotient."""
    model = Text().double()
    adapter = EmbeddingAdapter.of([model])
    x, space = adapter.join(BATCHES[:1], norm)
    x = x.double().requires_grad_(True)

    def loss(at):
        return adapter.forward(lambda inputs: model(**inputs), BATCHES[0].inputs, at).square().sum()

    (grad,) = torch.autograd.grad(loss(x), x)
    way = torch.randn_like(x) * space.mask
    zero, step = torch.zeros_like(x), 1e-4
    with torch.no_grad():
        slope = (loss(space.add(zero, way * step)) - loss(space.add(zero, -way * step))) / (2 * step)
    assert float((space.to_pixel_gradient(grad) * way).sum()) == pytest.approx(float(slope), rel=1e-5)


def test_a_forward_adds_to_the_embeddings_and_leaves_no_hook():
    model = Text()
    adapter = EmbeddingAdapter.of([model])
    inputs = BATCHES[1].inputs
    x = torch.randn(2, 6, WIDTH)
    got = adapter.forward(lambda given: model(**given), inputs, x)
    assert torch.allclose(got, model.head((model.words(inputs["input_ids"]) + x).mean(1)), atol=1e-6)
    with pytest.raises(RuntimeError, match="stop"):
        adapter.forward(lambda given: (_ for _ in ()).throw(RuntimeError("stop")), inputs, x)
    assert not model.words._forward_hooks


def test_embeddings_have_no_range_and_zero_moves_nothing():
    space = EmbeddingSpace(2.0, torch.ones(1, 1, 1))
    x = torch.randn(2, 3, 4, dtype=torch.bfloat16) * 1e4
    space.check(x)
    moved = space.add(x, torch.zeros(2, 3, 4))
    assert torch.equal(moved, x) and moved.dtype == torch.bfloat16


@pytest.mark.parametrize("times", [1, 2])
def test_several_images_of_a_sample_have_its_other_inputs_beside_them(times):
    """As of norm ``both``: first all in the one ball, then all in the other."""
    images, words = torch.rand(3, 3, 2, 2), torch.arange(6).view(3, 2)
    inputs = {"pixel_values": images, "input_ids": words, "names": ["a", "b", "c"], "scale": 2.0}
    adapter = PixelAdapter("pixel_values", InputSpace([0.5] * 3, [0.5] * 3))
    seen = adapter.forward(dict, inputs, torch.cat([images + number for number in range(times)]))
    assert [len(seen[name]) for name in ("pixel_values", "input_ids", "names")] == [3 * times] * 3 and seen["scale"] == 2.0
    assert torch.equal(seen["input_ids"], torch.cat([words] * times)) and seen["names"] == ["a", "b", "c"] * times
